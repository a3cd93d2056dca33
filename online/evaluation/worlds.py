"""Worlds whose changes are known: towns in which something happens at a stated click, for tests and benchmarks.

    world = sudden(seed=3, change_at=5_000)
    for number, click in enumerate(world.clicks(20_000)): ...

The same seed gives the same clicks, and until the change they are those of the quiet world of that seed. So whatever
differs afterwards comes from the change.

`collections` is a world of another kind, in which nothing changes: users enter what they own, each item once.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from online.evaluation.town import Town
from stream.events import Click

_CLICKS_MAX = 10**12
HOUR_S = 3_600.0
_DAY_S = 24 * HOUR_S


@dataclass(frozen=True)
class Bot:
    """A bot that clicks one item again and again, between other users' clicks: one or more accounts, in turn.

    `between`: items that each clicks in turn with it, to make it what follows them.
    """

    user_id: str = "bot-0"
    item_id: str = "miracle pills"  # which no other user clicks
    clicks: int = 10_000
    rate_hz: float = 5.0  # of all accounts
    accounts: int = 1
    between: tuple[str, ...] = ()

    @property
    def user_ids(self) -> list[str]:
        return [self.user_id, *(f"{self.user_id}-{number}" for number in range(1, self.accounts))]


@dataclass(frozen=True)
class Outage:
    """For `seconds`, only the clicks of a share `kept` of the users arrive (0: none); tastes stay as they are."""

    kept: float
    seconds: float


@dataclass(frozen=True)
class World:
    """A town, and what happens in it at click `change_at` (from 0; None: nothing ever does).

    `until`: the click by which the change is complete, or over; None: it was at once, and stays.
    """

    name: str
    town: Town
    change_at: int | None = None
    until: int | None = None
    renewed: float = 0.0  # share of the items that make way for others at the change
    bot: Bot | None = None
    outage: Outage | None = None

    def clicks(self, n: int) -> Iterator[Click]:
        """The first `n` clicks, in order of time."""
        clicks = self.town.clicks(_CLICKS_MAX)
        if self.renewed:
            clicks = self._renewed(clicks)
        if self.outage is not None:
            clicks = self._arriving(clicks, self.outage)
        if self.bot is not None:
            clicks = heapq.merge(clicks, self._clicks_of(self.bot), key=lambda click: click.timestamp)
        return islice(clicks, n)

    def after(self, n: int) -> Iterator[Click]:
        """The first `n` clicks from the change on: the stream as seen by a learner that never saw the old world."""
        return islice(self.clicks(_CLICKS_MAX), self.change_at, (self.change_at or 0) + n)

    @cached_property
    def changed_at_s(self) -> float:
        """The moment of the change, in seconds since 1970. Raises ValueError for a world without any."""
        if self.change_at is None:
            raise ValueError(f"nothing changes in a {self.name} world")
        return next(islice(self.town.clicks(self.change_at + 1), self.change_at, None)).timestamp

    def renewed_id(self, item_id: str) -> str:
        """What stands in an item's place after the change."""
        return f"new {item_id}" if item_id in self._renewed_items else item_id

    @cached_property
    def _renewed_items(self) -> frozenset[str]:
        drawn = np.random.default_rng((self.town.seed, 6)).permutation(self.town.item_ids)
        return frozenset(drawn[: round(self.renewed * self.town.items)].tolist())

    def _renewed(self, clicks: Iterator[Click]) -> Iterator[Click]:
        for number, click in enumerate(clicks):
            if self.change_at is None or number < self.change_at:
                yield click
            else:
                yield click.model_copy(update={"item_id": self.renewed_id(click.item_id)})

    def _arriving(self, clicks: Iterator[Click], outage: Outage) -> Iterator[Click]:
        until_s = self.changed_at_s + outage.seconds
        drawn = np.random.default_rng((self.town.seed, 7)).random(self.town.users) < outage.kept
        arriving = {user for user, kept in zip(self.town.user_ids, drawn, strict=True) if kept}
        for click in clicks:
            if not self.changed_at_s <= click.timestamp < until_s or click.user_id in arriving:
                yield click

    def _clicks_of(self, bot: Bot) -> Iterator[Click]:
        users = bot.user_ids
        # A little later than the click that they begin at, which stays the change's number.
        for nth in range(bot.clicks):
            seconds = self.changed_at_s + (nth + 1) / bot.rate_hz
            turn, account = divmod(nth, bot.accounts)
            pushes = turn % 2 or not bot.between
            item_id = bot.item_id if pushes else bot.between[(nth // 2) % len(bot.between)]
            yield Click(user_id=users[account], item_id=item_id, timestamp=round(seconds, 3))


@dataclass(frozen=True)
class Collections:
    """Users who enter what they own into a catalogue, each item once and in no order: users who share their
    taste tell what they will enter, their latest item does not.

    A user has a few genres as tastes, and owns items of them mostly; within a genre, the item of popularity rank r is
    owned with a weight proportional to 1 / r ** skew. Items are entered in bursts of a few seconds an entry, with days
    between two bursts.
    """

    seed: int
    users: int = 160
    items: int = 1_500  # item i is of genre i modulo `genres`, and the more popular the lower its number
    genres: int = 20
    tastes: int = 2  # genres of each user, each with half of the weight of the one before
    of_tastes: float = 0.95  # share of a user's weight that lies on their tastes; the rest is spread over all genres
    skew: float = 0.8
    sizes: tuple[int, int] = (5, 250)  # of collections, log-uniform between the two, both included
    bursts: tuple[int, int] = (24, 240)  # entries, log-uniform; what is left of a collection may be fewer
    entry_s: float = 4.0  # mean of the exponential gaps within a burst
    rest_days: tuple[float, float] = (1.0, 5.0)  # between two bursts, uniform
    begin_days: float = 40.0  # users begin at any time within so many days, uniform
    start: float = 1_730_448_000.0  # seconds since 1970

    def __post_init__(self) -> None:
        if not (1 <= self.sizes[0] <= self.sizes[1] <= self.items and 1 <= self.tastes <= self.genres <= self.items):
            raise ValueError("a collection has one item at least and at most all of them; the same holds for tastes")

    @cached_property
    def item_ids(self) -> list[str]:
        return [f"genre {item % self.genres} no. {item // self.genres + 1}" for item in range(self.items)]

    def genre_of(self, item_id: str) -> int:
        return int(item_id.split()[1])

    def rank_of(self, item_id: str) -> int:
        """An item's place in its genre by popularity, from 1."""
        return int(item_id.split()[3])

    @cached_property
    def tastes_of(self) -> dict[str, list[int]]:
        """The genres that each user likes, best first."""
        rng = np.random.default_rng((self.seed, 0))
        return {f"user-{n}": rng.permutation(self.genres)[: self.tastes].tolist() for n in range(self.users)}

    def clicks(self, n: int | None = None) -> list[Click]:
        """The first `n` entries of all users in order of time, or all there are."""
        found = [click for number in range(self.users) for click in self._entries(number)]
        return sorted(found, key=lambda click: click.timestamp)[:n]

    def _entries(self, number: int) -> list[Click]:
        """One user's, in order."""
        rng, user = np.random.default_rng((self.seed, 1, number)), f"user-{number}"
        size = _log_uniform(rng, *self.sizes)
        chosen = rng.choice(self.items, size, replace=False, p=self._chances(user), shuffle=False)
        chosen = rng.permutation(chosen)  # popular ones are drawn first
        gaps_s = rng.exponential(self.entry_s, size)
        gaps_s[0] = rng.uniform(0, self.begin_days * _DAY_S)
        begins = _log_uniform(rng, *self.bursts)
        while begins < size:
            gaps_s[begins] = rng.uniform(*self.rest_days) * _DAY_S
            begins += _log_uniform(rng, *self.bursts)
        times = (self.start + gaps_s.cumsum()).round(3).tolist()
        owned = [self.item_ids[item] for item in chosen.tolist()]
        return [Click(user_id=user, item_id=item, timestamp=at) for item, at in zip(owned, times, strict=True)]

    def _chances(self, user: str) -> NDArray[np.float64]:
        """Of each item (items,), to be the next one drawn."""
        of_genre = np.full(self.genres, (1 - self.of_tastes) / self.genres)
        liked = 0.5 ** np.arange(self.tastes)
        of_genre[self.tastes_of[user]] += self.of_tastes * liked / liked.sum()
        genre, rank = np.arange(self.items) % self.genres, 1 + np.arange(self.items) // self.genres
        weights = rank**-self.skew
        chances = of_genre[genre] * weights / np.bincount(genre, weights)[genre]
        normed: NDArray[np.float64] = chances / chances.sum()
        return normed


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1)))))


