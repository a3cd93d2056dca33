"""Users' attributes and tags, and what users who share one click on.

Of each user only the numbers of groups are kept (features.py). A group's clicks are sums over its users: of a group
with less than `GROUP_USERS_MIN` users that are held none is used, since it would tell of one user and not of a group.
Clicks are counted by weights that grow with active time, so that older ones count less (forward decay: Cormode et al.
2009).

Letters: `N` queries, `K` groups of a user, `C` candidates of all queries (flat), `V` rows of items, `G` columns.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.learner.arrays import below, joined
from online.learner.facts.gather import SeenRows
from online.learner.facts.store import Gathered
from online.learner.facts.tables import decay, empty_table, forget_rows, load_table, table_to_state, with_room
from online.learner.groups import kernels
from online.learner.groups.columns import COLUMNS
from online.learner.groups.features import GROUPS_OF_USER_MAX, NUMBERS, groups_of, groups_of_moments
from online.learner.user_stores import UserKey
from stream.users import User

ITEMS_OF_GROUP = 64  # that are counted
GROUP_USERS_MIN = 3
CANDIDATES_MAX = 16  # of a query
FEW_CLICKS = 10  # users with fewer get candidates of their groups
_DOUBLINGS_MAX = 32.0  # of the weight of a click, before all counts are scaled back


class UserGroups:
    """Groups of at most `users_max` users, and the clicks of each group. For the loop's thread only.

    The user of whom there was no record and no click for longest makes room.
    """

    def __init__(self, users_max: int, half_life_s: float, *, by_hour: bool = False) -> None:
        """`half_life_s`: active time in which counts are halved; `by_hour`: whether those who come at the same hour, or
        on the same day of the week, are groups."""
        self.users_max, self.half_life_s, self.by_hour = users_max, half_life_s, by_hour
        self.users_lost = 0  # that had to make room, since the start of this process
        self.unread = False  # whether records were read by a worker that kept nothing, or less, of them
        self._groups: OrderedDict[str, NDArray[np.uint16]] = OrderedDict()  # by user, least lately used first
        self._clear()

    def _clear(self) -> None:
        self.with_group = np.zeros(NUMBERS, np.int32)  # users that are held
        self.table = empty_table(NUMBERS, ITEMS_OF_GROUP)
        self.popular = np.zeros(1)  # (V,) clicks of all users
        self._buffer = np.zeros(1, np.float32)  # (V,) zeros
        self.total = 0.0
        self._since: float | None = None  # active time at which a click weighed 1
        self._unit = 1.0  # what a click of the latest time weighs

    def __len__(self) -> int:
        """Users held."""
        return len(self._groups)

    def __contains__(self, user: str) -> bool:
        return user in self._groups

    # Records

    def put(self, user: User) -> None:
        """Takes in the latest record of a user, which says all there is; one that says nothing is erased."""
        self._remove(user.user_id)
        groups = groups_of(user.tags, user.attributes)
        if not len(groups):
            return
        self._groups[user.user_id] = groups
        self.with_group[groups] += 1
        while len(self._groups) > self.users_max:
            self._remove(next(iter(self._groups)))
            self.users_lost += 1

    def _remove(self, user_id: str) -> int:
        groups = self._groups.pop(user_id, None)
        if groups is None:
            return 0
        self.with_group[groups] -= 1
        return len(groups)

    # Clicks

    def grow(self, rows: int) -> None:
        """Makes room for this many rows of items."""
        if rows > len(self.popular):
            self.popular = np.concatenate([self.popular, np.zeros(rows - len(self.popular))])
            self._buffer = np.zeros(rows, np.float32)

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Items that have lost their rows."""
        gone = np.zeros(len(self.popular), np.bool_)
        gone[list(rows)] = True
        forget_rows(self.table, gone)
        self.total -= float(self.popular[gone].sum())
        self.popular[gone] = 0

    def decay(self, factor: float) -> None:
        """Multiplies all counts by `factor`."""
        decay(self.table, factor)
        self.popular *= factor
        self.total *= factor

    @property
    def active(self) -> bool:
        """Whether there are any groups."""
        return self.by_hour or len(self._groups) > 0

    def observe(
        self,
        users: Sequence[str],
        rows: NDArray[np.int64],
        times: NDArray[np.float64],
        active: NDArray[np.float64],
        counted: NDArray[np.bool_],
    ) -> None:
        """Counts clicks (n,).

        Args:
            users: n of them, each of whom is used last from now on.
            rows: (n,) of the items, 0 for none.
            times: (n,) seconds since 1970.
            active: (n,) active time.
            counted: (n,) which of them count; the others are abuse.
        """
        for user in users:
            if user in self._groups:
                self._groups.move_to_end(user)
        at = np.flatnonzero(counted & (rows > 0))
        if not len(at):
            return
        weights = self._weights(active[at])
        np.add.at(self.popular, rows[at], weights)
        self.total += float(weights.sum())
        groups = self._of_users([users[one] for one in at.tolist()])
        if self.by_hour:
            groups = np.concatenate([groups, groups_of_moments(times[at])], 1)
        self.table = with_room(self.table, groups.size)
        kernels.count_clicks(self.table, groups, rows[at], weights)

    def _weights(self, active: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns what clicks at these times weigh; first all counts are scaled back where that would be too much."""
        if self._since is None:
            self._since = float(active[0])
        doublings = (active - self._since) / self.half_life_s
        if (most := float(doublings.max())) > _DOUBLINGS_MAX:
            self.decay(0.5**most)
            self._since += most * self.half_life_s
            doublings = doublings - most
        weights: NDArray[np.float64] = 2.0**doublings
        self._unit = float(weights.max())
        return weights

    # Queries

    def groups(self, users: Sequence[str], times: NDArray[np.float64], few: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Returns the groups of queries (N, K), 0 where there are no more; those of too few users are left out.

        Args:
            users: N ids; "" for none.
            times: (N,) seconds since 1970.
            few: (N,) whether the user has few clicks: then the hour and the day are among them.
        """
        groups = self._of_users(users)
        groups = np.where(self.with_group[groups] >= GROUP_USERS_MIN, groups, 0)
        if self.by_hour:
            groups = np.concatenate([groups, np.where(few[:, None], groups_of_moments(times), 0)], 1)
        return groups

    def _of_users(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Returns all groups of N users by their records, (N, K)."""
        found = np.zeros((len(users), GROUPS_OF_USER_MAX), np.int64)
        for n, user in enumerate(users):
            groups = self._groups.get(user)
            if groups is not None:
                found[n, : len(groups)] = groups
        return found

    def candidates(self, groups: NDArray[np.int64], wanted: NDArray[np.bool_], blocked: NDArray[np.bool_]) -> SeenRows:
        """Returns the items that stand out in queries' groups.

        Args:
            groups: (N, K).
            wanted: (N,) which of the queries are to get any.
            blocked: (V,) items that must not be listed.
        """
        at = np.flatnonzero(wanted & (groups > 0).any(1))
        found = np.zeros((len(at), CANDIDATES_MAX), np.int64)
        kernels.find_best(
            self.table, self.popular, self.total, self._unit, groups[at], blocked, self._buffer,
            np.empty(CANDIDATES_MAX, np.float32), found,
        )  # fmt: skip
        counts = np.zeros(len(groups), np.int64)
        counts[at] = (found > 0).sum(1)
        return SeenRows(True, np.concatenate([[0], np.cumsum(counts)]), found[found > 0])

    def columns(self, gathered: Gathered, groups: NDArray[np.int64], history: int) -> NDArray[np.float32]:
        """Returns what groups (N, K) say of candidates, (C, G). `history`: the column of the features that holds the
        logarithm of the user's clicks."""
        out = np.empty((len(gathered.rows), len(COLUMNS)), np.float32)
        kernels.fill_groups(
            self.table, self.popular, self.total, self._unit, groups, gathered.starts, gathered.rows,
            np.ascontiguousarray(gathered.features[:, history]), self._buffer, out,
        )  # fmt: skip
        return out

    # Forgetting, and a checkpoint (online/learner/user_stores.py)

    def user_ids(self) -> Iterable[str]:
        return list(self._groups)

    def count_user(self, user: UserKey) -> dict[str, int]:
        return {"user_attributes": sum(len(self._groups.get(name, ())) for name in user.user_ids)}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        return {"user_attributes": sum(self._remove(name) for name in user.user_ids)}

    def usage(self) -> tuple[int, int]:
        return len(self._groups), self.users_max

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays: `groups` of all users, one after the other, `sizes`, the table, and clicks by item; and the users."""
        groups = list(self._groups.values())
        arrays = {
            "groups": np.concatenate([np.zeros(0, np.uint16), *groups]),
            "sizes": np.array([len(one) for one in groups], np.uint8),
            "popular": self.popular.copy(),
        }
        state = {
            "users": list(self._groups),
            "users_max": self.users_max,
            "total": self.total,
            "since": self._since,
            "unit": self._unit,
        }
        return arrays | joined({"table": table_to_state(self.table, NUMBERS)}), state

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave; of more users than there is room for, those used last."""
        self._clear()
        self._groups = OrderedDict()
        parts = np.split(arrays["groups"], np.cumsum(arrays["sizes"], dtype=np.int64)[:-1])
        held = list(zip(state["users"], parts, strict=True)) if state["users"] else []
        for user, groups in held[-self.users_max :]:
            self._groups[user] = groups.copy()
            self.with_group[groups] += 1
        self.table = load_table(self.table, below(dict(arrays), "table"))
        self.popular, self.total = arrays["popular"].copy(), float(state["total"])
        self._buffer = np.zeros(len(self.popular), np.float32)
        self._since, self._unit = state["since"], float(state["unit"])
        self.unread = len(state["users"]) == state["users_max"] < self.users_max
