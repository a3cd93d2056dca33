"""A bug of ours on one event: it goes to the dead letters, everything else is learned, and nothing is half done."""

from types import SimpleNamespace

import pytest

from online.worker import intake as intake_module
from online.worker.micro_batches import ReceivedClick, micro_batches
from online.worker.poison_pills import InconsistentStateError, InternalError, Quarantine, last_line
from stream.dead_letters import dead_letter
from stream.events import Click, encode
from stream.source import Partition, Record

POLL = 32


def live(harness, broken, **overrides):
    """A worker that begins anew whenever the code has failed -> its last loop, and how often it began. `broken` gets
    each loop, to break it."""
    quarantine, lives = Quarantine(), 0
    while True:
        loop = harness.loop(quarantine=quarantine, **overrides)
        broken(loop)
        lives += 1
        try:
            return harness.drain(harness.begin(loop)), lives
        except InconsistentStateError:
            continue


def raising_on(*items, times=1_000_000, where="learn"):
    """Breaks the learner for some items (after it has moved counts and weights), so many times."""
    left = [times]

    def broken(loop):
        part, name = {"learn": (loop.learner, "learn"), "shadow": (loop.supervisor, "on_batch")}[where]
        method = getattr(part, name)

        def failing(clicks, *rest, **more):
            result = method(clicks, *rest, **more)
            if left[0] and any(click.item_id in items for click in clicks):
                left[0] -= 1
                raise ZeroDivisionError("division\nby zero")
            return result

        setattr(part, name, failing)

    return broken


@pytest.fixture
def values(town_clicks):
    """Clicks, three of them on items of their own, one broken message."""
    values = [click.model_copy(update={"event_id": f"e{at}"}) for at, click in enumerate(town_clicks[: 4 * POLL])]
    for at in (5, 40, 90):
        values[at] = values[at].model_copy(update={"item_id": f"odd-{at}"})
    values[41] = b"no json"
    return values


@pytest.mark.parametrize("where", ["learn", "shadow"])
def test_an_event_that_our_code_fails_on_is_put_aside_and_the_others_are_learned(harness, values, where):
    harness.publish(values)
    loop, lives = live(harness, raising_on("odd-40", "odd-90", where=where))
    letters = list(map(dead_letter, harness.dead()))
    assert [(letter.offset, letter.reason, letter.detail) for letter in letters] == [
        (40, "internal-error", "ZeroDivisionError: division by zero"),
        (41, "malformed-json", letters[1].detail),
        (90, "internal-error", "ZeroDivisionError: division by zero"),
    ]
    assert letters[0].record.value == encode(values[40])
    assert loop.progress.learned == loop.learner.scores.scored == len(values) - 3
    assert loop.progress.dead_letters == {"malformed-json": 1, "internal-error": 2}
    assert loop.progress.next_offsets == {harness.partition(): len(values)}
    assert {"odd-40", "odd-90"}.isdisjoint(item for top in harness.lists.held.values() for item in top.items)
    assert loop.learner.vocabulary.row_of("odd-40") == 0 != loop.learner.vocabulary.row_of("odd-5")
    assert lives == 1 + 2 * 3  # again as it was, then each alone, then without it
    assert loop.notices.counts["internal_error"] == 2
    assert loop.quarantine.empty


def test_what_was_chance_leaves_no_trace(new_harness, values):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    loop, lives = live(harness, raising_on("odd-40", times=1))
    assert lives == 2
    assert harness.everything(loop) == quiet.everything(quiet.run())


def test_a_bug_that_needs_several_clicks_at_once_puts_no_click_aside(harness, values):
    harness.publish(values)

    def broken(loop):
        learn = loop.learner.learn

        def failing(clicks, **more):
            if {"odd-40", values[42].item_id} <= {click.item_id for click in clicks}:
                raise RuntimeError("these two")
            return learn(clicks, **more)

        loop.learner.learn = failing

    loop, lives = live(harness, broken)
    assert (lives, loop.progress.dead_letters) == (3, {"malformed-json": 1})
    assert loop.progress.learned == len(values) - 1


def test_before_the_first_checkpoint_it_begins_anew(harness, values):
    harness.publish(values[:20])
    loop, _ = live(harness, raising_on("odd-5"), checkpoint_interval_s=3_600.0)
    assert (loop.progress.learned, [dead_letter(one).offset for one in harness.dead()]) == (19, [5])


