"""All facts together: what a checkpoint holds, how they grow and forget, and whose the buffers are."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.learner.facts.store import ROWS_MIN, FeatureStore, no_clicks, no_queries
from online.learner.facts.tables import copy_of_rows
from online.learner.history import UserHistories
from tests.online.learner.facts.streams import NOBODY, START, Ask, Click, Move, Player, few, stream

seeds = st.integers(0, 2**32 - 1)


def restarted(player, **changed):
    """Another process with the same past."""
    again = Player(few(**changed), player.size)
    arrays, state = player.store.to_state()
    again.store.load_state(copy.deepcopy(arrays), copy.deepcopy(state))
    again.store.set_blocked(range(len(again.store)), player.store.items.blocked)
    again.histories.load_state(*copy.deepcopy(player.histories.to_state()))
    again.seen, again.flagged = copy.deepcopy(player.seen), player.flagged.copy()
    return again


def saved(player):
    arrays, state = player.store.to_state()
    return {name: (array.dtype, array.tobytes()) for name, array in arrays.items()}, state


# --- a checkpoint -------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=seeds, before=st.integers(0, 90), after=st.integers(1, 40), size=st.sampled_from([1, 7, 64]))
def test_what_is_restored_goes_on_bit_for_bit_as_if_nothing_had_happened(seed, before, after, size):
    player = Player(few(), size)
    player.play(stream(seed, before))
    again = restarted(player)
    assert saved(again) == saved(player)
    more = stream(seed ^ 1, after)
    assert again.play(more) == player.play(more)
    assert saved(again) == saved(player)


def test_what_was_saved_does_not_move_with_what_goes_on():
    player = Player(few(), 7)
    player.play(stream(1, 60))
    arrays, state = player.store.to_state()
    expected = copy.deepcopy((arrays, state))
    player.play(stream(2, 60))
    assert state == expected[1]
    for name, array in expected[0].items():
        assert np.array_equal(arrays[name], array), name


@pytest.mark.parametrize("successors_held", [1, 3, 9, 40])
def test_restored_with_other_limits_it_goes_on(successors_held):
    player = Player(few(successors_held=9), 7)
    player.play(stream(3, 80))
    again = restarted(player, successors_held=successors_held, neighbours_held=2)
    for table, before in zip(again.store.tables, player.store.tables, strict=True):
        assert (table.used <= table.held).all()
        assert np.array_equal(table.totals, before.totals)
    assert len(again.play(stream(4, 30))) == len(player.play(stream(4, 30)))


# --- rows ---------------------------------------------------------------------------------------------------------


def test_it_grows_by_doubling_and_keeps_what_was_counted():
    grown, whole = Player(few(), 7), Player(few(), 7)
    before, after = stream(5, 60), stream(6, 30)
    assert len(grown.store) == ROWS_MIN
    grown.play(before)
    grown.store.grow(ROWS_MIN)
    assert len(grown.store) == ROWS_MIN
    grown.store.grow(ROWS_MIN + 1)
    assert len(grown.store) == 2 * ROWS_MIN
    whole.play(before)
    assert grown.play(after) == whole.play(after)
    last = 2 * ROWS_MIN - 1
    grown.play([Click(0, last, START, START, trainable=True)])
    assert grown.store.items.clicks[last] == 1
    (found,) = grown.play([Ask(0, (START,), (START,))])
    assert last in found.rows


def test_a_larger_one_is_restored_into_a_new_one():
    player = Player(few(), 7)
    player.store.grow(5 * ROWS_MIN)
    player.play([Click(0, row, START, START, trainable=True) for row in (1, 5 * ROWS_MIN - 1, 2)])
    again = restarted(player)
    assert len(again.store) == len(player.store)
    assert saved(again) == saved(player)


@settings(max_examples=15)
@given(seed=seeds, gone=st.sets(st.integers(1, 11), min_size=1, max_size=3))
def test_of_forgotten_rows_nothing_is_left(seed, gone):
    player, rows = Player(few(), 7), sorted(gone)
    player.play(stream(seed, 60))
    player.play([Move("set_blocked", (rows, [True] * len(rows))), Move("forget_rows", rows)])
    store = player.store
    for table in store.tables:
        assert not np.isin(copy_of_rows(table, slice(None)).others, rows).any()
        assert not table.used[rows].any()
        assert not table.totals[rows].any()
    for part in (store.items.clicks, store.items.first_at, store.items.last_at, store.items.popular):
        assert not part[rows].any()
    assert not store.items.blocked[rows].any()
    for part in (store.items.top, store.log.items, store.log.last, store.log.before):
        assert not np.isin(part, rows).any()
    for answer in player.play([Ask(user, (START + 1e7,), (START,)) for user in (NOBODY, 0, 1, 2, 3)]):
        assert not gone & {*answer.rows, *answer.followers}


def test_row_zero_cannot_be_forgotten_nor_anything_with_it():
    player = Player(few(), 7)
    player.play(stream(7, 60))
    before = saved(player)
    player.store.forget_rows([0])
    assert saved(player) == before


def test_a_decay_of_one_changes_nothing_and_of_zero_leaves_no_counts():
    player = Player(few(), 7)
    player.play(stream(8, 60, moves=False))
    before, times = saved(player), player.store.items.first_at.copy()
    player.store.decay(1.0)
    assert saved(player) == before
    player.store.decay(0.0)
    assert not any(copy_of_rows(table, slice(None)).counts.any() or table.totals.any() for table in player.store.tables)
    assert not any(part.any() for part in (player.store.items.clicks, player.store.items.popular))
    assert player.store.popular(5, 0).tolist() == []
    assert np.array_equal(player.store.items.first_at, times)


# --- buffers ------------------------------------------------------------------------------------------------------


def advance(player, events):
    told, before, lists, seen = player.asked(events)
    return player.store.advance(player.histories, told, before, lists, flagged=player.flagged, seen=seen)


def arrays_of(found):
    for gathered in found:
        for part in gathered:
            yield from part if isinstance(part, tuple) else [] if part is None else [part]  # None: no content


def test_what_was_found_is_still_there_while_the_next_micro_batch_comes_in():
    """Two buffers in turn: after that the memory is used again."""
    player = Player(few(), 64)
    for seed in (1, 2):
        advance(player, stream(seed, 30, moves=False))  # makes room for all that follow
    found: list = []
    copied: list = []
    for seed in range(6):
        found.append(advance(player, stream(seed, 12, moves=False)))
        if seed > 0:
            for array, expected in zip(arrays_of(found[-2]), copied, strict=True):
                assert np.array_equal(array, expected)
        copied = [array.copy() for array in arrays_of(found[-1])]
    for number, before in enumerate(found[:-2]):
        for later, shared in ((1, False), (2, True)):
            for mine, theirs in zip(before, found[number + later], strict=True):
                assert np.shares_memory(mine.rows, theirs.rows) == shared
                assert np.shares_memory(mine.features, theirs.features) == shared


def test_a_part_of_what_was_found_is_that_of_its_queries():
    player = Player(few(), 64)
    player.play(stream(9, 80))
    clicks, lists = advance(player, stream(10, 20, moves=False))
    for found in (clicks, lists):
        N = len(found.starts) - 1
        whole = list(player.answers(found))
        for start, stop in ((0, N), (2, 5), (N - 1, N), (3, 3)):
            part = found.part(start, stop)
            assert len(part.followers) == stop - start
            assert list(player.answers(part)) == whole[start:stop]


def test_without_clicks_and_queries_nothing_is_gathered():
    store = FeatureStore(few())
    histories = UserHistories(64, 24)
    flagged = np.zeros(80, np.bool_)
    for found in store.advance(histories, no_clicks(), no_queries(), no_queries(), flagged=flagged):
        assert found.starts.tolist() == [0]
        assert len(found.rows) == len(found.features) == 0
    assert store.next_numbers(2).tolist() == [1, 2]


def test_features_are_as_wide_as_declared():
    store = FeatureStore(few(popularity_half_lives=(1, 2, 3)))
    assert store.width == FeatureStore(few(popularity_half_lives=(1,))).width + 2
