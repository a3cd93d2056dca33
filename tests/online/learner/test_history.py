"""Rings of clicks against a dict of lists: the same answers, whatever is clicked, forgotten and restored."""

import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from online.learner import history
from online.learner.history import SERVED, UserHistories, earlier_in_batch, next_in_batch

USERS = [f"u{number}" for number in range(7)]


def check(histories, model, history_max, length, behind):
    """`model`: each user's clicks ever made, least recently seen first."""
    users = list(model)
    assert len(histories) == len(users)
    by_slot = dict(zip(histories.users_of(range(len(users))), histories.clicked_at().tolist(), strict=True))
    assert by_slot == {user: clicks[-1][2] for user, clicks in model.items()}
    if not users:
        return
    slots = histories.find(users)
    left_out = np.array([behind[user] for user in users])
    found, newest = histories.oldest_first(slots, length, left_out), histories.newest_first(slots, length, left_out)
    for at, user in enumerate(users):
        kept = model[user][-history_max:]
        expected = kept[: len(kept) - behind[user]][-min(length, history_max) :]
        clicks = list(zip(found.rows[at], found.event_types[at], found.timestamps[at], strict=True))
        assert found.lengths[at] == newest.lengths[at] == len(expected)
        assert clicks[: len(expected)] == [click[:3] for click in expected]
        assert all(click == (0, 0, 0.0) for click in clicks[len(expected) :])
        clicks = list(zip(newest.rows[at], newest.timestamps[at], newest.numbers[at], strict=True))
        assert clicks[: len(expected)] == [(row, time, number) for row, _, time, number in expected[::-1]]
        assert all(click == (0, 0.0, 0) for click in clicks[len(expected) :])


class AgainstLists(RuleBasedStateMachine):
    """Histories and a dict of lists, given the same."""

    @initialize(users_held=st.integers(4, 6), history_max=st.integers(2, 5))
    def begin(self, users_held, history_max):
        self.users_held, self.history_max = users_held, history_max
        self.histories = UserHistories(users_held, history_max)
        self.model: OrderedDict[str, list] = OrderedDict()
        self.served: dict[str, list] = {}
        self.clock = 0

    @rule(users=st.lists(st.sampled_from(USERS), min_size=1, max_size=8), data=st.data())
    def click(self, users, data):
        kept = []
        for user in users:  # as micro-batches are cut: a run may fill a history, and not bring more users than are held
            if kept.count(user) < self.history_max and len({*kept, user}) <= self.users_held:
                kept.append(user)
        rows = data.draw(st.lists(st.integers(0, 9), min_size=len(kept), max_size=len(kept)))
        slots = self.histories.slots(kept)
        times = [float(self.clock + number) for number in range(len(kept))]
        types = [row % 3 for row in rows]
        numbers = [1 + self.clock + number for number in range(len(kept))]
        self.histories.append(slots, rows, types, times, numbers)
        self.clock += len(kept)
        for user in kept:
            if user not in self.model and len(self.model) == self.users_held:
                gone, _ = self.model.popitem(last=False)
                self.served.pop(gone, None)
            self.model.setdefault(user, [])
            self.model.move_to_end(user)
        for user, click in zip(kept, zip(rows, types, times, numbers, strict=True), strict=True):
            self.model[user].append(click)

    @rule(user=st.sampled_from(USERS), rows=st.lists(st.integers(1, 9), max_size=SERVED))
    def serve(self, user, rows):
        if user in self.model:
            (slot,) = self.histories.find([user])
            self.histories.served[slot] = rows + [0] * (SERVED - len(rows))
            self.served[user] = rows + [0] * (SERVED - len(rows))

    @rule(rows=st.sets(st.integers(1, 9), min_size=1, max_size=3))
    def forget(self, rows):
        self.histories.forget_rows(sorted(rows))
        for user, clicks in self.model.items():
            self.model[user] = [(0 if row in rows else row, *rest) for row, *rest in clicks]
        self.served = {user: [0 if row in rows else row for row in held] for user, held in self.served.items()}

    @rule(users_fewer=st.integers(0, 2), clicks_fewer=st.integers(-2, 2))
    def restart(self, users_fewer, clicks_fewer):
        """Perhaps with other limits: of what is too much, the latest is kept."""
        self.users_held = max(3, self.users_held - users_fewer)
        before, self.history_max = self.history_max, max(2, self.history_max - clicks_fewer)
        self.model = OrderedDict(
            (user, clicks[-min(before, self.history_max) :])
            for user, clicks in list(self.model.items())[-self.users_held :]
        )
        self.served = {user: rows for user, rows in self.served.items() if user in self.model}
        arrays, users = self.histories.to_state()
        self.histories = UserHistories(self.users_held, self.history_max)
        self.histories.load_state({name: array.copy() for name, array in arrays.items()}, list(users))

    @rule(length=st.integers(1, 7), data=st.data())
    def look(self, length, data):
        behind = {u: data.draw(st.integers(0, min(len(c), self.history_max))) for u, c in self.model.items()}
        check(self.histories, self.model, self.history_max, length, behind)

    @invariant()
    def is_the_same(self):
        if hasattr(self, "model"):
            check(self.histories, self.model, self.history_max, self.history_max, dict.fromkeys(self.model, 0))
            for user in USERS:
                assert (user in self.histories) == (user in self.model)
                if user in self.model:
                    (slot,) = self.histories.find([user])
                    assert self.histories.served[slot].tolist() == self.served.get(user, [0] * SERVED)
            lengths = {user: len(clicks) for user, clicks in self.model.items()}
            recent = self.histories.recently_seen(3).tolist()
            expected = [user for user in reversed(self.model) if lengths[user] >= 2][:3]
            assert recent == self.histories.find(expected).tolist()


