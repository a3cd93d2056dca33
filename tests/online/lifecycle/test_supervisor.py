"""Who serves: what is published, thrown away and rolled back, what is told of it, and that a crash changes nothing."""

import json
import logging

import numpy as np
import pytest
import torch

from benchmarks.gate import SABOTAGES
from online.config.settings import Settings
from online.learner.ranking_model import RankingModel
from online.lifecycle.versions import VersionError

GATE = {
    "gate": True, "gate_block_clicks": 5, "shadow_clicks_max": 100, "diversity_lists": 32, "online_history": 12,
    "replay_held": 50,
}  # fmt: skip


def begun(harness, town_clicks, clicks=160, **settings):
    """A loop that has learned some clicks."""
    harness.publish(town_clicks[:clicks])
    loop = harness.begin(harness.loop(**{**GATE, **settings}))
    while loop.turn():
        pass
    return loop


def go_on(harness, loop, clicks):
    harness.publish(clicks)
    while loop.turn():
        pass


def kinds(loop):
    return [notice.kind for notice in loop.notices.latest]


def sabotage(loop, weights, how="reversed labels"):
    SABOTAGES[how](weights, loop.learner, np.random.default_rng(0))


def weights(loop):
    return {name: tensor.clone() for name, tensor in loop.learner.weights.tensors().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_candidate_ranks_in_the_shadow_and_is_published_when_it_is_not_worse(harness, town_clicks, caplog):
    caplog.set_level(logging.INFO)
    loop = begun(harness, town_clicks)
    loop.supervisor.ask_finetuning("a test")
    loop.turn()
    assert loop.supervisor.state == "shadow"
    assert loop.learner.version == 1
    go_on(harness, loop, town_clicks[160:300])
    assert loop.learner.version == loop.versions.live.number == 2
    assert kinds(loop) == ["finetuning", "candidate", "published"]
    assert loop.versions.live.figures["clicks"] >= 50
    assert loop.versions.live.parent == 1
    assert "published: version 2, fine-tuned (a test): NDCG@10" in caplog.text
    assert {top.version for top in harness.lists.held.values()} >= {2}


@pytest.mark.parametrize(("share", "turns"), [(1.0, 100), (0.5, 50), (0.2, 20)])
def test_fine_tuning_takes_its_share_of_the_time_and_no_more(harness, town_clicks, monkeypatch, share, turns):
    now, slices = [1_000.0], []

    def take(_self, _seconds):
        slices.append(now[0])
        now[0] += 1.0

    harness.publish(town_clicks[:160])
    loop = harness.begin(harness.loop(monotonic=lambda: now[0], **GATE, finetune_cpu_share=share))
    while loop.turn():
        pass
    monkeypatch.setattr("online.lifecycle.finetune.FineTuning.run_for", take)
    loop.supervisor.ask_finetuning("a test")
    end = now[0] + 100.0
    while now[0] < end:
        before = len(slices)
        loop.supervisor.step()
        now[0] += 0.25 if len(slices) == before else 0.0
    assert len(slices) == pytest.approx(turns, abs=1)


@pytest.mark.parametrize("how", SABOTAGES)
def test_a_sabotaged_candidate_is_rejected_and_the_live_weights_stay(new_harness, town_clicks, how):
    ended = []
    for candidate in (False, True):
        harness = new_harness()
        loop = begun(harness, town_clicks)
        if candidate:
            bad = loop.learner.weights.copy()
            sabotage(loop, bad, how)
            loop.supervisor.examine(bad, "a test", {})
        go_on(harness, loop, town_clicks[160:300])
        ended.append(weights(loop))
    assert loop.learner.version == 1
    assert kinds(loop) == ["candidate", "rejected"]
    assert equal(*ended)


def test_weights_that_are_not_finite_do_not_come_as_far_as_the_shadow(harness, town_clicks):
    loop = begun(harness, town_clicks)
    bad = loop.learner.weights.copy()
    bad.ranker.linear.data[0] = float("inf")
    loop.supervisor.examine(bad, "a test", {})
    assert kinds(loop) == ["rejected"]
    assert loop.supervisor.candidate is None


def published(loop):
    """Version 2, an equal copy, at click 160."""
    loop.supervisor.examine(loop.learner.weights.copy(), "a copy", {})
    loop.supervisor.candidate.live_fault = "it has to go, for this test"
    loop.turn()
    assert loop.learner.version == 2


def test_a_live_model_that_is_worse_than_its_predecessor_is_rolled_back(harness, town_clicks, caplog):
    caplog.set_level(logging.INFO)
    loop = begun(harness, town_clicks)
    published(loop)
    sabotage(loop, loop.learner.weights)
    predecessor = loop.supervisor.predecessor.weights
    go_on(harness, loop, town_clicks[160:300])
    assert loop.learner.weights is predecessor
    assert loop.learner.states.weights is predecessor
    assert loop.learner.version == 3
    assert [version.state for version in loop.versions.all()] == ["kept", "rolled back", "live"]
    assert "rolled_back: version 2 gives way to version 1, which is version 3 now" in caplog.text


def test_live_weights_that_are_not_finite_are_rolled_back_even_long_after(harness, town_clicks):
    loop = begun(harness, town_clicks)
    published(loop)
    go_on(harness, loop, town_clicks[160:260])
    assert loop.supervisor.predecessor.paused  # the new version was found good
    assert loop.learner.version == 2
    with torch.no_grad():
        loop.learner.weights.ranker.linear[:] = float("nan")
    go_on(harness, loop, town_clicks[260:340])
    assert loop.learner.version == 3
    assert loop.learner.weights.finite()


def test_what_descends_from_a_version_that_was_given_up_goes_with_it(harness, town_clicks):
    loop = begun(harness, town_clicks)
    published(loop)
    loop.supervisor.examine(loop.learner.weights.copy(), "a child", {})
    with torch.no_grad():
        loop.learner.weights.ranker.linear[:] = float("nan")
    go_on(harness, loop, town_clicks[160:200])
    assert loop.supervisor.candidate is None
    assert kinds(loop)[-2:] == ["rolled_back", "rejected"]


def test_without_a_gate_it_is_published_at_once_and_the_predecessor_rests(harness, town_clicks):
    loop = begun(harness, town_clicks, gate=False)
    loop.supervisor.ask_finetuning("a test")
    loop.turn()
    assert loop.learner.version == 2
    assert loop.supervisor.predecessor.paused


def test_an_earlier_version_can_be_rolled_back_to_while_clicks_come(harness, town_clicks):
    loop = begun(harness, town_clicks, gate=False, items_held=25, finetune_learning_rate=0.05)
    arrays, state = loop.checkpoints.read(loop.versions.live.checkpoint)
    saved = {name.removeprefix("weights.") for name in arrays}  # of content nothing is, before it is trained
    before = {name: torch.from_numpy(arrays[f"weights.{name}"]) for name in weights(loop) if name in saved}
    vocabulary = state["learner"]["items"]["vocabulary"]
    row_of = dict(zip(vocabulary["items"], vocabulary["rows"], strict=True))
    loop.supervisor.ask_finetuning("a test")
    go_on(harness, loop, town_clicks[160:400])
    assert loop.learner.version == 2
    learned = weights(loop)
    loop.supervisor.ask_rollback(1, "an operator asked")
    loop.turn()
    after = weights(loop)
    assert loop.learner.version == 3
    assert loop.versions.live.parent == 1
    for name in ("ranker.linear", "own.gains", "network.norm.weight"):
        assert torch.equal(after[name], before[name])
        assert not torch.equal(after[name], learned[name])
    fresh = RankingModel(loop.settings).tensors()
    still = {item: old for item, old in row_of.items() if old and item in loop.learner.vocabulary}
    assert len(still) > 3
    for item, old in still.items():
        for name in ("network.items.vectors", "vectors.vectors"):
            assert torch.equal(after[name][loop.learner.vocabulary.row_of(item)], before[name][old])
    new = [row for row in range(1, 26) if loop.learner.vocabulary.item_of(row) not in row_of]
    assert new
    assert torch.equal(after["vectors.vectors"][new], fresh["vectors.vectors"][new])  # they inherit nothing
    go_on(harness, loop, town_clicks[:40])  # it goes on
    assert loop.learner.weights.finite()


def test_a_version_that_cannot_be_had_is_refused_to_who_asks(harness, town_clicks):
    loop = begun(harness, town_clicks)
    with pytest.raises(VersionError):
        loop.supervisor.ask_rollback(7, "an operator asked")


def test_an_alarm_compares_with_the_predecessor_again_and_asks_for_fine_tuning(harness, town_clicks):
    loop = begun(harness, town_clicks)
    published(loop)
    go_on(harness, loop, town_clicks[160:260])
    assert loop.supervisor.predecessor.paused
    loop.changes.drift.update(["click"] * 2_000, [0.1] * 2_000, [True] * 2_000, range(2_000))
    alarms = loop.changes.drift.update(["click"] * 1_000, [9.0] * 1_000, [False] * 1_000, range(2_000, 3_000))
    for alarm in alarms:
        loop.supervisor._notice(alarm)
    assert any(alarm.worse for alarm in alarms)
    assert not loop.supervisor.predecessor.paused
    assert loop.supervisor.state == "asked"
    assert loop.supervisor.to_state()[1]["asked"]["drift"]


def test_a_skipped_update_is_reported(harness, town_clicks):
    loop = begun(harness, town_clicks)
    for level in loop.learner.weights.levels:
        level.level, level.steps = 1e-9, 1_000
    go_on(harness, loop, town_clicks[160:200])
    assert kinds(loop) == ["update_skipped"]
    assert loop.learner.weights.skipped >= 1


@pytest.mark.parametrize("killed_at", [3, 6])
def test_a_crash_while_a_candidate_is_in_the_shadow_changes_nothing(new_harness, town_clicks, killed_at):
    ended = []
    for kill in (False, True):
        harness = new_harness()
        loop = begun(harness, town_clicks)
        published(loop)
        better = loop.learner.weights.copy()
        loop.supervisor.examine(better, "a test", {})
        loop.progress.finetunings += 1
        loop.checkpoint()
        harness.publish(town_clicks[160:400])
        if kill:
            harness.crash(loop.checkpoints, "save", call=killed_at)
            with pytest.raises(harness.aborted):
                harness.drain(loop)
            loop = harness.begin(harness.loop(**GATE))
        harness.drain(loop)
        ended.append(harness.everything(loop))
        assert loop.learner.version == 3
    assert ended[0].keys() == ended[1].keys()
    for name in ended[0].keys() - {"lists", "popular"}:
        assert ended[0][name] == ended[1][name], name


def test_the_state_is_plain_json(harness, town_clicks):
    loop = begun(harness, town_clicks)
    published(loop)
    loop.supervisor.examine(loop.learner.weights.copy(), "a test", {})
    _, state = loop.supervisor.to_state()
    assert json.loads(json.dumps(state)) == state
    assert isinstance(loop.settings, Settings)
