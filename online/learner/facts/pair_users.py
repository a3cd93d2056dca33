"""A threshold of distinct users: a pair of items is counted only once several users have made it.

Until then the users who made it are remembered, and what it would have counted. So the neighbour tables hold no pair
that fewer users made. What is remembered is bounded: sets of WAYS pairs each, in which a new pair replaces the one with
the fewest users. That one begins anew, and users are distinguished by 32 bits of a hash. Both errors make a pair appear
later, and none makes it appear too early.

Letters: `S` sets, `K` users that are needed.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import called, kernel
from online.learner.facts.tables import (
    THIRD_FROM,
    THIRD_TO,
    Table,
    Tables,
    count_one,
    first_place,
    near_weight,
    uncount,
)

WAYS = 8  # pairs of a set
FOLLOWED, SECOND, THIRD, NEAR_BY = 0, 1, 2, 3  # kinds of pairs
ROWS_MAX = 2**30  # of items, so that a pair and its kind are one int64
MIX_ROW, MIX_OTHER = 0x1E3779B1, 0x05EBCA6B  # odd and below 2^29, so that products stay below 2^62


class PairUsers(NamedTuple):
    """Pairs that wait for more users: 4 K + 12 bytes each. Without sets nothing waits."""

    keys: NDArray[np.int64]  # (S, WAYS) kind and rows of the pair; 0: free
    users: NDArray[np.uint32]  # (S, WAYS, K) who made it, from the left; 0: no further one
    weights: NDArray[np.float32]  # (S, WAYS) what it would have counted


def empty_pair_users(pairs: int, needed: int) -> PairUsers:
    """Returns room for at least `pairs` pairs that wait for `needed` users; none if fewer than two are needed."""
    sets = 0 if needed < 2 else 1 << max(0, (pairs - 1) // WAYS).bit_length()
    return PairUsers(
        np.zeros((sets, WAYS), np.int64),
        np.zeros((sets, WAYS, max(needed, 1)), np.uint32),
        np.zeros((sets, WAYS), np.float32),
    )


@kernel
def holds(table: Table, row: int, other: int) -> bool:
    """Returns whether a table holds a pair."""
    found = False
    start = first_place(table, row)
    for place in range(start, start + table.used[row]):
        found |= table.others[place] == other
    return found


@called
def key_of(kind: int, row: int, other: int) -> int:
    """Returns a pair and its kind as one number, never 0."""
    key: Any = (np.int64(kind + 1) << np.int64(60)) | (np.int64(row) << np.int64(30)) | np.int64(other)
    return key  # type: ignore[no-any-return]


@called
def set_of(key: int, sets: int) -> int:
    """Returns the set of a pair, below `sets`, a power of two."""
    mixed = ((key & np.int64(0x3FFFFFFF)) * np.int64(MIX_OTHER)) ^ ((key >> np.int64(30)) * np.int64(MIX_ROW))
    found: Any = ((mixed >> np.int64(17)) ^ mixed) & np.int64(sets - 1)
    return found  # type: ignore[no-any-return]


@called
def short_hash(user_hash: int) -> int:
    """Returns 32 bits of a user's hash, never 0."""
    bits: Any = (user_hash ^ (user_hash >> np.int64(32))) & np.int64(0xFFFFFFFF)
    return max(bits, np.int64(1))  # type: ignore[no-any-return]


@kernel
def weight_to_count(pairs: PairUsers, key: int, user_hash: int, weight: float) -> float:
    """Notes that a user made a pair that is not counted yet.

    Args:
        pairs: those that wait.
        key: of the pair.
        user_hash: of the user, as `stream.user_ids.hash_of_digest` says.
        weight: what this would count.

    Returns:
        What is to be counted now: all that has waited, with the last of the users who are needed; else 0.
    """
    at, user, needed = set_of(key, len(pairs.keys)), np.uint32(short_hash(user_hash)), pairs.users.shape[2]
    way = -1
    for w in range(WAYS):
        if pairs.keys[at, w] == key:
            way = w
    if way < 0:
        fewest = needed + 1
        begin = int(user) % WAYS  # else the same place would be replaced every time
        for step in range(WAYS):
            w = (begin + step) % WAYS
            there = 0
            while there < needed and pairs.users[at, w, there] != 0:
                there += 1
            if there < fewest:
                way, fewest = w, there
        pairs.keys[at, way], pairs.weights[at, way] = key, np.float32(0)
        pairs.users[at, way, :] = 0
    pairs.weights[at, way] += np.float32(weight)
    k = 0
    while pairs.users[at, way, k] != 0:  # a pair with all users does not wait any more
        if pairs.users[at, way, k] == user:
            return 0.0
        k += 1
    pairs.users[at, way, k] = user
    if k < needed - 1:
        return 0.0
    total = float(pairs.weights[at, way])
    pairs.keys[at, way], pairs.weights[at, way] = 0, np.float32(0)
    pairs.users[at, way, :] = 0
    return total


@kernel
def take_back_weight(pairs: PairUsers, key: int, weight: float) -> None:
    """Undoes what `weight_to_count` added to a pair that still waits. That the user made it stays noted."""
    at = set_of(key, len(pairs.keys))
    for w in range(WAYS):
        if pairs.keys[at, w] == key:
            pairs.weights[at, w] = max(np.float32(0), pairs.weights[at, w] - np.float32(weight))


@kernel
def weight_of_several(table: Table, pairs: PairUsers, kind: int, user_hash: int, row: int, other: int) -> float:
    """Returns what a pair counts now in its table: 1 if the table holds it, else what `weight_to_count` says."""
    if holds(table, row, other):
        return 1.0
    return weight_to_count(pairs, key_of(kind, row, other), user_hash, 1.0)


