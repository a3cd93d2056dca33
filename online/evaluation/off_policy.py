"""What another policy would have earned, from the log of the one that was in charge (off-policy evaluation).

`N` logged rows (an item shown at a position), `G` groups (context and position: what probabilities depend on), `C`
cells (an action in a group), `K` folds, `U` independent units (requests; rows where nothing is said).

Three estimators, each also with clipped weights, from w = target / propensity and the reward r of each row:

- `ips`: mean of w r (Horvitz and Thompson 1952). Unbiased; its variance grows with the largest weights.
- `snips`: sum of w r / sum of w (Swaminathan and Joachims 2015). Right also where the weights do not average 1.
- `dr`: mean of m + w (r - q), with q a model of the reward and m its mean under the evaluated policy (Dudik, Langford
  and Li 2011). The model (online/evaluation/reward_model.py) is cross-fitted: no row is judged by one that saw it.

The weights come from the propensities that were logged, or from *frequencies*: how often the log shows the action in
the same group. These vary far less where the logged policy changed over time, as one that learns does (an estimated
propensity is more efficient than the true one: Hirano, Imbens and Ridder 2003). They are right where, within a group,
the reward of an action does not depend on what else moved its propensity: the time, or a context that was not given.

Intervals are by matching a gamma distribution, as for rates that are standardised by age (Fay and Feuer 1997, with the
milder upper limit of Tiwari, Clegg and Zou 2006): the sum of few weighted clicks is skewed, and an interval that is
symmetric, or a bootstrap's percentiles, misses on the high side. benchmarks/off_policy.py has the coverage of each.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from online.evaluation.reward_model import Cells, RewardModel

Interval = Literal["gamma", "bootstrap", "bernstein"]
Weights = Literal["logged", "frequencies"]
INTERVALS: tuple[Interval, ...] = ("gamma", "bootstrap", "bernstein")
ESTIMATORS = ("ips", "snips", "dr", "ips-clipped", "snips-clipped", "dr-clipped")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PolicyLog:
    """What was shown and what came of it.

    `action`, `context`, `position` (N,) are numbered from 0; rewards (N,) in any unit; `propensity` (N,) is the logging
    policy's probability of the row's action, NaN where it is unknown; `target` (N,) the evaluated policy's; `unit` (N,)
    numbers what was drawn together, such as a request.
    """

    action: Ints
    reward: Floats
    target: Floats
    propensity: Floats
    context: Ints
    position: Ints
    unit: Ints | None = None

    def __len__(self) -> int:
        return len(self.action)

    def cells(self) -> Cells:
        return Cells.of(self.action, self.context, self.position, self.target)

    def take(self, rows: Ints) -> "PolicyLog":
        """The rows of these numbers; each is a unit of its own."""
        parts = (self.action, self.reward, self.target, self.propensity, self.context, self.position)
        return PolicyLog(*(part[rows] for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. `effective` is the effective sample size, (sum of w)² / sum of w²."""

    estimator: str
    weights: str
    value: float
    low: float
    high: float
    effective: float

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Options:
    """How to estimate. `clip`: the largest weight of the clipped estimators, None: the square root of N (Ionides 2008);
    `level`: of the intervals; `resamples`, `seed`: of the bootstrap; `folds`, `seed`: of the reward model."""

    interval: Interval = "gamma"
    clip: float | None = None
    level: float = 0.95
    folds: int = 5
    resamples: int = 1_000
    seed: int = 0


def weights_of(log: PolicyLog, cells: Cells, by: Weights) -> Floats:
    """Weights (N,): target over propensity, as logged or by frequency."""
    if by == "logged":
        return log.target / log.propensity
    return log.target / cells.frequency[cells.cell]


def on_policy(log: PolicyLog, options: Options) -> Estimate:
    """What the logged policy itself earned."""
    ones = np.ones(len(log))
    low, high = _interval(log, log.reward, float(log.reward.mean()), ones, options)
    return Estimate("on-policy", "", float(log.reward.mean()), low, high, float(len(log)))


def estimates(log: PolicyLog, by: Weights, options: Options) -> list[Estimate]:
    """The evaluated policy's value by each of `ESTIMATORS`.

    Args:
        log: of at least two rows.
        by: which weights.
        options: how.
    """
    cells = log.cells()
    model = RewardModel.fit(log.reward, cells, _units(log), folds=options.folds, seed=options.seed)
    weight = weights_of(log, cells, by)
    cap = clip_of(log, options)
    found = []
    for name in ESTIMATORS:
        w = np.minimum(weight, cap) if name.endswith("-clipped") else weight
        value, terms = _terms(name.removesuffix("-clipped"), log.reward, by, w, model)
        low, high = _interval(log, terms, value, w, options)
        found.append(Estimate(name, by, value, low, high, effective_size(w)))
    return found


