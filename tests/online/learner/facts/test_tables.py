"""Neighbour tables against plain dicts: exact while a row has room, and never too large beyond it."""

import copy
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.learner.facts.jit import kernel
from online.learner.facts.tables import (
    UNIT,
    copy_of_rows,
    count,
    decay,
    empty_table,
    forget_rows,
    grown_table,
    load_table,
    near_weight,
    neighbours,
    put_back,
    slab_sizes,
    table_to_state,
    uncount,
    with_room,
)
from tests.online.learner.facts.streams import SlowTable

ROWS = 9
WEIGHTS = (0.25, 0.5, 1.0, 3.0)  # sums of these are exact

row = st.integers(0, ROWS - 1)
pairs_counted = st.lists(st.tuples(row, row, st.sampled_from(WEIGHTS)), max_size=80)
gone_rows = st.sets(st.integers(1, ROWS - 1), min_size=1, max_size=4)


@kernel
def count_each(table, rows, others, weights):
    for k in range(len(rows)):
        count(table, rows[k], others[k], weights[k])


def count_all(table, rows, others, weights):
    table = with_room(table, len(rows))
    count_each(table, rows, others, weights)
    return table


@kernel
def uncount_all(table, rows, others, weights):
    for k in range(len(rows)):
        uncount(table, rows[k], others[k], weights[k])


def columns(pairs):
    rows, others, weights = zip(*pairs, strict=True) if pairs else ((), (), ())
    return np.array(rows, np.int64), np.array(others, np.int64), np.array(weights, np.float64)


def counted(pairs, held):
    return count_all(empty_table(ROWS, held), *columns(pairs))


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
        others, counts = (part.tolist() for part in neighbours(table, of))
        assert len(set(others)) == used
        assert all(others)
        if used:
            found[of] = list(zip(others, counts, strict=True))
    return found


def slabs_of(table):
    """Where slabs begin and end, those of rows and those in no use."""
    starts, sizes = UNIT * table.starts, table.sizes[table.classes]
    found = [(start, start + size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True) if size]
    for free, size in zip(table.free.tolist(), table.sizes.tolist(), strict=True):
        following = free
        while following >= 0:
            start = UNIT * following
            found.append((start, start + size))
            following = int(table.others[start])
    return sorted(found)


def held_in(table):
    return {of: dict(entries) for of, entries in places_of(table).items()}


def copy_of(table, held):
    saved = copy.deepcopy(table_to_state(table, len(table.used)))
    return load_table(empty_table(len(table.used), held), saved)


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
    table = count_all(table, *columns(pairs))
    assert held_in(table)[1][2] > 50


def test_among_equally_light_ones_the_place_moves_on():
    """The newcomers of a full row do not push out each other while older ones stay."""
    table = empty_table(100, 5)
    table = count_all(table, *columns([(1, other, 1.0) for other in range(2, 42)]))
    assert set(held_in(table)[1]) == set(range(37, 42))


def test_the_place_moves_on_however_much_was_counted():
    """In float32 the sum would stand still at 2^24."""
    table = empty_table(100, 5)
    table = count_all(table, *columns([(1, other, 1.0) for other in range(2, 7)]))
    table.totals[1] = 2.0**26
    table = count_all(table, *columns([(1, other, 1.0) for other in range(50, 55)]))
    assert table.totals[1] == 2.0**26 + 5
    assert set(held_in(table)[1]) == set(range(50, 55))


def test_row_zero_never_counts():
    table = counted([(0, 3, 1.0), (3, 0, 1.0), (0, 0, 1.0)], 2)
    uncount_all(table, *columns([(0, 3, 1.0), (3, 0, 1.0)]))
    assert not table.used.any()
    assert not table.totals.any()


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


# --- slabs --------------------------------------------------------------------------------------------------------

moved = st.one_of(
    st.tuples(st.just("count"), pairs_counted),
    st.tuples(st.just("forget"), gone_rows),
    st.tuples(st.just("decay"), st.sampled_from([0.5, 0.25])),
    st.tuples(st.just("restart"), st.just(None)),
    st.tuples(st.just("grow"), st.just(None)),
)


@settings(max_examples=200)
@given(moves=st.lists(moved, max_size=12), held=st.integers(1, 9))
def test_rows_that_move_from_slab_to_slab_are_plain_lists(moves, held):
    """Counted, forgotten, grown and restored in any order, with slabs that are left and taken again."""
    table, slow = empty_table(ROWS, held), SlowTable(held)
    for name, argument in moves:
        if name == "count":
            table = count_all(table, *columns(argument))
            for pair in argument:
                slow.count(*pair)
        elif name == "forget":
            forget_rows(table, np.isin(np.arange(len(table.used)), sorted(argument)))
            slow.forget(sorted(argument))
        elif name == "decay":
            decay(table, argument)
            slow.decay(argument)
        else:
            table = copy_of(table, held) if name == "restart" else grown_table(table, len(table.used) + 3)
        assert places_of(table) == {of: entries for of, entries in slow.rows.items() if entries}
        assert table.totals.tolist() == [slow.totals.get(of, 0.0) for of in range(len(table.used))]
        slabs = slabs_of(table)
        assert sum(end - start for start, end in slabs) == table.end[0]  # none is lost
        assert all(end <= start for (_, end), (start, _) in pairwise(slabs))  # and no place is in two of them


