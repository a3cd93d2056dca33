"""Loops over items' content: vectors from bags, latest items of queries, and columns of candidates.

Letters: `S` slots, `D` width of vectors, `N` queries, `C` candidates of all of them (flat), `L` latest items, `P` items
of the pool, `G` columns.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import inlined, kernel, summing

PROFILE_DECAY = 0.85  # what an item counts in a user's profile, for each click since
LIFT_CLICKS = 3.0  # that each feature is taken to have had as expected
LIFT_MAX = 8.0
SUITING_FACTOR = 6.0  # what a cosine counts beside the lift of first clicks, among new items
COLUMNS_COUNT = 18
FEWER_THAN_ONE = math.log1p(0.5) / 4  # log(1 + clicks) / 4: a click's share may be left where one was taken back


class ContentArrays(NamedTuple):
    """What is known of the content of items, by slot."""

    bags: NDArray[np.uint16]  # (S, BAG_MAX)
    heads: NDArray[np.int16]  # (S,) features that are no parts of words; they come first
    sizes: NDArray[np.int16]  # (S,) features
    vectors: NDArray[np.float32]  # (S, D) of length 1; 0 where there is no content
    known: NDArray[np.bool_]  # (S,)
    published: NDArray[np.float64]  # (S,) seconds since 1970
    clicked: NDArray[np.bool_]  # (S,) whether the item had a click ever
    given: NDArray[np.bool_]  # (S,) whether its record has a vector, which is part of `vectors`
    norms: NDArray[np.float32]  # (S,) lengths of the weighted bags


class OfItems(NamedTuple):
    """What content says of items for all queries of a micro-batch: an entry whose stamp is not the mark is unset."""

    mark: NDArray[np.int64]  # (1,)
    stamps: NDArray[np.int64]  # (S,)
    values: NDArray[np.float32]  # (S, 5) cosine to what is popular, lift, lift of first clicks, learned mean, age


@kernel
def compose(
    arrays: ContentArrays,
    slots: NDArray[np.int64],
    weights: NDArray[np.float32],
    table: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Fills out (n, D) with the vectors of slots (n,): sums of the table's rows, weighted, of length 1 (0 where the bag
    is empty); and notes the lengths of the bags themselves."""
    for n in range(len(slots)):
        slot, vector = slots[n], out[n]
        vector[:] = 0
        square = np.float32(0)
        for k in range(arrays.sizes[slot]):
            feature = arrays.bags[slot, k]
            weight = weights[feature]
            square += weight * weight
            for d in range(len(vector)):
                vector[d] += weight * table[feature, d]
        arrays.norms[slot] = math.sqrt(square)
        to_length_1(vector)


@inlined
def to_length_1(vector: NDArray[np.float32]) -> None:
    """Scales a vector to length 1, in place; 0 stays 0."""
    square = np.float32(0)
    for d in range(len(vector)):
        square += vector[d] * vector[d]
    if square > 0:
        scale = np.float32(1 / math.sqrt(square))
        for d in range(len(vector)):
            vector[d] *= scale


