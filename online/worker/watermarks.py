"""Numbers the writes to Redis, to find out whether it has lost all of them, or the latest ones."""

import itertools
import uuid
from collections import deque
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

from stream.lists import MARKS_MAX, WHOLE, Watermark
from stream.user_ids import digest_of

WRITES_HELD = 1_000  # latest writes whose users are remembered


class WriteWatermarks:
    """Each write leaves its number in Redis, and gets the number that was there before.

    No number: Redis was emptied (restarted without its data, flushed). A lower one than the latest: it went back to an
    earlier state (restarted from a snapshot, another replica). Both are noticed however short the outage was. A higher
    one was written after the checkpoint by a worker that was killed.

    A cluster has several *parts*, each with a number of its own, because each primary may lose its data alone. A part
    that is new, because slots were moved, has lost nothing.
    """

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex  # kept with the checkpoint, so that a restart finds its own mark
        self._number = 0
        self._marked: dict[str, int] = {}  # by part: the number that stands there, least recently marked first
        self._latest: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=WRITES_HELD)

    def mark(self) -> Watermark:
        """Returns the watermark for the next write."""
        return Watermark(self._id, self._number + 1, tuple(reversed(self._marked)))

    def written(
        self, previous: Mapping[str, int | None], users: Collection[str]
    ) -> Mapping[str, Collection[str] | None]:
        """Notes that the write is done.

        Args:
            previous: by part: the number that was in Redis before; None if there was none.
            users: whose lists it wrote.

        Returns:
            By part that has lost lists before it: the users of whom some have; None for all of its users.
        """
        lost = {part: self._lost(part, number) for part, number in previous.items() if self._is_lower(part, number)}
        self._number += 1
        for part in previous:
            self._marked.pop(part, None)
            self._marked[part] = self._number
        while len(self._marked) > MARKS_MAX:
            del self._marked[next(iter(self._marked))]
        self._latest.append((self._number, tuple(users)))
        return lost

    def _is_lower(self, part: str, previous: int | None) -> bool:
        marked = self._marked.get(part)
        return marked is not None and (previous is None or previous < marked)

    def _lost(self, part: str, previous: int | None) -> Collection[str] | None:
        if previous is None or not self._latest or previous < self._latest[0][0] - 1:
            return None
        marked = self._marked[part]  # what was written later without this part is no loss of it
        return set(chain.from_iterable(users for number, users in self._latest if previous < number <= marked))

    def recent_users(self, users_max: int) -> list[str]:
        """Returns the users of the latest writes, without the very last write; newest first."""
        earlier = itertools.islice(reversed(self._latest), 1, None)
        return list(itertools.islice(chain.from_iterable(users for _, users in earlier), users_max))

    def forget(self, digest: str) -> None:
        """Forgets the user with this digest."""
        for at, (number, users) in enumerate(self._latest):
            self._latest[at] = number, tuple(user for user in users if digest_of(user) != digest)

    def to_state(self) -> dict[str, Any]:
        return {"id": self._id, "number": self._number, "parts": dict(self._marked)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned."""
        self._id, self._number = state["id"], state["number"]
        # A checkpoint of before there were parts is of a single server.
        self._marked = dict(state.get("parts", {WHOLE: self._number} if self._number else {}))
        self._latest.clear()
