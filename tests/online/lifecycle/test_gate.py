"""The gate's test: its formulas against numbers integrated and summed slowly, and its errors by simulation."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.config.gate_limits import BLOCKS_MIN, GateLimits
from online.lifecycle.gate import SequentialGate, log_e_value, mixture_spread

LIMITS = GateLimits(alpha=0.05, margin=0.02, block_clicks=25, clicks_max=4_000)
SIMULATED = 400


def scores(seed, clicks=4_200, ratio=1.0, agree=0.6):
    """Scores of two models (2, clicks): users come in sessions, some of which the models find easy; where they do not
    agree, they fail and succeed independently. The candidate's mean is exactly `ratio` times the live one's."""
    rng = np.random.default_rng(seed)
    sessions = np.repeat(rng.beta(0.6, 1.4, clicks), rng.integers(1, 24, clicks))[:clicks]
    gains = 1 / np.log2(1 + rng.integers(1, 11, (2, clicks)))
    live = (rng.random(clicks) < sessions) * gains[0] / 2
    other = (rng.random(clicks) < sessions) * gains[1] / 2
    return live, ratio * np.where(rng.random(clicks) < agree, live, other)


def decided(gate, live, candidate, step=32):
    for start in range(0, len(live), step):
        if gate.add(live[start : start + step], candidate[start : start + step]) != "go on":
            break
    return gate.decision


def outcomes(ratio, limits=LIMITS, agree=0.6):
    gates = [SequentialGate(limits) for _ in range(SIMULATED)]
    found = [decided(gate, *scores(seed, ratio=ratio, agree=agree)) for seed, gate in enumerate(gates)]
    return {name: found.count(name) for name in ("publish", "reject", "go on")}, [gate.clicks for gate in gates]


# --- formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "blocks", "spread"), [(0, 1, 0.3), (12.5, 40, 0.2), (-9.0, 90, 0.4), (70, 100, 0.1)])
def test_the_e_value_is_the_likelihood_ratio_averaged_over_the_half_normal(total, blocks, spread):
    theta, width = np.linspace(0, 12 * spread, 400_000, retstep=True)
    ratio = np.exp(theta * total - blocks * theta**2 / 2)
    prior = 2 * np.exp(-((theta / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
    assert log_e_value(total, blocks, spread) == pytest.approx(math.log(np.sum(ratio * prior) * width), abs=1e-3)


def test_the_e_value_of_a_hopeless_candidate_is_a_number():
    near, far = log_e_value(-80.1, 100, 1.0), log_e_value(-79.9, 100, 1.0)
    assert math.isfinite(log_e_value(-1e6, 100, 1.0))
    assert near == pytest.approx(far, abs=0.02)  # on both sides of where the formula changes


def test_the_spread_is_about_the_one_whose_boundary_is_tightest():
    def half_width(spread, blocks=50, alpha=0.05):
        room = blocks * spread**2 + 1
        return math.sqrt(2 * room / (blocks * spread) ** 2 * math.log(math.sqrt(room) / alpha))

    tightest = min(half_width(spread) for spread in np.geomspace(0.01, 10, 2_000))
    assert half_width(mixture_spread(0.05, 50)) == pytest.approx(tightest, rel=0.01)


def slowly(limits, live, candidate):
    """The same decision from all scores at once: after each block, everything is computed anew."""
    size, share = limits.block_clicks, 1 - limits.margin
    spread = mixture_spread(limits.alpha, limits.clicks_max / size / 4)
    for blocks in range(BLOCKS_MIN, len(live) // size + 1):
        a, b = (x[: blocks * size].reshape(blocks, size).mean(axis=1) for x in (live, candidate))
        above, below = b - share * a, max(1.0, share) * a - b
        if log_e_value(above.sum() / above.std(ddof=1), blocks, spread) >= math.log(2 / limits.alpha):
            return "publish", blocks * size
        if log_e_value(below.sum() / below.std(ddof=1), blocks, spread) >= math.log(1 / limits.alpha):
            return "reject", blocks * size
        if (blocks + 1) * size > limits.clicks_max:
            sure = above.mean() - 1.959964 * above.std(ddof=1) / math.sqrt(blocks) > 0
            return ("publish" if sure else "reject"), blocks * size
    return "go on", len(live) // size * size


@pytest.mark.parametrize("margin", [0.02, -0.03])
@pytest.mark.parametrize("ratio", [0.7, 0.9, 1.0, 1.1])
def test_it_decides_as_if_all_were_computed_anew_after_each_block(ratio, margin):
    limits = GateLimits(alpha=0.05, margin=margin, block_clicks=25, clicks_max=1_500)
    for seed in range(8):
        live, candidate = scores(seed, clicks=1_600, ratio=ratio)
        gate = SequentialGate(limits)
        assert (decided(gate, live, candidate, step=25), gate.clicks) == slowly(limits, live, candidate)


@given(cuts=st.lists(st.integers(0, 900), max_size=20), seed=st.integers(0, 5), restart_at=st.integers(0, 20))
def test_neither_micro_batches_nor_a_restart_change_anything(cuts, seed, restart_at):
    live, candidate = scores(seed, clicks=900)
    whole, cut = SequentialGate(LIMITS), SequentialGate(LIMITS)
    whole.add(live, candidate)
    bounds = [0, *sorted(cuts), 900]
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        if number == restart_at:
            state, cut = json.loads(json.dumps(cut.to_state())), SequentialGate(LIMITS)
            cut.load_state(state)
        cut.add(live[start:end], candidate[start:end])
    assert cut.decision == whole.decision
    assert cut.clicks == whole.clicks
    assert cut.log_e_publish == pytest.approx(whole.log_e_publish, abs=1e-9)


def test_what_is_saved_is_restored_exactly():
    live, candidate = scores(3, clicks=700)
    gate, again = SequentialGate(LIMITS), SequentialGate(LIMITS)
    gate.add(live[:333], candidate[:333])
    again.load_state(json.loads(json.dumps(gate.to_state())))
    for one in (gate, again):
        one.add(live[333:], candidate[333:])
    assert again.to_state() == gate.to_state()
    assert again.figures() == gate.figures()


# --- errors and power --------------------------------------------------------------------------------------------


def test_what_is_worse_by_the_margin_is_published_no_more_often_than_promised():
    """It looks after every block, and at the limit once more: all of it together stays below alpha."""
    found, _ = outcomes(1 - LIMITS.margin)
    assert found["publish"] <= LIMITS.alpha * SIMULATED + 2 * math.sqrt(LIMITS.alpha * SIMULATED)


def test_looking_after_each_block_with_an_ordinary_test_would_not_do():
    """So the simulation can tell: an interval of fixed size, looked at all the time, is wrong far too often."""
    wrong = 0
    for seed in range(SIMULATED):
        live, candidate = scores(seed, ratio=1 - LIMITS.margin)
        contrast = (candidate - 0.98 * live)[:4_000].reshape(-1, 25).mean(axis=1)
        counts = np.arange(1, len(contrast) + 1)
        means = np.cumsum(contrast) / counts
        deviations = np.sqrt(np.cumsum(contrast**2) / counts - means**2)
        wrong += bool(np.any((means * np.sqrt(counts) > 1.645 * deviations)[BLOCKS_MIN:]))
    assert wrong > 3 * LIMITS.alpha * SIMULATED


def test_a_candidate_no_worse_is_rejected_early_no_more_often_than_promised():
    found, clicks = outcomes(1.0)
    early = sum(count < LIMITS.clicks_max - LIMITS.block_clicks for count in clicks)
    assert found["go on"] == 0
    assert early - found["publish"] <= LIMITS.alpha * SIMULATED


def test_what_is_better_by_a_twentieth_is_published():
    found, clicks = outcomes(1.05, agree=0.75)
    assert found["publish"] >= 0.95 * SIMULATED
    assert np.median(clicks) <= LIMITS.clicks_max / 2


def test_what_is_sabotaged_is_never_published_and_soon_rejected():
    found, clicks = outcomes(0.5)
    assert found == {"publish": 0, "reject": SIMULATED, "go on": 0}
    assert max(clicks) <= 1_000


def test_a_predecessor_that_is_clearly_better_is_found_and_an_equal_one_is_not():
    limits = GateLimits(alpha=0.01, margin=-0.05, block_clicks=25, clicks_max=4_000)
    better, clicks = outcomes(2.0, limits)
    assert better["publish"] == SIMULATED
    assert max(clicks) <= 1_000
    equal, _ = outcomes(1.0, limits)
    assert equal["publish"] <= 0.01 * SIMULATED


# --- edges -------------------------------------------------------------------------------------------------------


def test_models_that_always_agree_are_no_worse():
    live, _ = scores(0)
    gate = SequentialGate(LIMITS)
    assert decided(gate, live, live) == "publish"
    assert gate.clicks == BLOCKS_MIN * LIMITS.block_clicks


def test_models_that_never_hit_anything_are_not_distinguished():
    gate = SequentialGate(LIMITS)
    assert decided(gate, np.zeros(5_000), np.zeros(5_000)) == "reject"
    assert gate.clicks == LIMITS.clicks_max


def test_a_score_that_is_no_number_rejects_at_once():
    gate = SequentialGate(LIMITS)
    assert gate.add(np.ones(3), np.array([1.0, np.nan, 1.0])) == "reject"
    assert gate.add(np.ones(3), np.ones(3)) == "reject"


def test_scores_of_different_clicks_are_refused():
    with pytest.raises(ValueError, match="shape"):
        SequentialGate(LIMITS).add(np.ones(3), np.ones(4))


def test_figures_say_what_is_known_and_its_interval_holds_the_difference():
    gate = SequentialGate(LIMITS)
    assert gate.figures()["live"] is None
    live, candidate = scores(1, ratio=1.02)
    gate.add(live[:10], candidate[:10])
    assert gate.figures()["live"] == pytest.approx(live[:10].mean(), abs=1e-5)
    assert gate.figures()["interval"] is None
    gate.add(live[10:260], candidate[10:260])
    known = json.loads(json.dumps(gate.figures(), allow_nan=False))
    assert known["clicks"] == 260
    assert known["difference"] == pytest.approx((candidate - live)[:250].mean(), abs=1e-5)
    low, high = known["interval"]
    assert low < known["difference"] < high
    assert 0 < known["p_publish"] <= 1


def test_the_interval_misses_at_any_look_no_more_often_than_promised():
    missed = 0
    for seed in range(100):
        live, candidate = scores(seed, clicks=2_500)
        gate = SequentialGate(GateLimits(alpha=0.05, margin=-0.99, block_clicks=25, clicks_max=10**6))
        looks = []
        for start in range(0, 2_500, 25):
            gate.add(live[start : start + 25], candidate[start : start + 25])
            if interval := gate.figures()["interval"]:
                looks.append(interval[0] <= 0 <= interval[1])
        missed += not all(looks)
    assert missed <= 9
