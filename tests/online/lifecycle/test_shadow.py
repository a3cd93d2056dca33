"""Trials: other weights on the same clicks; what they are told, what they learn, and what ends them."""

import json

import numpy as np
import pytest
import torch

from benchmarks.gate import SABOTAGES
from online.learner.facts.features import COLUMNS
from online.learner.learner import Learner
from online.lifecycle.shadow import Diversity, ShadowEvaluation


@pytest.fixture
def learner(small, town_clicks):
    limits = {"gate_block_clicks": 10, "shadow_clicks_max": 200, "diversity_lists": 32}
    learner = Learner(small(online_history=12, replay_held=50, **limits))
    learn(learner, town_clicks[:200])
    return learner


def learn(learner, clicks, *trials, anew=False):
    """`anew`: the live weights read every user's latest clicks anew too, so that even the states are equal."""
    for start in range(0, len(clicks), 8):
        if anew:
            forget_memories(learner)
        learned = learner.learn(clicks[start : start + 8])
        for trial in trials:
            trial.update(learned)


def forget_memories(learner):
    for user in learner.states.user_ids():
        learner.states.forget(user)


def begin(learner, weights=None):
    weights = learner.weights.copy() if weights is None else weights
    return ShadowEvaluation(learner, weights, learner.settings.candidate_gate, facts={"why": "a test"})


def read_anew(learner):
    """The live model reads every user's history anew, as a trial does: so even the states are equal."""
    states = learner.states

    def read(_, slots, clicks, histories=None):
        before, after, had = states.read_anew(states.weights, slots, clicks, histories)
        return before, had, after

    states.read = read
    return learner


def close(one, other, atol=1e-5):
    mine, its = one.tensors(), other.tensors()
    return all(torch.allclose(mine[name], its[name], atol=atol) for name in mine)


def test_an_equal_copy_fares_and_learns_as_the_live_weights_do(learner, town_clicks):
    trial = begin(learner)
    before = learner.weights.copy()
    learn(learner, town_clicks[200:300], trial, anew=True)
    figures = trial.figures()
    assert figures["clicks"] == 100
    assert figures["live"] == pytest.approx(figures["candidate"], abs=1e-4)
    assert close(trial.weights, learner.weights)
    assert not close(before, learner.weights)


def test_the_live_weights_do_not_notice_that_they_are_shadowed(small, town_clicks, same):
    states = []
    for shadowed in (False, True):
        learner = Learner(small())
        learn(learner, town_clicks[:100])
        trials = [begin(learner)] if shadowed else []
        learn(learner, town_clicks[100:200], *trials)
        states.append(learner.to_state())
    assert same(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_rows_that_change_hands_change_hands_in_the_shadow_too(small, town_clicks):
    learner = read_anew(Learner(small(items_held=20)))
    learn(learner, town_clicks[:100])
    trial, resting = begin(learner), begin(learner)
    resting.paused = True
    taken = set()
    for start in range(100, 300, 8):
        forget_memories(learner)
        learned = learner.learn(town_clicks[start : start + 8])
        taken |= set(learned.freed)
        for one in (trial, resting):
            one.update(learned)
    assert taken
    assert close(trial.weights, learner.weights)
    fresh = Learner(small(items_held=20)).weights.vectors.vectors
    row = max(taken)
    assert torch.equal(resting.weights.vectors.vectors[row], fresh[row])
    assert resting.figures()["clicks"] == 0


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_sabotaged_candidate_is_rejected(learner, town_clicks, sabotage):
    weights = learner.weights.copy()
    SABOTAGES[sabotage](weights, learner, np.random.default_rng(1))  # by 0 no weight that matters moves
    trial = begin(learner, weights)
    learn(learner, town_clicks[200:400], trial)
    assert trial.decision == "reject"


def test_a_candidate_as_good_as_the_live_model_is_published(learner, town_clicks):
    trial = begin(learner)
    learn(learner, town_clicks[200:400], trial)
    assert trial.decision == "publish"


def test_live_weights_that_are_not_finite_give_way_at_once(learner, town_clicks):
    trial = begin(learner)
    with torch.no_grad():
        learner.weights.ranker.linear[:] = float("nan")
    learn(learner, town_clicks[200:208], trial)
    assert trial.decision == "publish"
    assert trial.live_fault == "its scores are not finite"


def test_a_candidate_whose_gradients_explode_is_rejected_at_once(learner, town_clicks):
    trial = begin(learner)
    for level in trial.weights.levels:
        level.level, level.steps = 1e-9, 1_000
    learn(learner, town_clicks[200:208], trial)
    assert trial.decision == "reject"
    assert "gradients" in trial.fault


def test_a_candidate_that_gives_all_users_the_same_ten_is_rejected_at_once(learner, town_clicks):
    weights = learner.weights.copy()
    with torch.no_grad():  # nothing counts but an item's popularity
        weights.ranker.linear[:] = 0
        weights.ranker.out[:] = 0
        weights.ranker.linear[COLUMNS["clicks"]] = 100
    trial = ShadowEvaluation(learner, weights, learner.settings.rollback_gate, facts={})
    trial.learner.settings = learner.settings.model_copy(update={"diversity_share_min": 0.8})
    learn(learner, town_clicks[200:248], trial)
    assert "alike" in trial.fault
    assert trial.shadow.items() < 0.8 * trial.live.items()


def test_variety_is_the_number_of_items_in_effect():
    variety = Diversity(4)
    assert variety.items() == 1.0  # of nothing
    variety.add(np.tile(np.arange(1, 11), (4, 1)))
    assert variety.items() == pytest.approx(10)
    variety.add(np.arange(1, 41).reshape(4, 10))
    assert variety.items() == pytest.approx(40)
    variety.add(np.zeros((4, 10), int))
    assert variety.items() == 1.0


def test_a_restored_trial_goes_on_as_if_nothing_had_happened(learner, town_clicks, same):
    trial = begin(learner)
    learn(learner, town_clicks[200:264], trial)
    arrays, state = trial.to_state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    again = ShadowEvaluation.restored(learner, lambda _: trial.limits, arrays, json.loads(json.dumps(state)))
    learn(learner, town_clicks[264:300], trial, again)
    assert same(trial.to_state()[0], again.to_state()[0])
    assert trial.to_state()[1] == again.to_state()[1]
    assert trial.figures()["clicks"] > 64
