"""Counting methods, exact and up to date with every single click: what a learned list has to beat.

| method    | an item's score                                                                                     |
| --------- | --------------------------------------------------------------------------------------------------- |
| `popular` | clicks on it so far                                                                                 |
| `recent`  | the same, each click halved for every 3,000 later ones; the best item has 1                         |
| `own`     | √(times this person had it) · 0.98^(their clicks since), + 0.001 recent                             |
| `markov`  | times it directly followed this person's last item, in anybody's history, + 0.1 recent              |
| `knn`     | clicks on it within 20 of each of this person's last 20 items (0.85^age), both ways (the other way   |
|           | half), divided by the roots of both popularities + 5, + 0.0001 recent                               |
| `blend`   | knn + own + markov, each with its best item at 1 and without its recent, + 0.3 recent               |

All but the first are sparse scores above a share of `recent`, which everything has. So an item's rank is counted among
the few that have more than that share; of the others it takes only the number of those that are more recent.

Letters: `V` items that occurred so far, `S` items with a sparse score (the support).
"""

import math
from array import array
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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

    def add(self, item: int, amount: float) -> int:
        place = self.place.setdefault(item, len(self.items))
        if place == len(self.items):
            self.items.append(item)
            self.counts.append(amount)
        else:
            self.counts[place] += amount
        return place


class _Person(_Row):
    """A person's items: how many times, and after how many of their clicks the last time was."""

    __slots__ = ("clicks", "lasts", "latest")

    def __init__(self) -> None:
        super().__init__()
        self.lasts = array("q")
        self.clicks = 0
        self.latest: deque[int] = deque(maxlen=_NEAR)  # newest last

    def clicked(self, item: int) -> None:
        self.clicks += 1
        self.latest.append(item)
        place = self.add(item, 1.0)
        if place == len(self.lasts):
            self.lasts.append(self.clicks)
        else:
            self.lasts[place] = self.clicks


class _Sparse(NamedTuple):
    """Scores of the support, each item once."""

    items: Ids  # (S,)
    scores: Values  # (S,)

    @property
    def scaled(self) -> Values:
        return self.scores / (self.scores.max(initial=0.0) + _TINY)


