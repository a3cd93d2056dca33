"""One pass over a micro-batch: a click's candidates are gathered just before the click is counted.

So a query sees exactly the clicks before it and none after it, also within a micro-batch.

Letters: `B` clicks of a micro-batch, `N` queries, `C` candidates of all of them (flat), `F` counted features, `P`
moments found for all of them (flat), `L` clicks of a history, `V` rows of items.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.features import QueryContext, RawFeatures, fill_columns, fill_timed
from online.learner.facts.items import Items, count_click
from online.learner.facts.jit import inlined, kernel
from online.learner.facts.moments import (
    BY_CLOCK,
    BY_ITEM,
    Index,
    Log,
    append,
    bucket_of_item,
    clock_scores,
    held,
    put_own,
    put_world,
)
from online.learner.facts.pair_users import PairUsers, count_pair_of_several, holds, uncount_pair_of_several
from online.learner.facts.tables import (
    NEAR,
    THIRD_FROM,
    THIRD_TO,
    Table,
    Tables,
    count,
    first_place,
    near_weight,
    uncount,
)

NEAR_DECAY, TASTE_DECAY = 0.8, 0.97  # what a neighbour's vote counts, for each click since its item
TASTE_LATEST = 64  # items whose neighbours have a vote on the user's taste
NEAR_MAX = 100  # candidates that stand near the latest items, and as many that suit the user's taste
SECOND_MAX = 50  # candidates that came two clicks after the item before the last
POPULAR_MAX = 30  # candidates that are most popular, by each of the half-lives
SHOWN = 10  # followers of the last item that are kept for comparison
PAIRS_OF_CLICK = (1, 1, THIRD_TO - THIRD_FROM, 1, 2 * NEAR)  # that it counts at most, in each of the tables
EXPECTED_MIN = 5  # clicks that each item is taken to have had, when neighbours are weighed by popularity


class HistoryRings(NamedTuple):
    """Rings of users' latest clicks (online/learner/history.py): (S, H), and (S,) clicks ever made."""

    rows: NDArray[np.int32]
    types: NDArray[np.uint8]
    times: NDArray[np.float64]
    numbers: NDArray[np.int64]
    clicks: NDArray[np.int64]


class ClickArrays(NamedTuple):
    """B clicks in order of arrival."""

    slots: NDArray[np.int64]  # of their users' histories
    own_slots: NDArray[np.int64]  # where their users' older moments are indexed; −1: nowhere
    rows: NDArray[np.int64]  # clicked items; 0: an item without a row
    types: NDArray[np.int64]
    times: NDArray[np.float64]  # seconds since 1970
    active: NDArray[np.float64]  # active time
    user_hashes: NDArray[np.int64]  # as `stream.user_ids.hash_of_digest` says
    trainable: NDArray[np.bool_]  # others learn from it: it is not flagged as abuse


class QueryArrays(NamedTuple):
    """N queries, in order of position."""

    positions: NDArray[np.int64]  # clicks of the micro-batch that come before the query
    slots: NDArray[np.int64]  # of the users' histories; −1: the user has none
    own_slots: NDArray[np.int64]
    now: NDArray[np.float64]  # seconds since 1970
    active: NDArray[np.float64]
    repeated: NDArray[np.bool_]  # whether it repeats the query before it (same user and position) at another time


class SeenRows(NamedTuple):
    """Rows that must not be recommended, flat: those of query q are rows[starts[q] : starts[q + 1]]."""

    on: bool
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]


class GatherBuffers(NamedTuple):
    """Buffers into which the candidates of N queries are written."""

    starts: NDArray[np.int64]  # (N + 1,)
    rows: NDArray[np.int32]  # (C,)
    features: NDArray[np.float32]  # (C, F)
    own_starts: NDArray[np.int64]  # (N + 1,)
    own_moments: NDArray[np.int64]  # (P,) places in the log
    own_candidates: NDArray[np.int64]  # (P,) the candidate (of all C) that each points at
    world_starts: NDArray[np.int64]
    world_moments: NDArray[np.int64]
    world_candidates: NDArray[np.int64]
    last: NDArray[np.int32]  # (N,) the moment of each query
    before: NDArray[np.int32]
    times: NDArray[np.float64]
    gaps: NDArray[np.float32]
    followers: NDArray[np.int32]  # (N, SHOWN) what followed the last item most often, best first; 0 beyond


