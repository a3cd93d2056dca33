"""Contributions of features add up to differences of scores, and are what a slow integral of gradients says."""

import itertools
import math

import numpy as np
import pytest
import torch

from model.ranker import Ranker
from online.learner.contributions import RankerArrays, contributions, scores


def random_ranker(seed, features=12, hidden=8, networks=1, scale=1.0):
    torch.manual_seed(seed)
    ranker = Ranker(torch.randn(features).tolist(), hidden, networks)
    with torch.no_grad():
        ranker.out.normal_(0, scale)
        ranker.mean.normal_()
        ranker.variance.uniform_(0, 3)
    return ranker


def slow_integral(ranker, x, base, steps=4_000):
    """The mean gradient at the middles of equal steps, by autograd."""
    ranker = ranker.double()
    middles = (torch.arange(steps).double() + 0.5) / steps
    points = (base + middles[:, None] * (x - base)).requires_grad_()
    ranker.each_by_autograd(points).mean(-1).sum().backward()
    return (points.grad.mean(0) * (x - base)).numpy()


def shapley(score, x, base):
    """By definition: over all sets of the other features."""
    F = len(x)
    found = np.zeros(F)
    for f in range(F):
        others = [one for one in range(F) if one != f]
        for size in range(F):
            weight = math.factorial(size) * math.factorial(F - size - 1) / math.factorial(F)
            for chosen in itertools.combinations(others, size):
                without = base.copy()
                without[list(chosen)] = x[list(chosen)]
                having = without.copy()
                having[f] = x[f]
                found[f] += weight * (score(having) - score(without))
    return found


def test_sums_of_thousands_of_random_lists_are_differences_of_scores():
    random = np.random.default_rng(0)
    largest = of_the_ranker = 0.0
    for seed in range(100):
        networks, hidden = 1 + seed % 3, (4, 16, 64)[seed // 3 % 3]
        ranker = random_ranker(seed, 46, hidden, networks, scale=10.0 ** random.uniform(-2, 0.5))
        weights = RankerArrays.of(ranker)
        for _ in range(30):
            x = random.normal(size=(random.integers(1, 33), 46)) * random.choice([0.01, 1, 30], 46)
            x = x.astype(np.float32)
            if random.random() < 0.3:
                x[:, random.integers(46)] = 1.5  # all alike
            base = x.astype(np.float64).mean(0)
            apart = scores(weights, x.astype(np.float64)) - scores(weights, base[None])
            got = contributions(weights, x.astype(np.float64), base)
            size = 1 + np.abs(got).sum()
            largest = max(largest, np.abs(got.sum(1) - apart).max() / size)
            with torch.no_grad():
                float32 = ranker(torch.from_numpy(x)).numpy() - float(ranker(torch.from_numpy(base).float()[None])[0])
            of_the_ranker = max(of_the_ranker, np.abs(got.sum(1) - float32).max() / size)
    assert largest < 1e-12
    assert of_the_ranker < 1e-5  # float32's own rounding


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_contributions_are_the_integral_of_gradients(seed, networks):
    ranker = random_ranker(seed, networks=networks)
    x, base = torch.randn(4, 12).double(), torch.randn(12).double()
    got = contributions(RankerArrays.of(ranker), x.numpy(), base.numpy())
    for one in range(4):
        expected = slow_integral(ranker, x[one], base)
        assert got[one] == pytest.approx(expected, abs=5e-3 * np.abs(expected).max())


def test_where_no_unit_changes_its_sign_they_are_shapley_values():
    ranker = random_ranker(1, features=5, hidden=4)
    with torch.no_grad():
        ranker.up.bias.fill_(50.0)
        ranker.mid_bias.fill_(50.0)
    x, base = np.random.default_rng(2).normal(size=(2, 5))
    weights = RankerArrays.of(ranker)
    expected = shapley(lambda one: scores(weights, one[None])[0], x, base)
    assert contributions(weights, x[None], base)[0] == pytest.approx(expected, abs=1e-9)


def test_of_one_feature_that_differs_they_are_shapley_values():
    ranker = random_ranker(3, features=5, hidden=8)
    base = np.random.default_rng(4).normal(size=5)
    x = base.copy()
    x[2] += 3.0
    weights = RankerArrays.of(ranker)
    expected = shapley(lambda one: scores(weights, one[None])[0], x, base)
    assert contributions(weights, x[None], base)[0] == pytest.approx(expected, abs=1e-9)
    assert np.flatnonzero(contributions(weights, x[None], base)[0]).tolist() == [2]


def test_a_candidate_like_the_base_and_no_candidates():
    weights = RankerArrays.of(random_ranker(0))
    base = np.zeros(12)
    assert contributions(weights, base[None], base).tolist() == [[0.0] * 12]
    assert contributions(weights, np.zeros((0, 12)), base).shape == (0, 12)


def test_scores_are_the_ranker_s():
    ranker = random_ranker(7, networks=3).double()
    x = torch.randn(20, 12).double()
    assert scores(RankerArrays.of(ranker), x.numpy()) == pytest.approx(ranker.each_by_autograd(x).mean(-1).detach())
