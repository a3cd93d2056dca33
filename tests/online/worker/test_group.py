"""A group of workers: each counts every click, each click is learned from by one of them, and all share one model."""

from collections import defaultdict
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from online.learner.learner import Learner
from online.rounds.base import Base, Outcome
from online.rounds.change import Change
from online.rounds.encoding import decode
from online.worker.loop import Loop
from online.worker.weights_topic import WeightsTopic
from stream.events import Click
from stream.source import Partition
from tests.online.conftest import NOW, AbortedError, ListProducer
from tests.online.worker.group_harness import CLICKS, DEAD, WEIGHTS, GroupHarness, ListTail


@pytest.fixture
def group(tmp_path) -> GroupHarness:
    return GroupHarness(tmp_path, abuse_filter=False)


def some_clicks(count: int, start: int = 0, users: int = 24, items: int = 40) -> list[Click]:
    random = np.random.default_rng([start, count])
    found = random.integers(0, items, count) ** 2 // items
    who = random.integers(0, users, count)
    return [
        Click(user_id=f"u{who[at]}", item_id=f"i{found[at]}", timestamp=NOW - 5_000.0 + start + at)
        for at in range(count)
    ]


def bases(group: GroupHarness) -> list[dict[str, np.ndarray]]:
    found = []
    for loop in group.loops.values():
        base = loop.group.replica.base
        whole = base.whole()
        arrays = {name: tensor.numpy() for name, tensor in (whole.dense | whole.statistics).items()}
        order = np.argsort(next(iter(whole.items.values()), ()))
        arrays |= {name: tensor.numpy()[order] for name, tensor in whole.rows.items()}
        found.append(arrays)
    return found


def test_each_counts_all_clicks_and_learns_from_its_own(group: GroupHarness) -> None:
    for name in "abc":
        group.begin(name)
    group.publish(some_clicks(400))
    group.drain()
    loops = list(group.loops.values())
    assert [loop.progress.learned for loop in loops] == [400] * 3
    scored = [loop.learner.scores.scored for loop in loops]
    assert sum(scored) == 400
    assert min(scored) > 0
    assert sorted(len(loop.group.owned) for loop in loops) == [1, 1, 2]
    assert [loop.group.leads for loop in loops] == [True, False, False]


def test_all_workers_agree_on_the_base(group: GroupHarness) -> None:
    for name in "abc":
        group.begin(name)
    for part in range(4):
        group.publish(some_clicks(100, start=100 * part))
        group.drain(5)
    group.drain()
    first, *others = bases(group)
    assert group.loops["a"].group.replica.base.position.number > 3
    for other in others:
        assert other.keys() == first.keys()
        for name in first:
            np.testing.assert_array_equal(other[name], first[name], err_msg=name)
    counts = group.loops["a"].group.merger.counts
    assert counts["merged"] > 3
    assert not counts["dropped"]
    merged = group.loops["a"].group.replica.base.position.merged
    ends = {partition: len(group.broker.records(Partition(CLICKS, partition))) for partition in range(4)}
    assert merged == ends


def test_lists_are_written_by_owners_only(group: GroupHarness) -> None:
    for name in "ab":
        group.begin(name)
    group.publish(some_clicks(200))
    group.drain()
    assert len(group.lists.held) == 24
    offsets = {user: top.offset for user, top in group.lists.held.items()}
    for user, offset in offsets.items():
        assert int(offset.split(":")[0]) == sum(user.encode()) % 4
    assert group.lists.fenced == 0
    assert group.lists.popular_list is not None


def test_dead_letters_are_written_once(group: GroupHarness) -> None:
    for name in "ab":
        group.begin(name)
    group.publish([b"no click", *some_clicks(40), b"neither", b"nor this", b"{}"])
    group.drain()
    group.checkpoint()
    assert len(group.broker.records(Partition(DEAD, 0))) == 4


def test_a_takeover_writes_the_lists_and_letters_that_the_former_owner_owed(group: GroupHarness) -> None:
    for name in "ab":
        group.begin(name)
    group.publish(some_clicks(100))
    group.drain()
    group.checkpoint()
    # b reads no more, and a counts what comes.
    silent = group.loops.pop("b")
    group.publish([*some_clicks(60, start=200), b"bad", b"bad", b"bad", b"bad"])
    group.drain()
    before = {user: top.offset for user, top in group.lists.held.items()}
    group.loops["b"] = silent
    group.kill("b")
    group.drain()
    group.checkpoint()
    histories = group.loops["a"].learner.histories
    for user in group.lists.held:
        partition, offset = histories.origins[histories.find([user])[0]]
        assert group.lists.held[user].offset == f"{partition}:{offset}"
    assert any(group.lists.held[user].offset != before[user] for user in before)
    assert len(group.broker.records(Partition(DEAD, 0))) == 4
    assert group.loops["a"].progress.learned == 160
    assert group.broker.committed == {
        Partition(CLICKS, number): len(group.broker.records(Partition(CLICKS, number))) for number in range(4)
    }


def test_at_the_beginning_every_worker_learns_from_all_and_the_leaders_weights_count(tmp_path) -> None:
    group = GroupHarness(tmp_path, abuse_filter=False, group_warm_up_clicks=150)
    for name in "abc":
        group.begin(name)
    group.publish(some_clicks(60))
    group.drain()
    assert [loop.learner.scores.scored for loop in group.loops.values()] == [60] * 3
    position = group.loops["a"].group.replica.base.position
    assert sum(position.merged.values()) == 60
    assert len(position.sequences) == 1
    for top in group.lists.held.values():
        assert top.items
    for part in range(1, 5):
        group.publish(some_clicks(60, start=60 * part))
        group.drain(6)
    assert not any(loop.group.warming_up for loop in group.loops.values())
    scored = [loop.learner.scores.scored for loop in group.loops.values()]
    assert all(180 <= count < 300 for count in scored)
    merged = group.loops["a"].group.replica.base.position.merged
    assert sum(merged.values()) == 300
    assert not group.loops["a"].group.merger.counts["dropped"]


