"""Live counts: what is popular now, and what followed each item; exact from the first click on, bounded.

Letters: `V` item rows, `M` successors held of an item (`successors_held`), `N` users of a micro-batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESCALE_ABOVE = 1e100  # the growing weight of a new click is scaled back here, far from overflow


class Counts:
    """Counts over item rows. Row 0 stands for unknown items and is never counted.

    Successors keep the heaviest M of each item by space-saving (Metwally et al. 2005, algorithm 1): a newcomer takes
    the place of the lightest and its count plus one, so a count is never too low (as long as no row is forgotten), and
    too high by at most the lightest count that ever was replaced. Memory: 8·M + 12 bytes a row.
    """

    def __init__(self, successors_held: int, half_life: int) -> None:
        self.successors_held = successors_held
        self.half_life = half_life
        self.weight = 1.0  # of the next click: it grows, so that nothing has to be decayed
        self.popularity = np.zeros(0, np.float64)  # (V,)
        self.followers = np.zeros((0, successors_held), np.int32)  # (V, M) rows, 0 = free
        self.follow_counts = np.zeros((0, successors_held), np.float32)  # (V, M)
        self.follow_totals = np.zeros(0, np.float32)  # (V,)

    def grow(self, rows: int) -> None:
        """Makes room for rows below `rows`; existing counts stay."""
        more = rows - len(self.popularity)
        if more <= 0:
            return
        self.popularity = np.concatenate([self.popularity, np.zeros(more)])
        self.follow_totals = np.concatenate([self.follow_totals, np.zeros(more, np.float32)])
        empty = np.zeros((more, self.successors_held))
        self.followers = np.concatenate([self.followers, empty.astype(np.int32)])
        self.follow_counts = np.concatenate([self.follow_counts, empty.astype(np.float32)])

    def add(self, previous: int, row: int) -> None:
        """One click on `row` by somebody whose last click was on `previous` (0: nothing known)."""
        if row == 0:
            return
        self.popularity[row] += self.weight
        self.weight *= 2 ** (1 / self.half_life)
        if self.weight > RESCALE_ABOVE:
            self.popularity /= self.weight
            self.weight = 1.0
        if previous == 0:
            return
        followers, counts = self.followers[previous], self.follow_counts[previous]
        self.follow_totals[previous] += 1
        places = np.flatnonzero(followers == row)
        place = places[0] if len(places) else counts.argmin()
        followers[place] = row
        counts[place] += 1

    def recent_popularity(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Clicks on each row, each halved for every `half_life` clicks from its own on. Same shape as `rows`."""
        return self.popularity[rows] / self.weight

    def popular(self, count: int) -> NDArray[np.int64]:
        """The most popular rows now, best first, at most `count`; equal ones by row."""
        count = min(count, len(self.popularity))
        best = np.argpartition(-self.popularity, count - 1)[:count] if count else np.zeros(0, np.int64)
        best = best[np.lexsort((best, -self.popularity[best]))]
        return best[self.popularity[best] > 0]

    def followers_of(self, rows: NDArray[np.int64], count: int, *, filled_with: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N, count) what followed each row most often, then `filled_with`, each once; 0 where there is no more."""
        order = np.argsort(-self.follow_counts[rows], axis=1, kind="stable")[:, :count]
        found = np.zeros((len(rows), count), np.int64)
        for at, followers in enumerate(np.take_along_axis(self.followers[rows], order, 1).tolist()):
            both = dict.fromkeys([row for row in (*followers, *filled_with.tolist()) if row])
            best = list(both)[:count]
            found[at, : len(best)] = best
        return found

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Clears rows that are to be handed out again, and what others know of them."""
        gone = np.isin(self.followers, rows)
        self.followers[gone], self.follow_counts[gone] = 0, 0
        at = np.asarray(rows, np.int64)
        self.popularity[at], self.follow_totals[at] = 0, 0
        self.followers[at], self.follow_counts[at] = 0, 0

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {
            "weight": np.array([self.weight]),
            "popularity": self.popularity,
            "followers": self.followers,
            "follow_counts": self.follow_counts,
            "follow_totals": self.follow_totals,
        }

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave; with a smaller M the heaviest are kept."""
        self.weight = float(arrays["weight"][0])
        self.popularity = arrays["popularity"].copy()
        self.follow_totals = arrays["follow_totals"].copy()
        heaviest = np.argsort(-arrays["follow_counts"], axis=1, kind="stable")[:, : self.successors_held]
        if arrays["followers"].shape[1] <= self.successors_held:
            heaviest = np.broadcast_to(np.arange(arrays["followers"].shape[1]), arrays["followers"].shape)
        shape = (len(self.popularity), self.successors_held)
        self.followers, self.follow_counts = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        self.followers[:, : heaviest.shape[1]] = np.take_along_axis(arrays["followers"], heaviest, 1)
        self.follow_counts[:, : heaviest.shape[1]] = np.take_along_axis(arrays["follow_counts"], heaviest, 1)
