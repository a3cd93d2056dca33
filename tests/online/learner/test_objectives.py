"""Losses against plain loops over clicks, who teaches, and what each objective moves.

Letters: `N` clicks, `K` candidates kept of each, `F` features, `D` width of states.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.config.settings import Settings
from online.learner.facts.features import features
from online.learner.next_item import Negatives, next_item_loss
from online.learner.objectives import ListwiseRanking, NextItem, Pruning, TrainingBatch
from online.learner.ranking_model import RankingModel
from tests.online.conftest import SMALL

MODEL = RankingModel(Settings(**SMALL))
F_ALL = len(features(MODEL.settings.popularity_half_lives))


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_loss(scores, present, places):
    """Mean over the clicks that teach of −log softmax of the clicked one, summed over networks; None: none teaches."""
    losses = []
    for mine, there, place in zip(scores.tolist(), present.tolist(), places.tolist(), strict=True):
        if place >= 0:
            for network in range(len(mine[0])):
                total = sum(math.exp(one[network]) for one, is_there in zip(mine, there, strict=True) if is_there)
                losses.append(math.log(total) - mine[place][network])
    return sum(losses) / (np.asarray(places) >= 0).sum() if losses else None


@st.composite
def clicks(draw, networks=2):
    """Scores (N, K, networks), which candidates are there (N, K), and the clicked ones' places (N,)."""
    N, K = draw(st.integers(0, 4)), draw(st.integers(1, 5))
    sizes = [draw(st.integers(0, K)) for _ in range(N)]
    random = np.random.default_rng(draw(st.integers(0, 1_000)))
    scores = torch.from_numpy(random.normal(size=(N, K, networks)).astype(np.float32) * 3)
    present = torch.arange(K) < torch.tensor(sizes, dtype=torch.int64)[:, None]
    places = torch.tensor([draw(st.integers(-1, size - 1)) for size in sizes], dtype=torch.int64)
    return scores, present, places


# --- ranking -----------------------------------------------------------------------------------------------------


@given(clicks())
def test_a_click_costs_what_its_softmax_says_and_each_network_learns_as_if_alone(drawn):
    scores, present, places = drawn
    loss = ListwiseRanking().loss(MODEL, TrainingBatch(scores=scores, present=present, places=places))
    expected = slow_loss(scores, present, places)
    assert (loss is None) == (expected is None)
    if loss is not None:
        assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(clicks())
def test_clicks_that_teach_nothing_have_no_gradient_and_nor_has_what_is_not_there(drawn):
    scores, present, places = drawn
    scores.requires_grad_()
    loss = ListwiseRanking().loss(MODEL, TrainingBatch(scores=scores, present=present, places=places))
    if loss is not None:
        loss.backward()
        assert scores.grad.isfinite().all()
        assert not scores.grad[places < 0].any()
        assert not scores.grad[~present].any()
        some_rivals = (places >= 0) & (present.sum(1) > 1)
        assert scores.grad[some_rivals].flatten(1).any(1).all()


def test_replayed_clicks_add_their_own_mean_and_their_clicked_item_comes_first():
    scores, present = normal(1, 5, 3, 1), torch.tensor([[True, True, False]] * 5)
    alone = ListwiseRanking().loss(MODEL, TrainingBatch(replayed=(scores, present)))
    assert float(alone) == pytest.approx(slow_loss(scores, present, np.zeros(5, int)), rel=1e-5)
    new = {
        "scores": normal(2, 2, 4, 1),
        "present": torch.ones(2, 4, dtype=torch.bool),
        "places": torch.tensor([3, -1]),
    }
    both = ListwiseRanking().loss(MODEL, TrainingBatch(**new, replayed=(scores, present)))
    without = ListwiseRanking().loss(MODEL, TrainingBatch(**new))
    assert float(both) == pytest.approx(float(without) + float(alone), rel=1e-5)