class Scratch(NamedTuple):
    """Working memory that is not cleared between queries: an entry whose stamp is not the present mark is unset."""

    mark: NDArray[np.int64]  # (1,)
    stamps: NDArray[np.int64]  # (V,) rows that are candidates
    places: NDArray[np.int64]  # (V,) position of the candidate
    banned: NDArray[np.int64]  # (V,) rows that must not be candidates
    near_stamps: NDArray[np.int64]  # (V,) rows that have a sum
    near_sums: NDArray[np.float32]  # (V,)
    near_rows: NDArray[np.int32]  # (·,) rows near the latest items, in the order they were found
    near_scores: NDArray[np.float32]
    sorted: NDArray[np.float32]  # scores, while the best are looked for
    taste_sums: NDArray[np.float32]
    taste_scores: NDArray[np.float32]
    moment_stamps: NDArray[np.int64]  # (M,)
    clock: NDArray[np.float64]  # (B,) scores of buckets
    raw: RawFeatures


class PastClicks(NamedTuple):
    """N clicks that were counted before, by rising number; and the T moments since the first of them."""

    rows: NDArray[np.int64]  # (N,) clicked items
    numbers: NDArray[np.int64]  # (N,) of their moments
    preceding: NDArray[np.int64]  # (N,) clicks that their users' histories hold before each
    earlier: NDArray[np.int64]  # (N, NEAR) items before each that were counted as its neighbours; 0: none
    first: int  # number of the first moment
    active: NDArray[np.float64]  # (T,) active time
    counted: NDArray[np.bool_]  # (T,) not flagged


class Limits(NamedTuple):
    """Settings that the loops need, and the pairs that too few users have made so far."""

    moments: int  # that are held
    latest: int  # moments of a user that are always compared
    probes: int  # buckets of the time that are looked into
    recalls: bool  # whether moments are found at all
    exclude_seen: bool
    pairs: PairUsers  # without sets: all pairs count at once


@kernel
def advance(
    tables: Tables,
    items: Items,
    histories: HistoryRings,
    log: Log,
    index: Index,
    flagged: NDArray[np.bool_],
    clicks: ClickArrays,
    before: QueryArrays,
    seen_before: SeenRows,
    found_before: GatherBuffers,
    lists: QueryArrays,
    seen_lists: SeenRows,
    found_lists: GatherBuffers,
    wanted: SeenRows,
    more: tuple[SeenRows, SeenRows],
    scratch: Scratch,
    limits: Limits,
) -> None:
    """Goes through B clicks in order: gathers each click's candidates, then counts the click.

    Args:
        flagged: (M,) whether each moment is flagged as abuse; a moment stands at its number modulo M.
        before: queries of clicks, each gathered just before the click at its position; clicks without one are only
            counted.
        lists: further queries; each is gathered after as many clicks as its position says.
        wanted: candidates that are given, of each of the lists; without any, they are looked for.
        more: candidates beside those that are looked for, of the clicks' queries and of the lists.
        The rest: the parts of the store, and the buffers that are filled.
    """
    # With the literals 0 and False numba would compile all of `gather` a second time.
    next_list: Any = np.int64(0)
    next_click: Any = np.int64(0)
    not_given: Any = np.bool_(False)
    for b in range(len(clicks.rows) + 1):
        while next_list < len(lists.slots) and lists.positions[next_list] == b:
            gather(
                tables, items, histories, log, index, clicks, lists, next_list, seen_lists, wanted, wanted.on,
                more[1], found_lists, scratch, limits,
            )  # fmt: skip
            next_list += 1
        if b < len(clicks.rows):
            if next_click < len(before.slots) and before.positions[next_click] == b:
                gather(
                    tables, items, histories, log, index, clicks, before, next_click, seen_before, wanted, not_given,
                    more[0], found_before, scratch, limits,
                )  # fmt: skip
                next_click += 1
            observe(tables, items, histories, log, index, flagged, clicks, b, scratch, limits)


