"""A Redis that is too small and evicts lists: detected, reported once, and not fought.

To write an evicted list anew only evicts another. So while Redis evicts, lists go to those who click, who are there and
will look; lists that have aged are renewed where they still stand; and the popular list, which all others get, is
always kept fresh. What stands under an LRU or LFU policy is what was read or written lately, so what is read most is
what is kept. It is not asked of each key how often it was read (OBJECT FREQ): that costs a question a list.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from online.lifecycle.emit import Emit
from stream.lists import Lists, ListsError, Memory

CHECK_S = 5.0  # between two checks of how full it is
ROOM_SHARE = 0.9  # of its memory, below which it has room again
OVER_S = 10.0  # there must be room for so long; after the next time twice as long
OVER_S_MAX = 3_600.0
UNKNOWN_FACTOR = 60.0  # times as long, where it does not say whether it has room
LOSSES_MAX = 3  # times that all was lost within LOSSES_S: a server that cannot say why is too small, or as good as
LOSSES_S = 60.0
SAMPLE = 100  # lists written lately that are looked for where all seem lost

log = logging.getLogger(__name__)


class EvictionWatch:
    """Tells a Redis that evicts from one that was emptied. For the loop's thread alone; never raises ListsError."""

    def __init__(
        self,
        lists: Lists,
        *,
        emit: Emit,
        on_room: Callable[[], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            lists: where lists stand.
            emit: for notices.
            on_room: called when there is room again.
            clock: the computer's, in seconds since 1970.
            monotonic: in seconds, from any beginning.
        """
        self.since: float | None = None  # seconds since 1970; None: it does not evict
        self.evicted = 0  # keys, whosever, since this worker began to look
        self.memory: Memory | None = None  # as of the latest look; None: it does not say
        self._lists = lists
        self._emit = emit
        self._on_room = on_room
        self._clock = clock
        self._monotonic = monotonic
        self._check_at = -math.inf
        self._said_why_not = False
        self._losses: deque[float] = deque(maxlen=LOSSES_MAX)
        self._full_at = 0.0  # when it was last seen to have no room
        self._over_s = OVER_S

    def check(self) -> None:
        """To be called about once a second while Redis answers: every CHECK_S it is asked how full it is."""
        if self._monotonic() < self._check_at:
            return
        rose = self._ask()
        if self.since is None:
            if rose:
                self._begin(f"{rose:,} keys had to make room within {CHECK_S:.0f} s")
        elif rose or not self._has_room():
            self._full_at = self._monotonic()
        elif self._monotonic() - self._full_at >= self._over_s * (UNKNOWN_FACTOR if self.memory is None else 1):
            self._end()

    def has_evicted(self, recent_users: Sequence[str]) -> bool:
        """Whether it was eviction that took the mark, and not that all was lost: then lists still stand of those who
        had one written lately."""
        now = self._monotonic()
        self._losses.append(now)
        before, rose = self.memory, self._ask()
        if self.memory is not None and not self.memory.limited:
            return False
        often = len(self._losses) == LOSSES_MAX and now - self._losses[0] <= LOSSES_S
        stand = self._any_stand(recent_users)
        unknown = before is None or self.memory is None
        if self.since is None and (often or (stand and (rose or unknown))):
            self._begin(f"{rose:,} keys had to make room" if rose else "it loses what it is given")
        if self.memory is None:
            self._full_at = now
        # What was emptied while it evicted is filled again: nothing stands, and there is room.
        return self.since is not None and (often or stand or not self._has_room())

    def _ask(self) -> int:
        """Looks how full it is -> how many keys it has evicted since the last look."""
        self._check_at = self._monotonic() + CHECK_S
        before = self.memory
        try:
            self.memory = self._lists.memory()
        except ListsError as error:
            self.memory = None
            if not self._said_why_not:
                log.info("%s; evicted lists are noticed only when they are missing", error)
            self._said_why_not = True
            return 0
        if before is None or before.run_id != self.memory.run_id:
            return 0
        rose = max(0, self.memory.evicted - before.evicted)
        self.evicted += rose
        return rose

    def _any_stand(self, users: Sequence[str]) -> bool:
        try:
            return self._lists.standing(users) > 0
        except ListsError:
            return False

    def _has_room(self) -> bool:
        """Whether more lists would find room, as far as it says."""
        memory = self.memory
        return memory is None or not memory.limited or memory.used_share <= ROOM_SHARE

    def _begin(self, why: str) -> None:
        self.since, self._full_at = self._clock(), self._monotonic()
        text = (
            f"Redis at {self._lists.address} is too small and evicts lists ({why}; {self._limits()}): raise its "
            "maxmemory. Until then lists go to those who click, and what was evicted is not written anew"
        )
        self._emit("evicting", text, self.figures())

    def _end(self) -> None:
        seconds = self._clock() - (self.since or 0.0)
        self.since = None
        self._over_s = min(2 * self._over_s, OVER_S_MAX)
        text = f"Redis at {self._lists.address} has room again after {seconds:.0f} s ({self._limits()})"
        text += ": all lists are written anew"
        self._emit("evicting_over", text, self.figures())
        self._on_room()

    def _limits(self) -> str:
        if self.memory is None:
            return "maxmemory and policy are not known: let its user ask, by +info"
        size = f"{self.memory.bytes_max / 2**20:,.1f} MiB" if self.memory.bytes_max else "not limited"
        return f"maxmemory {size}, maxmemory-policy {self.memory.policy}"

    def figures(self) -> Mapping[str, Any]:
        """For notices and status; times in milliseconds since 1970."""
        memory = self.memory
        return {
            "evicting_since": None if self.since is None else int(1000 * self.since),
            "evicted": self.evicted,
            "bytes_max": memory and memory.bytes_max,
            "used_bytes": memory and memory.used_bytes,
            "policy": memory and memory.policy,
        }
