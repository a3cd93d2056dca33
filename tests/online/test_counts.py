"""Counts against plain dicts and sums: popularity exactly, successors within space-saving's bound."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online import counts as counts_module
from online.counts import Counts

ROWS = 9
pairs = st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS - 1)), max_size=120)


def counted(clicks, *, held=3, half_life=7):
    counts = Counts(held, half_life)
    counts.grow(ROWS)
    for previous, row in clicks:
        counts.add(previous, row)
    return counts


def naive_popularity(clicks, half_life):
    known = [row for _, row in clicks if row]
    expected = np.zeros(ROWS)
    for at, row in enumerate(known):
        expected[row] += 0.5 ** ((len(known) - at) / half_life)
    return expected


@given(pairs, st.integers(1, 50))
def test_popularity_is_the_decayed_sum(clicks, half_life):
    counts = counted(clicks, half_life=half_life)
    expected = naive_popularity(clicks, half_life)
    np.testing.assert_allclose(counts.recent_popularity(np.arange(ROWS)), expected, rtol=1e-9)
    best = [int(row) for row in np.lexsort((np.arange(ROWS), -expected)) if expected[row] > 0]
    for count in (0, 1, 3, ROWS, 50):
        assert counts.popular(count).tolist() == best[:count]


def test_scaling_the_growing_weight_back_changes_no_order_and_no_value(monkeypatch):
    clicks = [(0, 1 + number % 5) for number in range(400)]
    expected = counted(clicks, half_life=3).recent_popularity(np.arange(ROWS))
    monkeypatch.setattr(counts_module, "RESCALE_ABOVE", 10.0)
    rescaled = counted(clicks, half_life=3)
    assert rescaled.weight <= 10.0
    np.testing.assert_allclose(rescaled.recent_popularity(np.arange(ROWS)), expected, rtol=1e-9)


def test_popularity_outlives_any_number_of_clicks():
    counts = Counts(2, 1)  # the weight doubles with every click
    counts.grow(3)
    for _ in range(3_000):
        counts.add(0, 1)
    counts.add(0, 2)
    assert np.isfinite(counts.popularity).all()
    np.testing.assert_allclose(counts.recent_popularity(np.array([1, 2])), [0.5, 0.5])


@given(pairs, st.integers(1, 5))
def test_space_saving_never_counts_too_little_and_too_much_only_by_its_bound(clicks, held):
    counts = counted(clicks, held=held)
    exact = [Counter(row for previous, row in clicks if previous == of and row) for of in range(ROWS)]
    for of in range(1, ROWS):
        total = sum(exact[of].values())
        assert counts.follow_totals[of] == total
        table = {
            int(row): float(count)
            for row, count in zip(counts.followers[of], counts.follow_counts[of], strict=True)
            if row
        }
        assert len(table) == min(held, len(exact[of]))
        assert sum(table.values()) == total
        for row, count in table.items():
            assert exact[of][row] <= count <= exact[of][row] + total / held
        for row, count in exact[of].items():
            if count > total / held:
                assert row in table
    assert not counts.followers[0].any()


@given(pairs)
def test_with_room_for_all_successors_counts_are_exact(clicks):
    counts = counted(clicks, held=ROWS)
    for of in range(1, ROWS):
        exact = Counter(row for previous, row in clicks if previous == of and row)
        table = dict(zip(counts.followers[of].tolist(), counts.follow_counts[of].tolist(), strict=True))
        table.pop(0, None)
        assert table == exact


@given(pairs, st.integers(1, 6))
def test_followers_come_by_count_then_what_fills_up_each_once(clicks, count):
    counts = counted(clicks, held=4)
    filled_with = counts.popular(5)
    rows = np.arange(ROWS)
    found = counts.followers_of(rows, count, filled_with=filled_with)
    for of in rows:
        order = np.argsort(-counts.follow_counts[of], kind="stable")[:count]
        expected = list(dict.fromkeys(int(r) for r in [*counts.followers[of][order], *filled_with] if r))[:count]
        assert found[of].tolist() == expected + [0] * (count - len(expected))


@given(pairs, st.sets(st.integers(1, ROWS - 1), max_size=4))
def test_forgotten_rows_are_as_if_never_seen_and_others_stay(clicks, gone):
    counts, before = counted(clicks), counted(clicks)
    counts.forget_rows(sorted(gone))
    kept = np.array([row for row in range(ROWS) if row not in gone])
    assert not set(counts.followers.ravel().tolist()) & gone
    assert not counts.follow_counts[counts.followers == 0].any()
    assert counts.popularity[list(gone)].sum() == counts.follow_totals[list(gone)].sum() == 0
    np.testing.assert_array_equal(counts.popularity[kept], before.popularity[kept])
    for of in kept:
        stayed = {
            row: count
            for row, count in zip(before.followers[of], before.follow_counts[of], strict=True)
            if row and row not in gone
        }
        assert {r: c for r, c in zip(counts.followers[of], counts.follow_counts[of], strict=True) if r} == stayed


@given(pairs, pairs)
def test_what_is_restored_goes_on_as_if_nothing_had_happened(first, second):
    whole, stopped, restored = counted(first), counted(first), Counts(3, 7)
    restored.load_state({name: array.copy() for name, array in stopped.to_state().items()})
    for previous, row in second:
        whole.add(previous, row)
        restored.add(previous, row)
    for name, array in whole.to_state().items():
        assert restored.to_state()[name].tobytes() == array.tobytes()
        assert restored.to_state()[name].dtype == array.dtype


@pytest.mark.parametrize("held", [1, 2, 5, 8])
def test_restored_with_other_limits_the_heaviest_successors_are_kept(held):
    clicks = [(1, row) for row, times in ((2, 3), (3, 9), (4, 1), (5, 5), (6, 4)) for _ in range(times)]
    restored = Counts(held, 7)
    restored.load_state(counted(clicks, held=5).to_state())
    assert restored.followers.shape == restored.follow_counts.shape == (ROWS, held)
    order = restored.followers_of(np.array([1]), held, filled_with=np.zeros(0, np.int64))[0]
    assert order.tolist() == ([3, 5, 6, 2, 4] + [0] * 3)[:held]
    assert restored.follow_totals[1] == 22
    restored.add(1, 7)
    assert 7 in restored.followers[1]


def test_growing_keeps_what_was_counted():
    counts = counted([(1, 2), (2, 3), (1, 2)])
    before = {name: array.copy() for name, array in counts.to_state().items()}
    counts.grow(ROWS - 3)
    counts.grow(40)
    for name, array in counts.to_state().items():
        assert array[: len(before[name])].tobytes() == before[name].tobytes()
    counts.add(39, 38)
    assert counts.followers[39, 0] == 38


def test_row_zero_is_never_counted():
    counts = counted([(1, 0), (0, 0)])
    assert not counts.popularity.any()
    assert counts.weight == 1.0
    assert counts.popular(5).tolist() == []
