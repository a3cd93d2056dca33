"""Is a candidate as good as the live model? A sequential paired test on the same clicks, which may be looked at always.

Both models score each click (higher is better, e.g. NDCG@10) before either learns it. Users click in bursts, so the
scores of neighbouring clicks resemble each other; what is tested are means over blocks of clicks, which hardly do.

The test is the mixture sequential probability ratio test (Robbins 1970; Johari et al. 2017): the likelihood ratio of
"better by theta" against "no better", averaged over a half-normal theta, of the studentised sum of a contrast,
candidate − share × live. A contrast whose mean is not above zero exceeds 1/alpha at *any* look with probability at most
alpha, as the number of blocks grows (Waudby-Smith et al. 2024, "Time-uniform central limit theory"). Bets on bounded
means (Waudby-Smith & Ramdas 2023) promise that for few blocks too, but may not stake enough on differences as small as
these: they need several times as many clicks.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from online.config.gate_limits import BLOCKS_MIN, GateLimits

VARIANCE_MIN = 1e-12  # of a block's contrast: two models that always agree have none

Decision = Literal["go on", "publish", "reject"]


def log_e_value(total: float, blocks: int, spread: float) -> float:
    """Log of the mixture likelihood ratio of a drift upwards, against none.

    `total`: sum of `blocks` values of unit variance; `spread`: scale of the half-normal mixture over drifts per block.
    """
    room = 1 + spread**2 * blocks
    z = spread * total / math.sqrt(room)
    if z < -8:  # Mills' ratio: the normal distribution function itself would underflow
        return math.log(2) - math.log(room) / 2 - math.log(-z) - math.log(2 * math.pi) / 2
    return math.log(math.erfc(-z / math.sqrt(2))) - math.log(room) / 2 + z**2 / 2


def mixture_spread(alpha: float, blocks: float) -> float:
    """The scale at which the boundary is tightest after that many blocks (Waudby-Smith et al. 2024, appendix B)."""
    log_alpha = -2 * math.log(alpha)
    return math.sqrt((log_alpha + math.log(log_alpha) + 1) / blocks)


class SequentialGate:
    """Compares a candidate with the live model, block by block, and decides once.

    - *publish*: the candidate's mean score is above (1 − margin) of the live one's, at half of `alpha`;
    - *reject*: it is below the live one's (with a negative margin: below what it has to reach), at `alpha`;
    - after `clicks_max` clicks: publish if an ordinary one-sided interval of that fixed size, at the other half of
      `alpha`, says the first; reject otherwise. So what cannot be distinguished is thrown away.
    """

    def __init__(self, limits: GateLimits) -> None:
        self.limits = limits
        self.clicks = 0
        self.blocks = 0
        self.decision: Decision = "go on"
        self.log_e_publish = 0.0
        self.log_e_reject = 0.0
        self._open = np.zeros(3)  # clicks of the block that is not full, and their sums of scores: live, candidate
        self._sums = np.zeros(2)  # of the blocks' means: live, candidate
        self._products = np.zeros((2, 2))  # of the blocks' means with each other

    def add(self, live: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> Decision:
        """Takes both models' scores (N,) of the same clicks, in order; once it has decided, that stays.

        A candidate's score that is not a finite number rejects it. Raises ValueError: the shapes differ.
        """
        scores = np.stack([np.asarray(live, np.float64), np.asarray(candidate, np.float64)])  # (2, N)
        if self.decision == "go on" and not np.isfinite(scores).all():
            self.decision = "reject"
        start = 0
        while self.decision == "go on" and start < scores.shape[1]:
            part = scores[:, start : start + self.limits.block_clicks - int(self._open[0])]
            start += part.shape[1]
            self.clicks += part.shape[1]
            self._open += [part.shape[1], *part.sum(axis=1)]
            if self._open[0] == self.limits.block_clicks:
                self._close_block()
        return self.decision

    def _close_block(self) -> None:
        means = self._open[1:] / self._open[0]
        self._open = np.zeros(3)
        self.blocks += 1
        self._sums += means
        self._products += np.outer(means, means)
        if self.blocks >= BLOCKS_MIN:
            self._decide()

    def _decide(self) -> None:
        alpha, spread = self.limits.alpha, self._spread()
        above, below = self._standardised(1 - self.limits.margin), self._standardised(max(1.0, 1 - self.limits.margin))
        self.log_e_publish = log_e_value(above, self.blocks, spread)
        self.log_e_reject = log_e_value(-below, self.blocks, spread)
        if self.log_e_publish >= math.log(2 / alpha):
            self.decision = "publish"
        elif self.log_e_reject >= math.log(1 / alpha):
            self.decision = "reject"
        elif self.clicks + self.limits.block_clicks > self.limits.clicks_max:
            sure = above / math.sqrt(self.blocks) > NormalDist().inv_cdf(1 - alpha / 2)
            self.decision = "publish" if sure else "reject"

    def _spread(self) -> float:
        """Tightest at a quarter of the limit: most candidates are decided before it, and few need all of it."""
        blocks = self.limits.clicks_max / self.limits.block_clicks / 4
        return mixture_spread(self.limits.alpha, max(blocks, BLOCKS_MIN))

    def _contrast(self, share: float) -> tuple[float, float]:
        """Of the blocks' candidate − share × live: the mean, and the standard deviation."""
        weights = np.array([-share, 1.0])
        mean = float(weights @ self._sums) / self.blocks
        squares = float(weights @ self._products @ weights) / self.blocks - mean**2
        return mean, math.sqrt(max(squares * self.blocks / (self.blocks - 1), VARIANCE_MIN))

    def _standardised(self, share: float) -> float:
        """The contrast's sum over the blocks, in standard deviations of one block."""
        mean, deviation = self._contrast(share)
        return mean * self.blocks / deviation

    def figures(self) -> dict[str, Any]:
        """What is known so far: clicks, both mean scores, their difference with a confidence interval that holds at
        every look (two-sided, `alpha`), and the p-values (reciprocal e-values) of "worse than the margin allows" and
        of "not worse". None before the first decision could be made."""
        live, candidate = (self._sums + self._open[1:] / self.limits.block_clicks).tolist()
        blocks = self.blocks + self._open[0] / self.limits.block_clicks
        found: dict[str, Any] = {
            "clicks": self.clicks,
            "live": round(live / blocks, 5) if blocks else None,
            "candidate": round(candidate / blocks, 5) if blocks else None,
            "difference": None,
            "interval": None,
            "p_publish": None,
            "p_reject": None,
            "decision": self.decision,
        }
        if self.blocks >= BLOCKS_MIN:
            mean, deviation = self._contrast(1.0)
            half = deviation * self._half_width()
            found["difference"] = round(mean, 5)
            found["interval"] = [round(mean - half, 5), round(mean + half, 5)]
            found["p_publish"] = float(f"{min(1.0, math.exp(-self.log_e_publish)):.3g}")
            found["p_reject"] = float(f"{min(1.0, math.exp(-self.log_e_reject)):.3g}")
        return found

    def _half_width(self) -> float:
        """Of the two-sided confidence sequence, in standard deviations of a block (Waudby-Smith et al. 2024, eq. 8)."""
        spread2, t = self._spread() ** 2, self.blocks
        room = t * spread2 + 1
        return math.sqrt(2 * room / (t**2 * spread2) * math.log(math.sqrt(room) / self.limits.alpha))

    def to_state(self) -> dict[str, Any]:
        """JSON; Python writes floats so that they are read back exactly."""
        return {
            "clicks": self.clicks,
            "blocks": self.blocks,
            "decision": self.decision,
            "log_e": [self.log_e_publish, self.log_e_reject],
            "open": self._open.tolist(),
            "sums": self._sums.tolist(),
            "products": self._products.tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.clicks, self.blocks, self.decision = state["clicks"], state["blocks"], state["decision"]
        self.log_e_publish, self.log_e_reject = state["log_e"]
        self._open, self._sums = np.array(state["open"]), np.array(state["sums"])
        self._products = np.array(state["products"])
