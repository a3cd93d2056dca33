"""Weights as one thing: steps, rows that change hands, copies, and state."""

import numpy as np
import pytest
import torch

from online.history import Latest
from online.ranking.next_item import Negatives, next_item_loss
from online.ranking.weights import LEVEL_STEPS_MIN, NormLevel, Weights, choose_device

FEATURES = torch.zeros(0, 1)


def history(rows):
    length = len(rows)
    return Latest(
        np.array([rows]), np.zeros((1, length), np.int64), np.arange(length, dtype=np.float64)[None], np.array([length])
    )


def guess(weights, random):
    """One step towards item 9 after 3, 5 and 7 -> the loss before it."""
    states = weights.states(history([3, 5, 7]))[:, -1]
    negatives = Negatives(np.ones(20), 20).draw(8, random)
    loss = next_item_loss(weights.network, states, torch.tensor([9]), negatives).mean()
    weights.learn(None, loss, FEATURES)
    return float(loss.detach())


def rank(weights):
    """One step of the ranker and of recall's heads and vectors."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 6, len(weights.ranker.linear), generator=random)
    recalled = weights.own(torch.zeros(3, 6), torch.ones(3), torch.arange(3), 6)[:, 0].sum()
    loss = weights.ranking_loss(inputs, torch.ones(4, 6, dtype=torch.bool))
    loss = loss + recalled + weights.vectors(torch.tensor([9, 3]))[:, 0].sum()
    weights.learn(loss, None, inputs.flatten(0, 1))


def equal(one, other):
    mine, its = one.to_state(), other.to_state()
    return mine.keys() == its.keys() and all(mine[name].tobytes() == its[name].tobytes() for name in mine)


def test_steps_on_one_click_make_it_likelier(small):
    weights, random = Weights(small()), np.random.default_rng(0)
    losses = [guess(weights, random) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    with torch.no_grad():
        scores = weights.network.scores(weights.states(history([3, 5, 7]))[0, -1], torch.arange(1, 20))
    assert scores.argmax() + 1 == 9
    assert not weights.network.items.vectors[0].any()


def test_without_fine_tuning_there_is_no_dropout(small):
    weights = Weights(small(dropout=0.9))
    latest = history([3, 5, 7, 2])
    assert torch.equal(weights.states(latest), weights.states(latest))


def test_a_reset_row_is_as_at_the_start_and_others_stay(small):
    weights, fresh, random = Weights(small()), Weights(small()), np.random.default_rng(0)
    for _ in range(5):
        guess(weights, random)
        rank(weights)
    learned = {name: weights.tensors()[name].clone() for name in ("network.items.vectors", "vectors.vectors")}
    weights.reset_rows(torch.tensor([9, 3]))
    for name, before in learned.items():
        now = weights.tensors()[name]
        assert torch.equal(now[[9, 3]], fresh.tensors()[name][[9, 3]])
        assert not torch.equal(before[[9, 3]], now[[9, 3]])
        assert torch.equal(now[[5, 7]], before[[5, 7]])
    sums = [*weights.optimizer.rows.sums.values(), *weights.adagrad.sums.values()]
    assert not any(part[[9, 3]].any() for part in sums)


def test_a_copy_is_equal_and_goes_its_own_way(small):
    weights, random = Weights(small()), np.random.default_rng(0)
    weights.grow(3_000)
    for _ in range(3):
        guess(weights, random)
        rank(weights)
    other = weights.copy()
    assert equal(weights, other)
    assert other.settings is weights.settings
    before = {name: array.copy() for name, array in weights.to_state().items()}
    guess(other, np.random.default_rng(1))
    rank(other)
    assert all(before[name].tobytes() == array.tobytes() for name, array in weights.to_state().items())
    guess(weights, np.random.default_rng(1))
    rank(weights)
    assert equal(weights, other)  # its optimizers went with it


def test_state_restored_goes_on_bit_for_bit(small):
    whole, restored = Weights(small()), Weights(small())
    random, again = np.random.default_rng(0), np.random.default_rng(1)
    whole.grow(3_000)
    for _ in range(3):
        guess(whole, random)
        rank(whole)
    restored.load_state({name: array.copy() for name, array in whole.to_state().items()})
    assert equal(whole, restored)
    losses = []
    for weights in (whole, restored):
        again = np.random.default_rng(1)
        losses.append([guess(weights, again) for _ in range(5)])
        rank(weights)
    assert losses[0] == losses[1]
    assert equal(whole, restored)


@pytest.mark.parametrize("name", ["network.items.vectors", "ranker.linear", "own.gains", "vectors.vectors"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_with_one_that_is_not_finite_are_found_out(small, name, bad):
    weights = Weights(small())
    assert weights.finite()
    weights.tensors()[name].flatten()[5] = bad
    assert not weights.finite()


def test_a_step_of_exploding_gradients_is_not_taken_and_is_counted(small):
    weights, random = Weights(small(gradient_explosion=20.0)), np.random.default_rng(0)
    for _ in range(LEVEL_STEPS_MIN + 1):
        guess(weights, random)
    assert weights.skipped == 0
    states = weights.states(history([3, 5, 7]))[:, -1]
    negatives = Negatives(np.ones(20), 20).draw(8, random)
    before = {name: tensor.clone() for name, tensor in weights.tensors().items()}
    weights.learn(None, 1e6 * weights.guessing_loss(states, torch.tensor([9]), negatives), FEATURES)
    assert weights.skipped == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.tensors().items())
    guess(weights, random)
    assert weights.skipped == 1
    assert not all(torch.equal(before[name], tensor) for name, tensor in weights.tensors().items())


def test_a_level_that_has_risen_for_good_is_believed_after_some_steps():
    level = NormLevel(20.0)
    assert all(level.takes(norm) for norm in [1.0, 2.0] * LEVEL_STEPS_MIN)
    assert not level.takes(float("nan"))
    assert level.level == pytest.approx(1.5, rel=0.1)
    taken = [level.takes(1_000.0) for _ in range(30)]
    assert not taken[0]
    assert taken[-1]
    assert taken == sorted(taken)


@pytest.mark.parametrize(
    ("wanted", "there", "expected"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_auto_takes_the_accelerator_where_there_is_one(monkeypatch, wanted, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(wanted).type == expected
