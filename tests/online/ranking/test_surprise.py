"""Clicks by expected clicks, against a plain dictionary; and that the scorer tells them apart from guarded ones."""

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.ranking.surprise import HALF_LIFE, PRIOR, Surprises

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


def surprises():
    found = Surprises(torch.device("cpu"))
    found.grow(ROWS)
    return found


@given(batches)
def test_clicks_and_shares_add_up_and_fade_with_each_click(given_batches):
    fast, clicked, expected = surprises(), defaultdict(float), defaultdict(float)
    for batch in given_batches:
        fading = 2 ** (-len(batch) / HALF_LIFE)
        for counts in (clicked, expected):
            for row in counts:
                counts[row] *= fading
        rows, shares, chosen = [], [], []
        for candidates, which in batch:
            chosen.append(candidates[which % len(candidates)])
            clicked[chosen[-1]] += 1
            for row in candidates:
                rows.append(row)
                shares.append(1 / len(candidates))
                expected[row] += 1 / len(candidates)
        fast.add(torch.tensor(rows), torch.tensor(shares), torch.tensor(chosen))
    slow = [math.log((clicked[row] + PRIOR) / (expected[row] + PRIOR)) for row in range(ROWS)]
    assert fast.of(torch.arange(ROWS)).tolist() == pytest.approx(slow, abs=1e-5)


def test_nothing_is_known_at_first_and_of_rows_that_are_handed_out_again():
    found = surprises()
    found.add(torch.tensor([1, 2]), torch.tensor([0.5, 0.5]), torch.tensor([1]))
    assert found.of(torch.tensor([1, 2, 3])).sign().tolist() == [1, -1, 0]
    found.forget_rows(torch.tensor([1, 2]))
    assert found.of(torch.arange(ROWS)).tolist() == [0] * ROWS


def test_it_outlives_a_restart_and_growth():
    found, again = surprises(), surprises()
    found.add(torch.tensor([1, 2]), torch.tensor([0.9, 0.1]), torch.tensor([2]))
    again.load_state({name: array.copy() for name, array in found.to_state().items()})
    for one in (found, again):
        one.grow(2 * ROWS)
        one.add(torch.tensor([1, 2 * ROWS - 1]), torch.tensor([0.9, 0.1]), torch.tensor([2 * ROWS - 1]))
    rows = torch.arange(2 * ROWS)
    assert torch.equal(found.of(rows), again.of(rows))
    assert found.of(rows)[[2, -1]].min() > 0
