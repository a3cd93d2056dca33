"""Which items occur near each other in users' clicks: five tables of bounded rows, counted one click at a time.

A row has room for as many neighbours as it needs, in steps: its places are a *slab* of an arena that all rows of the
table share. A row that is full moves to a slab of the next size, and leaves its own to others (a slab allocator with
size classes: Bonwick 1994). Where an arena grows it is laid out anew, row by row, so that slabs in no use go.

Letters: `V` rows of items, `M` places of a row at most, `A` places of the arena, `K` sizes of slabs.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import inlined, kernel

NEAR = 20  # clicks back in which two items count as near each other
THIRD_FROM, THIRD_TO = 2, 5  # places back (from 0) that share one table
NAMES = ("first", "second", "third", "before", "near")
UNIT = 2  # places: slabs begin at multiples of it, so that int32 finds them in arenas of up to 34 GB
SPARE = 8  # an arena that grows has a place more for so many in use


class Table(NamedTuple):
    """For each item, at most M other items with their counts, in no order; 17 bytes an item, and 8 a place.

    In a full row a new item replaces the one with the smallest count and begins with its own weight. So no count is too
    large, and items that recur stay. Among equally small counts the search begins at a place that moves on with each
    pair counted: else the same place would be replaced every time, and the rest would grow old. (Space-saving, Metwally
    et al. 2005, lets the new item inherit the smallest count. Most rows hold pairs that occurred once, where the
    inherited count is chance: measured, it costs a tenth of NDCG on collections.)

    Loops allocate nothing: `with_room` has to be called before so many pairs are counted.
    """

    others: NDArray[np.int32]  # (A,) rows; in a slab in no use, first, the next such slab
    counts: NDArray[np.float32]  # (A,)
    starts: NDArray[np.int32]  # (V,) where each row's slab begins, in units of UNIT places
    classes: NDArray[np.int8]  # (V,) the size of each row's slab, of `sizes`; 0: none
    used: NDArray[np.int32]  # (V,) places in use, from the slab's first
    totals: NDArray[np.float64]  # (V,) sum of all weights ever counted; float32 would not grow beyond 2^24
    sizes: NDArray[np.int32]  # (K,) places of slabs, rising; the first is 0
    free: NDArray[np.int32]  # (K,) the first slab of each size that is in no use, in units; -1: none
    end: NDArray[np.int64]  # (1,) places of the arena that were ever in a slab; all slabs lie before
    held: int  # M


class Tables(NamedTuple):
    """The five neighbour tables."""

    first: Table  # what followed the item
    second: Table  # what came two clicks after it
    third: Table  # what came three to five clicks after it
    before: Table  # what came just before it
    near: Table  # what stood within NEAR clicks of it, on either side, by 1 / √distance


def slab_sizes(held: int) -> NDArray[np.int32]:
    """Returns the places of slabs, (K,), for rows of at most `held` places: 0, then by a third to a half more each, so
    that on average a sixth of a slab is in no use."""
    sizes, size = [0], UNIT
    while size < held:
        sizes += [size] if 3 * size // 2 % UNIT or 3 * size // 2 >= held else [size, 3 * size // 2]
        size *= 2
    return np.array([*sizes, held + -held % UNIT], np.int32)


def empty_table(rows: int, held: int, places: int = 0) -> Table:
    """Returns a table for `rows` items, with at most `held` places each, and an arena of `places`."""
    sizes = slab_sizes(held)
    return Table(
        np.zeros(places, np.int32),
        np.zeros(places, np.float32),
        np.zeros(rows, np.int32),
        np.zeros(rows, np.int8),
        np.zeros(rows, np.int32),
        np.zeros(rows),
        sizes,
        np.full(len(sizes), -1, np.int32),
        np.zeros(1, np.int64),
        held,
    )


def grown_table(table: Table, rows: int) -> Table:
    """Returns the table with room for `rows` items; the arena is the same."""

    def longer(part: NDArray[Any]) -> NDArray[Any]:
        new = np.zeros(rows, part.dtype)
        new[: len(part)] = part
        return new

    return table._replace(
        starts=longer(table.starts),
        classes=longer(table.classes),
        used=longer(table.used),
        totals=longer(table.totals),
    )


def with_room(table: Table, pairs: int) -> Table:
    """Returns the table with room for `pairs` further counts, of whichever rows.

    Where the arena is too small, that is another one, in which rows stand one after the other in slabs of the smallest
    size that holds them.
    """
    places = pairs * int(table.sizes[-1])  # every one may be the first that its row has no room for
    if int(table.end[0]) + places <= len(table.others):
        return table
    new = _laid_out(table, table.used, places)
    copy_rows(table, new)
    return new


def _laid_out(table: Table, used: NDArray[np.int32], places: int) -> Table:
    """Returns an empty arena of slabs for rows with `used` (V,) places in use, and at least `places` more."""
    sizes = table.sizes
    classes = np.searchsorted(sizes, used).astype(np.int8)
    slabs = sizes[classes].astype(np.int64)
    end = int(slabs.sum())
    room = end + max(end // SPARE, 2 * places)
    return table._replace(
        others=np.zeros(room, np.int32),
        counts=np.zeros(room, np.float32),
        starts=((np.cumsum(slabs) - slabs) // UNIT).astype(np.int32),
        classes=classes,
        free=np.full(len(sizes), -1, np.int32),
        end=np.array([end]),
    )


@kernel
def copy_rows(old: Table, new: Table) -> None:
    """Copies what is in use of all rows to another arena."""
    for row in range(len(old.used)):
        start, to = first_place(old, row), first_place(new, row)
        for k in range(old.used[row]):
            new.others[to + k], new.counts[to + k] = old.others[start + k], old.counts[start + k]


@inlined
def first_place(table: Table, row: int) -> int:
    """Returns where a row's slab begins in the arena."""
    return int(table.starts[row]) * UNIT


