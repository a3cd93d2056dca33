"""What each user has clicked is known exactly, within its bounds, and goes on after a restart."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from online.learner.seen_items import SeenItems

USERS = st.sampled_from("abcdef")
ROWS = st.integers(0, 12) | st.integers(65_530, 65_540)  # Roaring's containers hold 65,536 rows each


class SlowSeenItems:
    """The same with sets in a dictionary."""

    def __init__(self, users_held, pairs_max):
        self.users_held, self.pairs_max = users_held, pairs_max
        self.rows = OrderedDict()  # sets by user, least recently seen first
        self.users_lost = self.pairs_lost = 0

    @property
    def pairs(self):
        return sum(map(len, self.rows.values()))

    def add(self, user, rows):
        if user in self.rows or set(rows) - {0}:
            self.rows[user] = self.rows.pop(user, set()) | (set(rows) - {0})
        self.make_room()

    def make_room(self):
        while len(self.rows) > self.users_held or self.pairs > self.pairs_max:
            _, gone = self.rows.popitem(last=False)
            self.users_lost += 1
            self.pairs_lost += len(gone)


class Machine(RuleBasedStateMachine):
    @initialize(users_held=st.integers(1, 5), pairs_max=st.integers(1, 20))
    def begin(self, users_held, pairs_max):
        self.seen, self.slow = SeenItems(users_held, pairs_max), SlowSeenItems(users_held, pairs_max)

    @rule(user=USERS, rows=st.lists(ROWS, max_size=8))
    def add(self, user, rows):
        self.seen.add(user, rows)
        self.slow.add(user, rows)

    @rule(clicks=st.lists(st.tuples(USERS, ROWS), max_size=12))
    def add_clicks(self, clicks):
        self.seen.add_clicks([user for user, _ in clicks], np.array([row for _, row in clicks], np.int64))
        for user, row in clicks:
            self.slow.add(user, [row])

    @rule(user=USERS)
    def forget(self, user):
        assert self.seen.forget(user) == len(self.slow.rows.pop(user, ()))

    @rule(rows=st.lists(ROWS, max_size=8))
    def forget_rows(self, rows):
        self.seen.forget_rows(rows)
        for held in self.slow.rows.values():
            held.difference_update(rows)

    @rule(fewer_users=st.integers(0, 1), fewer_pairs=st.integers(0, 5))
    def restart(self, fewer_users, fewer_pairs):
        arrays, users = self.seen.to_state()
        bounds = max(1, self.seen.users_held - fewer_users), max(1, self.seen.pairs_max - fewer_pairs)
        self.seen = SeenItems(*bounds)
        self.seen.load_state({name: array.copy() for name, array in arrays.items()}, users)
        self.slow.users_held, self.slow.pairs_max = bounds
        self.slow.users_lost = self.slow.pairs_lost = 0
        self.slow.make_room()
        if not self.slow.users_lost:
            assert {name: array.tobytes() for name, array in self.seen.to_state()[0].items()} == {
                name: array.tobytes() for name, array in arrays.items()
            }

    @rule(users=st.lists(USERS, max_size=8))
    def ask(self, users):
        starts, rows = self.seen.of(users)
        assert (starts.dtype, rows.dtype) == (np.int64, np.int64)
        found = [rows[starts[at] : starts[at + 1]].tolist() for at in range(len(users))]
        assert found == [sorted(self.slow.rows.get(user, ())) for user in users]
        assert (starts[0], starts[-1]) == (0, len(rows))

    @invariant()
    def the_same_is_known(self):
        assert self.seen.users() == list(self.slow.rows)
        assert (self.seen.pairs, len(self.seen)) == (self.slow.pairs, len(self.slow.rows))
        assert (self.seen.users_lost, self.seen.pairs_lost) == (self.slow.users_lost, self.slow.pairs_lost)
        assert [user in self.seen for user in "abcdef"] == [user in self.slow.rows for user in "abcdef"]


TestAgainstSets = Machine.TestCase


def test_thousands_of_rows_of_a_user_stay_exact():
    random = np.random.default_rng(0)
    rows = random.permutation(np.arange(1, 200_000))[:5_000]
    seen = SeenItems(10, 100_000)
    seen.add("other", [7])
    for start in range(0, 5_000, 50):
        seen.add_clicks(["a"] * 50, rows[start : start + 50])
    seen.forget_rows(rows[:1_000].tolist())
    assert seen.of(["a"])[1].tolist() == sorted(rows[1_000:].tolist())
    assert seen.pairs == 4_000 + (7 not in rows[:1_000])


def test_users_seen_last_stay_when_there_are_too_many_pairs():
    seen = SeenItems(100, 10)
    for user in "abc":
        seen.add(user, [1, 2, 3])
    seen.add("a", [1])  # seen again
    seen.add("d", [1, 2])
    assert seen.users() == ["c", "a", "d"]
    assert (seen.users_lost, seen.pairs_lost, seen.pairs) == (1, 3, 8)


def test_one_user_with_more_pairs_than_there_is_room_for_stays_within_the_bound():
    seen = SeenItems(100, 10)
    seen.add("a", range(1, 30))
    assert (seen.users(), seen.pairs, seen.users_lost, seen.pairs_lost) == ([], 0, 1, 29)


@pytest.mark.parametrize("row", [-1, 2**32])
def test_a_number_that_is_no_row_is_refused(row):
    with pytest.raises(OverflowError):
        SeenItems(1, 1).add("a", [row])
