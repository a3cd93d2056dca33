"""Outputs, then state, then offsets: what a turn does in which order, also while no checkpoint can be written."""

import pytest

from online.worker.checkpoint import CheckpointError
from online.worker.progress import Progress
from stream.events import Click
from tests.online.conftest import NOW
from tests.online.worker.conftest import CLICKS, POLL, recorded, what_was_learned


def test_lists_come_before_the_checkpoint_and_the_checkpoint_before_the_commit(harness, values):
    harness.publish(values[:POLL])
    loop = harness.begin(harness.loop())
    calls = recorded(loop, "lists.write", "dead_letters.flush", "checkpoints.save", "source.commit")
    loop.turn()
    assert calls == ["lists.write"] * calls.count("lists.write") + [
        "dead_letters.flush",
        "checkpoints.save",
        "source.commit",
    ]


def test_what_is_committed_is_in_the_checkpoint_never_less(harness, values):
    harness.publish(values)
    loop = harness.begin(harness.loop())
    while loop.turn():
        number, _, state = loop.checkpoints.load()
        assert number == loop.checkpointer.last_saved.number
        saved = Progress()
        saved.load_state(state["progress"])
        assert loop.source.commits[-1] == saved.next_offsets == loop.source.positions()


def test_without_news_no_checkpoint_is_written(harness, values):
    harness.publish(values[:POLL])
    loop = harness.run()
    for _ in range(5):
        loop.turn()
    loop.finish()
    assert loop.checkpoints.numbers() == [1]
    assert set(map(str, loop.source.commits)) == {str({harness.partition(): POLL})}
    again = harness.run()
    assert again.checkpoints.numbers() == [1]


def full(*_, **__):
    raise CheckpointError("cannot write: no space left")


def test_without_a_writable_checkpoint_it_learns_on_and_commits_nothing(new_harness, values):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    loop = harness.begin(harness.loop())
    loop.turn()
    save, loop.checkpoints.save = loop.checkpoints.save, full
    loop.turn()
    loop.turn()
    assert loop.checkpointer.failing_since == NOW
    assert (loop.progress.learned, loop.notices.counts) == (3 * POLL - 3, {"checkpoint_failed": 1})
    assert "cannot write: no space left; learning goes on" in loop.notices.latest[-1].text
    assert harness.broker.committed == {harness.partition(): POLL}
    with pytest.raises(CheckpointError, match="no space"):
        loop.finish()
    loop.checkpoints.save = save
    harness.drain(loop)
    assert loop.checkpointer.failing_since is None
    assert loop.notices.counts == {"checkpoint_failed": 1, "checkpoint_recovered": 1}
    assert harness.broker.committed == {harness.partition(): CLICKS}
    found, expected = (what_was_learned(*one) for one in ((harness, loop), (quiet, quiet.run())))
    assert {name for name in expected if found[name] != expected[name]} == {
        "versions"
    }  # fewer checkpoints were written


def test_killed_while_no_checkpoint_can_be_written_nothing_is_lost_or_learned_twice(new_harness, values):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    loop = harness.begin(harness.loop())
    loop.turn()
    loop.checkpoints.save = full
    loop.turn()
    loop.turn()
    assert harness.everything(harness.run()) == quiet.everything(quiet.run())


def test_no_version_is_published_while_it_could_not_be_saved(harness, values):
    harness.publish(values)
    loop = harness.begin(harness.loop())
    loop.turn()
    loop.supervisor.ask_finetuning("a test")
    save, loop.checkpoints.save = loop.checkpoints.save, full
    loop.turn()  # published, and then it cannot be saved
    assert loop.learner.version == 2
    assert loop.versions.unsaved
    loop.supervisor.ask_finetuning("a test")
    loop.turn()
    assert (loop.learner.version, loop.supervisor.state) == (2, "asked")
    loop.checkpoints.save = save
    harness.drain(loop)
    assert loop.versions.live.checkpoint == loop.checkpointer.last_saved.number or loop.learner.version == 3
    for version in loop.versions.all()[1:]:
        _, state = loop.checkpoints.read(version.checkpoint)
        assert state["learner"]["version"] == version.number


def test_a_list_says_what_it_reflects(harness, town_clicks):
    harness.publish(town_clicks[:20])
    loop = harness.run()
    last_of = {click.user_id: (place, click) for place, click in enumerate(town_clicks[:20])}
    assert harness.lists.held.keys() == last_of.keys()
    for user, (place, click) in last_of.items():
        top = harness.lists.held[user]
        assert (top.offset, top.clicked_at) == (f"0:{place + 1}", int(1000 * click.timestamp))
        assert (top.version, top.source) == (1, "personal")
        assert len(top.items) == len(set(top.items)) == len(top.scores)
        assert top.scores == sorted(top.scores, reverse=True)
    assert harness.lists.popular_list.offset == "0:20"
    assert harness.lists.popular_list.source == "popular"
    assert loop.learner.popular().items == harness.lists.popular_list.items


def test_the_popular_list_names_the_last_click_though_its_user_came_earlier_too(harness):
    harness.publish([Click(user_id=user, item_id=user, timestamp=at) for at, user in enumerate("aba", start=1)])
    harness.run()
    assert (harness.lists.popular_list.offset, harness.lists.popular_list.clicked_at) == ("0:3", 3_000)
