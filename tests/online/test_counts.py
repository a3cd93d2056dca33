"""Counts against plain dicts and loops: exact while there is room, within space-saving's bounds beyond it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online import counts as counts_module
from online.counts import BACKWARD, NEAR, Counts, HeavyHitters

CPU = torch.device("cpu")
ROWS = 9  # fewer than the least that any table holds: so nothing is ever driven out of `Counts`

row = st.integers(0, ROWS - 1)
Pair = tuple[int, int, float]
Tables = dict[int, Counter[int]]  # of each row, what is counted of the others
pair_batches = st.lists(st.lists(st.tuples(row, row, st.sampled_from([0.5, 1.0, 3.0])), max_size=25), max_size=8)


def hitters(batches: Sequence[Sequence[Pair]], held: int) -> HeavyHitters:
    table = HeavyHitters(held, CPU)
    table.grow(ROWS)
    for batch in batches:
        add(table, batch)
    return table


def add(table: HeavyHitters, batch: Sequence[Pair]) -> None:
    rows, others, weights = zip(*batch, strict=True) if batch else ((), (), ())
    table.add(torch.tensor(rows, dtype=torch.int64), torch.tensor(others, dtype=torch.int64), torch.tensor(weights))


def exact(batches: Sequence[Sequence[Pair]]) -> Tables:
    counted: Tables = defaultdict(Counter)
    for batch in batches:
        for of, other, weight in batch:
            if of and other:
                counted[of][other] += weight  # type: ignore[assignment]
    return counted


def held_in(table: HeavyHitters) -> dict[int, dict[int, float]]:
    """What a table holds, each other once, and nothing counted in a free place."""
    assert not table.counts[table.others == 0].any()
    found = {}
    for of, (others, counts) in enumerate(zip(table.others.tolist(), table.counts.tolist(), strict=True)):
        entries = [(other, count) for other, count in zip(others, counts, strict=True) if other]
        assert len({other for other, _ in entries}) == len(entries)
        if entries:
            found[of] = dict(entries)
    return found


class TestHeavyHitters:
    @given(pair_batches, st.integers(1, 4))
    def test_counts_are_never_too_small_and_too_large_only_by_their_share(
        self, batches: list[list[Pair]], held: int
    ) -> None:
        table, counted = hitters(batches, held), exact(batches)
        found = held_in(table)
        assert found.keys() == counted.keys()
        for of, others in counted.items():
            total = sum(others.values())
            assert table.totals[of] == total
            assert sum(found[of].values()) <= total
            assert len(found[of]) == min(held, len(others))
            for other, count in found[of].items():
                assert others[other] <= count <= others[other] + total / held
            assert all(other in found[of] for other, count in others.items() if count > total / held)

    def test_a_batch_of_newcomers_does_not_drive_out_what_is_heavier(self) -> None:
        table = hitters([[(1, 2, 1.0), (1, 3, 50.0)], [(1, 4, 1.0), (1, 5, 1.0), (1, 6, 1.0), (1, 7, 9.0)]], 2)
        assert held_in(table) == {1: {3: 50.0, 7: 10.0}}

    @given(pair_batches)
    def test_while_there_is_room_counts_are_exact_in_batches_as_one_by_one(self, batches: list[list[Pair]]) -> None:
        counted = exact(batches)
        single = [[pair] for batch in batches for pair in batch]
        assert held_in(hitters(batches, ROWS)) == held_in(hitters(single, ROWS)) == counted

    @given(pair_batches, st.sets(st.integers(1, ROWS - 1), min_size=1, max_size=4), pair_batches)
    def test_forgotten_rows_are_as_if_never_seen(
        self, batches: list[list[Pair]], gone: set[int], more: list[list[Pair]]
    ) -> None:
        table = hitters(batches, 3)
        before, totals = held_in(table), table.totals.clone()
        table.forget(torch.tensor(sorted(gone)))
        left = {of: {o: c for o, c in others.items() if o not in gone} for of, others in before.items()}
        assert held_in(table) == {of: others for of, others in left.items() if others and of not in gone}
        assert not table.totals[sorted(gone)].any()
        kept = [of for of in range(ROWS) if of not in gone]
        assert torch.equal(table.totals[kept], totals[kept])
        for batch in more:
            add(table, batch)
        counted = exact([*batches, *more])
        for of in set(held_in(table)) - gone:
            for other, count in held_in(table)[of].items():
                assert count <= counted[of][other] + float(table.totals[of]) / 3

    def test_growing_keeps_what_was_counted(self) -> None:
        table = hitters([[(1, 2, 1.0), (8, 3, 1.0)]], 2)
        table.grow(40)
        assert len(table.others) == len(table.counts) == len(table.totals) == 40
        assert table.totals[[1, 8]].tolist() == [1.0, 1.0]
        add(table, [(39, 38, 1.0), (1, 2, 1.0)])
        assert held_in(table) == {1: {2: 2.0}, 8: {3: 1.0}, 39: {38: 1.0}}

    @pytest.mark.parametrize("held", [1, 2, 5, 8])
    def test_restored_with_another_limit_the_heaviest_are_kept(self, held: int) -> None:
        weights = {2: 3.0, 3: 9.0, 4: 1.0, 5: 5.0, 6: 4.0}
        whole = hitters([[(1, other, weight) for other, weight in weights.items()]], 5)
        restored = HeavyHitters(held, CPU)
        restored.load(whole.tensors())
        heaviest = Counter(weights).most_common(held)
        assert held_in(restored) == {1: dict(heaviest)}
        assert restored.totals[1] == 22
        add(restored, [(1, 7, 1.0)])
        lightest = heaviest[-1][1] if held <= 5 else 0.0
        assert held_in(restored)[1][7] == lightest + 1


class Slow:
    """`Counts` as loops over clicks, without any limit."""

    def __init__(self, half_lives: Sequence[int]) -> None:
        self.half_lives = half_lives
        self.tables: dict[str, Tables] = {
            name: defaultdict(Counter) for name in ("first", "second", "third", "before", "near")
        }
        self.sequence: list[int] = []  # rows, in order, 0 for unknown ones
        self.first_at: dict[int, float] = {}
        self.last_at: dict[int, float] = {}

    def add(self, clicks: Sequence[tuple[int, Sequence[int], float]]) -> None:
        for row, earlier, _ in clicks:
            self.sequence.append(row)
            for distance, before in enumerate(earlier, start=1):
                if not row or not before:
                    continue
                if distance <= 5:
                    self.tables[{1: "first", 2: "second"}.get(distance, "third")][before][row] += 1
                if distance == 1:
                    self.tables["before"][row][before] += 1
                if before != row:
                    self.tables["near"][before][row] += 1
                    self.tables["near"][row][before] += BACKWARD  # type: ignore[assignment]
        first: dict[int, float] = {}
        for row, _, time in clicks:
            first[row] = min(time, first.get(row, time))
            self.last_at[row] = max(time, self.last_at.get(row, time))
        self.first_at = first | self.first_at

    def clicks(self, row: int) -> int:
        return self.sequence.count(row) if row else 0

    def popularity(self, row: int) -> list[float]:
        ages = [len(self.sequence) - at for at, other in enumerate(self.sequence) if row and other == row]
        return [sum(0.5 ** (age / half_life) for age in ages) for half_life in self.half_lives]


Clicks = list[list[tuple[int, int, float]]]  # batches of user, row, time
click_batches = st.lists(st.lists(st.tuples(st.integers(0, 2), row, st.integers(1, 99)), max_size=20), max_size=5)


def told(clicks: Clicks) -> Iterator[list[tuple[int, list[int], float]]]:
    """Batches of clicks with what each person had clicked before, latest first."""
    histories: dict[int, list[int]] = defaultdict(list)
    for batch in clicks:
        found = []
        for user, item, time in batch:
            found.append((item, histories[user][::-1][:NEAR], float(time)))
            histories[user].append(item)
        yield found


def as_tensors(batch: list[tuple[int, list[int], float]]) -> tuple[Any, Any, Any]:
    earlier = [before + [0] * (NEAR - len(before)) for _, before, _ in batch]
    return (
        torch.tensor([item for item, _, _ in batch], dtype=torch.int64),
        torch.tensor(earlier, dtype=torch.int64).view(len(batch), NEAR),
        torch.tensor([time for _, _, time in batch], dtype=torch.float64),
    )


def counted(clicks: Clicks, *, held: int = 16, half_lives: Sequence[int] = (2, 7)) -> Counts:
    counts = Counts(held, half_lives, CPU)
    counts.grow(ROWS)
    for batch in told(clicks):
        counts.add(*as_tensors(batch))
    return counts


def slowly(clicks: Clicks, half_lives: Sequence[int] = (2, 7)) -> Slow:
    slow = Slow(half_lives)
    for batch in told(clicks):
        slow.add(batch)
    return slow


class TestCounts:
    @given(click_batches)
    def test_all_tables_are_those_of_a_loop_over_clicks(self, clicks: Clicks) -> None:
        counts, slow = counted(clicks), slowly(clicks)
        for name, table in counts.tables.items():
            assert held_in(table) == slow.tables[name], name
            assert table.totals[:ROWS].tolist() == [sum(slow.tables[name][of].values()) for of in range(ROWS)]

    @given(click_batches, st.lists(st.integers(1, 12), min_size=1, max_size=3))
    def test_popularity_is_the_decayed_sum_at_every_half_life(self, clicks: Clicks, half_lives: list[int]) -> None:
        counts, slow = counted(clicks, half_lives=half_lives), slowly(clicks, half_lives)
        rows = torch.arange(ROWS)
        expected = [slow.popularity(of) for of in range(ROWS)]
        np.testing.assert_allclose(counts.popularity(rows), expected, rtol=1e-6)
        np.testing.assert_allclose(counts.popularity(rows[None, 3:5]), [expected[3:5]], rtol=1e-6)
        assert counts.clicks[:ROWS].tolist() == [slow.clicks(of) for of in range(ROWS)]

    @given(click_batches)
    def test_first_and_last_times_are_kept(self, clicks: Clicks) -> None:
        counts, slow = counted(clicks), slowly(clicks)
        for of in range(1, ROWS):
            assert counts.first_at[of] == slow.first_at.get(of, 0.0)
            assert counts.last_at[of] == slow.last_at.get(of, 0.0)

    @given(click_batches, st.integers(0, 1), st.sets(row, max_size=3), st.integers(0, 10))
    def test_popular_rows_come_best_first_without_blocked_ones(
        self, clicks: Clicks, half_life: int, gone: set[int], count: int
    ) -> None:
        counts, slow = counted(clicks), slowly(clicks)
        blocked = torch.zeros(len(counts), dtype=torch.bool)
        blocked[sorted(gone)] = True
        found = counts.popular(count, half_life, blocked).tolist()
        popularity = {of: slow.popularity(of)[half_life] for of in range(1, ROWS) if of not in gone}
        expected = sorted((value for value in popularity.values() if value), reverse=True)[:count]
        assert len(set(found)) == len(found)
        np.testing.assert_allclose([popularity[of] for of in found], expected, rtol=1e-9)

    def test_row_zero_is_never_counted(self) -> None:
        counts = counted([[(0, 0, 5), (0, 3, 6), (0, 0, 7)], [(0, 0, 8), (1, 0, 9)]])
        for part in (counts.clicks, counts.first_at, counts.last_at, counts.popularity(torch.arange(ROWS))):
            assert not part[0].any()
            assert part[3].all()
        assert all(not table.others[0].any() and not table.totals[0] for table in counts.tables.values())
        assert not any((table.totals > 0).any() for table in counts.tables.values())
        assert counts.popular(5, 0, torch.zeros(len(counts), dtype=torch.bool)).tolist() == [3]

    def test_scaling_the_growing_weights_back_changes_no_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clicks = [
            [(0, 1 + (7 * at + at // 3) % 5, at + 1) for at in range(start, start + 8)] for start in range(0, 400, 8)
        ]
        rows = torch.arange(ROWS)
        whole = counted(clicks, half_lives=(3, 50)).popularity(rows)
        monkeypatch.setattr(counts_module, "OVERFLOW", 10.0)
        rescaled = counted(clicks, half_lives=(3, 50))
        assert rescaled.to_state()["weights"].max() <= 10.0
        np.testing.assert_allclose(rescaled.popularity(rows), whole, rtol=1e-6)

    @pytest.mark.parametrize("batch", [1, 50, 3_000])
    def test_popularity_outlives_any_number_of_clicks_even_in_one_batch(self, batch: int) -> None:
        clicks = [(0, 1, 1.0)] * 2_999 + [(0, 2, 1.0)]
        counts = counted([clicks[start : start + batch] for start in range(0, 3_000, batch)], half_lives=(1, 1_000))
        np.testing.assert_allclose(counts.popularity(torch.tensor([1, 2]))[:, 0], [0.5, 0.5])
        assert torch.isfinite(counts.popularity(torch.arange(ROWS))).all()

    @given(click_batches, st.integers(1, 6), st.lists(row, max_size=6, unique=True))
    def test_followers_come_by_count_then_what_fills_up_each_once(
        self, clicks: Clicks, count: int, filled_with: list[int]
    ) -> None:
        counts, slow = counted(clicks), slowly(clicks)
        found = counts.followers_of(torch.arange(ROWS), count, filled_with=np.array(filled_with, np.int64))
        assert found.shape == (ROWS, count)
        for of, mine in enumerate(found.tolist()):
            followers = slow.tables["first"][of]
            named = [one for one in mine if one]
            assert mine == named + [0] * (count - len(named))
            heaviest = sorted(followers.values(), reverse=True)[:count]
            assert [followers[one] for one in named[: len(heaviest)]] == heaviest
            rest = [one for one in filled_with if one and one not in named[: len(heaviest)]]
            assert named[len(heaviest) :] == rest[: count - len(heaviest)]

    @given(click_batches, st.sets(st.integers(1, ROWS - 1), max_size=4))
    def test_forgotten_rows_are_as_if_never_seen_and_others_stay(self, clicks: Clicks, gone: set[int]) -> None:
        counts, slow = counted(clicks), slowly(clicks)
        counts.forget_rows(sorted(gone))
        kept = [of for of in range(ROWS) if of not in gone]
        for name, table in counts.tables.items():
            left = {of: {o: c for o, c in slow.tables[name][of].items() if o not in gone} for of in kept}
            assert held_in(table) == {of: others for of, others in left.items() if others}, name
        popularity = counts.popularity(torch.arange(ROWS))
        for part in (counts.clicks, counts.first_at, counts.last_at, popularity):
            assert not part[sorted(gone)].any()
        np.testing.assert_allclose(popularity[kept], [slow.popularity(of) for of in kept], rtol=1e-6)
        assert [counts.last_at[of] for of in kept[1:]] == [slow.last_at.get(of, 0.0) for of in kept[1:]]

    @given(click_batches, click_batches)
    def test_what_is_restored_goes_on_as_if_nothing_had_happened(self, first: Clicks, second: Clicks) -> None:
        whole, restored = counted(first), Counts(16, (2, 7), CPU)
        restored.load_state(whole.to_state())
        for batch in told(second):
            whole.add(*as_tensors(batch))
            restored.add(*as_tensors(batch))
        expected, found = whole.to_state(), restored.to_state()
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert found[name].tobytes() == array.tobytes(), name

    def test_what_was_saved_does_not_move_with_what_was_restored(self) -> None:
        counts, restored = counted([[(0, 1, 1), (0, 2, 2)]]), Counts(16, (2, 7), CPU)
        saved = {name: array.copy() for name, array in counts.to_state().items()}
        restored.load_state(saved)
        restored.add(*as_tensors([(3, [1], 5.0)]))
        assert all((saved[name] == array).all() for name, array in counts.to_state().items())

    @pytest.mark.parametrize("held", [1, 12, 16, 40])
    def test_restored_with_another_limit_it_goes_on(self, held: int) -> None:
        clicks: Clicks = [[(0, 1 + (at * at) % 7, at + 1) for at in range(60)]]
        counts, restored = counted(clicks), Counts(held, (2, 7), CPU)
        restored.load_state(counts.to_state())
        restored.add(*as_tensors([(8, [1, 2, 3], 100.0)]))
        for name, table in restored.tables.items():
            assert table.others.shape == table.counts.shape == (len(counts), table.held)
            assert len(table.totals) == len(counts)
            kept, before = held_in(table)[1], held_in(counts.tables[name])[1]
            assert kept.items() <= {**before, 8: kept.get(8)}.items()
        assert restored.tables["first"].others[1].tolist().count(8) == 1
        assert restored.last_at[8] == 100.0

    def test_it_grows_by_doubling_and_keeps_what_was_counted(self) -> None:
        counts = counted([[(0, 1, 1), (0, 2, 2)]])
        size = len(counts)
        counts.grow(size)
        assert len(counts) == size
        counts.grow(size + 1)
        assert len(counts) == 2 * size
        counts.add(*as_tensors([(2 * size - 1, [1], 9.0)]))
        assert held_in(counts.tables["first"]) == {1: {2: 1.0, 2 * size - 1: 1.0}}
        assert counts.clicks[[1, 2, 2 * size - 1]].tolist() == [1.0, 1.0, 1.0]
        assert counts.popularity(torch.tensor([2 * size - 1])).shape == (1, 2)


def test_rows_are_forgotten_in_pieces_as_they_would_be_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    tables = []
    for piece in (3, 4_096):
        monkeypatch.setattr(counts_module, "FORGOTTEN_ROWS", piece)
        table = HeavyHitters(6, torch.device("cpu"))
        table.grow(40)
        generator.manual_seed(4)
        table.others.random_(0, 40, generator=generator)
        table.counts.uniform_(0, 9, generator=generator)
        gone = torch.tensor([0, 3, 7, 39])
        slow_others, slow_counts = table.others.clone(), table.counts.clone()
        table.forget(gone)
        tables.append(table)
    lost = torch.isin(slow_others, gone.int()) & (slow_others > 0)
    slow_others[lost], slow_counts[lost] = 0, 0
    slow_others[gone], slow_counts[gone] = 0, 0
    assert all(torch.equal(table.others, slow_others) and torch.equal(table.counts, slow_counts) for table in tables)


def test_what_is_popular_is_found_anew_whenever_counts_or_blocked_rows_move():
    counts = Counts(8, (10, 100), torch.device("cpu"))
    counts.grow(1_024)
    blocked = torch.zeros(1_024, dtype=torch.bool)
    nothing = torch.zeros(3, NEAR, dtype=torch.int64)

    def add(*rows):
        counts.add(torch.tensor(rows), nothing[: len(rows)], torch.full((len(rows),), 1e9, dtype=torch.float64))

    def block():
        blocked[5] = True

    def popular():
        return counts.popular(3, 1, blocked).tolist()

    moves = [
        (lambda: add(5, 5, 6), [5, 6]),
        (lambda: add(6, 6), [6, 5]),
        (block, [6]),
        (lambda: counts.forget_rows([6]), []),
        (lambda: add(9), [9]),
        (lambda: counts.load_state({name: part.copy() for name, part in counts.to_state().items()}), [9]),
        (lambda: counts.grow(3_000), None),
    ]
    for move, expected in moves:
        popular()
        move()
        if expected is not None:
            assert popular() == expected
            assert counts.popular(3, 1, blocked) is counts.popular(3, 1, blocked)  # found once
    assert counts.popular(3, 1, torch.zeros(len(counts), dtype=torch.bool)).tolist() == [5, 9]