@kernel
def widen(table: Table, row: int) -> None:
    """Moves a full row to a slab of the next size."""
    before, size = int(table.classes[row]), int(table.classes[row]) + 1
    old = first_place(table, row)
    if table.free[size] >= 0:
        start = int(table.free[size]) * UNIT
        table.free[size] = table.others[start]
    else:
        start = int(table.end[0])
        if start + table.sizes[size] > len(table.others):
            raise IndexError("the arena of a neighbour table is full: with_room was not called for so many pairs")
        table.end[0] += table.sizes[size]
    for k in range(table.used[row]):
        table.others[start + k], table.counts[start + k] = table.others[old + k], table.counts[old + k]
    leave_slab(table, row)
    table.starts[row], table.classes[row] = start // UNIT, before + 1


@inlined
def leave_slab(table: Table, row: int) -> None:
    """Gives a row's slab, if it has one, to whichever row needs one of this size."""
    size = int(table.classes[row])
    if size > 0:
        table.others[first_place(table, row)] = table.free[size]
        table.free[size] = table.starts[row]
        table.starts[row], table.classes[row] = 0, 0


@inlined
def count(table: Table, row: int, other: int, weight: float) -> None:
    """Adds `weight` to the count of `other` in the row of `row`; with row 0 on either side nothing is counted."""
    if row == 0 or other == 0:
        return
    start, used, held = first_place(table, row), int(table.used[row]), table.held
    others, counts = table.others[start : start + used], table.counts[start : start + used]
    for place in range(used):
        if others[place] == other:
            counts[place] += np.float32(weight)
            table.totals[row] += np.float32(weight)
            return
    if used < held:
        if used == table.sizes[table.classes[row]]:
            widen(table, row)
            start = first_place(table, row)
        table.others[start + used], table.counts[start + used] = other, np.float32(weight)
        table.used[row] = used + 1
    else:
        begin = int(table.totals[row]) % held
        lightest = begin
        for step in range(1, held):
            at = begin + step
            at = at - held if at >= held else at
            if counts[at] < counts[lightest]:
                lightest = at
        others[lightest], counts[lightest] = other, np.float32(weight)
    table.totals[row] += np.float32(weight)


@kernel
def count_one(table: Table, row: int, other: int, weight: float) -> None:
    """Does `count` in a function of its own: for callers that are compiled sooner than they would be faster."""
    count(table, row, other, weight)


@inlined
def uncount(table: Table, row: int, other: int, weight: float) -> None:
    """Undoes `count`; for an item that the row no longer holds only the total changes."""
    if row == 0 or other == 0:
        return
    others, counts = table.others, table.counts
    table.totals[row] = max(0.0, table.totals[row] - np.float32(weight))
    start = first_place(table, row)
    for place in range(start, start + table.used[row]):
        if others[place] == other:
            counts[place] -= np.float32(weight)
            if counts[place] <= 1e-4:
                last = start + table.used[row] - 1
                others[place], counts[place] = others[last], counts[last]
                others[last], counts[last] = 0, 0
                table.used[row] -= 1
            return


