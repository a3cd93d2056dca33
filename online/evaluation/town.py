"""A town of shoppers whose right answers are known: for the demo, and for tests that ask whether anything was learned.

Every user has two tastes. A session begins at a favourite or at something popular on a taste's shelf; after that, most
clicks follow the shelf's path, on which every item has exactly one that comes next, so that order matters. New items
are put on the shelves over time. At a known moment fashion changes: tastes turn to other shelves, favourites are drawn
anew, and the paths are laid in another order. It may change for all users at once or for one after another, come back,
and touch purchases alone.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from stream.events import Click
from stream.users import User

FOLLOWS_PATH = 0.65  # chance that a click within a session is the next item of the path
_TO_FAVOURITE = 0.12  # within a session; the rest is something popular on the shelf
_STARTS_AT_FAVOURITE = 0.6
_MAIN_TASTE = 0.8  # share of a user's sessions that follow their first taste
_ENDS = 0.12  # chance that a click is its session's last
_CLICK_GAP_S = 40.0  # means of exponential gaps
_SESSION_GAP_S = 4 * 3_600.0
_FAVOURITES = 3
_EXISTING_AT_FIRST = 0.75
CLICK, PURCHASE = "click", "purchase"  # event types

_SHELVES = {
    "green black white herbal iced smoky": "tea|teapot|tea cup|kettle|tea tin|strainer|honey",
    "red wild climbing dwarf winter potted": "rose|lavender|tulip bulbs|fern|garden soil|watering can|trellis",
    "woollen linen striped warm short blue": "scarf|jumper|shirt|socks|coat|hat|gloves",
    "old rare live quiet electric early": "jazz record|guitar strings|songbook|turntable|headphones|metronome|organ",
    "light sturdy folding waterproof alpine small": "tent|backpack|hiking boots|lantern|camp stove|map|rope",
    "fresh dark crusty sweet rye seeded": "bread|flour|rolls|baking tin|yeast|cake|jam",
    "first illustrated lost short northern secret": "novel|atlas|poems|diary|fairy tales|bookmark|reading lamp",
    "wooden tiny painted flying singing round": "train|kite|puzzle|doll|building blocks|drum|spinning top",
}
SHELVES = len(_SHELVES)
_NAMES = (
    "ada ben cleo dora emil finn gina hugo ines jonas kira leo mira nils olga paul rosa sami tess udo vera wim yara zoe"
)


class _Shelves(NamedTuple):
    """What stands where for a while: the items of each shelf, popular ones first, and what follows each item."""

    popular: list[list[int]]
    follower: dict[int, int]


@dataclass(frozen=True)
class Town:
    """A simulated town, the same for the same fields; the first clicks do not depend on how many are asked for.

    `fashion_change_at`, `fashion_returns_at` and `new_item_every` count clicks (None: fashion never changes, or never
    comes back); users follow a new fashion one after another, in `fashion_change_over` clicks. `purchase_share` of the
    events are purchases; with `fashion_of_purchases` fashion changes for these alone. `start` is the time of the first
    click, in seconds since 1970. A quarter of the items are not there at first.
    """

    users: int = 300
    items: int = 320
    seed: int = 0
    fashion_change_at: int | None = None
    fashion_change_over: int = 0
    fashion_returns_at: int | None = None
    fashion_of_purchases: bool = False
    purchase_share: float = 0.0
    new_item_every: int = 100
    start: float = 1_730_448_000.0

    def __post_init__(self) -> None:
        if self.users < 1 or self.items < 4 * SHELVES or self.new_item_every < 1:
            raise ValueError(f"a town needs a user, {4 * SHELVES} items and a click between two new ones")

    @cached_property
    def user_ids(self) -> list[str]:
        names = _NAMES.split()
        return [f"{names[user % len(names)]}-{user // len(names) + 1}" for user in range(self.users)]

    @cached_property
    def item_ids(self) -> list[str]:
        """Readable names, such as `green tea`; item i stands on shelf i modulo the number of shelves."""
        shelves = [
            [f"{quality} {noun}" for noun in nouns.split("|") for quality in qualities.split()]
            for qualities, nouns in _SHELVES.items()
        ]
        names = []
        for item in range(self.items):
            shelf = shelves[item % SHELVES]
            # A step that shares no factor with the shelf's 42 names visits each before any comes again.
            repeat, place = divmod(item // SHELVES, len(shelf))
            names.append(shelf[place * 11 % len(shelf)] + (f" no. {repeat + 1}" if repeat else ""))
        return names

    def user_records(self, truth: float = 0.8) -> list[User]:
        """What is known of the users: the `district` of most of them (`truth`) tells their first taste, while that of
        the others, and everybody's `newsletter`, tells nothing."""
        random = np.random.default_rng((self.seed, 6))
        districts = np.where(
            random.random(self.users) < truth, self._tastes[:, 0], random.integers(SHELVES, size=self.users)
        )
        newsletters = random.random(self.users) < 0.5
        return [
            User(user_id=user, attributes={"district": f"district {district}", "newsletter": newsletter})
            for user, district, newsletter in zip(self.user_ids, districts.tolist(), newsletters.tolist(), strict=True)
        ]

    def clicks(self, n: int) -> Iterator[Click]:
        """The first `n` clicks, in order of time."""
        rng = np.random.default_rng((self.seed, 0))
        draw = _uniforms(rng)
        draw_type = _uniforms(np.random.default_rng((self.seed, 4)))
        due = [(self.start + draw() * _SESSION_GAP_S, user) for user in range(self.users)]
        heapq.heapify(due)
        at: dict[int, int] = {}  # the item each user looked at last, while in a session
        taste_of: dict[int, int] = {}
        users, items = self.user_ids, self.item_ids
        for number in range(n):
            seconds, user = due[0]
            event_type = PURCHASE if self.purchase_share and draw_type() < self.purchase_share else CLICK
            changed = self._changed_for(user, number, event_type)
            shelves = self._shelves(self.existing(number), changed)
            if user in at and draw() < FOLLOWS_PATH:
                item = shelves.follower[at[user]]
            else:
                if user not in at:
                    taste_of[user] = 0 if draw() < _MAIN_TASTE else 1
                to_favourite = _TO_FAVOURITE / (1 - FOLLOWS_PATH) if user in at else _STARTS_AT_FAVOURITE
                if draw() < to_favourite:
                    item = self._favourites(user, changed)[int(draw() * _FAVOURITES)]
                else:
                    item = _popular(shelves.popular[self._shelf(user, taste_of[user], changed)], draw())
            yield Click(user_id=users[user], item_id=items[item], timestamp=round(seconds, 3), event_type=event_type)
            at[user] = item
            gap_s = _CLICK_GAP_S
            if draw() < _ENDS:
                del at[user]
                gap_s = _SESSION_GAP_S
            heapq.heapreplace(due, (seconds - gap_s * math.log(1.0 - draw()), user))

    def changed(self, number: int) -> bool:
        """Whether fashion has changed by click `number` (from 0), for the first at least, and has not come back."""
        if self.fashion_change_at is None or number < self.fashion_change_at:
            return False
        return self.fashion_returns_at is None or number < self.fashion_returns_at

    def _changed_for(self, user: int, number: int, event_type: str) -> bool:
        if not self.changed(number) or (self.fashion_of_purchases and event_type != PURCHASE):
            return False
        assert self.fashion_change_at is not None
        waits = self.fashion_change_over * self._turns[user]
        return number >= self.fashion_change_at + waits

    def best_next(self, item_id: str, number: int) -> str:
        """The right answer: what most likely is click `number` of a user who has just clicked `item_id`.

        It comes with probability FOLLOWS_PATH at least. Raises ValueError for an item that does not exist by then.
        """
        item = self.item_ids.index(item_id)
        if item >= self.existing(number):
            raise ValueError(f"{item_id} does not exist by click {number}")
        return self.item_ids[self._shelves(self.existing(number), self.changed(number)).follower[item]]

    def favourites(self, user_id: str, number: int) -> list[str]:
        """What this user returns to, by click `number`."""
        favourites = self._favourites(self.user_ids.index(user_id), self.changed(number))
        return [self.item_ids[item] for item in favourites]

    def existing(self, number: int) -> int:
        """How many items exist by a click."""
        return min(self.items, int(self.items * _EXISTING_AT_FIRST) + number // self.new_item_every)

    def _shelf(self, user: int, taste: int, changed: bool) -> int:
        return int(self._tastes[user, taste] + (SHELVES // 2 if changed else 0)) % SHELVES

    def _favourites(self, user: int, changed: bool) -> list[int]:
        return self._all_favourites[int(changed)][user]

    @cached_property
    def _turns(self) -> list[float]:
        """When each user turns to a new fashion: from 0 (at once) to 1 (at last)."""
        drawn = np.random.default_rng((self.seed, 5)).permutation(self.users)
        return [int(place) / self.users for place in drawn]

    @cached_property
    def _tastes(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Two different tastes of each user: (users, 2)."""
        rng = np.random.default_rng((self.seed, 1))
        first = rng.integers(SHELVES, size=self.users)
        other = (first + rng.integers(1, SHELVES, size=self.users)) % SHELVES
        return np.stack([first, other], axis=1)

    @cached_property
    def _all_favourites(self) -> list[list[list[int]]]:
        """Items on the first taste's shelf, of every user, before and after the change of fashion."""
        rng = np.random.default_rng((self.seed, 2))
        ranks = rng.permuted(np.tile(np.arange(self.existing(0) // SHELVES), (2, self.users, 1)), axis=2)
        return [
            [
                [
                    int(rank) * SHELVES + self._shelf(user, 0, bool(fashion))
                    for rank in ranks[fashion, user, :_FAVOURITES]
                ]
                for user in range(self.users)
            ]
            for fashion in (0, 1)
        ]

    @cached_property
    def _shelves(self) -> Callable[[int, bool], _Shelves]:
        """Of a number of existing items and a fashion; the latest few are kept."""

        @lru_cache(maxsize=4)
        def shelves(existing: int, changed: bool) -> _Shelves:
            rng = np.random.default_rng((self.seed, 3, int(changed)))
            ranked = rng.permutation(self.items).tolist()
            laid = rng.permutation(self.items).tolist()
            popular: list[list[int]] = [[] for _ in range(SHELVES)]
            path: list[list[int]] = [[] for _ in range(SHELVES)]
            for item in ranked:
                if item < existing:
                    popular[item % SHELVES].append(item)
            for item in laid:
                if item < existing:
                    path[item % SHELVES].append(item)
            follower = {a: b for items in path for a, b in zip(items, [*items[1:], items[0]], strict=True)}
            return _Shelves(popular, follower)

        return shelves


def _popular(ranked: list[int], draw: float) -> int:
    """The item of rank r with a chance proportional to 1 / r (Zipf's law)."""
    weights = _zipf(len(ranked))
    return ranked[min(bisect_right(weights, draw * weights[-1]), len(ranked) - 1)]


@lru_cache(maxsize=64)
def _zipf(n: int) -> list[float]:
    return list(accumulate(1.0 / rank for rank in range(1, n + 1)))


def _uniforms(rng: np.random.Generator) -> Callable[[], float]:
    """A function that returns the next number in [0, 1): drawn in blocks, because one at a time is ten times slower."""

    def blocks() -> Iterator[float]:
        while True:
            yield from rng.random(4_096).tolist()

    return blocks().__next__
