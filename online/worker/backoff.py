"""Waits between attempts to reach something that is unavailable."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from online.config.settings import Settings

REPORTED_EVERY_S = 30.0  # what is waited for is logged again after so long
ATTEMPTS_SHARE_MAX = 0.2  # of the time may go to attempts, however long each takes to fail

T = TypeVar("T")

log = logging.getLogger(__name__)


class StoppedError(Exception):
    """The worker was stopped while something was still unavailable."""


class Backoff:
    """Waits between attempts: doubling from `first_s` to `longest_s`, each up to half shorter by chance, so that many
    clients of one server do not come back at once.

    An attempt that takes long to fail is followed by a wait in proportion: a loop that makes attempts between
    other work gets on with that. `random`: from 0 to 1.
    """

    def __init__(
        self,
        first_s: float,
        longest_s: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._monotonic = monotonic
        self._random = random
        self._next_s = first_s
        self._due_at = 0.0

    @property
    def due(self) -> bool:
        """Whether the next attempt is due."""
        return self._monotonic() >= self._due_at

    def failed(self, took_s: float = 0.0) -> float:
        """Notes an attempt that failed after `took_s` seconds. Returns the seconds until the next one is due."""
        wait_s = self._next_s * (1 - self._random() / 2)
        wait_s = max(wait_s, took_s * (1 / ATTEMPTS_SHARE_MAX - 1))
        self._next_s = min(2 * self._next_s, self._longest_s)
        self._due_at = self._monotonic() + wait_s
        return wait_s

    def succeeded(self) -> None:
        """Resets the waits: the next failure counts as the first one."""
        self._next_s, self._due_at = self._first_s, 0.0


def backoff(settings: Settings, monotonic: Callable[[], float] = time.monotonic) -> Backoff:
    """Returns a Backoff with the waits of the settings."""
    return Backoff(settings.retry_s_min, settings.retry_s_max, monotonic=monotonic)


def retry_until(
    attempt: Callable[[], T],
    *,
    settings: Settings,
    stop: threading.Event,
    unavailable: tuple[type[Exception], ...],
    report: Callable[[str | None], None] = lambda _: None,
) -> T:
    """Repeats an attempt until it succeeds, and returns its result.

    `unavailable`: the errors that are worth waiting for; others are raised. `report` gets the line that is waited for,
    with each attempt that fails, and None once nothing is. Raises StoppedError once `stop` is set.
    """
    backing_off, began = backoff(settings), time.monotonic()
    logged, logged_at = "", 0.0

    def failed(state: RetryCallState) -> None:
        nonlocal logged, logged_at
        assert state.outcome is not None
        line, now = str(state.outcome.exception()), time.monotonic()
        if line != logged or now - logged_at >= REPORTED_EVERY_S:
            log.warning("waiting for %.0f s: %s", now - began, line, extra={"duration_s": round(now - began, 3)})
            logged, logged_at = line, now
        report(line)

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError

    retrying = Retrying(
        retry=retry_if_exception_type(unavailable),
        wait=lambda _: backing_off.failed(),
        before_sleep=failed,
        sleep=pause,
    )
    done = retrying(attempt)
    if logged:
        took_s = time.monotonic() - began
        log.info("available after %.0f s", took_s, extra={"duration_s": round(took_s, 3)})
        report(None)
    return done
