"""Whatever step the worker is killed at, nothing is lost, and nothing is in the surviving weights twice."""

import pytest

from stream.dead_letters import dead_letter
from stream.events import Click
from stream.source import Record
from tests.online.worker.conftest import BAD, CLICKS, POLL, owner_of

STEPS = [
    *[("source.poll", call) for call in (1, 5)],
    *[("dead_letters.put", call) for call in (1, 3, 5)],
    *[("learner.learn", call) for call in (1, 9)],
    *[("lists.write", call) for call in (1, 7)],
    *[("supervisor.on_batch", call) for call in (4,)],
    *[("dead_letters.flush", call) for call in (2, 5)],
    *[("checkpoints.save", call) for call in (1, 5)],
    *[("source.commit", call) for call in (1, 3)],
]


@pytest.fixture(scope="module")
def undisturbed():
    """What a run without faults leaves, computed once."""
    return {}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("killed_at", STEPS, ids=str)
def test_a_crash_at_any_step_changes_nothing_that_is_learned_or_written(
    new_harness, values, undisturbed, killed_at, after
):
    step, call = killed_at
    if not undisturbed:
        quiet = new_harness()
        quiet.publish(values)
        undisturbed.update(quiet.everything(quiet.run()))
        undisturbed["dead"] = quiet.dead()

    harness = new_harness()
    harness.publish(values)
    first = harness.loop()
    harness.crash(*owner_of(first, step), call=call, after=after)
    harness.crashes(first)
    vars(harness.lists).pop("write", None)  # Redis itself goes on
    turns_saved = first.checkpoints.numbers()[-1] if first.checkpoints.numbers() else 0

    second = harness.run()
    assert second.source.began_at == [{harness.partition(): turns_saved * POLL}]
    assert second.progress.learned == CLICKS - len(BAD)
    assert second.progress.dead_letters == {
        "malformed-json": 2, "not-an-object": 1, "tombstone": 1, "invalid-user_id": 1,
    }  # fmt: skip
    assert harness.broker.committed == {harness.partition(): CLICKS}
    found = harness.everything(second)
    assert {name for name in undisturbed if name != "dead" and found[name] != undisturbed[name]} == set()
    assert [(letter.key, letter.value, letter.headers) for letter in harness.dead()] == [
        (letter.key, letter.value, letter.headers) for letter in undisturbed["dead"]
    ]


@pytest.mark.parametrize("at", [0, 31, 32, 90, 159])
def test_an_abort_in_the_stream_replays_from_the_checkpoint_and_nothing_else(new_harness, values, at):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish([*values[:at], harness.abort, *values[at:]])
    harness.crashes(harness.loop())
    seen = []
    second = harness.begin(harness.loop())
    learn = second.learner.learn
    second.learner.learn = lambda clicks, **how: (seen.extend(clicks), learn(clicks, **how))[1]
    harness.drain(second)

    resumed = at // POLL * POLL  # the poll that met ABORT gave nothing; every turn before it had its checkpoint
    assert second.source.began_at == [{harness.partition(): resumed}]
    assert seen == [value for value in values[resumed:] if isinstance(value, Click)]
    assert harness.everything(second) == quiet.everything(quiet.run())


def test_many_crashes_in_one_run_change_nothing(new_harness, values):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    for step, call, after in (
        ("lists.write", 3, True), ("source.commit", 2, False), ("checkpoints.save", 1, False),
        ("learner.learn", 2, True),
    ):  # fmt: skip
        loop = harness.loop()
        harness.crash(*owner_of(loop, step), call=call, after=after)
        harness.crashes(loop)
        vars(harness.lists).pop("write", None)
    assert harness.everything(harness.run()) == quiet.everything(quiet.run())


def test_clicks_since_the_last_checkpoint_are_learned_again_and_counted_once(harness, values):
    harness.publish(values)
    first = harness.loop(checkpoint_interval_s=3_600.0)
    harness.crash(first.source, "poll", call=4)
    harness.crashes(first)
    assert first.progress.learned > 0
    assert first.checkpoints.numbers() == []
    second = harness.run()
    assert second.source.began_at == [{harness.partition(): 0}]
    assert second.progress.learned == second.learner.scores.scored == CLICKS - len(BAD)
    assert len(harness.dead()) == len(BAD)


def test_each_record_of_several_partitions_is_learned_or_a_dead_letter_once(harness, town_clicks):
    harness.publish(town_clicks[:200], partitions=3)
    for partition, at in ((0, 5), (1, 20), (2, 30), (2, 31)):
        harness.broker.topics[harness.partition(partition)][at] = Record("clicks", partition, at, 0, None, b"no json")
    total = sum(len(harness.broker.records(harness.partition(number))) for number in range(3))
    for step, call, after in (
        ("dead_letters.flush", 2, True), ("dead_letters.flush", 1, True), ("lists.write", 3, True),
        ("checkpoints.save", 2, False), ("source.commit", 1, True),
    ):  # fmt: skip
        loop = harness.loop(poll_records_max=20 + call)  # other turns each time
        harness.crash(*owner_of(loop, step), call=call, after=after)
        harness.crashes(loop)
        vars(harness.lists).pop("write", None)
    last = harness.run()
    assert last.progress.learned == last.learner.scores.scored == total - 4
    assert last.progress.next_offsets == last.source.ends()
    places = [(letter.partition, letter.offset) for letter in map(dead_letter, harness.dead())]
    assert sorted(places) == [(0, 5), (1, 20), (2, 30), (2, 31)]


def test_a_seeded_run_repeats_bit_for_bit_and_another_seed_does_not(new_harness, values):
    runs = []
    for seed in (7, 7, 8):
        harness = new_harness()
        harness.publish(values)
        runs.append(harness.everything(harness.run(seed=seed, layers=("local", "lsh"))))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_stopping_and_starting_after_every_turn_changes_nothing(new_harness, values):
    quiet, harness = new_harness(), new_harness()
    quiet.publish(values)
    harness.publish(values)
    for _ in range(6):
        loop = harness.begin(harness.loop())
        loop.turn()
        loop.finish()
    assert harness.everything(loop) == quiet.everything(quiet.run())