def test_of_nothing_nothing_is_learned():
    for objective in (ListwiseRanking(), Pruning(), NextItem()):
        assert objective.loss(MODEL, TrainingBatch()) is None


# --- the first score ---------------------------------------------------------------------------------------------


@given(clicks(networks=1))
def test_the_first_score_is_linear_and_learns_from_what_it_had_left_out_too(drawn):
    _, present, places = drawn
    N, K = present.shape
    inputs = normal(3, N, K, F_ALL).requires_grad_()
    batch = TrainingBatch(forced=inputs, forced_present=present, forced_places=places)
    loss = Pruning().loss(MODEL, batch)
    scores = (inputs[..., :-1] * MODEL.first).sum(-1, keepdim=True).detach()
    expected = slow_loss(scores, present, places)
    assert (loss is None) == (expected is None)
    if loss is not None:
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        (gradient,) = torch.autograd.grad(loss, [MODEL.first])
        assert gradient.isfinite().all()
        assert gradient.any() == ((places >= 0) & (present.sum(1) > 1)).any()


def test_the_first_score_teaches_nothing_but_itself():
    inputs = normal(4, 2, 3, F_ALL)
    present, places = torch.ones(2, 3, dtype=torch.bool), torch.tensor([2, 0])
    loss = Pruning().loss(MODEL, TrainingBatch(forced=inputs, forced_present=present, forced_places=places))
    loss.backward()
    assert MODEL.first.grad.any()
    MODEL.first.grad = None
    assert all(parameter.grad is None for parameter in MODEL.ranker.parameters())


# --- the network -------------------------------------------------------------------------------------------------


def test_the_network_guesses_the_next_item_and_its_states_are_pulled():
    states = normal(5, 3, SMALL["width"]).requires_grad_()
    targets, negatives = torch.tensor([4, 5, 9]), Negatives(np.ones(20), 20).draw(8, np.random.default_rng(0))
    guess = TrainingBatch(states=states, targets=targets, negatives=negatives)
    loss = NextItem().loss(MODEL, guess)
    torch.testing.assert_close(loss, next_item_loss(MODEL.network, states, targets, negatives).mean())
    (of_guess,) = torch.autograd.grad(loss, [states])

    pulled, pull = normal(6, 3, SMALL["width"]).requires_grad_(), normal(7, 3, SMALL["width"])
    loss = NextItem().loss(MODEL, TrainingBatch(pulled=pulled, pull=pull))
    (gradient,) = torch.autograd.grad(loss, [pulled])
    assert torch.equal(gradient, pull)  # exactly what ranking wanted

    both = TrainingBatch(states=states, targets=targets, negatives=negatives, pulled=states, pull=pull)
    (gradient,) = torch.autograd.grad(NextItem().loss(MODEL, both), [states])
    torch.testing.assert_close(gradient, of_guess + pull)


# --- one more ----------------------------------------------------------------------------------------------------


class Shrink:
    """A made-up objective: one item's vector and one weight of the ranker should be small."""

    def loss(self, model, batch):  # noqa: ARG002
        return model.vectors(torch.tensor([7])).square()[:, 0].sum() + model.ranker.linear[3].square()


def test_a_new_objective_is_one_class_and_moves_what_it_says():
    model = RankingModel(MODEL.settings)
    with torch.no_grad():
        model.ranker.linear[3] = 1.0
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    for _ in range(5):
        assert model.train(TrainingBatch(), [ListwiseRanking(), Shrink()])  # beside others
    after = model.tensors()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"ranker.linear", "vectors.vectors"}
    assert abs(after["ranker.linear"][3]) < 1.0
    assert abs(after["vectors.vectors"][7, 0]) < abs(before["vectors.vectors"][7, 0])
    assert (after["vectors.vectors"] != before["vectors.vectors"]).any(1).nonzero().flatten().tolist() == [7]
    assert (after["ranker.linear"] != before["ranker.linear"]).nonzero().flatten().tolist() == [3]
