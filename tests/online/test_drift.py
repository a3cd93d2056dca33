"""Drift is noticed when it happens, not otherwise, and a restart forgets nothing."""

import json

import numpy as np
import pytest

from online.drift import DriftWatch


def watch(clicks_each=5, values_held=200, delta=0.002):
    return DriftWatch(delta, clicks_each, values_held)


def noise(seed, mean, count, spread=1.0):
    return np.random.default_rng(seed).gamma((mean / spread) ** 2, spread**2 / mean, count).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_sudden_rise_is_noticed_soon_with_its_size(seed):
    drift = watch()
    assert drift.update(noise(seed, 2.0, 3_000)) == []
    alarms = drift.update(noise(seed + 100, 5.0, 500))
    assert alarms
    first = alarms[0]
    assert 3_000 < first.at <= 3_300
    assert first.before == pytest.approx(2.0, abs=0.5)
    assert first.after > first.before
    assert drift.alarms == len(alarms)
    assert drift.last_alarm == alarms[-1].as_dict()


@pytest.mark.parametrize("seed", range(5))
def test_noise_that_stays_the_same_is_no_change(seed):
    drift = watch()
    assert drift.update(noise(seed, 2.0, 10_000)) == []
    assert drift.alarms == 0
    assert drift.last_alarm is None


def test_a_loss_that_falls_is_learning_and_no_alarm():
    drift = watch()
    drift.update(noise(0, 5.0, 2_000))
    assert drift.update(noise(1, 1.0, 2_000, spread=0.3)) == []
    assert drift.mean_loss < 3.0  # but it was noticed


@pytest.mark.parametrize("cut", [0, 3, 500, 999, 1_000, 1_001, 2_517])
def test_restored_from_json_it_goes_on_as_if_nothing_had_happened(cut):
    losses = noise(3, 2.0, 1_500) + noise(4, 4.0, 1_500)
    whole, stopped, restored = watch(), watch(), watch()
    whole.update(losses[:cut])
    stopped.update(losses[:cut])
    restored.load_state(json.loads(json.dumps(stopped.to_state())))
    assert restored.to_state() == stopped.to_state()
    for loss in losses[cut:]:
        assert restored.update([loss]) == whole.update([loss])
        assert restored.mean_loss == whole.mean_loss
    assert restored.to_state() == whole.to_state()


def test_how_losses_are_cut_into_batches_makes_no_difference():
    losses = noise(3, 2.0, 700) + noise(4, 5.0, 700)
    whole, cut = watch(), watch()
    found = whole.update(losses)
    assert found == [alarm for at in range(0, 1_400, 13) for alarm in cut.update(losses[at : at + 13])]
    assert found
    assert whole.to_state() == cut.to_state()


def test_what_is_kept_is_bounded_and_the_mean_goes_on():
    drift = watch(values_held=100)
    for seed in range(20):
        drift.update(noise(seed, 2.0, 500))
        state = drift.to_state()
        assert len(state["means"]) < 100
        assert len(state["losses"]) < 5
    assert drift.watched == 10_000
    assert drift.mean_loss == pytest.approx(2.0, abs=0.3)


def test_with_a_smaller_limit_after_a_restart_the_latest_are_kept():
    large, small = watch(values_held=1_000), watch(values_held=100)
    large.update(noise(0, 2.0, 3_000))
    small.load_state(large.to_state())
    assert small.to_state()["means"] == large.to_state()["means"][-99:]
    small.update(noise(1, 2.0, 3_000))
    assert len(small.to_state()["means"]) < 100
