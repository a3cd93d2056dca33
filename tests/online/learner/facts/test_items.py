"""What is counted of each item by itself, against loops over all clicks and sorts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.learner.facts.items import OVERFLOW, POPULAR, count_click, empty_items, items_to_state, load_items
from online.learner.facts.jit import kernel
from online.learner.facts.store import FeatureStore
from tests.online.learner.facts.streams import few

ROWS = 9
row = st.integers(0, ROWS - 1)
clicks_made = st.lists(st.tuples(row, st.integers(1, 99)), max_size=60)
half_lives_used = st.lists(st.integers(1, 12), min_size=1, max_size=3)
NO_PAIRS = np.zeros((1, 20), np.int64)


@kernel
def count_all(items, rows, active):
    for k in range(len(rows)):
        count_click(items, rows[k], active[k])


def click(items, rows, active=None):
    rows = np.asarray(rows, np.int64)
    count_all(items, rows, np.ones(len(rows)) if active is None else np.asarray(active, np.float64))


def counted(clicks, half_lives, rows=ROWS):
    items = empty_items(rows, half_lives)
    click(items, [one for one, _ in clicks], [active for _, active in clicks])
    return items


def popularity(rows, half_life, size=ROWS):
    """Each click counts half for every half-life of clicks since."""
    found = np.zeros(size)
    for at, one in enumerate(rows):
        if one:
            found[one] += 0.5 ** ((len(rows) - at) / half_life)
    return found


def lists_are_those_of_a_sort(items):
    for half_life, top in enumerate(items.top):
        values = np.where(items.blocked, 0.0, items.popular[:, half_life])
        named = top[top > 0]
        assert not top[len(named) :].any()
        assert len(set(named.tolist())) == len(named)
        assert values[named].tolist() == np.sort(values[values > 0])[::-1][:POPULAR].tolist()


# --- each item ----------------------------------------------------------------------------------------------------


@given(clicks=clicks_made, half_lives=half_lives_used)
def test_popularity_is_the_decayed_sum_at_every_half_life(clicks, half_lives):
    items = counted(clicks, half_lives)
    rows = [one for one, _ in clicks]
    for number, half_life in enumerate(half_lives):
        found = items.popular[:, number] / items.weights[number]
        np.testing.assert_allclose(found, popularity(rows, half_life), rtol=1e-9, atol=1e-12)
    assert items.clicks.tolist() == [rows.count(of) if of else 0 for of in range(ROWS)]
    lists_are_those_of_a_sort(items)


@given(clicks=clicks_made)
def test_first_and_last_click_follow_timestamps_also_of_late_clicks(clicks):
    items = counted(clicks, [5])
    for of in range(1, ROWS):
        times = [active for one, active in clicks if one == of]
        assert items.first_at[of] == min(times, default=0)
        assert items.last_at[of] == max(times, default=0)


def test_a_click_on_an_item_without_a_row_lets_all_others_age_and_counts_nothing():
    items = counted([(3, 5), (0, 6), (0, 7)], [2])
    for part in (items.clicks, items.first_at, items.last_at, items.popular):
        assert not part[0].any()
        assert part[3].all()
    assert items.popular[3, 0] / items.weights[0] == pytest.approx(0.5**1.5)
    assert items.top[0, :2].tolist() == [3, 0]


def test_popularity_fades_to_float32_precision_at_every_half_life():
    half_lives = (3, 30, 3_000, 300_000)
    rows = [1 + 7 * at % 8 for at in range(5_000)] + [1 + at * at % 8 for at in range(32)]
    items = counted([(one, 1) for one in rows], half_lives)
    for number, half_life in enumerate(half_lives):
        found = items.popular[:, number] / items.weights[number]
        np.testing.assert_allclose(found, popularity(rows, half_life), rtol=1e-6, atol=1e-12)


def test_scaling_down_changes_no_value():
    """By a half-life of 3 that is each 120 clicks."""
    random = np.random.default_rng(2)
    items, scaled = empty_items(ROWS, [3]), 0
    for _ in range(600):
        before, weight, one = items.popular[:, 0] / items.weights[0], items.weights[0], int(random.integers(1, ROWS))
        click(items, [one])
        scaled += items.weights[0] < weight
        expected = before * 0.5 ** (1 / 3)
        expected[one] += 0.5 ** (1 / 3)
        np.testing.assert_allclose(items.popular[:, 0] / items.weights[0], expected, rtol=1e-12, atol=1e-150)
        assert 1 <= items.weights[0] <= OVERFLOW
        lists_are_those_of_a_sort(items)
    assert scaled >= 4


def test_popularity_outlives_any_number_of_clicks():
    items = counted([(1, 1)] * 2_999 + [(2, 1)], [1, 1_000])
    np.testing.assert_allclose(items.popular[[1, 2], 0] / items.weights[0], [0.5, 0.5])
    assert np.isfinite(items.popular).all()


def test_items_that_count_nothing_are_in_no_list_and_a_restart_changes_none():
    items = empty_items(ROWS, [1, 50])
    click(items, [1, 2, 3, 4, 3])
    for _ in range(40):
        click(items, [5, 6] * 30)
        restored = empty_items(ROWS, [1, 50])
        load_items(restored, items_to_state(items, ROWS))
        assert np.array_equal(restored.top, items.top)
        lists_are_those_of_a_sort(items)
    assert set(items.top[0].tolist()) == {0, 5, 6}


# --- the most popular ---------------------------------------------------------------------------------------------


moves = st.one_of(
    st.tuples(st.just("click"), st.lists(row, min_size=1, max_size=6)),
    st.tuples(st.just("block"), st.sets(st.integers(1, ROWS - 1), min_size=1, max_size=3)),
    st.tuples(st.just("release"), st.sets(st.integers(1, ROWS - 1), min_size=1, max_size=3)),
    st.tuples(st.just("forget"), st.sets(st.integers(1, ROWS - 1), min_size=1, max_size=2)),
    st.tuples(st.just("take back"), st.integers(0, 30)),
    st.tuples(st.just("decay"), st.sampled_from([0.0, 0.3, 0.9])),
    st.tuples(st.just("restart"), st.none()),
)


@settings(max_examples=60)
@given(happened=st.lists(moves, max_size=15))
def test_lists_are_those_of_a_sort_after_anything_that_may_happen(happened):
    store = FeatureStore(few(popularity_half_lives=(2, 7)))
    sequence, blocked = [], np.zeros(len(store), np.bool_)
    for name, argument in happened:
        if name == "click":
            click(store.items, argument)
            sequence += [[one, 1.0] for one in argument]
        elif name in ("block", "release"):
            rows = sorted(argument)
            blocked[rows] = name == "block"
            store.set_blocked(rows, [name == "block"] * len(rows))
        elif name == "forget":
            store.forget_rows(sorted(argument))
            blocked[sorted(argument)] = False
            for one in sequence:
                one[1] *= one[0] not in argument
        elif name == "take back" and argument < len(sequence) and sequence[argument][1] == 1.0:
            age = float(len(sequence) - 1 - argument)
            rows = np.array([sequence[argument][0]])
            store.take_back(rows, NO_PAIRS, np.array([age]), np.zeros(0, np.int64))
            sequence[argument][1] = 0.0
        elif name == "decay":
            store.decay(argument)
            for one in sequence:
                one[1] *= argument
        elif name == "restart":
            arrays, state = store.to_state()
            store = FeatureStore(few(popularity_half_lives=(2, 7)))
            store.load_state({key: array.copy() for key, array in arrays.items()}, state)
            store.set_blocked(range(len(store)), blocked)
        assert np.array_equal(store.items.blocked, blocked)
        lists_are_those_of_a_sort(store.items)
        for number, half_life in enumerate((2, 7)):
            expected = np.zeros(ROWS)
            for at, (one, counts) in enumerate(sequence):
                expected[one] += counts * 0.5 ** ((len(sequence) - at) / half_life)
            expected[0] = 0
            np.testing.assert_allclose(store.popularity_by(number, ROWS), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("half_lives", [(3, 50), (100, 100_000)])
def test_lists_are_exact_where_there_are_more_items_than_places(half_lives):
    random = np.random.default_rng(1)
    store = FeatureStore(few(popularity_half_lives=half_lives))
    for _ in range(120):
        click(store.items, (2 * POPULAR * random.random(40) ** random.choice([1, 3])).astype(np.int64))
        lists_are_those_of_a_sort(store.items)
        store.set_blocked(random.integers(1, 2 * POPULAR, 2).tolist(), [True, False])
        lists_are_those_of_a_sort(store.items)
    assert store.items.top.all()


def test_the_most_popular_come_best_first_without_those_that_must_not_be_listed():
    store = FeatureStore(few(popularity_half_lives=(10, 100)))
    click(store.items, [5, 5, 6])
    assert store.popular(3, 1).tolist() == [5, 6]
    click(store.items, [6, 6])
    assert store.popular(3, 1).tolist() == [6, 5]
    store.set_blocked([5], [True])
    assert store.popular(3, 1).tolist() == [6]
    click(store.items, [5, 5, 5, 5])  # which is counted all the same
    assert store.popular(3, 1).tolist() == [6]
    store.forget_rows([6])
    assert store.popular(3, 1).tolist() == []
    click(store.items, [9])
    assert store.popular(3, 1).tolist() == [9]
    store.grow(3_000)
    click(store.items, [2_999, 2_999])
    assert store.popular(3, 1).tolist() == [2_999, 9]
    store.set_blocked([5], [False])
    assert store.popular(1, 1).tolist() == [5]


# --- what is taken back -------------------------------------------------------------------------------------------


def test_an_item_whose_only_click_is_taken_back_was_never_clicked():
    store = FeatureStore(few())
    click(store.items, [3, 4, 3, 0], [5.0, 6.0, 7.0, 8.0])
    store.take_back(np.array([4]), NO_PAIRS, np.array([2.0]), np.zeros(0, np.int64))
    for part in (store.items.clicks, store.items.first_at, store.items.last_at, store.items.popular):
        assert not part[4].any()
        assert part[3].all()


def test_a_click_that_is_to_stay_is_not_taken_back():
    store = FeatureStore(few())
    click(store.items, [3, 4])
    expected = items_to_state(store.items, ROWS)
    store.take_back(np.array([3]), NO_PAIRS, np.array([-1.0]), np.zeros(0, np.int64))
    for name, array in items_to_state(store.items, ROWS).items():
        assert np.array_equal(array, expected[name])
