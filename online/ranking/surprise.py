"""Which items are clicked more often than the ranker expects.

Letters: `V` rows of the vocabulary, `N` clicks of a micro-batch, `C` candidates of all of them (flat).
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

HALF_LIFE = 3_000  # clicks after which a click counts half
PRIOR = 2.0  # clicks, as many as expected, that each item begins with


class Surprises:
    """Of each item how often it was clicked, and how often it should have been: its shares of the ranker's softmax,
    added up over all clicks for which it was a candidate. 8 bytes a row."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(0, 2, device=device)  # (V, 2) clicked, expected

    def grow(self, rows: int) -> None:
        """Makes room for so many rows."""
        self._counts = torch.cat([self._counts, self._counts.new_zeros(max(0, rows - len(self._counts)), 2)])

    def of(self, rows: Tensor) -> Tensor:
        """Rows (...) -> log of clicks by expected ones (...), 0 where nothing is known."""
        clicked, expected = self._counts[rows].unbind(-1)
        return ((clicked + PRIOR) / (expected + PRIOR)).log()

    def add(self, rows: Tensor, shares: Tensor, clicked: Tensor) -> None:
        """Candidates' rows (C,) and shares (C,); clicked (N,) the rows that were."""
        self._counts *= 2 ** (-len(clicked) / HALF_LIFE)
        self._counts[:, 0].index_add_(0, clicked, torch.ones_like(clicked, dtype=torch.float32))
        self._counts[:, 1].index_add_(0, rows, shares)

    def forget_rows(self, rows: Tensor) -> None:
        self._counts[rows] = 0

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {"counts": self._counts.cpu().numpy()}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave."""
        self._counts = torch.from_numpy(arrays["counts"].copy()).to(self._counts.device)
