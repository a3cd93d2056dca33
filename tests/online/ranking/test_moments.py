"""Moments against plain lists: how alike they are, the ring that holds them, and the memories that find them again."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from model.items import ItemTable, unit_vectors
from model.lsh import hash_buckets
from online.ranking.features import PARTS
from online.ranking.moments import TABLE_ROWS, HashedVectors, MomentLog, Moments, OwnMemory, WorldMemory, cosines
from online.settings import Settings

CPU = torch.device("cpu")
WIDTH = 32
START = 1_730_600_000.0
LIMITS = {
    "micro_batch_max": 16,
    "recall_users_held": 32,
    "recall_buckets": 4,
    "recall_ring": 4,
    "world_buckets": 16,
    "world_ring": 8,
}


def moments(last, before=None, times=None, gaps=None):
    """From lists of numbers."""
    N = len(last)
    return Moments(
        torch.tensor(last, dtype=torch.int64),
        torch.tensor(before if before is not None else [0] * N, dtype=torch.int64),
        torch.tensor(times if times is not None else [START] * N, dtype=torch.float64),
        torch.tensor(gaps if gaps is not None else [0.0] * N, dtype=torch.float32),
    )


def numbers(*values):
    return torch.tensor(values, dtype=torch.int64)


# --- cosines -----------------------------------------------------------------------------------------------------

moment = st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0, 2e9, allow_nan=False), st.floats(0, 20, width=32))


def dot(one, other):
    return sum(x * y for x, y in zip(one.tolist(), other.tolist(), strict=True))


@given(
    asked=st.lists(moment, min_size=1, max_size=4),
    found=st.lists(st.tuples(st.integers(0, 3), moment), max_size=8),
    deep=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_cosines_are_those_of_plain_loops(asked, found, deep, seed):
    random = torch.Generator().manual_seed(seed)
    table = ItemTable(6, WIDTH, seed=seed)
    owners = [owner % len(asked) for owner, _ in found]
    now = torch.randn(len(asked), 5, generator=random)
    then = torch.nn.functional.normalize(torch.randn(len(found), 5, generator=random), dim=-1)
    then[::3] = 0  # of moments before which nothing stood
    query = moments(*([one[part] for one in asked] for part in range(4)))
    remembered = moments(*([one[part] for _, one in found] for part in range(4)))
    alike = cosines(table, query, numbers(*owners), remembered, (now, then.half()) if deep else None)

    expected = []
    for at, (owner, (_, (last, before, time, gap))) in enumerate(zip(owners, found, strict=True)):
        mine = asked[owner]
        expected.append(
            [
                dot(table.vectors[mine[0]], table.vectors[last]),
                dot(table.vectors[mine[1]], table.vectors[before]),
                math.cos((mine[2] - time) / 86_400 * 2 * math.pi),
                math.cos((mine[2] - time) / 604_800 * 2 * math.pi),
                max(-1.0, 1 - abs(mine[3] - gap) / 4),
                dot(now[owner], then[at]) / now[owner].norm().item() if deep else 1.0,
            ]
        )
    assert alike.shape == (len(found), len(PARTS))
    np.testing.assert_allclose(alike.detach().numpy(), np.array(expected).reshape(-1, len(PARTS)), atol=2e-3)


def test_gradients_reach_the_vectors_of_both_and_the_state_of_the_present():
    table = ItemTable(6, WIDTH)
    now = torch.randn(1, 5, requires_grad=True)
    then = torch.randn(1, 5).half()
    cosines(table, moments([1], [2]), numbers(0), moments([3], [0]), (now, then)).sum().backward()
    gradient = table.vectors.grad.to_dense()
    assert gradient.any(1).nonzero()[:, 0].tolist() == [1, 3]  # 2 was compared with nothing
    assert now.grad.abs().sum() > 0


# --- the log -----------------------------------------------------------------------------------------------------


class LogAgainstList(RuleBasedStateMachine):
    """A ring of moments and a list of all there ever were."""

    @initialize(held=st.integers(4, 9))
    def begin(self, held):
        self.log = MomentLog(held, 2, CPU)
        self.model = []  # (item, last, before, time, gap, state), of number 1 on
        self.first = 1  # numbers before were lost for good

    @rule(count=st.integers(0, 4), deep=st.booleans(), data=st.data())
    def append(self, count, deep, data):
        new = [tuple(data.draw(st.integers(0, 6)) for _ in range(3)) for _ in range(count)]
        times = [START + len(self.model) + at for at in range(count)]
        gaps = [float(len(self.model) + at) for at in range(count)]
        states = torch.tensor([[3.0, 4.0 * (at % 2)] for at in range(count)]).view(-1, 2) if deep else None
        assert self.log.next_numbers(count).tolist() == [len(self.model) + 1 + at for at in range(count)]
        stood = moments([last for _, last, _ in new], [before for _, _, before in new], times, gaps)
        self.log.append(numbers(*(item for item, _, _ in new)), stood, states)
        unit = [((0.6, 0.8) if at % 2 else (1.0, 0.0)) if deep else (0.0, 0.0) for at in range(count)]
        self.model += [(*one, time, gap, state) for one, time, gap, state in zip(new, times, gaps, unit, strict=True)]
        self.first = max(self.first, len(self.model) - self.log.held + 1)

    @rule(rows=st.sets(st.integers(1, 6), min_size=1, max_size=2))
    def forget(self, rows):
        self.log.forget_rows(numbers(*rows))
        self.model = [(*(0 if row in rows else row for row in one[:3]), *one[3:]) for one in self.model]

    @rule(held=st.integers(4, 9))
    def restart(self, held):
        """Perhaps with more or less room: what is too much is lost, and is not there again with more."""
        arrays = {name: array.copy() for name, array in self.log.to_state().items()}
        self.log = MomentLog(held, 2, CPU)
        self.log.load_state(arrays)
        self.first = max(self.first, len(self.model) - held + 1)

    @invariant()
    def is_the_same(self):
        if not hasattr(self, "model"):
            return
        everything = range(-1, len(self.model) + 1)
        held = self.log.holds(numbers(*everything)).tolist()
        for number, there in zip(everything, held, strict=True):
            assert there == (number > 0 and number > len(self.model) - self.log.held)
        there = list(range(max(1, len(self.model) - self.log.held + 1), len(self.model) + 1))
        items, stood = self.log.read(numbers(*there))
        rows = zip(items.tolist(), *(part.tolist() for part in stood), strict=True)
        for number, row in zip(there, rows, strict=True):
            if number >= self.first:
                assert row == self.model[number - 1][:5]
                state = self.log.states[number % self.log.held].tolist()
                assert state == pytest.approx(self.model[number - 1][5], abs=1e-3)
            else:
                assert row == (0, 0, 0, 0.0, 0.0)  # points at nothing


LogAgainstList.TestCase.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
TestLogAgainstList = LogAgainstList.TestCase


def test_states_of_another_width_are_let_go_and_everything_else_stays():
    log, wider = MomentLog(4, 2, CPU), MomentLog(4, 3, CPU)
    log.append(numbers(5, 6), moments([1, 2]), torch.ones(2, 2))
    wider.load_state(log.to_state())
    assert wider.read(numbers(1, 2))[0].tolist() == [5, 6]
    assert not wider.states.any()


# --- vectors to hash by ------------------------------------------------------------------------------------------


def test_hashed_vectors_are_what_items_start_with_whatever_was_asked_first():
    vectors = HashedVectors(WIDTH, 7, CPU)
    few = vectors(numbers(3, 0))
    far = vectors(numbers(2 * TABLE_ROWS + 5, 3))
    expected = unit_vectors(numbers(3, 0, 2 * TABLE_ROWS + 5), WIDTH, seed=7).half().float()
    assert torch.equal(few, expected[:2])
    assert torch.equal(far, expected[[2, 0]])
    assert vectors(numbers()).shape == (0, WIDTH)


# --- everybody's moments -----------------------------------------------------------------------------------------


def world_of(**others):
    return WorldMemory(Settings(**{**LIMITS, **others}), HashedVectors(WIDTH, 0, CPU), CPU)


def found_by(memory, *asked):
    """Sorted numbers found for each query."""
    return [sorted(row[row > 0].tolist()) for row in memory.recall(*asked)]


def bucket_of(memory, rows, head=0):
    """Which bucket of its first round each item is hashed into."""
    keys = memory.vectors(torch.as_tensor(rows))[None, None]  # (1, 1, N, D)
    return hash_buckets(keys, memory.memory.rotations[head : head + 1])[0, 0, 0].tolist()


@given(batches=st.lists(st.lists(st.integers(1, 30), max_size=12), max_size=6))
def test_the_world_finds_the_latest_of_the_bucket_each_once(batches):
    world = world_of()
    buckets = bucket_of(world, range(31))
    stored, number = defaultdict(list), 0
    for batch in batches:
        given_ = list(range(number + 1, number + 1 + len(batch)))
        number += len(batch)
        world.store(moments(batch), numbers(*given_))
        for row, one in zip(batch, given_, strict=True):
            stored[buckets[row]].append(one)
    expected = [stored[buckets[row]][-LIMITS["world_ring"] :] for row in range(1, 31)]
    assert found_by(world, moments(list(range(1, 31)))) == expected
    assert found_by(world, moments([0])) == [[]]  # before a first click nothing stood


def test_what_the_world_stored_is_found_by_the_same_item_however_many_others_came():
    world = world_of()
    buckets = bucket_of(world, range(500))
    elsewhere = [row for row in range(1, 500) if buckets[row] != buckets[7]]
    world.store(moments([7]), numbers(1))
    world.store(moments(elsewhere), torch.arange(2, 2 + len(elsewhere)))
    assert found_by(world, moments([7])) == [[1]]


def test_the_world_goes_on_after_a_restart_and_starts_empty_where_its_shape_has_changed():
    world, again, larger = world_of(), world_of(), world_of(world_ring=9)
    world.store(moments([1, 2, 3]), numbers(1, 2, 3))
    for other in (again, larger):
        other.load_state({name: array.copy() for name, array in world.to_state().items()})
    assert found_by(again, moments([1, 2, 3])) == found_by(world, moments([1, 2, 3]))
    assert found_by(larger, moments([1, 2, 3])) == [[], [], []]
    for other in (world, again):
        other.store(moments([1] * 6), numbers(4, 5, 6, 7, 8, 9))
    assert found_by(again, moments([1, 2, 3])) == found_by(world, moments([1, 2, 3]))


# --- a person's own ----------------------------------------------------------------------------------------------


def own_of(**others):
    return OwnMemory(Settings(**{**LIMITS, **others}), HashedVectors(WIDTH, 0, CPU), CPU)


def slots_of(own, *users):
    return torch.from_numpy(own.take(users))


def test_what_was_stored_is_found_by_its_item_at_any_other_time_however_many_others_came():
    own = own_of()
    (slot,) = slots_of(own, "ada")
    buckets = bucket_of(own, range(300))
    elsewhere = [row for row in range(1, 300) if buckets[row] != buckets[7]]
    own.store(slot[None], moments([7]), numbers(1))
    for at, row in enumerate(elsewhere, 2):  # at hours of the whole week
        own.store(slot[None], moments([row], times=[START + 5_000.0 * at], gaps=[at % 11]), numbers(at))
    for hours in (0, 5, 12, 19):
        assert 1 in found_by(own, slot[None], moments([7], times=[START + 3_600.0 * hours], gaps=[3.0]))[0]


def test_what_was_stored_is_found_by_its_time_whatever_item_stands_before():
    own = own_of(recall_probes=1)
    (slot,) = slots_of(own, "ada")
    own.store(slot[None], moments([7], times=[START], gaps=[2.0]), numbers(1))
    for row in range(20):  # no click before, and many others
        assert found_by(own, slot[None], moments([row], times=[START + 604_800], gaps=[2.0])) == [[1]]


@given(
    clicks=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)), max_size=40),
    seed=st.integers(0, 20),
)
def test_each_is_found_once_and_only_by_its_owner(clicks, seed):
    """Whatever is found was stored for that person; the latest of an item's bucket are all among it."""
    own = own_of(seed=seed)
    slots = slots_of(own, "ada", "bob", "cyd")
    buckets = bucket_of(own, range(10))
    stored = defaultdict(list)
    for number, (user, row, hour) in enumerate(clicks, 1):
        own.store(slots[user : user + 1], moments([row], times=[START + 3_600.0 * hour]), numbers(number))
        stored[user].append((number, row))
    for row in range(10):
        found = own.recall(slots, moments([row] * 3))
        for user, mine in enumerate(found):
            held = mine[mine > 0].tolist()
            assert len(held) == len(set(held))
            assert set(held) <= {number for number, _ in stored[user]}
            same_bucket = [number for number, other in stored[user] if buckets[other] == buckets[row]]
            assert set(same_bucket[-LIMITS["recall_ring"] :]) <= set(held)


