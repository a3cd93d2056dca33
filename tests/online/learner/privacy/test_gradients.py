"""Gradients of single clicks against autograd, one click at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from online.learner import learner as learner_module
from online.learner.learner import Learner
from online.learner.objectives import ListwiseRanking, Pruning
from online.learner.privacy.gradients import click_gradients
from tests.online.learner.conftest import learn, ring


@pytest.fixture
def batches(small, monkeypatch):
    """A model, and the batches that it learned of a stream, some clicks of which weigh less."""
    found = []

    def noted(*given):
        batch = make(*given)
        weights = torch.linspace(0.5, 1.5, len(batch.places))
        found.append(replace(batch, weights=weights, scores=batch.scores.detach()))
        return batch

    make = learner_module.training_batch
    monkeypatch.setattr(learner_module, "training_batch", noted)
    learner = Learner(small(candidates_kept=4, ranker_networks=2))
    learn(learner, ring(160))
    return learner.weights, found


def one_click(model, batch, at):
    """The gradient of click `at`, by autograd through the plain form of the ranker."""
    part = {name: value[at : at + 1] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    single = replace(batch, **part, replayed=None, worth=None)
    single = replace(single, scores=model.ranker.each_by_autograd(single.forced))
    losses = [objective.loss(model, single) for objective in (ListwiseRanking(), Pruning())]
    losses = [loss for loss in losses if loss is not None]
    parameters = [model.ranker.linear, model.first]
    if not losses:
        return torch.zeros(sum(len(parameter) for parameter in parameters))
    gradients = torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)])


def test_each_clicks_gradient_is_autograds_of_that_click_alone(batches):
    model, found = batches
    left_out = kept = 0
    for batch in found:
        with torch.no_grad():  # by the weights of now
            scores = model.ranker.each_by_autograd(batch.forced)
        scores = torch.where((batch.places >= 0)[:, None, None], scores, batch.scores)
        gradients = click_gradients(model, replace(batch, scores=scores))
        for at, gradient in enumerate(gradients):
            wanted = one_click(model, batch, at)
            np.testing.assert_allclose(gradient, wanted, atol=2e-5)
            left_out += bool((batch.places[at] < 0) & (batch.forced_places[at] >= 0))
            kept += bool(batch.places[at] >= 0) and bool(wanted.any())
    assert left_out > 5
    assert kept > 50
