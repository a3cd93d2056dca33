"""Which items occur near each other in users' clicks: five tables of bounded rows, counted one click at a time.

Letters: `V` rows of items, `M` places of a row.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import inlined, kernel

NEAR = 20  # clicks back in which two items count as near each other
THIRD_FROM, THIRD_TO = 2, 5  # places back (from 0) that share one table
NAMES = ("first", "second", "third", "before", "near")


class Table(NamedTuple):
    """For each item, at most M other items with their counts, in no order; 8 M + 12 bytes an item.

    In a full row a new item replaces the one with the smallest count and begins with its own weight. So no count is too
    large, and items that recur stay. Among equally small counts the search begins at a place that moves on with each
    pair counted: else the same place would be replaced every time, and the rest would grow old. (Space-saving, Metwally
    et al. 2005, lets the new item inherit the smallest count. Most rows hold pairs that occurred once, where the
    inherited count is chance: measured, it costs a tenth of NDCG on collections.)
    """

    others: NDArray[np.int32]  # (V, M) rows; meaningless beyond `used`
    counts: NDArray[np.float32]  # (V, M)
    used: NDArray[np.int32]  # (V,) places in use, from the left
    totals: NDArray[np.float64]  # (V,) sum of all weights ever counted; float32 would not grow beyond 2^24


class Tables(NamedTuple):
    """The five neighbour tables."""

    first: Table  # what followed the item
    second: Table  # what came two clicks after it
    third: Table  # what came three to five clicks after it
    before: Table  # what came just before it
    near: Table  # what stood within NEAR clicks of it, on either side, by 1 / √distance


def empty_table(rows: int, held: int) -> Table:
    """Returns a table for `rows` items, with `held` places each."""
    return Table(
        np.zeros((rows, held), np.int32),
        np.zeros((rows, held), np.float32),
        np.zeros(rows, np.int32),
        np.zeros(rows),
    )


def grown_table(table: Table, rows: int) -> Table:
    """Returns a copy with room for `rows` items."""
    new = empty_table(rows, table.others.shape[1])
    for name, old in table._asdict().items():
        getattr(new, name)[: len(old)] = old
    return new


@inlined
def count(table: Table, row: int, other: int, weight: float) -> None:
    """Adds `weight` to the count of `other` in the row of `row`; with row 0 on either side nothing is counted."""
    if row == 0 or other == 0:
        return
    others, counts = table.others[row], table.counts[row]
    used, held = table.used[row], len(others)
    for place in range(used):
        if others[place] == other:
            counts[place] += np.float32(weight)
            table.totals[row] += np.float32(weight)
            return
    if used < held:
        place = used
        table.used[row] = used + 1
    else:
        begin = int(table.totals[row]) % held
        place = begin
        for step in range(1, held):
            at = begin + step
            at = at - held if at >= held else at
            if counts[at] < counts[place]:
                place = at
    others[place], counts[place] = other, np.float32(weight)
    table.totals[row] += np.float32(weight)


@inlined
def uncount(table: Table, row: int, other: int, weight: float) -> None:
    """Undoes `count`; for an item that the row no longer holds only the total changes."""
    if row == 0 or other == 0:
        return
    others, counts = table.others[row], table.counts[row]
    table.totals[row] = max(0.0, table.totals[row] - np.float32(weight))
    for place in range(table.used[row]):
        if others[place] == other:
            counts[place] -= np.float32(weight)
            if counts[place] <= 1e-4:
                last = table.used[row] - 1
                others[place], counts[place] = others[last], counts[last]
                others[last], counts[last] = 0, 0
                table.used[row] = last
            return


@inlined
def near_weight(distance: int) -> float:
    """Returns the weight of two items that stand `distance` clicks apart (1: next to each other)."""
    return 1.0 / math.sqrt(distance)


@kernel
def forget_rows(table: Table, gone: NDArray[np.bool_]) -> None:
    """Clears the rows that `gone` (V,) marks, and removes them from all other rows."""
    for row in range(len(table.used)):
        if gone[row]:
            table.others[row, :], table.counts[row, :] = 0, 0
            table.used[row], table.totals[row] = 0, 0
            continue
        place = 0
        while place < table.used[row]:
            if gone[table.others[row, place]]:
                last = table.used[row] - 1
                table.others[row, place], table.counts[row, place] = table.others[row, last], table.counts[row, last]
                table.others[row, last], table.counts[row, last] = 0, 0
                table.used[row] = last
            else:
                place += 1


def decay(table: Table, factor: float) -> None:
    """Multiplies all counts by `factor`."""
    table.counts[...] *= np.float32(factor)
    table.totals[...] *= np.float32(factor)


def table_to_state(table: Table, rows: int) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the first `rows` rows, with only the places in use."""
    used = table.used[:rows].copy()
    places = _places(used, table.others.shape[1])
    return {
        "used": used,
        "totals": table.totals[:rows].copy(),
        "others": table.others.reshape(-1)[places],
        "counts": table.counts.reshape(-1)[places],
    }


def _places(used: NDArray[np.int32], held: int) -> NDArray[np.int64]:
    """Returns the places in use of rows with `held` places each, numbered through. Most are not in use, so a mask of
    all of them would take ten times as long."""
    starts = held * np.arange(len(used)) - (np.cumsum(used) - used)
    places: NDArray[np.int64] = np.repeat(starts, used)
    places += np.arange(len(places))
    return places


def load_table(table: Table, arrays: dict[str, NDArray[Any]]) -> None:
    """Loads what `table_to_state` returned; the largest counts, if there is room for fewer."""
    held = table.others.shape[1]
    used = arrays["used"]
    rows = len(used)
    table.totals[:rows] = arrays["totals"]
    if int(used.max(initial=0)) <= held:
        places = _places(used, held)
        table.others.reshape(-1)[places] = arrays["others"]
        table.counts.reshape(-1)[places] = arrays["counts"]
        table.used[:rows] = used
        return
    ends = np.cumsum(used)
    for row in np.flatnonzero(used).tolist():
        part = slice(int(ends[row] - used[row]), int(ends[row]))
        heaviest = np.sort(np.argsort(-arrays["counts"][part], kind="stable")[:held])
        kept = len(heaviest)
        table.others[row, :kept] = arrays["others"][part][heaviest]
        table.counts[row, :kept] = arrays["counts"][part][heaviest]
        table.used[row] = kept