@inlined
def near_weight(distance: int) -> float:
    """Returns the weight of two items that stand `distance` clicks apart (1: next to each other)."""
    return 1.0 / math.sqrt(distance)


@kernel
def forget_rows(table: Table, gone: NDArray[np.bool_]) -> None:
    """Clears the rows that `gone` (V,) marks, and removes them from all other rows."""
    others, counts = table.others, table.counts
    for row in range(len(table.used)):
        start = first_place(table, row)
        end = start + int(table.used[row])
        if gone[row]:
            others[start:end], counts[start:end] = 0, 0
            table.used[row], table.totals[row] = 0, 0
            leave_slab(table, row)
            continue
        place = start
        while place < end:
            if gone[others[place]]:
                end -= 1
                others[place], counts[place] = others[end], counts[end]
                others[end], counts[end] = 0, 0
            else:
                place += 1
        table.used[row] = end - start


def decay(table: Table, factor: float) -> None:
    """Multiplies all counts by `factor`."""
    table.counts[: table.end[0]] *= np.float32(factor)
    table.totals[...] *= np.float32(factor)


def neighbours(table: Table, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns the others of a row and their counts, as views of the arena that hold until the next count."""
    start = first_place(table, row)
    part = slice(start, start + int(table.used[row]))
    return table.others[part], table.counts[part]


class Rows(NamedTuple):
    """What is in use of some rows, N of them, one after the other."""

    used: NDArray[np.int32]  # (N,)
    totals: NDArray[np.float64]  # (N,)
    others: NDArray[np.int32]  # (·,)
    counts: NDArray[np.float32]  # (·,)


def copy_of_rows(table: Table, rows: Any) -> Rows:
    """Returns what stands in `rows`: numbers (N,), or a slice."""
    used = table.used[rows].copy()
    places = _places(table.starts[rows], used)
    return Rows(used, table.totals[rows].copy(), table.others[places], table.counts[places])


def put_back(table: Table, rows: NDArray[np.int64], before: Rows) -> None:
    """Makes rows (N,) again what `copy_of_rows` returned of them; no slab has become smaller since."""
    places = _places(table.starts[rows], before.used)
    table.others[places], table.counts[places] = before.others, before.counts
    table.used[rows], table.totals[rows] = before.used, before.totals


def table_to_state(table: Table, rows: int) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the first `rows` rows, with only the places in use."""
    return copy_of_rows(table, slice(rows))._asdict()


def _places(starts: NDArray[np.int32], used: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the places in use of rows whose slabs begin at `starts` (N,), in units."""
    firsts = UNIT * starts.astype(np.int64) - (np.cumsum(used) - used)
    places: NDArray[np.int64] = np.repeat(firsts, used)
    places += np.arange(len(places))
    return places


def load_table(table: Table, arrays: dict[str, NDArray[Any]]) -> Table:
    """Returns a table that holds what `table_to_state` returned and nothing else; of rows with more than `table.held`
    places the largest counts. It has as many rows as `table`, at least those that were saved."""
    saved = Rows(*(arrays[name] for name in Rows._fields))
    if int(saved.used.max(initial=0)) > table.held:
        saved = _heaviest(saved, table.held)
    rows = len(saved.used)
    used, totals = np.zeros_like(table.used), np.zeros_like(table.totals)
    used[:rows], totals[:rows] = saved.used, saved.totals
    new = _laid_out(table, used, 0)._replace(used=used, totals=totals)
    put_back(new, np.arange(rows), saved)
    return new


def _heaviest(saved: Rows, held: int) -> Rows:
    """Returns rows with at most `held` places, in the same order."""
    kept, ends = np.ones(len(saved.others), np.bool_), np.cumsum(saved.used)
    for row in np.flatnonzero(saved.used > held).tolist():
        part = slice(int(ends[row] - saved.used[row]), int(ends[row]))
        kept[part][np.argsort(-saved.counts[part], kind="stable")[held:]] = False
    used = np.minimum(saved.used, held).astype(np.int32)
    return Rows(used, saved.totals, saved.others[kept], saved.counts[kept])
