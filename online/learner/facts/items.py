"""What is counted of each item by itself: clicks, first and last times, popularity by several half-lives.

Letters: `V` rows of items, `P` half-lives, `T` places of a list of the most popular.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import inlined, kernel

POPULAR = 240  # items of each list of the most popular: enough for users who have seen the first ones
OVERFLOW = 1e12  # the weight of a click at which all popularities are scaled down
UNDERFLOW = 1e-200  # a popularity below counts as 0: smaller floats lose digits, and become equal


class Items(NamedTuple):
    """Counts of items by row; 21 + 8 P bytes a row.

    Popularities do not decay with each click. Instead each click weighs `rates` times as much as the one before it: so
    a click changes only its own row, and the lists of the most popular can follow it exactly.
    """

    clicks: NDArray[np.float32]  # (V,) ever
    first_at: NDArray[np.float64]  # (V,) active time in seconds; 0: never
    last_at: NDArray[np.float64]  # (V,)
    popular: NDArray[np.float64]  # (V, P) inflated
    weights: NDArray[np.float64]  # (P,) what a click counts now
    rates: NDArray[np.float64]  # (P,)
    top: NDArray[np.int32]  # (P, T) the most popular rows that may be listed, best first; 0 beyond
    blocked: NDArray[np.bool_]  # (V,) rows that must not be listed


def empty_items(rows: int, half_lives: Sequence[int]) -> Items:
    """Returns counts with room for `rows` rows."""
    P = len(half_lives)
    return Items(
        np.zeros(rows, np.float32),
        np.zeros(rows),
        np.zeros(rows),
        np.zeros((rows, P)),
        np.ones(P),
        np.array([2 ** (1 / n) for n in half_lives]),
        np.zeros((P, POPULAR), np.int32),
        np.zeros(rows, np.bool_),
    )


def grown_items(items: Items, rows: int) -> Items:
    """Returns a copy with room for `rows` rows."""
    new = items._asdict()
    for name in ("clicks", "first_at", "last_at", "popular", "blocked"):
        old = new[name]
        new[name] = np.zeros((rows, *old.shape[1:]), old.dtype)
        new[name][: len(old)] = old
    return Items(**new)


@inlined
def count_click(items: Items, row: int, active: float) -> None:
    """Counts one click at an active time, in seconds. A click on an item without a row (0) only ages all others."""
    if row > 0:
        items.clicks[row] += np.float32(1)
        items.last_at[row] = max(items.last_at[row], active)
        if items.first_at[row] == 0 or active < items.first_at[row]:
            items.first_at[row] = active
    for half_life in range(len(items.weights)):
        if row > 0:
            items.popular[row, half_life] += items.weights[half_life]
        items.weights[half_life] *= items.rates[half_life]
        if items.weights[half_life] > OVERFLOW:
            scale_down(items, half_life)
        if row > 0 and not items.blocked[row]:
            raise_in_list(items.top[half_life], items.popular, half_life, row)


@kernel
def scale_down(items: Items, half_life: int) -> None:
    """Scales popularities so that a click weighs 1. A row that becomes 0 leaves the list, as it would at a restart."""
    for row in range(len(items.popular)):
        scaled = items.popular[row, half_life] / items.weights[half_life]
        items.popular[row, half_life] = scaled if scaled > UNDERFLOW else 0.0
    items.weights[half_life] = 1.0
    for at in range(items.top.shape[1]):
        if items.popular[items.top[half_life, at], half_life] == 0:
            items.top[half_life, at] = 0


@inlined
def raise_in_list(top: NDArray[np.int32], popular: NDArray[np.float64], half_life: int, row: int) -> None:
    """Moves a row whose popularity has just risen up in the list of the most popular, or into it."""
    at = 0
    while at < len(top) and top[at] != row and top[at] != 0:
        at += 1
    if at == len(top):
        at -= 1
        if popular[top[at], half_life] >= popular[row, half_life]:
            return
    while at > 0 and popular[top[at - 1], half_life] < popular[row, half_life]:
        top[at] = top[at - 1]
        at -= 1
    top[at] = row


def rebuild_lists(items: Items) -> None:
    """Rebuilds the lists of the most popular, after rows were cleared, blocked or released."""
    for half_life in range(len(items.weights)):
        column = np.where(items.blocked, 0.0, items.popular[:, half_life])
        rows = np.flatnonzero(column > 0)
        if len(rows) > POPULAR:
            rows = rows[column[rows] >= np.partition(column[rows], -POPULAR)[-POPULAR]]
        best = rows[np.argsort(-column[rows], kind="stable")][:POPULAR]
        items.top[half_life] = 0
        items.top[half_life, : len(best)] = best


@kernel
def uncount_clicks(items: Items, rows: NDArray[np.int64], ages: NDArray[np.float64]) -> None:
    """Undoes the counts of clicks on rows (K,); ages (K,): how many clicks were counted since each."""
    for k in range(len(rows)):
        row = rows[k]
        items.clicks[row] = max(np.float32(0), items.clicks[row] - np.float32(1))
        for half_life in range(len(items.weights)):
            counted = items.weights[half_life] / items.rates[half_life] ** (ages[k] + 1)
            items.popular[row, half_life] = max(0.0, items.popular[row, half_life] - counted)
    for k in range(len(rows)):
        row = rows[k]
        if items.clicks[row] <= 0:
            items.first_at[row] = items.last_at[row] = 0.0
            items.popular[row, :] = 0.0


def items_to_state(items: Items, rows: int) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the first `rows` rows."""
    kept = {name: getattr(items, name)[:rows] for name in ("clicks", "first_at", "last_at", "popular")}
    return {name: part.copy() for name, part in kept.items()} | {"weights": items.weights.copy()}


def load_items(items: Items, arrays: dict[str, NDArray[Any]]) -> None:
    """Loads what `items_to_state` returned. The caller sets again which rows are blocked."""
    rows = len(arrays["clicks"])
    for name in ("clicks", "first_at", "last_at", "popular"):
        getattr(items, name)[:rows] = arrays[name]
    items.weights[:] = arrays["weights"]
    rebuild_lists(items)
