"""Clicks that were only counted, because another worker was to learn from them, as they were when they were made.

A worker that takes partitions over trains on what their former owner has not shared. It has counted these clicks
itself; so their features are gathered again as of before each of them, and no click sees itself.

Letters: `N` clicks, `U` users among them, `L` clicks of a history, `T` moments since the first click, `D` width.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.abuse_filter import user_hashes_of
from online.learner.added import NOTHING, AddedQuery
from online.learner.batches import ClickBatch, TrainedNetwork
from online.learner.facts.gather import PastClicks, QueryArrays, SeenRows
from online.learner.facts.store import NO_SEEN_ROWS, Gathered
from online.learner.facts.tables import NEAR
from online.learner.history import UserHistories, earlier_in_batch
from online.learner.next_item import Negatives
from online.learner.state import LearnerState
from online.learner.stream_time import STREAM_GAP_S_MAX
from online.learner.training import ReformerStates
from stream.events import Click


class Place(NamedTuple):
    """Where a click stands in the history of its user, and among all moments."""

    number: int  # of its moment
    user: str
    preceding: int  # clicks of the history before it


@dataclass(frozen=True)
class Retraced:
    """Clicks to be trained on, by rising number, with what was to be known before each of them."""

    batch: ClickBatch  # N; their slots are of `histories`
    gathered: Gathered
    histories: UserHistories  # of these users, up to their last click among these
    network: TrainedNetwork | None  # None: the Reformer is not used
    added: tuple[AddedQuery, ...] = (NOTHING,)  # of the clicks
    barred: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # is not known any more

    def states(self, state: LearnerState) -> ReformerStates:
        """Returns the Reformer's states before the clicks, from the latest clicks alone; users' memories stay as they
        are. They become the states of the clicks' moments."""
        network = self.network
        if network is None:
            return ReformerStates()
        before, _, had = state.states.read_anew(state.weights, network.slots, network.clicks, self.histories)
        before = before[state.tensor(network.order)]
        network = network.narrowed(had)
        leaf = before.detach().requires_grad_(True)
        unit = leaf.detach() / leaf.detach().norm(dim=-1, keepdim=True).clamp_min(1e-12)
        state.store.note_states(self.batch.numbers, unit.half().cpu().numpy())
        return ReformerStates(network, before, leaf)


def retraced(state: LearnerState, clicks: Sequence[Click]) -> Retraced | None:
    """Finds clicks where they stand, and gathers what was known before each. None: none is held any more."""
    places = _places(state, clicks)
    if not places:
        return None
    users = list(dict.fromkeys(place.user for place in places))
    histories = _histories(state, users, places)
    slots = histories.find([place.user for place in places])
    batch = _batch(state, histories, slots, places)
    past = _past(state, histories, batch, places)
    active = past.active[batch.numbers - past.first]
    known = state.store.items.first_at[batch.rows] < active  # before the click
    batch = batch._replace(active=active, targets=np.where(known, batch.rows, 0))
    queries = QueryArrays(
        np.zeros(len(slots), np.int64),
        slots,
        state.store.own_slots(batch.users),
        batch.times,
        batch.active,
        np.zeros(len(slots), np.bool_),
    )
    ends = histories.rings()[4].copy()
    gathered = state.store.retrace(histories, queries, past, seen=_seen(state, places))
    histories.rings()[4][:] = ends
    added = state.added.of(histories, queries, batch.users, preceding=past.preceding)
    gathered = state.with_columns(gathered, added, histories, queries, behind=ends[slots] - past.preceding)
    network = _network(state, histories, batch) if state.deep_state else None
    return Retraced(batch, gathered, histories, network, (added,))


def _places(state: LearnerState, clicks: Sequence[Click]) -> list[Place]:
    """Returns where the clicks stand that are still held, by rising number: of each user those that follow each
    other without a gap up to the last one."""
    of_user: dict[str, list[Click]] = defaultdict(list)
    for click in clicks:
        if click.user_id in state.histories:
            of_user[click.user_id].append(click)
    oldest = int(state.store.log.total[0]) - len(state.store.log.items)
    found: list[Place] = []
    for user, theirs in of_user.items():
        rows, _, times, numbers = state.histories.clicks_of(int(state.histories.find([user])[0]))
        at, places = 0, []
        for click in theirs:
            row = state.vocabulary.row_of(click.item_id)
            same = np.flatnonzero((times[at:] == click.timestamp) & np.isin(rows[at:], (row, 0)))
            if len(same):
                at += int(same[0]) + 1
                places.append(Place(int(numbers[at - 1]), user, at - 1))
        kept = len(places)
        while kept > 1 and places[kept - 2].preceding == places[kept - 1].preceding - 1:
            kept -= 1
        found += [place for place in places[max(0, kept - 1) :] if place.number > max(0, oldest)]
    return sorted(found)