def test_a_batch_is_stored_as_its_moments_one_by_one_would_be():
    random = np.random.default_rng(0)
    one_by_one, at_once = own_of(), own_of()
    for own in (one_by_one, at_once):
        slots_of(own, "ada", "bob")
    owners = torch.from_numpy(random.integers(0, 2, 40))
    stood = moments(random.integers(1, 9, 40).tolist(), times=(START + 9_000.0 * np.arange(40)).tolist())
    at_once.store(owners, stood, torch.arange(1, 41))
    for at in range(40):
        part = Moments(*(each[at : at + 1] for each in stood))
        one_by_one.store(owners[at : at + 1], part, numbers(at + 1))
    for row in range(9):
        asked = numbers(0, 1), moments([row, row])
        assert found_by(at_once, *asked) == found_by(one_by_one, *asked)


def test_nobody_finds_nothing_alone_or_beside_others():
    own = own_of()
    slots = slots_of(own, "ada")
    own.store(slots, moments([7]), numbers(1))
    assert own.slots(["bob", "ada", "cyd"]).tolist() == [-1, int(slots[0]), -1]
    assert found_by(own, torch.from_numpy(own.slots(["bob", "ada"])), moments([7, 7])) == [[], [1]]
    assert found_by(own, torch.from_numpy(own.slots(["bob"])), moments([7])) == [[]]