def clip_of(log: PolicyLog, options: Options) -> float:
    """The largest weight that the clipped estimators let stand."""
    return float(np.sqrt(len(log))) if options.clip is None else options.clip


def effective_size(w: Floats) -> float:
    """How many rows of equal weight say as much (Kish)."""
    squares = float((w**2).sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


def _terms(kind: str, reward: Floats, by: Weights, w: Floats, model: RewardModel) -> tuple[float, Floats]:
    """An estimate, and a term per row (N,) whose mean it is: their spread gives the interval."""
    doubly_robust = model.direct + w * (reward - model.fitted)
    total = float(w.mean())
    if kind == "dr":
        value, terms = float(doubly_robust.mean()), doubly_robust
    elif kind == "ips":
        value, terms = float((w * reward).mean()), w * reward
    else:
        value = float((w * reward).sum() / w.sum()) if total > 0 else 0.0
        terms = value + w * (reward - value) / (total or 1.0)
    if by == "frequencies" and kind != "dr":
        # Frequencies are counted from the same rows: then all three have the spread of the doubly robust one.
        terms = doubly_robust - doubly_robust.mean() + value
    return value, terms


def _units(log: PolicyLog) -> Ints:
    return np.arange(len(log)) if log.unit is None else log.unit


def _interval(log: PolicyLog, terms: Floats, value: float, w: Floats, options: Options) -> tuple[float, float]:
    """The interval of a mean of terms (N,) that has `value`; `w` are the weights in it."""
    sums = terms if log.unit is None else np.bincount(log.unit, terms) * (log.unit.max() + 1) / len(terms)
    if options.interval == "bootstrap":
        return _bootstrap(sums - sums.mean() + value, options)
    if options.interval == "bernstein":
        return _bernstein(sums, value, options)
    error = float(sums.std(ddof=1)) / np.sqrt(len(sums))
    earned = log.reward[log.reward != 0]
    if log.reward.min() < 0 or value <= 0 or not len(earned):
        z = float(special.ndtri(0.5 + options.level / 2))
        return value - z * error, value + max(z * error, 0.0 if len(earned) else _none_seen(w, options.level))
    # What one more reward would add, of a usual size and weight: the few that were seen tell too little of the largest.
    more = float(np.sqrt((w**2).mean() * (earned**2).mean())) / len(log)
    return gamma_interval(value, error**2, more, options.level)


def _none_seen(w: Floats, level: float) -> float:
    """The most that a binary reward may be where none was seen, at the weights (N,): the rule of three, weighted."""
    return -float(np.log((1 - level) / 2)) * float(np.sqrt((w**2).mean())) / len(w)


def gamma_interval(value: float, variance: float, more: float, level: float) -> tuple[float, float]:
    """An interval of a positive mean: quantiles of gamma distributions of its mean and variance.

    Args:
        value: the estimate, above 0.
        variance: of the estimate.
        more: what one more observed reward would add to it.
        level: such as 0.95.
    """
    tail = (1 - level) / 2
    if variance <= 0:
        return value, value
    upper, spread = value + more, variance + more**2
    low = special.gammaincinv(value**2 / variance, tail) * variance / value
    high = special.gammaincinv(upper**2 / spread, 1 - tail) * spread / upper
    return float(low), float(high)


def _bootstrap(sums: Floats, options: Options) -> tuple[float, float]:
    """Percentiles over resampled units (U,)."""
    random = np.random.default_rng(options.seed)
    means = [sums[random.integers(0, len(sums), len(sums))].mean() for _ in range(options.resamples)]
    low, high = np.quantile(means, ((1 - options.level) / 2, (1 + options.level) / 2))
    return float(low), float(high)


def _bernstein(sums: Floats, value: float, options: Options) -> tuple[float, float]:
    """The empirical Bernstein bound (Maurer and Pontil 2009), with the range that was seen. Wide, and seldom wrong."""
    count, log_term = len(sums), float(np.log(4 / (1 - options.level)))
    spread = float(sums.max() - sums.min())
    width = np.sqrt(2 * sums.var(ddof=1) * log_term / count) + 7 * spread * log_term / (3 * (count - 1))
    return float(value - width), float(value + width)
