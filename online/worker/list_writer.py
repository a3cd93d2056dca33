"""Writes lists to Redis: after clicks, when they have aged, and again when Redis refused or lost them.

Redis may be unavailable at any time. Learning goes on then; users whose list is stale are kept, also in the checkpoint.
"""

import itertools
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.learner.batches import Ranking
from online.learner.history import SERVED
from online.learner.learner import Learner
from online.lifecycle.emit import Emit
from online.metrics import Latencies
from online.worker.backoff import REPORTED_EVERY_S
from online.worker.catalogue import Catalogue
from online.worker.eviction_watch import SAMPLE, EvictionWatch
from online.worker.hidden_writer import HiddenWriter
from online.worker.item_records import ItemRecordWriter
from online.worker.latest_clicks import TTL_S, LatestClicks
from online.worker.loss_notices import LossNotices
from online.worker.micro_batches import ReceivedClick
from online.worker.monitor import Timings
from online.worker.progress import Progress
from online.worker.redis_link import RedisLink
from online.worker.refresh import RefreshSchedule, StreamClock
from stream.lists import PAGE, Lists, TopList
from stream.user_ids import digest_of

PROBE_LISTS = 8  # lists of an attempt to find out whether Redis accepts writes again
LISTS_LOOKED_AT_MAX = 5_000  # written lately, for some that stood on one node
PERSONAL, POPULAR = "personal", "popular"  # values of a list's field `source`

log = logging.getLogger(__name__)


