"""When a list is looked at: how long people stay away, learned from everybody's gaps between two clicks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOWEST = 0.001  # share of the newest gap in a running mean
SOON_S, LATE = 60.0, 2.0  # what is expected of the first and of the last span before anybody has come back
LISTS_MAX = 50_000  # at which all counts are halved: people change


class ReturnTimes:
    """A list is written at a click or when its age passes a mark, and looked at before the next mark, if at all.

    For each span between two marks: how many lists were looked at in it, and the running mean of the log of their ages
    then. A mark is worth a refresh where enough of the lists that reach it are looked at before the next one; and a
    list is ranked for the mean of the spans that it will stand in. That an hour later is not like just now, a list
    knows only if it is ranked for an hour later.
    """

    def __init__(self, ages_s: Sequence[float], share_min: float = 0.0) -> None:
        """`ages_s`: the marks, rising; `share_min`: of the lists that reach a mark, what makes it worth a refresh."""
        self.ages_s = np.array(ages_s, np.float64)
        self.share_min = share_min
        bounds = np.array([SOON_S**2 / 600, *ages_s, LATE**2 * max([600.0, *ages_s])])
        self._logs = np.log(bounds[:-1] * bounds[1:]) / 2  # (spans,)
        self._counts = np.zeros(len(self._logs))  # lists looked at in each span
        self._lists = 0.0  # written at clicks

    def add(self, gaps_s: NDArray[np.float64], lists: int) -> None:
        """Gaps (N,) between a person's click and their one before; and how many clicks there were, first ones too."""
        for span, gap in zip(self._span(gaps_s).tolist(), np.maximum(gaps_s, 1.0).tolist(), strict=True):
            self._counts[span] += 1
            self._logs[span] += (np.log(gap) - self._logs[span]) * max(1 / (self._counts[span] + 10), SLOWEST)
        self._lists += lists
        if self._lists > LISTS_MAX:
            self._counts /= 2
            self._lists /= 2

    def marks(self) -> NDArray[np.float64]:
        """The ages at which lists are worth a refresh, rising."""
        return self.ages_s[self._worth()]

    def expected(self, ages_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Ages (N,) at which lists are written, in seconds since a click -> at which they will be looked at (N,)."""
        standing = np.concatenate([[0], np.cumsum(self._worth())])  # which spans one list stands in
        weights = self._counts + 1
        logs = np.bincount(standing, weights * self._logs) / np.bincount(standing, weights)
        looked_at: NDArray[np.float64] = np.maximum(np.exp(logs[standing[self._span(ages_s)]]), ages_s)
        return looked_at

    def _worth(self) -> NDArray[np.bool_]:
        """Of each mark: whether enough of the lists that reach it are looked at before the next one."""
        reached = self._lists - np.cumsum(self._counts)[:-1]
        worth: NDArray[np.bool_] = (self._counts[1:] + 4) / (np.maximum(reached, 0) + 20) >= self.share_min
        return worth

    def _span(self, ages_s: NDArray[np.float64]) -> NDArray[np.int64]:
        spans: NDArray[np.int64] = np.searchsorted(self.ages_s, ages_s, side="right")
        return spans

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {"ages_s": self.ages_s, "logs": self._logs, "counts": self._counts, "lists": np.array([self._lists])}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave; with other ages, nothing."""
        if np.array_equal(arrays["ages_s"], self.ages_s):
            self._logs, self._counts = arrays["logs"].copy(), arrays["counts"].copy()
            self._lists = float(arrays["lists"][0])
