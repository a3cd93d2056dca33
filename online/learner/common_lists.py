"""Lists that are the same for everybody: what is popular, what rises, and what is new. They use no weights.

Letters: `V` rows of items, `N` rows that are looked at.
"""

import math
from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.filters.evaluate import CompiledFilter
from online.learner.state import LearnerState

Kind = Literal["popular", "trending", "latest"]
CLICKS_MIN = 2.0  # recent clicks of an item that rises: one alone is chance
_DIGITS, _TIME_DIGITS = 6, 13


class CommonList(NamedTuple):
    """A list, best first. `filtered`: items that would have been in it, and were left out by the filter."""

    items: list[str]
    scores: list[float]
    filtered: int


class CommonLists:
    """Computes such lists from the present counts. For the loop's thread only."""

    def __init__(self, state: LearnerState) -> None:
        self.state = state

    def best(
        self, kind: Kind, k: int, wanted: CompiledFilter | None = None, exclude: Collection[str] = ()
    ) -> CommonList:
        """Returns the best items of a kind that may be listed.

        Args:
            kind: `popular`: most clicks lately; `trending`: most clicks beyond what their popularity of longer ago lets
                expect, in standard deviations; `latest`: those whose first click is newest. Scores are shares of recent
                clicks; standard deviations; and times in seconds since 1970, too late by silences since.
            k: items wanted.
            wanted: a request's filter, checked.
            exclude: items that must not be listed.
        """
        scores = self._scores(kind)  # (V,) 0 or below: not listed
        state = self.state
        scores[state.store.items.blocked[: len(scores)]] = 0
        scores[[row for item in exclude if (row := state.vocabulary.row_of(item))]] = 0
        scores[0] = 0
        filtered = 0
        if wanted is None:
            rows = _largest(scores, k)
        else:
            some = np.flatnonzero(scores > 0)
            mask = state.listable.apply(wanted, some).mask
            passing = some[mask]
            rows = passing[_largest(scores[passing], k)]
            worst = scores[rows[-1]] if len(rows) == k else 0.0
            filtered = int((scores[some[~mask]] > worst).sum())
        items = state.vocabulary.items_of(rows.tolist())
        found = scores[rows] + (state.clock.skipped_s if kind == "latest" else 0.0)
        digits = _TIME_DIGITS if kind == "latest" else _DIGITS
        listed = [(item, score) for item, score in zip(items, found.tolist(), strict=True) if item is not None]
        return CommonList([item for item, _ in listed], [float(f"{score:.{digits}g}") for _, score in listed], filtered)

    def _scores(self, kind: Kind) -> NDArray[np.float64]:
        state, count = self.state, self.state.vocabulary.rows
        if kind == "popular":
            popularity = state.popularity().copy()
            return popularity / max(float(popularity.sum()), 1e-12)
        if kind == "latest":
            return state.store.items.first_at[:count].copy()
        half_lives = len(state.settings.popularity_half_lives)
        recent = state.store.popularity_by(max(0, half_lives // 2 - 1), count)
        if half_lives > 1:
            before = state.store.popularity_by(half_lives - 1, count)
        else:
            before = state.store.items.clicks[:count].astype(np.float64)
        expected = before * (float(recent.sum()) / max(float(before.sum()), 1e-12))
        rise: NDArray[np.float64] = (recent - expected) / np.sqrt(expected + 1.0)
        rise[recent < CLICKS_MIN * math.log(2)] = 0
        return rise


def _largest(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Returns where the k largest of scores (N,) stand that exceed 0, best first; of equal ones the first."""
    some = np.flatnonzero(scores > 0)
    if len(some) > k:
        least = np.partition(scores[some], len(some) - k)[len(some) - k]
        some = some[scores[some] >= least]
    return some[np.argsort(-scores[some], kind="stable")][:k]
