"""Lists of the items nearest to each in content, kept while items come and go, so that a query only joins the lists of
its user's latest items. (To compare a query with all items took most of what content cost.)

An item is compared when its record comes, and at its first click. Items that share features with it are found in
rings: of each feature the RING latest items that have it, and as many clicked ones. Those whose shared features weigh
most are compared exactly, and each enters the other's list if it is near enough. An entry notes the version of the item
that it names; one of an earlier version is passed over, so that an item that changes or disappears need not be looked
for.

Letters: `S` slots, `F` features, `K` entries of a list, `N` queries, `L` latest items.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.content.kernels import (
    PROFILE_DECAY,
    SUITING_FACTOR,
    ContentArrays,
    dot,
    slot_of,
)
from online.learner.facts.jit import inlined, kernel, summing
from online.learner.prune import insert

HELD = 16  # K, of each kind: clicked items, and items without a click
NEAREST, NEW_SUITING = 12, 12  # candidates of a query, of each kind; at most LOOKED_AT
RING = 32  # items of each feature, of each kind the latest
LOOKED_AT = 64  # of each kind, that are compared exactly
#: What likeness to the last item counts, beside 1: a profile of unlike items has about the length 1.9.
OF_PROFILE = 0.53
CLICKED, NEW = 0, 1  # kinds


class NearArrays(NamedTuple):
    """Lists and rings."""

    others: NDArray[np.int32]  # (S, 2, K) slots, by kind, in no order; 0: none
    alike: NDArray[np.float32]  # (S, 2, K) cosines
    as_of: NDArray[np.uint16]  # (S, 2, K) versions of the others
    versions: NDArray[np.uint16]  # (S,)
    compared: NDArray[np.bool_]  # (S,) since the item's content and the weights of features changed last
    rings: NDArray[np.int32]  # (2, F, RING) slots, by kind; 0: none
    ends: NDArray[np.int32]  # (2, F) items that each ring ever took


class NearScratch(NamedTuple):
    """Working memory: an entry whose stamp is not the present mark is unset."""

    mark: NDArray[np.int64]  # (1,)
    stamps: NDArray[np.int64]  # (S,)
    sums: NDArray[np.float32]  # (S,)
    found: NDArray[np.int64]  # (S,)
    sides: NDArray[np.float32]  # (F,) zeros
    best: NDArray[np.float32]  # (2, LOOKED_AT)
    places: NDArray[np.int64]  # (2, LOOKED_AT)


@inlined
def add_near(arrays: ContentArrays, near: NearArrays, slot: int, kind: int, other: int, alike: np.float32) -> None:
    """Enters an item in another's list, in place of what it said before, of what is gone, or of the least alike one."""
    worst, least = -1, alike
    for k in range(near.others.shape[2]):
        held = near.others[slot, kind, k]
        if held == other:
            worst, least = k, np.float32(-np.inf)
            break
        gone = held == 0 or near.as_of[slot, kind, k] != near.versions[held]
        gone = gone or (kind == NEW and arrays.clicked[held])
        of_held = np.float32(-2) if gone else near.alike[slot, kind, k]
        if of_held < least:
            worst, least = k, of_held
    if worst >= 0:
        near.others[slot, kind, worst], near.alike[slot, kind, worst] = other, alike
        near.as_of[slot, kind, worst] = near.versions[other]


@inlined
def find_sharing(
    arrays: ContentArrays,
    near: NearArrays,
    slot: int,
    kind: int,
    weights: NDArray[np.float32],
    with_feature: NDArray[np.int32],
    scratch: NearScratch,
) -> int:
    """Sums, for the items that the rings of an item's features hold, what they share with it; fills `scratch.sides`
    with its weighted bag, times the weights; and enters it in the rings -> how many there are, in `scratch.found`."""
    rings, stamps, sums = near.rings, scratch.stamps, scratch.sums
    norm, size, mark, held = arrays.norms[slot], rings.shape[2], scratch.mark[0], 0
    for k in range(arrays.sizes[slot]):
        feature = arrays.bags[slot, k]
        square = weights[feature] * weights[feature]
        scratch.sides[feature] = square / norm if norm > 0 else np.float32(0)
        if k >= arrays.heads[slot] and with_feature[feature] > 2 * size:
            continue  # parts of words that many share weigh little, and most of the work would be theirs
        there = False
        for ring in range(2):
            for r in range(size):
                other = rings[ring, feature, r]
                if other == slot:
                    there = there or ring == kind
                elif other > 0 and not (ring == NEW and arrays.clicked[other]):  # those are in the other ring
                    if stamps[other] != mark:
                        stamps[other], sums[other], scratch.found[held] = mark, 0, other
                        held += 1
                    sums[other] += square
        if not there:
            rings[kind, feature, near.ends[kind, feature] % size] = slot
            near.ends[kind, feature] += 1
    return held


@inlined
def best_of_kinds(arrays: ContentArrays, held: int, scratch: NearScratch) -> tuple[int, int]:
    """Fills `scratch.places` with the found items, `held` of them, that share most, by kind -> how many of each."""
    best, places = scratch.best, scratch.places
    clicked = new = 0
    for k in range(held):
        other = scratch.found[k]
        if not arrays.known[other]:
            continue
        score = scratch.sums[other] / max(arrays.norms[other], np.float32(1e-6))
        if arrays.clicked[other]:
            if clicked < best.shape[1] or score > best[CLICKED, clicked - 1]:
                clicked = insert(best[CLICKED], places[CLICKED], clicked, score, other)
        elif new < best.shape[1] or score > best[NEW, new - 1]:
            new = insert(best[NEW], places[NEW], new, score, other)
    return clicked, new


