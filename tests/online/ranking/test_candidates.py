"""Candidates and their features against loops over queries and clicks that are slow and obviously right."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.counts import NEAR, Counts
from online.ranking import candidates
from online.ranking.candidates import NEAR_DECAY, OWN_DECAY, Asked, Candidates, Gatherer, Places
from online.ranking.features import features

CPU = torch.device("cpu")
ROWS, HALF_LIVES = 12, (3, 20)
NAMES = [feature.name for feature in features(HALF_LIVES)]

row = st.integers(0, ROWS - 1)
Clicks = list[tuple[int, int, int]]  # user, row, time
clicks_made = st.lists(st.tuples(st.integers(0, 2), row, st.integers(1, 5_000)), max_size=60)


class Person(NamedTuple):
    """Somebody who is asked about: clicks latest first, with row 0 where an item was forgotten."""

    clicks: list[tuple[int, int]]  # row, time
    now: int
    recalled: list[int]


@st.composite
def people(draw: Any) -> list[Person]:
    clicks = st.lists(st.tuples(row, st.integers(0, 4_000)), max_size=NEAR + 5)
    recalled = st.lists(row, min_size=3, max_size=3)
    person = st.builds(Person, clicks, st.integers(0, 9_000), recalled)
    return draw(st.lists(person, min_size=1, max_size=4))


def asked_of(group: Sequence[Person], length: int = NEAR + 5) -> Asked:
    rows = np.zeros((len(group), length), np.int64)
    times = np.zeros((len(group), length))
    for at, person in enumerate(group):
        for age, (clicked, time) in enumerate(person.clicks):
            rows[at, age], times[at, age] = clicked, time
    lengths = torch.tensor([len(person.clicks) for person in group])
    now = torch.tensor([person.now for person in group], dtype=torch.float64)
    return Asked(torch.from_numpy(rows), torch.from_numpy(times), lengths, now, now)


def counts_of(clicks: Clicks, held: int = 4) -> Counts:
    counts = Counts(held, HALF_LIVES, CPU)
    counts.grow(ROWS)
    histories: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for user, clicked, time in clicks:
        earlier = (histories[user][::-1] + [0] * NEAR)[:NEAR]
        counts.add(torch.tensor([clicked]), torch.tensor([earlier]), torch.tensor([time], dtype=torch.float64))
        histories[user].append(clicked)
    return counts


def gathered(
    counts: Counts, group: Sequence[Person], blocked: set[int] | None = None, *, exclude_seen: bool = False
) -> Candidates:
    flags = torch.zeros(len(counts), dtype=torch.bool)
    flags[sorted(blocked or ())] = True
    recalled = torch.tensor([person.recalled for person in group])
    return Gatherer(counts).gather(asked_of(group), recalled, flags, exclude_seen=exclude_seen)


class Slow:
    """One query's candidates and features, with the names of online/ranking/features.py, from what `Counts` holds."""

    def __init__(self, counts: Counts, person: Person) -> None:
        self.counts, self.person = counts, person
        self.history = [clicked for clicked, _ in person.clicks]
        self.last, self.before, self.third = (self.history + [0] * 3)[:3]
        self.near = self._near()

    def table(self, name: str, of: int) -> dict[int, float]:
        table = self.counts.tables[name]
        held = zip(table.others[of].tolist(), table.counts[of].tolist(), strict=True)
        return {other: count for other, count in held if other} if of else {}

    def _near(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for age, of in enumerate(self.history[:NEAR]):
            for other, count in self.table("near", of).items():
                popular = math.sqrt((self.counts.clicks[of] + 5) * (self.counts.clicks[other] + 5))
                found[other] = found.get(other, 0.0) + count * NEAR_DECAY**age / popular
        return found

    def rows(self, blocked: set[int], *, exclude_seen: bool) -> list[int]:
        popular = {of for of in range(ROWS) if self.counts.popularity(torch.tensor(of)).any()}
        found = {*self.table("first", self.last), *self.table("second", self.before), *self.near, *popular}
        found |= {*self.person.recalled, *self.history}
        return sorted(found - {0} - blocked - (set(self.history) if exclude_seen else set()))

    def features(self, among: Sequence[int], item: int) -> dict[str, float]:
        return self._of_neighbours(among, item) | self._of_history(item) | self._of_item(item)

    def _of_neighbours(self, among: Sequence[int], item: int) -> dict[str, float]:
        first, second, third, before = (
            self.table(name, of).get(item, 0.0)
            for name, of in (
                ("first", self.last),
                ("second", self.before),
                ("third", self.third),
                ("before", self.last),
            )
        )
        totals = {
            name: float(self.counts.tables[name].totals[of])
            for name, of in (("first", self.last), ("second", self.before))
        }
        near, most = self.near.get(item, 0.0), max(self.near.get(other, 0.0) for other in among)
        return {
            "followed_last": math.log1p(first),
            "share_last": first / (totals["first"] + 1),
            "followed_before": math.log1p(second),
            "share_before": second / (totals["second"] + 1),
            "followed_third": math.log1p(third),
            "preceded_last": math.log1p(before),
            "preceded_rate": math.log1p(before) / (1 + math.log1p(self.counts.clicks[item]) / 4),
            "near": math.log(near + 0.001) + 7,
            "near_share": near / (most + 1e-6),
            "last_clicks": math.log1p(totals["first"]) / 4,
        }

    def _of_history(self, item: int) -> dict[str, float]:
        person = self.person
        ages = [age for age, clicked in enumerate(self.history) if clicked == item]
        times = [person.clicks[age][1] for age in ages]
        elapsed = max(person.now - times[0], 0) if ages else 0
        mean_gap = max(times[0] - times[-1], 0) / max(len(ages) - 1, 1) if ages else 0
        length = math.log1p(len(self.history))
        gap = math.log1p(max(person.now - person.clicks[0][1], 0)) if self.history else 0.0
        return {
            "own_times": math.log1p(len(ages)),
            "own_share": math.log1p(len(ages)) / (1 + length),
            "own_decayed": math.sqrt(len(ages)) * OWN_DECAY ** ages[0] if ages else 0.0,
            "own_age": math.log1p(ages[0]) if ages else 0.0,
            "own_elapsed": math.log1p(elapsed) / 4 if ages else 0.0,
            "own_rhythm": math.log((elapsed + 60) / (mean_gap + 60)) if len(ages) > 1 else 0.0,
            "own_ever": float(bool(ages)),
            "own_length": length / 4 if ages else 0.0,
            "is_last": float(item == self.last),
            "is_before": float(item == self.before),
            "history": length / 4,
            "gap": gap / 4,
        }

    def _of_item(self, item: int) -> dict[str, float]:
        counts, now = self.counts, self.person.now
        popularity = counts.popularity(torch.tensor(item)).tolist()
        return {
            "clicks": math.log1p(counts.clicks[item]) / 4,
            "elapsed": math.log1p(max(now - float(counts.last_at[item]), 0)) / 4,
            "lifetime": math.log1p(max(now - float(counts.first_at[item]), 0)) / 4,
            **{f"popularity_{n}": math.log1p(value) for n, value in zip(HALF_LIVES, popularity, strict=True)},
        }


class TestGather:
    @given(clicks_made, people(), st.sets(row, max_size=3), st.booleans())
    def test_candidates_and_features_are_those_of_a_loop(
        self, clicks: Clicks, group: list[Person], blocked: set[int], exclude_seen: bool
    ) -> None:
        counts = counts_of(clicks)
        found = gathered(counts, group, blocked, exclude_seen=exclude_seen)
        assert found.starts[0] == 0
        assert found.starts[-1] == len(found.rows) == len(found.owners) == len(found.features)
        for query, person in enumerate(group):
            slow = Slow(counts, person)
            mine = slice(int(found.starts[query]), int(found.starts[query + 1]))
            rows = slow.rows(blocked, exclude_seen=exclude_seen)
            assert found.rows[mine].tolist() == rows
            assert (found.owners[mine] == query).all()
            for item, values in zip(rows, found.features[mine].tolist(), strict=True):
                expected = slow.features(rows, item)
                assert dict(zip(NAMES[: len(values)], values, strict=True)) == pytest.approx(
                    expected, rel=1e-4, abs=1e-5
                )

    @given(clicks_made, people(), people(), st.booleans())
    def test_one_gatherer_asked_again_answers_as_a_new_one(
        self, clicks: Clicks, before: list[Person], group: list[Person], exclude_seen: bool
    ) -> None:
        counts = counts_of(clicks)
        gatherer, blocked = Gatherer(counts), torch.zeros(len(counts), dtype=torch.bool)
        for asked in (before, group):
            recalled = torch.tensor([person.recalled for person in asked])
            again = gatherer.gather(asked_of(asked), recalled, blocked, exclude_seen=exclude_seen)
        for one, other in zip(again, gathered(counts, group, exclude_seen=exclude_seen), strict=True):
            assert torch.equal(one, other)

    @given(clicks_made, people(), st.lists(st.tuples(st.integers(0, 9), row)), st.booleans())
    def test_what_was_seen_before_a_history_begins_is_no_candidate(
        self, clicks: Clicks, group: list[Person], pairs: list[tuple[int, int]], exclude_seen: bool
    ) -> None:
        counts = counts_of(clicks)
        pairs = [(query % len(group), seen) for query, seen in pairs]
        recalled, blocked = (
            torch.tensor([person.recalled for person in group]),
            torch.zeros(len(counts), dtype=torch.bool),
        )
        query_ids, rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        gatherer, asked = Gatherer(counts), asked_of(group)
        found = gatherer.gather(asked, recalled, blocked, exclude_seen=exclude_seen, seen=(query_ids, rows))
        for query, person in enumerate(group):
            expected = Slow(counts, person).rows({seen for at, seen in pairs if at == query}, exclude_seen=exclude_seen)
            assert found.rows[found.owners == query].tolist() == expected

    @given(clicks_made, people())
    def test_an_answer_does_not_depend_on_who_else_is_asked_about(self, clicks: Clicks, group: list[Person]) -> None:
        counts = counts_of(clicks)
        together = gathered(counts, group)
        for query, person in enumerate(group):
            alone, mine = gathered(counts, [person]), together.owners == query
            assert torch.equal(alone.rows, together.rows[mine])
            torch.testing.assert_close(alone.features, together.features[mine], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("length", [2, NEAR, NEAR + 5])
    def test_histories_may_be_held_shorter_than_what_counts_as_near(self, length: int) -> None:
        counts = counts_of([(0, 1 + at % 5, at + 1) for at in range(40)])
        person = Person([(3, 90), (2, 70)], 100, [0, 7, 0])
        blocked = torch.zeros(len(counts), dtype=torch.bool)
        asked, recalled = asked_of([person], length), torch.tensor([person.recalled])
        found = Gatherer(counts).gather(asked, recalled, blocked, exclude_seen=False)
        for one, other in zip(found, gathered(counts, [person]), strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("exclude_seen", [False, True])
    def test_nothing_counted_and_nobody_known_gives_no_candidates(self, exclude_seen: bool) -> None:
        found = gathered(counts_of([]), [Person([], 5, [0]), Person([], 9, [0])], exclude_seen=exclude_seen)
        assert found.starts.tolist() == [0, 0, 0]
        assert found.features.shape[0] == 0

    def test_who_has_no_history_gets_what_is_popular_and_recalled(self) -> None:
        found = gathered(counts_of([(0, 2, 1), (1, 5, 2)]), [Person([], 9, [7, 0])], {5})
        assert found.rows.tolist() == [2, 7]

    def test_of_popular_and_near_items_and_of_those_two_clicks_on_the_best_are_looked_at(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counts = Counts(8, (1_000,), CPU)
        counts.grow(ROWS)

        def tell(clicked: int, earlier: list[int], times: int) -> None:
            rows = torch.full((times,), clicked)
            before = torch.tensor([earlier + [0] * (NEAR - len(earlier))]).expand(times, -1)
            counts.add(rows, before, torch.ones(times, dtype=torch.float64))

        for clicked, times in ((4, 9), (5, 8), (6, 7)):
            tell(clicked, [], times)
        tell(7, [0, 1], 3)  # what comes two clicks after 1
        tell(8, [0, 1], 2)
        tell(9, [0] * 8 + [2], 3)  # what comes near 2
        tell(10, [0] * 8 + [2], 2)
        asked, recalled = asked_of([Person([(2, 5), (1, 4)], 9, [])]), torch.zeros(1, 0, dtype=torch.int64)
        blocked = torch.zeros(len(counts), dtype=torch.bool)

        def found() -> list[int]:
            return Gatherer(counts).gather(asked, recalled, blocked, exclude_seen=True).rows.tolist()

        assert found() == [4, 5, 6, 7, 8, 9, 10]
        monkeypatch.setattr(candidates, "POPULAR_MAX", 2)
        monkeypatch.setattr(candidates, "SECOND_MAX", 1)
        monkeypatch.setattr(candidates, "NEAR_MAX", 1)
        assert found() == [4, 5, 7, 9]
        blocked[4] = True  # takes no place
        assert found() == [5, 6, 7, 9]

    def test_what_is_popular_by_any_half_life_is_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(candidates, "POPULAR_MAX", 1)
        counts = Counts(8, (2, 10_000), CPU)
        counts.grow(ROWS)
        clicked = torch.tensor([7] * 30 + [3] * 20)
        times = torch.ones(50, dtype=torch.float64)
        counts.add(clicked, torch.zeros(50, NEAR, dtype=torch.int64), times)
        assert gathered(counts, [Person([], 9, [0])]).rows.tolist() == [3, 7]


class TestPlaces:
    keys = st.lists(st.integers(0, 19), max_size=30)

    @given(st.lists(st.tuples(keys, keys), max_size=6))
    def test_keys_are_found_where_they_were_set_last_and_nowhere_else(
        self, uses: list[tuple[list[int], list[int]]]
    ) -> None:
        places = Places(CPU)
        places.room(20)
        for repeated, keys in uses:
            number, single = (part.tolist() for part in places.one_of_each(torch.tensor(repeated, dtype=torch.int64)))
            assert [repeated[at] for at in number] == repeated
            assert len(set(number)) == len(set(repeated)) == sum(single)
            assert single == [at in number for at in range(len(repeated))]
            different = list(dict.fromkeys(keys))
            places.set(torch.tensor(different, dtype=torch.int64))
            expected = [different.index(key) if key in different else len(different) for key in range(20)]
            assert places.find(torch.arange(20)).tolist() == expected
            assert places.find(torch.arange(20).view(4, 5)).flatten().tolist() == expected

    def test_room_is_made_and_never_taken_back(self) -> None:
        places = Places(CPU)
        for size in (3, 50, 10):
            places.room(size)
            places.set(torch.tensor([size - 1, 0]))
            assert places.find(torch.tensor([0, 1, size - 1])).tolist() == [1, 2, 0]
        places.set(torch.tensor([49]))
        assert places.find(torch.tensor([49, 9])).tolist() == [0, 1]


class TestAsked:
    def test_gaps_are_logs_of_seconds_and_0_where_there_was_no_click(self) -> None:
        group = [Person([(3, 40), (2, 10)], 100, []), Person([], 100, []), Person([(3, 200)], 100, [])]
        assert asked_of(group).gaps().tolist() == pytest.approx([math.log1p(60), 0.0, 0.0])

    @pytest.mark.parametrize("length", [1, 2, 9])
    def test_a_moment_is_the_last_two_items_the_time_and_the_gap(self, length: int) -> None:
        group = [Person([(3, 40), (2, 10)][:length], 100, []), Person([(5, 90)], 95, [])]
        asked = asked_of(group, length)
        moment = asked.moment()
        assert moment.last.tolist() == [3, 5]
        assert moment.before.tolist() == [2 if length > 1 else 0, 0]
        assert moment.times.tolist() == [100, 95]
        assert torch.equal(moment.gaps, asked.gaps())