@kernel
def count_pair_of_several(tables: Tables, pairs: PairUsers, user_hash: int, earlier: int, row: int, d: int) -> None:
    """Does `count_pair` (gather.py) for a user, once enough users have made the pair; until then it waits."""
    if earlier == 0 or row == 0:
        return
    if d == 0:
        weight = weight_of_several(tables.first, pairs, FOLLOWED, user_hash, earlier, row)
        if weight > 0:
            count_one(tables.first, earlier, row, weight)
            count_one(tables.before, row, earlier, weight)
    elif d == 1:
        weight = weight_of_several(tables.second, pairs, SECOND, user_hash, earlier, row)
        if weight > 0:
            count_one(tables.second, earlier, row, weight)
    if THIRD_FROM <= d < THIRD_TO:
        weight = weight_of_several(tables.third, pairs, THIRD, user_hash, earlier, row)
        if weight > 0:
            count_one(tables.third, earlier, row, weight)
    if earlier != row:
        weight = near_weight(d + 1)
        if not (holds(tables.near, earlier, row) or holds(tables.near, row, earlier)):
            key = key_of(NEAR_BY, min(earlier, row), max(earlier, row))
            weight = weight_to_count(pairs, key, user_hash, weight)
        if weight > 0:
            count_one(tables.near, earlier, row, weight)
            count_one(tables.near, row, earlier, weight)


@kernel
def uncount_of_several(table: Table, pairs: PairUsers, kind: int, row: int, other: int) -> None:
    """Undoes a pair in its table, or in what waits."""
    if holds(table, row, other):
        uncount(table, row, other, 1.0)
    else:
        take_back_weight(pairs, key_of(kind, row, other), 1.0)


@kernel
def uncount_pair_of_several(tables: Tables, pairs: PairUsers, earlier: int, row: int, d: int) -> None:
    """Undoes `count_pair_of_several`."""
    if earlier == 0 or row == 0:
        return
    if d == 0:
        if holds(tables.first, earlier, row):
            uncount(tables.before, row, earlier, 1.0)
        uncount_of_several(tables.first, pairs, FOLLOWED, earlier, row)
    elif d == 1:
        uncount_of_several(tables.second, pairs, SECOND, earlier, row)
    if THIRD_FROM <= d < THIRD_TO:
        uncount_of_several(tables.third, pairs, THIRD, earlier, row)
    if earlier != row:
        weight = near_weight(d + 1)
        if holds(tables.near, earlier, row) or holds(tables.near, row, earlier):
            uncount(tables.near, earlier, row, weight)
            uncount(tables.near, row, earlier, weight)
        else:
            take_back_weight(pairs, key_of(NEAR_BY, min(earlier, row), max(earlier, row)), weight)


# Without kernels: these are done now and then


def rows_of(pairs: PairUsers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns both rows of each pair, (S, WAYS) each; 0 where there is none."""
    mask = np.int64(ROWS_MAX - 1)
    return (pairs.keys >> np.int64(30)) & mask, pairs.keys & mask


def forget_rows(pairs: PairUsers, gone: NDArray[np.bool_]) -> None:
    """Removes the pairs with a row that `gone` (V,) marks."""
    row, other = rows_of(pairs)
    _clear(pairs, (pairs.keys != 0) & (gone[row] | gone[other]))


def count_user(pairs: PairUsers, user_hash: int) -> int:
    """Returns how many waiting pairs a user made."""
    return int((pairs.users == np.uint32(short_hash(int(user_hash)))).any(2).sum())


def forget_user(pairs: PairUsers, user_hash: int) -> None:
    """Removes a user from all waiting pairs, and pairs that no other user made."""
    user = np.uint32(short_hash(int(user_hash)))
    for at, way in np.argwhere((pairs.users == user).any(2)).tolist():
        left = pairs.users[at, way][pairs.users[at, way] != user]
        pairs.users[at, way] = 0
        pairs.users[at, way, : len(left)] = left
    _clear(pairs, (pairs.keys != 0) & (pairs.users[..., 0] == 0))


def decay(pairs: PairUsers, factor: float) -> None:
    """Multiplies what waits by `factor`."""
    pairs.weights[...] *= np.float32(factor)


def _clear(pairs: PairUsers, gone: NDArray[np.bool_]) -> None:
    pairs.keys[gone], pairs.weights[gone], pairs.users[gone] = 0, 0, 0


def pairs_to_state(pairs: PairUsers) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the pairs that wait, and where they stand."""
    at = np.flatnonzero(pairs.keys)
    users = pairs.users.reshape(-1, pairs.users.shape[2])
    return {
        "at": at,
        "keys": pairs.keys.reshape(-1)[at],
        "weights": pairs.weights.reshape(-1)[at],
        "users": users[at].astype(np.int64),
        "sets": np.array([len(pairs.keys)]),
    }


def load_pairs(pairs: PairUsers, arrays: dict[str, NDArray[Any]]) -> None:
    """Loads what `pairs_to_state` returned; nothing of it after a change of settings: then pairs wait anew."""
    same = int(arrays["sets"][0]) == len(pairs.keys) and arrays["users"].shape[1] == pairs.users.shape[2]
    if same:
        at = arrays["at"]
        pairs.keys.reshape(-1)[at], pairs.weights.reshape(-1)[at] = arrays["keys"], arrays["weights"]
        pairs.users.reshape(-1, pairs.users.shape[2])[at] = arrays["users"].astype(np.uint32)
