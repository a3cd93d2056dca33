"""The ranker against plain loops."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.ranker import DEVIATION_MIN, SLOWEST, Columns, Ranker

STARTS = [1.0, -0.5, 0.0]


def ranker_of(seed: int = 0, hidden: int = 4, networks: int = 2) -> Ranker:
    """One whose networks speak."""
    torch.manual_seed(seed)
    ranker = Ranker(STARTS, hidden, networks)
    nn.init.normal_(ranker.out)
    return ranker


def slow_score(ranker: Ranker, features: list[float]) -> float:
    scaled = [
        (x - mean) / (math.sqrt(variance) + DEVIATION_MIN)
        for x, mean, variance in zip(features, ranker.mean.tolist(), ranker.variance.tolist(), strict=True)
    ]
    linear = sum(w * x for w, x in zip(ranker.linear.tolist(), features, strict=True))
    networks, hidden = ranker.out.shape
    scores = []
    for network in range(networks):
        mine = slice(network * hidden, (network + 1) * hidden)
        layers = (
            (ranker.up.weight[mine], ranker.up.bias[mine]),
            (ranker.mid[network].T, ranker.mid_bias[network, 0]),
        )
        units = scaled
        for weights, biases in layers:
            units = [
                max(0.0, bias + sum(w * x for w, x in zip(row, units, strict=True)))
                for row, bias in zip(weights.tolist(), biases.tolist(), strict=True)
            ]
        scores.append(linear + sum(w * x for w, x in zip(ranker.out[network].tolist(), units, strict=True)))
    return sum(scores) / networks


def test_at_the_start_the_score_is_the_linear_one_and_the_network_is_silent() -> None:
    ranker = Ranker(STARTS, 8)
    features = torch.randn(5, 7, 3)
    ranker.observe(torch.randn(50, 3) * 9 + 4)
    assert torch.equal(ranker(features), features @ torch.tensor(STARTS))


def test_the_silent_network_is_let_in_by_its_gradient() -> None:
    ranker = Ranker(STARTS, 8)
    features = torch.randn(6, 3)
    ranker(features)[0].backward()
    assert ranker.out.grad is not None
    assert ranker.out.grad.abs().sum() > 0
    torch.testing.assert_close(ranker.linear.grad, features[0])


@given(
    batches=st.lists(st.integers(2, 5), max_size=4),
    seed=st.integers(0, 1_000),
    shift=st.floats(-100, 100, width=32),
    scale=st.sampled_from([0.0, 0.01, 1.0, 50.0]),
)
def test_scores_are_those_of_plain_loops(batches: list[int], seed: int, shift: float, scale: float) -> None:
    ranker = ranker_of(seed)
    for size in batches:
        ranker.observe(shift + scale * torch.randn(size, 3))
    features = shift + scale * torch.randn(4, 3)
    expected = [slow_score(ranker, one) for one in features.tolist()]
    torch.testing.assert_close(ranker(features).tolist(), expected, atol=1e-3, rtol=1e-3)


@given(
    rows=st.integers(1, 6),
    networks=st.integers(1, 3),
    some=st.booleans(),
    width=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_autograd(rows: int, networks: int, some: bool, width: int, seed: int) -> None:
    ranker = ranker_of(seed, networks=networks)
    ranker.observe(torch.randn(9, 3) * 2 + 1)
    at = torch.randperm(rows)[: max(1, rows - 1)] if some else slice(0, rows)
    features, direction = torch.randn(rows, 3), torch.randn(rows, networks)
    learned = features[at, 1 : 1 + width].clone().requires_grad_()
    weights = [learned, *ranker.parameters()]
    scores = ranker.each(features, learned, Columns(at, 1))
    found = torch.autograd.grad((scores * direction).sum(), weights)
    same = features.clone()
    same[at, 1 : 1 + width] = learned
    expected = ranker.each_by_autograd(same)
    torch.testing.assert_close(scores, expected)
    for mine, its in zip(found, torch.autograd.grad((expected * direction).sum(), weights), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=8), seed=st.integers(0, 1_000))
def test_the_running_mean_and_variance_move_by_the_share_of_the_newest_batch(sizes: list[int], seed: int) -> None:
    ranker = ranker_of()
    torch.manual_seed(seed)
    mean, variance, seen = [0.0] * 3, [1.0] * 3, 0
    for size in sizes:
        features = torch.randn(size, 3) * 3 + 1
        ranker.observe(features)
        if size < 2:
            continue  # one candidate says nothing of how candidates differ
        seen += 1
        for f in range(3):
            column = features[:, f].tolist()
            mean[f] += (sum(column) / size - mean[f]) / seen
            variance[f] += (sum((x - mean[f]) ** 2 for x in column) / size - variance[f]) / seen
    assert ranker.batches == seen
    torch.testing.assert_close(ranker.mean.tolist(), mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ranker.variance.tolist(), variance, atol=1e-4, rtol=1e-4)


def test_the_running_mean_follows_a_stream_that_has_moved() -> None:
    ranker = ranker_of()
    for _ in range(1_000):
        ranker.observe(torch.zeros(2, 3))
    ranker.observe(torch.ones(2, 3))
    torch.testing.assert_close(ranker.mean, torch.full((3,), SLOWEST))
    for _ in range(1_000):
        ranker.observe(torch.ones(2, 3))
    torch.testing.assert_close(ranker.mean, torch.ones(3), atol=1e-3, rtol=0)


def test_what_was_observed_is_part_of_the_state() -> None:
    ranker, other = ranker_of(), Ranker(STARTS, 4, 2)
    ranker.observe(torch.randn(9, 3))
    other.load_state_dict(ranker.state_dict())
    features = torch.randn(5, 3)
    assert torch.equal(ranker(features), other(features))
