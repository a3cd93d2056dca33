"""Which candidates the networks get to see: the best of each query by a linear score.

Letters: `N` queries, `C` candidates of all of them (flat), `K` candidates kept of a query.
"""

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import allocating, inlined, kernel


@inlined
def comparable(score: np.float32) -> np.float32:
    """Returns the score, or −inf for NaN: broken weights must not seem to predict the clicked item."""
    return np.float32(-np.inf) if np.isnan(score) else score


@inlined
def insert(best: NDArray[np.float32], places: NDArray[np.int64], held: int, score: np.float32, place: int) -> int:
    """Inserts a place by its score among the best ones, `held` of them so far, best first, of equal ones the first.
    Returns how many are."""
    K = len(best)
    at = held if held < K else K - 1
    while at > 0 and best[at - 1] < score:
        best[at], places[at] = best[at - 1], places[at - 1]
        at -= 1
    best[at], places[at] = score, place
    return min(held + 1, K)


@allocating
def keep_best(starts: NDArray[np.int64], scores: NDArray[np.float32], kept: NDArray[np.int64]) -> None:
    """Fills kept (N, K) with the positions among all C of each query's K best by `scores` (C,), best first, of equal
    ones the first; −1 where there are no more."""
    K = kept.shape[1]
    best = np.empty(K, np.float32)
    for q in range(len(kept)):
        held = 0
        for c in range(starts[q], starts[q + 1]):
            score = comparable(scores[c])
            if held < K or score > best[held - 1]:
                held = insert(best, kept[q], held, score, c)
        kept[q, held:] = -1


@kernel
def put_inputs(
    places: NDArray[np.int64],
    rows: NDArray[np.int32],
    features: NDArray[np.float32],
    lifts: NDArray[np.float32],
    own: NDArray[np.float32],
    world: NDArray[np.float32],
    items: NDArray[np.int64],
    inputs: NDArray[np.float32],
) -> None:
    """Fills inputs (N · K, F) with the features of candidates `places` (N, K), positions among all C: features (C, G),
    lifts (C,), soft counts of both memories (C, ·), and 0 as the network's logit; all 0 for −1. Fills items (N, K) with
    their rows, 0 for −1."""
    N, K = places.shape
    G, H, W = features.shape[1], own.shape[1], world.shape[1]
    for q in range(N):
        for k in range(K):
            c, x = places[q, k], inputs[q * K + k]
            if c < 0:
                items[q, k] = 0
                for f in range(len(x)):
                    x[f] = 0
                continue
            items[q, k] = rows[c]
            for f in range(G):
                x[f] = features[c, f]
            x[G] = lifts[c]
            for f in range(H):
                x[G + 1 + f] = own[c, f]
            for f in range(W):
                x[G + 1 + H + f] = world[c, f]
            x[G + 1 + H + W] = 0


@kernel
def put_columns(places: NDArray[np.int64], columns: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Fills the first M rows of out (·, G) with columns (C, G) of candidates at places (M,); 0 for −1."""
    for m in range(len(places)):
        c = places[m]
        for g in range(out.shape[1]):
            out[m, g] = columns[c, g] if c >= 0 else np.float32(0)


def columns_at(places: NDArray[np.int64], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns columns (C, G) of candidates at places (N, K), (N, K, G); 0 for −1."""
    out = np.empty((places.size, columns.shape[1]), np.float32)
    put_columns(places.reshape(-1), columns, out)
    return out.reshape(*places.shape, -1)


@kernel
def rank_behind(
    starts: NDArray[np.int64],
    scores: NDArray[np.float32],
    kept: NDArray[np.int64],
    targets: NDArray[np.int64],
    ranks: NDArray[np.float64],
) -> None:
    """Fills ranks (N,) for targets (N,), positions among all C, that are not kept: they rank after all kept candidates,
    by their scores, where half of the ties count as higher. A target of −1 leaves the rank as it is."""
    for q in range(len(kept)):
        target = targets[q]
        if target < 0:
            continue
        held = 0
        for k in range(kept.shape[1]):
            held += kept[q, k] >= 0
            if kept[q, k] == target:
                target = -1
        if target < 0:
            continue
        target_score, higher, tied = comparable(scores[target]), 0, 0
        for c in range(starts[q], starts[q + 1]):
            higher += int(comparable(scores[c]) > target_score)
            tied += int(comparable(scores[c]) == target_score)
        for k in range(held):  # kept candidates rank higher whatever their scores are
            higher -= int(comparable(scores[kept[q, k]]) > target_score)
            tied -= int(comparable(scores[kept[q, k]]) == target_score)
        ranks[q] = held + higher + (tied - 1) / 2


@kernel
def find_rows(
    starts: NDArray[np.int64], rows: NDArray[np.int32], target_rows: NDArray[np.int64], places: NDArray[np.int64]
) -> None:
    """Fills places (N,) with the positions of target_rows (N,), one a query, among all C; −1 for none, or row 0."""
    for q in range(len(target_rows)):
        places[q] = -1
        if target_rows[q] > 0:
            for c in range(starts[q], starts[q + 1]):
                if rows[c] == target_rows[q]:
                    places[q] = c
                    break


@allocating
def join_views(
    rows: NDArray[np.int32],
    kept: NDArray[np.int64],
    shares: NDArray[np.float32],
    users: NDArray[np.int64],
    best: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Joins the queries of each user, at several times, into one list, ordered by the mean of the shares.

    For a list that stands at all of these times, that order makes a click most likely.

    Args:
        rows: (C,) of all candidates.
        kept: (N, K) the candidates of each query; −1 where there are no more.
        shares: (N, K) their probabilities.
        users: (N,) the number of each query's user, rising from 0.
        best: (U, K') filled with rows, best first; 0 where there are no more.
        scores: (U, K') filled with their scores.
    """
    N, K = kept.shape
    start = 0
    while start < N:
        user, stop = users[start], start
        while stop < N and users[stop] == user:
            stop += 1
        found_rows = np.zeros((stop - start) * K, np.int64)
        sums = np.zeros(len(found_rows), np.float32)
        count = 0
        for q in range(start, stop):
            for k in range(K):
                if kept[q, k] < 0:
                    break
                row, at = rows[kept[q, k]], 0
                while at < count and found_rows[at] != row:
                    at += 1
                if at == count:
                    found_rows[at] = row
                    count += 1
                sums[at] += shares[q, k] / np.float32(stop - start)
        order = np.argsort(-sums[:count], kind="mergesort")
        for k in range(best.shape[1]):
            best[user, k] = found_rows[order[k]] if k < count else 0
            scores[user, k] = sums[order[k]] if k < count else np.float32(-np.inf)
        start = stop
