"""Private steps: what one user can change, the noise, the budget, and what a checkpoint brings back."""

import json
import math
import sys
from collections import defaultdict

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm

from online.config.settings import SettingsError
from online.learner.privacy import training as training_module
from online.learner.privacy.accountant import Accountant
from online.learner.privacy.training import (
    COUNT_SHARE,
    DEVIATIONS_MIN,
    FEW_STEPS_MAX,
    NORM_FACTOR,
    PrivateTraining,
    clipped_sum,
)
from online.learner.user_stores import UserKey

P = 6
PRIVATE = {"privacy_epsilon": 8.0, "privacy_seed": 3, "privacy_clicks_per_step": 40, "step_clicks": 8}


@pytest.fixture
def training(small):
    return lambda weights=P, **changed: PrivateTraining(small(**PRIVATE | changed), weights)


def stream(clicks=400, users=30, weights=P, seed=0):
    """Gradients (clicks, weights) of any length, and users' hashes; some users click much more often than others."""
    random = np.random.default_rng(seed)
    hashes = 1 + np.minimum(random.geometric(0.1, clicks), users)
    lengths = random.lognormal(0, 2, (clicks, 1))
    return (lengths * random.normal(size=(clicks, weights))).astype(np.float32), hashes


def taken(training, gradients, hashes, *, size=8):
    """The sums of all steps, None where one moved nothing."""
    found = []
    for start in range(0, len(hashes), size):
        training.add(gradients[start : start + size], hashes[start : start + size])
        if training.due:
            found.append(training.take())
    return found


def slow_sums(gradients, hashes, *, clip, per_step, per_user):
    """The sums of all steps without noise, in the plainest form, and how many users were in each."""
    took, found = defaultdict(int), []
    for start in range(0, len(hashes) - per_step + 1, per_step):
        of_user = defaultdict(lambda: np.zeros(gradients.shape[1]))
        for gradient, user in zip(gradients[start : start + per_step], hashes[start : start + per_step], strict=True):
            if took[user] < per_user and gradient.any():
                of_user[user] += gradient
        for user in of_user:
            took[user] += 1
        total = np.zeros(gradients.shape[1])
        for one in of_user.values():
            total += one * min(1.0, clip / np.linalg.norm(one))
        found.append((total, len(of_user)))
    return found


@pytest.mark.parametrize("users", [30, 500])  # of which a step has fewer, or more, than there is room for at first
def test_sums_are_those_of_the_plain_form(training, monkeypatch, users):
    gradients, hashes = stream()
    hashes = hashes if users == 30 else 1 + np.arange(len(hashes)) % users
    per_step = 40 if users == 30 else 200
    one = training(privacy_clip_norm=0.7, privacy_steps_per_user=3, privacy_clicks_per_step=per_step)
    monkeypatch.setattr(one, "_random", Silent())
    found = taken(one, gradients, hashes)
    wanted = slow_sums(gradients, hashes, clip=0.7, per_step=per_step, per_user=3)
    assert len(found) == len(wanted) == 400 // per_step
    least = DEVIATIONS_MIN * one.accountant.noise_multiplier * NORM_FACTOR / COUNT_SHARE
    for step, (total, there) in zip(found, wanted, strict=True):
        if there < least:
            assert step is None
        else:
            np.testing.assert_allclose(step * per_step, total, rtol=1e-4, atol=1e-5)
    assert {step is None for step in found} >= {False}


class Silent:
    """Noise of 0."""

    def normal(self, _, __, size=None):
        return np.zeros(size) if size else 0.0


@pytest.mark.parametrize("user", [2, 5, 20])
def test_a_user_changes_few_steps_each_by_the_clip_norm_at_most(training, monkeypatch, user):
    """The same noise with the user and without, whose clicks leave their places empty."""
    gradients, hashes = stream()
    without = np.where((hashes == user)[:, None], 0, gradients).astype(np.float32)
    monkeypatch.setattr(training_module, "DEVIATIONS_MIN", -math.inf)  # so that each step shows
    kwargs = {"privacy_epsilon": 1e6, "privacy_clip_norm": 0.5, "privacy_steps_per_user": 2}
    pairs = [taken(training(**kwargs), one, hashes) for one in (gradients, without)]
    changes = [np.linalg.norm(40 * (one - other)) for one, other in zip(*pairs, strict=True)]
    assert 0 < sum(change > 1e-6 for change in changes) <= 2
    assert max(changes) <= 0.5 * (1 + 1e-5)


def test_clipping_bounds_what_one_user_adds():
    random = np.random.default_rng(1)
    sums = (random.lognormal(0, 3, (50, 1)) * random.normal(size=(50, P))).astype(np.float32)
    whole = clipped_sum(sums, 2.0)
    changes = [np.linalg.norm(whole - clipped_sum(np.delete(sums, at, 0), 2.0)) for at in range(50)]
    lengths = np.minimum(2.0, np.linalg.norm(sums, axis=1))
    np.testing.assert_allclose(changes, lengths, rtol=1e-4)


def test_a_gradient_that_is_not_finite_counts_as_none():
    sums = np.array([[1, 0], [np.nan, 1], [np.inf, 1]], np.float32)
    np.testing.assert_array_equal(clipped_sum(sums, 5.0), [1, 0])


def test_the_noise_has_the_deviation_that_the_accountant_says(training):
    one = training(weights=40_000, privacy_clip_norm=3.0)
    gradients = np.zeros((40, 40_000), np.float32)
    gradients[:, 0] = 1
    one.add(gradients, np.arange(40))
    wanted = 3.0 * one.accountant.noise_multiplier * math.hypot(1, COUNT_SHARE) / 40
    noise = one.take()[1:]
    assert noise.std() == pytest.approx(wanted, rel=0.02)
    assert abs(noise.mean()) < 4 * wanted / 200


