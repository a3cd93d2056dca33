"""The abuse filter against poisoned clicks: what one user, or a few, click again and again is not learned from.

Every list depends on all users' clicks, so a bot that clicks one item ten thousand times would push it into every list.
Three kinds of leaky buckets (Turner 1986, "New directions in communications") bound what a few users can do; clicks
fill them, time drains them:

- of a user: clicks beyond `abuse_clicks_at_once`, and then `abuse_clicks_per_minute`;
- of a user and an item: clicks of the one on the other beyond `abuse_repeats_at_once`, and then one for each
  `abuse_repeats_interval_s`;
- of an item, twice as large: only repeated clicks of a user fill it, and the first click of another user drains it
  by one. So what many users repeat is learned, and what a few users repeat for each other is not.

A full bucket goes on filling, up to three times its size: a user who does not stop is not learned from at all.
A user who fills that of one item to twice its size is caught, and the counts of these clicks so far are undone.
Flagged clicks still enter their user's history, and so change that user's list. Not flagged are a few clicks each of
very many users, which is what a trend looks like; nor clicks of users who wait long enough between them.

Time is each user's own: the event times of that user's clicks (of an item: of its clicks), which never go back,
whatever other users' clocks say; so an archive may be sent in pieces. Timestamps may be forged, so a click counts as
made at most `abuse_late_s` before the time on which recent users agree (online/learner/recent_users.py): forged times
gain one such span. Where these go back further, as from one piece of an archive to the next, so do the buckets' clocks.
Of the time between two clicks on an item at most an hour counts, so that a break of the stream drains nothing.

When far more is flagged than abuse can be, flagged clicks are let through (online/learner/safety_net.py).

Letters: `N` clicks of a micro-batch, `K` keys consumed at once, `B` rows of the table, `W` ways (entries) of a row.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.facts.jit import kernel
from online.learner.facts.tables import NEAR
from online.learner.history import ClicksNewestFirst
from online.learner.recent_users import RecentUsers
from online.learner.safety_net import SafetyNet
from online.learner.stream_time import STREAM_GAP_S_MAX
from online.learner.user_stores import UserKey
from stream.user_ids import digest_of, hash_of_digest

REASONS = ("rate", "repeats", "crowd")  # too many clicks; too many on one item; too many on it by too few users
WAYS = 4
CROWD = 2  # size of an item's bucket, in sizes of the bucket of one user and an item
CAUGHT = 2  # level, in sizes of the bucket, at which a user is caught and the counts are undone
FULL_MOST = 3  # highest level, in sizes of the bucket: it bounds how long a user who stops has to wait
_MIX = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio's bits (Knuth, vol. 3, 6.4)

Keys = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class AbuseVerdict(NamedTuple):
    """The filter's decision on N clicks."""

    flagged: Bools  # (N,) not to be learned from
    caught: Bools  # (N,) the counts of their user's clicks on their item are to be undone


class CountsToUndo(NamedTuple):
    """The counts of one user's n clicks on one item, by themselves and as neighbours of K clicks."""

    rows: NDArray[np.int64]  # (K,)
    earlier: NDArray[np.int64]  # (K, NEAR) items before each, latest first; 0 in pairs without the item
    ages: Floats  # (K,) clicks counted since, -1 of those on other items
    numbers: NDArray[np.int64]  # (n,) of the moments