def _histories(state: LearnerState, users: Sequence[str], places: Sequence[Place]) -> UserHistories:
    """Returns the histories of users up to their last click among these, that one included."""
    last = {place.user: place.preceding for place in places}
    held = state.histories
    histories = UserHistories(len(users), held.history_max, values=held.values is not None)
    for user, slot in zip(users, histories.slots(users).tolist(), strict=True):
        from_slot = int(held.find([user])[0])
        rows, types, times, numbers = (part[: last[user] + 1] for part in held.clicks_of(from_slot))
        at = np.full(len(rows), slot)
        histories.append(at, rows, types, times, numbers)
        histories.put_values(at, held.values_of(from_slot)[: len(rows)])
    return histories


def _batch(
    state: LearnerState, histories: UserHistories, slots: NDArray[np.int64], places: Sequence[Place]
) -> ClickBatch:
    rows, types, times, *_ = histories.rings()
    at = np.array([place.preceding for place in places])
    numbers = np.array([place.number for place in places])
    users = [place.user for place in places]
    return ClickBatch(
        users=users,
        slots=slots,
        rows=rows[slots, at].astype(np.int64),
        targets=np.zeros(len(places), np.int64),
        types=types[slots, at].astype(np.int64),
        values=np.full(len(places), np.nan) if histories.values is None else histories.values[slots, at].astype(float),
        times=times[slots, at],
        active=np.zeros(len(places)),
        nth=earlier_in_batch(slots),
        behind=earlier_in_batch(slots[::-1])[::-1],
        previous_at=np.full(len(places), np.nan),
        numbers=numbers,
        user_hashes=user_hashes_of(users),
        trainable=~state.abuse_filter.was_flagged(numbers),
        positions=np.arange(len(places)),
        lines=1 + ((times[slots] == times[slots, at][:, None]) & (np.arange(times.shape[1]) < at[:, None])).sum(1),
    )


def _past(state: LearnerState, histories: UserHistories, batch: ClickBatch, places: Sequence[Place]) -> PastClicks:
    """Returns the clicks as `FeatureStore.retrace` takes them: with their neighbours, and active times since."""
    rows, _, _, numbers, _ = histories.rings()
    log, first = state.store.log, int(batch.numbers[0])
    at = np.array([place.preceding for place in places])[:, None] - np.arange(1, NEAR + 1)  # (N, NEAR)
    there, at, slots = at >= 0, np.maximum(at, 0), batch.slots[:, None]
    flagged = state.abuse_filter.was_flagged(numbers[slots, at])
    pairs = there & ~flagged & (batch.trainable & (batch.rows > 0))[:, None]
    since = np.arange(first, int(log.total[0]) + 1)
    return PastClicks(
        rows=batch.rows,
        numbers=batch.numbers,
        preceding=np.array([place.preceding for place in places]),
        earlier=np.where(pairs, rows[slots, at], 0).astype(np.int64),
        first=first,
        active=_active(state, first),
        counted=~state.abuse_filter.was_flagged(since),
    )


def _active(state: LearnerState, first: int) -> NDArray[np.float64]:
    """Returns the active time at each moment since `first`, (T,): as the clock counted it, from its end backwards."""
    log = state.store.log
    total, size = int(log.total[0]), len(log.items)
    before = log.times[np.arange(max(1, total - size + 1), first) % size]
    times = log.times[np.arange(first, total + 1) % size]
    latest = np.maximum.accumulate(np.append(before.max(initial=times[0] if not len(before) else 0.0), times))
    skipped = np.cumsum(np.maximum(0.0, np.diff(latest) - STREAM_GAP_S_MAX))
    active: NDArray[np.float64] = latest[1:] - (state.clock.skipped_s - skipped[-1] + skipped)
    return active


def _seen(state: LearnerState, places: Sequence[Place]) -> SeenRows:
    """Returns the rows that users had seen before each click, as far as it is known."""
    if state.seen is None:
        return NO_SEEN_ROWS
    starts, seen = state.seen.of([place.user for place in places])
    parts = []
    for n, place in enumerate(places):
        rows = state.histories.clicks_of(int(state.histories.find([place.user])[0]))[0]
        new = np.setdiff1d(rows[place.preceding :], rows[: place.preceding])
        parts.append(np.setdiff1d(seen[starts[n] : starts[n + 1]], new))
    return SeenRows(True, np.cumsum([0, *map(len, parts)]), np.concatenate(parts).astype(seen.dtype))


def _network(state: LearnerState, histories: UserHistories, batch: ClickBatch) -> TrainedNetwork:
    """Returns the Reformer's targets, a sample of other items, and the histories that it reads."""
    slots = np.unique(batch.slots)
    guessed = (batch.rows != 0) & batch.trainable
    if state.worth is not None:
        guessed &= state.worth.wanted(batch.types, batch.values)
    negatives = None
    if guessed.any() and state.vocabulary.rows > 2:
        negatives = Negatives(state.popularity(), state.vocabulary.rows).draw(state.settings.negatives, state.random)
    order = np.argsort(np.argsort(batch.slots, kind="stable"))
    return TrainedNetwork(
        histories, slots, np.bincount(batch.slots), order, guessed, state.tensor(batch.rows), negatives
    )