def test_killed_between_the_dead_letter_and_the_checkpoint_it_is_not_learned_too(new_harness, values):
    """The worker after the crash may have other code: what stands among the dead letters stays there."""
    harness = new_harness()
    harness.publish(values[:POLL])

    class Killed(BaseException):
        pass

    def killed(step):
        if step == "checkpoint":
            raise Killed

    with pytest.raises(Killed):
        live(harness, raising_on("odd-5"), reached=killed)
    assert [dead_letter(one).offset for one in harness.dead()] == [5]
    loop = harness.run()
    assert (loop.progress.learned, loop.progress.dead_letters) == (POLL - 1, {"internal-error": 1})
    assert [dead_letter(one).offset for one in harness.dead()] == [5]


def test_after_so_many_in_a_row_it_says_so_and_stops_and_other_code_goes_on(harness, town_clicks):
    harness.publish(town_clicks[:POLL])
    items = {click.item_id for click in town_clicks[:POLL]}
    with pytest.raises(InternalError) as error:
        live(harness, raising_on(*items), internal_errors_in_a_row_max=4)
    message = str(error.value)
    assert message.startswith(
        "4 events in a row caused internal errors, up to clicks partition 0 offset 3: ZeroDivisionError"
    )
    assert "NEXTCLICK_INTERNAL_ERRORS_IN_A_ROW_MAX" in message
    assert "\n" not in message
    loop = harness.run(internal_errors_in_a_row_max=4)
    assert loop.progress.learned + loop.progress.dead_letters["internal-error"] == POLL
    assert loop.progress.dead_letters["internal-error"] == len(harness.dead()) < 4


def test_far_between_they_are_no_alarm(harness, values):
    harness.publish(values)
    loop, _ = live(harness, raising_on("odd-5", "odd-40", "odd-90"), internal_errors_in_a_row_max=2)
    assert loop.progress.dead_letters["internal-error"] == 3
    assert loop.progress.put_aside == 0


def test_an_event_that_the_parser_fails_on_goes_to_the_dead_letters_at_once(harness, values, monkeypatch, caplog):
    parse = intake_module.parse

    def failing(value, **rest):
        if value == encode(values[40]):
            raise KeyError("odd")
        return parse(value, **rest)

    monkeypatch.setattr(intake_module, "parse", failing)
    harness.publish(values)
    loop = harness.run()
    assert loop.progress.learned == len(values) - 2
    assert dead_letter(harness.dead()[0]).detail == "KeyError: 'odd'"
    assert "clicks partition 0 offset 40 cannot be parsed" in caplog.text


def test_an_error_of_the_edges_is_no_bug_of_ours(harness, values):
    harness.publish(values)
    loop = harness.begin(harness.loop())

    def full(*_, **__):
        raise MemoryError

    loop.learner.learn = full
    with pytest.raises(MemoryError):
        loop.turn()


def test_who_has_to_be_alone_is_a_micro_batch_of_its_own():
    clicks = [
        ReceivedClick(Click(user_id="u", item_id="i", timestamp=0), Record("clicks", 0, at, 0, None, b""))
        for at in range(9)
    ]
    batches = micro_batches(clicks, 4, 4, lambda record: record.offset in {0, 3, 4})
    assert [[one.record.offset for one in batch] for batch in batches] == [[0], [1, 2], [3], [4], [5, 6, 7, 8]]


def test_only_what_a_checkpoint_has_passed_is_forgotten():
    quarantine, at = Quarantine(), lambda offset: Record("clicks", 0, offset, 0, None, b"")
    error = ValueError("x" * 500)
    assert not quarantine.failed([at(3), at(4)], error)
    assert not quarantine.failed([at(3), at(4)], error)
    assert quarantine.failed([at(4)], error)
    quarantine.forget_before({Partition("clicks", 0): 4})
    assert (quarantine.alone(at(3)), quarantine.alone(at(4))) == (False, True)
    assert quarantine.aside(at(4)) == last_line(error)
    assert len(last_line(error)) == 200
    quarantine.forget_before({Partition("clicks", 0): 5})
    assert (quarantine.alone(at(4)), quarantine.aside(at(4))) == (False, None)


def test_an_error_that_cannot_be_printed_still_has_a_last_line():
    class OddError(Exception):
        def __str__(self):
            return SimpleNamespace().missing

    assert last_line(OddError()).endswith("<exception str() failed>")