@inlined
def likeness(arrays: ContentArrays, slot: int, other: int, sides: NDArray[np.float32]) -> np.float32:
    """Returns the cosine of two items' bags, the first of which is in `sides`; where both have given vectors, the mean
    of it and of the vectors'."""
    alike = np.float32(0)
    if arrays.norms[other] > 0:
        for k in range(arrays.sizes[other]):
            alike += sides[arrays.bags[other, k]]
        alike /= arrays.norms[other]
    if arrays.given[slot] and arrays.given[other]:
        alike = np.float32(0.5) * (alike + dot(arrays.vectors[slot], arrays.vectors[other]))
    return alike


@summing
def compare(
    arrays: ContentArrays,
    near: NearArrays,
    slots: NDArray[np.int64],
    kind: int,
    given: NDArray[np.int64],
    weights: NDArray[np.float32],
    with_feature: NDArray[np.int32],
    scratch: NearScratch,
) -> None:
    """Compares items (n,) of one kind with those that share features with them, and fills both sides' lists.

    Args:
        arrays: of the items.
        near: changed.
        slots: (n,) of the items.
        kind: of the items, from now on.
        given: (n, ·) slots that are compared too; 0: none.
        weights: (F,) of features in cosines.
        with_feature: (F,) items with each feature.
        scratch: buffers.
    """
    for n in range(len(slots)):
        slot = slots[n]
        scratch.mark[0] += 1
        scratch.stamps[slot] = scratch.mark[0]
        held = find_sharing(arrays, near, slot, kind, weights, with_feature, scratch)
        for k in range(given.shape[1]):
            other = given[n, k]
            if other > 0 and scratch.stamps[other] != scratch.mark[0]:
                scratch.stamps[other], scratch.found[held] = scratch.mark[0], other
                scratch.sums[other] = np.float32(np.inf)
                held += 1
        counts = best_of_kinds(arrays, held, scratch)
        for of_kind in range(2):
            for k in range(counts[of_kind]):
                other = scratch.places[of_kind, k]
                alike = likeness(arrays, slot, other, scratch.sides)
                add_near(arrays, near, slot, of_kind, other, alike)
                add_near(arrays, near, other, kind, slot, alike)
        for k in range(arrays.sizes[slot]):
            scratch.sides[arrays.bags[slot, k]] = 0
        near.compared[slot] = True


@inlined
def sum_lists(
    near: NearArrays,
    slots_of: NDArray[np.int32],
    rows_of: NDArray[np.int32],
    latest: NDArray[np.int64],
    scratch: NearScratch,
) -> int:
    """Sums the cosines of the items in the lists of some rows (L,), newest first -> how many there are, in
    `scratch.found`, without these rows and without items that may not be listed."""
    stamps, sums = scratch.stamps, scratch.sums
    scratch.mark[0] += 1
    mark, held = scratch.mark[0], 0
    for d in range(len(latest)):
        stamps[slot_of(slots_of, latest[d])] = mark  # without a place in `found`
    weight = np.float32(OF_PROFILE)
    for d in range(len(latest)):
        slot = slot_of(slots_of, latest[d])
        share = weight + np.float32(1) if d == 0 else weight
        weight *= np.float32(PROFILE_DECAY)
        for kind in range(2):
            for k in range(near.others.shape[2] if slot > 0 else 0):
                other = near.others[slot, kind, k]
                if rows_of[other] == 0 or near.as_of[slot, kind, k] != near.versions[other]:
                    continue
                if stamps[other] != mark:
                    stamps[other], sums[other], scratch.found[held] = mark, 0, other
                    held += 1
                sums[other] += share * near.alike[slot, kind, k]
    return held


@kernel
def join_lists(
    arrays: ContentArrays,
    near: NearArrays,
    slots_of: NDArray[np.int32],
    rows_of: NDArray[np.int32],
    latest: NDArray[np.int64],
    lifts: NDArray[np.float32],
    scratch: NearScratch,
    clicked: NDArray[np.int64],
    new: NDArray[np.int64],
) -> None:
    """Fills clicked (N, NEAREST) and new (N, NEW_SUITING) with rows, 0 where there are no more: clicked items nearest
    to the query's latest ones, by the sum of their cosines, of later items more; and items without a click, likewise,
    but by how new items like them fare too. The latest items are left out.

    Args:
        arrays: of the items.
        near: their lists.
        slots_of: (V,) by row.
        rows_of: (S,) by slot; 0: not to be listed.
        latest: (N, L) rows, newest first, 0 beyond.
        lifts: (S,) of first clicks.
        scratch: buffers.
        clicked, new: filled.
    """
    best, found = scratch.best, scratch.found
    for q in range(len(latest)):
        clicked[q] = 0
        new[q] = 0
        held_old = held_new = 0
        for k in range(sum_lists(near, slots_of, rows_of, latest[q], scratch)):
            other = found[k]
            if arrays.clicked[other]:
                score, most = scratch.sums[other], clicked.shape[1]
                if held_old < most or score > best[0, held_old - 1]:
                    held_old = insert(best[0, :most], clicked[q], held_old, score, rows_of[other])
            else:
                score, most = np.float32(SUITING_FACTOR) * scratch.sums[other] + lifts[other], new.shape[1]
                if held_new < most or score > best[1, held_new - 1]:
                    held_new = insert(best[1, :most], new[q], held_new, score, rows_of[other])