def test_who_was_here_longest_ago_makes_room_and_has_no_past_on_return():
    own = own_of(recall_users_held=16)  # as many as a micro-batch may have
    users = [f"u{number}" for number in range(16)]
    slots = slots_of(own, *users)
    own.store(slots, moments([7] * 16), torch.arange(1, 17))
    own.take(["u0"])  # seen again: u1 is next
    (taken,) = slots_of(own, "newcomer")
    assert own.slots(["u1", "u0"]).tolist() == [-1, int(slots[0])]
    assert taken == slots[1]
    assert found_by(own, taken[None], moments([7])) == [[]]
    own.store(taken[None], moments([7]), numbers(99))
    assert found_by(own, taken[None], moments([7])) == [[99]]
    assert found_by(own, slots[:1], moments([7])) == [[1]]


def test_people_are_found_again_after_a_restart_and_make_room_in_the_same_order():
    own, again = (own_of(recall_users_held=16) for _ in range(2))
    users = [f"u{number}" for number in range(16)]
    own.store(slots_of(own, *users), moments([7] * 16), torch.arange(1, 17))
    own.take(["u0"])
    arrays, state = own.to_state()
    again.load_state({name: array.copy() for name, array in arrays.items()}, state)
    for other in (own, again):
        other.store(slots_of(other, "newcomer"), moments([7]), numbers(99))
    assert again.slots([*users, "newcomer"]).tolist() == own.slots([*users, "newcomer"]).tolist()
    asked = torch.arange(16), moments([7] * 16)
    assert found_by(again, *asked) == found_by(own, *asked)


@pytest.mark.parametrize("changed", [{"recall_users_held": 17}, {"recall_ring": 5}, {"recall_buckets": 6}])
def test_with_another_shape_nobody_is_remembered(changed):
    own, other = own_of(), own_of(**changed)
    own.store(slots_of(own, "ada"), moments([7]), numbers(1))
    other.load_state(*own.to_state())
    assert other.slots(["ada"]).tolist() == [-1]
    assert found_by(other, slots_of(other, "ada"), moments([7])) == [[]]
