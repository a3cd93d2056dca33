"""The worker reads lists that were shown: they are in the checkpoint, outlive crashes, and go with their user."""

import json

import pytest

from online.config.settings import Settings
from stream.events import Click, Forget, encode_forget
from stream.impressions import Impression, ShownItem
from stream.source import Partition
from stream.user_ids import digest_of
from tests.online.conftest import NOW

ON = {"learn_impressions": True, "impressions_window_s": 100.0}
TOPIC = Settings().impressions_topic
PLACE = Partition(TOPIC, 0)


def shown(number, at):
    return Impression(
        request_id=str(number),
        user_id=f"u{number % 3}",
        timestamp=NOW - 10_000 + at,
        policy="p",
        version=1,
        explored=False,
        items=tuple(ShownItem(item_id=f"i{(number + n) % 7}", position=n) for n in range(1, 5)),
    )


def clicks(number, at):
    """Each user clicks on the second item of the list, and all items are known."""
    times = [(f"i{(number + 2) % 7}", 5.0), (f"i{number % 7}", 6.0)]
    return [Click(user_id=f"u{number % 3}", item_id=item, timestamp=NOW - 10_000 + at + s) for item, s in times]


def publish(harness, start, stop):
    for number in range(start, stop):
        harness.publish_impression(shown(number, 60.0 * number))
        harness.publish(clicks(number, 60.0 * number))


def state_of(loop):
    arrays, state = loop.learner.shown.to_state()
    return {name: array.tolist() for name, array in arrays.items()} | state


def test_lists_are_joined_to_clicks_and_in_the_checkpoint(harness):
    publish(harness, 0, 30)
    loop = harness.run(**ON)
    assert loop.progress.next_offsets[PLACE] == 30
    assert loop.learner.shown.model.clicks.sum() > 20
    again = harness.begin(harness.loop(**ON))
    assert harness.impressions.began_at[-1] == {PLACE: 30}
    assert state_of(again) == state_of(loop)


def test_a_bad_record_is_counted_and_not_kept(harness):
    publish(harness, 0, 3)
    harness.publish_impression(b'{"user_id": "u1"}')
    loop = harness.run(**ON)
    assert harness.dead() == []
    assert loop.progress.dead_letters["missing-request_id"] == 1
    assert loop.progress.next_offsets[PLACE] == 4


def test_without_the_setting_the_topic_is_not_read(harness):
    publish(harness, 0, 3)
    loop = harness.run()
    assert loop.learner.shown is None
    assert PLACE not in loop.progress.next_offsets


@pytest.mark.parametrize("step", ["items", "learn", "offsets", "checkpoint_rename", "commit"])
def test_after_a_crash_at_any_step_each_list_counts_once(new_harness, step):
    calls = 0

    def reached(name):
        nonlocal calls
        calls += name == step
        if name == step and calls in {2, 4}:
            raise harness.aborted

    harness = new_harness()
    publish(harness, 0, 40)
    for _ in range(3):
        loop = harness.loop(reached, **ON)
        try:
            harness.drain(harness.begin(loop))
            break
        except harness.aborted:
            continue
    late = [Click(user_id="z", item_id="i1", timestamp=NOW)]
    harness.publish(late)
    loop = harness.run(**ON)
    whole = new_harness()
    publish(whole, 0, 40)
    whole.run(**ON)
    whole.publish(late)
    model, wanted = loop.learner.shown.model, whole.run(**ON).learner.shown.model
    assert loop.learner.shown.waiting == 0
    assert model.shown.sum() == wanted.shown.sum() > 100
    assert model.clicks.sum() == wanted.clicks.sum() > 30


def test_a_forgotten_user_is_erased_and_earlier_lists_do_not_come_back(harness):
    publish(harness, 0, 30)
    loop = harness.begin(harness.loop(**ON, forget_checkpoints_s=0.0))
    while loop.turn():
        pass
    assert "u1" in loop.learner.shown.user_ids()
    harness.publish([encode_forget(Forget(user_sha256=digest_of("u1"), timestamp=NOW))])
    loop.turn()
    harness.publish_impression(shown(1, 60.0 * 29))  # it was shown before, and is read after the request
    harness.publish([Click(user_id="u2", item_id="i1", timestamp=NOW)])
    harness.drain(loop)
    assert "u1" not in loop.learner.shown.user_ids()
    found = loop.answer_forget({"forget": digest_of("u1"), "after": [], "search": True})
    assert found["memory"]["lists_shown"] == found["memory"]["passed_items"] == 0
    harness.run(**ON, forget_checkpoints_s=0.0)
    for number in loop.checkpoints.numbers():
        with loop.checkpoints.opened(number) as (state, _):
            assert "u1" not in json.dumps(state["learner"]["shown"])


def test_lists_ahead_of_the_clicks_stay_on_the_topic(harness):
    publish(harness, 0, 4)
    for number in range(100, 120):
        harness.publish_impression(shown(number, 1_000.0 * number))
    loop = harness.begin(harness.loop(**ON, impressions_held=8))
    loop.impressions._intake._feed.records_max = 4
    while loop.turn():
        pass
    assert loop.learner.shown.waiting <= 8
    assert loop.progress.next_offsets[PLACE] < 24
