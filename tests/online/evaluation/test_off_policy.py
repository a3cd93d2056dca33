"""Off-policy estimates: right where the answer is known, wide where little is known, and a word where it is not."""

import numpy as np
import pytest

from benchmarks.off_policy import simulated
from online.evaluation.off_policy import (
    ESTIMATORS,
    INTERVALS,
    Options,
    PolicyLog,
    effective_size,
    estimates,
    gamma_interval,
    on_policy,
    weights_of,
)  # fmt: skip
from online.evaluation.off_policy_report import evaluate, recommended_of
from online.evaluation.policy_log import Loaded
from online.evaluation.reward_model import RewardModel

BOTH = ("logged", "frequencies")
USUAL = Options()


def values_of(log, by, options=USUAL):
    return {one.estimator: one for one in estimates(log, by, options)}


def small_log(**change):
    """Two actions in one group: the first is shown three times as often, and the second is twice as good."""
    parts = {
        "action": np.array([0] * 30 + [1] * 10),
        "reward": np.array([0.0, 0.0, 1.0] * 10 + [1.0, 1.0, 0.0, 0.0, 1.0] * 2),
        "target": np.array([0.25] * 30 + [0.75] * 10),
        "propensity": np.array([0.75] * 30 + [0.25] * 10),
        "context": np.zeros(40, dtype=np.int64),
        "position": np.zeros(40, dtype=np.int64),
    }
    return PolicyLog(**parts | change)


@pytest.mark.parametrize("by", BOTH)
def test_each_estimator_gives_what_can_be_worked_out_by_hand(by):
    found = values_of(small_log(), by)
    assert list(found) == list(ESTIMATORS)
    # A quarter of 1/3 and three quarters of 6/10. The reward model is of other folds, by which dr differs a little.
    for name in ("ips", "snips"):
        assert found[name].value == pytest.approx(0.25 / 3 + 0.75 * 0.6)
    assert found["dr"].value == pytest.approx(0.25 / 3 + 0.75 * 0.6, abs=0.02)
    assert found["ips"].effective == pytest.approx(40**2 / (30 / 9 + 10 * 9))


@pytest.mark.parametrize("interval", INTERVALS)
def test_the_logged_policy_s_own_value_is_the_mean(interval):
    log = small_log(target=np.array([0.75] * 30 + [0.25] * 10))
    options = Options(interval=interval)
    own = on_policy(log, options)
    assert own.value == pytest.approx(log.reward.mean())
    assert own.low < own.value < own.high
    for one in estimates(log, "logged", options):
        assert one.value == pytest.approx(own.value, rel=0 if "dr" not in one.estimator else 1e-3, abs=1e-12)
        assert one.effective == pytest.approx(40)


def test_frequencies_repair_propensities_of_a_wrong_scale_and_snips_does_too():
    wrong = small_log(propensity=np.array([0.75] * 30 + [0.25] * 10) / 2)
    right = 0.25 / 3 + 0.75 * 0.6
    assert values_of(wrong, "logged")["ips"].value == pytest.approx(2 * right)
    assert values_of(wrong, "logged")["snips"].value == pytest.approx(right)
    assert values_of(wrong, "frequencies")["ips"].value == pytest.approx(right)


def test_clipping_lowers_the_largest_weight_and_raises_the_effective_size():
    log, _ = simulated(0, 3_000, from_uniform=False)
    found = values_of(log, "logged", Options(clip=5.0))
    assert found["ips-clipped"].value <= found["ips"].value
    assert found["ips-clipped"].effective > found["ips"].effective
    assert values_of(log, "logged", Options(clip=1e9))["dr-clipped"].value == found["dr"].value


@pytest.mark.parametrize("from_uniform", [True, False])
@pytest.mark.parametrize("by", BOTH)
def test_the_estimates_average_the_true_value(by, from_uniform):
    errors: dict[str, list[float]] = {}
    for seed in range(60):
        log, value = simulated(seed, 3_000, from_uniform=from_uniform)
        for one in estimates(log, by, Options()):
            errors.setdefault(one.estimator, []).append(one.value / value - 1)
    for name in ("ips", "dr", "dr-clipped"):
        error = np.std(errors[name]) / np.sqrt(60)
        assert abs(np.mean(errors[name])) < 3.5 * error, name


@pytest.mark.parametrize("from_uniform", [True, False])
def test_the_recommended_interval_covers_the_true_value_as_often_as_it_says(from_uniform):
    runs, covered = 200, 0
    for seed in range(runs):
        log, value = simulated(seed, 3_000, from_uniform=from_uniform)
        one = recommended_of([one for by in BOTH for one in estimates(log, by, Options())], len(log))
        covered += one.low <= value <= one.high
    assert covered >= 0.95 * runs - 1.96 * np.sqrt(0.95 * 0.05 * runs)


