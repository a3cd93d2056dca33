"""Predictions of event types and value: what they learn, and what they leave alone."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from model.heads import OF_SHARES, Calibration, Heads
from online.config.settings import Settings
from online.evaluation.calibration import reliability
from online.evaluation.worth import PredictedWorth
from online.learner.learner import Learner
from online.learner.objectives import ListwiseRanking, TrainingBatch, Worth, WorthTargets
from online.lifecycle.shadow import ShadowEvaluation
from online.rounds.weights import Shape
from stream.user_ids import digest_of
from tests.online.conftest import SMALL
from tests.online.learner.conftest import restarted
from tests.online.learner.worth.conftest import BUY, PRICES, WEIGHTS, learn, shop

T = 3


class Model:
    """No more than the objective needs."""

    def __init__(self, heads):
        self.heads, self.calibration = heads, trained_calibration()


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def targets(n=6, D=5, T=2, seed=0):
    # Two clicks more than the heads learn from: of one the item was not kept, the other is flagged.
    values = normal(seed + 1, n).abs() * 10
    values[0] = math.nan
    labels = torch.nn.functional.one_hot(torch.arange(n) % (T + 1), T + 1)[:, :T].float()
    scores = normal(seed + 2, n + 2, 4)
    scores[1, 3] = -torch.inf
    places = torch.tensor([0, 1, 2, 3, 0, 2, -1, 1])
    return WorthTargets(
        scores=scores,
        situation=normal(seed + 3, n + 2, 3),
        places=places,
        counted=torch.arange(n + 2) < n + 1,
        inputs=normal(seed, n, D),
        labels=labels,
        values=values,
        mean_value=4.0,
    )


def trained_heads(D=5, T=2):
    heads = Heads(normal(3, T + 1, D).tolist(), seed=1)
    with torch.no_grad():
        heads.out.copy_(normal(4, *heads.out.shape))
    return heads


def trained_calibration():
    calibration = Calibration(3)
    with torch.no_grad():
        calibration.log_sharpness.fill_(0.3)
        calibration.weights.copy_(normal(5, OF_SHARES + 3))
    return calibration


def slow_loss_of_chances(calibration, given):
    """Of each click: −log of the chance that its item was given, or that none of the candidates comes."""
    total = 0.0
    for scores, situation, place, counted in zip(
        given.scores, given.situation, given.places.tolist(), given.counted.tolist(), strict=True
    ):
        there = scores[scores.isfinite()]
        shares = there.softmax(0)
        known = [1.0, float(shares.log().max()), float(-(shares * shares.log()).sum()), math.log1p(len(there))]
        odds = torch.tensor([*known, *situation.tolist()]) @ calibration.weights
        chance = (calibration.log_sharpness.exp() * there).softmax(0) * odds.sigmoid()
        if counted:
            total = total - torch.log(chance[place] if place >= 0 else 1 - odds.sigmoid())
    return total / len(given.scores)


def slow_loss(heads, given):
    """Click by click and head by head, from the formulas."""
    total = 0.0
    for x, labels, value in zip(given.inputs, given.labels, given.values.tolist(), strict=True):
        for head in range(len(heads.bias)):
            hidden = torch.relu(heads.up[head] @ x + heads.up_bias[head])
            found = heads.linear[head] @ x + heads.bias[head] + hidden @ heads.out[head]
            if head < len(labels):
                chance = torch.sigmoid(found)
                total = total - torch.log(chance if labels[head] else 1 - chance)
            elif not math.isnan(value):
                total = total + (torch.exp(found) - value * found) / given.mean_value
    return total / len(given.inputs)


def test_loss_and_gradients_are_those_of_the_formulas() -> None:
    model, given = Model(trained_heads()), targets()
    parameters = [*model.heads.parameters(), *model.calibration.parameters()]
    fast = Worth().loss(model, TrainingBatch(worth=given))
    of_fast = torch.autograd.grad(fast, parameters)
    slow = slow_loss(model.heads, given) + slow_loss_of_chances(model.calibration, given)
    of_slow = torch.autograd.grad(slow, parameters)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5)
    for mine, its in zip(of_fast, of_slow, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_clicks_without_any_candidate_leave_gradients_finite() -> None:
    given = targets()
    given.scores[-2] = -torch.inf
    model = Model(trained_heads())
    Worth().loss(model, TrainingBatch(worth=given)).backward()
    assert all(bool(one.grad.isfinite().all()) for one in model.calibration.parameters())
    assert not model.calibration.chances(given.scores, given.situation)[-2].any()


def test_a_rare_type_moves_no_weight_of_another_head() -> None:
    heads, given = trained_heads(), targets()
    heads.zero_grad()
    loss = Worth().loss(Model(heads), TrainingBatch(worth=given))
    loss.backward()
    alone = heads.up.grad.clone()
    changed = replace(given, labels=given.labels.clone())
    changed.labels[:, 1] = 1 - changed.labels[:, 1]
    heads.zero_grad()
    Worth().loss(Model(heads), TrainingBatch(worth=changed)).backward()
    torch.testing.assert_close(heads.up.grad[0], alone[0])
    torch.testing.assert_close(heads.up.grad[2], alone[2])
    assert not torch.allclose(heads.up.grad[1], alone[1])


def test_a_weight_is_as_many_clicks() -> None:
    scores = normal(0, 3, 4, 2)
    present, places = torch.ones(3, 4, dtype=torch.bool), torch.tensor([1, 2, 0])
    weighed = ListwiseRanking().loss(
        Model(None), TrainingBatch(scores=scores, present=present, places=places, weights=torch.tensor([2.0, 0.0, 1.0]))
    )
    at = torch.tensor([0, 0, 2])
    repeated = ListwiseRanking().loss(Model(None), TrainingBatch(scores=scores[at], present=present, places=places[at]))
    torch.testing.assert_close(weighed, repeated)


@cache
def after_training(**changed):
    learner = Learner(Settings(**SMALL | {"event_weights": WEIGHTS, "history_max": 40, **changed}))
    clicks = shop(3_200, returns=0.3)
    predicted = PredictedWorth(len(clicks), learner.settings)
    for start in range(0, len(clicks), 16):
        predicted.add(range(start, start + 16), learner.learn(clicks[start : start + 16]))
    return learner, clicks, predicted


def test_chances_are_calibrated_and_tell_who_buys_what() -> None:
    _, clicks, predicted = after_training()
    late = np.isfinite(predicted.values) & (np.arange(len(clicks)) >= 1_600)
    for at, name in enumerate(predicted.names):
        was = np.array([click.event_type == name for click in clicks])
        assert reliability(predicted.chances[late, at], was[late]).error < 0.06, name
    chances = predicted.chances[late, 1]
    was = np.array([click.event_type == BUY for click in clicks])[late]
    assert chances[was].mean() > 3 * chances[~was].mean()


def test_the_value_is_that_of_the_item() -> None:
    _, clicks, predicted = after_training()
    late = np.isfinite(predicted.values) & (np.arange(len(clicks)) >= 1_600)
    bought = late & np.array([click.event_type == BUY for click in clicks])
    found = [
        predicted.values[bought & np.array([PRICES[int(click.item_id[1:])] == price for click in clicks])].mean()
        for price in (1.0, 10.0, 100.0)
    ]
    assert found[0] < found[1] < found[2]
    assert found[2] > 5 * found[0]


def test_heads_push_nothing_into_the_ranker() -> None:
    """With weights of 1 and heads, the ranker learns what it learns without, bit for bit."""
    plain, worthy = (
        Learner(Settings(**SMALL | changed)) for changed in ({}, {"event_weights": "view=1,buy now=1,return=1"})
    )
    clicks = shop(320)
    for learner in (worthy, plain):
        for name in ("view", "buy now", "return"):
            learner.event_type(name)  # the same numbers
        learn(learner, clicks)
    mine, its = worthy.weights.tensors(), plain.weights.tensors()
    assert {name.split(".")[0] for name in mine.keys() - its.keys()} == {"heads", "calibration"}
    for name, tensor in its.items():
        assert torch.equal(tensor, mine[name]), name
    assert worthy.weights.heads.out.any()


def test_what_has_no_weight_is_history_but_is_not_trained_towards(worthy) -> None:
    """Three roles: a type of weight 0 stands in histories and is predicted, and moves no weight of the ranker."""
    learner = worthy(event_weights="view=0,buy now=0,return=0")
    before = {name: tensor.clone() for name, tensor in learner.weights.tensors().items()}
    learn(learner, shop(320))
    after = learner.weights.tensors()
    for name, tensor in before.items():
        same = name not in after or after[name].shape != tensor.shape or torch.equal(after[name], tensor)
        # Running means of features are statistics, not trained.
        assert same or name.startswith(
            ("heads.", "calibration.", "ranker.mean", "ranker.variance", "ranker.batches")
        ), name
    assert learner.weights.heads.out.any()
    assert learner.histories.lengths(learner.histories.find(["1"]))[0] > 30
    assert learner.replay.filled == 0


def test_without_weights_nothing_of_it_exists(small) -> None:
    learner = Learner(small())
    clicks = shop(64)
    found = learn(learner, clicks)
    assert learner.worth is None
    assert learner.weights.heads is None
    assert learner.histories.values is None
    arrays, state = learner.to_state()
    assert not [name for name in arrays if "worth" in name or "heads" in name or name.endswith(".values")]
    assert "worth" not in state
    assert all(step.scored.order is None and step.worth is None for one in found for step in one.steps)


def test_restored_it_goes_on_as_if_nothing_had_happened_bit_for_bit(worthy, same) -> None:
    clicks = shop(480, returns=0.3)
    learner = worthy(objective="p_click * (1 + p_buy_now * value)", value_as_worth=True)
    learn(learner, clicks[:320])
    again = restarted(learner, learner.settings)
    for one in (learner, again):
        learn(one, clicks[320:])
    (mine, state), (its, other_state) = learner.to_state(), again.to_state()
    assert same(mine, its)
    assert json.dumps(state) == json.dumps(other_state)


def test_a_checkpoint_of_before_and_one_of_other_types_load_and_heads_begin_anew(small) -> None:
    clicks = shop(160)
    for weights in ("", "view=1,buy now=2"):
        learner = Learner(small(event_weights=weights, history_max=40))
        learn(learner, clicks)
        arrays, state = learner.to_state()
        again = Learner(small(event_weights=WEIGHTS, history_max=40))
        again.load_state(arrays, json.loads(json.dumps(state)))
        assert not again.weights.heads.out.any()
        learn(again, clicks)
        assert again.weights.heads.out.any()
    plain = Learner(small(history_max=40))  # and back again
    plain.load_state(*again.to_state())
    learn(plain, clicks)


def test_nothing_of_a_user_is_left_where_the_user_is_forgotten(worthy) -> None:
    """The values of clicks go with the history; the user's columns are those of a user without one."""
    learner = worthy()
    learn(learner, shop(320))
    user = "2"
    slot = int(learner.histories.find([user])[0])
    assert np.nansum(np.abs(learner.histories.values[slot])) > 0
    last = len(learner.histories) - 1
    moved = learner.histories.values[last].copy()
    learner.forget(digest_of(user))
    assert user not in learner.histories
    if slot != last:
        np.testing.assert_array_equal(learner.histories.values[slot], moved)
    assert not learner.histories.values[last].any()


