"""Whether a list's scores mean what they say: the share of its first item against how often that item is clicked.

Expected calibration error as in Guo et al. 2017 ("On Calibration of Modern Neural Networks", section 2), over bins of
equal width: the mean distance of the two, weighted by clicks.

Letters: `n` clicks, `B` bins.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.batches import BatchResult

BINS = 10


class FirstItems:
    """Of each click, the first item of the list that a learner would have ranked at that moment."""

    def __init__(self, n: int) -> None:
        self.shares = np.full(n, np.nan)  # (n,) its share; NaN: there was no candidate
        self.clicked = np.zeros(n, np.bool_)  # (n,) whether it is the item that was clicked

    def add(self, batch: range, learned: BatchResult) -> None:
        """Notes the clicks of a micro-batch, as they were predicted before they were learned."""
        for step in learned.steps:
            scored, at = step.scored, np.arange(batch.start + step.part.start, batch.start + step.part.stop)
            if not scored.kept.shape[1]:
                continue
            shares = (scored.shares() if scored.chances is None else scored.chances).float().cpu().numpy()
            best = shares.argmax(1)
            each = np.arange(len(at))
            rows = scored.rows()[each, best]
            self.shares[at] = np.where(rows > 0, shares[each, best], np.nan)
            self.clicked[at] = (rows == learned.targets[step.part]) & (rows > 0)


class Reliability(NamedTuple):
    """The curve of a learner, (B,) each."""

    clicks: NDArray[np.int64]
    shares: NDArray[np.float64]  # their mean; NaN where there is no click
    clicked: NDArray[np.float64]  # how often the first item was the clicked one; NaN likewise

    @property
    def error(self) -> float:
        """The expected calibration error."""
        filled = self.clicks > 0
        apart = np.abs(self.shares[filled] - self.clicked[filled])
        return float((apart * self.clicks[filled]).sum() / max(1, self.clicks.sum()))


def reliability(shares: NDArray[np.float64], clicked: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Sorts clicks into bins of equal width by the first item's share.

    Args:
        shares: (n,) from 0 to 1; NaN: the click is left out.
        clicked: (n,) whether the first item was clicked.
        bins: how many.
    """
    known = np.isfinite(shares)
    shares, clicked = shares[known], clicked[known]
    at = np.minimum((shares * bins).astype(np.int64), bins - 1)
    clicks = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            clicks,
            np.bincount(at, shares, minlength=bins) / clicks,
            np.bincount(at, clicked.astype(float), minlength=bins) / clicks,
        )


def figures(curve: Reliability) -> dict[str, Any]:
    """The curve as JSON has it: bins without clicks are left out."""
    width = 1 / len(curve.clicks)
    return {
        "scored": int(curve.clicks.sum()),
        "expected_calibration_error": round(curve.error, 5),
        "bins": [
            {
                "from": round(number * width, 3),
                "to": round((number + 1) * width, 3),
                "clicks": int(clicks),
                "mean_share": round(float(curve.shares[number]), 5),
                "clicked": round(float(curve.clicked[number]), 5),
            }
            for number, clicks in enumerate(curve.clicks)
            if clicks
        ],
    }