@kernel
def latest_rows(
    rows: NDArray[np.int32],
    clicks: NDArray[np.int64],
    batch_slots: NDArray[np.int64],
    batch_rows: NDArray[np.int64],
    slots: NDArray[np.int64],
    positions: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Fills out (N, L) with the latest items of queries, newest first, 0 beyond.

    Args:
        rows: (users, H) rings of histories, without the micro-batch.
        clicks: (users,) clicks ever made.
        batch_slots: (B,) histories of the micro-batch's clicks.
        batch_rows: (B,) their items.
        slots: (N,) of the queries; −1: none.
        positions: (N,) clicks of the micro-batch before each query.
        out: filled.
    """
    H = rows.shape[1]
    for q in range(len(slots)):
        out[q] = 0
        slot, held = slots[q], 0
        if slot < 0:
            continue
        for b in range(positions[q] - 1, -1, -1):
            if held == out.shape[1]:
                break
            if batch_slots[b] == slot:
                out[q, held] = batch_rows[b]
                held += 1
        n = clicks[slot]
        for d in range(min(n, H, out.shape[1] - held)):
            out[q, held + d] = rows[slot, (n - 1 - d) % H]


@inlined
def slot_of(slots_of: NDArray[np.int32], row: int) -> int:
    """Returns the slot of a row; 0 for row 0."""
    return slots_of[row] if row > 0 else 0


@kernel
def profiles(
    arrays: ContentArrays,
    slots_of: NDArray[np.int32],
    latest: NDArray[np.int64],
    last: NDArray[np.float32],
    profile: NDArray[np.float32],
) -> None:
    """Fills last (N, D) with the vectors of queries' last items, and profile (N, D) with the sums of their latest
    items' vectors, decayed and of length 1. `slots_of`: (V,) by row; `latest`: (N, L) rows."""
    for q in range(len(latest)):
        last[q] = 0
        profile[q] = 0
        weight = np.float32(1)
        for d in range(latest.shape[1]):
            slot = slot_of(slots_of, latest[q, d])
            if slot > 0:
                for k in range(profile.shape[1]):
                    profile[q, k] += weight * arrays.vectors[slot, k]
                    if d == 0:
                        last[q, k] = arrays.vectors[slot, k]
            weight *= np.float32(PROFILE_DECAY)
        to_length_1(profile[q])


@inlined
def lift_of(arrays: ContentArrays, slot: int, lifts: NDArray[np.float32]) -> np.float32:
    """Returns the sum of features' lifts over a slot's bag, parts of words left out, within LIFT_MAX."""
    total = np.float32(0)
    for k in range(arrays.heads[slot]):
        total += lifts[arrays.bags[slot, k]]
    return max(np.float32(-LIFT_MAX), min(np.float32(LIFT_MAX), total))


@kernel
def lifts_of(
    arrays: ContentArrays, slots: NDArray[np.int64], lifts: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Fills out (n,) with the lifts of slots (n,)."""
    for n in range(len(slots)):
        out[n] = lift_of(arrays, slots[n], lifts)


@kernel
def add_clicks(
    arrays: ContentArrays,
    slots: NDArray[np.int64],
    clicks: NDArray[np.float32],
    firsts: NDArray[np.float32],
    unclicked: NDArray[np.int32],
) -> int:
    """Counts clicks on items (n,) for each of their features, and first clicks -> how many of these there were."""
    first_clicks = 0
    for n in range(len(slots)):
        slot = slots[n]
        first = not arrays.clicked[slot]
        first_clicks += first
        arrays.clicked[slot] = True
        for k in range(arrays.sizes[slot]):
            feature = arrays.bags[slot, k]
            clicks[feature] += np.float32(1)
            if first:
                firsts[feature] += np.float32(1)
                unclicked[feature] -= 1
    return first_clicks


@inlined
def put_sides(
    arrays: ContentArrays,
    slots_of: NDArray[np.int32],
    weights: NDArray[np.float32],
    latest: NDArray[np.int64],
    sides: NDArray[np.float32],
) -> np.float32:
    """Fills sides (features, 2), which are 0, with the weighted bags of the last item and of the profile, times the
    weights, so that sums over an item's bag are products. The last item's has length 1.

    Returns:
        One by the length of the profile's.
    """
    weight, square = np.float32(1), np.float32(0)
    for d in range(len(latest)):
        slot = slot_of(slots_of, latest[d])
        if slot > 0 and arrays.norms[slot] > 0:
            share = weight / arrays.norms[slot]
            for k in range(arrays.sizes[slot]):
                feature = arrays.bags[slot, k]
                value = share * weights[feature] * weights[feature]
                square += share * (value + np.float32(2) * sides[feature, 1])  # of the sum so far, and this
                sides[feature, 1] += value
                if d == 0:
                    sides[feature, 0] = value
        weight *= np.float32(PROFILE_DECAY)
    return np.float32(1 / math.sqrt(square)) if square > 0 else np.float32(0)


@inlined
def clear_sides(
    arrays: ContentArrays, slots_of: NDArray[np.int32], latest: NDArray[np.int64], sides: NDArray[np.float32]
) -> None:
    """Sets to 0 what `put_sides` has filled."""
    for d in range(len(latest)):
        slot = slot_of(slots_of, latest[d])
        for k in range(arrays.sizes[slot] if slot > 0 else 0):
            sides[arrays.bags[slot, k], 0] = 0
            sides[arrays.bags[slot, k], 1] = 0


@inlined
def cosines(
    arrays: ContentArrays, slot: int, sides: NDArray[np.float32], scale: np.float32
) -> tuple[np.float32, np.float32]:
    """Returns the cosines of an item's weighted bag to the last item's and to the profile."""
    of_last = np.float32(0)
    of_profile = np.float32(0)
    if arrays.norms[slot] > 0:
        for k in range(arrays.sizes[slot]):
            feature = arrays.bags[slot, k]
            of_last += sides[feature, 0]
            of_profile += sides[feature, 1]
        of_last /= arrays.norms[slot]
        of_profile *= scale / arrays.norms[slot]
    return of_last, of_profile


@inlined
def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """Returns the product of two vectors (D,)."""
    total = np.float32(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@inlined
def bag_mean(arrays: ContentArrays, slot: int, values: NDArray[np.float32]) -> np.float32:
    """Returns the sum of features' values over a slot's bag, by the length of the weighted bag."""
    total = np.float32(0)
    if arrays.norms[slot] > 0:
        for k in range(arrays.sizes[slot]):
            total += values[arrays.bags[slot, k]]
        total /= arrays.norms[slot]
    return total


@kernel
def add_gradients(
    arrays: ContentArrays,
    slots: NDArray[np.int64],
    gradients: NDArray[np.float32],
    weights: NDArray[np.float32],
    of_features: NDArray[np.float32],
    touched: NDArray[np.int32],
    of_vectors: NDArray[np.float32],
) -> int:
    """Adds to of_features (features,) and of_vectors (N, D) the gradients of the learned weights of features, and of
    `directions` times one.

    Args:
        arrays: of the items.
        slots: (N, K) of candidates; 0: none.
        gradients: (N, K) of a loss by their scores.
        weights: (features,) in cosines.
        of_features: added to.
        touched: filled with the features that have a gradient, some of them more than once; it has room for all
            features of all candidates.
        of_vectors: added to; the sums of candidates' vectors by their gradients, of those with a given vector.

    Returns:
        How many of `touched` are filled.
    """
    count = 0
    for n in range(len(slots)):
        for k in range(slots.shape[1]):
            slot, gradient = slots[n, k], gradients[n, k]
            if gradient == 0:
                continue
            if arrays.given[slot]:
                for d in range(of_vectors.shape[1]):
                    of_vectors[n, d] += gradient * arrays.vectors[slot, d]
            if arrays.norms[slot] > 0:
                share = gradient / arrays.norms[slot]
                for f in range(arrays.sizes[slot]):
                    feature = arrays.bags[slot, f]
                    if of_features[feature] == 0:
                        touched[count] = feature
                        count += 1
                    of_features[feature] += share * weights[feature]
    return count


@kernel
def softmax_gradients(
    scores: NDArray[np.float32], places: NDArray[np.int64], weights: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Fills out (N, K) with the gradients of the softmax's cross-entropy by scores (N, K), −inf where there are no more
    candidates: each share, less 1 for the one at places (N,), times weights (N,); 0 where a place is −1."""
    for n in range(len(scores)):
        out[n] = 0
        if places[n] < 0:
            continue
        largest = np.float32(-np.inf)
        for k in range(scores.shape[1]):
            largest = max(largest, scores[n, k])
        total = np.float32(0)
        for k in range(scores.shape[1]):
            out[n, k] = np.exp(scores[n, k] - largest)
            total += out[n, k]
        for k in range(scores.shape[1]):
            out[n, k] *= weights[n] / total
        out[n, places[n]] -= weights[n]


@kernel
def step_features(
    features: NDArray[np.float32],
    of_features: NDArray[np.float32],
    touched: NDArray[np.int32],
    with_feature: NDArray[np.int32],
    items_min: int,
    rate: float,
    epsilon: float,
) -> None:
    """Moves features (2, F), weights and their sums of squared gradients, one step of Adagrad, and clears their
    gradients.

    Args:
        features: changed.
        of_features: (F,) gradients; set to 0.
        touched: (n,) features with a gradient.
        with_feature: (F,) items with each feature.
        items_min: such items that a feature needs to have a weight.
        rate: of learning.
        epsilon: added to the root.
    """
    for n in range(len(touched)):
        feature = touched[n]
        gradient = of_features[feature]
        of_features[feature] = 0
        if gradient != 0 and with_feature[feature] >= items_min:
            features[1, feature] += gradient * gradient
            root = np.float32(math.sqrt(features[1, feature])) + np.float32(epsilon)
            features[0, feature] -= np.float32(rate) * gradient / root


@summing
def fill_content(
    arrays: ContentArrays,
    slots_of: NDArray[np.int32],
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    features: NDArray[np.float32],
    at: tuple[int, int],
    weights: NDArray[np.float32],
    latest: NDArray[np.int64],
    last: NDArray[np.float32],
    profile: NDArray[np.float32],
    popular: NDArray[np.float32],
    sides: NDArray[np.float32],
    now: NDArray[np.float64],
    lifts: NDArray[np.float32],
    first_lifts: NDArray[np.float32],
    learned: NDArray[np.float32],
    directions: NDArray[np.float32],
    of_items: OfItems,
    out: NDArray[np.float32],
) -> None:
    """Fills out (C, G) as `COLUMNS` (columns.py) declares them; 0 for items without content.

    Args:
        arrays: of the items.
        slots_of: (V,) by row.
        starts: (N + 1,) where queries' candidates begin.
        rows: (C,).
        features: (C, ·) counted features of the candidates.
        at: which of them are log(1 + clicks) / 4 of the item, and of the user.
        weights: (features,) in cosines.
        latest: (N, L) rows of the latest items.
        last: (N, D) vectors of the last items; they are used for items with a given vector.
        profile: (N, D) of the profiles, likewise.
        popular: (D,).
        sides: (features, 2) buffer of zeros.
        now: (N,) seconds since 1970.
        lifts: (features,) of clicks lately.
        first_lifts: (features,) of first clicks.
        learned: (features,) learned weights, times those in cosines.
        directions: (N, D) learned, for the queries.
        of_items: what is the same for all queries, while its mark stays.
        out: filled.
    """
    for q in range(len(starts) - 1):
        scale = put_sides(arrays, slots_of, weights, latest[q], sides)
        for c in range(starts[q], starts[q + 1]):
            x, slot = out[c], slots_of[rows[c]]
            if slot == 0 or not arrays.known[slot]:
                x[:] = 0
                continue
            vector, of_item = arrays.vectors[slot], of_items.values[slot]
            if of_items.stamps[slot] != of_items.mark[0]:
                of_items.stamps[slot] = of_items.mark[0]
                of_item[0] = dot(vector, popular)
                of_item[1] = lift_of(arrays, slot, lifts) / 4
                of_item[2] = lift_of(arrays, slot, first_lifts) / 4
                of_item[3] = bag_mean(arrays, slot, learned)
                of_item[4] = math.log1p(max(0.0, now[q] - arrays.published[slot]) / 3_600) / 4
            of_last, of_profile = cosines(arrays, slot, sides, scale)
            given = arrays.given[slot]
            if given:
                of_last = np.float32(0.5) * (of_last + dot(vector, last[q]))
                of_profile = np.float32(0.5) * (of_profile + dot(vector, profile[q]))
            log_clicks, log_history = features[c, at[0]], features[c, at[1]]
            few = np.exp(np.float32(-4) * log_clicks)  # 1 / (1 + clicks)
            new = np.float32(1) if log_clicks < FEWER_THAN_ONE else np.float32(0)
            age = of_item[4]  # as of the first query that has the item: a micro-batch spans little time
            x[0] = 1
            x[1] = of_last
            x[2] = of_profile
            x[3] = of_item[0]
            x[4] = of_item[1]
            x[5] = of_item[2]
            x[6] = new
            x[7] = few
            x[8] = age
            x[9] = of_last * few
            x[10] = of_profile * few
            x[11] = of_item[1] * few
            x[12] = of_item[2] * new
            x[13] = of_profile * log_history
            x[14] = of_profile * log_clicks
            x[15] = age * few
            x[16] = of_item[3]
            x[17] = dot(vector, directions[q]) if given else np.float32(0)
        clear_sides(arrays, slots_of, latest[q], sides)
