"""What is known of the worth of candidates, in one pass over the candidates and the history of each query.

Letters: `N` queries, `C` candidates of all of them (flat), `T` named event types, `W` columns, `S` slots of histories,
`H` clicks kept of a user, `V` rows of items.
"""

import math

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import called, kernel

ITEM_PRIOR, USER_PRIOR = 10.0, 5.0  # events, of the usual types, that each item and each user begins with
VALUE_PRIOR = 3.0  # events of the usual value, likewise
AGE_SCALE = 16.0  # of log(1 + seconds), so that it is of order 1


@called
def log_odds(count: float, total: float, share: float, prior: float) -> float:
    """Returns the log-odds of a type of which there were `count` events among `total`, smoothed by its usual share."""
    return math.log((count + prior * share) / (max(total - count, 0.0) + prior * (1.0 - share)))


@kernel
def fill_columns(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    slots: NDArray[np.int64],
    now: NDArray[np.float64],
    behind: NDArray[np.int64],
    history_rows: NDArray[np.int32],
    history_types: NDArray[np.uint8],
    history_times: NDArray[np.float64],
    history_values: NDArray[np.float32],
    clicks: NDArray[np.int64],
    named: NDArray[np.int64],
    lost: NDArray[np.float64],
    shares: NDArray[np.float64],
    counts: NDArray[np.float32],
    values: NDArray[np.float32],
    mean_value: float,
    value_max: float,
    half_life_s: float,
    places: NDArray[np.int64],
    of_user: NDArray[np.float64],
    of_items: NDArray[np.float32],
    stamps: NDArray[np.int64],
    mark: int,
    columns: NDArray[np.float32],
) -> None:
    """Fills columns (C, W), W = 5 T + 7, as OF_TYPES and OTHERS (facts.py) name them.

    Args:
        starts: (N + 1,) where each query's candidates begin.
        rows: (C,) of the candidates.
        slots: (N,) of the users' histories; −1: there is none.
        now: (N,) seconds since 1970.
        behind: (N,) clicks at the end of each history that come after the query.
        history_rows, history_types, history_times, history_values: (S, H) rings.
        clicks: (S,) ever made.
        named: (types,) which of the T each number of an event type is; −1: none.
        lost: (T,) share of its score that an item loses by such an event of the user; 0: none.
        shares: (T,) of all events.
        counts: (V, T + 1) events of each item by type, and of all types.
        values: (V, 2) sum of values of each item, and clicks with one.
        mean_value: of all clicks that have one.
        value_max: a value that counts at most.
        half_life_s: in which half of what was lost is recovered.
        places: (V,) scratch, all −1.
        of_user: (T,) scratch.
        of_items: (V, T + 2) scratch, for what is the same for all queries.
        stamps: (V,) scratch: an item's row of it is unset unless this is the mark.
        mark: another one for each call.
        columns: filled.
    """
    T, H = len(shares), history_rows.shape[1]
    for q in range(len(slots)):
        start, stop = starts[q], starts[q + 1]
        for c in range(start, stop):
            row, x = rows[c], columns[c]
            places[row] = c
            of_item = of_items[row]
            if stamps[row] != mark:
                stamps[row] = mark
                of_item[T + 1] = 0
                for t in range(T):
                    of_item[t] = log_odds(counts[row, t], counts[row, T], shares[t], ITEM_PRIOR)
                    if lost[t] > 0:  # what others gave back
                        of_item[T + 1] += math.log(1.0 - lost[t] * counts[row, t] / (counts[row, T] + ITEM_PRIOR))
                of_item[T] = math.log((values[row, 0] + VALUE_PRIOR * mean_value) / (values[row, 1] + VALUE_PRIOR))
            x[:] = 0
            for t in range(T):
                x[t] = of_item[t]
            x[5 * T + 3] = of_item[T]
            x[5 * T + 6] = of_item[T + 1]
        events, worth, valued = 0.0, 0.0, 0.0
        of_user[:] = 0
        slot = slots[q]
        if slot >= 0:
            end = clicks[slot] - behind[q]
            held = max(0, min(end, H - behind[q]))
            for d in range(held):
                at = (end - 1 - d) % H
                t = named[history_types[slot, at]]
                events += 1
                if t >= 0:
                    of_user[t] += 1
                value = history_values[slot, at]
                if not np.isnan(value):
                    worth += min(max(value, 0.0), value_max)
                    valued += 1
                c = places[history_rows[slot, at]]
                if c < 0:
                    continue
                x = columns[c]
                age_s = max(0.0, now[q] - history_times[slot, at])
                if x[5 * T] == 0:  # the latest event on this item
                    x[5 * T + 1] = 1.0 / (1.0 + d)
                    x[5 * T + 2] = math.log1p(age_s) / AGE_SCALE
                    if t >= 0:
                        x[2 * T + t] = 1
                        x[4 * T + t] = 1.0 if d == 0 else 0.0
                x[5 * T] += 1
                if t >= 0:
                    x[3 * T + t] += 1
                    if lost[t] > 0:
                        left = math.log(1.0 - lost[t] * 2.0 ** (-age_s / half_life_s))
                        x[5 * T + 5] = min(x[5 * T + 5], left)
        value_of_user = math.log((worth + VALUE_PRIOR * mean_value) / ((valued + VALUE_PRIOR) * mean_value))
        for t in range(T):
            of_user[t] = log_odds(of_user[t], events, shares[t], USER_PRIOR) - log_odds(0.0, 0.0, shares[t], 1.0)
        for c in range(start, stop):
            x = columns[c]
            for t in range(T):
                x[T + t] = of_user[t]
                if x[3 * T + t] > 0:
                    x[3 * T + t] = math.log1p(x[3 * T + t])
            if x[5 * T] > 0:
                x[5 * T] = math.log1p(x[5 * T])
            x[5 * T + 4] = value_of_user
            places[rows[c]] = -1
