"""Moments: each click with the clicks before it; and the index in which similar moments are looked up.

Letters: `M` moments held, `S` users whose older moments are indexed, `B` buckets, `R` places of a bucket.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import inlined, kernel

DAY_S, WEEK_S = 86_400.0, 604_800.0
GAP_SCALE = 4.0  # of log(1 + seconds): gaps whose ratio is e^4 are unlike each other
CLOCK = 6  # numbers that say when a moment was: hour and weekday as angles, the gap before it
BY_ITEM, BY_CLOCK = 0, 1  # the two sets of buckets of a user
MIX = 2_654_435_761  # Knuth's multiplicative hashing (vol. 3, 6.4): 2^32 by the golden ratio


class Log(NamedTuple):
    """The latest M moments of all users, in a ring: 33 bytes each.

    A moment has a number, counted from 1 in order of arrival. It stands at its number modulo M until M more arrive.
    """

    items: NDArray[np.int32]  # (M,) clicked then
    last: NDArray[np.int32]  # (M,) the item clicked before; 0: none
    before: NDArray[np.int32]  # (M,) the item before that
    times: NDArray[np.float64]  # (M,) seconds since 1970
    gaps: NDArray[np.float32]  # (M,) log(1 + seconds since the click before)
    user_hashes: NDArray[np.int64]  # (M,) as `stream.user_ids.hash_of_digest` says; 0: of no user
    private: NDArray[np.bool_]  # (M,) hidden from all other users' recall
    total: NDArray[np.int64]  # (1,) moments that ever arrived


class Index(NamedTuple):
    """Numbers of moments, in buckets that are rings of the latest R; 8 bytes an entry.

    `own` has, for S users, the moments older than the latest ones, which are always compared: in buckets by the item
    before, and in buckets by time through angular hashing (Andoni et al. 2015), where neighbouring buckets are searched
    too. `world` has the moments of all users in buckets by the item before.
    """

    own: NDArray[np.int64]  # (S, 2, B, R) numbers; 0: free
    own_counts: NDArray[np.int64]  # (S, 2, B) ever put into each bucket
    world: NDArray[np.int64]  # (WB, WR)
    world_counts: NDArray[np.int64]  # (WB,)
    rotation: NDArray[np.float64]  # (CLOCK, B / 2) drawn once, from the seed


class Keys(NamedTuple):
    """The parts of moments' keys: arrays (...) of equal length. The Reformer's state is one more part."""

    last: NDArray[np.int32]  # rows of the clicks before; 0 where there was none
    before: NDArray[np.int32]  # rows of the ones before those
    times: NDArray[np.float64]  # seconds since 1970
    gaps: NDArray[np.float32]  # log(1 + seconds since the click before)

    def part(self, start: int, stop: int) -> "Keys":
        """Returns the keys from `start` up to `stop`."""
        return Keys(self.last[start:stop], self.before[start:stop], self.times[start:stop], self.gaps[start:stop])


class Hits(NamedTuple):
    """Moments found for N queries, flat. Those of query q are from starts[q] up to starts[q + 1]."""

    starts: NDArray[np.int64]  # (N + 1,)
    moments: NDArray[np.int64]  # (P,), positions in the log's arrays
    candidates: NDArray[np.int64]  # (P,), position among all C candidates of the one pointed at; −1 for none

    def part(self, start: int, stop: int, first: int) -> "Hits":
        """Returns the hits of the queries from `start` up to `stop`, whose candidates begin at `first`."""
        p, r = int(self.starts[start]), int(self.starts[stop])
        return Hits(self.starts[start : stop + 1] - p, self.moments[p:r], self.candidates[p:r] - first)


def empty_log(held: int) -> Log:
    """Returns a log with room for `held` moments."""
    return Log(
        np.zeros(held, np.int32),
        np.zeros(held, np.int32),
        np.zeros(held, np.int32),
        np.zeros(held),
        np.zeros(held, np.float32),
        np.zeros(held, np.int64),
        np.zeros(held, np.bool_),
        np.zeros(1, np.int64),
    )


def empty_index(users: int, buckets: int, ring: int, *, world_buckets: int, world_ring: int, seed: int) -> Index:
    """Returns an index for `users` users, with `buckets` buckets of `ring` places each; and that of all users."""
    rotation = np.random.default_rng(seed).standard_normal((CLOCK, buckets // 2))
    return Index(
        np.zeros((users, 2, buckets, ring), np.int64),
        np.zeros((users, 2, buckets), np.int64),
        np.zeros((world_buckets, world_ring), np.int64),
        np.zeros(world_buckets, np.int64),
        rotation,
    )


@inlined
def held(total: int, size: int, number: int) -> bool:
    """Returns whether a moment is held when `total` ever arrived and the latest `size` are held: later ones are not."""
    return number > 0 and total - size < number <= total


@inlined
def bucket_of_item(row: int, buckets: int) -> int:
    """Returns the bucket of the moments that followed this item."""
    return ((int(row) * MIX) & 0xFFFFFFFF) * buckets >> 32


@inlined
def clock_scores(rotation: NDArray[np.float64], time: float, gap: float, scores: NDArray[np.float64]) -> None:
    """Writes how well a moment fits each bucket by time to `scores` (B,)."""
    day, week, apart = time % DAY_S * (2 * math.pi / DAY_S), time % WEEK_S * (2 * math.pi / WEEK_S), gap / GAP_SCALE
    clock = (
        math.cos(day),
        math.sin(day),
        math.cos(week) / 2,
        math.sin(week) / 2,
        math.cos(apart) / 2,
        math.sin(apart) / 2,
    )
    half = rotation.shape[1]
    for b in range(half):
        scores[b] = 0.0
        for d in range(CLOCK):
            scores[b] += clock[d] * rotation[d, b]
        scores[b + half] = -scores[b]


@inlined
def append(log: Log, row: int, last: int, before: int, time: float, gap: float, user_hash: int) -> int:
    """Appends a moment to the log. Returns its number."""
    log.total[0] += 1
    number = int(log.total[0])
    at = number % len(log.items)
    log.items[at], log.last[at], log.before[at] = row, last, before
    log.times[at], log.gaps[at] = time, np.float32(gap)
    log.user_hashes[at], log.private[at] = user_hash, False
    return number


@inlined
def put_world(index: Index, log: Log, number: int) -> None:
    """Indexes a moment for all users: it is found by each who has just clicked the item that stood before it."""
    bucket = bucket_of_item(log.last[number % len(log.items)], len(index.world))
    index.world[bucket, index.world_counts[bucket] % index.world.shape[1]] = number
    index.world_counts[bucket] += 1


@inlined
def put_own(index: Index, log: Log, slot: int, number: int, scores: NDArray[np.float64]) -> None:
    """Indexes a moment for its user, once it is no longer among the user's latest. scores (B,): working memory."""
    at = number % len(log.items)
    buckets, ring = index.own.shape[2], index.own.shape[3]
    by_item = bucket_of_item(log.last[at], buckets)
    clock_scores(index.rotation, log.times[at], log.gaps[at], scores)
    by_clock = 0
    for b in range(1, buckets):
        if scores[b] > scores[by_clock]:
            by_clock = b
    index.own[slot, BY_ITEM, by_item, index.own_counts[slot, BY_ITEM, by_item] % ring] = number
    index.own_counts[slot, BY_ITEM, by_item] += 1
    index.own[slot, BY_CLOCK, by_clock, index.own_counts[slot, BY_CLOCK, by_clock] % ring] = number
    index.own_counts[slot, BY_CLOCK, by_clock] += 1


