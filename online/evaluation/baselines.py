"""Counting methods, exact and up to date with every single click: what a learned list has to beat.

| method    | an item's score                                                                                     |
| --------- | --------------------------------------------------------------------------------------------------- |
| `popular` | clicks on it so far                                                                                 |
| `recent`  | the same, each click halved for every 3,000 later ones; the best item has 1                         |
| `own`     | √(times this user had it) · 0.98^(their clicks since), + 0.001 recent                             |
| `markov`  | times it directly followed this user's last item, in any user's history, + 0.1 recent              |
| `knn`     | clicks on it within 20 of each of this user's last 20 items (0.85^age), both ways (the other way   |
|           | half), divided by the roots of both popularities + 5, + 0.0001 recent                               |
| `blend`   | knn + own + markov, each with its best item at 1 and without its recent, + 0.3 recent               |

All but the first are sparse scores above a share of `recent`, which everything has. So an item's rank is counted among
the few that have more than that share; of the others it takes only the number of those that are more recent. And an
item that has no more than that share stands behind everything that is more recent, which mostly ends the search.

Letters: `V` items that occurred so far, `S` items with a sparse score (the support).
"""

import copy
import math
from array import array
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.metrics import K

METHODS = ("popular", "recent", "own", "markov", "knn", "blend")

_HALF_LIFE_CLICKS = 3_000.0
_GROWTH = 2 ** (1 / _HALF_LIFE_CLICKS)  # of a new click's weight, so that nothing ever has to be decayed
_RESCALE_ABOVE = 1e50
_NEAR = 20  # clicks
_NEAR_DECAY = 0.85
_NEAR_BACKWARDS = 0.5
_POPULARITY_PRIOR = 5.0
_OWN_DECAY = 0.98
_SHARE_OWN, _SHARE_MARKOV, _SHARE_KNN, _SHARE_BLEND = 1e-3, 0.1, 1e-4, 0.3  # of `recent` in each method
_TINY = 1e-9  # what a best score is divided by may be 0

Ids = NDArray[np.int64]
Values = NDArray[np.float64]


class _Row:
    """Counts of some items, in order of their first: a dictionary that numpy can read."""

    __slots__ = ("counts", "items", "place")

    def __init__(self) -> None:
        self.items = array("q")
        self.counts = array("d")
        self.place: dict[int, int] = {}

    def add(self, item: int, amount: float) -> None:
        place = self.place.get(item)
        if place is not None:
            self.counts[place] += amount
            return
        self.place[item] = len(self.items)
        self.items.append(item)
        self.counts.append(amount)


class _UserItems(_Row):
    """A user's items: how many times, and after how many of their clicks the last time was."""

    __slots__ = ("clicks", "lasts", "latest")

    def __init__(self) -> None:
        super().__init__()
        self.lasts = array("q")
        self.clicks = 0
        self.latest: deque[int] = deque(maxlen=_NEAR)  # newest last

    def clicked(self, item: int) -> None:
        self.clicks += 1
        self.latest.append(item)
        self.add(item, 1.0)
        if len(self.lasts) < len(self.items):
            self.lasts.append(self.clicks)
        else:
            self.lasts[self.place[item]] = self.clicks


class _Sparse(NamedTuple):
    """Scores of the support, each item once."""

    items: Ids  # (S,)
    scores: Values  # (S,)

    @property
    def scaled(self) -> Values:
        best: float = self.scores.max(initial=0.0)
        return self.scores / (best + _TINY)


_NO_ITEMS = np.zeros(0, np.int64)
_NO_VALUES = np.zeros(0)
_NOTHING = _Sparse(_NO_ITEMS, _NO_VALUES)