class Baselines:
    """All counting methods at once. Users and items are numbers that were handed out in order of first appearance.

    Memory: about 130 bytes for each pair of items that ever stood within 20 clicks of one person, each way.
    """

    def __init__(self, *, exclude_seen: bool = False) -> None:
        self.exclude_seen = exclude_seen
        self.items = 0  # V
        self._weight = 1.0  # of the next click
        self._recent_max = 0.0
        self._people: dict[int, _Person] = {}
        self._follows: dict[int, _Row] = {}
        self._together: dict[int, _Row] = {}
        self._powers = [1.0]  # of _OWN_DECAY
        self._make_room(1024)

    def _make_room(self, items: int) -> None:
        def longer(values: Values) -> Values:
            return np.concatenate([values, np.zeros(items - len(values))])

        empty = np.zeros(0)
        self._popular = longer(getattr(self, "_popular", empty))  # clicks
        self._recent = longer(getattr(self, "_recent", empty))  # clicks, decayed, times a growing weight
        self._root = np.sqrt(self._popular + _POPULARITY_PRIOR)
        self._scratch = np.zeros(items)  # 0 between calls

    def ranks(self, user: int, item: int) -> Values:
        """The item's rank (from 0) in each of METHODS, (6,), among all items that occurred, half of the ties as ahead.

        inf where the item never occurred, or, with `exclude_seen`, where this person had it already.
        """
        person = self._people.get(user) or _Person()
        if item >= self.items or (self.exclude_seen and item in person.place):
            return np.full(len(METHODS), np.inf)
        near, own, followed = self._near(person), self._own(person), self._followed(person)
        seen = _ids(person) if self.exclude_seen else np.zeros(0, np.int64)
        more_recent = self._more_recent(item)

        def rank(found: _Sparse, share: float) -> float:
            return self._rank(item, found, share, seen, more_recent)

        nothing = _Sparse(np.zeros(0, np.int64), np.zeros(0))
        popular = self._popular[: self.items]
        return np.array(
            [
                _place(popular, popular[item]) - _place(popular[seen], popular[item], with_itself=False),
                rank(nothing, 1.0),
                rank(own, _SHARE_OWN),
                rank(followed, _SHARE_MARKOV),
                rank(near, _SHARE_KNN),
                rank(self._blend(near, own, followed), _SHARE_BLEND),
            ]
        )

    def _fresh(self, at: Any) -> Any:
        """Decayed clicks on some items; the best of all items has 1."""
        return self._recent[at] / (self._recent_max + _TINY)

    def _more_recent(self, item: int) -> float:
        recent = self._recent[: self.items]
        return _place(recent, recent[item])

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
        mine = scores[items == item]
        if not len(mine):
            rest = more_recent - _place(self._recent[counted], self._recent[item], with_itself=False)
            return rest + _place(scores, share * self._fresh(item), with_itself=False)
        rank = _place(scores, mine[0])
        as_recent = mine[0] / share * (self._recent_max + _TINY)  # who has nothing on top needs more than this
        if as_recent < self._recent_max:
            rank += np.count_nonzero(self._recent[: self.items] > as_recent)
            rank -= np.count_nonzero(self._recent[counted] > as_recent)
        return rank

    def _near(self, person: _Person) -> _Sparse:
        factors: dict[int, float] = {}
        for age, before in enumerate(reversed(person.latest)):
            factors[before] = factors.get(before, 0.0) + _NEAR_DECAY**age / float(self._root[before])
        rows = [(row, factor) for before, factor in factors.items() if (row := self._together.get(before))]
        if not rows:
            return _Sparse(np.zeros(0, np.int64), np.zeros(0))
        amounts = np.concatenate([_counts(row) * factor for row, factor in rows])
        sums = np.bincount(np.concatenate([_ids(row) for row, _ in rows]), amounts, self.items)  # (V,)
        items = np.flatnonzero(sums)
        return _Sparse(items, sums[items] / self._root[items])

    def _own(self, person: _Person) -> _Sparse:
        if self.exclude_seen or not person.clicks:
            return _Sparse(np.zeros(0, np.int64), np.zeros(0))
        while len(self._powers) <= person.clicks:
            self._powers.append(_OWN_DECAY ** len(self._powers))
        recency = np.array(self._powers[: person.clicks])[person.clicks - np.frombuffer(person.lasts, np.int64)]
        return _Sparse(_ids(person).copy(), np.sqrt(_counts(person)) * recency)

    def _followed(self, person: _Person) -> _Sparse:
        row = self._follows.get(person.latest[-1]) if person.latest else None
        if row is None:
            return _Sparse(np.zeros(0, np.int64), np.zeros(0))
        return _Sparse(_ids(row).copy(), _counts(row).copy())

    def _blend(self, *parts: _Sparse) -> _Sparse:
        """The sum of the parts; each counts by its share of its own best."""
        items = np.concatenate([part.items for part in parts])
        amounts = np.concatenate([part.scaled for part in parts])
        sums = np.bincount(items, amounts, self.items) if len(items) else np.zeros(0)
        support = np.flatnonzero(sums)
        return _Sparse(support, sums[support])

    def learn(self, user: int, item: int) -> None:
        """One click. An item that never occurred has the number `items`."""
        self.items = max(self.items, item + 1)
        if self.items > len(self._popular):
            self._make_room(2 * self.items)
        self._popular[item] += 1
        self._root[item] = math.sqrt(self._popular[item] + _POPULARITY_PRIOR)
        self._weight *= _GROWTH
        self._recent[item] += self._weight
        self._recent_max = max(self._recent_max, float(self._recent[item]))
        if self._weight > _RESCALE_ABOVE:
            self._recent /= self._weight
            self._recent_max /= self._weight
            self._weight = 1.0
        person = self._people.setdefault(user, _Person())
        if person.latest:
            self._follows.setdefault(person.latest[-1], _Row()).add(item, 1.0)
        mine = self._together.setdefault(item, _Row())
        for before in set(person.latest) - {item}:
            self._together[before].add(item, 1.0)
            mine.add(before, _NEAR_BACKWARDS)
        person.clicked(item)


def _place(scores: Values, score: float, *, with_itself: bool = True) -> float:
    """How many scores are ahead of one of them (or of one outside), half of the ties counted."""
    tied = np.count_nonzero(scores == score) - int(with_itself)
    return np.count_nonzero(scores > score) + tied / 2


def _ids(row: _Row) -> Ids:
    """A view: gone before the row grows again, or Python refuses to let it grow."""
    return np.frombuffer(row.items, np.int64)


def _counts(row: _Row) -> Values:
    return np.frombuffer(row.counts, np.float64)
