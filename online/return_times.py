"""When a list is looked at: how long people stay away, learned from everybody's gaps between two clicks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOWEST = 0.001  # share of the newest gap in a running mean
SOON_S, LATE = 60.0, 2.0  # what is expected of the first and of the last span before anybody has come back


class ReturnTimes:
    """A list is written at a click or at one of a few ages, and looked at before the next of them.

    For each such span, the running mean of the log of the gaps that end in it: the moment a list is ranked for. That
    an hour later is not like just now, a list knows only if it is ranked for an hour later.
    """

    def __init__(self, ages_s: Sequence[float]) -> None:
        """`ages_s`: at which lists are ranked anew, rising."""
        self.ages_s = np.array(ages_s, np.float64)
        bounds = np.array([SOON_S**2 / 600, *ages_s, LATE**2 * max([600.0, *ages_s])])
        self._logs = np.log(bounds[:-1] * bounds[1:]) / 2  # (spans,)
        self._counts = np.zeros(len(self._logs))

    def add(self, gaps_s: NDArray[np.float64]) -> None:
        """Gaps (N,) between a person's click and their one before."""
        for span, gap in zip(self._span(gaps_s).tolist(), np.maximum(gaps_s, 1.0).tolist(), strict=True):
            self._counts[span] += 1
            self._logs[span] += (np.log(gap) - self._logs[span]) * max(1 / (self._counts[span] + 10), SLOWEST)

    def expected(self, ages_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Ages (N,) at which lists are written, in seconds since a click -> at which they will be looked at (N,)."""
        looked_at: NDArray[np.float64] = np.maximum(np.exp(self._logs[self._span(ages_s)]), ages_s)
        return looked_at

    def _span(self, ages_s: NDArray[np.float64]) -> NDArray[np.int64]:
        spans: NDArray[np.int64] = np.searchsorted(self.ages_s, ages_s, side="right")
        return spans

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {"ages_s": self.ages_s, "logs": self._logs, "counts": self._counts}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave; with other ages, nothing."""
        if np.array_equal(arrays["ages_s"], self.ages_s):
            self._logs, self._counts = arrays["logs"].copy(), arrays["counts"].copy()
