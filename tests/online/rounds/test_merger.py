"""Merging: who counts how much, held to float64; what is merged twice, never; and one log, one base."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.rounds.base import Kind, Outcome, Verdict
from online.rounds.change import NARROW, Change, Tag
from online.rounds.combine import combine
from online.rounds.encoding import decode, encode_base, encode_change
from online.rounds.merger import ABSENT_BASES, PENDING_MAX
from online.rounds.weights import GROUPS, MEAN, VARIANCE, Weights
from tests.online.rounds.small import Worker, assert_same_base, base_by_item

ITEMS = ("x", "y", "z", "u")


def change_of(worker, partition, clicks, *, seed, items=ITEMS, base=0, start=0, sequence=1):
    random = torch.Generator().manual_seed(seed)
    items = tuple(items)
    rows = {f"{group}.vectors": torch.randn(len(items), 4, generator=random).half() for group in GROUPS}
    weights = Weights(
        {"network.up": torch.randn(2, 3, generator=random).half()},
        dict.fromkeys(GROUPS, items),
        rows,
        {MEAN: torch.randn(3, generator=random), VARIANCE: torch.rand(3, generator=random)},
        {"ranker.batches": clicks},
    )
    return Change(Tag(worker, "1", sequence), base, clicks, {partition: (start, start + clicks)}, weights)


def slowly_combined(changes, gain):
    """By item, in float64: sum of w^(1 - gain) · change, w among those that have it."""
    found = {}
    for name in ("network.up",):
        clicks = sum(change.clicks for change in changes)
        found[name] = sum((c.clicks / clicks) ** (1 - gain) * c.weights.dense[name].double() for c in changes)
    for group in GROUPS:
        for item in {item for change in changes for item in change.weights.items[group]}:
            its = [c for c in changes if item in c.weights.items[group]]
            clicks = sum(change.clicks for change in its)
            name = f"{group}.vectors"
            found[name, item] = sum(
                (c.clicks / clicks) ** (1 - gain) * c.weights.rows[name][c.weights.items[group].index(item)].double()
                for c in its
            )
    return found


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
@given(given_changes=st.lists(st.tuples(st.integers(1, 1000), st.sets(st.sampled_from(ITEMS))), min_size=1, max_size=5))
def test_combining_is_the_weighted_sum(gain, given_changes) -> None:
    changes = [
        change_of(f"w{n}", n, clicks, seed=n, items=items) for n, (clicks, items) in enumerate(given_changes)
    ]  # fmt: skip
    made, expected = combine(changes, gain), slowly_combined(changes, gain)
    for name, tensor in made.dense.items():
        torch.testing.assert_close(tensor.double(), expected.pop(name), rtol=1e-4, atol=1e-5)
    for group, items in made.items.items():
        for at, item in enumerate(items):
            name = f"{group}.vectors"
            torch.testing.assert_close(made.rows[name][at].double(), expected.pop((name, item)), rtol=1e-4, atol=1e-5)
    assert not expected


def test_running_statistics_are_those_of_all_observations() -> None:
    random = torch.Generator().manual_seed(0)
    seen = [3 * torch.randn(clicks, 3, generator=random, dtype=torch.float64) + clicks for clicks in (100, 300)]
    changes = []
    for n, features in enumerate(seen):
        change = change_of(f"w{n}", n, len(features), seed=n)
        change.weights.statistics.update({MEAN: features.mean(0).float(), VARIANCE: features.var(0, False).float()})
        changes.append(change)
    for gain in (0.0, 1.0):
        statistics = combine(changes, gain).statistics
        torch.testing.assert_close(statistics[MEAN], torch.cat(seen).mean(0).float())
        torch.testing.assert_close(statistics[VARIANCE], torch.cat(seen).var(0, False).float())
        assert combine(changes, gain).counters == {"ranker.batches": 400}


def test_one_change_alone_is_taken_as_it_is_whatever_the_gain() -> None:
    change = change_of("a", 0, 17, seed=3)
    for gain in (0.0, 0.3, 1.0):
        made = combine([change], gain)
        assert all(torch.equal(made.dense[n], t.float()) for n, t in change.weights.dense.items())
        assert all(torch.equal(made.rows[n], t.float()) for n, t in change.weights.rows.items())
        assert all(torch.equal(made.statistics[n], t) for n, t in change.weights.statistics.items())


def test_a_variance_never_becomes_negative() -> None:
    leader, workers = Worker("a"), [Worker(f"w{n}", seed=n) for n in range(3)]
    for n, worker in enumerate(workers):
        worker.train(n, 0, 10)
        worker.weights.held[VARIANCE].fill_(0.01)  # from 1: three such changes in turn would make it negative
        leader.merger.add(worker.replica.change())
        step = leader.merger.next_base(1)
        for each in (leader, *workers):
            each.take(step)
    for each in (leader, *workers):
        assert bool((each.base.statistics[VARIANCE] >= 0).all())
        assert bool((each.weights.held[VARIANCE] >= 0).all())


@pytest.mark.parametrize(
    "second",
    [
        {"start": 0},  # the same offsets
        {"start": 5},  # some of them
        {"start": 50, "sequence": 1, "worker": "a"},  # the same change, as its tag says
    ],
)
def test_nothing_is_merged_twice(second) -> None:
    leader = Worker("leader")
    worker = second.pop("worker", "b")
    leader.merger.add(change_of("a", 0, 10, seed=1))
    late = change_of(worker, 0, 10, seed=2, **second)
    together = leader.merger.add(late)
    step = leader.merger.next_base(1)
    assert step.taken == (Tag("a", "1", 1),)
    assert (step.dropped == (late.tag,)) == (together == Verdict.WAITING)
    leader.take(step)
    assert leader.merger.add(late) != Verdict.WAITING
    after = leader.merger.next_base(1)
    assert after is None or not after.taken


def test_a_change_that_follows_what_was_merged_is_merged() -> None:
    leader = Worker("leader")
    for at in range(3):
        leader.merger.add(change_of("a" if at < 2 else "b", 0, 10, seed=1, start=10 * at, sequence=at + 1))
    step = leader.merger.next_base(1)
    assert len(step.taken) == 3
    assert step.position.merged == {0: 30}


def test_changes_that_wait_are_bounded() -> None:
    leader = Worker("leader")
    for n in range(PENDING_MAX + 3):
        leader.merger.add(change_of(f"w{n}", n, 1, seed=1, items=()))
    assert len(leader.merger) == PENDING_MAX
    step = leader.merger.next_base(1)
    assert [tag.worker for tag in step.dropped] == ["w0", "w1", "w2"]


def test_a_malformed_change_is_dropped_and_its_worker_learns_of_it() -> None:
    leader, worker = Worker("a"), Worker("b")
    worker.train(0, 0, 10)
    change = worker.replica.change()
    bad = replace(change, weights=replace(change.weights, dense={"other": torch.ones(2)}))
    assert leader.merger.add(bad) == Verdict.DROPPED
    worker.take(leader.merger.next_base(1))
    assert worker.replica.counts["dropped"] == 1


def test_the_leaders_rounding_is_made_up_for() -> None:
    leader = Worker("leader")
    exact = torch.zeros(2, 3, dtype=torch.float64)
    for at in range(60):
        changes = [
            change_of(f"w{n}", n, 1 + n, seed=100 * at + n, start=at * (1 + n), sequence=at + 1) for n in range(3)
        ]
        exact += combine(changes).dense["network.up"].double()
        for change in changes:
            leader.merger.add(change)
        leader.take(leader.merger.next_base(1))
    error = leader.base.dense["network.up"].double() - torch.arange(6.0).reshape(2, 3) - exact
    assert float(error.abs().max()) < 2 * torch.finfo(NARROW).eps  # of one step, not of sixty


def test_items_that_the_leader_lacks_for_long_are_forgotten_by_all() -> None:
    leader, other = Worker("a"), Worker("b")
    other.see("kept")
    leader.merger.add(change_of("c", 9, 1, seed=1, items=("gone", "kept")))
    for at in range(ABSENT_BASES + 2):
        leader.merger.add(change_of("d", 8, 1, seed=1, items=(), start=at, sequence=at + 1))
        step = leader.merger.next_base(1, held={"kept"})
        for each in (leader, other):
            each.take(step)
    assert leader.base.known == other.base.known == {"kept"}
    assert "gone" not in other.base.row_of
    assert_same_base(leader.base, other.base)


def test_of_two_leaders_records_the_first_in_the_log_counts() -> None:
    one, two, reader = Worker("one"), Worker("two", seed=1), Worker("reader", seed=2)
    first, second = change_of("a", 0, 10, seed=1), change_of("b", 1, 10, seed=2)
    for leader in (one, two):
        leader.merger.add(first)
        leader.merger.add(second)
    steps = [one.merger.next_base(1), two.merger.next_base(2)]
    for worker in (one, two, reader):
        assert [worker.take(step) for step in steps] == [Outcome.APPLIED, Outcome.OLD]
        assert worker.merger.next_base(3) is None or worker is reader
    for worker in (one, two, reader):
        worker.merger.add(change_of("c", 2, 10, seed=3))
    newer, fenced = two.merger.next_base(2), None
    for worker in (one, two, reader):
        assert worker.take(newer) == Outcome.APPLIED
        worker.merger.add(change_of("d", 3, 10, seed=3))
    fenced = one.merger.next_base(1)
    assert [worker.take(fenced) for worker in (one, two, reader)] == [Outcome.FENCED] * 3
    assert_same_base(one.base, reader.base)
    assert_same_base(two.base, reader.base)


def test_who_missed_the_first_of_two_notices_and_a_snapshot_mends_it() -> None:
    one, two, late = Worker("one"), Worker("two", seed=1), Worker("late", seed=2)
    for leader in (one, two):
        leader.merger.add(change_of("a", 0, 10, seed=1 if leader is one else 2))
    winner, loser = one.merger.next_base(1), two.merger.next_base(2)
    one.take(winner)
    assert late.take(loser) == Outcome.APPLIED  # it cannot know
    one.merger.add(change_of("b", 1, 10, seed=3))
    following = one.merger.next_base(1)
    one.take(following)
    assert late.take(following) == Outcome.GAP
    assert late.take(one.merger.snapshot()) == Outcome.APPLIED
    assert_same_base(late.base, one.base)


# One log, whatever happens

WORKERS = 3
event = st.one_of(
    st.tuples(st.just("train"), st.integers(0, WORKERS - 1), st.integers(0, 3), st.integers(1, 5)),
    st.tuples(st.just("publish"), st.integers(0, WORKERS - 1)),
    st.tuples(st.just("read"), st.integers(0, WORKERS - 1), st.integers(1, 4)),
    st.tuples(st.just("lead"), st.integers(0, WORKERS - 1), st.integers(1, 4)),
    st.tuples(st.just("repeat"), st.integers(0, 20)),
    st.tuples(st.just("snapshot"), st.integers(0, WORKERS - 1)),
    st.tuples(st.just("roll back"), st.integers(0, WORKERS - 1), st.integers(1, 4)),
    st.tuples(st.just("lose"), st.integers(0, WORKERS - 1)),
    st.tuples(st.just("save"), st.integers(0, WORKERS - 1)),
    st.tuples(st.just("restore"), st.integers(0, WORKERS - 1), st.integers(0, WORKERS - 1)),
)


class World:
    """Workers that train whatever offsets they like, and one log of bytes that each reads at its own pace."""

    def __init__(self):
        self.log, self.starts = [], 0
        self.workers = [Worker(f"w{n}", "0", seed=n) for n in range(WORKERS)]
        self.at = [0] * WORKERS
        self.saved = [None] * WORKERS
        self.trained_to = [[0] * 4 for _ in range(WORKERS)]

    def read(self, n, most):
        worker = self.workers[n]
        for data in self.log[self.at[n] : self.at[n] + most]:
            record = decode(data, worker.base.shape)
            if isinstance(record, Change):
                worker.merger.add(record)
            else:
                worker.take(record)
        self.at[n] = min(len(self.log), self.at[n] + most)

    def do(self, what, *given):
        n = given[0] % WORKERS
        worker = self.workers[n]
        if what == "train":
            partition, clicks = given[1:]
            start = max(self.trained_to[n][partition], worker.base.position.merged.get(partition, 0))
            worker.train(partition, start, start + clicks, [f"item{clicks}", f"item{partition + clicks}"])
            self.trained_to[n][partition] = start + clicks
        elif what == "publish" and (change := worker.replica.change()):
            self.log.append(encode_change(change))
        elif what == "read":
            self.read(n, given[1])
        elif what == "lead" and (
            record := worker.merger.next_base(given[1], set(worker.vocabulary.to_state()["items"]))
        ):
            self.log.append(encode_base(record))
        elif what == "repeat" and given[0] < len(self.log):
            self.log.append(self.log[given[0]])
        elif what == "snapshot":
            self.log.append(encode_base(worker.merger.snapshot()))
        elif what == "roll back":
            weights = worker.replica.whole(worker.weights.tensors())
            self.log.append(encode_base(worker.merger.replacement(weights, given[1], discard=True)))
        elif what == "lose":
            self.start(n)
            self.at[n], self.trained_to[n] = 0, [0] * 4
        elif what == "save":
            vocabulary, held = worker.vocabulary.to_state(), worker.weights.held
            held = {name: tensor.clone() for name, tensor in held.items()}
            state = worker.replica.to_state(), worker.merger.to_state()
            self.saved[n] = vocabulary, held, state, self.at[n], [*self.trained_to[n]]
        elif what == "restore" and self.saved[given[1]]:
            vocabulary, held, (replica, merger), at, trained_to = self.saved[given[1]]
            new = self.start(n)
            new.vocabulary = type(new.vocabulary).from_state(vocabulary, capacity_max=100)
            new.weights.held = {name: tensor.clone() for name, tensor in held.items()}
            new.replica.load_state(*replica)
            new.merger.load_state(*merger)
            self.at[n], self.trained_to[n] = at, [*trained_to]

    def start(self, n):
        self.starts += 1
        self.workers[n] = Worker(f"w{n}", str(self.starts), seed=n)
        return self.workers[n]


def offsets_merged(world, reader):
    """Takes the whole log -> (partition, offset) of all that was merged. Fails if one was merged twice."""
    merged, changes = set(), {}
    for data in world.log:
        record = decode(data, reader.base.shape)
        if isinstance(record, Change):
            changes.setdefault(record.tag, record)
        elif reader.take(record) == Outcome.APPLIED and record.kind == Kind.STEP:
            for tag in record.taken:
                for partition, bounds in changes[tag].ranges.items():
                    offsets = {(partition, offset) for offset in range(*bounds)}
                    assert not offsets & merged
                    merged |= offsets
    return merged


@given(st.lists(event, max_size=60))
def test_whatever_happens_offsets_are_merged_once_and_bases_are_equal(events) -> None:
    world, reader = World(), Worker("reader")
    for each in events:
        world.do(*each)
    for n in range(WORKERS):
        world.read(n, len(world.log))
    merged = offsets_merged(world, reader)
    assert all(offset < reader.base.position.merged[partition] for partition, offset in merged)
    for worker in world.workers:
        assert_same_base(worker.base, reader.base)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in worker.weights.held.values())
    # Once all changes are merged, the live weights are the base.
    for epoch in (9, 10, 11):
        for worker in world.workers:
            if change := worker.replica.change() or worker.replica.in_flight:
                world.log.append(encode_change(change))
        world.read(0, len(world.log))
        world.do("lead", 0, epoch)
        for n in range(WORKERS):
            world.read(n, len(world.log))
    for worker in world.workers:
        assert worker.replica.in_flight is None
        base = base_by_item(worker.base)
        torch.testing.assert_close(worker.weights.held["network.up"], base["network.up"], rtol=0, atol=2e-3)
