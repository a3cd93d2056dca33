"""Histories from all of the stream: a uniform sample of its clicks, each with what led to it.

Fine-tuning on recent histories alone would forget what still holds of users who were not here lately, or of seasons
that come back; and what a history no longer holds cannot be read again. So some excerpts are kept.

Letters: `N` clicks of a micro-batch, `K` excerpts held, `L` clicks of an excerpt at most.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.forgetting import clear_places, marked
from online.learner.history import ClicksOldestFirst, UserHistories
from online.learner.user_stores import UserKey


class Reservoir:
    """K excerpts of at most L clicks, 13 bytes a click and 16 besides: after n clicks, each of them ends one with
    probability K / n.

    This is Vitter's algorithm R (1985): click n takes a random place out of n, if that is among the K.
    """

    def __init__(self, held: int, length: int, seed: int) -> None:
        self.held, self.length = held, length
        self.offered = 0  # clicks
        self._rows: NDArray[Any] = np.zeros((held, length), np.int32)
        self._types: NDArray[Any] = np.zeros((held, length), np.uint8)
        self._times: NDArray[Any] = np.zeros((held, length), np.float64)
        self._lengths = np.zeros(held, np.int64)
        self._user_hashes = np.zeros(held, np.int64)  # as `stream.user_ids.hash_of_digest` says
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.offered, self.held)

    def offer(
        self,
        histories: UserHistories,
        slots: NDArray[np.int64],
        behind: NDArray[np.int64],
        user_hashes: NDArray[np.int64] | int = 0,
    ) -> None:
        """N clicks in order: in the histories `slots` (N,), before `behind` (N,) later ones of the same user; their
        users' hashes (N,), 0: of no user."""
        numbers = self.offered + np.arange(1, len(slots) + 1)
        places = np.where(numbers <= self.held, numbers - 1, self.random.integers(0, numbers))
        self.offered += len(slots)
        taken = np.flatnonzero(places < self.held)
        if not len(taken):
            return
        latest = histories.oldest_first(slots[taken], self.length, behind[taken])
        at, L = places[taken], latest.rows.shape[1]
        for ring, clicks in (
            (self._rows, latest.rows),
            (self._types, latest.event_types),
            (self._times, latest.timestamps),
        ):
            ring[at, :L], ring[at, L:] = clicks, 0
        self._lengths[at] = latest.lengths
        self._user_hashes[at] = np.broadcast_to(user_hashes, len(slots))[taken]

    def sample(self, count: int, random: np.random.Generator) -> ClicksOldestFirst:
        """Different excerpts that have a next click to guess, `count` of them or all."""
        worth = np.flatnonzero(self._lengths >= 2)
        return self._of(np.sort(random.choice(worth, min(count, len(worth)), replace=False)))

    def _of(self, places: NDArray[np.int64]) -> ClicksOldestFirst:
        rows, types = self._rows[places].astype(np.int64), self._types[places].astype(np.int64)
        return ClicksOldestFirst(rows, types, self._times[places], self._lengths[places])

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Items that lost their row: their clicks become unknown ones (row 0)."""
        clear_places(self._rows[: len(self)], self._lengths[: len(self)], marked(rows))

    def user_ids(self) -> tuple[str, ...]:
        return ()

    def count_user(self, user: UserKey) -> dict[str, int]:
        return {"finetuning_excerpts": int((self._user_hashes == user.user_hash).sum())}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        """The user's excerpts go, and their places stay empty until a click takes them."""
        at = np.flatnonzero(self._user_hashes == user.user_hash)
        for part in (self._rows, self._types, self._times, self._lengths, self._user_hashes):
            part[at] = 0
        return {"finetuning_excerpts": len(at)}

    def usage(self) -> tuple[int, int]:
        return len(self), self.held

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        parts = {"rows": self._rows, "types": self._types, "times": self._times, "lengths": self._lengths}
        parts["user_hashes"] = self._user_hashes
        arrays = {name: part[: len(self)].copy() for name, part in parts.items()}
        return arrays, {"offered": self.offered, "random": self.random.bit_generator.state}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave; of another shape (settings have changed), nothing: it fills anew."""
        filled, length = arrays["rows"].shape
        if length != self.length or filled != min(state["offered"], self.held):
            return
        self.offered = state["offered"]
        self._rows[:filled], self._types[:filled] = arrays["rows"], arrays["types"]
        self._times[:filled], self._lengths[:filled] = arrays["times"], arrays["lengths"]
        self._user_hashes[:filled] = arrays["user_hashes"]
        self.random.bit_generator.state = state["random"]
