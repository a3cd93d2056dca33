"""Which items each user has clicked, exactly and without an order: one compressed bitmap of rows per user.

Letters: `U` users that are read, `S` their rows together (flat), `N` clicks.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from online.learner.user_stores import UserKey


class SeenItems:
    """The rows that each of at most `users_held` users has clicked, at most `pairs_max` pairs of a user and a row.

    The least recently seen users make room, each with all of their rows: of a user who is held nothing is missing since
    they were taken in. Row 0 stands for items without a row and is never kept.

    The bitmaps are Roaring bitmaps (Lemire et al. 2018, "Roaring Bitmaps: Implementation of an Optimized Software
    Library"). Measured with 200,000 rows, ids of users besides: 3 bytes a pair for users with 3,000 rows each, 5.3 with
    200, 21 with 20 (420 bytes a user), 120 with 2 (240 bytes a user); serialised, 2 to 4 bytes a pair and 8 a user
    besides.
    """

    def __init__(self, users_held: int, pairs_max: int) -> None:
        self.users_held = users_held
        self.pairs_max = pairs_max
        self.pairs = 0  # held now
        self.users_lost = 0  # that had to make room, since the start of this process
        self.pairs_lost = 0  # theirs
        self._rows: OrderedDict[str, BitMap] = OrderedDict()  # by user, least recently seen first

    def __len__(self) -> int:
        """Users held."""
        return len(self._rows)

    def __contains__(self, user: str) -> bool:
        return user in self._rows

    def users(self) -> list[str]:
        """Users who are held, least recently seen first."""
        return list(self._rows)

    # Clicks

    def add(self, user: str, rows: Iterable[int]) -> None:
        """A user has clicked these rows, and is the one seen last."""
        self._add(user, _bitmap(rows))
        self._make_room()

    def add_clicks(self, users: Sequence[str], rows: NDArray[np.int64]) -> None:
        """Clicks of N users on rows (N,), in order of arrival."""
        for user, row in zip(users, rows.tolist(), strict=True):
            self._add(user, _bitmap((row,)))
            self._make_room()

    def _add(self, user: str, more: BitMap) -> None:
        held = self._rows.get(user)
        if held is None:
            if not more:
                return
            held = self._rows[user] = BitMap()
        self._rows.move_to_end(user)
        before = len(held)
        held.update(more)
        self.pairs += len(held) - before

    def _make_room(self) -> None:
        while len(self._rows) > self.users_held or self.pairs > self.pairs_max:
            _, gone = self._rows.popitem(last=False)
            self.pairs -= len(gone)
            self.users_lost += 1
            self.pairs_lost += len(gone)

    # Questions

    def of(self, users: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What users have clicked; asking does not count as seeing them.

        Args:
            users: U of them, in any order, the same one several times if need be. A user who is not held has no rows.

        Returns:
            starts (U + 1,) and rows (S,): those of user `u` are `rows[starts[u] : starts[u + 1]]`, rising.
        """
        found = [_rows_of(self._rows.get(user)) for user in users]
        starts = np.zeros(len(users) + 1, np.int64)
        np.cumsum([len(rows) for rows in found], out=starts[1:])
        return starts, np.concatenate([*found, np.zeros(0, np.uint32)]).astype(np.int64)

    # Forgetting

    def forget(self, user: str) -> int:
        """Nothing is known of the user any more -> pairs that there were."""
        pairs = len(self._rows.pop(user, ()))
        self.pairs -= pairs
        return pairs

    def user_ids(self) -> list[str]:
        return self.users()

    def count_user(self, user: UserKey) -> dict[str, int]:
        return {"seen_items": sum(len(self._rows.get(name, ())) for name in user.user_ids)}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        return {"seen_items": sum(self.forget(name) for name in user.user_ids)}

    def usage(self) -> tuple[int, int]:
        return self.pairs, self.pairs_max

    def forget_rows(self, rows: Iterable[int]) -> None:
        """Items that lost their row: no user has seen what will have it next. One pass over all users: give many rows
        at a time."""
        gone = _bitmap(rows)
        for held in self._rows.values():
            if held.intersect(gone):
                self.pairs -= held.intersection_cardinality(gone)
                held.difference_update(gone)

    # State

    def to_state(self) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Arrays `bitmaps` (uint8, each user's in Roaring's portable format, one after another) and `starts` (where
        each begins, and the end); and the users in that order, least recently seen first."""
        parts = [held.serialize() for held in self._rows.values()]
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        return {"bitmaps": np.frombuffer(b"".join(parts), np.uint8), "starts": starts}, self.users()

    def load_state(self, arrays: Mapping[str, NDArray[Any]], users: Sequence[str]) -> None:
        """Takes back what `to_state` gave. With smaller bounds the users seen last are kept, and the others count as
        lost."""
        content, starts = arrays["bitmaps"].tobytes(), arrays["starts"].tolist()
        bitmaps = (BitMap.deserialize(content[begin:end]) for begin, end in pairwise(starts))
        self._rows = OrderedDict(zip(users, bitmaps, strict=True))
        self.pairs = sum(map(len, self._rows.values()))
        self._make_room()


def _bitmap(rows: Iterable[int]) -> BitMap:
    """Without row 0."""
    found = BitMap(array("I", rows), optimize=False)  # no runs: what is held only depends on the rows
    found.discard(0)
    return found


def _rows_of(held: BitMap | None) -> NDArray[np.uint32]:
    return np.frombuffer(held.to_array(), np.uint32) if held else np.zeros(0, np.uint32)