class ListWriter:
    """Writes lists for the loop. Call `start` once the checkpoint is restored."""

    def __init__(
        self,
        settings: Settings,
        *,
        learner: Learner,
        progress: Progress,
        catalogue: Catalogue,
        lists: Lists,
        losses: LossNotices,
        emit: Emit,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        timings: Timings | None = None,
    ) -> None:
        """`clock`: the computer's, in seconds since 1970; `monotonic`: a monotonic one; `timings`: observes writes."""
        timings = Timings(monotonic) if timings is None else timings
        self.settings = settings
        self.learner = learner
        self.progress = progress
        self.catalogue = catalogue
        self.lists = lists
        self.losses = losses
        self.clock = clock
        # Users whose list in Redis is stale, longest first, and whether it lacks a click. While Redis evicts, the other
        # lists are written only if they replace an existing one.
        self.stale: OrderedDict[str, bool] = OrderedDict()
        self.popular_stale = False  # whether the popular list is stale
        self.pending_deletes: dict[str, None] = {}  # digests of forgotten users whose list must be deleted
        self.latencies = Latencies(settings.metrics_window_s, monotonic, observe=timings.click_to_list.observe)
        self.stream_clock = StreamClock(learner.clock, monotonic)
        self.aging = RefreshSchedule(learner.returns, self.stream_clock)
        self._loss_reported_at = -math.inf
        self.link = RedisLink(
            settings,
            lists,
            clock=clock,
            on_loss=self._lost,
            on_return=self._returned,
            timed=timings.redis_write.timed,
        )
        self.link.before = self._delete_pending
        self.link.on_node_loss = self._lost_by_node
        self.records = ItemRecordWriter(learner, lists.items, monotonic=monotonic)
        self.latest = LatestClicks(settings.clicks_shown)
        self.hidden = HiddenWriter(learner.hidden, lists.hidden, monotonic=monotonic)
        self.evictions = EvictionWatch(lists, emit=emit, on_room=self._has_room, clock=clock)
        self._ready: dict[str, tuple[TopList, int]] = {}  # lists that wait for a slow Redis, and when (ms) each was due
        self._owned: frozenset[int] | None = None  # partitions whose users' lists this worker writes; None: all
        self.writes_popular = True  # whether the popular list is this worker's to write

    @property
    def redis_waits_since(self) -> float | None:
        """When Redis began to refuse lists, in seconds since 1970; None: it accepts them."""
        return self.link.away_since

    @property
    def evicts(self) -> bool:
        """Whether Redis is too small and evicts keys."""
        return self.evictions.since is not None

    @property
    def waiting(self) -> bool:
        """Whether there is something to write that Redis would accept now."""
        pending = bool(self.stale or self.pending_deletes) or self._owes_popular or self.catalogue.sweeping
        shared = self.records.waits(evicting=self.evicts) or self.hidden.waits(evicting=self.evicts)
        pending = pending or (self.writes_popular and shared)
        return pending and self.link.taking and self.link.due

    @property
    def behind(self) -> int:
        """How many lists in Redis are stale."""
        return len(self.stale) + sum(user not in self.stale for user in self._ready)

    def start(self) -> None:
        """Starts writing; called once, after the checkpoint is restored. Redis may be unavailable."""
        self.check()
        self.catalogue.start()
        self.renew_records()

    def check(self) -> None:
        """Checks whether Redis has lost lists. To be called about once a second."""
        if self.link.due and self.link.check():
            self.evictions.check()
            if self.evicts:
                self.popular_stale = True  # the popular list, which most users get then, must not be missing for long

    def to_state(self) -> dict[str, Any]:
        return {
            "stale": list(self.stale),
            "popular_stale": self.popular_stale,
            "pending_deletes": list(self.pending_deletes),
            "aging": self.aging.to_state(),
            "link": self.link.to_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned, after the learner has loaded its histories."""
        self.stale = OrderedDict.fromkeys(state["stale"], True)
        self.popular_stale = state["popular_stale"]
        self.pending_deletes = dict.fromkeys(state["pending_deletes"])
        self.aging.load_state(state["aging"])
        self.link.load_state(state["link"])

    def publish(self, batch: Sequence[ReceivedClick], rankings: Mapping[str, Ranking]) -> None:
        """Writes the lists of the users who clicked, and the popular one; if Redis refuses them they stay pending."""
        self.stream_clock.now()  # from here on time passes until the next click
        if not batch:
            return
        lasts = self.note_origins(batch)
        self.progress.latest_offset, self.progress.latest_clicked_at_ms = batch[-1].offset, batch[-1].clicked_at_ms
        lists = {user: self._top_list(rankings[user], one.offset, one.clicked_at_ms) for user, one in lasts.items()}
        self.aging.mark_refreshed(lists)
        self.popular_stale = True
        for user, one in lasts.items():
            self.stale.pop(user, None)
            self._ready[user] = lists[user], one.record.timestamp_ms
        if self.link.due or not self.link.taking or len(self._ready) >= PAGE:
            self.settle()

    def note_origins(self, batch: Sequence[ReceivedClick]) -> dict[str, ReceivedClick]:
        """Notes where the users' last clicks of a micro-batch stand in the stream, and returns these clicks."""
        lasts = {one.click.user_id: one for one in batch}
        histories = self.learner.histories
        origins = [(one.record.partition, one.record.offset + 1) for one in lasts.values()]
        histories.origins[histories.find(list(lasts))] = origins
        return lasts

    def owe(self, users: Iterable[str]) -> None:
        """Notes users whose lists lack a click, and have to be written without another one."""
        self._mark_stale(users, clicked=True)

    def mark_stale(self, users: Iterable[str]) -> None:
        """Notes users whose lists have to be written anew."""
        self._mark_stale(users)

    def hurry(self, users: Iterable[str]) -> None:
        """Notes users whose lists have to be written anew before those of others."""
        for user in users:
            self._mark_stale([user])
            if user in self.stale:
                self.stale.move_to_end(user, last=False)

    def feedback_changed(self, user: str) -> None:
        """Notes that a user hides other items than before: what Redis says of that, and the user's list, are written
        before others."""
        self.hidden.note(user)
        if user in self.learner.histories:
            self.hurry([user])

    def _write_hidden(self) -> None:
        if not self.writes_popular:
            self.hidden.stop()
        elif self.hidden.waits(evicting=self.evicts):
            self.link.do(lambda: self.hidden.step(evicting=self.evicts))

    def settle(self) -> None:
        """Writes the lists that wait for a slow Redis; if it refuses them they are stale. Then state may be saved."""
        if not self._ready:
            return
        ready, self._ready = self._ready, {}
        if self.link.write({user: top for user, (top, _) in ready.items()}, self._popular()):
            written_ms = 1000 * self.clock()
            self.latencies.add((arrived_ms, written_ms) for _, arrived_ms in ready.values())
            self.popular_stale = False
        else:
            self._mark_stale(ready, clicked=True)

    def _mark_stale(self, users: Iterable[str], *, clicked: bool = False) -> None:
        """Marks users' lists as stale. `clicked`: whether they lack a click."""
        for user in users:
            self.stale[user] = clicked or self.stale.get(user, False)
        while len(self.stale) > self.settings.users_held:
            del self.stale[next(iter(self.stale))]

    def owns(self, partitions: Collection[int]) -> None:
        """Notes the partitions that are assigned to this worker; no partitions leave the note as it is.

        A user's list is written by the worker that learns their clicks. A worker that gets a partition writes all its
        users' lists, because it does not know which of them another worker still had to write.
        """
        if not partitions or partitions == self._owned:
            return
        before, self._owned = self._owned, frozenset(partitions)
        if before is not None and (gained := self._owned - before):
            self._mark_stale(self.users_of(gained))

    def owns_only(self, partitions: Collection[int]) -> None:
        """Notes the partitions that this worker owns in its group, which may be none."""
        self._owned = frozenset(partitions)

    def users_of(self, partitions: Collection[int], since: Mapping[int, int] = MappingProxyType({})) -> list[str]:
        """Returns the users whose latest click was in one of these partitions, at the offset `since` says or later;
        the latest clicks come first."""
        users = self.learner.histories.users()
        origins = self.learner.histories.origins[self.learner.histories.find(users)]
        least = np.array([since.get(partition, 0) for partition in range(max(partitions, default=0) + 1)])
        of_them = np.flatnonzero(np.isin(origins[:, 0], list(partitions)))
        of_them = of_them[origins[of_them, 1] > least[origins[of_them, 0]]]
        return [users[at] for at in of_them[::-1].tolist()]

    def _of(self, users: Sequence[str], partitions: Collection[int]) -> NDArray[np.bool_]:
        """Returns whether each user's latest click was in one of these partitions."""
        histories = self.learner.histories
        return np.isin(histories.origins[histories.find(users), 0], list(partitions))

    def refresh(self) -> None:
        """Writes some of the lists that are stale or have aged, if Redis answers."""
        if self.link.taking:
            self._mark_stale(self.aging.take(self.learner.histories, self.settings.refresh_lists_max))
            self.losses.aged(self.aging.take_count(), len(self.learner.histories))
        if not self.link.due:
            return
        self._write_hidden()
        self.settle()
        taking = self.link.taking
        if (taking and not (self.stale or self._owes_popular or self.pending_deletes)) or not self.link.due:
            return
        count = self.settings.refresh_lists_max
        count = count if taking else min(count, PROBE_LISTS)
        # Only a list that was written shows that Redis is back: so some are written even if none is stale.
        users = list(itertools.islice(self.stale, count))
        users = users or ([] if taking else self.learner.histories.users()[-count:])
        histories = self.learner.histories
        held = [user for user in users if user in histories]  # the others were evicted
        if self._owned is not None:  # another worker writes the lists of other partitions' users
            held = [user for user, owned in zip(held, self._of(held, self._owned), strict=True) if owned]
        slots = histories.find(held)
        clicked_at = histories.newest_first(slots, 1).timestamps[:, 0]
        ages_s = np.maximum(self.stream_clock.now() - histories.active_at[slots], 0.0)
        moments = (clicked_at + ages_s).tolist()
        clicked_at_ms = (1000 * clicked_at).astype(np.int64).tolist()
        lists = {
            user: self._top_list(ranking, f"{partition}:{offset}", at_ms)
            for user, ranking, (partition, offset), at_ms in zip(
                held, self.learner.rank(held, moments), histories.origins[slots].tolist(), clicked_at_ms, strict=True
            )
        }
        replacing = [user for user in lists if self.evicts and not self.stale.get(user, False)]
        popular = self._popular() if self.popular_stale or not taking else None
        if self.link.write(lists, popular, replacing=replacing):
            self.popular_stale = False
            self.progress.refreshes += len(lists)
            for user in users:
                self.stale.pop(user, None)

    def forget(self, digest: str) -> None:
        """Deletes the list of a user, once Redis answers. `digest`: `stream.user_ids.digest_of` the id."""
        for user in self.users():
            if digest_of(user) == digest:
                self.stale.pop(user, None)
                self._ready.pop(user, None)
                self.aging.mark_refreshed([user])
        self.hidden.forget(digest)
        self.latest.forget(digest)
        self.link.forget(digest)
        self.pending_deletes[digest] = None
        self.link.do(lambda: None)  # unless it is unavailable

    def users(self) -> list[str]:
        """Returns the users whose lists are to be written."""
        return [*self.stale, *self._ready, *self.aging.users()]

    def _delete_pending(self) -> None:
        """Deletes the lists of forgotten users, before others are written: a forgotten user may click again."""
        if self.pending_deletes:
            self.lists.forget(lambda user: digest_of(user) in self.pending_deletes)
            self.write_latest()
            self.pending_deletes.clear()

    def write_latest(self) -> None:
        """Writes the latest clicks, if they are to be shown. Raises ListsError."""
        if self.latest.held:
            self.lists.write_clicks({"ranks": SERVED, "clicks": self.latest.newest_first()}, TTL_S)

    def apply_item_updates(self) -> None:
        """Applies item updates, writes records of items, and removes unavailable items from some of the lists."""
        if self.catalogue.take_in() and self.progress.learned:
            self.popular_stale = True
        self.records.note(self.catalogue.take_changed())
        if not self.writes_popular:
            self.records.stop()
        elif self.records.waits(evicting=self.evicts) and self.link.due:
            self.link.do(lambda: self.records.step(evicting=self.evicts))
        if self.catalogue.sweeping and self.link.due:
            self.link.do(self._sweep)

    def _sweep(self) -> None:
        # The rest of a list is still in the right order; only short lists are ranked again.
        self._mark_stale(user for user in self.catalogue.sweep() if user in self.learner.histories)
        if not self.catalogue.sweeping:
            self.losses.deleted(self.catalogue.emptied)

    def _lost(self, users: Collection[str] | None) -> None:
        """Marks the lists that Redis has lost as stale; None: all of them. The embedded Redis always starts empty."""
        if users is None and self.evictions.has_evicted(self.link.recent_users(SAMPLE)):
            self.popular_stale = True
            return
        if users is None:
            self.renew_all()
        else:
            self._mark_stale(users)
            self.popular_stale = True
        self.renew_records()
        self._report_loss()

    def _lost_by_node(self, stood_there: Callable[[str], bool]) -> None:
        """Marks the lists that stood on one node of a cluster as stale, which has lost all of them."""
        recent = (user for user in self.link.recent_users(LISTS_LOOKED_AT_MAX) if stood_there(user))
        self.popular_stale = True
        if not self.evictions.has_evicted(list(itertools.islice(recent, SAMPLE))):
            self._mark_stale(filter(stood_there, self.learner.histories.users()))
            self.renew_records()
            self._report_loss()

    def _report_loss(self) -> None:
        if time.monotonic() - self._loss_reported_at >= REPORTED_EVERY_S:
            self._loss_reported_at = time.monotonic()
            log.info("Redis has lost lists: %d will be written again", len(self.stale))

    def _returned(self, seconds: float) -> None:
        self.catalogue.check_again()
        self.renew_records()
        text = "Redis takes lists again after %.0f s; %d lists are behind"
        log.info(text, seconds, self.behind, extra={"duration_s": round(seconds, 3)})

    def _has_room(self) -> None:
        self.renew_all()
        self.renew_records()

    def renew_all(self) -> None:
        """Marks the lists of all users as stale, so that they are ranked again little by little."""
        self._mark_stale(self.learner.histories.users())
        self.popular_stale = True

    def renew_records(self) -> None:
        """Has what is known of items, and what users have hidden, written anew little by little."""
        self.records.renew()
        self.hidden.renew()

    @property
    def _owes_popular(self) -> bool:
        return self.popular_stale and self.writes_popular

    def _popular(self) -> TopList | None:
        """Returns the popular list; None before the first click, and where another worker writes it."""
        if not self.writes_popular or not self.progress.latest_offset:
            return None
        popular = replace(self.learner.popular(), popular=True)
        return self._top_list(popular, self.progress.latest_offset, self.progress.latest_clicked_at_ms)

    def _top_list(self, ranking: Ranking, offset: str, clicked_at_ms: int) -> TopList:
        return TopList(
            items=ranking.items,
            scores=ranking.scores,
            version=self.learner.version,
            offset=offset,
            clicked_at=clicked_at_ms,
            written_at=int(1000 * self.clock()),
            source=POPULAR if ranking.popular else PERSONAL,
        )
