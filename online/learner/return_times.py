"""When a list is looked at: how long users stay away, learned from all users' gaps between two clicks.

Letters: `N` lists, `K` moments at which one may be looked at, `L` moments of all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS_EACH = 8  # bins of a doubling of the gap
BINS = 30 * BINS_EACH  # to 2^30 seconds, 34 years
PRIOR = 0.05  # gaps in each bin before any user has come back
LISTS_MAX = 50_000  # at which all counts are halved: habits change
FAR_APART_S = 1_800.0  # moments that are closer to each other are as good as one


def marks_passed(ages_s: Sequence[float] | NDArray[np.float64], age_s: ArrayLike) -> NDArray[np.int64]:
    """How many of the rising ages at which lists are ranked anew lie before an age; of the same shape."""
    return np.searchsorted(np.asarray(ages_s, np.float64), age_s).astype(np.int64)


class ReturnTimes:
    """A list is written at a click or when its age passes a mark, and looked at before the next mark, if at all.

    What is kept is a histogram of the gaps. A mark is worth a refresh where enough of the lists that reach it are
    looked at before the next one; and a list is ranked for the moments at which it is likely to be looked at while it
    stands: that an hour later is not like just now, a list knows only if it is ranked for an hour later.
    """

    def __init__(
        self,
        ages_s: Sequence[float],
        share_min: float = 0.0,
        refreshes_max: float = np.inf,
        expected_views_max: int = 3,
    ) -> None:
        """`ages_s`: the marks, rising; `share_min`: of the lists that reach a mark, what makes it worth a refresh;
        `refreshes_max`: of a list, on average; `expected_views_max`: K, moments a list is ranked for at most."""
        self.ages_s = np.array(ages_s, np.float64)
        self.share_min, self.refreshes_max, self.expected_views_max = share_min, refreshes_max, expected_views_max
        self._gaps = np.zeros(BINS)
        self._lists = 0.0  # written at clicks
        self._marks: NDArray[np.float64] | None = None  # as last found; None: something has come since
        self._middles = 2 ** ((np.arange(BINS) + 0.5) / BINS_EACH)  # seconds
        self._spans = np.searchsorted(self.ages_s, self._middles, side="right")  # (BINS,) each lies in

    def add(self, gaps_s: NDArray[np.float64], lists: int) -> None:
        """Gaps (N,) between a user's click and the one before; and how many clicks there were, first ones too."""
        at = (np.log2(np.maximum(gaps_s, 1.0)) * BINS_EACH).astype(np.int64)
        np.add.at(self._gaps, np.minimum(at, BINS - 1), 1)
        self._marks = None
        self._lists += lists
        if self._lists > LISTS_MAX:
            self._gaps /= 2
            self._lists /= 2

    def marks(self) -> NDArray[np.float64]:
        """The ages at which lists are worth a refresh, rising: the least worth gives way until each is worth enough,
        and lists are refreshed `refreshes_max` times on average."""
        if self._marks is None:
            self._marks = self._worth_it()
        return self._marks

    def _worth_it(self) -> NDArray[np.float64]:
        counts = np.bincount(self._spans, self._gaps, len(self.ages_s) + 1)
        reached = np.maximum(self._lists - np.cumsum(counts)[:-1], 0)
        looked_at = counts[1:]  # between each mark and the next
        marks = list(range(len(self.ages_s)))
        while marks:
            shares = (looked_at[marks] + 4) / (reached[marks] + 20)
            least = int(shares.argmin())
            too_many = self._lists and reached[marks].sum() > self.refreshes_max * self._lists
            if shares[least] >= self.share_min and not too_many:
                break
            if least:  # the one before stands until the next
                looked_at[marks[least - 1]] += looked_at[marks[least]]
            del marks[least]
        return self.ages_s[marks]

    def written(self, gaps_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ages (N,) at which lists were last written that are looked at after gaps (N,)."""
        written: NDArray[np.float64] = np.concatenate([[0.0], self.marks()])[marks_passed(self.marks(), gaps_s)]
        return written

    def expected_views(self, ages_s: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ages (N,) at which lists are written, in seconds since a click -> at which ages they will be looked at, flat:
        which list (L,), rising, and its ages (L,), each as likely as its others. One for each list, K where these would
        be far apart."""
        marks = self.marks()
        standing = np.searchsorted(marks, self._middles, side="right")  # (BINS,) which of these spans each lies in
        shares = (np.arange(self.expected_views_max) + 0.5) / self.expected_views_max
        table = np.empty((len(marks) + 1, self.expected_views_max))
        for span in range(len(table)):
            (bins,) = np.nonzero(standing == span)
            if not len(bins):  # two marks within one bin
                table[span] = marks[span - 1]
                continue
            reached = np.cumsum(self._gaps[bins] + PRIOR)
            table[span] = self._middles[bins[np.searchsorted(reached, shares * reached[-1])]]
        views = table[np.searchsorted(marks, ages_s, side="right")]  # (N, K)
        close = views[:, -1] - views[:, 0] < FAR_APART_S
        views[close] = views[close, self.expected_views_max // 2, None]
        wanted = np.arange(self.expected_views_max) < np.where(close, 1, self.expected_views_max)[:, None]
        lists, nth = np.nonzero(wanted)
        return lists, np.maximum(views[lists, nth], ages_s[lists])

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {"gaps": self._gaps, "lists": np.array([self._lists])}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave."""
        self._marks = None
        self._gaps, self._lists = arrays["gaps"].copy(), float(arrays["lists"][0])
