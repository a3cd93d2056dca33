"""Lists are ranked anew as they age: what suits a person now suits them less tomorrow.

Here is what time it is in the stream, and whose list has become old; `ListWriter` ranks and writes them.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from online.history import UserHistories
from online.ranking.return_times import ReturnTimes, marks_passed


class StreamClock:
    """What time it is in the stream: the latest timestamp seen, and the time that has passed since it was seen.

    So a replay of old clicks ages lists as a live stream does. It never goes back, whatever late clicks say. Of clicks
    that are ahead of the computer's clock it believes no more than that clock: one wrong phone must not age everybody.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: the computer's, in seconds since 1970."""
        self._clock = clock
        self._ahead_s = -np.inf  # of the computer's clock
        self._latest = -np.inf

    def saw(self, timestamp: float) -> None:
        """A click was made then, in seconds since 1970."""
        self._ahead_s = max(self._ahead_s, min(timestamp - self._clock(), 0.0))

    def now(self) -> float:
        """Seconds since 1970; -inf before the first click."""
        self._latest = max(self._latest, self._clock() + self._ahead_s)
        return self._latest


class RefreshSchedule:
    """Whose list has passed one of a few ages since the last look, longest waiting first.

    A list's age counts from its owner's latest click. So a click causes at most as many refreshes as there are ages,
    nobody is refreshed forever, and whoever passes several of them between two looks is refreshed once. All follows
    from the histories, the time of the last look, and who still waits; that is nobody but who has a history.
    """

    def __init__(self, returns: ReturnTimes, clock: StreamClock) -> None:
        """`returns`: knows the ages that are worth a refresh, others at each look. None at all: nothing falls due."""
        self._returns = returns
        self._clock = clock
        self._asked = threading.Event()
        self._looked_at = -np.inf
        self._waiting: dict[str, None] = {}

    def ask(self) -> None:
        """Something may be taken again. May be called from any thread; asked twice before that, it counts once."""
        self._asked.set()

    def take(self, histories: UserHistories, count_max: int) -> list[str]:
        """Takes out those who have waited longest, each time it was asked for; nobody otherwise. It looks who has
        aged while fewer than that wait."""
        if not self._asked.is_set():
            return []
        self._asked.clear()
        if len(self._waiting) < count_max:
            self._look(histories)
        users = list(islice(self._waiting, count_max))
        self.renewed(users)
        return users

    def renewed(self, users: Iterable[str]) -> None:
        """These users get new lists: whoever waited does not any more."""
        for user in users:
            self._waiting.pop(user, None)

    def people(self) -> list[str]:
        """Who waits."""
        return list(self._waiting)

    def _look(self, histories: UserHistories) -> None:
        now, clicked_at, ages_s = self._clock.now(), histories.clicked_at(), self._returns.marks()
        passed = marks_passed(ages_s, now - clicked_at) > marks_passed(ages_s, self._looked_at - clicked_at)
        self._looked_at = now
        self._waiting |= dict.fromkeys(histories.users_of(np.flatnonzero(passed).tolist()))
        if len(self._waiting) > len(histories):  # some have made room since
            self._waiting = {user: None for user in self._waiting if user in histories}

    def to_state(self) -> dict[str, Any]:
        looked_at = None if self._looked_at == -np.inf else self._looked_at
        return {"looked_at": looked_at, "waiting": list(self._waiting)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave. If nobody ever looked, it begins now: what is old already stays so."""
        self._looked_at = self._clock.now() if state["looked_at"] is None else state["looked_at"]
        self._waiting = dict.fromkeys(state["waiting"])
