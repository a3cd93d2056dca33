"""Writes what users have hidden to Redis, for those who hand out lists: what has changed at once, and all of it from
time to time and after Redis has lost it, in bounded slices.

It is written from what the learner holds, so nothing of it is in the checkpoint: a pass over all users follows each
start. In a group the worker that leads does it.
"""

import math
import time
from collections.abc import Callable

from online.learner.hidden import HiddenItems
from stream.hidden_items import RENEWALS, HiddenRecords
from stream.user_ids import digest_of

SLICE = 128  # users in one step
EVICTING_S = 300.0  # between two passes while Redis evicts, which may take any of these keys


class HiddenWriter:
    """Writes these keys for the loop's thread."""

    def __init__(
        self, hidden: HiddenItems, records: HiddenRecords, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`hidden`: what users have hidden; `monotonic`: a clock in seconds."""
        self._hidden, self._records, self._monotonic = hidden, records, monotonic
        self._changed: dict[str, None] = {}
        self._left: list[str] = []  # users of the pass that are still to be written
        self._passed_at = math.inf  # when the latest pass began; inf: another worker writes them

    def note(self, user_id: str) -> None:
        """Notes a user of whom something has changed."""
        self._changed[user_id] = None
        if len(self._changed) > self._hidden.users_max:
            self._changed = {}
            self.renew()

    def renew(self) -> None:
        """Begins a pass over all users: Redis may have lost keys, or hold older ones."""
        self._left, self._passed_at = self._hidden.user_ids(), self._monotonic()

    def stop(self) -> None:
        """Drops what is to be written: another worker writes it."""
        self._changed, self._left, self._passed_at = {}, [], math.inf

    def waits(self, *, evicting: bool = False) -> bool:
        """Returns whether `step` has something to do. `evicting`: whether Redis evicts keys."""
        return bool(self._changed or self._left) or self._is_due(evicting)

    def _is_due(self, evicting: bool) -> bool:
        every_s = self._records.ttl_s / RENEWALS
        return self._monotonic() - self._passed_at >= (min(every_s, EVICTING_S) if evicting else every_s)

    def step(self, *, evicting: bool = False) -> None:
        """Writes the next users, at most SLICE. Raises ListsError; they are written again then."""
        if self._is_due(evicting):
            self.renew()
        users = list(self._changed)[:SLICE] or self._left[-SLICE:]
        self._records.write({user: dict(self._hidden.of(user)) for user in users})
        if self._changed:
            for user in users:
                del self._changed[user]
        else:
            del self._left[-SLICE:]

    def forget(self, digest: str) -> None:
        """Forgets a user. `digest`: `stream.user_ids.digest_of` the id."""
        self._changed = {user: None for user in self._changed if digest_of(user) != digest}
        self._left = [user for user in self._left if digest_of(user) != digest]
