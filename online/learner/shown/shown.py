"""Lists that were shown: each is joined to the clicks that follow, and what was shown and not clicked counts.

A click is learned as a choice among what was shown: each candidate weighs as much as its position is examined, and one
that was not shown weighs `UNSHOWN`. So an item is no negative where it could not be seen, and hardly one where it stood
low.
A list waits for its user's clicks for `window_s` of the stream's time. Then its items are counted by the click model
(click_model.py), and those that were not clicked are noted as passed over by the user. The list that a user is looking
at is not counted yet, so that being shown speaks neither for an item nor against it.

Clicks and lists come on topics of their own, in no order between them. A list that comes after its clicks finds them in
the user's history.

Letters: `P` lists that wait, `M` items of a list, `U` users, `R` items that a user passed over, `C` candidates of all
queries (flat), `V` rows, `G` columns.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.vocabulary import Vocabulary, grown
from online.learner.arrays import below, joined
from online.learner.facts.store import Gathered
from online.learner.history import UserHistories
from online.learner.shown.click_model import SMOOTHING, ClickModel, bands_of
from online.learner.shown.columns import COLUMNS
from online.learner.user_stores import UserKey
from stream.impressions import Impression
from stream.user_ids import digest_of

ITEMS_MAX = 50  # M: of a list, the first ones
PASSED_MAX = 64  # R: the latest
EARLY_S = 5.0  # by which a click may be earlier than its list: two clocks
FORGOTTEN_MAX = 10_000  # requests to forget that are remembered, the latest
UNSHOWN = 0.01  # what an item that was not shown weighs among those that a click was chosen from
_USERS_FIRST = 64


class ShownItems:
    """At most `lists_max` lists that wait, and what at most `users_max` users passed over. For the loop's thread
    only."""

    def __init__(
        self,
        *,
        lists_max: int,
        users_max: int,
        window_s: float,
        histories: UserHistories,
        vocabulary: Callable[[], Vocabulary],
    ) -> None:
        """`histories`: of all users; `vocabulary`: returns the items' rows."""
        self.lists_max, self.users_max, self.window_s = lists_max, users_max, window_s
        self.lists_lost = 0  # that made room before their time, since the start of this process
        self._histories, self._vocabulary = histories, vocabulary
        self._buffer = np.zeros(1, np.float32)  # (V,) zeros
        self._clear()

    def _clear(self) -> None:
        P, M = self.lists_max, ITEMS_MAX
        self.model = ClickModel()
        self.model.grow(len(self._buffer))
        # Lists by number, modulo P; those from `_oldest` up to `_next` wait, oldest first.
        self._rows, self._bands = np.zeros((P, M), np.int32), np.zeros((P, M), np.int8)
        self._drawn, self._clicked = np.zeros((2, P, M), np.bool_)
        self._at = np.zeros(P)
        self._users: list[str] = [""] * P
        self._oldest = self._next = 0
        self._lists_of: dict[str, list[int]] = {}
        #: Of users who passed something over, least lately used first.
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._free: list[int] = []
        self._passed: NDArray[np.int32] = np.zeros((_USERS_FIRST, PASSED_MAX), np.int32)  # rows; 0: none
        self._passed_bands: NDArray[np.int8] = np.zeros((_USERS_FIRST, PASSED_MAX), np.int8)
        self._passed_next = np.zeros(_USERS_FIRST, np.int64)
        self.forgotten: OrderedDict[str, float] = OrderedDict()  # by digest: when, in seconds since 1970

    @property
    def waiting(self) -> int:
        """How many lists wait for clicks."""
        return self._next - self._oldest

    def has_room(self, now: float) -> bool:
        """Returns whether lists should be taken in: not where there is no room, and those that wait are ahead of the
        clicks. `now`: the stream's time."""
        newest = self._at[(self._next - 1) % self.lists_max]
        return self.waiting < self.lists_max or newest <= now + self.window_s

    # Lists and clicks

    def put(self, shown: Impression) -> None:
        """Takes in a list. One of a visitor, whose clicks cannot be told, and one that was shown to a user before that
        user was forgotten, are passed over."""
        user, at = shown.user_id, shown.timestamp
        if user is None or (self.forgotten and at <= self.forgotten.get(digest_of(user), -np.inf)):
            return
        row_of = self._vocabulary().row_of
        items = sorted(shown.items, key=lambda item: item.position)[:ITEMS_MAX]
        if self.waiting == self.lists_max:
            self.lists_lost += 1
            self._drop_oldest()
        number, self._next = self._next, self._next + 1
        place = number % self.lists_max
        self._users[place], self._at[place] = user, at
        self._rows[place], self._clicked[place], self._drawn[place] = 0, False, False
        self._rows[place, : len(items)] = [row_of(item.item_id) for item in items]
        self._bands[place, : len(items)] = bands_of(np.array([item.position for item in items]))
        self._drawn[place, : len(items)] = [item.explored for item in items]
        self._lists_of.setdefault(user, []).append(number)
        if user in self._histories:
            rows, _, times, _ = self._histories.clicks_of(int(self._histories.find([user])[0]))
            theirs = rows[(times >= at - EARLY_S) & (times <= at + self.window_s)]
            self._clicked[place] = (self._rows[place] > 0) & np.isin(self._rows[place], theirs)

    def _drop_oldest(self) -> None:
        place = self._oldest % self.lists_max
        user = self._users[place]
        if user:
            numbers = self._lists_of[user]
            numbers.remove(self._oldest)
            if not numbers:
                del self._lists_of[user]
        self._users[place], self._rows[place] = "", 0
        self._oldest += 1

    def observe(
        self,
        users: Sequence[str],
        rows: NDArray[np.int64],
        times: NDArray[np.float64],
        counted: NDArray[np.bool_],
        now: float,
    ) -> None:
        """Joins clicks (n,) to lists, and counts the lists whose time is over.

        Args:
            users: n of them.
            rows: (n,) of the items, 0 for none.
            times: (n,) seconds since 1970.
            counted: (n,) which of them count; the others are abuse.
            now: the stream's time.
        """
        for n in np.flatnonzero(counted & (rows > 0)).tolist():
            self._click(users[n], int(rows[n]), float(times[n]))
        done = self._oldest
        while done < self._next and self._at[done % self.lists_max] + self.window_s < now:
            done += 1
        if done > self._oldest:
            self._count(np.arange(self._oldest, done) % self.lists_max)
            while self._oldest < done:
                self._drop_oldest()

    def _click(self, user: str, row: int, at: float) -> None:
        """Joins a click to the latest list that holds the item; the user passes it over no longer."""
        place = self._list_of(user, row, at)
        if place is not None:
            self._clicked[place] |= self._rows[place] == row
        slot = self._slots.get(user)
        if slot is not None:
            self._passed[slot][self._passed[slot] == row] = 0

    def _list_of(self, user: str, row: int, at: float) -> int | None:
        """Returns the place of the latest list that a click is on; None: there is none."""
        for number in reversed(self._lists_of.get(user, ())):
            place = number % self.lists_max
            in_time = self._at[place] - EARLY_S <= at <= self._at[place] + self.window_s
            if row and in_time and (self._rows[place] == row).any():
                return place
        return None

    def _count(self, places: NDArray[np.int64]) -> None:
        there = self._rows[places] > 0
        rows, bands = self._rows[places][there].astype(np.int64), self._bands[places][there].astype(np.int64)
        self.model.add(rows, bands, self._drawn[places][there], self._clicked[places][there])
        for place in places.tolist():
            if self._users[place]:
                passed = (self._rows[place] > 0) & ~self._clicked[place]
                self._pass_over(self._users[place], self._rows[place][passed], self._bands[place][passed])

    def _pass_over(self, user: str, rows: NDArray[np.int32], bands: NDArray[np.int8]) -> None:
        slot = self._slot(user)
        at = (self._passed_next[slot] + np.arange(len(rows))) % PASSED_MAX
        self._passed[slot, at], self._passed_bands[slot, at] = rows, bands
        self._passed_next[slot] += len(rows)

    def _slot(self, user: str) -> int:
        slot = self._slots.get(user)
        if slot is None:
            if len(self._slots) == self.users_max:
                self._free_slot(next(iter(self._slots)))
            slot = self._free.pop() if self._free else len(self._slots)
            if slot == len(self._passed):
                more = grown(slot + 1, slot) - slot
                self._passed = np.pad(self._passed, ((0, more), (0, 0)))
                self._passed_bands = np.pad(self._passed_bands, ((0, more), (0, 0)))
                self._passed_next = np.pad(self._passed_next, (0, more))
            self._slots[user] = slot
        self._slots.move_to_end(user)
        return slot

    def _free_slot(self, user: str) -> int:
        """Forgets what a user passed over. Returns how many items that were."""
        slot = self._slots.pop(user, None)
        if slot is None:
            return 0
        count = int((self._passed[slot] > 0).sum())
        self._passed[slot], self._passed_bands[slot], self._passed_next[slot] = 0, 0, 0
        self._free.append(slot)
        return count

    # Rows

    def grow(self, rows: int) -> None:
        """Makes room for this many rows of items."""
        if rows > len(self._buffer):
            self._buffer = np.zeros(rows, np.float32)
            self.model.grow(len(self._buffer))

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Items that have lost their rows."""
        gone = np.zeros(len(self._buffer), np.bool_)
        gone[list(rows)] = True
        self.model.forget_rows(gone)
        for part in (self._rows, self._passed):
            part[gone[part]] = 0

    # Queries

    def columns(self, gathered: Gathered, users: Sequence[str]) -> NDArray[np.float32]:
        """Returns what is known of candidates from lists that were shown, (C, G). `users`: N ids; "" for none."""
        rows, model = gathered.rows, self.model
        clicks, examined = model.clicks[rows], model.shown[rows] @ model.examination
        out = np.zeros((len(rows), len(COLUMNS)), np.float32)
        out[:, 0] = np.log((clicks + SMOOTHING) / (model.rate * examined + SMOOTHING))
        out[:, 1] = np.log1p(examined) / 4
        for q, user in enumerate(users):
            slot = self._slots.get(user)
            if slot is not None:
                part = slice(*gathered.starts[q : q + 2])
                mine = self._passed[slot]
                np.add.at(self._buffer, mine, model.examination[self._passed_bands[slot]].astype(np.float32))
                self._buffer[0] = 0
                passed = self._buffer[rows[part]]
                out[part, 2], out[part, 3] = np.log1p(passed), passed > 0
                self._buffer[mine] = 0
        return out

    def offsets(
        self, gathered: Gathered, users: Sequence[str], rows: NDArray[np.int64], times: NDArray[np.float64]
    ) -> NDArray[np.float32] | None:
        """Returns logarithms of what candidates weigh among those that clicks were chosen from, (C,); 0 for clicks on
        no list; None: there are only such.

        Args:
            gathered: the candidates of N clicks.
            users: N of them.
            rows: (N,) of the clicked items.
            times: (N,) seconds since 1970.
        """
        out: NDArray[np.float32] | None = None
        for n, user in enumerate(users):
            place = self._list_of(user, int(rows[n]), float(times[n])) if user in self._lists_of else None
            if place is None:
                continue
            out = np.zeros(len(gathered.rows), np.float32) if out is None else out
            others = ~self._clicked[place] | (self._rows[place] == rows[n])  # what was clicked before is no rival
            mine, bands = self._rows[place][others], self._bands[place][others]
            self._buffer[mine] = self.model.examination[bands]
            self._buffer[0] = 0
            part = slice(*gathered.starts[n : n + 2])
            weights = self._buffer[gathered.rows[part]]
            out[part] = np.log(np.where(weights > 0, weights, UNSHOWN))
            self._buffer[mine] = 0
        return out

    # Forgetting, and a checkpoint (online/learner/user_stores.py)

    def ignore_before(self, digest: str, at: float) -> None:
        """Notes that a user was forgotten: lists that were shown before and come later are passed over."""
        self.forgotten[digest] = max(at, self.forgotten.pop(digest, at))
        while len(self.forgotten) > FORGOTTEN_MAX:
            self.forgotten.popitem(last=False)

    def user_ids(self) -> Iterable[str]:
        return [*dict.fromkeys([*self._lists_of, *self._slots])]

    def count_user(self, user: UserKey) -> dict[str, int]:
        lists = sum(len(self._lists_of.get(name, ())) for name in user.user_ids)
        slots = [self._slots[name] for name in user.user_ids if name in self._slots]
        return {"lists_shown": lists, "passed_items": int((self._passed[slots] > 0).sum())}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        found = self.count_user(user)
        for name in user.user_ids:
            for number in self._lists_of.pop(name, ()):
                place = number % self.lists_max  # an empty list of no user waits on
                self._users[place], self._rows[place] = "", 0
            self._free_slot(name)
        return found

    def usage(self) -> tuple[int, int]:
        return len(self._slots), self.users_max

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays of the lists that wait, oldest first, of what users passed over, and of the click model; the users of
        both, and digests of those who were forgotten."""
        places, slots = np.arange(self._oldest, self._next) % self.lists_max, list(self._slots.values())
        arrays: dict[str, NDArray[Any]] = {
            "rows": self._rows[places],
            "bands": self._bands[places],
            "drawn": self._drawn[places],
            "clicked": self._clicked[places],
            "at": self._at[places],
            "passed": self._passed[slots],
            "passed_bands": self._passed_bands[slots],
            "passed_next": self._passed_next[slots],
        }
        users = [self._users[place] for place in places.tolist()]
        state: dict[str, Any] = {"lists": users, "users": list(self._slots), "forgotten": dict(self.forgotten)}
        return arrays | joined({"model": self.model.to_state()}), state

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave; of more than there is room for, the latest."""
        self._clear()
        model = below(dict(arrays), "model")
        self.grow(len(model["clicks"]))
        self.model.load_state(model)
        self.model.grow(len(self._buffer))
        users = state["lists"][-self.lists_max :]
        kept = len(users)
        for name, part in (
            ("rows", self._rows), ("bands", self._bands), ("drawn", self._drawn), ("clicked", self._clicked),
            ("at", self._at),
        ):  # fmt: skip
            part[:kept] = arrays[name][len(arrays[name]) - kept :]
        self._users[:kept], self._next = users, kept
        for number, user in enumerate(users):
            if user:
                self._lists_of.setdefault(user, []).append(number)
        first = max(0, len(state["users"]) - self.users_max)
        for at, user in enumerate(state["users"][first:], start=first):
            slot = self._slot(user)
            self._passed[slot], self._passed_bands[slot] = arrays["passed"][at], arrays["passed_bands"][at]
            self._passed_next[slot] = arrays["passed_next"][at]
        self.forgotten = OrderedDict(state["forgotten"])
