"""Duplicates, dead letters and messages that cannot be read, as the loop treats them."""

from stream.dead_letters import dead_letter
from stream.events import encode
from tests.online.worker.conftest import POLL


def test_event_ids_are_learned_once_also_across_restarts_and_crashes(harness, town_clicks):
    named = [
        click.model_copy(update={"event_id": f"e{number}"}) for number, click in enumerate(town_clicks[: 2 * POLL])
    ]
    harness.publish([*named[:POLL], *named[:4]])
    assert harness.run().progress.duplicates == 4
    harness.publish([*named[POLL - 8 :], *named])
    crashed = harness.loop()
    harness.crash(crashed.checkpoints, "save", call=2)
    harness.crashes(crashed)
    last = harness.run()
    assert last.progress.learned == last.learner.scores.scored == 2 * POLL
    assert last.progress.duplicates == 4 + 8 + 2 * POLL
    assert harness.broker.committed == {harness.partition(): POLL + 4 + 8 + POLL + 2 * POLL}


def test_clicks_without_an_event_id_are_all_learned(harness, town_clicks):
    harness.publish([town_clicks[0]] * 5)
    assert harness.run().progress.learned == 5


def test_dead_letters_keep_value_place_and_reason_and_disturb_nothing_else(new_harness, town_clicks):
    clean, broken = new_harness(), new_harness()
    bad = [b"{", b"\xff\xfe", b"x" * 70_000, encode(town_clicks[0]).replace(b"173", b"973"), b"null"]
    clean.publish(town_clicks[:20])
    broken.publish([*town_clicks[:20], *bad])
    clean.run()
    loop = broken.run()
    assert broken.lists.held == clean.lists.held
    letters = list(map(dead_letter, broken.dead()))
    assert [(letter.topic, letter.partition, letter.offset, letter.reason) for letter in letters] == [
        ("clicks", 0, 20, "malformed-json"),
        ("clicks", 0, 21, "invalid-utf8"),
        ("clicks", 0, 22, "too-large"),
        ("clicks", 0, 23, "future-timestamp"),
        ("clicks", 0, 24, "not-an-object"),
    ]
    assert [letter.record.value for letter in letters] == bad
    assert sum(loop.progress.dead_letters.values()) == len(bad)


def test_nothing_but_broken_messages_moves_on_too(harness):
    harness.publish([b"no json"] * 40)
    loop = harness.run()
    assert harness.broker.committed == {harness.partition(): 40}
    assert (loop.progress.learned, len(harness.dead()), harness.lists.held) == (0, 40, {})
    assert harness.run().source.began_at == [{harness.partition(): 40}]
    assert len(harness.dead()) == 40
