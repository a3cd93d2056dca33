"""The part of a micro-batch that needs no weights: the clicks as arrays, and the candidates of each click and list.

Letters: `N` clicks of a micro-batch, `U` users in it, `L` lists that are queried.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from online.learner.abuse_filter import user_hashes_of
from online.learner.added import NOTHING, AddedQuery
from online.learner.batches import ClickBatch, Impression, TrainedNetwork
from online.learner.content.queries import Starts
from online.learner.facts.features import COLUMNS
from online.learner.facts.gather import ClickArrays, QueryArrays, SeenRows
from online.learner.facts.store import Gathered
from online.learner.history import SERVED, HistorySnapshot, earlier_in_batch, next_in_batch
from online.learner.item_rows import ClickedRows
from online.learner.next_item import Negatives
from online.learner.popular_fill import PopularFill, popular_fill
from online.learner.queries import ListQueries, ListRequests, QueryBuilder
from online.learner.state import LearnerState
from stream.events import Click

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class PreparedBatch:
    """A micro-batch that is not learned yet; the fields that are None at first are filled by `BatchPreparer`."""

    counted: ClickBatch  # all clicks
    batch: ClickBatch  # those that the weights learn from: N in what follows
    clicked: ClickedRows
    caught: NDArray[np.bool_]  # (N,) clicks at which the abuse filter catches their user
    last_clicks: NDArray[np.int64]  # (U,) each user's last click
    click_arrays: ClickArrays  # the clicks, as the feature store takes them
    click_queries: QueryArrays  # a query for each of them
    click_seen: SeenRows
    requests: (
        ListRequests  # (L,) lists between the clicks; then those after `last_clicks`; then the one for unknown users
    )
    list_queries: ListQueries
    repeated: NDArray[np.int64]  # (R,) clicks that the same user's next click follows in the batch: the first lists
    impressions: Sequence[Impression] | None
    known_impressions: NDArray[np.int64]  # which of the impressions' users have a history: the next lists
    popular: NDArray[np.int64]  # (SERVED,) rows as of the start, 0 beyond
    gathered: Gathered | None = None  # for the clicks
    gathered_lists: Gathered | None = None
    network: TrainedNetwork | None = None  # None: the Reformer is not used
    popular_fill: PopularFill | None = None  # where lists may be empty
    added: tuple[AddedQuery, AddedQuery] = (NOTHING, NOTHING)  # of the clicks, and of the lists
    barred: NDArray[np.int64] = field(default_factory=_NONE.copy)  # as of `TrainedStep`, for all clicks
    starts: Starts | None = None  # items whose vectors started from those of others; None: none
    hidden: list[NDArray[np.int64]] | None = None  # (U,) rows that each user has hidden; None: none has

    @property
    def users(self) -> list[str]:
        """The batch's users (U,), each once, by their last clicks."""
        return [self.batch.users[at] for at in self.last_clicks.tolist()]