@kernel
def observe(
    tables: Tables,
    items: Items,
    histories: HistoryRings,
    log: Log,
    index: Index,
    flagged: NDArray[np.bool_],
    clicks: ClickArrays,
    b: int,
    scratch: Scratch,
    limits: Limits,
) -> None:
    """Appends click b to its user's history and to the log, and, if it is trainable, counts it."""
    slot, row = clicks.slots[b], clicks.rows[b]
    n, H = histories.clicks[slot], histories.rows.shape[1]
    length = min(n, H)
    last = int(histories.rows[slot, (n - 1) % H]) if length > 0 else 0
    before = int(histories.rows[slot, (n - 2) % H]) if length > 1 else 0
    gap = math.log1p(max(0.0, clicks.times[b] - histories.times[slot, (n - 1) % H])) if length > 0 else 0.0
    trainable = clicks.trainable[b]
    if trainable:
        for d in range(min(length, NEAR) if row > 0 else 0):
            place = (n - 1 - d) % H
            number = histories.numbers[slot, place]
            # A flagged click is no neighbour: clicked between popular items, its item would be related to them.
            if not held(log.total[0], limits.moments, number) or not flagged[number % len(flagged)]:
                if len(limits.pairs.keys) > 0:
                    other = int(histories.rows[slot, place])
                    count_pair_of_several(tables, limits.pairs, clicks.user_hashes[b], other, row, d)
                else:
                    count_pair(tables, histories.rows[slot, place], row, d)
        count_click(items, row, clicks.active[b])
    number = append(log, row, last, before, clicks.times[b], gap, clicks.user_hashes[b])
    if limits.recalls:
        if trainable and row > 0 and last > 0:
            put_world(index, log, number)
        if length >= limits.latest and clicks.own_slots[b] >= 0:
            leaving = histories.numbers[slot, (n - limits.latest) % H]
            if held(log.total[0], limits.moments, leaving):
                put_own(index, log, clicks.own_slots[b], leaving, scratch.clock)
    place = n % H
    histories.rows[slot, place], histories.types[slot, place] = row, clicks.types[b]
    histories.times[slot, place], histories.numbers[slot, place] = clicks.times[b], number
    histories.clicks[slot] = n + 1


@kernel
def retrace(
    tables: Tables,
    items: Items,
    histories: HistoryRings,
    log: Log,
    index: Index,
    queries: QueryArrays,
    seen: SeenRows,
    found: GatherBuffers,
    past: PastClicks,
    no_clicks: ClickArrays,
    no_more: SeenRows,
    scratch: Scratch,
    limits: Limits,
) -> None:
    """Gathers the candidates of N clicks that were counted long ago, each as of before it.

    The pair counts of these clicks are taken back already, and those of items since the first of them; both are counted
    again one by one. The caller restores what this leaves otherwise than it was.

    Args:
        histories: of these users alone, up to their last click among these; a query's slot is of these.
        past: the clicks.
        The rest: as for `advance`.
    """
    total, size = log.total[0], len(log.items)
    not_given: Any = np.bool_(False)  # as in `advance`
    next_moment = past.first
    for q in range(len(queries.slots)):
        number, slot, n = past.numbers[q], queries.slots[q], past.preceding[q]
        while next_moment < number:
            row = log.items[next_moment % size]
            if row > 0 and past.counted[next_moment - past.first]:
                items.clicks[row] += np.float32(1)
                items.last_at[row] = max(items.last_at[row], past.active[next_moment - past.first])
            next_moment += 1
        histories.clicks[slot], log.total[0] = n, number - 1
        # Moments that were held then may have made room since.
        as_of = Limits(
            min(limits.moments, number - 1 - max(0, total - size)),
            limits.latest,
            limits.probes,
            limits.recalls,
            limits.exclude_seen,
            limits.pairs,
        )
        gather(
            tables, items, histories, log, index, no_clicks, queries, q, seen, seen, not_given, no_more, found, scratch,
            as_of,
        )  # fmt: skip
        for d in range(NEAR):
            if past.earlier[q, d] > 0 and len(limits.pairs.keys) > 0:
                user_hash = log.user_hashes[number % size]
                other = int(past.earlier[q, d])
                count_pair_of_several(tables, limits.pairs, user_hash, other, past.rows[q], d)
            elif past.earlier[q, d] > 0:
                count_pair(tables, past.earlier[q, d], past.rows[q], d)
    log.total[0] = total


@inlined
def count_pair(tables: Tables, earlier: int, row: int, d: int) -> None:
    """Counts a click on `row` that had a click on `earlier` d places before it (0: just before)."""
    if d == 0:
        count(tables.first, earlier, row, 1.0)
        count(tables.before, row, earlier, 1.0)
    elif d == 1:
        count(tables.second, earlier, row, 1.0)
    if THIRD_FROM <= d < THIRD_TO:
        count(tables.third, earlier, row, 1.0)
    if earlier != row:
        count(tables.near, earlier, row, near_weight(d + 1))
        count(tables.near, row, earlier, near_weight(d + 1))


