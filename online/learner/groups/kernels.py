"""Loops over clicks of groups of users: counting, the best items of a query's groups, and columns of candidates.

Letters: `N` queries, `K` groups of a user, `C` candidates of all queries (flat), `V` rows of items, `G` columns.
"""

import math

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import kernel
from online.learner.facts.tables import Table, count, first_place
from online.learner.prune import insert

SMOOTHING = 3.0  # clicks that each group is taken to have made as expected
COLUMNS_COUNT = 8


@kernel
def count_clicks(
    table: Table, groups: NDArray[np.int64], rows: NDArray[np.int64], weights: NDArray[np.float64]
) -> None:
    """Counts clicks (n,) on rows of items in each of their users' groups (n, K), 0 beyond; each by its weight."""
    for n in range(len(rows)):
        for k in range(groups.shape[1]):
            count(table, groups[n, k], rows[n], weights[n])


@kernel
def find_best(
    table: Table,
    popular: NDArray[np.float64],
    total: float,
    unit: float,
    groups: NDArray[np.int64],
    blocked: NDArray[np.bool_],
    score: NDArray[np.float32],
    best: NDArray[np.float32],
    out: NDArray[np.int64],
) -> None:
    """Fills out (N, ·) with the items that stand out in queries' groups, best first, 0 beyond: by the largest of
    observed less expected clicks, by the root of those expected (Pearson's residual).

    Args:
        table: clicks by group, and item.
        popular: (V,) clicks by item, of all users.
        total: of them.
        unit: what a click of now weighs.
        groups: (N, K), 0 beyond.
        blocked: (V,) items that must not be listed.
        score: (V,) buffer of zeros.
        best: as wide as `out`; a buffer.
        out: filled.
    """
    smoothing = SMOOTHING * unit
    for q in range(len(groups)):
        held = 0
        for k in range(groups.shape[1]):
            group = groups[q, k]
            share = table.totals[group] / total if total > 0 else 0.0
            begin = first_place(table, group)
            for place in range(begin, begin + table.used[group]):
                row = table.others[place]
                if blocked[row]:
                    continue
                expected = share * popular[row]
                residual = (table.counts[place] - expected) / math.sqrt((expected + smoothing) * unit)
                score[row] = max(score[row], np.float32(residual))
        for k in range(groups.shape[1]):
            group = groups[q, k]
            begin = first_place(table, group)
            for place in range(begin, begin + table.used[group]):
                row = table.others[place]
                if score[row] > 0:
                    if held < len(best) or score[row] > best[held - 1]:
                        held = insert(best, out[q], held, score[row], row)
                    score[row] = 0
        out[q, held:] = 0


@kernel
def fill_groups(
    table: Table,
    popular: NDArray[np.float64],
    total: float,
    unit: float,
    groups: NDArray[np.int64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    log_history: NDArray[np.float32],
    observed: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Fills out (C, G) as `COLUMNS` (columns.py) declares them; 0 for queries without groups.

    Args:
        table: clicks by group, and item.
        popular: (V,) clicks by item, of all users.
        total: of them.
        unit: what a click of now weighs.
        groups: (N, K), 0 beyond.
        starts: (N + 1,) where queries' candidates begin.
        rows: (C,).
        log_history: (C,) log(1 + the user's clicks) / 4.
        observed: (V,) buffer of zeros.
        out: filled.
    """
    smoothing = SMOOTHING * unit
    for q in range(len(groups)):
        begin, end = starts[q], starts[q + 1]
        out[begin:end] = 0
        known = 0
        for k in range(groups.shape[1]):
            group = groups[q, k]
            if group == 0:
                continue
            share = table.totals[group] / total if total > 0 else 0.0
            first = first_place(table, group)
            last = first + table.used[group]
            for place in range(first, last):
                observed[table.others[place]] = table.counts[place]
            for c in range(begin, end):
                x, clicks, expected = out[c], observed[rows[c]], share * popular[rows[c]]
                lift = np.float32(math.log((clicks + smoothing) / (expected + smoothing)))
                residual = np.float32((clicks - expected) / math.sqrt((expected + smoothing) * unit))
                x[0] += lift
                x[1] = lift if known == 0 else max(x[1], lift)
                x[2] += np.float32(clicks / unit)
                x[3] = max(x[3], residual)
            for place in range(first, last):
                observed[table.others[place]] = 0
            known += 1
        if known == 0:
            continue
        for c in range(begin, end):
            x, few = out[c], np.float32(math.exp(-4 * log_history[c]))
            x[0] /= known
            x[2] = math.log1p(x[2] / known) / 4
            x[3] = math.log1p(x[3])
            for column in range(4):
                x[4 + column] = x[column] * few
