"""Partitions change their owner: what it has not shared is trained by the next one, and its late effects do no harm."""

from itertools import pairwise

import pytest

from stream.dead_letters import dead_letter
from stream.source import Partition
from tests.online.worker.group_harness import DEAD, GroupHarness
from tests.online.worker.test_group import accepted_ranges, some_clicks
from tests.online.worker.test_group_lifecycle import assert_same_base


@pytest.fixture
def group(tmp_path) -> GroupHarness:
    found = GroupHarness(tmp_path, abuse_filter=False, history_max=64, moments_held=2_000)
    for name in "ab":
        found.begin(name)
    found.publish(some_clicks(100))
    found.drain()
    found.checkpoint()
    return found


def assert_no_offset_twice(group: GroupHarness) -> None:
    for partition, ranges in accepted_ranges(group).items():
        assert all(stop <= start for (_, stop), (start, _) in pairwise(sorted(ranges))), (partition, ranges)


def letters(group: GroupHarness) -> list[tuple[int, int]]:
    found = map(dead_letter, group.broker.records(Partition(DEAD, 0)))
    return sorted((letter.partition, letter.offset) for letter in found)


def test_the_next_owner_trains_what_was_not_shared(group: GroupHarness) -> None:
    silent = group.loops.pop("b")
    owned = {partition.partition for partition in silent.group.owned}
    group.publish(some_clicks(400, start=200))
    group.drain()
    ends = {number: len(group.broker.records(Partition("clicks", number))) for number in range(4)}
    merged = dict(group.loops["a"].group.replica.base.position.merged)
    assert all(merged.get(number, 0) < ends[number] for number in owned)
    expected = sum(ends[number] - merged.get(number, 0) for number in owned)
    learned = group.loops["a"].progress.learned
    group.loops["b"] = silent
    group.kill("b")
    group.drain(20)
    counts = group.loops["a"].group.describe()["takeover"]
    assert counts["trained_again"] + counts.get("skipped", 0) == expected
    assert counts["trained_again"] > 0.9 * expected
    assert group.loops["a"].progress.learned == learned
    assert group.loops["a"].group.replica.base.position.merged == ends
    assert_no_offset_twice(group)


def test_at_most_a_micro_batch_is_trained_again_in_a_turn(group: GroupHarness) -> None:
    silent = group.loops.pop("b")
    group.publish(some_clicks(400, start=200))
    group.drain()
    group.loops["b"] = silent
    group.kill("b")
    counts = group.loops["a"].group.takeover.counts
    most = group.loops["a"].settings.micro_batch_max
    while True:
        before = counts["trained_again"]
        group.turn()
        assert counts["trained_again"] - before <= most
        if not group.loops["a"].group.takeover.training:
            break


def test_a_former_owner_that_wakes_up_does_nothing_twice(group: GroupHarness) -> None:
    zombie = group.loops.pop("b")
    group.publish([*some_clicks(60, start=200), *[b"bad"] * 4])
    # It has polled and goes on in the middle of a turn, after its partitions have moved.
    records = zombie._poll()
    assert records
    group.coordinator.leave("b")
    group.seconds += 30.0
    group.drain()
    group.checkpoint()
    committed, lists = dict(group.broker.committed), {u: top.offset for u, top in group.lists.held.items()}
    zombie._poll = lambda: records  # type: ignore[method-assign]
    zombie.turn()
    zombie.checkpoint()
    assert len(letters(group)) == len(set(letters(group))) == 4
    assert group.broker.committed == committed
    assert {u: top.offset for u, top in group.lists.held.items()} == lists
    del zombie._poll
    group.coordinator.join("b")
    group.loops["b"] = zombie
    group.publish(some_clicks(60, start=400))
    group.drain()
    group.checkpoint()
    assert_no_offset_twice(group)
    assert_same_base(group)
    assert len(letters(group)) == 4


def test_two_that_believe_to_lead_make_one_sequence_of_bases(group: GroupHarness) -> None:
    source = group.loops["b"].source
    source.leadership = lambda: source.coordinator.generation  # type: ignore[method-assign]
    for at in range(6):
        group.publish(some_clicks(60, start=200 + 60 * at))
        group.drain(3)
    group.drain()
    assert group.loops["a"].group.leads
    assert group.loops["b"].group.leads
    assert_no_offset_twice(group)
    assert_same_base(group)
    assert len(group.loops["a"].group.replica.base.position.merged) == 4
