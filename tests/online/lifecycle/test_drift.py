"""Drift is noticed when it happens, which way and since when; not otherwise; and a restart forgets nothing."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.lifecycle.drift import BETTER, HIT_RATE, LOSS, WORSE, DriftWatch, Sensitivity, Signal, change_point

SENSITIVITY = Sensitivity(delta=0.002, tolerance=0.5, threshold=12.0, values_held=400)
START = 1_000.0


def watch(sensitivity=SENSITIVITY, **settings):
    return DriftWatch(sensitivity, **{"clicks_each": 10, "cooling_clicks": 1_000} | settings)


def losses(seed, mean, count, spread=1.0):
    return np.random.default_rng(seed).gamma((mean / spread) ** 2, spread**2 / mean, count).tolist()


def hits(seed, rate, count):
    return (np.random.default_rng(seed).random(count) < rate).tolist()


def feed(drift, some_losses=None, some_hits=None, types=("click",)):
    """Clicks a second apart; of what is not given, nothing changes."""
    n = len(some_losses if some_losses is not None else some_hits)
    times = START + drift.watched + np.arange(n)
    some_losses = losses(n, 2.0, n) if some_losses is None else some_losses
    some_hits = hits(n, 0.5, n) if some_hits is None else some_hits
    return drift.update([types[at % len(types)] for at in range(n)], some_losses, some_hits, times)


@pytest.mark.parametrize("seed", range(5))
def test_a_sudden_rise_of_the_loss_is_one_alarm_with_its_size_and_its_window(seed):
    drift = watch()
    assert feed(drift, losses(seed, 2.0, 3_000)) == []
    alarms = feed(drift, losses(seed + 100, 4.0, 900))
    assert len(alarms) == 1
    alarm = alarms[0]
    assert (alarm.signal, alarm.direction, alarm.worse) == (LOSS, WORSE, True)
    assert 3_000 < alarm.at <= 3_300
    assert alarm.at_s == START + alarm.at - 1
    assert abs(alarm.since - 3_000) <= 30
    assert abs(alarm.since_s - (START + 3_000)) <= 30
    assert alarm.before == pytest.approx(2.0, abs=0.2)
    assert alarm.after == pytest.approx(4.0, abs=0.7)
    assert alarm.size == pytest.approx(alarm.after - alarm.before, abs=1e-4)
    assert (drift.alarms, drift.last_alarm) == (1, alarm.as_dict())
    assert f"since click {alarm.since:,}" in str(alarm)


@pytest.mark.parametrize("seed", range(5))
def test_a_hit_rate_that_falls_is_an_alarm_though_the_loss_stays(seed):
    drift = watch()
    assert feed(drift, some_hits=hits(seed, 0.7, 3_000)) == []
    alarms = feed(drift, some_hits=hits(seed + 100, 0.3, 900))
    assert [(alarm.signal, alarm.direction) for alarm in alarms] == [(HIT_RATE, WORSE)]
    assert 3_000 < alarms[0].at <= 3_500
    assert alarms[0].before == pytest.approx(0.7, abs=0.05)
    assert alarms[0].size < -0.2


def test_a_change_of_one_event_type_is_found_in_that_type():
    n = 4_000
    purchases = [at % 5 == 0 for at in range(n)]
    changed = losses(1, 2.0, n)
    for at, loss in enumerate(losses(2, 3.5, n)):
        if purchases[at] and at >= 3_000:
            changed[at] = loss
    alarms = feed(watch(), changed, types=("purchase", "click", "click", "click", "click"))
    assert alarms[0].event_type == "purchase"
    assert alarms[0].worse
    assert "of 'purchase'" in str(alarms[0])
    assert abs(alarms[0].since - 3_000) <= 100


@pytest.mark.parametrize("detector", ["ADWIN", "Page-Hinkley"])
def test_each_detector_finds_a_change_by_itself(detector):
    deaf = {"ADWIN": {"threshold": 1e9}, "Page-Hinkley": {"delta": 1e-300}}[detector]
    drift = watch(SENSITIVITY._replace(**deaf))
    assert feed(drift, losses(1, 2.0, 3_000)) == []
    alarms = feed(drift, losses(2, 4.0, 900))
    assert [alarm.detector for alarm in alarms] == [detector]
    assert abs(alarms[0].since - 3_000) <= 30


@pytest.mark.parametrize("seed", range(5))
def test_noise_that_stays_the_same_is_no_change(seed):
    drift = watch()
    assert feed(drift, losses(seed, 2.0, 10_000), hits(seed, 0.6, 10_000)) == []
    assert (drift.alarms, drift.improvements, drift.last_alarm) == (0, 0, None)


def test_learning_is_distinguished_from_harm():
    drift = watch()
    falling = np.array(losses(1, 1.0, 4_000)) * np.linspace(5, 1, 4_000).clip(2)
    found = feed(drift, falling.tolist(), hits(1, 0.2, 1_000) + hits(2, 0.6, 3_000))
    assert found
    assert {alarm.direction for alarm in found} == {BETTER}
    assert (drift.alarms, drift.last_alarm) == (0, None)
    assert drift.improvements == len(found)
    assert drift.last_improvement == found[-1].as_dict()


def test_after_the_cooling_time_a_new_change_is_a_new_alarm():
    drift = watch(cooling_clicks=800)
    feed(drift, losses(1, 2.0, 2_000))
    assert len(feed(drift, losses(2, 4.0, 1_500))) == 1
    assert len(feed(drift, losses(3, 8.0, 700))) == 1
    assert drift.alarms == 2


def test_a_change_that_comes_and_goes_within_the_cooling_time_is_one_alarm():
    drift = watch(cooling_clicks=2_000)
    feed(drift, losses(1, 2.0, 2_000))
    found = feed(drift, losses(2, 4.0, 600) + losses(3, 2.0, 600) + losses(4, 4.0, 600))
    assert sum(alarm.worse for alarm in found) == 1


def test_types_beyond_the_limit_share():
    drift = watch(types_max=2)
    feed(drift, losses(1, 2.0, 700), types=("a", "b", "c", "d", "e", "f", "g"))
    kept = [one["event_type"] for one in drift.to_state()["signals"]]
    assert kept == [None, "a", "b", "other types"]


@pytest.mark.parametrize("cut", [0, 3, 500, 999, 1_000, 1_001, 2_517, 4_200])
def test_restored_from_json_it_goes_on_as_if_nothing_had_happened(cut):
    stream = (losses(3, 2.0, 2_000) + losses(4, 3.0, 3_000), hits(3, 0.6, 2_000) + hits(4, 0.4, 3_000))
    whole, stopped, restored = watch(), watch(), watch()
    for one in (whole, stopped):
        feed(one, stream[0][:cut], stream[1][:cut], types=("click", "purchase"))
    restored.load_state(json.loads(json.dumps(stopped.to_state())))
    assert restored.to_state() == stopped.to_state()
    for at in range(cut, 5_000, 7):
        some = stream[0][at : at + 7], stream[1][at : at + 7]
        assert feed(restored, *some, types=("click", "purchase")) == feed(whole, *some, types=("click", "purchase"))
        assert restored.mean_loss == whole.mean_loss
    assert whole.alarms
    assert restored.to_state() == whole.to_state()


def test_how_clicks_are_cut_into_batches_makes_no_difference():
    some_losses, some_hits = losses(3, 2.0, 700) + losses(4, 5.0, 700), hits(3, 0.5, 1_400)
    whole, cut = watch(), watch()
    found = feed(whole, some_losses, some_hits)
    parts = [feed(cut, some_losses[at : at + 13], some_hits[at : at + 13]) for at in range(0, 1_400, 13)]
    assert found == [alarm for part in parts for alarm in part]
    assert found
    assert whole.to_state() == cut.to_state()


def test_what_is_kept_is_bounded_and_the_mean_goes_on():
    drift = watch(SENSITIVITY._replace(values_held=100))
    for seed in range(20):
        feed(drift, losses(seed, 2.0, 500))
        state = drift.to_state()
        assert len(state["times"]) <= 100
        for pair in state["signals"]:
            for signal in (pair["loss"], pair["hits"]):
                assert len(signal["values"]) == len(signal["since"]) < 100
                assert len(signal["pending"]) < 10
    assert drift.watched == 10_000
    assert drift.mean_loss == pytest.approx(2.0, abs=0.3)


def test_with_a_smaller_limit_after_a_restart_the_latest_are_kept():
    large, small = watch(), watch(SENSITIVITY._replace(values_held=100))
    feed(large, losses(0, 2.0, 3_000))
    small.load_state(large.to_state())
    kept, all_of_them = (drift.to_state()["signals"][0]["loss"]["values"] for drift in (small, large))
    assert kept == all_of_them[-99:]
    feed(small, losses(1, 2.0, 3_000))
    assert len(small.to_state()["signals"][0]["loss"]["values"]) < 100


@given(before=st.integers(3, 60), after=st.integers(3, 60), seed=st.integers(0, 99))
def test_the_change_point_is_where_the_level_rises(before, after, seed):
    noise = np.random.default_rng(seed).normal(0, 0.01, before + after)
    assert change_point(noise + np.repeat([1.0, 2.0], [before, after])) == before


def test_a_value_is_the_mean_of_so_many_clicks_and_knows_where_they_began():
    signal = Signal(LOSS, None, 4, SENSITIVITY)
    for at in range(1, 11):
        assert signal.update(at, float(at)) is None
    state = signal.to_state()
    assert (state["values"], state["since"]) == ([2.5, 6.5], [0, 4])
    assert (state["pending"], state["pending_since"]) == ([9.0, 10.0], 8)
    assert signal.lately == 4.5
