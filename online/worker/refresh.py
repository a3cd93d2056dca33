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
    """What time it is in the stream: the active time of its clicks, and the time that has passed since the latest one.

    So a replay of old clicks ages lists as a live stream does, and an archive's lists do not become a year older by the
    first click of today. While no click comes it runs on for at most `STREAM_GAP_S_MAX`, as that silence will have
    counted once a click ends it. It never goes back. What passes is measured by a monotonic clock.
    """

    def __init__(self, active: ActiveClock, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`active`: the clicks'; `monotonic`: seconds of no particular beginning."""
        self._active, self._monotonic = active, monotonic
        self._latest = -np.inf
        self._at = 0.0  # by the monotonic clock: when it was that

    def now(self) -> float:
        """Active time in seconds; -inf before the first click. To be asked after each micro-batch: what passes until
        the next one counts from there."""
        at, active = self._monotonic(), self._active.now
        if self._latest > -np.inf:
            passed = min(self._latest + max(0.0, at - self._at), active + STREAM_GAP_S_MAX)
            active = max(active, self._latest, passed)
        self._latest, self._at = active, at
        return active


class RefreshSchedule:
    """Whose list has passed one of a few ages since the last look, longest waiting first.

    A list's age counts from its owner's latest click, in active time. So a click causes at most as many refreshes as
    there are ages, no user is refreshed forever, and one who passes several of them between two checks is refreshed
    once. All follows from the histories, the time of the last look, and who still waits, who has a history.
    """

    def __init__(self, returns: ReturnTimes, clock: StreamClock) -> None:
        """`returns`: knows the ages that are worth a refresh, others at each look. None at all: nothing falls due."""
        self._returns = returns
        self._clock = clock
        self._asked = threading.Event()
        self._looked_at = -np.inf
        self._waiting: dict[str, None] = {}
        self._aged = 0  # lists, at the latest look

    def ask(self) -> None:
        """Something may be taken again. May be called from any thread; asked twice before that, it counts once."""
        self._asked.set()

    def take(self, histories: UserHistories, count_max: int) -> list[str]:
        """Takes out those who have waited longest, each time it was asked for; none otherwise. It checks who has
        aged while fewer than that wait."""
        if not self._asked.is_set():
            return []
        self._asked.clear()
        if len(self._waiting) < count_max:
            self._check(histories)
        users = list(islice(self._waiting, count_max))
        self.mark_refreshed(users)
        return users

    def take_count(self) -> int:
        """How many lists the latest look has found to have aged; 0 when asked again."""
        aged, self._aged = self._aged, 0
        return aged

    def mark_refreshed(self, users: Iterable[str]) -> None:
        """These users get new lists: those who waited do not any more."""
        for user in users:
            self._waiting.pop(user, None)

    def users(self) -> list[str]:
        """Who waits."""
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
        """Takes back what `to_state` gave. If there was no check yet, it begins now: what is old already stays so."""
        self._looked_at = self._clock.now() if state["looked_at"] is None else state["looked_at"]
        self._waiting = dict.fromkeys(state["waiting"])