def test_requests_that_repeat_each_row_make_the_interval_no_narrower():
    log, _ = simulated(1, 3_000, from_uniform=True)
    rows = np.repeat(np.arange(3_000), 4)
    four = log.take(rows)
    told = PolicyLog(**{**four.__dict__, "unit": rows})
    once, naive, right = (values_of(one, "logged")["ips"] for one in (log, four, told))
    assert naive.high - naive.low < 0.7 * (once.high - once.low)
    assert right.high - right.low == pytest.approx(once.high - once.low, rel=0.15)


def test_the_reward_model_never_judges_a_row_by_itself():
    log, _ = simulated(2, 1_000, from_uniform=True)
    cells, unit = log.cells(), np.arange(1_000)
    before = RewardModel.fit(log.reward, cells, unit, folds=5, seed=0)
    changed = log.reward.copy()
    changed[7] = 0.9
    after = RewardModel.fit(changed, cells, unit, folds=5, seed=0)
    assert after.strength == before.strength
    assert after.fitted[7] == before.fitted[7]
    assert after.direct[7] == before.direct[7]
    assert (after.fitted != before.fitted).any()


def test_what_the_log_never_shows_is_expected_to_earn_what_its_context_does():
    log = small_log(target=np.array([0.1] * 30 + [0.4] * 10))  # half of the probability is on a third action
    found = values_of(log, "logged")
    assert found["dr"].value == pytest.approx(0.1 / 3 + 0.4 * 0.6 + 0.5 * 0.4, abs=0.03)
    assert found["ips"].value == pytest.approx(0.1 / 3 + 0.4 * 0.6)


def test_a_log_without_any_reward_has_an_upper_limit():
    one = on_policy(small_log(reward=np.zeros(40)), Options())
    assert one.value == one.low == 0
    assert one.high == pytest.approx(-np.log(0.025) / 40)  # the exact limit is 1 - 0.025 ** (1 / 40) = 0.088


def test_rewards_below_zero_are_taken():
    log = small_log(reward=np.random.default_rng(0).normal(-1, 1, 40))
    for interval in INTERVALS:
        for one in estimates(log, "logged", Options(interval=interval)):
            assert one.low < one.value < one.high


def test_the_gamma_interval_is_the_exact_one_of_a_count():
    # Of a Poisson count of 7: 2.81 and 14.42 (Garwood 1936).
    assert gamma_interval(7, 7, 1, 0.95) == pytest.approx((2.81, 14.42), abs=0.01)
    assert gamma_interval(1_000, 100, 0, 0.95) == pytest.approx((980.5, 1019.7), abs=0.1)  # nearly normal


def test_the_effective_size_of_equal_weights_is_their_number():
    assert effective_size(np.full(9, 0.3)) == pytest.approx(9)
    assert effective_size(np.array([1.0, 0.0, 0.0])) == 1
    assert effective_size(np.zeros(3)) == 0


def warned(log):
    return " | ".join(evaluate(Loaded(log, 2, 1), Options()).warnings)


def test_poor_overlap_tiny_propensities_and_what_is_never_shown_are_warned_of():
    log, _ = simulated(3, 30_000, from_uniform=True)
    assert warned(log) == ""
    tiny = log.propensity.copy()
    tiny[0] = 1e-8
    text = warned(PolicyLog(**{**log.__dict__, "propensity": tiny}))
    assert "the overlap is poor" in text
    assert "propensity 1e-08" in text
    assert "50.0% of the evaluated policy's probability" in warned(small_log(target=np.array([0.1] * 30 + [0.4] * 10)))


def test_propensities_of_another_policy_are_noticed():
    log, _ = simulated(3, 30_000, from_uniform=True)
    assert "have the mean 2.0" in warned(PolicyLog(**{**log.__dict__, "propensity": log.propensity / 2}))


def test_without_propensities_there_are_frequencies_only():
    log, _ = simulated(4, 3_000, from_uniform=True)
    report = evaluate(Loaded(PolicyLog(**{**log.__dict__, "propensity": np.full(3_000, np.nan)}), 60, 1), Options())
    assert {one.weights for one in report.estimates} == {"frequencies"}
    assert report.recommended.estimator == "dr"
    assert any("do not depend on what moved" in line for line in report.remarks)


def test_weights_by_frequency_count_within_context_and_position():
    log = small_log(position=np.array([0, 1] * 20))
    cells = log.cells()
    frequency = np.array([15 / 20] * 30 + [5 / 20] * 10)
    assert weights_of(log, cells, "frequencies") == pytest.approx(log.target / frequency)
