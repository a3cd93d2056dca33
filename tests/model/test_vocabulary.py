import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from model.vocabulary import Vocabulary, grown

ITEMS = st.sampled_from([f"i{n}" for n in range(12)])
SETTINGS = {"min_count": 2, "capacity_max": 4, "waiting_max": 5}


class AgainstADict(RuleBasedStateMachine):
    """The same clicks go to the vocabulary and to a model made of two lists, each in the order of the latest click."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(**SETTINGS)
        self.owners: list[tuple[str, float]] = []
        self.waiting: list[tuple[str, int, float]] = []
        self.rows: dict[str, int] = {}
        self.dirty: set[int] = set()
        self.now = 0.0

    def lose(self, item: str) -> int:
        row = self.rows.pop(item)
        self.dirty.add(row)
        return row

    @rule(item=ITEMS, passed=st.integers(-3, 5))
    def click(self, item: str, passed: int) -> None:
        at = max(0.0, self.now + passed)  # seconds since 1970; the clock here begins at 0
        self.now = max(self.now, at)
        row = self.vocabulary.observe(item, at)
        if item in self.rows:
            assert row == self.rows[item]
            self.owners = [o for o in self.owners if o[0] != item] + [(item, self.now)]
            return
        clicks = next((n for name, n, _ in self.waiting if name == item), 0) + 1
        self.waiting = [w for w in self.waiting if w[0] != item]
        if clicks < SETTINGS["min_count"]:
            assert row == 0
            self.waiting = [*self.waiting, (item, clicks, self.now)][-SETTINGS["waiting_max"] :]
            return
        if len(self.owners) == SETTINGS["capacity_max"]:
            self.lose(self.owners.pop(0)[0])
        assert row > 0
        assert row not in self.rows.values()
        self.rows[item] = row
        self.owners.append((item, self.now))

    @rule(ago=st.integers(0, 10))
    def expire(self, ago: int) -> None:
        before = self.now - ago
        gone = [self.lose(item) for item, at in self.owners if at < before]
        self.owners = [o for o in self.owners if o[1] >= before]
        self.waiting = [w for w in self.waiting if w[2] >= before]
        assert self.vocabulary.expire(before) == gone

    @rule()
    def reset(self) -> None:
        rows = self.vocabulary.take_reset()
        assert len(rows) == len(set(rows))
        assert set(rows) == self.dirty
        self.dirty = set()

    @rule()
    def restart(self) -> None:
        state = json.loads(json.dumps(self.vocabulary.to_state()))
        self.vocabulary = Vocabulary.from_state(state, **SETTINGS)
        assert self.vocabulary.to_state() == state

    @invariant()
    def agree(self) -> None:
        assert len(self.vocabulary) == len(self.rows) <= SETTINGS["capacity_max"]
        for item in [f"i{n}" for n in range(12)]:
            row = self.rows.get(item, 0)
            assert self.vocabulary.row_of(item) == row
            assert (item in self.vocabulary) == (row > 0)
            assert self.vocabulary.item_of(row) == (item if row else None)
        assert max(self.rows.values(), default=0) < self.vocabulary.rows <= SETTINGS["capacity_max"] + 1


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_rows_are_handed_out_from_one_and_used_again() -> None:
    vocabulary = Vocabulary()
    assert [vocabulary.observe(item, at) for at, item in enumerate(["a", "b", "a", "c"])] == [1, 2, 1, 3]
    assert vocabulary.expire(before=2.0) == [2]
    assert vocabulary.observe("d", 4.0) == 2
    assert vocabulary.take_reset() == [2]
    assert vocabulary.rows == 4


def test_what_waits_for_admission_is_bounded() -> None:
    vocabulary = Vocabulary(min_count=2, waiting_max=100)
    for n in range(10_000):
        vocabulary.observe(f"once{n}", float(n))
    assert len(vocabulary.to_state()["waiting_items"]) == 100
    assert len(vocabulary) == 0


def test_a_restart_changes_nothing_that_follows() -> None:
    ours = Vocabulary(**SETTINGS)
    clicks = [(f"i{n * n % 11}", float(n)) for n in range(60)]
    for item, at in clicks[:30]:
        ours.observe(item, at)
    again = Vocabulary.from_state(ours.to_state(), **SETTINGS)
    assert [ours.observe(*c) for c in clicks[30:]] == [again.observe(*c) for c in clicks[30:]]
    assert ours.to_state() == again.to_state()


def test_a_state_that_contradicts_itself_is_refused() -> None:
    vocabulary = Vocabulary()
    vocabulary.observe("a", 0.0)
    vocabulary.observe("b", 0.0)
    for broken in ({"rows": [1, 1]}, {"items": ["a", "a"]}, {"free": [2]}, {"row_count": 9}):
        with pytest.raises(ValueError, match="vocabulary state"):
            Vocabulary.from_state({**vocabulary.to_state(), **broken})


@pytest.mark.parametrize("name", ["min_count", "capacity_max", "waiting_max"])
def test_settings_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Vocabulary(**{name: 0})


def test_growing_one_row_at_a_time_copies_once_per_doubling() -> None:
    rows, copied, growths = 16, 0, 0
    for needed in range(1, 10_001):
        if (new := grown(needed, rows)) != rows:
            copied, growths, rows = copied + rows, growths + 1, new
    assert rows == 16_384
    assert growths == 10
    assert copied < rows
    assert grown(17, 16) == 32
    assert grown(16, 16) == 16


def test_a_large_table_grows_by_a_quarter() -> None:
    rows, copied = 1_024, 0
    for needed in range(1_024, 1_000_000, 100):
        if (new := grown(needed, rows)) != rows:
            assert new <= max(65_536, 1.25 * rows)
            copied, rows = copied + rows, new
    assert rows >= needed
    assert copied < 4 * rows
