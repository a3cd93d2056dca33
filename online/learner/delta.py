"""What has changed between two arrays: runs that are copied from the one before, and what stands between them.

Nothing is noted while arrays change, so no change can be missed: the two are compared word by word. Places need not be
the same. Rows may have moved (a user who clicks is the latest one), or have grown (an item has one more neighbour), so
after a difference the run goes on at one of the places close by, or, past a longer stretch, wherever the array before
holds the same words: these are found by a table of hashes, as rsync finds blocks (Tridgell 1999, chapter 3).

Letters: `N` words of the array before, `M` words of the new one, `K` runs.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import allocating, inlined, kernel
from online.learner.facts.moments import MIX

RUN_BYTES = 24  # that are copied at least: a run is written as three numbers
SIDE = 16  # words before and after the expected place at which a run may go on
ALIKE = 64  # words that are compared there at most
SEARCHED_FROM = 64  # runs' lengths without a match after which the whole array before is searched
_WORDS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class Delta(NamedTuple):
    """How an array is made from the one before."""

    runs: NDArray[np.int64]  # (K, 3): first word of a run in the array before, its words, and new words after it
    new: NDArray[Any]  # all new words, one after another


class DeltaError(ValueError):
    """A delta that does not fit the array before."""


def delta(before: NDArray[Any], array: NDArray[Any]) -> Delta:
    """Compares an array of any shape with the one before, whose numbers are as wide.

    Returns:
        What `patched` makes the array of: about as large as what has changed.
    """
    old, words = _words(before), _words(array)
    runs = _runs(old, words, max(2, RUN_BYTES // words.itemsize))
    return Delta(runs, _new_of(words, runs))


def patched(before: NDArray[Any], changes: Delta, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns the array that `delta` was given; if nothing has changed, the memory of the one before.

    Raises:
        DeltaError: it was made from another array.
    """
    old, (runs, new) = _words(before), changes
    words = np.empty(int(np.prod(shape, dtype=np.int64)), _WORDS[dtype.itemsize])
    if old.itemsize != dtype.itemsize or new.itemsize != dtype.itemsize or not _fits(runs, len(old), len(new), words):
        raise DeltaError("its changes are of another array")
    if len(runs) == 1 and runs[0].tolist() == [0, len(old), 0]:  # nothing has changed
        return old.view(dtype).reshape(shape)
    _patch(old, runs, new.view(words.dtype), words)
    return words.view(dtype).reshape(shape)


def warm() -> None:
    """Compiles the loops, or loads them, so that no checkpoint waits for it."""
    for word in _WORDS.values():
        changed = delta(np.arange(100).astype(word), np.arange(1, 101).astype(word))
        patched(np.arange(100).astype(word), changed, np.dtype(word), (100,))


def _words(array: NDArray[Any]) -> NDArray[Any]:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(_WORDS[flat.itemsize])


def _fits(runs: NDArray[np.int64], old: int, new: int, words: NDArray[Any]) -> bool:
    """Whether runs stay within the array before and make as many words as there are to be."""
    if runs.ndim != 2 or runs.shape[1] != 3 or (runs < 0).any() or (runs > max(old, len(words))).any():
        return False
    starts, copied, added = runs.T
    return bool((starts + copied <= old).all() and added.sum() == new and copied.sum() + new == len(words))


def _new_of(words: NDArray[Any], runs: NDArray[np.int64]) -> NDArray[Any]:
    """Returns the words that are in no run."""
    new = np.empty(int(runs[:, 2].sum()), words.dtype)
    _collect(words, runs, new)
    return new


@inlined
def _alike(old: NDArray[Any], p: int, words: NDArray[Any], i: int, most: int) -> int:
    """How many words are the same from `p` and `i` on, at most `most`."""
    most = min(most, len(old) - p, len(words) - i)
    k = 0
    while k < most and old[p + k] == words[i + k]:
        k += 1
    return k


@inlined
def _slot(words: NDArray[Any], i: int, width: int, mask: int) -> int:
    """Where the table of hashes keeps `width` words from `i` on."""
    found = 0
    for k in range(width):
        word = int(words[i + k])
        found = ((found ^ word ^ (word >> 32)) * MIX) & 0xFFFFFFFF
        found ^= found >> 15
    return found & mask


@allocating
def _table_of(old: NDArray[Any], width: int) -> NDArray[np.int64]:
    """Places of every `width`-th word of the array before, by the hash of the words from there on; −1: none."""
    size = 16
    while size < 2 * len(old) // width and size < 2**32:
        size *= 2
    table = np.full(size, -1, np.int64)
    for p in range(0, len(old) - width + 1, width):
        slot = _slot(old, p, width, size - 1)
        if table[slot] < 0:
            table[slot] = p
    return table


@allocating
def _runs(old: NDArray[Any], words: NDArray[Any], width: int) -> NDArray[np.int64]:
    """Runs (K, 3) of at least `width` words, but for the first and the last."""
    N, M = len(old), len(words)
    runs = np.zeros((64, 3), np.int64)
    table = np.zeros(0, np.int64)
    K, i, p = 0, 0, 0
    while i < M:
        copied = _alike(old, p, words, i, M)
        if len(runs) == K:
            more = np.zeros((2 * K, 3), np.int64)
            more[:K] = runs
            runs = more
        runs[K, 0], runs[K, 1] = p, copied
        i += copied
        start, expected = i, p + copied
        while i < M:
            best, at = 0, 0
            for side in range(SIDE + 1):
                for place in (expected + i - start + side, expected + i - start - side):
                    if 0 <= place < N and old[place] == words[i]:
                        length = _alike(old, place, words, i, ALIKE)
                        if length > best:
                            best, at = length, place
            if best >= width or (best > 0 and best == M - i):
                p = at
                break
            if len(table) == 0 and i - start >= SEARCHED_FROM * width and width <= N:
                table = _table_of(old, width)
            if len(table) > 0 and i + width <= M:
                place = table[_slot(words, i, width, len(table) - 1)]
                if place >= 0 and _alike(old, place, words, i, width) == width:
                    while i > start and place > 0 and old[place - 1] == words[i - 1]:
                        place -= 1
                        i -= 1
                    p = place
                    break
            i += 1
        runs[K, 2] = i - start
        K += 1
    return runs[:K].copy()


@kernel
def _collect(words: NDArray[Any], runs: NDArray[np.int64], new: NDArray[Any]) -> None:
    """Fills `new` with the words that are in no run."""
    i, n = 0, 0
    for k in range(len(runs)):
        i += runs[k, 1]
        for _ in range(runs[k, 2]):
            new[n] = words[i]
            i += 1
            n += 1


@kernel
def _patch(old: NDArray[Any], runs: NDArray[np.int64], new: NDArray[Any], words: NDArray[Any]) -> None:
    """Fills `words`."""
    i, n = 0, 0
    for k in range(len(runs)):
        for place in range(runs[k, 0], runs[k, 0] + runs[k, 1]):
            words[i] = old[place]
            i += 1
        for _ in range(runs[k, 2]):
            words[i] = new[n]
            i += 1
            n += 1
