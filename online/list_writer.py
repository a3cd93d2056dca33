"""Everything that is written to Redis, and what is owed to it: lists after clicks, lists that aged, lists left behind.

Redis may be away at any time. Learning goes on then; whose list is behind is remembered, also in the checkpoint.
"""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from online.arrived import Arrived
from online.catalogue import Catalogue
from online.learner import Learner, Ranking
from online.ledger import Ledger
from online.metrics import Latencies
from online.refresh import RefreshSchedule, StreamClock
from online.settings import Settings
from stream.lists import Lists, ListsError, TopList

REDIS_RETRY_S = 1.0  # between attempts while Redis does not answer
PERSONAL, POPULAR = "personal", "popular"  # what a list says of its source

log = logging.getLogger(__name__)


class ListWriter:
    """Writes lists for the loop. `start` once the checkpoint is restored, then the rest at the loop's own pace."""

    def __init__(
        self,
        settings: Settings,
        *,
        learner: Learner,
        ledger: Ledger,
        catalogue: Catalogue,
        lists: Lists,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: the computer's, in seconds since 1970."""
        self.settings = settings
        self.learner = learner
        self.ledger = ledger
        self.catalogue = catalogue
        self.lists = lists
        self.clock = clock
        self.stale: dict[str, None] = {}  # users whose list in Redis is behind, longest first
        self.popular_stale = False  # whether the popular list is
        self.latencies = Latencies()
        self.stream_clock = StreamClock(clock)
        self.aging = RefreshSchedule(learner.returns, self.stream_clock)
        self.redis_waits_since: float | None = None
        self._redis_tried_at = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is something to write that Redis would take."""
        return (bool(self.stale) or self.catalogue.sweeping) and self.redis_waits_since is None

    def start(self) -> None:
        """Call it once, after the checkpoint is restored. Raises ListsError."""
        self._refill_an_empty_redis()
        self.catalogue.start()

    def to_state(self) -> dict[str, Any]:
        return {"stale": list(self.stale), "popular_stale": self.popular_stale, "aging": self.aging.to_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave; the learner has its histories back already."""
        self.stale = dict.fromkeys(state["stale"])
        self.popular_stale = state["popular_stale"]
        self.stream_clock.saw(self.learner.histories.clicked_at().max(initial=-np.inf))
        self.aging.load_state(state["aging"])

    def publish(self, batch: Sequence[Arrived], rankings: Mapping[str, Ranking]) -> None:
        """Writes the lists of those who clicked, and the popular one; it owes them where Redis does not take them."""
        self.stream_clock.saw(max(one.click.timestamp for one in batch))
        lasts = {one.click.user_id: one for one in batch}  # each user's last click
        histories = self.learner.histories
        origins = [(one.record.partition, one.record.offset + 1) for one in lasts.values()]
        histories.origins[histories.find(list(lasts))] = origins
        self.ledger.latest_offset, self.ledger.latest_clicked_at_ms = batch[-1].offset, batch[-1].clicked_at_ms
        lists = {
            user: self._top_list(rankings[user], one.offset, one.clicked_at_ms, PERSONAL) for user, one in lasts.items()
        }
        self.aging.renewed(lists)
        if self._write(lists, self._popular()):
            written_ms = 1000 * self.clock()
            self.latencies.add(written_ms - one.record.timestamp_ms for one in lasts.values())
            self.popular_stale = False
            for user in lists:
                self.stale.pop(user, None)
        else:
            self.popular_stale = True
            self.stale |= dict.fromkeys(lasts)
            while len(self.stale) > self.settings.users_held:
                del self.stale[next(iter(self.stale))]

    def refresh(self) -> None:
        """Brings some of the lists up to date that are behind or have aged, if Redis answers."""
        if self.redis_waits_since is None:
            self.stale |= dict.fromkeys(self.aging.take(self.learner.histories, self.settings.refresh_lists_max))
        if not (self.stale or self.popular_stale) or not self._redis_may_answer():
            return
        users = list(itertools.islice(self.stale, self.settings.refresh_lists_max))
        histories = self.learner.histories
        held = [user for user in users if user in histories]  # the others made room since
        slots = histories.find(held)
        clicked_at = histories.newest(slots, 1).timestamps[:, 0]
        moments = np.maximum(self.stream_clock.now(), clicked_at).tolist()
        clicked_at_ms = (1000 * clicked_at).astype(np.int64).tolist()
        lists = {
            user: self._top_list(ranking, f"{partition}:{offset}", at_ms, PERSONAL)
            for user, ranking, (partition, offset), at_ms in zip(
                held, self.learner.rank(held, moments), histories.origins[slots].tolist(), clicked_at_ms, strict=True
            )
        }
        if self._write(lists, self._popular() if self.popular_stale else None):
            self.popular_stale = False
            self.ledger.refreshes += len(lists)
            for user in users:
                del self.stale[user]

    def mind_items(self) -> None:
        """Takes in what came and went, and takes what went out of some of the lists that stand."""
        if self.catalogue.take_in() and self.ledger.learned:
            self.popular_stale = True
        if self.catalogue.sweeping:
            self._redis_takes(self._sweep)

    def _sweep(self) -> None:
        # What is left of a list is in the right order; only a short one is worth ranking anew.
        self.stale |= dict.fromkeys(user for user in self.catalogue.sweep() if user in self.learner.histories)

    def _refill_an_empty_redis(self) -> None:
        """A Redis that has lost its data (the embedded one always has, at a start) gets everybody's list again."""
        if self.ledger.learned and self.lists.popular() is None:
            self.renew_all()
            log.info("Redis holds no lists: %d will be written anew", len(self.stale))

    def renew_all(self) -> None:
        """Everybody's list is behind: little by little they are ranked anew."""
        self.stale |= dict.fromkeys(self.learner.histories.users())
        self.popular_stale = True

    def _popular(self) -> TopList:
        return self._top_list(
            self.learner.popular(), self.ledger.latest_offset, self.ledger.latest_clicked_at_ms, POPULAR
        )

    def _top_list(self, ranking: Ranking, offset: str, clicked_at_ms: int, source: str) -> TopList:
        return TopList(
            items=ranking.items,
            scores=ranking.scores,
            version=self.learner.version,
            offset=offset,
            clicked_at=clicked_at_ms,
            written_at=int(1000 * self.clock()),
            source=source,
        )

    def _redis_may_answer(self) -> bool:
        """Not to be asked with every micro-batch while it is away: each question may take seconds to fail."""
        return self.redis_waits_since is None or time.monotonic() - self._redis_tried_at >= REDIS_RETRY_S

    def _write(self, lists: dict[str, TopList], popular: TopList | None) -> bool:
        """Writes lists -> whether Redis took them."""
        return self._redis_takes(lambda: self.lists.write(lists, popular))

    def _redis_takes(self, work: Callable[[], None]) -> bool:
        """Does what needs Redis -> whether it is done. Learning goes on without Redis."""
        if not self._redis_may_answer():
            return False
        try:
            if self.redis_waits_since is not None:
                self._refill_an_empty_redis()
                self.catalogue.look_again()
            work()
        except ListsError as error:
            self._redis_tried_at = time.monotonic()
            if self.redis_waits_since is None:
                self.redis_waits_since = self.clock()
                log.warning("%s; learning goes on, lists will be brought up to date", error)
            return False
        if self.redis_waits_since is not None:
            self.redis_waits_since = None
            log.info("Redis answers again; %d lists are behind", len(self.stale))
        return True