@kernel
def forget_items(log: Log, gone: NDArray[np.bool_]) -> None:
    """Removes items that lost their rows, gone (V,), from all moments."""
    for at in range(min(log.total[0] + 1, len(log.items))):
        if gone[log.items[at]]:
            log.items[at] = 0
        if gone[log.last[at]]:
            log.last[at] = 0
        if gone[log.before[at]]:
            log.before[at] = 0


def forget_hash(log: Log, user_hash: int) -> NDArray[np.int64]:
    """Clears a user's moments. Returns their places (K,) in the log."""
    places = np.flatnonzero(log.user_hashes == user_hash)
    for part in log[:-1]:
        part[places] = 0
    return places


def clear_slot(index: Index, slot: int) -> None:
    """Clears the slot of a user's older moments."""
    index.own[slot] = 0
    index.own_counts[slot] = 0


def log_to_state(log: Log) -> dict[str, NDArray[Any]]:
    """Returns the moments that are held, oldest first."""
    places = places_held(log)
    arrays = {name: getattr(log, name)[places] for name in log._fields[:-1]}
    return arrays | {"total": log.total.copy()}


def load_log(log: Log, arrays: dict[str, NDArray[Any]]) -> None:
    """Loads what `log_to_state` returned; the latest, if there is room for fewer."""
    log.total[:] = arrays["total"]
    kept = min(len(arrays["items"]), len(log.items))
    places = np.arange(log.total[0] - kept + 1, log.total[0] + 1) % len(log.items)
    for name in log._fields[:-1]:
        getattr(log, name)[places] = arrays[name][len(arrays[name]) - kept :]


def places_held(log: Log) -> NDArray[np.int64]:
    """Returns the places (K,) of the moments that are held, oldest first."""
    total, size = int(log.total[0]), len(log.items)
    places: NDArray[np.int64] = np.arange(max(1, total - size + 1), total + 1) % size
    return places


def index_to_state(index: Index, slots: int) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the index, for the first `slots` users."""
    own = {"own": index.own[:slots].copy(), "own_counts": index.own_counts[:slots].copy()}
    return own | {"world": index.world.copy(), "world_counts": index.world_counts.copy()}


def index_fits(index: Index, arrays: dict[str, NDArray[Any]]) -> bool:
    """Returns whether saved arrays have this index's shape; they have not after a change of settings."""
    return arrays["own"].shape[1:] == index.own.shape[1:] and arrays["world"].shape == index.world.shape


def load_index(index: Index, arrays: dict[str, NDArray[Any]]) -> None:
    """Loads what `index_to_state` returned."""
    slots = len(arrays["own"])
    index.own[:slots], index.own_counts[:slots] = arrays["own"], arrays["own_counts"]
    index.world[:], index.world_counts[:] = arrays["world"], arrays["world_counts"]
