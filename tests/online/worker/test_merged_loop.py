"""The loop's promise over several partitions that are merged by event time."""

import pytest

from online.worker.event_time import event_time
from stream import merge
from stream.dead_letters import dead_letter
from stream.events import Click, Forget, encode, encode_forget
from stream.merge import MergedSource
from stream.source import Record
from stream.user_ids import digest_of

PARTITIONS = 3
CLICKS = 160
BAD = {10: b"no json", 41: b"", 90: None}
STEPS = [
    *[("source.poll", call) for call in (1, 3)],
    *[("learner.learn", call) for call in (1, 4)],
    *[("dead_letters.put", call) for call in (1, 2)],
    *[("checkpoints.save", call) for call in (1, 3)],
    *[("source.commit", call) for call in (1, 3)],
]


def merged(loop):
    """The same loop, with its source merged."""
    loop.source = loop.checkpointer.source = MergedSource(
        loop.source, event_time(loop.settings, loop.clock), wait_s=1.0
    )
    return loop


@pytest.fixture
def publish(town_clicks):
    """Publishes clicks partition by partition, unreadable messages among them -> how many are no clicks."""

    def published(harness):
        harness.publish(sorted(town_clicks[:CLICKS], key=lambda click: sum(click.user_id.encode()) % PARTITIONS),
                      partitions=PARTITIONS)  # fmt: skip
        for place, value in BAD.items():
            held = harness.broker.topics[harness.partition(place % PARTITIONS)]
            at = place // PARTITIONS
            held[at] = Record("clicks", place % PARTITIONS, at, held[at].timestamp_ms, None, value)

    return published


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("killed_at", STEPS, ids=str)
def test_a_crash_at_any_step_changes_nothing_that_is_learned_or_written(new_harness, publish, killed_at, after):
    quiet, harness = new_harness(), new_harness()
    for one in (quiet, harness):
        publish(one)
    undisturbed = quiet.everything(quiet.drain(quiet.begin(merged(quiet.loop()))))
    (part, name), call = killed_at[0].split("."), killed_at[1]
    loop = merged(harness.loop())
    harness.crash(getattr(loop, part), name, call=call, after=after)
    harness.crashes(loop)
    second = harness.drain(harness.begin(merged(harness.loop())))
    assert second.progress.learned == second.learner.scores.scored == CLICKS - len(BAD)
    assert harness.everything(second) == undisturbed
    assert len(harness.dead()) == len(BAD)


@pytest.mark.parametrize(("fetch", "buffer"), [(1, 1), (3, 5), (50, 20)])
def test_small_buffers_and_crashes_lose_nothing_and_learn_nothing_twice(harness, publish, monkeypatch, fetch, buffer):
    monkeypatch.setattr(merge, "FETCH_RECORDS_MAX", fetch)
    monkeypatch.setattr(merge, "BUFFER_RECORDS_MAX", buffer)
    publish(harness)
    for part, name, call, after in (
        ("source", "poll", 3, True), ("dead_letters", "flush", 1, True), ("checkpoints", "save", 2, False),
        ("source", "commit", 1, True), ("learner", "learn", 3, True),
    ):  # fmt: skip
        loop = merged(harness.loop(poll_records_max=10 + call))
        harness.crash(getattr(loop, part), name, call=call, after=after)
        harness.crashes(loop)
    last = harness.drain(harness.begin(merged(harness.loop())))
    assert last.progress.learned == last.learner.scores.scored == CLICKS - len(BAD)
    assert last.progress.next_offsets == last.source.ends() == harness.broker.committed
    assert sorted((one.partition, one.offset) for one in map(dead_letter, harness.dead())) == sorted(
        (place % PARTITIONS, place // PARTITIONS) for place in BAD
    )


def test_buffered_records_are_not_saved_or_committed_and_count_as_lag(harness, publish):
    publish(harness)
    loop = harness.begin(merged(harness.loop(poll_records_max=20)))
    loop.turn()
    given = sum(loop.progress.next_offsets.values())
    assert given == 20
    assert harness.broker.committed == loop.progress.next_offsets
    assert loop.overload.measure(loop.source).total == CLICKS - given


def test_a_takeover_by_another_worker_begins_at_what_was_learned(harness, publish):
    publish(harness)
    loop = harness.loop(poll_records_max=20, checkpoint_interval_s=3_600.0)
    inner = loop.source
    harness.begin(merged(loop)).turn()
    at = dict(loop.progress.next_offsets)
    inner.revoking = [harness.partition(number) for number in range(PARTITIONS)]
    loop.turn()
    assert inner.commits == [at]
    inner.assign(sorted(harness.broker.topics)[:PARTITIONS])
    harness.drain(loop)
    assert loop.progress.learned == loop.learner.scores.scored == CLICKS - len(BAD)


def test_what_was_written_partition_by_partition_is_learned_in_the_order_of_time(harness, publish, monkeypatch):
    publish(harness)
    loop = harness.begin(merged(harness.loop()))
    seen: list[Click] = []
    learn = loop.learner.learn
    monkeypatch.setattr(loop.learner, "learn", lambda clicks, **how: (seen.extend(clicks), learn(clicks, **how))[1])
    harness.drain(loop)
    assert [click.timestamp for click in seen] == sorted(click.timestamp for click in seen)


def read(small, value, timestamp_ms, *, now=2_000_000.0):
    return event_time(small(), lambda: now)(Record("clicks", 0, 0, timestamp_ms, None, value))


def test_an_event_counts_as_made_when_it_arrived_at_the_latest(small):
    click = Click(user_id="u", item_id="i", timestamp=1_000_000.0)
    assert read(small, encode(click), 1_000_500_000) == 1_000_000.0
    assert read(small, encode(click), 999_000_000) == 999_000.001
    forget = Forget(user_sha256=digest_of("u"), timestamp=9e12)
    assert read(small, encode_forget(forget), 1_000_500_000) == 1_000_500.001


def test_what_cannot_be_read_has_no_time(small, monkeypatch):
    for value in (None, b"", b"no json", b'{"user_id": "u", "timestamp": 5}', b"\xff" * 70_000):
        assert read(small, value, 0) is None

    def bug(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("online.worker.event_time.parse", bug)
    assert read(small, encode(Click(user_id="u", item_id="i", timestamp=1.0)), 0) is None
