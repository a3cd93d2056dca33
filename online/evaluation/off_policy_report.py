"""What is said of an off-policy evaluation: the estimates, which of them to trust, and what speaks against all."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from online.evaluation.off_policy import (
    Estimate,
    Options,
    PolicyLog,
    Weights,
    clip_of,
    effective_size,
    estimates,
    on_policy,
    weights_of,
)  # fmt: skip
from online.evaluation.policy_log import Loaded

_EFFECTIVE_SHARE_MIN = 0.01  # of the rows; below, few rows decide
_EFFECTIVE_MIN = 100
_SHARE_OF_ONE_MAX = 0.05  # of all weight
_UNSEEN_MAX = 0.01  # of the evaluated policy's probability
_CLIPPED_MAX = 0.05  # of all weight
_REWARDS_MIN = 30
_ERRORS_MAX = 4  # of the weights' mean, in standard errors: more is no chance


@dataclass(frozen=True)
class Report:
    """`recommended` is one of `estimates`; `remarks` say what was assumed, `warnings` what to distrust."""

    rows: int
    actions: int
    level: float
    interval: str
    clip: float
    on_policy: Estimate
    estimates: list[Estimate]
    recommended: Estimate
    unseen: float
    weight_max: float
    remarks: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        found = dict(self.__dict__)
        found["on_policy"] = self.on_policy.as_dict()
        found["estimates"] = [one.as_dict() for one in self.estimates]
        found["recommended"] = self.recommended.as_dict()
        return found


def evaluate(loaded: Loaded, options: Options) -> Report:
    """Estimates with both kinds of weights where propensities were logged, else with frequencies."""
    log = loaded.log
    kinds: list[Weights] = ["frequencies"] if np.isnan(log.propensity).any() else ["logged", "frequencies"]
    found = [one for by in kinds for one in estimates(log, by, options)]
    recommended = recommended_of(found, len(log))
    cells = log.cells()
    seen = float(cells.seen()[cells.group].mean())
    weight = weights_of(log, cells, kinds[0])
    remarks = list(loaded.remarks)
    remarks.append(f"recommended: {recommended.estimator}, {recommended.weights}")
    if recommended.weights == "frequencies":
        remarks.append(
            "frequencies assume that, within a context and position, rewards do not depend on what moved propensities"
        )
    return Report(
        rows=len(log),
        actions=loaded.actions,
        level=options.level,
        interval=options.interval,
        clip=clip_of(log, options),
        on_policy=on_policy(log, options),
        estimates=found,
        recommended=recommended,
        unseen=1 - seen,
        weight_max=float(weight.max()),
        remarks=remarks,
        warnings=[*_of_overlap(log, options, kinds[0], 1 - seen), *_of_size(log, recommended)],
    )


def recommended_of(found: list[Estimate], rows: int) -> Estimate:
    """Clipped doubly robust with logged propensities while a tenth of the rows counts; else doubly robust by frequency.

    Where the overlap is poor, logged propensities leave an interval that says next to nothing.
    """
    by_name = {(one.estimator, one.weights): one for one in found}
    logged, frequencies = by_name.get(("dr-clipped", "logged")), by_name["dr", "frequencies"]
    return frequencies if logged is None or logged.effective < 0.1 * rows else logged


def _of_overlap(log: PolicyLog, options: Options, by: Weights, unseen: float) -> list[str]:
    cells = log.cells()
    w = weights_of(log, cells, by)
    effective, total = effective_size(w), float(w.sum())
    found = []
    if unseen > _UNSEEN_MAX:
        found.append(f"{unseen:.1%} of the evaluated policy's probability is on what the log never shows there")
    if effective < max(_EFFECTIVE_MIN, _EFFECTIVE_SHARE_MIN * len(log)):
        found.append(f"the overlap is poor: {len(log):,} rows with {by} weights say as much as {effective:,.0f}")
    if w.max() > _SHARE_OF_ONE_MAX * total:
        smallest = "" if by == "frequencies" else f" (propensity {float(log.propensity[w.argmax()]):.2g})"
        found.append(f"one row has {w.max() / total:.0%} of all weight{smallest}: read the clipped estimates")
    cut = 1 - unseen - float(np.minimum(w, clip_of(log, options)).mean())  # unclipped, the mean is expected to be 1
    if cut > _CLIPPED_MAX:
        found.append(f"clipping takes {cut:.0%} of all weight, which biases the clipped estimates")
    error = float(w.std()) / np.sqrt(len(w))
    if by == "logged" and abs(w.mean() - (1 - unseen)) > _ERRORS_MAX * error + 0.02:
        found.append(
            f"the weights have the mean {w.mean():.2f} and should have about 1: are the propensities those of the "
            "policy that was in charge, at this position?"
        )
    return found


def _of_size(log: PolicyLog, recommended: Estimate) -> list[str]:
    rewarded = int((log.reward != 0).sum())
    found = []
    if rewarded < _REWARDS_MIN:
        found.append(f"only {rewarded} rows have a reward: the interval is wide, and coarse")
    if recommended.low < 0 <= log.reward.min():
        found.append("the interval reaches below 0, where no value can be: too little is known")
    return found