@kernel
def uncount_pairs(tables: Tables, pairs: PairUsers, rows: NDArray[np.int64], earlier: NDArray[np.int64]) -> None:
    """Undoes `count_pair` for clicks on rows (K,) and the items before them, (K, NEAR), latest first; 0: no pair."""
    for k in range(len(rows)):
        row = rows[k]
        for d in range(earlier.shape[1]):
            other = earlier[k, d]
            if len(pairs.keys) > 0:
                uncount_pair_of_several(tables, pairs, other, row, d)
                continue
            if d == 0:
                uncount(tables.first, other, row, 1.0)
                uncount(tables.before, row, other, 1.0)
            elif d == 1:
                uncount(tables.second, other, row, 1.0)
            if THIRD_FROM <= d < THIRD_TO:
                uncount(tables.third, other, row, 1.0)
            if other != row:
                uncount(tables.near, other, row, near_weight(d + 1))
                uncount(tables.near, row, other, near_weight(d + 1))


@inlined
def add_candidate(
    row: int,
    c: int,
    mark: int,
    rows: NDArray[np.int32],
    blocked: NDArray[np.bool_],
    scratch: Scratch,
) -> int:
    """Adds a candidate, unless it is one already or must not be one. Returns how many there are."""
    if row == 0 or scratch.stamps[row] == mark or scratch.banned[row] == mark or blocked[row]:
        return c
    scratch.stamps[row], scratch.places[row] = mark, c
    rows[c] = row
    return c + 1


