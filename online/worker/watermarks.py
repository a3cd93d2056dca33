"""What Redis was given, to find out what it has lost: all of it, or only what came last."""

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
    """Each write leaves its number in Redis and gets to know which number stood there.

    None: Redis was emptied (restarted without its data, flushed). A lower one than the last: it went back to an earlier
    state (restarted from a snapshot, another replica). Either is noticed however short the outage was. A higher one was
    left after the checkpoint by a worker that was killed.
    """

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex  # kept with the checkpoint, so that a restart finds its own mark
        self._number = 0
        self._latest: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=WRITES_HELD)

    def mark(self) -> Watermark:
        """To be left with the next write."""
        return Watermark(self._id, self._number + 1)

    def written(self, found: int | None, users: Collection[str]) -> Collection[str] | None:
        """That write is done; `found` is the number that stood there -> whose lists were lost before it; None: all."""
        lost = self._lost(found)
        self._number += 1
        self._latest.append((self._number, tuple(users)))
        return lost

    def _lost(self, found: int | None) -> Collection[str] | None:
        if not self._number or (found is not None and found >= self._number):
            return ()
        if found is None or not self._latest or found < self._latest[0][0] - 1:
            return None
        return set(chain.from_iterable(users for number, users in self._latest if number > found))

    def recent_users(self, users_max: int) -> list[str]:
        """Whose lists the latest writes held, without the very last write; newest first."""
        earlier = itertools.islice(reversed(self._latest), 1, None)
        return list(itertools.islice(chain.from_iterable(users for _, users in earlier), users_max))

    def forget(self, digest: str) -> None:
        """No user with that digest is remembered."""
        for at, (number, users) in enumerate(self._latest):
            self._latest[at] = number, tuple(user for user in users if digest_of(user) != digest)

    def to_state(self) -> dict[str, Any]:
        return {"id": self._id, "number": self._number}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self._id, self._number = state["id"], state["number"]
        self._latest.clear()
