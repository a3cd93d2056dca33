"""Pairs of items are counted once enough different users have made them, against sets that hold everything."""

import math
from collections import defaultdict

import numpy as np
import pytest

from online.learner.facts import tables
from online.learner.learner import Learner
from stream.user_ids import digest_of
from tests.online.learner.conftest import click, restarted

ROOM = {"successors_held": 64, "neighbours_held": 64, "abuse_filter": False, "history_max": 12}
FIRST, SECOND, THIRD, NEAR_BY = "first", "second", "third", "near"


class SlowPairs:
    """All users of all pairs, and what is counted of those that enough users made."""

    def __init__(self, needed, history_max):
        self.needed, self.history_max = needed, history_max
        self.history = defaultdict(list)
        self.users = defaultdict(set)
        self.weights = defaultdict(float)

    def add(self, user, item):
        latest = self.history[user][: -self.history_max - 1 : -1][: tables.NEAR]
        for d, earlier in enumerate(latest):
            kinds = [FIRST] if d == 0 else [SECOND] if d == 1 else []
            kinds += [THIRD] if tables.THIRD_FROM <= d < tables.THIRD_TO else []
            for kind in kinds:
                self._made((kind, earlier, item), user, 1.0)
            if earlier != item:
                self._made((NEAR_BY, *sorted((earlier, item))), user, 1 / math.sqrt(d + 1))
        self.history[user].append(item)

    def _made(self, pair, user, weight):
        self.users[pair].add(user)
        self.weights[pair] += weight

    def shown(self, pair):
        return len(self.users[pair]) >= self.needed

    def tables(self):
        """Counts by table and pair of items."""
        found = {}
        for (kind, one, other), weight in self.weights.items():
            if self.shown((kind, one, other)):
                found[kind, one, other] = weight
                if kind == FIRST:
                    found["before", other, one] = weight
                elif kind == NEAR_BY:
                    found[kind, other, one] = weight
        return found


def held(learner):
    """Counts by table and pair of items, as a learner holds them."""
    found = {}
    for name, table in zip(tables.NAMES, learner.store.tables, strict=True):
        for row in np.flatnonzero(table.used).tolist():
            for neighbour, weight in zip(*map(list, tables.neighbours(table, row)), strict=True):
                one, other = learner.vocabulary.items_of([row, int(neighbour)])
                found[name, one, other] = float(weight)
    return found