TOWN, BOT = Town(), Bot()


def quiet(seed: int, *, town: Town = TOWN) -> World:
    """Nothing changes."""
    return World("quiet", replace(town, seed=seed))


def sudden(seed: int, *, change_at: int = 5_000, town: Town = TOWN) -> World:
    """From one click to the next, every user's taste changes, and the order of items on the shelves."""
    return World("sudden", replace(town, seed=seed, fashion_change_at=change_at), change_at)


def slow(seed: int, *, change_at: int = 5_000, over: int = 10_000, town: Town = TOWN) -> World:
    """The same change, but users turn to it one after another, in `over` clicks."""
    changing = replace(town, seed=seed, fashion_change_at=change_at, fashion_change_over=over)
    return World("slow", changing, change_at, change_at + over)


def seasonal(seed: int, *, change_at: int = 5_000, lasts: int = 5_000, town: Town = TOWN) -> World:
    """A sudden change, and after `lasts` clicks everything is as it was before."""
    until = change_at + lasts
    changing = replace(town, seed=seed, fashion_change_at=change_at, fashion_returns_at=until)
    return World("seasonal", changing, change_at, until)


def catalogue(seed: int, *, change_at: int = 5_000, renewed: float = 1.0, town: Town = TOWN) -> World:
    """A new catalogue overnight: other items stand in the places of some, or of all; users' tastes are the same."""
    return World("catalogue", replace(town, seed=seed), change_at, renewed=renewed)


