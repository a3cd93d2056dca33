"""Negatives are drawn as their chances say."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from online.learner.next_item import Negatives


@given(
    popularity=st.lists(st.floats(0, 1e100), min_size=2, max_size=12),
    rows=st.integers(2, 12),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50)
def test_a_negative_is_a_row_in_use_and_comes_with_the_log_of_its_chance(popularity, rows, seed):
    rows = min(rows, len(popularity))
    found, log_q = Negatives(np.array(popularity), rows).draw(200, np.random.default_rng(seed))
    assert found.min() >= 1
    assert found.max() < rows
    assert torch.isfinite(log_q).all()
    share = np.array(popularity[:rows])
    share[0] = 0
    uniform = 1 / (rows - 1)
    chance = 0.5 * uniform + 0.5 * share / share.sum() if share.sum() > 0 else np.full(rows, uniform)
    np.testing.assert_allclose(log_q.numpy(), np.log(chance[found.numpy()]), rtol=1e-4, atol=1e-5)


def test_negatives_come_as_often_as_their_chance_says():
    popularity = np.array([99.0, 1.0, 0.0, 3.0])
    rows, log_q = Negatives(popularity, 4).draw(60_000, np.random.default_rng(0))
    often = np.bincount(rows.numpy(), minlength=4) / 60_000
    expected = [0, 1 / 6 + 1 / 8, 1 / 6, 1 / 6 + 3 / 8]
    np.testing.assert_allclose(often, expected, atol=0.01)
    np.testing.assert_allclose(np.exp(log_q.numpy()), np.array(expected)[rows.numpy()], rtol=1e-5)


def test_the_same_generator_draws_the_same():
    negatives = Negatives(np.ones(50), 50)
    one, other = (negatives.draw(20, np.random.default_rng(3)) for _ in range(2))
    assert one[0].tolist() == other[0].tolist()
