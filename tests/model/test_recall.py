"""Recall's heads against a loop over moments and candidates."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.recall import AGES, RecallHeads

GAINS = ((8.0, 0.0, 1.0), (0.0, 3.0, -0.5))
SECONDS = [-3.0, 0.0, 0.4, 1.0, 2.0, 3.0, 1_000.0, 86_400.0, 1e9, 1e14]


def heads_of(seed: int = 0) -> RecallHeads:
    heads = RecallHeads(GAINS)
    with torch.no_grad():
        heads.recency += 0.3 * torch.randn(heads.recency.shape, generator=torch.Generator().manual_seed(seed))
    return heads


def slow(heads: RecallHeads, cosines: Tensor, ages_s: list[float], places: list[int], candidates: int) -> Tensor:
    """(C, H), in the order of the docstring's words."""
    counts = []
    for candidate in range(candidates):
        for gains, recency in zip(heads.gains, heads.recency, strict=True):
            count = torch.zeros(())
            for alike, age, place in zip(cosines, ages_s, places, strict=True):
                if place == candidate:
                    bucket = min(AGES - 1, int(math.log2(1 + max(0.0, age))))
                    exponent = recency[bucket]
                    for gain, cosine in zip(gains, alike, strict=True):
                        exponent = exponent + gain * (cosine - 1)
                    count = count + torch.exp(exponent)
            counts.append(torch.log(1 + count))
    return torch.stack(counts).view(candidates, len(GAINS)) if counts else torch.zeros(0, len(GAINS))


moments = st.lists(st.tuples(st.sampled_from(SECONDS), st.integers(0, 4)), max_size=12)


@given(moments, st.integers(0, 4), st.integers(0, 1_000))
def test_soft_counts_and_their_gradients_are_those_of_plain_loops(
    found: list[tuple[float, int]], candidates: int, seed: int
) -> None:
    heads = heads_of(seed)
    ages, places = [age for age, _ in found], [min(place, candidates) for _, place in found]
    cosines = (2 * torch.rand(len(found), 3, generator=torch.Generator().manual_seed(seed)) - 1).requires_grad_()
    counts = heads(
        cosines, torch.tensor(ages, dtype=torch.float64), torch.tensor(places, dtype=torch.int64), candidates
    )
    expected = slow(heads, cosines, ages, places, candidates)
    torch.testing.assert_close(counts, expected, atol=1e-5, rtol=1e-4)
    inputs = [heads.gains, heads.recency, cosines]
    given_ = torch.autograd.grad(counts.square().sum(), inputs, allow_unused=True)
    wanted = torch.autograd.grad(
        expected.square().sum() + 0 * sum(one.sum() for one in inputs), inputs, allow_unused=True
    )
    for mine, its in zip(given_, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(its) if mine is None else mine, its, atol=1e-5, rtol=1e-4)


def test_a_recent_moment_that_agrees_in_everything_counts_one_and_counts_add_up() -> None:
    heads = RecallHeads(GAINS)
    counts = heads(torch.ones(3, 3), torch.zeros(3), torch.tensor([0, 1, 1]), 2)
    assert counts.exp().flatten().tolist() == pytest.approx([2, 2, 3, 3])


def test_at_the_start_each_doubling_of_the_age_takes_the_same_off_the_exponent() -> None:
    heads = RecallHeads(GAINS, decay=0.25)
    counts = heads(torch.ones(3, 3), torch.tensor([0.0, 1.0, 7.0]), torch.arange(3), 3)
    assert counts.expm1().log()[:, 0].tolist() == pytest.approx([0.0, -0.25, -0.75], abs=1e-6)


def test_a_part_with_gain_0_changes_nothing_and_has_a_gradient() -> None:
    heads = RecallHeads(((5.0, 0.0),))
    ages, places = torch.zeros(4), torch.tensor([0, 0, 1, 2])
    alike = torch.rand(4, 2)
    other = torch.stack([alike[:, 0], -alike[:, 1]], 1)
    assert torch.equal(heads(alike, ages, places, 2), heads(other, ages, places, 2))
    heads(alike, ages, places, 2)[0, 0].backward()
    assert heads.gains.grad is not None
    assert heads.gains.grad[0, 1] < 0  # the first candidate's moments are unlike it: a gain would make it weaker


def test_moments_that_point_at_no_candidate_change_nothing_and_teach_nothing() -> None:
    heads = RecallHeads(GAINS)
    counts = heads(torch.rand(3, 3), torch.zeros(3), torch.full((3,), 2), 2)
    assert counts.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    counts.sum().backward()
    assert not heads.gains.grad.any()
    assert not heads.recency.grad.any()