def clicks(count=400, users=12, items=15, seed=0):
    random = np.random.default_rng(seed)
    return [click(random.integers(users), int(random.integers(items) ** 2 // items), at) for at in range(count)]


@pytest.mark.parametrize("needed", [2, 3, 6])
def test_tables_hold_what_enough_users_made_and_all_of_it(small, needed):
    learner, slow = Learner(small(**ROOM, pair_users_min=needed)), SlowPairs(needed, 12)
    stream = clicks()
    for start in range(0, len(stream), 16):
        learner.learn(stream[start : start + 16])
        for one in stream[start : start + 16]:
            slow.add(one.user_id, one.item_id)
        wanted, found = slow.tables(), held(learner)
        assert found.keys() == wanted.keys()
        np.testing.assert_allclose([found[pair] for pair in wanted], [*wanted.values()], rtol=1e-5)
    assert len(wanted) > 20
    assert len(slow.users) > sum(map(slow.shown, slow.users))


@pytest.mark.parametrize("room", [1, 20])
def test_without_room_pairs_appear_later_and_none_too_early(small, room):
    learner, slow = Learner(small(**ROOM, pair_users_min=3, pairs_waiting_held=room)), SlowPairs(3, 12)
    stream, shown = clicks(800), 0
    for start in range(0, len(stream), 16):
        learner.learn(stream[start : start + 16])
        for one in stream[start : start + 16]:
            slow.add(one.user_id, one.item_id)
        assert held(learner).keys() <= slow.tables().keys()
        shown += len(held(learner))
    assert shown > 0
    assert held(learner).keys() < slow.tables().keys()


def test_a_moment_of_others_points_only_at_what_enough_users_did(small):
    learner, slow, pointed, left_out = Learner(small(**ROOM, pair_users_min=3)), SlowPairs(3, 12), 0, 0
    for one in clicks(500):
        world = learner.learn([one]).steps[0].scored.gathered.world
        log = learner.store.log
        for at in world.moments.tolist():
            last, item = learner.vocabulary.items_of([int(log.last[at]), int(log.items[at])])
            assert slow.shown((FIRST, last, item))
            pointed += 1
        before = slow.history[one.user_id][-1:]
        left_out += sum(pair[:2] == (FIRST, *before) and not slow.shown(pair) for pair in slow.users)
        slow.add(one.user_id, one.item_id)
    assert pointed > 20
    assert left_out > 20


def test_a_checkpoint_brings_back_what_waits(small):
    settings = small(**ROOM, pair_users_min=3)
    learner, stream = Learner(settings), clicks()
    for start in range(0, 200, 16):
        learner.learn(stream[start : start + 16])
    again = restarted(learner, settings)
    assert again.store.pairs.keys.any()
    for one in (learner, again):
        one.learn(stream[208:224])
        one.learn(stream[224:240])
    assert held(learner) == held(again)
    for one, other in zip(learner.store.pairs, again.store.pairs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("before", "now", "kept"), [(0, 3, False), (2, 3, False), (3, 3, True), (3, 2, True), (3, 0, True)]
)
def test_pairs_of_fewer_users_are_not_taken_over(small, caplog, before, now, kept):
    learner = Learner(small(**ROOM, pair_users_min=before))
    for start in range(0, 200, 16):
        learner.learn(clicks()[start : start + 16])
    again = restarted(learner, small(**ROOM, pair_users_min=now))
    assert held(again) == (held(learner) if kept else {})
    assert ("NEXTCLICK_PAIR_USERS_MIN is 3" in caplog.text) is not kept


def test_a_forgotten_user_waits_with_no_pair_and_counts_no_more(small):
    learner = Learner(small(**ROOM, pair_users_min=3))
    for user in ("0", "1"):
        learner.learn([click(user, 1, 1), click(user, 2, 2)])
    digest = digest_of("0")
    assert learner.holds(digest)["waiting_pairs"] == 2  # one after the other, and near each other
    learner.forget(digest)
    assert learner.holds(digest)["waiting_pairs"] == 0
    learner.learn([click("2", 1, 3), click("2", 2, 4)])
    assert held(learner) == {}
    learner.learn([click("3", 1, 5), click("3", 2, 6)])
    assert {name for name, *_ in held(learner)} == {"first", "before", "near"}


def test_pairs_of_items_whose_rows_are_given_away_do_not_wait(small):
    learner = Learner(small(**ROOM, pair_users_min=2))
    learner.learn([click("0", 1, 1), click("0", 2, 2), click("0", 3, 3)])
    row = learner.vocabulary.row_of("i2")
    learner.store.forget_rows([row])
    assert np.count_nonzero(learner.store.pairs.keys) == 2  # of items 1 and 3: two apart, and near each other


def test_taking_back_undoes_what_waits_and_what_is_counted(small):
    learner = Learner(small(**ROOM, pair_users_min=2))
    for user in ("0", "1"):
        learner.learn([click(user, 1, 1), click(user, 2, 2)])
    learner.learn([click("0", 3, 3)])
    one, two, three = (learner.vocabulary.row_of(f"i{item}") for item in (1, 2, 3))
    earlier = np.zeros((2, tables.NEAR), np.int64)
    earlier[0, 0], earlier[1, :2] = one, (two, one)
    nothing = np.zeros(0)
    learner.store.take_back(np.array([two, three]), earlier, np.array([-1.0, -1.0]), nothing.astype(np.int64))
    assert held(learner) == {
        ("first", "i1", "i2"): 1,
        ("before", "i2", "i1"): 1,
        ("near", "i1", "i2"): 1,
        ("near", "i2", "i1"): 1,
    }
    assert not learner.store.pairs.weights.any()


@pytest.mark.parametrize("off", [0, 1])
def test_without_a_threshold_nothing_waits_and_no_memory_is_taken(small, off):
    learner = Learner(small(**ROOM, pair_users_min=off))
    learner.learn([click("0", 1, 1), click("0", 2, 2)])
    assert len(held(learner)) == 4
    assert sum(part.size for part in learner.store.pairs) == 0
    assert "waiting_pairs" not in learner.holds(digest_of("0"))
