"""The trial of the network's state: left out where it adds too little, taken in again, and a crash changes nothing."""

import numpy as np
import pytest
import torch

from online.learner.learner import Learner
from online.learner.ranking_model import RankingModel
from online.lifecycle.shadow import ShadowEvaluation

TRIAL = {
    "gate": True, "gate_block_clicks": 5, "shadow_clicks_max": 100, "diversity_lists": 32, "online_history": 12,
    "replay_held": 50, "state_trial_clicks": 100,
}  # fmt: skip


def begun(harness, clicks, **settings):
    harness.publish(clicks)
    loop = harness.begin(harness.loop(**{**TRIAL, **settings}))
    while loop.turn():
        pass
    return loop


def go_on(harness, loop, clicks):
    harness.publish(clicks)
    while loop.turn():
        pass


def kinds(loop):
    return [notice.kind for notice in loop.notices.latest]


def test_a_state_that_adds_too_little_is_left_out_and_that_is_said(harness, town_clicks, caplog):
    caplog.set_level("INFO")
    loop = begun(harness, town_clicks[:140], state_worth_min=0.9)
    assert loop.supervisor.candidate is not None
    assert not loop.supervisor.candidate.weights.uses_state
    assert loop.learner.deep_state
    go_on(harness, loop, town_clicks[140:300])
    assert kinds(loop)[:2] == ["candidate", "published"]
    assert "version 2, without the network's state: NDCG@10" in caplog.text
    assert not loop.learner.deep_state
    assert not loop.learner.states.user_ids()  # no attention memory is kept
    network = [p.clone() for p in loop.learner.weights.network.parameters()]
    loop.supervisor.predecessor = None
    loop.supervisor._note_trials()
    go_on(harness, loop, town_clicks[300:340])
    assert all(torch.equal(*both) for both in zip(network, loop.learner.weights.network.parameters(), strict=True))


def test_a_state_that_is_worth_it_stays_and_is_tried_again_after_twice_the_clicks(harness, town_clicks):
    loop = begun(harness, town_clicks[:140], state_worth_min=1e-6)
    began = loop.supervisor._state_trial_at // 2
    assert 100 <= began <= 140
    loop.supervisor.candidate.fault = "it has to go, for this test"
    go_on(harness, loop, town_clicks[140 : 2 * began - 1])
    assert kinds(loop) == ["candidate", "rejected"]
    assert loop.learner.deep_state
    go_on(harness, loop, town_clicks[2 * began - 1 : 2 * began + 40])
    assert kinds(loop)[2:] == ["candidate"]


def test_without_a_least_worth_no_trial_begins(harness, town_clicks):
    loop = begun(harness, town_clicks[:200], state_worth_min=0)
    assert kinds(loop) == []


def test_a_state_that_was_left_out_is_taken_in_where_it_adds_enough(harness, town_clicks):
    loop = begun(harness, town_clicks[:90])
    live = loop.learner.weights.copy()
    live.uses_state = False
    loop.learner.publish(live, 2)
    go_on(harness, loop, town_clicks[90:140])
    candidate = loop.supervisor.candidate
    assert candidate.weights.uses_state
    assert candidate.limits.margin == -loop.settings.state_worth_min
    network = [p.clone() for p in candidate.weights.network.parameters()]
    go_on(harness, loop, town_clicks[140:200])
    learned = [not torch.equal(*both) for both in zip(network, candidate.weights.network.parameters(), strict=True)]
    assert any(learned)
    candidate.live_fault = "it has to go, for this test"
    loop.supervisor.candidate = candidate
    loop.supervisor.step()
    assert loop.learner.deep_state
    go_on(harness, loop, town_clicks[200:240])
    assert loop.learner.states.user_ids()


def test_a_candidate_only_learns_while_it_warms_up(small, town_clicks):
    learner = Learner(small(gate_block_clicks=10))
    for start in range(0, 80, 8):
        learner.learn(town_clicks[start : start + 8])
    trial = ShadowEvaluation(
        learner, learner.weights.copy(), learner.settings.candidate_gate, facts={"why": "a test", "warm_up": 20}
    )
    before = trial.weights.copy()
    for start in range(80, 112, 8):
        trial.update(learner.learn(town_clicks[start : start + 8]))
    assert trial.gate.clicks == 32 - 20
    assert trial.facts["warm_up"] == 0
    assert not torch.equal(before.ranker.up.weight, trial.weights.ranker.up.weight)


def test_a_logit_that_is_not_used_is_at_its_mean_in_training_replay_and_checkpoint(small, town_clicks):
    learner = Learner(small(replay_held=50, gate=True))
    for start in range(0, 200, 8):
        learner.learn(town_clicks[start : start + 8])
    model = learner.weights
    model.uses_state = False
    mean, spread = model.ranker.mean[-1].clone(), model.ranker.variance[-1].clone()
    learned = learner.learn(town_clicks[200:208])
    step = learned.steps[0]
    assert torch.equal(step.scored.features[..., -1][step.scored.present].unique(), mean[None])
    assert model.ranker.mean[-1] == pytest.approx(float(mean), abs=1e-6)
    assert torch.equal(model.ranker.variance[-1], spread)
    features = learner.replay.sample(4).features
    replayed = model.as_used(features)
    assert (replayed[..., -1] == model.ranker.mean[-1]).all()
    assert torch.equal(replayed[..., :-1], features[..., :-1])
    latest = np.arange(201 - 8, 201 + 8) % len(learner.store.moment_states)  # moments are numbered from 1
    assert learner.store.moment_states[latest].any(1).tolist()[:8].count(True) > 4
    assert not learner.store.moment_states[latest][8:].any()
    again = RankingModel(learner.settings)
    again.load_state(model.to_state())
    assert not again.uses_state
    always = RankingModel(learner.settings.model_copy(update={"state_worth_min": 0.0}))
    always.load_state(model.to_state())
    assert always.uses_state  # an operator who wants it has it, whatever a worker found before
    again.load_state(Learner(learner.settings).weights.to_state())
    assert again.uses_state


@pytest.mark.parametrize("killed_at", [3, 6, 9])
def test_a_crash_around_a_trial_changes_nothing(new_harness, town_clicks, killed_at):
    ended = []
    settings = TRIAL | {"state_worth_min": 0.9}
    for kill in (False, True):
        harness = new_harness()
        loop = begun(harness, town_clicks[:90], **settings)
        loop.checkpoint()
        harness.publish(town_clicks[90:400])
        if kill:
            harness.crash(loop.checkpoints, "save", call=killed_at)
            with pytest.raises(harness.aborted):
                harness.drain(loop)
            loop = harness.begin(harness.loop(**settings))
        harness.drain(loop)
        ended.append(harness.everything(loop))
        assert loop.learner.version >= 2
        assert "without the network's state" in [version.why for version in loop.versions.all()]
    assert ended[0].keys() == ended[1].keys()
    for name in ended[0].keys() - {"lists", "popular"}:
        assert ended[0][name] == ended[1][name], name
