"""Which items stand together in users' clicks: five tables of bounded rows, counted one click at a time.

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
    """Of each item the others it was counted with, at most M, in no order; 8 M + 12 bytes an item.

    Where a row is full, a newcomer takes the place of the lightest and begins at its own weight. So what is counted is
    never too large, and what comes back again and again stays. Among equally light ones the search begins at a place
    that moves on with each pair counted: else the same place would be taken again and again, and the rest would grow
    old. (Space-saving, Metwally et al. 2005, lets the newcomer inherit the lightest count. In rows of pairs seen once
    each, that is nearly all of them, what it inherits is chance: measured, it costs a tenth of NDCG on collections.)
    """

    others: NDArray[np.int32]  # (V, M) rows; meaningless beyond `used`
    counts: NDArray[np.float32]  # (V, M)
    used: NDArray[np.int32]  # (V,) places in use, from the left
    totals: NDArray[np.float64]  # (V,) all that was ever counted; float32 would stand still at 2^24


class Tables(NamedTuple):
    """What stands next to what."""

    first: Table  # what followed the item
    second: Table  # what came two clicks after it
    third: Table  # what came three to five clicks after it
    before: Table  # what came just before it
    near: Table  # what stood within NEAR clicks of it, on either side, by 1 / √distance


def empty_table(rows: int, held: int) -> Table:
    """For so many rows of items, and so many places in each."""
    return Table(
        np.zeros((rows, held), np.int32),
        np.zeros((rows, held), np.float32),
        np.zeros(rows, np.int32),
        np.zeros(rows),
    )


def grown_table(table: Table, rows: int) -> Table:
    """The same with room for more rows."""
    new = empty_table(rows, table.others.shape[1])
    for name, old in table._asdict().items():
        getattr(new, name)[: len(old)] = old
    return new


@inlined
def count(table: Table, row: int, other: int, weight: float) -> None:
    """One more of `other` with `row`; row 0 on either side counts nothing."""
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
    """One less, of what should not have been counted; what is no longer held stays gone."""
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
    """What two items count that stand so many clicks apart (1: next to each other)."""
    return 1.0 / math.sqrt(distance)


@kernel
def forget_rows(table: Table, gone: NDArray[np.bool_]) -> None:
    """Rows (V,) that are to be handed out again are empty, and stand in no other."""
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
    """Whatever was counted so far counts `factor` of itself from now on."""
    table.counts[...] *= np.float32(factor)
    table.totals[...] *= np.float32(factor)


def table_to_state(table: Table, rows: int) -> dict[str, NDArray[Any]]:
    """The first `rows` rows, and of each only the places in use."""
    used = table.used[:rows]
    inside = np.arange(table.others.shape[1]) < used[:, None]
    return {
        "used": used.copy(),
        "totals": table.totals[:rows].copy(),
        "others": table.others[:rows][inside],
        "counts": table.counts[:rows][inside],
    }


def load_table(table: Table, arrays: dict[str, NDArray[Any]]) -> None:
    """Takes back what `table_to_state` gave; where there is room for fewer, the heaviest."""
    held = table.others.shape[1]
    used = arrays["used"]
    rows = len(used)
    table.totals[:rows] = arrays["totals"]
    if int(used.max(initial=0)) <= held:
        inside = np.arange(held) < used[:, None]
        table.others[:rows][inside] = arrays["others"]
        table.counts[:rows][inside] = arrays["counts"]
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