class BatchPreparer:
    """Prepares micro-batches: counts their clicks, and gathers what the weights need to learn from them."""

    def __init__(self, state: LearnerState, queries: QueryBuilder, *, lists: bool) -> None:
        """`lists`: whether users' lists are ranked."""
        self.state, self.queries, self.lists = state, queries, lists

    def prepare(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None,
        owned: NDArray[np.bool_] | None = None,
    ) -> PreparedBatch:
        """Does all three steps, one after the other: `begin`, `gather`, `complete`."""
        begun = self.begin(clicks, impressions, owned)
        return self.complete(begun, self.gather(begun))

    def evicts(self, clicks: Sequence[Click]) -> bool:
        """Returns whether these clicks evict users or items; then no other clicks may be learned meanwhile."""
        state = self.state
        now = state.clock.after(click.timestamp for click in clicks)
        return state.histories.would_evict(click.user_id for click in clicks) or state.items.would_free(clicks, now)

    def begin(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None,
        owned: NDArray[np.bool_] | None = None,
    ) -> PreparedBatch:
        """Judges and encodes the clicks, and builds the queries for each click and each list.

        Args:
            clicks: in order of arrival.
            impressions: as for `Learner.learn`.
            owned: which of the clicks are learned from and get lists, the others being counted only; None: all.
        """
        state, queries = self.state, self.queries
        counted, clicked, caught = self._batch(clicks)
        batch = counted if owned is None else counted.only(owned)
        last_clicks = np.flatnonzero(batch.behind == 0)
        self._take_own_slots(counted)
        click_arrays, click_queries, click_seen = queries.before_clicks(counted, batch)
        # Lists. Before this batch's gaps are known, and after.
        repeated = np.flatnonzero(batch.behind > 0) if self.lists else _NONE
        known_impressions = _NONE
        requests = queries.after_clicks(batch, repeated)
        if impressions is not None:
            known = [i for i, one in enumerate(impressions) if one.user_id in state.histories]
            known_impressions = np.array(known, np.int64)
            requests = requests.and_also(queries.of_impressions(batch, [impressions[i] for i in known]))
            requests = requests.and_also(queries.of_unknown_user(0, state.now[1]))
        now = state.now[0]
        had = ~np.isnan(counted.previous_at) & counted.trainable
        state.returns.add((counted.times - counted.previous_at)[had], int(counted.trainable.sum()))
        state.now = state.clock.latest, state.clock.now
        if self.lists and len(batch.users):
            requests = requests.and_also(queries.at_end(batch, last_clicks, len(clicks)))
            requests = requests.and_also(queries.of_unknown_user(len(clicks), state.now[1]))
            now = state.now[0]
        list_queries = queries.lists(requests, now=now)
        added = (
            state.added.of(state.histories, click_queries, batch.users, click_arrays),
            state.added.of(state.histories, list_queries.queries, list_queries.users, click_arrays),
        )
        return PreparedBatch(
            counted=counted,
            batch=batch,
            clicked=clicked,
            caught=caught,
            last_clicks=last_clicks,
            click_arrays=click_arrays,
            click_queries=click_queries,
            click_seen=click_seen,
            requests=requests,
            list_queries=list_queries,
            repeated=repeated,
            impressions=impressions,
            known_impressions=known_impressions,
            popular=served_part(state.popular_rows(SERVED)),
            added=added,
        )

    def gather(self, begun: PreparedBatch) -> tuple[Gathered, Gathered]:
        """Counts each click, and gathers candidates: of clicks just before, and of lists. May run on another thread."""
        return self.state.store.advance(
            self.state.histories,
            begun.click_arrays,
            begun.click_queries,
            begun.list_queries.queries,
            flagged=self.state.abuse_filter.flagged,
            seen=(begun.click_seen, begun.list_queries.seen),
            more=(begun.added[0].candidates, begun.added[1].candidates),
        )

    def complete(self, begun: PreparedBatch, gathered: tuple[Gathered, Gathered]) -> PreparedBatch:
        """Does the rest that follows from the clicks alone, and copies what the weights need of histories and counts,
        which change while the weights learn."""
        state, batch = self.state, begun.counted
        if state.seen is not None:  # only now: each click was queried with the items seen before it
            state.seen.add_clicks(batch.users, batch.rows)
        state.hidden.touch(batch.users)
        state.histories.put_values(batch.slots, batch.values)
        state.histories.active_at[batch.slots] = batch.active  # of each user's last click, which comes last
        self._take_back(batch, begun.caught)
        offered = batch.trainable & ~state.mostly_flagged(batch.slots)
        state.reservoir.offer(state.histories, batch.slots[offered], batch.behind[offered], batch.user_hashes[offered])
        self._clear_states(begun)
        behind = (None, None) if state.worth is None else self._behind(begun)
        gathered_clicks = state.with_columns(
            gathered[0], begun.added[0], state.histories, begun.click_queries, behind=behind[0], clicks=begun.batch
        )
        gathered_lists = state.with_columns(
            gathered[1], begun.added[1], state.histories, begun.list_queries.queries, behind=behind[1]
        )
        starts = state.added.content.starts(batch.rows[batch.trainable])
        if starts is not None:
            state.weights.start_rows(starts)
        state.added.observe(batch, state.clock.latest)
        learned = begun.batch
        reads_state = state.deep_state or state.trial_reads_state
        network = self._network(begun) if reads_state and len(learned.users) else None
        fill = hidden = None
        if self.lists:
            fill = popular_fill(state, self.queries, begun.users, learned.slots[begun.last_clicks])
            hidden = state.hidden.rows(begun.users)
        return replace(
            begun,
            gathered=gathered_clicks,
            gathered_lists=gathered_lists,
            barred=self._barred(learned, gathered_clicks),
            network=network,
            popular_fill=fill,
            hidden=hidden,
            starts=starts,
        )

    @staticmethod
    def _behind(begun: PreparedBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns how many clicks of the micro-batch come after each query in its user's history: of the clicks, each
        of which counts itself, and of the lists."""
        counted, queries = begun.counted, begun.list_queries.queries
        later = np.arange(len(counted.slots)) >= queries.positions[:, None]  # (L, N)
        of_lists = ((counted.slots == queries.slots[:, None]) & later).sum(1)
        return counted.behind[begun.batch.positions] + 1, of_lists

    def _batch(self, clicks: Sequence[Click]) -> tuple[ClickBatch, ClickedRows, NDArray[np.bool_]]:
        """Returns the clicks as arrays, the rows of their items, and at which of them a user is caught."""
        state = self.state
        users = [click.user_id for click in clicks]
        slots = state.histories.slots(users)
        times = np.array([click.timestamp for click in clicks])
        active = state.clock.update_all(click.timestamp for click in clicks)
        clicked = state.observe_items(clicks, active)
        types = np.array([state.event_type(click.event_type) for click in clicks], np.int64)
        values = np.array([np.nan if click.value is None else click.value for click in clicks])
        numbers = state.store.next_numbers(len(clicks))
        flagged, caught = state.abuse_filter.judge(users, [click.item_id for click in clicks], times, numbers)
        if state.frozen:
            flagged, caught = np.ones(len(clicks), np.bool_), np.zeros(len(clicks), np.bool_)
        next_at = next_in_batch(slots)
        previous_at = np.where(state.histories.lengths(slots) > 0, state.histories.latest_at(slots), np.nan)
        more = np.flatnonzero(next_at >= 0)
        previous_at[next_at[more]] = times[more]
        batch = ClickBatch(
            users=users,
            slots=slots,
            rows=clicked.rows,
            targets=clicked.targets,
            types=types,
            values=values,
            times=times,
            active=active,
            nth=earlier_in_batch(slots),
            behind=earlier_in_batch(slots[::-1])[::-1],
            previous_at=previous_at,
            numbers=numbers,
            user_hashes=user_hashes_of(users),
            trainable=~flagged,
            positions=np.arange(len(clicks)),
            lines=self._lines(slots, times, previous_at),
        )
        return batch, clicked, caught

    def _lines(
        self, slots: NDArray[np.int64], times: NDArray[np.float64], previous_at: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Returns which of its user's clicks at its very time each is, (N,), from 1."""
        further = np.flatnonzero(previous_at == times)
        if not len(further):
            return np.ones(len(slots), np.int64)
        _, baskets = np.unique(np.stack([slots, times]), axis=1, return_inverse=True)
        lines = 1 + earlier_in_batch(baskets.reshape(-1))
        lines[further] += self.state.histories.clicks_at(slots[further], times[further])
        return lines

    def _barred(self, batch: ClickBatch, gathered: Gathered) -> NDArray[np.int64]:
        """Returns the positions among all candidates of those on which a click would be flagged as a repeat.

        Among clicks to learn from such candidates are never the clicked ones. If they were rivals, the ranker would
        learn that items are not clicked again that were clicked often, though users do nothing else.
        """
        state = self.state
        often = np.log1p(np.float32(state.abuse_filter.repeats_max))
        at = np.flatnonzero(gathered.features[:, COLUMNS["own_times"]] >= often)
        clicks = np.searchsorted(gathered.starts, at, "right") - 1
        items = [item or "" for item in state.vocabulary.items_of(gathered.rows[at].tolist())]
        return at[state.abuse_filter.repeats_exhausted(batch.user_hashes[clicks], items, batch.times[clicks])]

    def _clear_states(self, begun: PreparedBatch) -> None:
        """Clears the states of moments that are only counted: their places may hold those of older moments."""
        if self.state.may_use_state and len(begun.batch.users) < len(begun.counted.users):
            only_counted = np.delete(begun.counted.numbers, begun.batch.positions)
            width = self.state.store.moment_states.shape[1]
            self.state.store.note_states(only_counted, np.zeros((len(only_counted), width), np.float16))

    def _take_own_slots(self, batch: ClickBatch) -> None:
        """Gives a slot for older moments to each user whose number of clicks exceeds what is always compared."""
        settings = self.state.settings
        if not settings.reformer:
            return
        leaving = self.state.histories.lengths(batch.slots) + batch.nth >= settings.recall_latest
        users = dict.fromkeys(batch.users[at] for at in np.flatnonzero(leaving).tolist())
        if users:
            self.state.store.take_own_slots(list(users))

    def _take_back(self, batch: ClickBatch, caught: NDArray[np.bool_]) -> None:
        """Undoes the counts of users who were caught, on the item that they clicked too often."""
        state = self.state
        for at in np.flatnonzero(caught).tolist():
            newest = state.histories.newest_first(batch.slots[at : at + 1], state.histories.history_max)
            state.store.take_back(*state.abuse_filter.counts_to_undo(newest, int(batch.rows[at])))

    def _network(self, begun: PreparedBatch) -> TrainedNetwork:
        """Returns the Reformer's targets (clicks on known items that are not flagged), a sample of other items, and the
        histories that it reads."""
        state, batch = self.state, begun.batch
        list_slots = begun.requests.slots
        length = state.settings.online_history + 1 + int(np.bincount(batch.slots).max())
        read = np.concatenate([batch.slots, list_slots[list_slots >= 0]])
        histories = HistorySnapshot(state.histories, read, length)
        slots = batch.slots[begun.last_clicks]
        by_slot = np.argsort(slots)
        of_user = by_slot[np.searchsorted(slots[by_slot], batch.slots)]  # (N,) which of the U
        guessed = (batch.rows != 0) & batch.trainable
        if state.worth is not None:
            guessed &= state.worth.wanted(batch.types, batch.values)
        negatives = None
        if guessed.any() and state.vocabulary.rows > 2:
            negatives = Negatives(state.popularity(), state.vocabulary.rows).draw(
                state.settings.negatives, state.random
            )
        order = np.argsort(np.argsort(of_user, kind="stable"))
        return TrainedNetwork(
            histories, slots, np.bincount(of_user), order, guessed, state.tensor(batch.rows), negatives
        )


def served_part(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the first SERVED of rows, padded with 0."""
    return np.pad(rows[:SERVED], (0, max(0, SERVED - len(rows)))).astype(np.int64)
