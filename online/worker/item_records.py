"""Writes what is known of items to Redis: what has changed after each batch of item updates, and all of it from time to
time and after Redis has lost it, in bounded slices.

Records are made of what the learner holds at the moment of writing, so nothing of them is in the checkpoint: a pass
over all items follows each start. They expire like lists, and each pass renews them; of an item that the learner has
given up for lack of room the record goes by itself. In a group the worker that leads writes them.
"""

import math
import time
from collections.abc import Callable, Iterable

from online.learner.state import LearnerState
from stream.item_records import ItemRecord, ItemRecords

SLICE = 128  # records in one step: no more than a full micro-batch has lists, which are longer
RENEWALS = 4  # passes within a record's lifetime


def record_of(state: LearnerState, item_id: str) -> ItemRecord | None:
    """Returns what is known of an item beside clicks; None: nothing."""
    attributes, available = state.listable.attributes, item_id not in state.unavailable
    if available and not attributes.slot_of(item_id):
        return None
    return ItemRecord(
        title=attributes.title(item_id),
        tags=tuple(attributes.tags(item_id)),
        attributes=attributes.attributes(item_id),
        available=available,
    )


class ItemRecordWriter:
    """Writes records for the loop's thread."""

    def __init__(
        self, state: LearnerState, records: ItemRecords, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`state`: what the learner knows; `monotonic`: a clock in seconds."""
        self._state = state
        self._records = records
        self._monotonic = monotonic
        self._changed: dict[str, None] = {}  # items whose record is to be written, at most as many as are held
        self._left: list[str] | None = None  # items of the pass that are still to be written; None: there is no pass
        self._renew_at = math.inf  # when the next pass begins
        self._complete: bool | None = None  # what Redis was told; None: nothing yet

    def waits(self, *, evicting: bool = False) -> bool:
        """Returns whether `step` has something to do."""
        if evicting and self._complete is not False:
            return True
        return bool(self._changed) or self._left is not None or self._monotonic() >= self._renew_at

    def note(self, item_ids: Iterable[str]) -> None:
        """Notes items of which something has changed."""
        self._changed |= dict.fromkeys(item_ids)
        if len(self._changed) > self._state.settings.items_held:
            self._changed = {}
            self.renew()

    def renew(self) -> None:
        """Begins a pass over all items: Redis may have lost records, or hold older ones."""
        self._left = [*self._state.unavailable, *self._state.listable.attributes.items()]
        self._renew_at = self._monotonic() + self._records.ttl_s / RENEWALS

    def stop(self) -> None:
        """Drops what is to be written: another worker writes it."""
        self._changed, self._left, self._renew_at, self._complete = {}, None, math.inf, None

    def step(self, *, evicting: bool = False) -> None:
        """Writes the next records, at most SLICE. Raises ListsError; they are written again then.

        Args:
            evicting: whether Redis evicts: to renew records would only evict others, so only what has changed is
                written, and Redis is told that records may be missing.
        """
        if evicting:
            self._left, self._renew_at = None, math.inf
            if self._complete is not False:
                self._records.mark_incomplete()
                self._complete = False
        elif self._monotonic() >= self._renew_at:
            self.renew()
        if self._changed:
            self._write(some := list(self._changed)[:SLICE])
            for item_id in some:
                del self._changed[item_id]
        elif self._left:
            self._write(self._left[-SLICE:])
            del self._left[-SLICE:]
        elif self._left is not None:
            self._records.mark_complete(len(self._state.listable.attributes))
            self._left, self._complete = None, True

    def _write(self, item_ids: Iterable[str]) -> None:
        self._records.write({item_id: record_of(self._state, item_id) for item_id in item_ids})
