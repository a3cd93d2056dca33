"""What keeps a client from making an outage worse: a budget for retries, pauses of random length, a circuit breaker.

The budget is a token bucket, as in Finagle (`RetryBudget`) and the SDKs of AWS (Brooker, "Timeouts, retries, and
backoff with jitter", Amazon Builders' Library): in the long run retries are at most a fixed share of all calls. The
pauses are "full jitter" of the same source.
"""

import threading
import time
from collections.abc import Callable


class RetryBudget:
    """A bucket of at most `reserve` tokens, full at first. A call adds `ratio` of a token, a retry takes one.

    So of any N calls at most `reserve + ratio · N` are retried. Threads may share it.
    """

    def __init__(self, *, ratio: float, reserve: int) -> None:
        self._ratio = ratio
        self._reserve = float(reserve)
        self._tokens = float(reserve)
        self._lock = threading.Lock()

    @property
    def tokens(self) -> float:
        """Retries that are left."""
        return self._tokens

    def deposit(self) -> None:
        """Counts a call."""
        with self._lock:
            self._tokens = min(self._reserve, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Takes a token for a retry. Returns whether there was one."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


class CircuitBreaker:
    """Closed, it admits every attempt. After `failures_max` failures in a row it opens for `open_s` seconds.

    After these it admits one attempt in each `open_s` until one succeeds. An attempt that is cancelled is neither a
    failure nor a success, and holds nothing up. Threads may share it.
    """

    def __init__(self, *, failures_max: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures_max = failures_max
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._closed_at = 0.0  # when the next attempt is admitted, while it is open
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether attempts are held back."""
        return self._failures >= self._failures_max

    def admit(self) -> bool:
        """Returns whether an attempt may be made now."""
        with self._lock:
            if not self.is_open:
                return True
            now = self._clock()
            if now < self._closed_at:
                return False
            self._closed_at = now + self._open_s  # this attempt finds out; the others wait for what it finds
            return True

    def failed(self) -> bool:
        """Counts an attempt without an answer. Returns whether that has opened it."""
        with self._lock:
            was_open = self.is_open
            self._failures = min(self._failures + 1, self._failures_max)
            if self.is_open:
                self._closed_at = self._clock() + self._open_s
            return self.is_open and not was_open

    def succeeded(self) -> bool:
        """Closes it. Returns whether it was open."""
        with self._lock:
            was_open, self._failures = self.is_open, 0
            return was_open


def backoff_s(retry: int, *, first_s: float, longest_s: float, draw: Callable[[], float]) -> float:
    """Returns the pause before a retry, in seconds: uniform from 0 to a bound that doubles each time ("full jitter").

    Args:
        retry: its number, from 1.
        first_s: the bound before the first retry, in seconds.
        longest_s: the highest bound, in seconds.
        draw: a random number from 0 to 1.
    """
    return draw() * min(longest_s, first_s * 2.0 ** min(retry - 1, 32))
