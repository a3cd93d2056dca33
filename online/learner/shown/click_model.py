"""The position-based click model: an item at a position is clicked if it is examined, and attracts.

P(click) = examination of the position · attractiveness of the item (Craswell et al. 2008). Both are unknown, and found
from logged lists alone by turns, as regression EM does (Wang et al. 2018): given how attractive items are, a
position's examination is its clicks by those expected of its items if all were examined; given the examination, an
item's attractiveness is its clicks by the times it was examined. These are the steps of coordinate ascent on the
Poisson likelihood, of which what is counted here is all that matters; so nothing that was counted by an early estimate
stays wrong. It tells position from attractiveness as far as items stand at different positions. Where slots were drawn
at random, examination is found from these alone, since elsewhere good positions hold what suits their user (Joachims et
al. 2017 intervene likewise).

Letters: `V` rows of items, `B` bands of positions, `n` shown items.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STARTS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 16, 26, 51)  # the first position of each band, from 1
B = len(STARTS)
SMOOTHING = 3.0  # clicks that each item is taken to have had as expected
BAND_SMOOTHING = 5.0  # clicks that each band is taken to have had as examination falls with the root of the position
PRIOR = np.array(STARTS, float) ** -0.5
EXAMINATION_MIN = 0.01
DRAWN_CLICKS_MIN = 200.0  # on slots that were drawn, from which these alone say what is examined
HALF_LIFE = 500_000.0  # of counts, in shown items
ESTIMATE_EVERY = 1_000  # shown items


def bands_of(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the bands of positions (n,), which count from 1."""
    return np.searchsorted(STARTS, positions, side="right") - 1


class ClickModel:
    """Counts of shown items and of clicks on them, and the estimates that follow."""

    def __init__(self) -> None:
        self.shown = np.zeros((1, B), np.float32)  # (V, B) times
        self.drawn = np.zeros((1, B), np.float32)  # (V, B) those in slots that were drawn
        self.clicks = np.zeros(1, np.float32)  # (V,)
        self.band_clicks = np.zeros((2, B))  # of all slots, and of those that were drawn
        self.examination = PRIOR.copy()  # (B,) relative to the first position
        # Shown items since the last turn of the estimates; clicks of an item that is examined once, mean over all.
        self.totals = np.array([0.0, 0.1])

    def grow(self, rows: int) -> None:
        """Makes room for this many rows."""
        more = rows - len(self.clicks)
        if more > 0:
            self.shown, self.drawn = (np.pad(counts, ((0, more), (0, 0))) for counts in (self.shown, self.drawn))
            self.clicks = np.pad(self.clicks, (0, more))

    def forget_rows(self, gone: NDArray[np.bool_]) -> None:
        """Items (V,) that have lost their rows."""
        self.shown[gone], self.drawn[gone], self.clicks[gone] = 0, 0, 0

    def add(
        self, rows: NDArray[np.int64], bands: NDArray[np.int64], drawn: NDArray[np.bool_], clicked: NDArray[np.bool_]
    ) -> None:
        """Counts shown items (n,), and takes a turn of the estimates after enough of them.

        Args:
            rows: of the items.
            bands: of their positions.
            drawn: which stood in slots that were drawn at random.
            clicked: which were clicked.
        """
        np.add.at(self.shown, (rows, bands), 1)
        np.add.at(self.drawn, (rows[drawn], bands[drawn]), 1)
        np.add.at(self.clicks, rows[clicked], 1)
        self.band_clicks[0] += np.bincount(bands[clicked], minlength=B)
        self.band_clicks[1] += np.bincount(bands[clicked & drawn], minlength=B)
        self.totals[0] += len(rows)
        if self.totals[0] >= ESTIMATE_EVERY:
            self._estimate()

    def _estimate(self) -> None:
        kept = np.float32(0.5 ** (self.totals[0] / HALF_LIFE))
        for counts in (self.shown, self.drawn, self.clicks, self.band_clicks):
            np.multiply(counts, kept, out=counts)
        use_drawn = self.band_clicks[1].sum() >= DRAWN_CLICKS_MIN
        shown = self.drawn if use_drawn else self.shown
        # Not smoothed, as that would raise what stands low: items that are clicked rarely.
        attractiveness = self.clicks / np.maximum(self.shown @ self.examination, 1e-9)  # (V,)
        expected = attractiveness @ shown  # (B,) clicks if all were examined
        observed = self.band_clicks[int(use_drawn)]
        found = (observed + BAND_SMOOTHING * PRIOR) / (expected + BAND_SMOOTHING)
        self.examination = np.clip(found / found[0], EXAMINATION_MIN, 1.0)
        self.totals[:] = 0.0, self.clicks.sum() / max(float((self.shown.sum(0) * self.examination).sum()), 1e-9)

    @property
    def rate(self) -> float:
        """The clicks of an item that is examined once, mean over all."""
        return float(self.totals[1])

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Returns arrays by name."""
        names = "shown", "drawn", "clicks", "band_clicks", "examination", "totals"
        return {name: getattr(self, name).copy() for name in names}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` returned."""
        for name, array in arrays.items():
            setattr(self, name, array.copy())
