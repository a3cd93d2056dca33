"""Neighbour tables against plain dicts: exact while a row has room, and never too large beyond it."""

import copy
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.learner.facts.jit import kernel
from online.learner.facts.tables import (
    count,
    decay,
    empty_table,
    forget_rows,
    grown_table,
    load_table,
    near_weight,
    table_to_state,
    uncount,
)
from tests.online.learner.facts.streams import SlowTable

ROWS = 9
WEIGHTS = (0.25, 0.5, 1.0, 3.0)  # sums of these are exact

row = st.integers(0, ROWS - 1)
pairs_counted = st.lists(st.tuples(row, row, st.sampled_from(WEIGHTS)), max_size=80)
gone_rows = st.sets(st.integers(1, ROWS - 1), min_size=1, max_size=4)


@kernel
def count_all(table, rows, others, weights):
    for k in range(len(rows)):
        count(table, rows[k], others[k], weights[k])


@kernel
def uncount_all(table, rows, others, weights):
    for k in range(len(rows)):
        uncount(table, rows[k], others[k], weights[k])


def columns(pairs):
    rows, others, weights = zip(*pairs, strict=True) if pairs else ((), (), ())
    return np.array(rows, np.int64), np.array(others, np.int64), np.array(weights, np.float64)


def counted(pairs, held):
    table = empty_table(ROWS, held)
    count_all(table, *columns(pairs))
    return table


def exact(pairs):
    found = defaultdict(Counter)
    for of, other, weight in pairs:
        if of and other:
            found[of][other] += weight
    return found


def places_of(table):
    """Of each row with any, the others and their counts, in their places; each stands there once."""
    found = {}
    for of, used in enumerate(table.used.tolist()):
        others, counts = table.others[of, :used].tolist(), table.counts[of, :used].tolist()
        assert len(set(others)) == used
        assert all(others)
        if used:
            found[of] = list(zip(others, counts, strict=True))
    return found


def held_in(table):
    return {of: dict(entries) for of, entries in places_of(table).items()}


def copy_of(table, held):
    new = empty_table(len(table.used), held)
    load_table(new, copy.deepcopy(table_to_state(table, len(table.used))))
    return new


def same(one, other):
    return places_of(one) == places_of(other) and np.array_equal(one.totals, other.totals)


# --- counting -----------------------------------------------------------------------------------------------------


@given(pairs=pairs_counted)
def test_while_a_row_has_room_its_counts_are_exact(pairs):
    table, expected = counted(pairs, ROWS), exact(pairs)
    assert held_in(table) == expected
    assert table.totals.tolist() == [sum(expected[of].values()) for of in range(ROWS)]


@given(pairs=pairs_counted, held=st.integers(1, 4))
def test_counts_are_never_too_large_and_rows_are_as_full_as_they_can_be(pairs, held):
    table, expected = counted(pairs, held), exact(pairs)
    found = held_in(table)
    assert found.keys() == expected.keys()
    for of, others in expected.items():
        assert table.totals[of] == sum(others.values())
        assert len(found[of]) == min(held, len(others))
        for other, counts in found[of].items():
            assert 0 < counts <= others[other]


@given(pairs=pairs_counted, held=st.integers(1, 4))
def test_every_place_is_that_of_a_list_in_which_newcomers_take_the_lightest(pairs, held):
    table, slow = counted(pairs, held), SlowTable(held)
    for of, other, weight in pairs:
        slow.count(of, other, weight)
    assert places_of(table) == {of: entries for of, entries in slow.rows.items() if entries}


def test_in_a_full_row_a_newcomer_takes_the_lightest_place_at_its_own_weight():
    table = counted([(1, 2, 1.0), (1, 3, 50.0), (1, 4, 3.0)], 2)
    assert held_in(table) == {1: {3: 50.0, 4: 3.0}}
    assert table.totals[1] == 54.0  # also what is held no longer


def test_what_comes_back_again_and_again_stays_among_what_comes_once():
    random = np.random.default_rng(0)
    pairs = []
    for newcomer in range(3, 400):
        pairs += [(1, newcomer, 1.0)] + [(1, 2, 1.0)] * int(random.random() < 0.3)
    table = empty_table(400, 8)
    count_all(table, *columns(pairs))
    assert held_in(table)[1][2] > 50


def test_among_equally_light_ones_the_place_moves_on():
    """The newcomers of a full row do not push out each other while older ones stay."""
    table = empty_table(100, 5)
    count_all(table, *columns([(1, other, 1.0) for other in range(2, 42)]))
    assert set(held_in(table)[1]) == set(range(37, 42))


def test_the_place_moves_on_however_much_was_counted():
    """In float32 the sum would stand still at 2^24."""
    table = empty_table(100, 5)
    count_all(table, *columns([(1, other, 1.0) for other in range(2, 7)]))
    table.totals[1] = 2.0**26
    count_all(table, *columns([(1, other, 1.0) for other in range(50, 55)]))
    assert table.totals[1] == 2.0**26 + 5
    assert set(held_in(table)[1]) == set(range(50, 55))


def test_row_zero_never_counts():
    table = counted([(0, 3, 1.0), (3, 0, 1.0), (0, 0, 1.0)], 2)
    uncount_all(table, *columns([(0, 3, 1.0), (3, 0, 1.0)]))
    assert not any(part.any() for part in table)