AgainstLists.TestCase.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
TestAgainstLists = AgainstLists.TestCase


@given(st.lists(st.integers(0, 5), max_size=30))
def test_earlier_in_batch_counts_what_stands_further_left(slots):
    expected = [slots[:at].count(slot) for at, slot in enumerate(slots)]
    assert earlier_in_batch(np.array(slots, np.int64)).tolist() == expected


@given(st.lists(st.integers(0, 5), max_size=30))
def test_next_in_batch_is_where_a_slot_stands_next_further_right(slots):
    expected = [slots.index(slot, at + 1) if slot in slots[at + 1 :] else -1 for at, slot in enumerate(slots)]
    assert next_in_batch(np.array(slots, np.int64)).tolist() == expected


def test_no_user_is_evicted_before_there_are_too_many_and_arrays_grow():
    histories = UserHistories(3_000, 4)
    for start in range(0, 3_000, 50):
        slots = histories.slots([f"u{number}" for number in range(start, start + 50)])
        histories.append(slots, np.arange(start + 1, start + 51), np.zeros(50), np.zeros(50))
    assert len(histories) == 3_000
    found = histories.oldest_first(histories.find([f"u{number}" for number in range(3_000)]), 4)
    assert found.rows[:, 0].tolist() == list(range(1, 3_001))


def test_a_user_who_comes_back_after_being_evicted_has_no_past():
    histories = UserHistories(1, 4)
    for user, row in (("a", 1), ("b", 2), ("a", 3)):
        slots = histories.slots([user])
        assert histories.oldest_first(slots, 4).lengths.tolist() == [0]
        assert not histories.served[slots].any()
        histories.append(slots, [row], [0], [0.0])
        histories.served[slots] = 9
    assert histories.oldest_first(histories.find(["a"]), 4).rows.tolist() == [[3, 0, 0, 0]]


def test_looking_up_a_user_is_no_use_of_them_and_unknown_users_are_errors():
    histories = UserHistories(2, 4)
    histories.slots(["a", "b"])
    histories.find(["a"])
    histories.slots(["c"])
    assert "a" not in histories
    with pytest.raises(KeyError):
        histories.find(["a"])


def test_of_some_users_only():
    histories = UserHistories(4, 2)
    slots = histories.slots(["a", "b"])
    histories.append(slots, [1, 2], [0, 1], [5.0, 6.0])
    of_b = histories.oldest_first(slots, 2).of(np.array([1]))
    assert [part.tolist() for part in of_b] == [[[2, 0]], [[1, 0]], [[6.0, 0.0]], [1]]


def test_a_history_that_is_allowed_more_after_a_restart_invents_no_clicks():
    small, large = UserHistories(4, 2), UserHistories(4, 5)
    slots = small.slots(["a"])
    for row in (1, 2, 3):
        small.append(slots, [row], [0], [0.0])
    arrays, users = small.to_state()
    large.load_state(arrays, users)
    slots = large.find(["a"])
    large.append(slots, [4], [0], [0.0])
    found = large.oldest_first(slots, 5)
    assert found.rows[0, : found.lengths[0]].tolist() == [2, 3, 4]


def test_a_state_is_captured_in_pieces_and_the_same(monkeypatch):
    """At once it would take 10 kB a user beside what is captured: more than all histories."""
    histories, random = UserHistories(7, 4, values=True), np.random.default_rng(0)
    for _ in range(5):
        slots = histories.slots([f"user {n}" for n in random.permutation(9)[:6]])
        histories.append(slots, random.integers(1, 99, 6), random.integers(0, 9, 6), random.random(6))
        histories.put_values(slots, random.random(6))
    whole, users = histories.to_state()
    monkeypatch.setattr(history, "PIECE", 2)
    pieces, again = histories.to_state()
    assert again == users
    assert {name: (array.dtype, array.tolist()) for name, array in pieces.items()} == {
        name: (array.dtype, array.tolist()) for name, array in whole.items()
    }
    assert UserHistories(7, 4).to_state()[1] == []


def test_capturing_works_on_little_beside_what_it_returns():
    histories = UserHistories(8 * history.PIECE, 16)
    slots = histories.slots([str(n) for n in range(8 * history.PIECE)])
    histories.append(slots, 1, 0, 1.0)
    tracemalloc.start()
    arrays, _ = histories.to_state()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Of one piece it has some ten numbers of 8 bytes for each place; of all of them that would be eight times as much.
    worked_on = 20 * 8 * 16 * history.PIECE
    assert peak < 3 * sum(array.nbytes for array in arrays.values()) + worked_on
