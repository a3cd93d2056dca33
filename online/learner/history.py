"""What each user clicked lately: bounded rings in arrays, the least recently seen user making room.

Letters: `N` users that are read, `L` clicks read of each, `H` clicks kept of a user (`history_max`), `S` slots.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.forgetting import clear_places, marked
from online.learner.user_stores import UserKey

PIECE = 4_096  # histories that a checkpoint captures at a time
SERVED = 10  # items of the list in front of a user that hit@10 and NDCG@10 look at


class ClicksOldestFirst(NamedTuple):
    """Latest clicks of some users, oldest first, left-aligned: padding (row 0) stands at the end."""

    rows: NDArray[np.int64]  # (N, L)
    event_types: NDArray[np.int64]  # (N, L)
    timestamps: NDArray[np.float64]  # (N, L) seconds
    lengths: NDArray[np.int64]  # (N,)

    def of(self, users: NDArray[np.int64]) -> "ClicksOldestFirst":
        """Those of some of the users only."""
        return ClicksOldestFirst(self.rows[users], self.event_types[users], self.timestamps[users], self.lengths[users])

    def trimmed(self) -> "ClicksOldestFirst":
        """Without what is padding in all of them; two clicks wide at least."""
        L = max(2, int(self.lengths.max(initial=0)))
        return ClicksOldestFirst(self.rows[:, :L], self.event_types[:, :L], self.timestamps[:, :L], self.lengths)


class ClicksNewestFirst(NamedTuple):
    """Latest clicks of some users, latest first; 0 beyond their lengths."""

    rows: NDArray[np.int64]  # (N, L)
    timestamps: NDArray[np.float64]  # (N, L) seconds
    numbers: NDArray[np.int64]  # (N, L) as given to `append`
    lengths: NDArray[np.int64]  # (N,)


class UserHistories:
    """The latest `history_max` clicks of at most `users_held` users: 21 bytes a click, and 72 a user besides.

    Clicks stand in the order in which they arrived, whatever their timestamps say.
    """

    def __init__(self, users_held: int, history_max: int, *, values: bool = False) -> None:
        """`values`: whether the clicks' values are kept too, 4 bytes a click."""
        self.users_held = users_held
        self.history_max = history_max
        self.users_lost = 0  # who had to make room for others, since the start of this process
        self.values: NDArray[np.float32] | None = np.zeros((0, 0), np.float32) if values else None
        self._slots: OrderedDict[str, int] = OrderedDict()  # least recently seen first
        self._users: list[str] = []  # of each slot
        self._allocate(min(1024, users_held))

    def _allocate(self, slots: int) -> None:
        H = self.history_max
        self._rows = np.zeros((slots, H), np.int32)
        self._types = np.zeros((slots, H), np.uint8)
        self._times = np.zeros((slots, H), np.float64)
        self._numbers = np.zeros((slots, H), np.int64)
        if self.values is not None:
            self.values = np.zeros((slots, H), np.float32)  # NaN where a click has none
        self._clicks = np.zeros(slots, np.int64)  # ever made; the ring's place is this modulo H
        self.served = np.zeros((slots, SERVED), np.int32)  # rows of the list that stands in Redis, best first
        self.origins = np.zeros((slots, 2), np.int64)  # of the latest click: its partition, and the offset after it
        self.active_at = np.zeros(slots)  # of the latest click: the stream's active time, in seconds

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, user: str) -> bool:
        return user in self._slots

    def slots(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Slots of users as (N,), made where a user has none. At most `users_held` different users at once."""
        return np.fromiter((self._slot(user) for user in users), np.int64, len(users))

    def would_evict(self, users: Iterable[str]) -> bool:
        """Whether a user has to make room for these users."""
        return len(self._slots) + sum(user not in self._slots for user in set(users)) > self.users_held

    def find(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Slots of users who have one, (N,); asking does not count as seeing them. KeyError for other users."""
        return np.fromiter((self._slots[user] for user in users), np.int64, len(users))

    def _slot(self, user: str) -> int:
        slot = self._slots.get(user)
        if slot is not None:
            self._slots.move_to_end(user)
            return slot
        if len(self._slots) < self.users_held:
            slot = len(self._slots)
            self._users.append(user)
            if slot == len(self._clicks):
                self._grow()
        else:
            _, slot = self._slots.popitem(last=False)
            self._users[slot] = user
            self.users_lost += 1
            for array in self._arrays():
                array[slot] = 0
        self._slots[user] = slot
        return slot

    def _grow(self) -> None:
        before = self._arrays()
        self._allocate(min(2 * len(self._clicks), self.users_held))
        for new, old in zip(self._arrays(), before, strict=True):
            new[: len(old)] = old

    def _arrays(self) -> list[NDArray[Any]]:
        rings: list[NDArray[Any]] = [self._rows, self._types, self._times, self._numbers]
        rings += [] if self.values is None else [self.values]
        return [*rings, self._clicks, self.served, self.origins, self.active_at]

    def rings(self) -> tuple[NDArray[Any], ...]:
        """What compiled loops read and append to: rows, types, times and numbers (S, H), clicks ever made (S,)."""
        return self._rows, self._types, self._times, self._numbers, self._clicks

    def forget(self, user: str) -> int:
        """Nothing is known of the user any more -> clicks that were kept. The user of the last slot moves to theirs."""
        slot = self._slots.pop(user, None)
        if slot is None:
            return 0
        kept = int(min(self._clicks[slot], self.history_max))
        last = len(self._slots)
        moved = self._users.pop()
        if slot != last:
            self._users[slot] = moved
            self._slots[moved] = slot
        for array in self._arrays():
            array[slot] = array[last]
            array[last] = 0
        return kept

    def user_ids(self) -> list[str]:
        return self.users()

    def count_user(self, user: UserKey) -> dict[str, int]:
        known = [name for name in user.user_ids if name in self._slots]
        return {"history_clicks": int(self.lengths(self.find(known)).sum())}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        return {"history_clicks": sum(self.forget(name) for name in user.user_ids)}

    def usage(self) -> tuple[int, int]:
        return len(self._slots), self.users_held

    def lengths(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Clicks kept of each slot, (N,)."""
        return np.minimum(self._clicks[slots], self.history_max)

    def append(self, slots: NDArray[np.int64], rows: Any, event_types: Any, timestamps: Any, numbers: Any = 0) -> None:
        """N new clicks, in order; a slot may stand there several times. All arguments are (N,); `numbers`: of the
        clicks among all users'."""
        place = (self._clicks[slots] + earlier_in_batch(slots)) % self.history_max
        self._rows[slots, place] = rows
        self._types[slots, place] = event_types
        self._times[slots, place] = timestamps
        self._numbers[slots, place] = numbers
        np.add.at(self._clicks, slots, 1)

    def oldest_first(
        self, slots: NDArray[np.int64], length: NDArray[np.int64] | int, behind: NDArray[np.int64] | int = 0
    ) -> ClicksOldestFirst:
        """The latest `length` (N,) clicks (or what there is) of N slots, leaving out the very last `behind` (N,)."""
        L = min(int(np.max(length)), self.history_max)
        ends = self._clicks[slots] - behind  # (N,)
        lengths = np.clip(np.minimum(ends, self.history_max - behind), 0, np.minimum(length, L))  # what the ring has
        order = np.arange(L)[None, :]  # (1, L)
        place = (ends[:, None] - lengths[:, None] + order) % self.history_max  # (N, L)
        inside = order < lengths[:, None]  # (N, L)
        at = slots[:, None]
        return ClicksOldestFirst(
            np.where(inside, self._rows[at, place], 0).astype(np.int64),
            np.where(inside, self._types[at, place], 0).astype(np.int64),
            np.where(inside, self._times[at, place], 0.0),
            lengths,
        )

    def newest_first(
        self, slots: NDArray[np.int64], length: int, behind: NDArray[np.int64] | int = 0
    ) -> ClicksNewestFirst:
        """The latest `length` clicks of N slots, leaving out the very last `behind` (N,), latest first."""
        lengths = np.clip(self._clicks[slots] - behind, 0, np.minimum(self.history_max - behind, length))  # (N,)
        order = np.arange(min(length, self.history_max))[None, :]  # (1, L)
        inside = order < lengths[:, None]  # (N, L)
        place = ((self._clicks[slots] - behind)[:, None] - 1 - order) % self.history_max  # (N, L)
        at = slots[:, None]
        return ClicksNewestFirst(
            np.where(inside, self._rows[at, place], 0).astype(np.int64),
            np.where(inside, self._times[at, place], 0.0),
            np.where(inside, self._numbers[at, place], 0),
            lengths,
        )

    def put_values(self, slots: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Notes the values of the latest N clicks, in order, if values are kept; a slot may stand there several times.

        Args:
            slots: (N,) of the clicks.
            values: (N,) NaN where a click has none.
        """
        if self.values is not None:
            behind = earlier_in_batch(slots[::-1])[::-1]
            self.values[slots, (self._clicks[slots] - 1 - behind) % self.history_max] = values

    def clicks_of(self, slot: int) -> tuple[NDArray[np.int64], ...]:
        """Returns rows, types, times and numbers of a slot's clicks, oldest first, (L,) each."""
        place = self._places(slot)
        return tuple(ring[slot, place] for ring in (self._rows, self._types, self._times, self._numbers))

    def values_of(self, slot: int) -> NDArray[np.float64]:
        """Returns the values of a slot's clicks, oldest first, (L,); NaN where they have none, or none are kept."""
        place = self._places(slot)
        if self.values is None:
            return np.full(len(place), np.nan)
        found: NDArray[np.float64] = self.values[slot, place].astype(np.float64)
        return found

    def _places(self, slot: int) -> NDArray[np.int64]:
        """Returns where a slot's clicks stand in the rings, oldest first, (L,)."""
        kept = int(min(self._clicks[slot], self.history_max))
        return np.arange(self._clicks[slot] - kept, self._clicks[slot]) % self.history_max

    def latest_at(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """When the latest click of each slot (N,) was made, in seconds; 0 where there is none."""
        found: NDArray[np.float64] = self._times[slots, (self._clicks[slots] - 1) % self.history_max]
        return np.where(self._clicks[slots] > 0, found, 0.0)

    def clicks_at(self, slots: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.int64]:
        """How many of the held clicks of slots (N,) were made at exactly these times (N,)."""
        found: NDArray[np.int64] = (self._times[slots] == times[:, None]).sum(1)
        return found

    def users(self) -> list[str]:
        """Users who have a history, least recently seen first."""
        return list(self._slots)

    def clicked_at(self) -> NDArray[np.float64]:
        """When the latest click of each user was made, in the order of their slots, in seconds."""
        return self.latest_at(np.arange(len(self._slots)))

    def clicked_active_at(self) -> NDArray[np.float64]:
        """The same in active time."""
        return self.active_at[: len(self._slots)]

    def users_of(self, slots: Iterable[int]) -> list[str]:
        """The users of these slots."""
        return [self._users[slot] for slot in slots]

    def recently_seen(self, count: int) -> NDArray[np.int64]:
        """Slots of the `count` users seen last who have at least two clicks, latest first."""
        slots = np.fromiter(reversed(self._slots.values()), np.int64, len(self._slots))
        return slots[self._clicks[slots] >= 2][:count]

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Items that lost their row: their clicks become unknown ones (row 0), before the row is handed out again."""
        gone, users = marked(rows), len(self)
        clear_places(self._rows[:users], self._clicks[:users], gone)
        clear_places(self.served[:users], np.full(users, SERVED), gone)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Arrays (only clicks that exist) and the users, least recently seen first."""
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        pieces = [self._piece(slots[at : at + PIECE]) for at in range(0, max(1, len(slots)), PIECE)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}, list(self._slots)

    def _piece(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The arrays of some slots (N,). What it works on has 10 kB a slot, so not all are done at once."""
        latest = self.oldest_first(slots, self.history_max)
        inside = np.arange(latest.rows.shape[1]) < latest.lengths[:, None]
        arrays: dict[str, NDArray[Any]] = {
            "clicks": self._clicks[slots],
            "lengths": latest.lengths,
            "served": self.served[slots],
            "origins": self.origins[slots],
            "active_at": self.active_at[slots],
            "rows": latest.rows[inside].astype(np.int32),
            "types": latest.event_types[inside].astype(np.uint8),
            "times": latest.timestamps[inside],
            "numbers": self._latest(self._numbers, slots, latest)[inside],
        }
        if self.values is not None:
            arrays["values"] = self._latest(self.values, slots, latest)[inside]
        return arrays

    def _latest(self, ring: NDArray[Any], slots: NDArray[np.int64], latest: ClicksOldestFirst) -> NDArray[Any]:
        """Another ring's entries in the places of `latest`, (N, L)."""
        start = self._clicks[slots] - latest.lengths
        place = (start[:, None] + np.arange(latest.rows.shape[1])) % self.history_max
        found: NDArray[Any] = ring[slots[:, None], place]
        return found

    def load_state(self, arrays: dict[str, NDArray[Any]], users: Sequence[str]) -> None:
        """Takes back what `to_state` gave; with a smaller `history_max` or `users_held` the latest are kept."""
        ends = np.cumsum(arrays["lengths"])
        kept_users = range(max(0, len(users) - self.users_held), len(users))
        self._users = [users[index] for index in kept_users]
        self._slots = OrderedDict((user, slot) for slot, user in enumerate(self._users))
        capacity = min(1024, self.users_held)
        while capacity < len(self._slots):
            capacity = min(2 * capacity, self.users_held)
        self._allocate(capacity)
        for slot, index in enumerate(kept_users):
            end, kept = int(ends[index]), min(int(arrays["lengths"][index]), self.history_max)
            # A ring that is not full must not claim clicks that a smaller one had dropped.
            clicks = int(arrays["clicks"][index]) if kept == self.history_max else kept
            place = np.arange(clicks - kept, clicks) % self.history_max
            self._rows[slot, place] = arrays["rows"][end - kept : end]
            self._types[slot, place] = arrays["types"][end - kept : end]
            self._times[slot, place] = arrays["times"][end - kept : end]
            self._numbers[slot, place] = arrays["numbers"][end - kept : end]
            if self.values is not None:
                self.values[slot, place] = arrays["values"][end - kept : end] if "values" in arrays else np.nan
            self._clicks[slot] = clicks
            self.served[slot] = arrays["served"][index]
            self.origins[slot] = arrays["origins"][index]
            self.active_at[slot] = arrays["active_at"][index]


class HistorySnapshot:
    """The latest `length` clicks of some users, as they stood at one moment, for later questions.

    It answers `lengths` and `latest` as `UserHistories` did then, of these users and up to that length.
    """

    def __init__(self, histories: UserHistories, slots: NDArray[np.int64], length: int) -> None:
        """`slots` (N,), which may repeat."""
        self._slots = np.unique(slots)
        self._lengths = histories.lengths(self._slots)
        self._latest = histories.oldest_first(self._slots, length)
        self._history_max = histories.history_max

    def lengths(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Clicks kept of each slot, (N,)."""
        return self._lengths[np.searchsorted(self._slots, slots)]

    def oldest_first(
        self, slots: NDArray[np.int64], length: NDArray[np.int64] | int, behind: NDArray[np.int64] | int = 0
    ) -> ClicksOldestFirst:
        """The latest `length` (N,) clicks (or what there is) of N slots, leaving out the very last `behind` (N,)."""
        at = np.searchsorted(self._slots, slots)
        there = self._latest.lengths[at]
        L = min(int(np.max(length, initial=0)), self._latest.rows.shape[1])
        ends = there - behind  # (N,)
        lengths = np.clip(np.minimum(ends, self._history_max - behind), 0, np.minimum(length, L))
        place = np.maximum((ends - lengths)[:, None] + np.arange(L), 0)  # (N, L)
        inside = np.arange(L) < lengths[:, None]
        place = np.where(inside, place, 0)
        rows, types, times = (np.take_along_axis(part[at], place, 1) for part in self._latest[:3])
        return ClicksOldestFirst(
            np.where(inside, rows, 0), np.where(inside, types, 0), np.where(inside, times, 0.0), lengths
        )


def next_in_batch(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each slot (N,) stands next, further to the right; -1 where it does not."""
    order = np.argsort(slots, kind="stable")
    following = np.full(len(slots), -1)
    same = slots[order[1:]] == slots[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    return following


def earlier_in_batch(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many times each slot (N,) stood there already, further to the left."""
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    first = np.maximum.accumulate(np.where(np.diff(ordered, prepend=-1) != 0, np.arange(len(slots)), 0))
    earlier = np.empty(len(slots), np.int64)
    earlier[order] = np.arange(len(slots)) - first
    return earlier