class Buckets:
    """Leaky buckets of at most about `held` keys, 32 bytes each. In a full row of the table the emptiest is replaced.

    So the users who click most are remembered; when there are too many of them, too few clicks are flagged.
    """

    def __init__(
        self, size: int, drained_each_s: float, held: int, *, late_s: float = np.inf, gap_s_max: float = np.inf
    ) -> None:
        """Creates empty buckets.

        Args:
            size: clicks that a bucket holds.
            drained_each_s: seconds in which one click drains.
            held: number of keys.
            late_s: a click at least so many seconds before a bucket's latest one sets the bucket's clock back, without
                draining anything.
            gap_s_max: longest time between two clicks that counts, in seconds.
        """
        self.size, self.drained_each_s = size, drained_each_s
        self._limits = np.array([FULL_MOST * size, drained_each_s, late_s, gap_s_max])
        rows = max(1, held // WAYS)
        self._keys = np.zeros((rows, WAYS), np.int64)  # 0: free
        self._levels = np.zeros((rows, WAYS))  # (B, W) clicks
        self._at = np.zeros((rows, WAYS))  # (B, W) seconds: when the level was that
        self._user_hashes = np.zeros((rows, WAYS), np.int64)  # (B, W) 0: of no user

    def consume(self, keys: Keys, now: Floats, clicks: Floats | float = 1.0, user_hashes: Keys | int = 0) -> Floats:
        """Adds clicks to buckets, in order.

        Args:
            keys: (K,) of the buckets; they may repeat.
            now: (K,) times, in seconds.
            clicks: (K,) how much each adds.
            user_hashes: (K,) of the users; 0 for none.

        Returns:
            How full each bucket was just before, (K,) in clicks.
        """
        levels = np.zeros(len(keys))
        consumed = np.full(len(keys), clicks, np.float64)
        hashes = np.full(len(keys), user_hashes, np.int64)
        _consume(
            self._keys, self._levels, self._at, self._user_hashes, keys, now, consumed, hashes, levels, self._limits
        )
        return levels

    def levels(self, keys: Keys, now: Floats) -> Floats:
        """Returns how full buckets (K,) are at times (K,), in clicks, and leaves them as they are."""
        rows = keys % len(self._keys)
        _, drained_each_s, _, gap_s_max = self._limits
        drained = np.clip(now[:, None] - self._at[rows], 0.0, gap_s_max) / drained_each_s  # (K, W)
        left = np.maximum(self._levels[rows] - drained, 0.0)
        levels: Floats = np.where(self._keys[rows] == keys[:, None], left, 0.0).sum(1)
        return levels

    def forget_hash(self, user_hash: int) -> int:
        """Empties a user's buckets. Returns how many there were."""
        of_user = self._user_hashes == user_hash
        for part in (self._keys, self._levels, self._at, self._user_hashes):
            part[of_user] = 0
        return int(of_user.sum())

    def count_of(self, user_hash: int) -> int:
        """Returns how many buckets a user has."""
        return int((self._user_hashes == user_hash).sum())

    @property
    def filled(self) -> int:
        """Buckets in use."""
        return int(np.count_nonzero(self._keys))

    @property
    def capacity(self) -> int:
        return self._keys.size

    @property
    def span_s(self) -> float:
        """Seconds in which the bucket of a user who has just been caught drains."""
        return CAUGHT * self.size * self.drained_each_s

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Returns the buckets in use."""
        at = np.flatnonzero(self._keys)
        parts = {"keys": self._keys, "levels": self._levels, "at": self._at, "user_hashes": self._user_hashes}
        return {"rows": np.array([len(self._keys)]), "places": at} | {n: part.flat[at] for n, part in parts.items()}

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Loads what `to_state` returned; nothing, if the table has another size after a change of settings."""
        if int(arrays["rows"][0]) != len(self._keys):
            return
        parts = {"keys": self._keys, "levels": self._levels, "at": self._at, "user_hashes": self._user_hashes}
        for name, part in parts.items():
            part[:] = 0
            part.flat[arrays["places"]] = arrays[name]


@kernel
def _consume(
    table_keys: NDArray[np.int64],
    table_levels: NDArray[np.float64],
    table_at: NDArray[np.float64],
    table_hashes: NDArray[np.int64],
    keys: NDArray[np.int64],
    now: NDArray[np.float64],
    clicks: NDArray[np.float64],
    user_hashes: NDArray[np.int64],
    levels: NDArray[np.float64],
    limits: NDArray[np.float64],
) -> None:
    """`Buckets.consume` into a table (B, W), one key after the other; fills levels (K,)."""
    most, drained_each_s, late_s, gap_s_max = limits
    for k in range(len(keys)):
        row = keys[k] % len(table_keys)
        way, known = 0, False
        least = np.inf
        left_of_way = 0.0
        for w in range(table_keys.shape[1]):
            drained = min(max(now[k] - table_at[row, w], 0.0), gap_s_max) / drained_each_s
            left = max(table_levels[row, w] - drained, 0.0)
            if table_keys[row, w] == keys[k]:
                way, known, left_of_way = w, True, left
                break
            if left < least:
                way, least = w, left
        level = left_of_way if known else 0.0
        before = table_at[row, way]
        table_at[row, way] = max(now[k], before) if known and now[k] >= before - late_s else now[k]
        table_keys[row, way], table_hashes[row, way] = keys[k], user_hashes[k]
        table_levels[row, way] = min(max(level + clicks[k], 0.0), most)
        levels[k] = level


class AbuseFilter:
    """Decides which clicks are not learned from, and remembers them."""

    def __init__(self, settings: Settings) -> None:
        self.on, self.late_s = settings.abuse_filter, settings.abuse_late_s
        self.total: Counter[str] = Counter()  # flagged clicks, by reason
        self._recent = RecentUsers()
        through = settings.abuse_share_exceeded == "let-through"
        self.net = SafetyNet(settings.abuse_share_max, lets_through=through, reasons=REASONS)
        self._moments_held = settings.moments_held
        self._flagged = np.zeros(settings.moments_held, np.bool_)  # of each moment, at its number modulo the length
        self._judged = 0  # the latest moment's number
        held, size = settings.abuse_keys_held, settings.abuse_repeats_at_once
        interval_s, late_s, gap_s = settings.abuse_repeats_interval_s, self.late_s, STREAM_GAP_S_MAX
        per_click_s = 60 / settings.abuse_clicks_per_minute
        self.repeats_max = size  # clicks of a user on an item at once
        self._user_buckets = Buckets(settings.abuse_clicks_at_once, per_click_s, held, late_s=late_s)
        self._pair_buckets = Buckets(size, interval_s, held, late_s=late_s)
        self._item_buckets = Buckets(CROWD * size, interval_s, held, late_s=late_s, gap_s_max=gap_s)

    @property
    def flagged(self) -> Bools:
        """Of each moment that is held, at its number modulo the length, whether its click was flagged."""
        return self._flagged

    def judge(
        self, users: Sequence[str], items: Sequence[str], times: Floats, numbers: NDArray[np.int64]
    ) -> AbuseVerdict:
        """Judges N clicks.

        Args:
            users: (N,) ids of the users, in order of arrival.
            items: (N,) ids of the items.
            times: (N,) timestamps, in seconds since 1970.
            numbers: (N,) numbers of the clicks' moments.
        """
        flagged, caught = np.zeros((2, len(users)), np.bool_)
        if self.on:
            user_hashes = user_hashes_of(users)
            self._recent.update(user_hashes, times)
            now = np.maximum(times, self._recent.agreed() - self.late_s)
            *by_reason, caught = self._check_buckets(user_hashes, _keys(items), now)
            reasons = np.zeros(len(users), np.int8)
            for number, mask in enumerate(by_reason, 1):  # a click has one reason at most
                reasons[mask] = number
            if self.net.update(user_hashes, reasons, len(self._recent)):
                caught = np.zeros_like(caught)
            else:
                flagged[:] = reasons > 0
                for reason, mask in zip(REASONS, by_reason, strict=True):
                    self.total[reason] += int(mask.sum())
        self._flagged[numbers % self._moments_held] = flagged
        self._judged = int(numbers[-1])
        return AbuseVerdict(flagged, caught)

    def repeats_exhausted(self, user_hashes: Keys, items: Sequence[str], times: Floats) -> Bools:
        """Returns whether a click of each user on each item (K,) at that time would be flagged as a repeat."""
        if not self.on or (self.net.open and self.net.lets_through):
            return np.zeros(len(items), np.bool_)
        now = np.maximum(times, self._recent.agreed() - self.late_s)
        flagged: Bools = self._pair_buckets.levels(_of_pairs(user_hashes, _keys(items)), now) + 1 > self.repeats_max
        return flagged

    def was_flagged(self, numbers: NDArray[np.int64]) -> Bools:
        """Returns whether clicks were flagged, by the numbers (...) of their moments; False if no longer held."""
        held = (numbers > 0) & (numbers > self._judged - self._moments_held)
        flagged: Bools = held & self._flagged[numbers % self._moments_held]
        return flagged

    def counts_to_undo(self, newest: ClicksNewestFirst, row: int) -> CountsToUndo:
        """Returns the counts to undo for one user who was caught, and flags these clicks.

        Args:
            newest: the user's history, N = 1.
            row: of the item.
        """
        rows, times, numbers = newest.rows[0], newest.timestamps[0], newest.numbers[0]
        trainable = (numbers > 0) & ~self.was_flagged(numbers)
        on_item = trainable & (rows == row) & (times >= times[0] - self._pair_buckets.span_s)  # (L,)
        window = np.arange(len(rows))[:, None] + np.arange(1, NEAR + 1)  # (L, NEAR) what stood before each
        earlier = np.pad(np.where(trainable, rows, 0), (0, NEAR))[window]
        earlier[~(on_item[:, None] | np.pad(on_item, (0, NEAR))[window])] = 0
        at = np.flatnonzero(on_item | (trainable & earlier.any(1)))
        ages = np.array([self._trainable_since(numbers[one]) if on_item[one] else -1 for one in at.tolist()], float)
        self._flagged[numbers[on_item] % self._moments_held] = True
        self.total["taken-back"] += int(on_item.sum())
        return CountsToUndo(rows[at], earlier[at], ages, numbers[on_item])

    def user_ids(self) -> tuple[str, ...]:
        return ()

    def count_user(self, user: UserKey) -> dict[str, int]:
        """Returns how many buckets and recent clicks of the user are held."""
        buckets = sum(part.count_of(user.user_hash) for part in self._buckets().values())
        return {"abuse_filter": buckets + self._recent.count_of(user.user_hash) + self.net.count_of(user.user_hash)}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        """Empties the user's buckets. Buckets of items belong to no user, and stay."""
        user_hash_of.cache_clear()  # the cache holds ids
        buckets = sum(part.forget_hash(user.user_hash) for part in self._buckets().values())
        return {"abuse_filter": buckets + self._recent.forget(user.user_hash) + self.net.forget(user.user_hash)}

    def usage(self) -> tuple[int, int]:
        buckets = self._buckets().values()
        return sum(part.filled for part in buckets), sum(part.capacity for part in buckets)

    def _trainable_since(self, number: int) -> int:
        since = np.arange(number + 1, self._judged + 1)
        return int(np.count_nonzero(~self._flagged[since % self._moments_held]))

    def _check_buckets(self, users: Keys, items: Keys, now: Floats) -> tuple[Bools, ...]:
        """Returns the clicks that each kind of bucket flags, (N,) each, where a click that one flags does not reach the
        next; and the clicks at which a user is caught, (N,)."""
        rate = self._user_buckets.consume(users, now, user_hashes=users) + 1 > self._user_buckets.size
        trainable = np.flatnonzero(~rate)
        level = self._pair_buckets.consume(
            _of_pairs(users[trainable], items[trainable]), now[trainable], user_hashes=users[trainable]
        )
        repeats, caught, crowd = np.zeros((3, len(rate)), np.bool_)
        repeats[trainable] = level + 1 > self._pair_buckets.size
        most = CAUGHT * self._pair_buckets.size
        caught[trainable] = (level < most) & (level + 1 >= most)
        repeated = level > 0
        fits = ~repeats[trainable]
        trainable, repeated = trainable[fits], repeated[fits]
        level = self._item_buckets.consume(items[trainable], now[trainable], np.where(repeated, 1.0, -1.0))
        crowd[trainable] = repeated & (level + 1 > self._item_buckets.size)
        return rate, repeats, crowd, caught

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and a JSON object."""
        parts = {name: part.to_state() for name, part in self._buckets().items()}
        numbers = np.arange(max(1, self._judged - self._moments_held + 1), self._judged + 1)
        parts["recent"] = self._recent.to_state()
        parts["net"], net = self.net.to_state()
        arrays = joined(parts) | {"flagged": numbers[self.was_flagged(numbers)]}
        return arrays, {"judged": self._judged, "total": dict(self.total), "net": net}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned; the latest moments, if fewer are held now."""
        for name, part in self._buckets().items():
            part.load_state(below(arrays, name))
        self._recent.load_state(below(arrays, "recent"))
        self.net.load_state(below(arrays, "net"), state["net"])
        self._judged, self.total = state["judged"], Counter(state["total"])
        numbers = arrays["flagged"][arrays["flagged"] > self._judged - self._moments_held]
        self._flagged[:] = False
        self._flagged[numbers % self._moments_held] = True

    def _buckets(self) -> dict[str, Buckets]:
        return {"users": self._user_buckets, "pairs": self._pair_buckets, "items": self._item_buckets}


@lru_cache(maxsize=65_536)
def _key(name: str) -> int:
    """Returns a number above 0 that is the same on every machine. No names that collide can be constructed."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1 or 1


@lru_cache(maxsize=65_536)
def user_hash_of(user_id: str) -> int:
    """Returns the number that stands for a user's id in arrays."""
    return hash_of_digest(digest_of(user_id))


def user_hashes_of(users: Sequence[str]) -> Keys:
    """Returns the hashes (N,) of users (N,)."""
    return np.fromiter(map(user_hash_of, users), np.int64, len(users))


def _keys(names: Sequence[str]) -> Keys:
    return np.fromiter(map(_key, names), np.int64, len(names))


def _of_pairs(ones: Keys, others: Keys) -> Keys:
    mixed = (ones.astype(np.uint64) * _MIX) ^ others.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX
    return np.maximum((mixed >> np.uint64(1)).astype(np.int64), 1)