@given(pairs=pairs_counted, kept=st.lists(st.booleans(), min_size=80, max_size=80))
def test_what_is_counted_less_was_never_counted_where_nothing_was_evicted(pairs, kept):
    table = counted(pairs, ROWS)
    uncount_all(table, *columns([pair for pair, stays in zip(pairs, kept, strict=False) if not stays]))
    expected = exact([pair for pair, stays in zip(pairs, kept, strict=False) if stays])
    assert held_in(table) == {of: others for of, others in expected.items() if others}
    assert table.totals.tolist() == [sum(expected[of].values()) for of in range(ROWS)]


@given(pairs=pairs_counted, held=st.integers(1, 3), kept=st.lists(st.booleans(), min_size=80, max_size=80))
def test_counted_less_in_full_rows_it_is_never_too_large(pairs, held, kept):
    """What is no longer held stays gone, and nothing stands at 0 or below."""
    table = counted(pairs, held)
    uncount_all(table, *columns([pair for pair, stays in zip(pairs, kept, strict=False) if not stays]))
    expected = exact([pair for pair, stays in zip(pairs, kept, strict=False) if stays])
    for of, others in held_in(table).items():
        for other, counts in others.items():
            assert 0 < counts <= expected[of][other]


@pytest.mark.parametrize("held", [1, 20])
def test_weights_by_distance_are_taken_back_however_often_they_were_counted(held):
    """Their sums are rounded; what is left of rounding is nothing."""
    pairs = [(1, 2, near_weight(distance)) for distance in range(1, 21)] * 20
    table = counted(pairs, held)
    uncount_all(table, *columns(pairs[::-1]))
    assert held_in(table) == {}
    assert table.totals[1] == pytest.approx(0, abs=1e-6)


def test_near_weights_fall_with_the_root_of_the_distance():
    assert [near_weight(distance) for distance in (1, 4, 16)] == [1.0, 0.5, 0.25]


# --- all rows -----------------------------------------------------------------------------------------------------


@given(pairs=pairs_counted, gone=gone_rows, more=pairs_counted)
def test_forgotten_rows_are_as_if_never_seen(pairs, gone, more):
    table, flags = counted(pairs, 3), np.isin(np.arange(ROWS), sorted(gone))
    before, totals = held_in(table), table.totals.copy()
    forget_rows(table, flags)
    left = {of: {o: c for o, c in others.items() if o not in gone} for of, others in before.items() if of not in gone}
    assert held_in(table) == {of: others for of, others in left.items() if others}
    assert not table.totals[flags].any()
    assert np.array_equal(table.totals[~flags], totals[~flags])
    count_all(table, *columns(more))
    expected = exact([pair for pair in pairs if not {*pair[:2]} & gone] + more)
    for of, others in held_in(table).items():
        for other, counts in others.items():
            assert counts <= expected[of][other]


@given(pairs=pairs_counted, more=pairs_counted)
def test_decayed_counts_and_totals_are_a_part_of_themselves(pairs, more):
    table = counted(pairs, ROWS)
    decay(table, 0.5)
    count_all(table, *columns(more))
    halved = exact([(of, other, weight / 2) for of, other, weight in pairs] + more)
    assert held_in(table) == halved
    assert table.totals.tolist() == [sum(halved[of].values()) for of in range(ROWS)]


def test_grown_it_keeps_what_was_counted_and_counts_on():
    table = grown_table(counted([(1, 2, 1.0), (8, 3, 1.0)], 2), 40)
    assert all(len(part) == 40 for part in table)
    count_all(table, *columns([(39, 38, 1.0), (1, 2, 1.0)]))
    assert held_in(table) == {1: {2: 2.0}, 8: {3: 1.0}, 39: {38: 1.0}}
    assert table.totals[[1, 8, 39]].tolist() == [2.0, 1.0, 1.0]


@given(pairs=pairs_counted, more=pairs_counted, held=st.integers(1, 4), room=st.integers(0, 3))
def test_what_is_restored_goes_on_as_if_nothing_had_happened(pairs, more, held, room):
    table = counted(pairs, held)
    restored = copy_of(table, held)
    count_all(restored, *columns(more))
    count_all(table, *columns(more))
    assert same(restored, table)
    assert held_in(copy_of(table, held + room)) == held_in(table)  # with more places all are kept


@settings(max_examples=50)
@given(pairs=pairs_counted, held=st.integers(1, 4))
def test_restored_with_fewer_places_the_heaviest_are_kept(pairs, held):
    whole = counted(pairs, ROWS)
    restored = copy_of(whole, held)
    assert np.array_equal(restored.totals, whole.totals)
    for of, others in held_in(whole).items():
        kept = held_in(restored)[of]
        assert kept.items() <= others.items()
        assert sorted(kept.values()) == sorted(others.values())[-held:]
    count_all(restored, *columns([(1, 8, 100.0)]))
    assert held_in(restored)[1][8] >= 100.0


def test_what_was_saved_does_not_move_with_what_goes_on():
    table = counted([(1, 2, 1.0), (1, 3, 1.0)], 2)
    saved = table_to_state(table, ROWS)
    expected = copy.deepcopy(saved)
    restored = empty_table(ROWS, 2)
    load_table(restored, saved)
    for one in (table, restored):
        count_all(one, *columns([(1, 4, 1.0), (2, 3, 1.0)]))
    for name, array in expected.items():
        assert np.array_equal(saved[name], array)
