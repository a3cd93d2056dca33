"""What other threads may know of a worker: its latest status, how long things take, and whether the loop turns.

The loop's thread writes, any other thread reads. A status is a new object each time and is never changed after it was
published, so a reader needs no lock, and never waits for the loop.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

STUCK_S = 120.0  # a loop that should turn and has not for so long is stuck; a slow turn takes some seconds

#: Upper bounds of the buckets of all durations, in seconds.
BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0),
)


class Durations:
    """A histogram of durations: counts by bucket, and their sum. One thread writes, others may read."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counts = [0] * (len(BUCKETS_S) + 1)  # the last one: longer than all bounds
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._sum_s += seconds
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Observes how long the body takes, also if it fails."""
        began = self._monotonic()
        try:
            yield
        finally:
            self.observe(self._monotonic() - began)

    def figures(self) -> dict[str, Any]:
        """Returns `sum`, in seconds, and `buckets`: how many took at most so many seconds, by bound as text."""
        total, buckets = 0, {}
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), list(self._counts), strict=True):
            total += count
            buckets[bound] = total
        return {"sum": round(self._sum_s, 6), "buckets": buckets}


class Timings:
    """How long the steps of a worker take, since its process began."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.click_to_list = Durations(monotonic)  # from a click's arrival on the topic to its list in Redis
        self.poll = Durations(monotonic)
        self.micro_batch = Durations(monotonic)
        self.redis_write = Durations(monotonic)
        self.checkpoint_write = Durations(monotonic)

    def figures(self) -> dict[str, Any]:
        """Returns the figures of each, by name."""
        return {name: durations.figures() for name, durations in vars(self).items()}


class Monitor:
    """The latest status of a worker, its timings, and when its loop last turned."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.timings = Timings(monotonic)
        self._monotonic = monotonic
        self._status: Mapping[str, Any] = starting_status()
        self._turned_at: float | None = None  # None: the loop does not have to turn

    def publish(self, status: Mapping[str, Any]) -> None:
        """Replaces the status that is shown; it must not be changed any more."""
        self._status = status

    def turned(self) -> None:
        """Notes that the loop turns; from now on it has to, until `rests`."""
        self._turned_at = self._monotonic()

    def rests(self) -> None:
        """Notes that the loop does not have to turn: it has ended, or has not begun."""
        self._turned_at = None

    def status(self) -> dict[str, Any]:
        """Returns the latest status, with the timings as they are now."""
        return {**self._status, "timings": self.timings.figures()}

    def stuck_s(self) -> float | None:
        """Returns for how long the loop has not turned although it should have, if that is too long; else None."""
        turned_at = self._turned_at
        still_s = 0.0 if turned_at is None else self._monotonic() - turned_at
        return still_s if still_s > STUCK_S else None


def starting_status() -> dict[str, Any]:
    """Returns the status of a worker that loads its code, its checkpoint and its parts."""
    return {"state": "starting", "pid": os.getpid(), "written_at": int(1_000 * time.time()), "problems": []}