@kernel
def nth_largest(values: NDArray[np.float32], n: int, buffer: NDArray[np.float32]) -> np.float32:
    """Returns the n-th largest (from 1) of values (C,), by quickselect (Hoare 1961); the buffer has room for C."""
    copy = buffer[: len(values)]
    for k in range(len(values)):
        copy[k] = values[k]
    left, right = 0, len(values) - 1
    while left < right:
        pivot = copy[(left + right) // 2]
        low, high = left, right
        while low <= high:
            while copy[low] > pivot:
                low += 1
            while copy[high] < pivot:
                high -= 1
            if low <= high:
                copy[low], copy[high] = copy[high], copy[low]
                low += 1
                high -= 1
        if n - 1 <= high:
            right = high
        elif n - 1 >= low:
            left = low
        else:
            break
    nth: np.float32 = copy[n - 1]
    return nth


@inlined
def add_best(
    best: NDArray[np.int32],
    scores: NDArray[np.float32],
    most: int,
    c: int,
    mark: int,
    rows: NDArray[np.int32],
    blocked: NDArray[np.bool_],
    scratch: Scratch,
) -> int:
    """Adds the `most` rows with the highest scores as candidates, the first of equal ones, and returns their number."""
    if len(best) <= most:
        for k in range(len(best)):
            c = add_candidate(best[k], c, mark, rows, blocked, scratch)
        return c
    least = nth_largest(scores, most, scratch.sorted)
    ties = most
    for k in range(len(best)):
        ties -= scores[k] > least
    for k in range(len(best)):
        if scores[k] > least or (scores[k] == least and ties > 0):
            ties -= scores[k] == least
            c = add_candidate(best[k], c, mark, rows, blocked, scratch)
    return c


@kernel
def gather(
    tables: Tables,
    items: Items,
    histories: HistoryRings,
    log: Log,
    index: Index,
    clicks: ClickArrays,
    queries: QueryArrays,
    q: int,
    seen: SeenRows,
    wanted: SeenRows,
    given: bool,
    more: SeenRows,
    found: GatherBuffers,
    scratch: Scratch,
    limits: Limits,
) -> None:
    """Gathers the candidates of query q, their features, and the moments that point at them.

    `given`: whether `wanted` holds the candidates of queries; those for which it holds none are looked for. `more`:
    candidates beside those that are looked for.
    """
    slot = queries.slots[q]
    start = found.starts[q]
    n, H = (histories.clicks[slot] if slot >= 0 else 0), histories.rows.shape[1]
    length = min(n, H)
    last = int(histories.rows[slot, (n - 1) % H]) if length > 0 else 0
    before = int(histories.rows[slot, (n - 2) % H]) if length > 1 else 0
    third = int(histories.rows[slot, (n - 3) % H]) if length > 2 else 0
    clicked_at = histories.times[slot, (n - 1) % H] if length > 0 else 0.0
    now = queries.now[q]
    gap = math.log1p(max(0.0, now - clicked_at)) if length > 0 else 0.0
    found.last[q], found.before[q], found.times[q], found.gaps[q] = last, before, now, gap
    raw = scratch.raw
    first_total, second_total = float(tables.first.totals[last]), float(tables.second.totals[before])
    log_length, log_first_total = math.log1p(float(length)), math.log1p(first_total)
    own, world = found.own_starts[q], found.world_starts[q]
    if queries.repeated[q]:
        # The candidates of the query before: only the features that depend on the time are new.
        earlier = found.starts[q - 1]
        size = start - earlier
        for k in range(size):
            found.rows[start + k] = found.rows[earlier + k]
            for column in range(found.features.shape[1]):
                found.features[start + k, column] = found.features[earlier + k, column]
        context = QueryContext(
            last, before, log_length, gap, now, queries.active[q], first_total, second_total, log_first_total,
            np.float32(1), np.float32(1),
        )  # fmt: skip
        fill_timed(raw, size, context, items, found.features[start : start + size])
        for p in range(found.own_starts[q - 1], own):
            found.own_moments[own + p - found.own_starts[q - 1]] = found.own_moments[p]
            found.own_candidates[own + p - found.own_starts[q - 1]] = found.own_candidates[p] + size
        for p in range(found.world_starts[q - 1], world):
            found.world_moments[world + p - found.world_starts[q - 1]] = found.world_moments[p]
            found.world_candidates[world + p - found.world_starts[q - 1]] = found.world_candidates[p] + size
        for k in range(SHOWN):
            found.followers[q, k] = found.followers[q - 1, k]
        found.starts[q + 1] = start + size
        found.own_starts[q + 1] = 2 * own - found.own_starts[q - 1]
        found.world_starts[q + 1] = 2 * world - found.world_starts[q - 1]
        return

    scratch.mark[0] += 1
    mark = scratch.mark[0]
    if limits.exclude_seen:
        for d in range(length):
            scratch.banned[histories.rows[slot, d]] = mark
        for b in range(queries.positions[q]):
            if clicks.slots[b] == slot:
                scratch.banned[clicks.rows[b]] = mark

    if seen.on:
        for s in range(seen.starts[q], seen.starts[q + 1]):
            scratch.banned[seen.rows[s]] = mark

    # Candidates
    rows, blocked = found.rows, items.blocked
    c = start
    looks = not given or wanted.starts[q + 1] == wanted.starts[q]
    near = sum_near(tables.near, items, histories, slot, n, length, mark, scratch)
    if looks:
        begin = first_place(tables.first, last)
        others = tables.first.others[begin : begin + tables.first.used[last]]
        for place in range(len(others)):
            c = add_candidate(others[place], c, mark, rows, blocked, scratch)
        begin = first_place(tables.second, before)
        end = begin + tables.second.used[before]
        others, counts = tables.second.others[begin:end], tables.second.counts[begin:end]
        c = add_best(others, counts, SECOND_MAX, c, mark, rows, blocked, scratch)
        others, counts = scratch.near_rows[:near], scratch.near_scores[:near]
        c = add_best(others, counts, NEAR_MAX, c, mark, rows, blocked, scratch)
        c = add_best(others, scratch.taste_scores[:near], NEAR_MAX, c, mark, rows, blocked, scratch)
        for half_life in range(len(items.weights)):
            taken = 0
            for place in range(items.top.shape[1]):
                row = items.top[half_life, place]
                if row == 0 or taken == POPULAR_MAX:
                    break
                if scratch.banned[row] != mark:
                    c = add_candidate(row, c, mark, rows, blocked, scratch)
                    taken += 1
        if not limits.exclude_seen:
            for d in range(length):
                c = add_candidate(histories.rows[slot, (n - 1 - d) % H], c, mark, rows, blocked, scratch)
        if more.on:
            for k in range(more.starts[q], more.starts[q + 1]):
                c = add_candidate(more.rows[k], c, mark, rows, blocked, scratch)
    else:
        for k in range(wanted.starts[q], wanted.starts[q + 1]):
            c = add_candidate(wanted.rows[k], c, mark, rows, blocked, scratch)
    if limits.recalls and slot >= 0:
        own_end, world_end = recall(
            tables.first, histories, log, index, slot, n, length, last, now, gap, queries.own_slots[q], mark, found,
            own, world, scratch, limits,
        )  # fmt: skip
        if looks:
            for p in range(own, own_end):
                c = add_candidate(log.items[found.own_moments[p]], c, mark, rows, blocked, scratch)
            for p in range(world, world_end):
                c = add_candidate(log.items[found.world_moments[p]], c, mark, rows, blocked, scratch)
        own = point(log, mark, found.own_moments, found.own_candidates, own, own_end, scratch)
        world = point(log, mark, found.world_moments, found.world_candidates, world, world_end, scratch)
    found.starts[q + 1], found.own_starts[q + 1], found.world_starts[q + 1] = c, own, world

    # Features
    size = c - start
    for k in range(size):
        raw.rows[k] = found.rows[start + k]
    for part in (raw.first, raw.second, raw.third, raw.before, raw.near, raw.taste, raw.times):
        part[:size] = 0
    add_counts(tables.first, last, raw.first, start, mark, scratch)
    add_counts(tables.second, before, raw.second, start, mark, scratch)
    add_counts(tables.third, third, raw.third, start, mark, scratch)
    add_counts(tables.before, last, raw.before, start, mark, scratch)
    most = np.float32(0)
    taste_most = np.float32(0)
    for k in range(near):
        row = scratch.near_rows[k]
        if scratch.stamps[row] == mark:
            raw.near[scratch.places[row] - start] = scratch.near_scores[k]
            most = max(most, scratch.near_scores[k])
            raw.taste[scratch.places[row] - start] = scratch.taste_scores[k]
            taste_most = max(taste_most, scratch.taste_scores[k])
    for d in range(length):
        at = (n - 1 - d) % H
        row = histories.rows[slot, at]
        if row > 0 and scratch.stamps[row] == mark:
            k = scratch.places[row] - start
            if raw.times[k] == 0:
                raw.newest[k], raw.newest_at[k] = d, histories.times[slot, at]
            raw.times[k] += np.float32(1)
            raw.oldest_at[k] = histories.times[slot, at]
    context = QueryContext(
        last, before, log_length, gap, now, queries.active[q], first_total, second_total, log_first_total, most,
        taste_most,
    )  # fmt: skip
    fill_columns(raw, size, context, items, found.features[start:c])
    note_followers(tables.first, last, found.followers[q])


@inlined
def add_counts(table: Table, row: int, sums: NDArray[np.float32], start: int, mark: int, scratch: Scratch) -> None:
    """What a table holds of a row, for those that are candidates."""
    begin, used = first_place(table, row), table.used[row]
    others, counts = table.others[begin : begin + used], table.counts[begin : begin + used]
    for place in range(used):
        other = others[place]
        if scratch.stamps[other] == mark:
            sums[scratch.places[other] - start] += counts[place]


@inlined
def sum_near(
    table: Table, items: Items, histories: HistoryRings, slot: int, n: int, length: int, mark: int, scratch: Scratch
) -> int:
    """Votes of the latest NEAR clicks for what stands near them: each by NEAR_DECAY^age, and by the roots of both
    items' popularities; and of the latest TASTE_LATEST, by TASTE_DECAY^age: what a user likes lasts longer than what
    they are at -> how many rows there are in `near_rows`, with both scores."""
    H = histories.rows.shape[1]
    banned, blocked = scratch.banned, items.blocked
    found = 0
    weight = lasting = 1.0
    for d in range(min(length, TASTE_LATEST)):
        row = histories.rows[slot, (n - 1 - d) % H]
        root = math.sqrt(items.clicks[row] + EXPECTED_MIN)
        vote, taste = np.float32(weight / root) if d < NEAR else np.float32(0), np.float32(lasting / root)
        weight *= NEAR_DECAY
        lasting *= TASTE_DECAY
        if row == 0:
            continue
        begin, used = first_place(table, row), table.used[row]
        others, counts = table.others[begin : begin + used], table.counts[begin : begin + used]
        for place in range(used):
            other = others[place]
            if banned[other] == mark or blocked[other]:
                continue  # before the best are chosen, so that a user who has seen nearly everything gets the rest
            if scratch.near_stamps[other] != mark:
                scratch.near_stamps[other] = mark
                scratch.near_sums[other] = 0
                scratch.taste_sums[other] = 0
                scratch.near_rows[found] = other
                found += 1
            scratch.near_sums[other] += vote * counts[place]
            scratch.taste_sums[other] += taste * counts[place]
    for k in range(found):
        row = scratch.near_rows[k]
        root = math.sqrt(items.clicks[row] + EXPECTED_MIN)
        scratch.near_scores[k] = scratch.near_sums[row] / np.float32(root)
        scratch.taste_scores[k] = scratch.taste_sums[row] / np.float32(root)
    return found


@inlined
def recall(
    first: Table,
    histories: HistoryRings,
    log: Log,
    index: Index,
    slot: int,
    n: int,
    length: int,
    last: int,
    now: float,
    gap: float,
    own_slot: int,
    mark: int,
    found: GatherBuffers,
    own: int,
    world: int,
    scratch: Scratch,
    limits: Limits,
) -> tuple[int, int]:
    """Finds the moments that are compared with the present one: the user's own, and those of all users that followed
    an item of the same bucket. Writes their places in the log to `found`, and returns where both kinds end there."""
    H, size, total = histories.rows.shape[1], len(log.items), log.total[0]
    stamps, own_moments = scratch.moment_stamps, found.own_moments
    for d in range(min(length, limits.latest)):
        number = histories.numbers[slot, (n - 1 - d) % H]
        if held(total, limits.moments, number):
            at = number % size
            stamps[at] = mark
            own_moments[own] = at
            own += 1
    if own_slot >= 0:
        buckets = index.own.shape[2]
        own = look_into(
            index.own[own_slot, BY_ITEM, bucket_of_item(last, buckets)],
            total,
            limits.moments,
            size,
            mark,
            stamps,
            own_moments,
            own,
        )
        clock_scores(index.rotation, now, gap, scratch.clock)
        for _ in range(min(limits.probes, buckets)):
            best = 0
            for b in range(1, buckets):
                if scratch.clock[b] > scratch.clock[best]:
                    best = b
            own = look_into(
                index.own[own_slot, BY_CLOCK, best], total, limits.moments, size, mark, stamps, own_moments, own
            )
            scratch.clock[best] = -np.inf
    if last > 0:
        bucket = bucket_of_item(last, len(index.world))
        for r in range(min(index.world_counts[bucket], index.world.shape[1])):
            number = index.world[bucket, r]
            if held(total, limits.moments, number):
                at = number % size
                # What too few users have done is shown to no other.
                few = len(limits.pairs.keys) > 0 and not holds(first, log.last[at], log.items[at])
                if log.last[at] > 0 and not log.private[at] and not few:
                    found.world_moments[world] = at
                    world += 1
    return own, world


@inlined
def look_into(
    bucket: NDArray[np.int64],
    total: int,
    most: int,
    size: int,
    mark: int,
    stamps: NDArray[np.int64],
    moments: NDArray[np.int64],
    own: int,
) -> int:
    """Adds the moments of one of the user's buckets that were not found before. Returns how many there are."""
    for r in range(len(bucket)):
        number = bucket[r]
        if held(total, most, number):
            at = number % size
            if stamps[at] != mark:
                stamps[at] = mark
                moments[own] = at
                own += 1
    return own


@inlined
def point(
    log: Log,
    mark: int,
    moments: NDArray[np.int64],
    candidates: NDArray[np.int64],
    start: int,
    end: int,
    scratch: Scratch,
) -> int:
    """Notes the candidate that each moment points at, and drops moments that point at none. Returns where they end."""
    kept = start
    for p in range(start, end):
        row = log.items[moments[p]]
        if row > 0 and scratch.stamps[row] == mark:
            moments[kept], candidates[kept] = moments[p], scratch.places[row]
            kept += 1
    return kept


@inlined
def note_followers(table: Table, row: int, best: NDArray[np.int32]) -> None:
    """Writes the items with the largest counts of a row to `best`, best first; 0 beyond."""
    best[:] = 0
    begin, used = first_place(table, row), table.used[row]
    others, counts = table.others[begin : begin + used], table.counts[begin : begin + used]
    for k in range(min(used, len(best))):
        heaviest = -1
        for place in range(used):
            taken = False
            for j in range(k):
                if best[j] == others[place]:
                    taken = True
            if not taken and (heaviest < 0 or counts[place] > counts[heaviest]):
                heaviest = place
        best[k] = others[heaviest]
