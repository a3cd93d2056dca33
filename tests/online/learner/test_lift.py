"""Clicks by expected clicks, against a plain dictionary."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.lift import HALF_LIFE, PRIOR, Lift

ROWS = 6
batches = st.lists(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, ROWS - 1), min_size=1, max_size=4, unique=True),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=5,
    ),
    max_size=6,
)


def lift():
    found = Lift()
    found.grow(ROWS)
    return found


def add(lift, candidates, shares, clicked):
    """Candidates' rows of each click and their shares; the rest of 5 places is filled with row 0, as the model does."""
    rows, filled = np.zeros((len(clicked), 5), np.int64), np.zeros((len(clicked), 5), np.float32)
    for at, (mine, its) in enumerate(zip(candidates, shares, strict=True)):
        rows[at, : len(mine)], filled[at, : len(mine)] = mine, its
    lift.add(rows, filled, np.array(clicked))


@given(batches)
def test_clicks_and_shares_add_up_and_fade_with_each_click(given_batches):
    fast, clicked, expected = lift(), defaultdict(float), defaultdict(float)
    for batch in given_batches:
        fading = 2 ** (-len(batch) / HALF_LIFE)
        for counts in (clicked, expected):
            for row in counts:
                counts[row] *= fading
        chosen = [candidates[which % len(candidates)] for candidates, which in batch]
        for (candidates, _), row in zip(batch, chosen, strict=True):
            clicked[row] += 1
            for one in candidates:
                expected[one] += 1 / len(candidates)
        every = [candidates for candidates, _ in batch]
        add(fast, every, [[1 / len(mine)] * len(mine) for mine in every], chosen)
    slow = [math.log((clicked[row] + PRIOR) / (expected[row] + PRIOR)) for row in range(ROWS)]
    assert fast.of(np.arange(ROWS)).tolist() == pytest.approx(slow, abs=1e-5)


def test_counts_that_were_scaled_down_say_the_same():
    """A click counts more and more, until all counts are scaled down."""
    found, clicked, expected = lift(), np.zeros(ROWS), np.zeros(ROWS)
    for step in range(80):
        row, N = 1 + step % 3, 1_000
        clicked, expected = (counts * 2 ** (-N / HALF_LIFE) for counts in (clicked, expected))
        add(found, [[1, 2]] * N, [[0.75, 0.25]] * N, [row] * N)
        clicked[row] += N
        expected[[1, 2]] += 0.75 * N, 0.25 * N
    assert found.of(np.arange(ROWS)) == pytest.approx(np.log((clicked + PRIOR) / (expected + PRIOR)), abs=1e-3)


def test_nothing_is_known_at_first_and_of_rows_that_are_handed_out_again():
    found = lift()
    add(found, [[1, 2]], [[0.5, 0.5]], [1])
    assert np.sign(found.of(np.array([1, 2, 3]))).tolist() == [1, -1, 0]
    found.forget_rows([1, 2])
    assert found.of(np.arange(ROWS)).tolist() == [0] * ROWS


def test_row_0_is_nothing_and_says_nothing():
    found = lift()
    add(found, [[0, 2]], [[0.5, 0.5]], [0])
    assert found.of(np.array([0])) == 0


def test_it_outlives_a_restart_and_growth():
    found, again = lift(), lift()
    add(found, [[1, 2]], [[0.9, 0.1]], [2])
    again.load_state({name: array.copy() for name, array in found.to_state().items()})
    for one in (found, again):
        one.grow(2 * ROWS)
        add(one, [[1, 2 * ROWS - 1]], [[0.9, 0.1]], [2 * ROWS - 1])
    rows = np.arange(2 * ROWS)
    assert np.array_equal(found.of(rows), again.of(rows))
    assert found.of(rows)[[2, -1]].min() > 0
