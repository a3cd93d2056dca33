"""The way to Redis: whether it takes anything, how much of the worker's time it may cost, and what it has lost.

It may be away, full, read-only, slow, or back with less than it had, at any time; learning goes on meanwhile.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from online.settings import Settings
from online.turn.backoff import SAID_EVERY_S, backoff
from online.turn.receipts import Receipts
from stream.lists import Lists, ListsError, TopList

SLOW_S = 0.05  # an answer that takes longer is followed by a pause as long as it took

log = logging.getLogger(__name__)


class RedisLink:
    """Does what needs Redis, for the writer of lists; never raises ListsError."""

    def __init__(
        self,
        settings: Settings,
        lists: Lists,
        *,
        clock: Callable[[], float],
        on_loss: Callable[[Collection[str] | None], None],
        on_return: Callable[[], None],
    ) -> None:
        """`on_loss` gets the users whose lists Redis has lost, None for all; `on_return` is called when it answers
        again, before anything else is done. `clock`: the computer's, in seconds since 1970."""
        self.lists = lists
        self.away_since: float | None = None
        self.before: Callable[[], None] = lambda: None  # what is owed, and done before anything else
        self._clock = clock
        self._on_loss = on_loss
        self._on_return = on_return
        self._backoff = backoff(settings)
        self._receipts = Receipts()
        self._said_at = self._away_at = 0.0
        self._pause_until = 0.0

    @property
    def due(self) -> bool:
        """Whether it may be asked now: not with every micro-batch while it is away, and while it is slow for at most
        half of the time."""
        return self._backoff.due if self.away_since is not None else time.monotonic() >= self._pause_until

    def write(self, lists: Mapping[str, TopList], popular: TopList | None) -> bool:
        """Writes lists -> whether Redis took them."""

        def work() -> None:
            found = self.lists.write(lists, popular, mark=self._receipts.mark())
            self._account(found, lists)

        return self.do(work)

    def look(self) -> bool:
        """Writes the mark alone, to see whether anything was lost -> whether Redis takes it."""
        return self.write({}, None)

    def do(self, work: Callable[[], None]) -> bool:
        """Does what needs Redis -> whether it is done; not, and at once, while an attempt is not due."""
        if self.away_since is not None and not self._backoff.due:
            return False
        began = time.monotonic()
        try:
            if self.away_since is not None:
                self._come_back()
            self.before()
            work()
        except ListsError as error:
            self._failed(error, time.monotonic() - began)
            return False
        self._backoff.succeeded()
        now = time.monotonic()
        self._pause_until = now + (now - began if now - began > SLOW_S else 0.0)
        return True

    def _come_back(self) -> None:
        found = self.lists.write({}, None, mark=self._receipts.mark())
        self.away_since = None
        self._account(found, ())
        self._on_return()

    def _account(self, found: int | None, users: Collection[str]) -> None:
        lost = self._receipts.took(found, users)
        if lost is None or lost:
            self._on_loss(lost)

    def _failed(self, error: ListsError, took_s: float) -> None:
        self._backoff.failed(took_s)
        if self.away_since is None:
            self.away_since = self._clock()
            self._said_at = self._away_at = time.monotonic()
            log.warning("%s; learning goes on, lists will be brought up to date", error)
        elif time.monotonic() - self._said_at >= SAID_EVERY_S:
            self._said_at = time.monotonic()
            log.warning("still, after %.0f s: %s", self._said_at - self._away_at, error)

    def forget(self, digest: str) -> None:
        """Somebody's list may be lost from now on (`stream.people.digest_of` their id)."""
        self._receipts.forget(digest)

    def to_state(self) -> dict[str, Any]:
        return self._receipts.to_state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self._receipts.load_state(state)
