"""The link to Redis: whether it accepts lists, how much of the worker's time it may take, and what it has lost.

It may be unavailable, full, read-only, slow, half-working, or back without some of its data, at any time; learning goes
on meanwhile. Only an accepted list proves that it is back: a Redis that answers a ping, or accepts the watermark, may
still refuse lists. A Redis that alternately accepts and refuses lists counts as unavailable until it has accepted all
of them for a while.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from online.config.settings import Settings
from online.worker.backoff import REPORTED_EVERY_S, backoff
from online.worker.watermarks import WriteWatermarks
from stream.lists import WHOLE, Lists, ListsError, TopList
from stream.redis_errors import RedisTimeoutError

SLOW_S = 0.05  # a slower answer is followed by a pause of the same length
RELAPSE_S = 60.0  # a failure for the same reason so soon after a recovery belongs to the same outage
SETTLED_S = 10.0  # after a relapse it has to accept everything for so long, after the next one for twice as long
SETTLED_S_MAX = 300.0
REASONS_MAX = 8  # different reasons of one outage that are logged at once

log = logging.getLogger(__name__)


class RedisLink:
    """Does the list writer's work with Redis; never raises ListsError."""

    def __init__(
        self,
        settings: Settings,
        lists: Lists,
        *,
        clock: Callable[[], float],
        on_loss: Callable[[Collection[str] | None], None],
        on_return: Callable[[float], None],
        monotonic: Callable[[], float] | None = None,
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            settings: how long to wait between attempts.
            lists: where lists go.
            clock: the computer's, in seconds since 1970.
            on_loss: called with the users whose lists Redis has lost, None for all.
            on_return: called when lists are accepted again, with the length of the outage in seconds.
            monotonic: in seconds, from any beginning; None: the computer's.
            timed: within which each write is done.
        """
        self.lists = lists
        self.away_since: float | None = None  # start of the present outage, in seconds since 1970; None: there is none
        self.trouble: str | None = None  # why, in a line for operators
        #: Called where a node of a cluster has lost all its lists, with whether a user's list stood there.
        self.on_node_loss: Callable[[Callable[[str], bool]], None] = lambda _: on_loss(None)
        self.rejected = 0  # lists that Redis had newer ones of
        self.before: Callable[[], None] = lambda: None  # pending work, which is done before anything else
        self._clock = clock
        self._monotonic = monotonic or time.monotonic
        self._on_loss = on_loss
        self._on_return = on_return
        self._timed = timed
        self._backoff = backoff(settings, self._monotonic)
        self._watermarks = WriteWatermarks()
        self._failing = False  # whether the latest attempt has failed
        self._silent = False  # whether that was because no answer came
        self._taking_since = 0.0  # when it took lists again
        self._back_at = -RELAPSE_S  # when it was last said to be back
        self._began_at = self._began = 0.0  # the outage that lasts, or was the last: by both clocks, in seconds
        self._settle_s = 0.0  # how long it has to take everything before it is back
        self._reasons: set[str] = set()  # that were said in this outage, or in those just before it
        self._reported_at = 0.0
        self._pause_until = 0.0

    @property
    def taking(self) -> bool:
        """Whether it accepted the latest write."""
        return not self._failing

    @property
    def answers(self) -> bool:
        """Whether other requests than writing lists are worth the time: it may refuse lists and still answer."""
        return not (self._failing and self._silent)

    @property
    def due(self) -> bool:
        """Whether an attempt is due: rarely while it is unavailable, and for at most half of the time while it is
        slow."""
        return self._backoff.due if self._failing else self._monotonic() >= self._pause_until

    def write(self, lists: Mapping[str, TopList], popular: TopList | None, *, replacing: Collection[str] = ()) -> bool:
        """Writes lists. Returns whether Redis accepted them.

        While it is unavailable, these writes are the attempts that show whether it is back.

        Args:
            lists: by user id.
            popular: the popular list, if it is to be written.
            replacing: users whose list is written only if it replaces an existing one.
        """

        def work() -> None:
            with self._timed():
                done = self.lists.write(lists, popular, mark=self._watermarks.mark(), replacing=replacing)
            self.rejected += len(done.rejected)
            self._check_loss(done.previous, lists)

        return self._attempt(work)

    def check(self) -> bool:
        """Writes only the watermark, to find out whether lists were lost. Returns whether that was done; it is not
        while Redis is unavailable."""
        return not self._failing and self.write({}, None)

    def do(self, work: Callable[[], None]) -> bool:
        """Does work that needs Redis. Returns whether it was done; it is not while Redis is unavailable."""
        return not self._failing and self._attempt(work)

    def _attempt(self, work: Callable[[], None]) -> bool:
        if self._failing and not self._backoff.due:
            return False
        began = self._monotonic()
        try:
            self.before()
            work()
        except ListsError as error:
            self._failed(error, self._monotonic() - began)
            return False
        self._succeeded(began)
        return True

    def _check_loss(self, previous: Mapping[str, int | None], users: Collection[str]) -> None:
        lost = self._watermarks.written(previous, users)
        if WHOLE in lost:
            self._on_loss(lost[WHOLE])
            return
        nodes: dict[str, set[str] | None] = {}  # a node has several marks, and has lost its data once
        for part, some in lost.items():
            node, others = self.lists.holder(part), nodes.get(self.lists.holder(part), set())
            nodes[node] = None if some is None or others is None else {*others, *some}
        for node, losers in nodes.items():
            if losers is None:
                self.on_node_loss(partial(self._stands_on, node))
            else:
                self._on_loss({user for user in losers if self._stands_on(node, user)})

    def _stands_on(self, node: str, user_id: str) -> bool:
        return self.lists.holder_of(user_id) == node

    def recent_users(self, users_max: int) -> list[str]:
        """Returns the users whose lists were written last, without those of the very last write."""
        return self._watermarks.recent_users(users_max)

    def _succeeded(self, began: float) -> None:
        now = self._monotonic()
        self._pause_until = now + (now - began if now - began > SLOW_S else 0.0)
        if self._failing:
            self._failing, self._taking_since = False, now
        if self.away_since is None:
            if now - self._back_at >= RELAPSE_S:
                self._backoff.succeeded()
                self._settle_s = 0.0
        elif now - self._taking_since >= self._settle_s:
            self.away_since = self.trouble = None
            self._back_at = now
            self._on_return(now - self._began)

    def _failed(self, error: ListsError, took_s: float) -> None:
        self._backoff.failed(took_s)
        self._failing, self._silent, self.trouble = True, isinstance(error, RedisTimeoutError), str(error)
        now = self._monotonic()
        if self.away_since is None:
            self._begin_outage(error, now)
        elif now - self._reported_at >= REPORTED_EVERY_S:
            self._reported_at = now
            away_s = now - self._began
            log.warning(
                "Redis has accepted no lists for %.0f s: %s", away_s, error, extra={"duration_s": round(away_s, 3)}
            )
        elif str(error) not in self._reasons and len(self._reasons) < REASONS_MAX:
            self._reasons.add(str(error))
            log.warning("the error is now: %s", error)

    def _begin_outage(self, error: ListsError, now: float) -> None:
        if now - self._back_at >= RELAPSE_S:
            self._reasons = set()
        if str(error) in self._reasons or len(self._reasons) >= REASONS_MAX:  # the same outage
            if not self._settle_s:
                self._reported_at = now
                log.warning("%s; Redis accepts and refuses lists by turns, so attempts become rarer", error)
            self._settle_s = min(max(SETTLED_S, 2 * self._settle_s), SETTLED_S_MAX)
        else:
            self._began_at, self._began = self._clock(), now
            self._reported_at, self._settle_s = now, 0.0
            self._reasons.add(str(error))
            log.warning("%s; learning goes on, lists will be brought up to date", error)
        self.away_since = self._began_at

    def forget(self, digest: str) -> None:
        """Forgets a user, whose list is no longer expected. `digest`: `stream.user_ids.digest_of` the id."""
        self._watermarks.forget(digest)

    def to_state(self) -> dict[str, Any]:
        return self._watermarks.to_state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned."""
        self._watermarks.load_state(state)
