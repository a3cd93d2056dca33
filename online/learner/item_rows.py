"""Which items have a row, as the stream brings them and leaves them, and which of them must not be listed.

Letters: `N` clicks of a micro-batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.vocabulary import Vocabulary
from online.config.settings import Settings
from stream.events import Click


class ClickedRows(NamedTuple):
    """What a micro-batch made of the rows."""

    rows: NDArray[np.int64]  # (N,) of the clicked items, 0 where an item has none
    targets: NDArray[np.int64]  # (N,) the same, 0 where the item had no click before
    freed: list[int]  # rows that lost their items: what is kept by row has to be cleared before it is used
    taken: list[int]  # rows that belong to other items than before, or to the same ones again
    expired: int  # items that lost theirs because they had no clicks for long


class ItemRows:
    """The vocabulary, and the items that are not available, whether they have a row or not."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.vocabulary = Vocabulary(**self._limits())
        self.unavailable: set[str] = set()
        self.lost = 0  # items that had to make room for others, since the start of this process
        self._new: dict[str, None] = {}  # items that have a row without a click, in the order in which they got it
        self._waiting: dict[str, None] = {}  # published items that get a row with the next clicks
        self._leaving: dict[str, None] = {}  # items that lose theirs then
        self._expired_at = 0.0  # when idle items last lost their rows, in active time

    def _limits(self) -> dict[str, int]:
        held = self.settings.items_held
        return {"min_count": self.settings.item_min_count, "capacity_max": held, "waiting_max": held}

    # Items without a click

    @property
    def new_max(self) -> int:
        """Items without a click that may have a row."""
        return min(self.settings.content_new_items_max, self.settings.items_held // 4)

    def publish(self, item_id: str) -> None:
        """An item is to be listed before its first click: it gets a row by `admit`, or with the next clicks."""
        self._leaving.pop(item_id, None)
        if item_id not in self.vocabulary and self.new_max:
            self._waiting.pop(item_id, None)
            if len(self._waiting) >= self.new_max:
                del self._waiting[next(iter(self._waiting))]
            self._waiting[item_id] = None

    def was_clicked(self, item_id: str) -> bool:
        """Whether an item has a row that it got by clicks."""
        return item_id in self.vocabulary and item_id not in self._new

    def withdraw(self, item_id: str) -> None:
        """Nothing is known of an item any more, so it loses its row with the next clicks, if it was never clicked."""
        self._waiting.pop(item_id, None)
        if item_id in self._new:
            self._leaving[item_id] = None

    def admit(self, now: float) -> list[int]:
        """Gives rows to published items as far as there is room without taking one from another -> these rows.

        `now`: active time; items are as old by it as if they were clicked then.
        """
        rows = []
        room = min(self.new_max - len(self._new), self.settings.items_held - len(self.vocabulary))
        for item_id in list(self._waiting)[: max(0, room)]:
            del self._waiting[item_id]
            row = self.vocabulary.admit(item_id, now)
            if row:
                self._new[item_id] = None
                rows.append(row)
        return rows

    def _make_room(self) -> None:
        """Takes rows from items without a click that are withdrawn, or were published longest ago."""
        surplus = min(len(self._waiting), max(0, len(self._new) + len(self._waiting) - self.new_max))
        for item_id in [*self._leaving, *list(self._new)[:surplus]]:
            if self._new.pop(item_id, "") is None:
                self.vocabulary.release([item_id])
        self._leaving = {}

    def observe(self, clicks: Sequence[Click], active: NDArray[np.float64]) -> ClickedRows:
        """Counts a micro-batch of clicks in order of arrival, and the active time (N,) at each: items without a click
        for long lose their rows by it, and not by a silence of the whole stream."""
        self._make_room()
        admitted = self.admit(float(active[0])) if len(active) else []
        before = [self.vocabulary.row_of(click.item_id) for click in clicks]
        # Rows are freed many at a time: to clear them, everything that is kept by row has to be searched.
        new = len({click.item_id for click in clicks if click.item_id not in self.vocabulary})
        surplus = len(self.vocabulary) + new + min(len(self._waiting), len(clicks)) - self.settings.items_held
        if surplus > 0:
            self.lost += len(self.vocabulary.free_oldest(max(surplus, self.settings.items_held // 64)))
        rows = [self.vocabulary.observe(click.item_id, at) for click, at in zip(clicks, active.tolist(), strict=True)]
        now = float(active[-1])
        expired: list[int] = []
        if now - self._expired_at > self.settings.item_idle_s_max / 64:
            expired = self.vocabulary.expire(now - self.settings.item_idle_s_max)
            self._expired_at = now
        freed = self.vocabulary.take_reset()
        for click in clicks if self._new or self._waiting else ():
            self._new.pop(click.item_id, None)
            self._waiting.pop(click.item_id, None)
        if freed:
            self._new = {item_id: None for item_id in self._new if item_id in self.vocabulary}
        # Within one micro-batch a newcomer may have taken the row of an item that was clicked just before it.
        rows = [
            row if self.vocabulary.item_of(row) == click.item_id else 0 for row, click in zip(rows, clicks, strict=True)
        ]
        targets, seen = [], set()
        for row, had in zip(rows, before, strict=True):
            targets.append(row if had == row or row in seen else 0)
            seen.add(row)
        taken = {row for row, had in zip(rows, before, strict=True) if row and had != row} | (seen & set(freed))
        taken |= {row for row in admitted if self.vocabulary.item_of(row) is not None}
        return ClickedRows(np.array(rows, np.int64), np.array(targets, np.int64), freed, sorted(taken), len(expired))

    def would_free(self, clicks: Sequence[Click], now: float) -> bool:
        """Whether items may lose their rows to these clicks, the latest of which is at this active time."""
        if self._leaving or len(self._new) + len(self._waiting) > self.new_max:
            return True
        new = len({click.item_id for click in clicks if click.item_id not in self.vocabulary})
        expires = now - self._expired_at > self.settings.item_idle_s_max / 64
        return expires or len(self.vocabulary) + new + len(self._waiting) > self.settings.items_held

    def set_available(self, item_id: str, available: bool) -> None:
        """Whether an item may be listed. At most `items_held` are known as unavailable."""
        if available:
            self.unavailable.discard(item_id)
        elif len(self.unavailable) < self.settings.items_held:
            self.unavailable.add(item_id)

    def to_state(self) -> dict[str, Any]:
        """Numbers, strings and lists; JSON can hold it."""
        vocabulary, unavailable = self.vocabulary.to_state(), sorted(self.unavailable)
        state = {"vocabulary": vocabulary, "unavailable": unavailable, "expired_at": self._expired_at}
        parts = {"new": self._new, "waiting": self._waiting, "leaving": self._leaving}
        return state | {name: list(part) for name, part in parts.items() if part}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self.vocabulary = Vocabulary.from_state(state["vocabulary"], **self._limits())
        self.unavailable = set(state["unavailable"])
        self._expired_at = state["expired_at"]
        self._new, self._waiting, self._leaving = (
            dict.fromkeys(state.get(name, ())) for name in ("new", "waiting", "leaving")
        )
