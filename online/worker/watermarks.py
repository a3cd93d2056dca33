"""Numbers the writes to Redis, to find out whether it has lost all of them, or the latest ones."""

import itertools
import uuid
from collections import deque
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

from stream.lists import Watermark
from stream.user_ids import digest_of

WRITES_HELD = 1_000  # latest writes whose users are remembered


class WriteWatermarks:
    """Each write leaves its number in Redis, and gets the number that was there before.

    No number: Redis was emptied (restarted without its data, flushed). A lower one than the latest: it went back to an
    earlier state (restarted from a snapshot, another replica). Both are noticed however short the outage was. A higher
    one was written after the checkpoint by a worker that was killed.
    """

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex  # kept with the checkpoint, so that a restart finds its own mark
        self._number = 0
        self._latest: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=WRITES_HELD)

    def mark(self) -> Watermark:
        """Returns the watermark for the next write."""
        return Watermark(self._id, self._number + 1)

    def written(self, previous: int | None, users: Collection[str]) -> Collection[str] | None:
        """Notes that the write is done.

        Args:
            previous: the number that was in Redis before; None if there was none.
            users: whose lists it wrote.

        Returns:
            The users whose lists were lost before it; None for all.
        """
        lost = self._lost(previous)
        self._number += 1
        self._latest.append((self._number, tuple(users)))
        return lost

    def _lost(self, previous: int | None) -> Collection[str] | None:
        if not self._number or (previous is not None and previous >= self._number):
            return ()
        if previous is None or not self._latest or previous < self._latest[0][0] - 1:
            return None
        return set(chain.from_iterable(users for number, users in self._latest if number > previous))

    def recent_users(self, users_max: int) -> list[str]:
        """Returns the users of the latest writes, without the very last write; newest first."""
        earlier = itertools.islice(reversed(self._latest), 1, None)
        return list(itertools.islice(chain.from_iterable(users for _, users in earlier), users_max))

    def forget(self, digest: str) -> None:
        """Forgets the user with this digest."""
        for at, (number, users) in enumerate(self._latest):
            self._latest[at] = number, tuple(user for user in users if digest_of(user) != digest)

    def to_state(self) -> dict[str, Any]:
        return {"id": self._id, "number": self._number}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned."""
        self._id, self._number = state["id"], state["number"]
        self._latest.clear()