def test_the_noise_differs_from_one_process_to_the_next(training):
    gradients, hashes = stream(40)
    first, second = (taken(training(privacy_epsilon=1e6, privacy_seed=-1), gradients, hashes) for _ in range(2))
    assert not np.array_equal(first[0], second[0])


def exact_epsilon(deviation, delta):
    """The least epsilon of one Gaussian mechanism (Balle and Wang 2018, theorem 8), by bisection."""
    low, high = 0.0, 1_000.0
    for _ in range(200):
        epsilon = (low + high) / 2
        a, b = 1 / (2 * deviation) - epsilon * deviation, -1 / (2 * deviation) - epsilon * deviation
        found = norm.cdf(a) - math.exp(min(700.0, epsilon + norm.logcdf(b)))
        low, high = (epsilon, high) if found > delta else (low, epsilon)
    return high


def by_library(noise, steps, delta=1e-6):
    """The epsilon of steps that compose by their privacy loss distributions."""
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(noise), steps))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("epsilon", "steps"), [(1.0, 1), (8.0, 4), (3.0, 50)])
def test_the_accountant_spends_what_the_library_says_of_as_many_steps(epsilon, steps):
    accountant = Accountant(epsilon, 1e-6, steps)
    for _ in range(steps):
        assert accountant.allows_step()
        accountant.count_step()
    assert 0.995 * epsilon < accountant.spent() <= epsilon
    assert accountant.spent() == pytest.approx(by_library(accountant.noise_multiplier, steps), rel=2e-3)
    assert accountant.spent() == pytest.approx(exact_epsilon(accountant.noise_multiplier / math.sqrt(steps), 1e-6))


def test_more_steps_than_a_user_takes_part_in_spend_nothing():
    accountant = Accountant(2.0, 1e-6, 3)
    spent = []
    for _ in range(9):
        accountant.count_step()
        spent.append(accountant.spent())
    assert spent[0] < spent[1] < spent[2] == spent[8] <= 2.0
    assert accountant.allows_step()
    assert accountant.steps == 9


def test_steps_of_other_settings_count_with_their_own_noise():
    first, second = Accountant(4.0, 1e-6, 2), Accountant(1.0, 1e-6, 2)
    first.count_step()
    second.load_state(json.loads(json.dumps(first.to_state())))
    assert not second.allows_step()  # one step under the larger budget is worth more than the smaller one
    wider = Accountant(8.0, 1e-6, 2)
    wider.load_state(first.to_state())
    for _ in range(3):
        wider.count_step()
    # The worst that one user can have taken part in: two steps, of those with the least noise.
    assert wider.noise_multiplier < first.noise_multiplier
    assert wider.spent() == pytest.approx(by_library(wider.noise_multiplier, 2), rel=2e-3)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SettingsError, match=r"NEXTCLICK_PRIVACY_EPSILON needs .*'nextclick\[privacy\]'"):
        Accountant(1.0, 1e-6, 1)


def test_after_the_last_step_nothing_is_taken_and_it_is_told_once(training):
    one = training(privacy_steps=3, privacy_epsilon=1e3)
    gradients, hashes = stream()
    assert len(taken(one, gradients, hashes)) == 3
    notice = one.take_notice()
    assert (notice.kind, one.take_notice()) == ("privacy_budget_spent", None)
    assert notice.text.startswith("the privacy budget is spent (epsilon ")
    assert one.describe() | {"exhausted": True, "steps": 3} == one.describe()
    assert one.usage()[0] <= one.usage()[1]


def test_steps_of_too_few_users_move_nothing_and_operators_are_told(training):
    one = training(privacy_steps_per_user=1)
    gradients = np.ones((40 * (FEW_STEPS_MAX + 3), P), np.float32)
    many, few = np.arange(1, 41), np.full(40 * FEW_STEPS_MAX, 99)
    hashes = np.concatenate([many, few, many + 100, many + 200, many + 300])[: len(gradients)]
    found = taken(one, gradients, hashes, size=40)
    assert [step is None for step in found[: FEW_STEPS_MAX + 2]] == [False, *[True] * FEW_STEPS_MAX, False]
    assert one.describe()["moved"] == one.describe()["steps"] - FEW_STEPS_MAX
    assert one.take_notice().kind == "privacy_few_users_over"  # the later of the two


def test_a_restored_step_goes_on_with_the_same_noise(training):
    gradients, hashes = stream()
    whole, half = training(), training(privacy_seed=4)
    taken(whole, gradients[:200], hashes[:200])
    whole.add(gradients[200:210], hashes[200:210])
    arrays, state = whole.to_state()
    half.load_state(arrays, json.loads(json.dumps(state)))
    for one, other in zip(*(taken(t, gradients[210:], hashes[210:], size=10) for t in (whole, half)), strict=True):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)
    assert whole.describe() == half.describe()


def test_nothing_of_a_forgotten_user_is_in_the_step(training):
    gradients, hashes = stream(30)
    one, other = training(privacy_epsilon=1e6), training(privacy_epsilon=1e6)
    one.add(gradients, hashes)
    user = UserKey(frozenset(), int(hashes[3]))
    assert one.count_user(user) == one.forget_user(user) == {"private_gradients": 1, "private_steps": 0}
    assert one.count_user(user) == {"private_gradients": 0, "private_steps": 0}
    other.add(np.where((hashes == hashes[3])[:, None], 0, gradients).astype(np.float32), hashes)
    np.testing.assert_allclose(one.take(), other.take(), atol=1e-6)