def test_many_workers_average_the_heads_as_other_dense_weights(worthy) -> None:
    shape = Shape.of(worthy().weights.tensors())
    assert {"heads.linear", "heads.up", "heads.out", "calibration.weights"} <= set(shape.dense)


def test_clicks_of_other_workers_are_counted_and_train_nothing(worthy) -> None:
    clicks = shop(160)
    ours, both = worthy(), worthy()
    for start in range(0, len(clicks), 16):
        batch = clicks[start : start + 16]
        owned = np.array([int(click.user_id) < 4 for click in batch])
        ours.learn(batch, owned=owned)
        both.learn(batch)
    np.testing.assert_allclose(ours.worth.counts, both.worth.counts, rtol=1e-6)
    np.testing.assert_allclose(ours.worth.sums, both.worth.sums)
    assert ours.train_again([click for click in clicks[-32:] if int(click.user_id) >= 4]) > 0


def test_a_shadow_is_ranked_and_trained_by_the_same_measure(worthy) -> None:
    learner, clicks = worthy(objective="p_buy_now", gate_block_clicks=10, shadow_clicks_max=200), shop(480)
    learn(learner, clicks[:320])
    for user in learner.states.user_ids():
        learner.states.forget(user)
    shadow = ShadowEvaluation(learner, learner.weights.copy(), learner.settings.candidate_gate, facts={})
    states = learner.states

    def read(_, slots, clicks, histories=None):  # as a shadow does, so that even the states are equal
        before, after, had = states.read_anew(states.weights, slots, clicks, histories)
        return before, had, after

    states.read = read
    for start in range(320, 480, 16):
        shadow.update(learner.learn(clicks[start : start + 16]))
    mine, its = shadow.weights.tensors(), learner.weights.tensors()
    for name in ("heads.linear", "heads.out", "ranker.linear"):
        torch.testing.assert_close(mine[name], its[name], rtol=1e-3, atol=1e-4)