def test_a_slab_that_a_row_has_left_is_taken_again():
    def more(table, of, places):
        return count_all(table, *columns([(of, other, 1.0) for other in range(9 - places, 9)]))

    table = counted([(1, other, 1.0) for other in range(2, 8)], 8)
    assert table.end[0] == 2 + 4 + 6
    table = more(more(table, 2, 2), 3, 4)
    assert table.end[0] == 12 + 2  # row 2 takes the slab of 2, and row 3 a new one and then that of 4
    forget_rows(table, np.arange(ROWS) == 1)
    table = more(table, 4, 6)
    assert table.end[0] == 14 + 4  # row 4 takes the one that row 3 left, a new one, and that of row 1
    assert {of: len(others) for of, others in held_in(table).items()} == {2: 2, 3: 4, 4: 6}


def test_an_arena_that_grows_drops_the_slabs_in_no_use():
    table = counted([(of, other, 1.0) for of in range(1, ROWS) for other in range(1, ROWS)], ROWS)
    slack = int(table.end[0]) - int(table.sizes[table.classes].sum())
    assert slack > 0
    table = with_room(table, 1 + len(table.others))
    assert int(table.end[0]) == int(table.sizes[table.classes].sum())
    assert (table.free < 0).all()


def test_a_full_arena_says_so_and_writes_nowhere_else():
    table = with_room(empty_table(ROWS, 8), 1)  # room for two slabs of 8
    with pytest.raises(IndexError):
        count_each(table, *columns([(of, other, 1.0) for of in (1, 2, 3, 4, 5, 6, 7, 8) for other in range(1, 9)]))


@pytest.mark.parametrize("held", [1, 2, 3, 7, 8, 32, 64, 100, 128])
def test_sizes_of_slabs_rise_by_steps_and_end_at_the_most(held):
    sizes = slab_sizes(held).tolist()
    assert sizes[0] == 0
    assert 0 <= sizes[-1] - held < 2
    assert all(size % 2 == 0 for size in sizes)
    assert all(0 < after - before <= max(2, before) for before, after in pairwise(sizes))


@given(pairs=pairs_counted, more=pairs_counted, held=st.integers(1, 4))
def test_rows_that_are_put_back_are_what_they_were(pairs, more, held):
    table = with_room(counted(pairs, held), len(more))
    before, rows = places_of(table), np.arange(1, ROWS, 2)
    kept, totals = copy_of_rows(table, rows), table.totals.copy()
    count_each(table, *columns([pair for pair in more if pair[0] % 2]))
    put_back(table, rows, kept)
    assert places_of(table) == before
    assert np.array_equal(table.totals, totals)


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
    table = count_all(table, *columns(more))
    expected = exact([pair for pair in pairs if not {*pair[:2]} & gone] + more)
    for of, others in held_in(table).items():
        for other, counts in others.items():
            assert counts <= expected[of][other]


@given(pairs=pairs_counted, more=pairs_counted)
def test_decayed_counts_and_totals_are_a_part_of_themselves(pairs, more):
    table = counted(pairs, ROWS)
    decay(table, 0.5)
    table = count_all(table, *columns(more))
    halved = exact([(of, other, weight / 2) for of, other, weight in pairs] + more)
    assert held_in(table) == halved
    assert table.totals.tolist() == [sum(halved[of].values()) for of in range(ROWS)]


def test_grown_it_keeps_what_was_counted_and_counts_on():
    table = grown_table(counted([(1, 2, 1.0), (8, 3, 1.0)], 2), 40)
    assert all(len(part) == 40 for part in (table.starts, table.classes, table.used, table.totals))
    table = count_all(table, *columns([(39, 38, 1.0), (1, 2, 1.0)]))
    assert held_in(table) == {1: {2: 2.0}, 8: {3: 1.0}, 39: {38: 1.0}}
    assert table.totals[[1, 8, 39]].tolist() == [2.0, 1.0, 1.0]


@given(pairs=pairs_counted, more=pairs_counted, held=st.integers(1, 4), room=st.integers(0, 3))
def test_what_is_restored_goes_on_as_if_nothing_had_happened(pairs, more, held, room):
    table = counted(pairs, held)
    restored = copy_of(table, held)
    restored = count_all(restored, *columns(more))
    table = count_all(table, *columns(more))
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
    restored = count_all(restored, *columns([(1, 8, 100.0)]))
    assert held_in(restored)[1][8] >= 100.0


def test_what_was_saved_does_not_move_with_what_goes_on():
    table = counted([(1, 2, 1.0), (1, 3, 1.0)], 2)
    saved = table_to_state(table, ROWS)
    expected = copy.deepcopy(saved)
    restored = load_table(empty_table(ROWS, 2), saved)
    for one in (table, restored):
        count_all(one, *columns([(1, 4, 1.0), (2, 3, 1.0)]))
    for name, array in expected.items():
        assert np.array_equal(saved[name], array)
