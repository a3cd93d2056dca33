"""The lists of near items, and what they need: `near.py` has the loops.

Letters: `S` slots, `F` features, `K` entries of a list, `N` queries, `L` latest items, `P` items that may be listed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.learner.content import near
from online.learner.content.kernels import ContentArrays
from online.learner.content.near import (
    CLICKED,
    HELD,
    LOOKED_AT,
    NEAREST,
    NEW_SUITING,
    RING,
    NearArrays,
    NearScratch,
)

NEW_PROMISING = 4  # candidates of a query: new items that promise most to all users
LOOKED_AT_AGAIN = 24  # of each kind, that an item is compared with at its first click
CANDIDATES_MAX = NEAREST + NEW_SUITING + NEW_PROMISING
_BY_FEATURE = ("rings", "ends")


class NearLists:
    """Which items are near each in content: 330 bytes a slot, and 8 MB of rings."""

    def __init__(self, features: int, slots: int) -> None:
        self.arrays = _empty(features, slots)
        self._scratch = _scratch(features, slots)

    def grow(self, slots: int) -> None:
        """Makes room for this many slots."""
        features, have = self.arrays.ends.shape[1], len(self.arrays.versions)
        more = _empty(0, slots - have)._asdict()
        self.arrays = NearArrays(
            *(
                part if name in _BY_FEATURE else np.concatenate([part, more[name]])
                for name, part in self.arrays._asdict().items()
            )
        )
        self._scratch = _scratch(features, slots)

    def free(self, slot: int) -> None:
        """Forgets the item of a slot: its list, and what other lists say of it."""
        self.arrays.versions[slot] = (int(self.arrays.versions[slot]) + 1) % 2**16
        self.arrays.others[slot], self.arrays.compared[slot] = 0, False

    def compare(
        self,
        content: ContentArrays,
        slots: NDArray[np.int64],
        kind: int,
        given: NDArray[np.int64],
        features: tuple[NDArray[np.float32], NDArray[np.int32]],
        *,
        again: bool,
    ) -> None:
        """Does `near.compare`, whose arguments these are; `features`: their weights, and the items with each.

        `again`: the items have their lists already, so they are compared with fewer others.
        """
        most = LOOKED_AT_AGAIN if again else LOOKED_AT
        best, places = np.empty((2, most), np.float32), np.empty((2, most), np.int64)
        scratch = self._scratch._replace(best=best, places=places)
        near.compare(content, self.arrays, slots, kind, given, *features, scratch)

    def nearest(
        self,
        content: ContentArrays,
        latest: NDArray[np.int64],
        slots_of: NDArray[np.int32],
        listed: tuple[NDArray[np.int64], NDArray[np.int64]],
        new: tuple[NDArray[np.int64], NDArray[np.float32]],
        promising: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Returns candidates of queries, rows (N, CANDIDATES_MAX), 0 where there are no more.

        Args:
            content: of the items.
            latest: (N, L) rows of the latest items, newest first, 0 beyond.
            slots_of: (V,) by row.
            listed: rows and slots (P,) of items that may be listed.
            new: slots of those without a click, and their lifts.
            promising: rows that are candidates of every query, at most NEW_PROMISING.
        """
        rows_of, lifts = np.zeros(len(content.known), np.int32), np.zeros(len(content.known), np.float32)
        rows_of[listed[1]], lifts[new[0]] = listed[0], new[1]
        found = np.zeros((len(latest), CANDIDATES_MAX), np.int64)
        clicked, suiting, others = np.split(found, [NEAREST, NEAREST + NEW_SUITING], axis=1)
        near.join_lists(content, self.arrays, slots_of, rows_of, latest, lifts, self._scratch, clicked, suiting)
        others[:, : len(promising)] = promising
        return found

    def best(
        self, content: ContentArrays, slots: NDArray[np.int64], listed: NDArray[np.bool_], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the clicked items nearest to some (n,): slots (n, count), nearest first, 0 where there are no more,
        and their cosines, 0 there. `listed`: (S,) which may be among them."""
        arrays = self.arrays
        others = arrays.others[slots, CLICKED]
        usable = listed[others] & content.clicked[others] & (arrays.as_of[slots, CLICKED] == arrays.versions[others])
        alike = np.where(usable, arrays.alike[slots, CLICKED], -np.inf)
        order = np.argsort(-alike, axis=1, kind="stable")[:, :count]
        found = np.take_along_axis(np.where(usable, others, 0), order, 1).astype(np.int64)
        return found, np.where(found > 0, np.take_along_axis(alike, order, 1), 0.0).astype(np.float32)

    # A checkpoint

    def to_state(self, slots: int) -> dict[str, NDArray[Any]]:
        """Returns arrays by name; `slots`: that are used."""
        return {
            f"near_{name}": part.copy() if name in _BY_FEATURE else part[:slots].copy()
            for name, part in self.arrays._asdict().items()
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Loads what `to_state` returned. Of a checkpoint without lists, or with those of another length, they are
        made anew, some with each micro-batch."""
        lengths = self.arrays.others.shape[1:], self.arrays.rings.shape
        if "near_others" not in arrays or lengths != (arrays["near_others"].shape[1:], arrays["near_rings"].shape):
            return
        for name, part in self.arrays._asdict().items():
            saved = arrays[f"near_{name}"]
            part[: len(saved)] = saved


def _empty(features: int, slots: int) -> NearArrays:
    return NearArrays(
        np.zeros((slots, 2, HELD), np.int32),
        np.zeros((slots, 2, HELD), np.float32),
        np.zeros((slots, 2, HELD), np.uint16),
        np.zeros(slots, np.uint16),
        np.zeros(slots, np.bool_),
        np.zeros((2, features, RING), np.int32),
        np.zeros((2, features), np.int32),
    )


def _scratch(features: int, slots: int) -> NearScratch:
    return NearScratch(
        np.zeros(1, np.int64),
        np.zeros(slots, np.int64),
        np.zeros(slots, np.float32),
        np.zeros(slots, np.int64),
        np.zeros(features, np.float32),
        np.empty((2, LOOKED_AT), np.float32),
        np.empty((2, LOOKED_AT), np.int64),
    )