class Baselines:
    """All counting methods at once. Users and items are numbers that were handed out in order of first appearance.

    Memory: about 130 bytes for each pair of items that ever stood within 20 clicks of one user, each way.
    """

    def __init__(self, *, exclude_seen: bool = False, depth: int = K) -> None:
        """`exclude_seen`: whether items that a user had are left out; `depth`: ranks from it on
        are inf."""
        self.exclude_seen = exclude_seen
        self.depth = depth
        self.items = 0  # V
        self._weight = 1.0  # of the next click
        self._recent_max = 0.0
        self._users: dict[int, _UserItems] = {}
        self._follows: dict[int, _Row] = {}
        self._together: dict[int, _Row] = {}
        self._powers = [1.0]  # of _OWN_DECAY
        self._with_clicks = [0]  # how many items have n clicks or more
        self._popular = np.zeros(0)  # (V or more,) clicks
        self._recent = np.zeros(0)  # clicks, decayed, times the weight of the next one
        self._root = np.zeros(0)  # what knn divides by
        self._scratch = np.zeros(0)  # 0 between calls
        self._make_room(1024)

    def _make_room(self, items: int) -> None:
        more = np.zeros(items - len(self._popular))
        self._popular, self._recent = np.concatenate([self._popular, more]), np.concatenate([self._recent, more])
        self._root, self._scratch = np.sqrt(self._popular + _POPULARITY_PRIOR), np.zeros(items)

    def ranks(self, user: int, item: int) -> Values:
        """The item's rank (from 0) in each of METHODS, (6,), among all items that occurred, half of the ties as ahead.

        inf where it is not below `depth`, where the item never occurred, and, with `exclude_seen`, where this user had
        it.
        """
        owned = self._users.get(user) or _UserItems()
        ranks = np.full(len(METHODS), np.inf)
        if item >= self.items or (self.exclude_seen and item in owned.place):
            return ranks
        seen = _ids(owned) if self.exclude_seen else _NO_ITEMS
        ranks[0] = self._popular_rank(item, seen)
        recent = self._recent[: self.items]
        more_recent = _place(recent, recent[item])  # seen ones included
        ranks[1] = more_recent - _place(recent[seen], recent[item], with_itself=False)

        near_rows, followed_row = self._near_rows(owned), self._follows.get(owned.latest[-1] if owned.latest else -1)
        in_own = not self.exclude_seen and item in owned.place
        in_followed = followed_row is not None and item in followed_row.place
        in_near = any(item in row.place for row, _ in near_rows)
        in_any = in_own or in_followed or in_near
        if in_any or ranks[1] < self.depth:
            near, own, followed = self._near(near_rows), self._own(owned), _sparse(followed_row)
            parts = (
                (own, _SHARE_OWN, in_own),
                (followed, _SHARE_MARKOV, in_followed),
                (near, _SHARE_KNN, in_near),
                (self._blend(near, own, followed), _SHARE_BLEND, in_any),
            )
            for method, (found, share, inside) in enumerate(parts, start=2):
                if inside or ranks[1] < self.depth:
                    ranks[method] = self._rank(item, found, share, seen, more_recent)
        ranks[ranks >= self.depth] = np.inf
        return ranks

    def clicks(self) -> Values:
        """Clicks on each item so far, (V,): a view."""
        return self._popular[: self.items]

    def scores(self, user: int) -> Values:
        """Each item's score in each of METHODS for this user, (6, V); -inf where seen items are excluded."""
        owned = self._users.get(user) or _UserItems()
        near, own = self._near(self._near_rows(owned)), self._own(owned)
        followed = _sparse(self._follows.get(owned.latest[-1] if owned.latest else -1))
        parts = (
            *((own, _SHARE_OWN), (followed, _SHARE_MARKOV), (near, _SHARE_KNN)),
            (self._blend(near, own, followed), _SHARE_BLEND),
        )
        recent = self._fresh(slice(0, self.items))
        scores = np.stack([self._popular[: self.items], recent, *(share * recent for _, share in parts)])
        for row, (found, _) in zip(scores[2:], parts, strict=True):
            row[found.items] += found.scores
        if self.exclude_seen:
            scores[:, _ids(owned)] = -np.inf
        return scores

    def _popular_rank(self, item: int, seen: Ids) -> float:
        clicks = int(self._popular[item])
        ahead = self._with_clicks[clicks + 1] if clicks + 1 < len(self._with_clicks) else 0
        tied = self._with_clicks[clicks] - ahead - 1
        return ahead + tied / 2 - _place(self._popular[seen], float(clicks), with_itself=False)

    def _fresh(self, at: Any) -> Any:
        """Decayed clicks on some items; the best of all items has 1."""
        return self._recent[at] / (self._recent_max + _TINY)

    def _rank(self, item: int, found: _Sparse, share: float, seen: Ids, more_recent: float) -> float:
        """An item's rank when every item scores `share` of its `recent`, and some of them more on top of it."""
        items, extra = found
        if len(seen):
            self._scratch[seen] = 1.0
            kept = self._scratch[items] == 0.0
            self._scratch[seen] = 0.0
            items, extra = items[kept], extra[kept]
        scores = extra + share * self._fresh(items)
        counted = np.concatenate([items, seen])  # not to be counted once more, or not at all
        own_scores = scores[items == item]
        if not len(own_scores):
            rest = more_recent - _place(self._recent[counted], self._recent[item], with_itself=False)
            return rest + _place(scores, share * self._fresh(item), with_itself=False)
        rank = _place(scores, own_scores[0])
        as_recent = own_scores[0] / share * (self._recent_max + _TINY)  # an item without a score needs more than this
        if as_recent < self._recent_max:
            rank += np.count_nonzero(self._recent[: self.items] > as_recent)
            rank -= np.count_nonzero(self._recent[counted] > as_recent)
        return rank

    def _near_rows(self, owned: _UserItems) -> list[tuple[_Row, float]]:
        """What occurred near each of the user's latest items, and how much that counts."""
        factors: dict[int, float] = {}
        for age, before in enumerate(reversed(owned.latest)):
            factors[before] = factors.get(before, 0.0) + _NEAR_DECAY**age / float(self._root[before])
        return [(self._together[before], factor) for before, factor in factors.items()]

    def _near(self, rows: list[tuple[_Row, float]]) -> _Sparse:
        if not rows:
            return _NOTHING
        items = np.concatenate([_ids(row) for row, _ in rows])
        amounts = np.concatenate([_counts(row) for row, _ in rows])
        amounts *= np.repeat([factor for _, factor in rows], [len(row.items) for row, _ in rows])
        return self._summed(items, amounts, divided_by=self._root)

    def _summed(self, items: Ids, amounts: Values, divided_by: Values | None = None) -> _Sparse:
        sums = np.bincount(items, amounts, self.items).astype(np.float64, copy=False)  # (V,)
        support = np.flatnonzero(sums > 0.0)
        return _Sparse(support, sums[support] if divided_by is None else sums[support] / divided_by[support])

    def _own(self, owned: _UserItems) -> _Sparse:
        if self.exclude_seen or not owned.clicks:
            return _NOTHING
        while len(self._powers) <= owned.clicks:
            self._powers.append(_OWN_DECAY ** len(self._powers))
        recency = np.array(self._powers[: owned.clicks])[owned.clicks - np.frombuffer(owned.lasts, np.int64)]
        return _Sparse(_ids(owned), np.sqrt(_counts(owned)) * recency)

    def _blend(self, *parts: _Sparse) -> _Sparse:
        """The sum of the parts; each counts by its share of its own best."""
        items = np.concatenate([part.items for part in parts])
        return self._summed(items, np.concatenate([part.scaled for part in parts]))

    def learn(self, user: int, item: int) -> None:
        """One click. An item that never occurred has the number `items`."""
        self.items = max(self.items, item + 1)
        if self.items > len(self._popular):
            self._make_room(2 * self.items)
        self._popular[item] += 1
        clicks = int(self._popular[item])
        if clicks == len(self._with_clicks):
            self._with_clicks.append(0)
        self._with_clicks[clicks] += 1
        self._root[item] = math.sqrt(clicks + _POPULARITY_PRIOR)
        self._weight *= _GROWTH
        self._recent[item] += self._weight
        self._recent_max = max(self._recent_max, float(self._recent[item]))
        if self._weight > _RESCALE_ABOVE:
            self._recent /= self._weight
            self._recent_max /= self._weight
            self._weight = 1.0
        owned = self._users.setdefault(user, _UserItems())
        if owned.latest:
            self._follows.setdefault(owned.latest[-1], _Row()).add(item, 1.0)
        row = self._together.setdefault(item, _Row())
        for before in set(owned.latest):
            if before != item:
                self._together[before].add(item, 1.0)
                row.add(before, _NEAR_BACKWARDS)
        owned.clicked(item)

    def frozen(self) -> "Baselines":
        """Returns a copy with the same counts, whose users go on by `visit`; valid until the next `learn`."""
        twin = copy.copy(self)
        twin._users = copy.deepcopy(self._users)
        return twin

    def visit(self, user: int, item: int) -> None:
        """One click that enters its user's history and is not counted. An item that never occurred is left out."""
        if item < self.items:
            self._users.setdefault(user, _UserItems()).clicked(item)


def _place(scores: Values, score: float, *, with_itself: bool = True) -> float:
    """How many scores are ahead of one of them (or of one outside), half of the ties counted."""
    tied = np.count_nonzero(scores == score) - int(with_itself)
    return np.count_nonzero(scores > score) + tied / 2


def _sparse(row: _Row | None) -> _Sparse:
    return _NOTHING if row is None else _Sparse(_ids(row), _counts(row))


def _ids(row: _Row) -> Ids:
    """A view: it has to be gone before the row grows again, which Python refuses otherwise."""
    return np.frombuffer(row.items, np.int64) if row.items else _NO_ITEMS


def _counts(row: _Row) -> Values:
    return np.frombuffer(row.counts, np.float64) if row.counts else _NO_VALUES