def one_type(seed: int, *, change_at: int = 5_000, share: float = 0.3, town: Town = TOWN) -> World:
    """`share` of the events are purchases, and the taste in what is bought changes suddenly; clicks stay the same."""
    two = replace(town, seed=seed, purchase_share=share, fashion_of_purchases=True, fashion_change_at=change_at)
    return World("one-type", two, change_at)


def attack(seed: int, *, change_at: int = 5_000, bot: Bot = BOT, town: Town = TOWN) -> World:
    """A bot clicks one item ten thousand times; no other user changes."""
    return World("attack", replace(town, seed=seed), change_at, bot=bot)


def outage(
    seed: int, *, change_at: int = 5_000, kept: float = 0.2, seconds: float = 6 * HOUR_S, town: Town = TOWN
) -> World:
    """Logging fails for a while: only the clicks of a share `kept` of the users arrive; no user changes."""
    return World("outage", replace(town, seed=seed), change_at, outage=Outage(kept, seconds))


def silence(seed: int, *, change_at: int = 5_000, seconds: float = 6 * HOUR_S, town: Town = TOWN) -> World:
    """Logging fails altogether for a while: no click arrives."""
    return World("silence", replace(town, seed=seed), change_at, outage=Outage(0.0, seconds))


def collections(seed: int, *, users: int = 160, items: int = 1_500, sizes: tuple[int, int] = (5, 250)) -> Collections:
    """Users enter what they own, each item once, in bursts and in no order; with the defaults some 10,000 entries.

    `sizes`: of the smallest and the largest collection.
    """
    return Collections(seed, users=users, items=items, sizes=sizes)
