"""The feature store: it counts clicks, and gathers the candidates and features of queries, in one pass a micro-batch.

Letters: `N` queries, `C` candidates of all of them (flat), `F` counted features, `P` moments found (flat), `V` rows.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.memory import Directory
from model.vocabulary import grown
from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.facts import gather, items, moments, pair_users, tables
from online.learner.facts.features import RawFeatures, counted
from online.learner.facts.gather import (
    ClickArrays,
    GatherBuffers,
    HistoryRings,
    Limits,
    PastClicks,
    QueryArrays,
    Scratch,
    SeenRows,
)
from online.learner.facts.moments import Hits, Keys
from online.learner.history import UserHistories
from online.learner.user_stores import UserKey

log = logging.getLogger(__name__)

WANTED_MAX = 1_000  # candidates that may be given for one query
ROWS_MIN = 1_024  # rows of items that a new store has room for
_NONE = np.zeros(0, np.int64)
NO_SEEN_ROWS = SeenRows(False, _NONE, _NONE)
NO_MORE = NO_SEEN_ROWS, NO_SEEN_ROWS


class Gathered(NamedTuple):
    """Candidates and features of N queries. They depend on no weights, so that several models can score the same.

    The arrays belong to the store, which overwrites them after the next micro-batch.
    """

    starts: NDArray[np.int64]  # (N + 1,) where each query's candidates begin
    rows: NDArray[np.int32]  # (C,) never 0
    features: NDArray[np.float32]  # (C, F) as `online.learner.facts.features.counted` declares them
    keys: Keys  # (N,) the moment of each query
    own: Hits  # moments of the query's user
    world: Hits  # moments of all users
    followers: NDArray[np.int32]  # (N, SHOWN) what followed the last item most often, best first; 0 beyond
    content: NDArray[np.float32] | None = None  # (C, G) of online/learner/added.py; None: nothing is known
    worth: NDArray[np.float32] | None = None  # (C, W) of online/learner/worth/; None: only next items are predicted

    def part(self, start: int, stop: int) -> "Gathered":
        """Returns the part of the queries from `start` up to `stop`."""
        c, d = int(self.starts[start]), int(self.starts[stop])
        return Gathered(
            self.starts[start : stop + 1] - c,
            self.rows[c:d],
            self.features[c:d],
            self.keys.part(start, stop),
            self.own.part(start, stop, c),
            self.world.part(start, stop, c),
            self.followers[start:stop],
            None if self.content is None else self.content[c:d],
            None if self.worth is None else self.worth[c:d],
        )


class FeatureStore:
    """Neighbour tables, counts by item, the log of moments and the index of that log."""

    def __init__(self, settings: Settings, more_max: int = 0) -> None:
        """`more_max`: candidates that may be given for a query beside those that are looked for."""
        self.settings = settings
        self.half_lives = settings.popularity_half_lives
        few = max(8, settings.successors_held // 2)
        self._held = (settings.successors_held, few, few, few, settings.neighbours_held)
        self.pairs = pair_users.empty_pair_users(settings.pairs_waiting_held, settings.pair_users_min)
        self.tables = tables.Tables(*(tables.empty_table(ROWS_MIN, held) for held in self._held))
        self.items = items.empty_items(ROWS_MIN, self.half_lives)
        # Moments found for one micro-batch must not be overwritten while the next one is gathered.
        self.log = moments.empty_log(settings.moments_held + 2 * settings.micro_batch_max)
        self.index = moments.empty_index(
            settings.recall_users_held,
            settings.recall_buckets,
            settings.recall_ring,
            world_buckets=settings.world_buckets,
            world_ring=settings.world_ring,
            seed=settings.seed,
        )
        # The Reformer's states at the moments of the log, of unit length, or 0.
        deep_state = settings.reformer and settings.deep_state
        self.moment_states = np.zeros((len(self.log.items), settings.width if deep_state else 0), np.float16)
        self.directory = Directory(settings.recall_users_held)
        self.width = len(counted(self.half_lives))
        self._limits = Limits(
            settings.moments_held,
            settings.recall_latest,
            settings.recall_probes,
            settings.reformer,
            settings.exclude_seen,
            self.pairs,
        )
        self._hits_max = (
            settings.recall_latest + (1 + settings.recall_probes) * settings.recall_ring,
            settings.world_ring,
        )
        self._candidates_max = (
            sum(self._held[:2])
            + 2 * gather.NEAR_MAX
            + gather.POPULAR_MAX * len(self.half_lives)
            + settings.history_max
            + sum(self._hits_max)
            + more_max
        )
        self._scratch = self._new_scratch(ROWS_MIN)
        self._buffers: list[list[GatherBuffers]] = [[], []]  # for clicks and for lists; two of each, used in turn
        self._list_buffers = self._new_buffer(0)
        self._no_clicks = self._new_buffer(0)
        self._turn = 0

    def __len__(self) -> int:
        """Returns the number of rows of items that there is room for."""
        return len(self.items.clicks)

    def grow(self, rows: int) -> None:
        """Makes room for at least `rows` rows of items, by more than that (`model.vocabulary.grown`), but for no more
        than `items_held` items unless there are."""
        if rows <= len(self):
            return
        rows = max(rows, min(grown(rows, len(self)), self.settings.items_held + 1))
        self.tables = tables.Tables(*(tables.grown_table(table, rows) for table in self.tables))
        self.items = items.grown_items(self.items, rows)
        self._scratch = self._new_scratch(rows)

    def _make_room_for_pairs(self, clicks: int) -> None:
        """Lets so many clicks be counted: loops allocate nothing."""
        if clicks:
            pairs = (clicks * each for each in gather.PAIRS_OF_CLICK)
            self.tables = tables.Tables(*map(tables.with_room, self.tables, pairs))

    def _new_scratch(self, rows: int) -> Scratch:
        C, near = max(self._candidates_max, WANTED_MAX), gather.TASTE_LATEST * self._held[-1]
        return Scratch(
            mark=np.zeros(1, np.int64),
            stamps=np.zeros(rows, np.int64),
            places=np.zeros(rows, np.int64),
            banned=np.zeros(rows, np.int64),
            near_stamps=np.zeros(rows, np.int64),
            near_sums=np.zeros(rows, np.float32),
            near_rows=np.zeros(near, np.int32),
            near_scores=np.zeros(near, np.float32),
            sorted=np.zeros(near, np.float32),
            taste_sums=np.zeros(rows, np.float32),
            taste_scores=np.zeros(near, np.float32),
            moment_stamps=np.zeros(len(self.log.items), np.int64),
            clock=np.zeros(max(2, self.settings.recall_buckets)),
            raw=RawFeatures(
                rows=np.zeros(C, np.int32),
                first=np.zeros(C, np.float32),
                second=np.zeros(C, np.float32),
                third=np.zeros(C, np.float32),
                before=np.zeros(C, np.float32),
                near=np.zeros(C, np.float32),
                taste=np.zeros(C, np.float32),
                times=np.zeros(C, np.float32),
                newest=np.zeros(C, np.int32),
                newest_at=np.zeros(C),
                oldest_at=np.zeros(C),
            ),
        )

    # One pass

    def advance(
        self,
        histories: UserHistories,
        clicks: ClickArrays,
        before: QueryArrays,
        lists: QueryArrays,
        *,
        flagged: NDArray[np.bool_],
        seen: Sequence[SeenRows] = (NO_SEEN_ROWS, NO_SEEN_ROWS),
        more: tuple[SeenRows, SeenRows] = NO_MORE,
    ) -> tuple[Gathered, Gathered]:
        """Gathers the candidates of each click just before it, and then counts the click.

        Args:
            histories: the histories of all users; the clicks are appended to them.
            clicks: one micro-batch, B clicks in order of arrival.
            before: queries of clicks, by rising position; clicks without one are only counted.
            lists: further queries, by rising position in the micro-batch.
            flagged: whether each moment that is held is flagged as abuse; a moment stands at its number modulo the
                length.
            seen: rows that must not be recommended, for the clicks' queries and for the lists'.
            more: candidates beside those that are looked for, likewise.

        Returns:
            The candidates of the clicks that have a query, and those of the lists.
        """
        found = [self._buffer(kind, len(queries.slots)) for kind, queries in enumerate((before, lists))]
        self._turn = 1 - self._turn
        self._advance(histories, clicks, (before, lists), found, flagged=flagged, seen=seen, more=more)
        return _trimmed(found[0], len(before.slots)), _trimmed(found[1], len(lists.slots))

    def ask(
        self,
        histories: UserHistories,
        lists: QueryArrays,
        *,
        flagged: NDArray[np.bool_],
        seen: SeenRows = NO_SEEN_ROWS,
        wanted: SeenRows = NO_SEEN_ROWS,
        more: SeenRows = NO_SEEN_ROWS,
    ) -> Gathered:
        """Gathers the candidates of lists from the present counts, without any click.

        Args:
            histories: of all users, or of those that are queried.
            lists: N queries.
            flagged: as for `advance`.
            seen: rows that must not be recommended.
            wanted: the candidates of each query, at most `WANTED_MAX`; queries without any look for them.
            more: candidates beside those that are looked for.

        Returns:
            The candidates of the N queries; valid until the next call.
        """
        if len(self._list_buffers.last) < len(lists.slots):
            self._list_buffers = self._new_buffer(len(lists.slots))
        found = [self._no_clicks, self._list_buffers]
        seen_rows = (NO_SEEN_ROWS, seen)
        self._advance(
            histories, no_clicks(), (no_queries(), lists), found, flagged=flagged, seen=seen_rows, wanted=wanted,
            more=(NO_SEEN_ROWS, more),
        )  # fmt: skip
        return _trimmed(self._list_buffers, len(lists.slots))

    def retrace(
        self, histories: UserHistories, queries: QueryArrays, past: PastClicks, *, seen: SeenRows = NO_SEEN_ROWS
    ) -> Gathered:
        """Gathers the candidates of N clicks that were counted before, as they were just before each.

        All counts are afterwards what they were, bit for bit. Neighbours, item counts and moments are as of then; pairs
        of other clicks that came later, popularities, and what the index has dropped since are as of now.

        Args:
            histories: of the clicks' users alone, up to their last click among these.
            queries: for the users just before they click, by rising number; their slots are of these histories.
            past: the clicks.
            seen: rows that must not be recommended.

        Returns:
            The candidates; valid until the next call.
        """
        N, first = len(queries.slots), past.first
        found = self._new_buffer(N)
        pairs = np.unique(np.concatenate([past.rows, past.earlier.ravel()]))
        since = self.log.items[np.arange(first, first + len(past.active)) % len(self.log.items)]
        counted = since[past.counted & (since > 0)].astype(np.int64)
        touched = np.unique(counted)
        self._make_room_for_pairs(N)
        kept = [tables.copy_of_rows(table, pairs) for table in self.tables]
        clicks, last_at = self.items.clicks[touched].copy(), self.items.last_at[touched].copy()
        try:
            gather.uncount_pairs(self.tables, self.pairs, past.rows, past.earlier)
            np.subtract.at(self.items.clicks, counted, np.float32(1))
            np.maximum(self.items.clicks, 0, out=self.items.clicks)
            self.items.last_at[touched] = self._last_at(touched, past)
            gather.retrace(
                self.tables,
                self.items,
                HistoryRings(*histories.rings()),
                self.log,
                self.index,
                queries,
                seen,
                found,
                past,
                no_clicks(),
                NO_SEEN_ROWS,
                self._scratch,
                self._limits,
            )
        finally:
            for table, before in zip(self.tables, kept, strict=True):
                tables.put_back(table, pairs, before)
            self.items.clicks[touched], self.items.last_at[touched] = clicks, last_at
        return _trimmed(found, N)

    def _last_at(self, rows: NDArray[np.int64], past: PastClicks) -> NDArray[np.float64]:
        """Returns when items (K,) were last clicked before the first of some clicks, in active time, as far as it is
        known."""
        size = len(self.log.items)
        held = np.arange(max(1, int(self.log.total[0]) - size + 1), past.first)
        last = np.zeros(len(self))
        latest = np.maximum.accumulate(self.log.times[held % size])
        if len(held):  # of equal rows the last stays
            skipped_s = max(latest[-1], self.log.times[past.first % size]) - past.active[0]
            last[self.log.items[held % size]] = latest - skipped_s
        first = self.items.first_at[rows]
        return np.where(last[rows] > 0, last[rows], np.where(first < past.active[0], first, 0.0))

    def _advance(
        self,
        histories: UserHistories,
        clicks: ClickArrays,
        queries: tuple[QueryArrays, QueryArrays],
        found: Sequence[GatherBuffers],
        *,
        flagged: NDArray[np.bool_],
        seen: Sequence[SeenRows],
        wanted: SeenRows = NO_SEEN_ROWS,
        more: tuple[SeenRows, SeenRows] = NO_MORE,
    ) -> None:
        self._make_room_for_pairs(len(clicks.rows))
        gather.advance(
            self.tables,
            self.items,
            HistoryRings(*histories.rings()),
            self.log,
            self.index,
            flagged,
            clicks,
            queries[0],
            seen[0],
            found[0],
            queries[1],
            seen[1],
            found[1],
            wanted,
            more,
            self._scratch,
            self._limits,
        )

    def _buffer(self, kind: int, queries: int) -> GatherBuffers:
        held = self._buffers[kind]
        while len(held) < 2:
            held.append(self._new_buffer(0))
        if len(held[self._turn].last) < queries:
            held[self._turn] = self._new_buffer(queries)
        return held[self._turn]

    def _new_buffer(self, queries: int) -> GatherBuffers:
        # The system provides only memory that is written to, and most queries fill a third of their room.
        C, (own, world) = queries * max(self._candidates_max, WANTED_MAX), (queries * most for most in self._hits_max)
        return GatherBuffers(
            np.zeros(queries + 1, np.int64),
            np.zeros(C, np.int32),
            np.zeros((C, self.width), np.float32),
            np.zeros(queries + 1, np.int64),
            np.zeros(own, np.int64),
            np.zeros(own, np.int64),
            np.zeros(queries + 1, np.int64),
            np.zeros(world, np.int64),
            np.zeros(world, np.int64),
            np.zeros(queries, np.int32),
            np.zeros(queries, np.int32),
            np.zeros(queries),
            np.zeros(queries, np.float32),
            np.zeros((queries, gather.SHOWN), np.int32),
        )

    def next_numbers(self, count: int) -> NDArray[np.int64]:
        """Returns the numbers (count,) that the next moments will have."""
        total = int(self.log.total[0])
        return np.arange(total + 1, total + 1 + count)

    def note_states(self, numbers: NDArray[np.int64], states: NDArray[np.float16]) -> None:
        """Stores the Reformer's states (N, D) of the moments with these numbers (N,), for later comparisons."""
        self.moment_states[numbers % len(self.moment_states)] = states

    def own_slots(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Returns the slots (N,) in which the users' older moments are indexed; −1 for a user without one."""
        return np.array([self.directory.slot(user) for user in users], np.int64).reshape(len(users))

    def take_own_slots(self, users: Sequence[str]) -> None:
        """Gives each of these users, all different, a slot for older moments; the least recently used are evicted."""
        slots, new = self.directory.take(users)
        for slot, is_new in zip(slots, new, strict=True):
            if is_new:
                moments.clear_slot(self.index, slot)

    # What is popular

    def popularity_by(self, half_life: int, rows: int) -> NDArray[np.float64]:
        """Returns the popularity of the first `rows` rows: clicks, each halved after every half-life of later clicks.

        Args:
            half_life: position of the half-life in the setting `popularity_half_lives`.
            rows: number of rows.
        """
        popularity: NDArray[np.float64] = self.items.popular[:rows, half_life] / self.items.weights[half_life]
        return popularity

    def popular(self, count: int, half_life: int) -> NDArray[np.int64]:
        """Returns at most `count` of the most popular rows that may be listed, best first."""
        best = self.items.top[half_life, :count]
        return best[best > 0].astype(np.int64)

    def set_blocked(self, rows: Sequence[int], blocked: Sequence[bool]) -> None:
        """Sets whether each of the rows is excluded from lists."""
        before = self.items.blocked[list(rows)]
        self.items.blocked[list(rows)] = blocked
        if (before != np.asarray(blocked, np.bool_)).any():
            items.rebuild_lists(self.items)

    # Undoing counts

    def decay(self, factor: float) -> None:
        """Multiplies all counts by `factor` (from 0 to 1); first and last times of items stay as they are."""
        for table in self.tables:
            tables.decay(table, factor)
        pair_users.decay(self.pairs, factor)
        self.items.clicks[...] *= np.float32(factor)
        self.items.popular[...] *= factor
        items.rebuild_lists(self.items)

    def take_back(
        self,
        rows: NDArray[np.int64],
        earlier: NDArray[np.int64],
        ages: NDArray[np.float64],
        numbers: NDArray[np.int64],
    ) -> None:
        """Undoes the counts of K clicks that should not have been counted.

        Args:
            rows: (K,) the clicked items.
            earlier: (K, NEAR) items clicked before each, latest first; 0 in pairs that stay counted.
            ages: (K,) clicks counted since each; −1 where the click itself stays counted.
            numbers: numbers of moments that are hidden from all other users' recall.
        """
        gather.uncount_pairs(self.tables, self.pairs, rows, earlier)
        items.uncount_clicks(self.items, rows[ages >= 0], ages[ages >= 0])
        items.rebuild_lists(self.items)
        self.log.private[numbers % len(self.log.items)] = True

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Clears rows that will be given to other items, wherever they occur."""
        gone = np.zeros(len(self), np.bool_)
        gone[list(rows)] = True
        gone[0] = False
        for table in self.tables:
            tables.forget_rows(table, gone)
        pair_users.forget_rows(self.pairs, gone)
        moments.forget_items(self.log, gone)
        at = np.flatnonzero(gone)
        for part in (self.items.clicks, self.items.first_at, self.items.last_at, self.items.popular):
            part[at] = 0
        self.items.blocked[at] = False
        items.rebuild_lists(self.items)

    # Users

    def user_ids(self) -> list[str]:
        return self.directory.users()

    def count_user(self, user: UserKey) -> dict[str, int]:
        indexed = sum(name in self.directory for name in user.user_ids)
        found = {"recall_index": indexed, "moments": int((self.log.user_hashes == user.user_hash).sum())}
        if len(self.pairs.keys):
            found["waiting_pairs"] = pair_users.count_user(self.pairs, user.user_hash)
        return found

    def forget_user(self, user: UserKey) -> dict[str, int]:
        """Clears the user's moments and their index. Returns how many entries there were, by kind."""
        counts = self.count_user(user)
        for name in user.user_ids:
            slot = self.directory.free(name)
            if slot is not None:
                moments.clear_slot(self.index, slot)
        pair_users.forget_user(self.pairs, user.user_hash)
        self.moment_states[moments.forget_hash(self.log, user.user_hash)] = 0
        return counts

    def usage(self) -> tuple[int, int]:
        """Returns how many moments the log holds, and how many it has room for."""
        return min(int(self.log.total[0]), len(self.log.items)), len(self.log.items)

    # A checkpoint

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and a JSON object."""
        directory = self.directory.to_state()
        used = 1 + max((int(slot) for slot in directory["slots"]), default=-1)
        parts = {
            name: tables.table_to_state(table, len(self)) for name, table in zip(tables.NAMES, self.tables, strict=True)
        }
        parts["items"] = items.items_to_state(self.items, len(self))
        parts["log"] = moments.log_to_state(self.log)
        parts["log_states"] = {"states": self.moment_states[moments.places_held(self.log)]}
        parts["index"] = moments.index_to_state(self.index, used)
        state: dict[str, Any] = {"directory": directory}
        if len(self.pairs.keys):
            parts["pairs"], state["pair_users_min"] = (
                pair_users.pairs_to_state(self.pairs),
                self.settings.pair_users_min,
            )
        return joined(parts), state

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Loads what `to_state` returned, with the same number of half-lives.

        An index of another shape, after a change of settings, is left out.
        """
        counted_items = below(arrays, "items")
        self.grow(len(counted_items["clicks"]))
        self._load_pairs(arrays, state.get("pair_users_min", 0))
        items.load_items(self.items, counted_items)
        moments.load_log(self.log, below(arrays, "log"))
        self._load_moment_states(arrays["log_states.states"])
        index = below(arrays, "index")
        held = len(state["directory"]["slots"]) + len(state["directory"]["free"])
        if held == self.directory.capacity and moments.index_fits(self.index, index):
            moments.load_index(self.index, index)
            self.directory.load_state(state["directory"])

    def _load_pairs(self, arrays: dict[str, NDArray[Any]], needed: int) -> None:
        """Loads the neighbour tables; not if pairs were counted by then that fewer users made than are `needed` now."""
        if needed < self.settings.pair_users_min > 1:
            text = (
                "neighbours are counted anew: those of the checkpoint needed %d users, NEXTCLICK_PAIR_USERS_MIN is %d"
            )
            log.warning(text, max(1, needed), self.settings.pair_users_min)
            return
        saved = (below(arrays, name) for name in tables.NAMES)
        self.tables = tables.Tables(*map(tables.load_table, self.tables, saved))
        if len(self.pairs.keys) and "pairs.at" in arrays:
            pair_users.load_pairs(self.pairs, below(arrays, "pairs"))

    def _load_moment_states(self, saved: NDArray[np.float16]) -> None:
        """Loads the moments' states; those of another width, after a change of settings, are left out."""
        places = moments.places_held(self.log)
        if saved.shape[1] == self.moment_states.shape[1]:
            kept = min(len(places), len(saved))  # the latest, where the log's size has changed
            self.moment_states[places[len(places) - kept :]] = saved[len(saved) - kept :]


def no_clicks() -> ClickArrays:
    """Returns a micro-batch without clicks."""
    nothing = np.zeros(0)
    return ClickArrays(_NONE, _NONE, _NONE, _NONE, nothing, nothing, _NONE, np.zeros(0, np.bool_))


def no_queries() -> QueryArrays:
    """Returns the arrays of no query."""
    nothing = np.zeros(0)
    return QueryArrays(_NONE, _NONE, _NONE, nothing, nothing, np.zeros(0, np.bool_))


def _trimmed(found: GatherBuffers, queries: int) -> Gathered:
    C = int(found.starts[queries])
    own, world = int(found.own_starts[queries]), int(found.world_starts[queries])
    return Gathered(
        found.starts[: queries + 1],
        found.rows[:C],
        found.features[:C],
        Keys(found.last[:queries], found.before[:queries], found.times[:queries], found.gaps[:queries]),
        Hits(found.own_starts[: queries + 1], found.own_moments[:own], found.own_candidates[:own]),
        Hits(found.world_starts[: queries + 1], found.world_moments[:world], found.world_candidates[:world]),
        found.followers[:queries],
    )
