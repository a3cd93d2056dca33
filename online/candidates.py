"""The items a list is made of, and what is counted of each: a ragged batch, gathered without a loop over users.

Letters: `N` users, `C` candidates of all of them together (flat), `F` features, `K` places of a list.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.counts import Counts
from online.history import Latest

# name, meaning, unit, transformation, weight at the start: the inputs of the mixer, in this order.
FEATURES = (
    ("followed_last", "times it followed the user's last item", "clicks", "log(1 + x)", 1.0),
    ("share_last", "share of the last item's successors", "0 to 1", "as it is", 2.0),
    ("followed_before", "times it followed the item before the last", "clicks", "log(1 + x)", 0.5),
    ("own_times", "times the user clicked it", "clicks", "log(1 + x)", 1.0),
    ("own_recency", "0.98 to the power of the user's clicks since", "0 to 1", "as it is", 1.5),
    ("popularity", "recent clicks of everybody on it", "clicks, decayed", "log(1 + x)", 0.3),
    ("network", "the Reformer's state · the item's vector", "logit", "as it is", 0.0),
)
NETWORK = len(FEATURES) - 1
OWN_DECAY = 0.98
POPULAR_CANDIDATES = 100


@dataclass(frozen=True)
class Candidates:
    """Candidates of N users, each user's once, sorted by user and row."""

    owners: NDArray[np.int64]  # (C,) which of the N users
    rows: NDArray[np.int64]  # (C,) item rows, never 0
    features: NDArray[np.float32]  # (C, F); the network's column is 0 until it is filled
    starts: NDArray[np.int64]  # (N + 1,) user n's candidates are starts[n]:starts[n + 1]

    def places_of(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each user's target row (N,) stands among the candidates; -1 where it does not."""
        stride = max(int(self.rows.max(initial=0)), int(targets.max(initial=0))) + 1
        place, found = _find(self.owners * stride + self.rows, np.arange(len(targets)) * stride + targets)
        return np.where(found, place, -1)

    def best(self, scores: NDArray[np.float32], count: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """For each user the `count` best rows, best first (equal scores: the smaller row), and their scores."""
        order = np.lexsort((self.rows, -scores, self.owners))
        chosen = [
            order[start : min(start + count, end)] for start, end in zip(self.starts, self.starts[1:], strict=False)
        ]
        return [(self.rows[at], scores[at]) for at in chosen]


def gather(counts: Counts, latest: Latest, *, exclude_seen: bool) -> Candidates:
    """What followed the last two items, the user's own items, and what is popular now; without row 0.

    Args:
        counts: as they stand now; they must have room for every row in `latest`.
        latest: the users' histories (N, L).
        exclude_seen: leave out what stands in `latest`.
    """
    N, L = latest.rows.shape
    users = np.arange(N)
    ages = latest.lengths[:, None] - 1 - np.arange(L)[None, :]  # (N, L) clicks since; negative: padding
    last = np.where(latest.lengths > 0, latest.rows[users, latest.lengths - 1], 0)
    before = np.where(latest.lengths > 1, latest.rows[users, latest.lengths - 2], 0)
    popular = counts.popular(POPULAR_CANDIDATES)[None, :]  # (1, P)

    stride = len(counts.popularity)
    at_user = users[:, None] * stride
    followed_last, followed_before = at_user + counts.followers[last], at_user + counts.followers[before]  # (N, M)
    own = at_user + latest.rows  # (N, L)
    flat = np.unique(
        np.concatenate([keys.ravel() for keys in (followed_last, followed_before, own, at_user + popular)])
    )
    if exclude_seen:
        flat = np.setdiff1d(flat, own, assume_unique=False)
    flat = flat[flat % stride != 0]
    owners, rows = flat // stride, flat % stride

    def summed(keys: NDArray[np.int64], weights: NDArray[Any]) -> NDArray[np.float64]:
        place, found = _find(flat, keys)
        return np.bincount(place[found], weights[found].astype(np.float64), minlength=len(flat)).astype(np.float64)

    own_place, own_found = _find(flat, own)
    own_found &= ages >= 0
    age = np.full(len(flat), np.inf)
    np.minimum.at(age, own_place[own_found], ages[own_found])

    followed = summed(followed_last, counts.follow_counts[last])
    features = np.zeros((len(flat), len(FEATURES)), np.float32)
    features[:, 0] = np.log1p(followed)
    features[:, 1] = followed / (counts.follow_totals[last][owners] + 1.0)
    features[:, 2] = np.log1p(summed(followed_before, counts.follow_counts[before]))
    features[:, 3] = np.log1p(np.bincount(own_place[own_found], minlength=len(flat)))
    features[:, 4] = OWN_DECAY**age
    features[:, 5] = np.log1p(counts.recent_popularity(rows))
    return Candidates(owners, rows, features, np.searchsorted(owners, np.arange(N + 1)))


def _find(flat: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places of keys in the sorted `flat`, and whether they are there; both of the shape of `keys`."""
    if not len(flat):
        return np.zeros(keys.shape, np.int64), np.zeros(keys.shape, bool)
    place = np.minimum(np.searchsorted(flat, keys), len(flat) - 1)
    return place, flat[place] == keys
