"""Builds queries: users as of before a click, after it, or between two clicks of a micro-batch.

Letters: `N` queries, `B` clicks of a micro-batch, `U` users in it, `L` lists.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.batches import ClickBatch, Impression
from online.learner.facts.gather import ClickArrays, QueryArrays, SeenRows
from online.learner.facts.store import NO_SEEN_ROWS, FeatureStore
from online.learner.hidden import HiddenItems
from online.learner.history import UserHistories
from online.learner.return_times import ReturnTimes
from online.learner.seen_items import SeenItems


class ListRequests(NamedTuple):
    """L lists to be ranked, in any order."""

    users: list[str]  # L; "" for a user without a history
    slots: NDArray[np.int64]  # (L,) of the histories; −1: there is none
    preceding: NDArray[np.int64]  # (L,) clicks of the micro-batch before the list
    clicked_at: NDArray[np.float64]  # (L,) seconds since 1970, of the user's latest click by then
    ages_s: NDArray[np.float64]  # (L,) seconds from then until the list is written
    active: NDArray[np.float64]  # (L,) active time when it is written, in seconds

    def and_also(self, more: "ListRequests") -> "ListRequests":
        """Returns these requests followed by `more`."""
        others = zip(self[1:], more[1:], strict=True)
        return ListRequests(self.users + more.users, *(np.concatenate(both) for both in others))


class ListQueries(NamedTuple):
    """L lists as queries, by rising position; each list is queried at one time or at several."""

    queries: QueryArrays  # (N,)
    seen: SeenRows
    lists: NDArray[np.int64]  # (N,) which of the L, in this order, each query is about: rising from 0
    order: NDArray[np.int64]  # (L,) which of the requested lists each is
    users: list[str]  # N; "" for a user without a history


class QueryBuilder:
    """Builds queries from histories, and from the times after which users usually return."""

    def __init__(
        self,
        histories: UserHistories,
        store: FeatureStore,
        returns: ReturnTimes,
        seen: SeenItems | None,
        hidden: HiddenItems,
    ) -> None:
        self.histories, self.store, self.returns = histories, store, returns
        self.seen, self.hidden = seen, hidden

    def before_clicks(self, counted: ClickBatch, batch: ClickBatch) -> tuple[ClickArrays, QueryArrays, SeenRows]:
        """Returns clicks as the feature store takes them, and queries for users just before they click.

        Args:
            counted: all clicks of a micro-batch.
            batch: those of them that get a query.
        """
        own_slots = self.store.own_slots(counted.users)
        clicks = ClickArrays(
            counted.slots,
            own_slots,
            counted.rows,
            counted.types,
            counted.times,
            counted.active,
            counted.user_hashes,
            counted.trainable,
        )
        repeated = np.zeros(len(batch.users), np.bool_)
        at = batch.positions
        queries = QueryArrays(at, batch.slots, own_slots[at], batch.times, batch.active, repeated)
        return clicks, queries, self._seen(batch.users)

    def lists(self, requests: ListRequests, *, now: float) -> ListQueries:
        """Returns queries for the times at which the lists are likely to be viewed.

        Args:
            requests: L lists.
            now: seconds since 1970, the time for users without a history.
        """
        order = np.argsort(requests.preceding, kind="stable")
        known = requests.slots[order] >= 0
        lists, ages_s = self.returns.expected_views(requests.ages_s[order])
        single = known[lists] | np.append(True, lists[1:] != lists[:-1])  # without a history one time is enough
        lists, ages_s = lists[single], ages_s[single]
        at = order[lists]  # (N,) of the requests
        moments = np.where(known[lists], requests.clicked_at[at] + ages_s, now)
        active = np.where(known[lists], requests.active[at] - requests.ages_s[at] + ages_s, requests.active[at])
        users = [requests.users[one] for one in at.tolist()]
        queries = QueryArrays(
            requests.preceding[at],
            requests.slots[at],
            self.store.own_slots(users),
            moments,
            active,
            np.append(False, lists[1:] == lists[:-1])[: len(at)],
        )
        return ListQueries(queries, self._seen(users), lists, order, users)

    def seen_by(self, users: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the rows that users (U,) have clicked, as far as they are kept: starts (U + 1,), and rows, flat."""
        if self.seen is None:
            return np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int64)
        return self.seen.of(users)

    def barred_from(
        self, users: Sequence[str], moments: Sequence[float] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the rows that must not be shown to users (U,): those of `seen_by`, and those that they have hidden.

        Args:
            users: U of them.
            moments: when they are shown, in seconds since 1970; None: at the stream's time.

        Returns:
            Starts (U + 1,), and rows, flat.
        """
        starts, rows = self.seen_by(users)
        hidden = self.hidden.rows(users, moments)
        if hidden is None:
            return starts, rows
        parts = [np.concatenate([rows[starts[u] : starts[u + 1]], own]) for u, own in enumerate(hidden)]
        return np.cumsum([0, *map(len, parts)]).astype(np.int64), np.concatenate([np.zeros(0, np.int64), *parts])

    def _seen(self, users: Sequence[str]) -> SeenRows:
        if self.seen is None and not len(self.hidden):
            return NO_SEEN_ROWS
        return SeenRows(True, *self.barred_from(users))

    # Which lists

    def after_clicks(self, batch: ClickBatch, at: NDArray[np.int64]) -> ListRequests:
        """Returns requests for lists that are written just after the clicks at these positions (L,)."""
        users = [batch.users[click] for click in at.tolist()]
        return ListRequests(
            users, batch.slots[at], batch.positions[at] + 1, batch.times[at], np.zeros(len(at)), batch.active[at]
        )  # fmt: skip

    def at_end(self, batch: ClickBatch, at: NDArray[np.int64], end: int) -> ListRequests:
        """Returns requests for the same lists, but written after all `end` clicks of the micro-batch."""
        requests = self.after_clicks(batch, at)
        return requests._replace(preceding=np.full(len(at), end))

    def of_impressions(self, batch: ClickBatch, impressions: Sequence[Impression]) -> ListRequests:
        """Returns requests for lists that are written within the micro-batch, of users who have a history."""
        users = [impression.user_id for impression in impressions]
        slots = self.histories.find(users)
        preceding = np.array([impression.preceding for impression in impressions], np.int64)
        clicked_at = self.histories.latest_at(slots)
        made = (batch.slots == slots[:, None]) & (np.arange(len(batch.slots)) < preceding[:, None])  # (L, B)
        latest = np.where(made.any(1), made.shape[1] - 1 - made[:, ::-1].argmax(1), -1)
        clicked_at = np.where(latest >= 0, batch.times[latest], clicked_at)
        written_at = np.array([impression.written_at for impression in impressions])
        active = np.array([impression.active for impression in impressions])
        return ListRequests(users, slots, preceding, clicked_at, written_at - clicked_at, active)

    def of_users(self, users: Sequence[str], slots: NDArray[np.int64], ages_s: NDArray[np.float64]) -> ListRequests:
        """Returns requests for lists of users who have a history, from the present state; ages_s as in ListRequests."""
        active = self.histories.active_at[slots] + ages_s
        return ListRequests(
            list(users), slots, np.zeros(len(slots), np.int64), self.histories.latest_at(slots), ages_s, active
        )  # fmt: skip

    def of_unknown_user(self, preceding: int, active: float) -> ListRequests:
        """Returns a request for the list of users without a history."""
        return ListRequests(
            [""],
            np.array([-1]),
            np.array([preceding]),
            np.zeros(1),
            np.zeros(1),
            np.array([active]),
        )
