"""Which items each user does not want to see, and until when: what users say on the feedback topic.

Items are kept by id, since one that is hidden need not have a row yet. Times are of the stream: an item comes back once
the latest click anywhere is of a later time, so that learning the same records again hides the same items.

Letters: `U` users that are read.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.vocabulary import Vocabulary
from online.learner.user_stores import UserKey
from stream.user_ids import digest_of

_NONE = np.zeros(0, np.int64)


class HiddenItems:
    """At most `per_user_max` hidden items of each of at most `users_max` users.

    A user's oldest item makes room, and so does the user of whom there was no click and no feedback for longest, with
    all items.
    """

    def __init__(
        self, users_max: int, per_user_max: int, *, now: Callable[[], float], vocabulary: Callable[[], Vocabulary]
    ) -> None:
        """`now`: returns the stream's time, in seconds since 1970; `vocabulary`: returns the items' rows."""
        self.users_max, self.per_user_max = users_max, per_user_max
        self.users_lost = 0  # that had to make room, since the start of this process
        self.items_lost = 0  # likewise, theirs among them
        self._now, self._vocabulary = now, vocabulary
        self._items: OrderedDict[str, dict[str, float]] = OrderedDict()  # by user: until when (inf: for good), by item

    def __len__(self) -> int:
        """Users held."""
        return len(self._items)

    def __contains__(self, user: str) -> bool:
        return user in self._items

    # Feedback

    def hide(self, user: str, item_id: str, until: float | None = None) -> None:
        """Hides an item from a user until that time, in seconds since 1970; None: for good. The latest word counts."""
        items = self._items.setdefault(user, {})
        self._items.move_to_end(user)
        items.pop(item_id, None)
        items[item_id] = math.inf if until is None else until
        while len(items) > self.per_user_max:
            del items[next(iter(items))]
            self.items_lost += 1
        self._make_room()

    def dislike(self, user: str, item_id: str, until: float) -> None:
        """Hides an item until that time, or longer where the user has hidden it for longer."""
        until = max(until, self._items.get(user, {}).get(item_id, 0.0))
        self.hide(user, item_id, None if until == math.inf else until)

    def unhide(self, user: str, item_id: str) -> None:
        """The user may see the item again. The user stays known here, so that the list that lacks it is replaced."""
        if user in self._items:
            self._items[user].pop(item_id, None)
            self._items.move_to_end(user)

    def touch(self, users: Iterable[str]) -> None:
        """Notes that these users have clicked, so that they make room later than others."""
        for user in users if self._items else ():
            if user in self._items:
                self._items.move_to_end(user)

    def _make_room(self) -> None:
        while len(self._items) > self.users_max:
            _, items = self._items.popitem(last=False)
            self.users_lost += 1
            self.items_lost += len(items)

    # Questions

    def of(self, user_id: str, at: float | None = None) -> list[tuple[str, float | None]]:
        """Returns a user's hidden items, oldest first, and until when each is hidden; None: for good.

        Args:
            user_id: the user.
            at: the moment, in seconds since 1970; None: the stream's time.
        """
        at = self._now() if at is None else at
        items = self._items.get(user_id, {}).items()
        return [(item_id, None if until == math.inf else until) for item_id, until in items if until > at]

    def item_ids(self, user_id: str, at: float | None = None) -> set[str]:
        """Returns the items that a user must not be shown, at that moment."""
        return {item_id for item_id, _ in self.of(user_id, at)} if self._items else set()

    def rows(self, users: Sequence[str], at: Sequence[float] | None = None) -> list[NDArray[np.int64]] | None:
        """Returns the rows that each of U users must not be shown; None where none of them has hidden anything.

        Args:
            users: U of them, in any order, the same one several times if need be.
            at: U moments, in seconds since 1970; None: the stream's time.
        """
        if not self._items or not any(user in self._items for user in users):
            return None
        moments: Sequence[float | None] = [None] * len(users) if at is None else at
        return [self._rows_of(user, moment) for user, moment in zip(users, moments, strict=True)]

    def _rows_of(self, user: str, at: float | None) -> NDArray[np.int64]:
        if user not in self._items:
            return _NONE
        row_of = self._vocabulary().row_of
        rows = [row_of(item_id) for item_id, _ in self.of(user, at)]
        return np.array([row for row in rows if row], np.int64)

    # Forgetting

    def user_ids(self) -> list[str]:
        return list(self._items)

    def count_user(self, user: UserKey) -> dict[str, int]:
        return {"hidden_items": sum(len(self._items.get(name, ())) for name in user.user_ids)}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        return {"hidden_items": sum(len(self._items.pop(name, ())) for name in user.user_ids)}

    def forget(self, digest: str) -> int:
        """Forgets the user whose id has this digest -> how many hidden items there were."""
        names = frozenset(user for user in self._items if digest_of(user) == digest)
        return self.forget_user(UserKey(names, 0))["hidden_items"]

    def usage(self) -> tuple[int, int]:
        return len(self._items), self.users_max

    # State

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, list[str]]]:
        """Arrays `until` (float64, inf: for good) of all items, user by user, and `starts` (where each user's begin,
        and the end); the users, least lately used first, and the items of all of them, oldest first."""
        starts = np.zeros(len(self._items) + 1, np.int64)
        np.cumsum([len(items) for items in self._items.values()], out=starts[1:])
        until = np.array([moment for items in self._items.values() for moment in items.values()], np.float64)
        item_ids = [item_id for items in self._items.values() for item_id in items]
        return {"until": until, "starts": starts}, {"users": list(self._items), "items": item_ids}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Sequence[str]]) -> None:
        """Takes back what `to_state` gave. With smaller bounds the latest are kept, and the others count as lost."""
        starts, until, item_ids = arrays["starts"].tolist(), arrays["until"].tolist(), state["items"]
        self._items = OrderedDict()
        for at, user in enumerate(state["users"]):
            part = slice(starts[at], starts[at + 1])
            held = list(zip(item_ids[part], until[part], strict=True))
            self.items_lost += max(0, len(held) - self.per_user_max)
            self._items[user] = dict(held[-self.per_user_max :])
        self._make_room()
