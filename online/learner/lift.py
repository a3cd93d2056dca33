"""Which items are clicked more often than the ranker expects: observed by expected clicks.

Letters: `V` rows of the vocabulary, `N` clicks, `K` candidates of each.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF_LIFE = 3_000  # clicks after which a click counts half
PRIOR = 2.0  # clicks, as many as expected, that each item begins with


class Lift:
    """Of each item how often it was clicked, and how often it should have been: its shares of the ranker's softmax,
    added up over all clicks for which it was a candidate. 8 bytes a row."""

    def __init__(self) -> None:
        self._counts = np.zeros((0, 2), np.float32)  # (V, 2) clicked, expected, both inflated by `_scale`
        self._scale = 1.0  # what a click counts now: instead of letting all counts fade, each click counts more

    def grow(self, rows: int) -> None:
        """Makes room for so many rows."""
        if rows > len(self._counts):
            more = np.zeros((rows - len(self._counts), 2), np.float32)
            self._counts = np.concatenate([self._counts, more])

    def of(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Rows (...) -> log of clicks by expected ones (...), 0 where nothing is known."""
        counts = self._counts[rows]
        prior = np.float32(PRIOR * self._scale)
        found: NDArray[np.float32] = np.log((counts[..., 0] + prior) / (counts[..., 1] + prior))
        return found

    def add(self, rows: NDArray[np.int64], shares: NDArray[np.float32], clicked: NDArray[np.int64]) -> None:
        """Candidates' rows (N, K) and shares (N, K); clicked (N,) the rows that were."""
        self._scale *= 2 ** (len(clicked) / HALF_LIFE)
        if self._scale > 1e6:
            self._counts /= np.float32(self._scale)
            self._scale = 1.0
        np.add.at(self._counts[:, 0], clicked, np.float32(self._scale))
        np.add.at(self._counts[:, 1], rows.ravel(), (shares * np.float32(self._scale)).ravel())
        self._counts[0] = 0

    def forget_rows(self, rows: Any) -> None:
        """Rows that are to be handed out again."""
        self._counts[list(rows)] = 0

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {"counts": self._counts.copy(), "scale": np.array([self._scale])}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave."""
        self._counts, self._scale = arrays["counts"].copy(), float(arrays["scale"][0])
