"""Lists are ranked anew as they age: what suits a user now suits them less tomorrow.

Here is what time it is in the stream, and whose list has become old; `ListWriter` ranks and writes them.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from online.learner.history import UserHistories
from online.learner.return_times import ReturnTimes, marks_passed
from online.learner.stream_time import STREAM_GAP_S_MAX, ActiveClock


class StreamClock:
    """The time in the stream: the active time of its clicks, plus the time that has passed since the latest one.

    So a replay of old clicks ages lists as a live stream does, and the lists of an archive do not become a year older
    at today's first click. While no click arrives it advances by at most `STREAM_GAP_S_MAX`, since a longer silence
    does not count in active time either. It never goes back. The time since the latest click is measured by a monotonic
    clock.
    """

    def __init__(self, active: ActiveClock, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`active`: the clock of the clicks; `monotonic`: a monotonic clock, in seconds."""
        self._active, self._monotonic = active, monotonic
        self._latest = -np.inf
        self._at = 0.0  # by the monotonic clock: when it was that

    def now(self) -> float:
        """Returns the active time in seconds; -inf before the first click. It has to be called after each micro-batch,
        because the time until the next one is measured from there."""
        at, active = self._monotonic(), self._active.now
        if self._latest > -np.inf:
            passed = min(self._latest + max(0.0, at - self._at), active + STREAM_GAP_S_MAX)
            active = max(active, self._latest, passed)
        self._latest, self._at = active, at
        return active


class RefreshSchedule:
    """The users whose list has passed one of a few ages since the last check, longest waiting first.

    A list's age counts from its user's latest click, in active time. So a click causes at most as many refreshes as
    there are ages, no list is refreshed forever, and a list that passes several ages between two checks is refreshed
    once. The state is the time of the last check and the users who wait.
    """

    def __init__(self, returns: ReturnTimes, clock: StreamClock) -> None:
        """`returns`: gives the ages at which lists are refreshed, which it adapts to the stream."""
        self._returns = returns
        self._clock = clock
        self._asked = threading.Event()
        self._looked_at = -np.inf
        self._waiting: dict[str, None] = {}
        self._aged = 0  # lists, at the latest look

    def ask(self) -> None:
        """Requests a check. May be called from any thread; several requests before the check count once."""
        self._asked.set()

    def take(self, histories: UserHistories, count_max: int) -> list[str]:
        """Removes and returns the users who have waited longest, if a check was requested; else none.

        Args:
            histories: of all users.
            count_max: most users to return; if fewer wait, it first checks which lists have aged.
        """
        if not self._asked.is_set():
            return []
        self._asked.clear()
        if len(self._waiting) < count_max:
            self._check(histories)
        users = list(islice(self._waiting, count_max))
        self.mark_refreshed(users)
        return users

    def take_count(self) -> int:
        """Returns how many lists the latest check has found to have aged, once; then 0."""
        aged, self._aged = self._aged, 0
        return aged

    def mark_refreshed(self, users: Iterable[str]) -> None:
        """Removes users from those who wait, because they get new lists."""
        for user in users:
            self._waiting.pop(user, None)

    def users(self) -> list[str]:
        """Returns the users who wait."""
        return list(self._waiting)

    def _check(self, histories: UserHistories) -> None:
        now, clicked_at, ages_s = self._clock.now(), histories.clicked_active_at(), self._returns.marks()
        passed = marks_passed(ages_s, now - clicked_at) > marks_passed(ages_s, self._looked_at - clicked_at)
        self._looked_at, self._aged = now, int(passed.sum())
        self._waiting |= dict.fromkeys(histories.users_of(np.flatnonzero(passed).tolist()))
        if len(self._waiting) > len(histories):  # some have made room since
            self._waiting = {user: None for user in self._waiting if user in histories}

    def to_state(self) -> dict[str, Any]:
        looked_at = None if self._looked_at == -np.inf else self._looked_at
        return {"looked_at": looked_at, "waiting": list(self._waiting)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned. Without an earlier check it begins now: lists that are old stay so."""
        self._looked_at = self._clock.now() if state["looked_at"] is None else state["looked_at"]
        self._waiting = dict.fromkeys(state["waiting"])