# --- kills -------------------------------------------------------------------------------------------------------


class Killer:
    """Kills a worker at its n-th step from now on."""

    def __init__(self) -> None:
        self.left = -1

    def __call__(self, step: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise AbortedError(step)


def accepted_ranges(group: GroupHarness) -> dict[int, list[tuple[int, int]]]:
    """Returns the offsets that bases have merged, by partition, as anyone reads them from the topic."""
    shape = next(iter(group.loops.values())).group.replica.base.shape
    base = Base(Learner(next(iter(group.loops.values())).settings).weights.tensors(), 0)
    topic = WeightsTopic(partial(ListTail, group.broker, WEIGHTS), ListProducer(group.broker), WEIGHTS)
    topic.open(None)
    changes, merged = {}, defaultdict(list)
    for message in topic.read():
        record = None if message.weights is None else decode(message.weights, shape)
        if isinstance(record, Change):
            changes[record.tag] = record
        elif record is not None and base.apply(record) == Outcome.APPLIED:
            for tag in record.taken:
                for partition, bounds in changes[tag].ranges.items():
                    merged[partition].append(bounds)
    return merged


def killed_at_random(group: GroupHarness, seed: int, rounds: int) -> tuple[int, int]:
    """Clicks and a bad message arrive each round, and some worker is killed at some step; some stay away for a while.

    Returns how many clicks were sent, and how many workers were killed.
    """
    random = np.random.default_rng(seed)
    killers = {name: Killer() for name in "abc"}
    for name, killer in killers.items():
        group.begin(name, killer)
    kills = 0
    for at in range(rounds):
        group.publish([*some_clicks(40, start=40 * at), b"no click"])
        killers[str(random.choice(list(group.loops)))].left = int(random.integers(1, 60))
        for _ in range(6):
            kills += one_turn(group)
        for name in killers.keys() - group.loops.keys():
            if random.random() < 0.7 or not group.loops:
                killers[name].left = -1
                group.begin(name, killers[name])
    for name in killers.keys() - group.loops.keys():
        group.begin(name, killers[name])
    for killer in killers.values():
        killer.left = -1
    return 40 * rounds, kills


def one_turn(group: GroupHarness) -> int:
    """Each worker does a turn. Returns how many were killed in it."""
    kills = 0
    for name in list(group.loops):
        try:
            group.loops[name].turn()
        except AbortedError:
            kills += 1
            group.kill(name)
    group.seconds += 0.4
    return kills


@pytest.mark.parametrize("seed", range(6))
def test_kills_at_any_step_lose_nothing_and_do_nothing_twice(tmp_path, seed: int) -> None:
    warm_up = 100 if seed % 2 else 0
    group = GroupHarness(tmp_path, abuse_filter=False, checkpoint_interval_s=2.0, group_warm_up_clicks=warm_up)
    sent, kills = killed_at_random(group, seed, rounds=12)
    group.drain(20)
    group.checkpoint()
    assert kills > 5
    clean = GroupHarness(tmp_path / "clean", abuse_filter=False)
    clean.folder.mkdir()
    clean.begin("a")
    for at in range(12):
        clean.publish([*some_clicks(40, start=40 * at), b"no click"])
    clean.drain()
    expected = clicks_held(clean.loops["a"])
    for name, loop in group.loops.items():
        assert loop.progress.learned == sent, name
        assert clicks_held(loop) == expected, name
    for partition, ranges in accepted_ranges(group).items():
        ranges.sort()
        assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges)), (partition, ranges)
    letters = [(one.headers) for one in group.broker.records(Partition(DEAD, 0))]
    assert len(letters) == 12
    ends = {p: len(group.broker.records(p)) for p in group.coordinator.partitions}
    assert group.broker.committed == ends
    first, *others = bases(group)
    for other in others:
        for name in first:
            np.testing.assert_array_equal(other[name], first[name], err_msg=name)


def clicks_held(loop: Loop) -> dict[str, Any]:
    """Returns each user's clicks as items, and the clicks on each item: facts by names, in any order of rows."""
    learner = loop.learner
    users = sorted(learner.histories.users())
    held = {}
    for user in users:
        newest = learner.histories.newest_first(learner.histories.find([user]), 12)
        rows = newest.rows[0][: newest.lengths[0]].tolist()
        held[user] = [learner.vocabulary.item_of(row) for row in rows]
    names = [learner.vocabulary.item_of(row) for row in range(learner.vocabulary.rows)]
    counts = {str(name): float(learner.store.items.clicks[row]) for row, name in enumerate(names) if name}
    return {"histories": held, "clicks": counts}


def test_a_worker_asks_for_messages_before_it_knows_the_partitions(group: GroupHarness, monkeypatch) -> None:
    """kafka-python refuses to poll for at most 0 messages."""
    loop, asked = group.begin("a"), []
    poll = loop.source.poll
    monkeypatch.setattr(loop.source, "positions", dict)
    monkeypatch.setattr(loop.source, "poll", lambda **options: asked.append(options["max_records"]) or poll(**options))
    loop.turn()
    assert len(asked) == 1
    assert asked[0] >= 1
