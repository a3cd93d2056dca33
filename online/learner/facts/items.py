"""What is counted of each item by itself: clicks, first and last times, popularity by several half-lives.

Letters: `V` rows of items, `P` half-lives, `T` places of a list of the most popular.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import inlined, kernel

POPULAR = 240  # items of each list of the most popular; who has seen the first ones gets others of them
OVERFLOW = 1e12  # of what a click counts, at which all are scaled down
UNDERFLOW = 1e-200  # of a popularity, which counts nothing below: smaller ones lose digits, and become equal


class Items(NamedTuple):
    """21 + 8 P bytes a row.

    Instead of letting all popularities fade with each click, each click counts more than the one before it, `rates`
    times: so only the clicked row moves, and the lists of the most popular can follow it exactly.
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
    """For so many rows."""
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
    """The same with room for more rows."""
    new = items._asdict()
    for name in ("clicks", "first_at", "last_at", "popular", "blocked"):
        old = new[name]
        new[name] = np.zeros((rows, *old.shape[1:]), old.dtype)
        new[name][: len(old)] = old
    return Items(**new)


@inlined
def count_click(items: Items, row: int, active: float) -> None:
    """One click at an active time, in seconds. One on an item without a row (0) only lets all others age."""
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
    """A click counts 1 again. What is too long ago counts nothing, and leaves the list as it would at a restart."""
    for row in range(len(items.popular)):
        scaled = items.popular[row, half_life] / items.weights[half_life]
        items.popular[row, half_life] = scaled if scaled > UNDERFLOW else 0.0
    items.weights[half_life] = 1.0
    for at in range(items.top.shape[1]):
        if items.popular[items.top[half_life, at], half_life] == 0:
            items.top[half_life, at] = 0


@inlined
def raise_in_list(top: NDArray[np.int32], popular: NDArray[np.float64], half_life: int, row: int) -> None:
    """A row whose popularity has just risen moves up in the list of the most popular, or enters it."""
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
    """The lists of the most popular anew: after rows were cleared, blocked or released."""
    for half_life in range(len(items.weights)):
        column = np.where(items.blocked, 0.0, items.popular[:, half_life])
        some = np.flatnonzero(column > 0)
        if len(some) > POPULAR:
            some = some[column[some] >= np.partition(column[some], -POPULAR)[-POPULAR]]
        best = some[np.argsort(-column[some], kind="stable")][:POPULAR]
        items.top[half_life] = 0
        items.top[half_life, : len(best)] = best


@kernel
def uncount_clicks(items: Items, rows: NDArray[np.int64], ages: NDArray[np.float64]) -> None:
    """Clicks (K,) that should not have been counted, and how many were counted since each."""
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
    """The first `rows` rows."""
    kept = {name: getattr(items, name)[:rows] for name in ("clicks", "first_at", "last_at", "popular")}
    return {name: part.copy() for name, part in kept.items()} | {"weights": items.weights.copy()}


def load_items(items: Items, arrays: dict[str, NDArray[Any]]) -> None:
    """Takes back what `items_to_state` gave. Which rows are blocked is for the caller to say again."""
    rows = len(arrays["clicks"])
    for name in ("clicks", "first_at", "last_at", "popular"):
        getattr(items, name)[:rows] = arrays[name]
    items.weights[:] = arrays["weights"]
    rebuild_lists(items)
