"""Worlds whose changes are known: towns in which something happens at a stated click, for tests and benchmarks.

    world = sudden(seed=3, change_at=5_000)
    for number, click in enumerate(world.clicks(20_000)): ...

The same seed gives the same clicks, and until the change they are those of the quiet world of that seed. So whatever
differs afterwards comes from the change.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from online.evaluation.town import Town
from stream.events import Click

_CLICKS_MAX = 10**12
HOUR_S = 3_600.0


@dataclass(frozen=True)
class Bot:
    """Who clicks one item again and again, between everybody else's clicks: one or more accounts, in turn.

    `between`: items that each clicks in turn with it, to make it what follows them.
    """

    user_id: str = "bot-0"
    item_id: str = "miracle pills"  # which nobody else clicks
    clicks: int = 10_000
    rate_hz: float = 5.0  # of all accounts
    accounts: int = 1
    between: tuple[str, ...] = ()

    @property
    def user_ids(self) -> list[str]:
        return [self.user_id, *(f"{self.user_id}-{number}" for number in range(1, self.accounts))]


@dataclass(frozen=True)
class Outage:
    """For `seconds`, only the clicks of `kept` of the people arrive (0: nobody's); taste stays as it is."""

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
        """The first `n` clicks from the change on: what somebody sees who only ever saw the new world."""
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
        heard = np.random.default_rng((self.town.seed, 7)).random(self.town.users) < outage.kept
        arriving = {user for user, kept in zip(self.town.user_ids, heard, strict=True) if kept}
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


TOWN, BOT = Town(), Bot()


def quiet(seed: int, *, town: Town = TOWN) -> World:
    """Nothing changes."""
    return World("quiet", replace(town, seed=seed))


def sudden(seed: int, *, change_at: int = 5_000, town: Town = TOWN) -> World:
    """From one click to the next, everybody's taste is another, and what follows what."""
    return World("sudden", replace(town, seed=seed, fashion_change_at=change_at), change_at)


def slow(seed: int, *, change_at: int = 5_000, over: int = 10_000, town: Town = TOWN) -> World:
    """The same change, but people turn to it one after another, in `over` clicks."""
    changing = replace(town, seed=seed, fashion_change_at=change_at, fashion_change_over=over)
    return World("slow", changing, change_at, change_at + over)


def seasonal(seed: int, *, change_at: int = 5_000, lasts: int = 5_000, town: Town = TOWN) -> World:
    """A sudden change, and after `lasts` clicks everything is as it was before."""
    until = change_at + lasts
    changing = replace(town, seed=seed, fashion_change_at=change_at, fashion_returns_at=until)
    return World("seasonal", changing, change_at, until)


def catalogue(seed: int, *, change_at: int = 5_000, renewed: float = 1.0, town: Town = TOWN) -> World:
    """A new catalogue overnight: other items stand in the places of some, or of all; people's taste is the same."""
    return World("catalogue", replace(town, seed=seed), change_at, renewed=renewed)


def one_type(seed: int, *, change_at: int = 5_000, share: float = 0.3, town: Town = TOWN) -> World:
    """`share` of the events are purchases, and the taste in what is bought changes suddenly; clicks stay the same."""
    two = replace(town, seed=seed, purchase_share=share, fashion_of_purchases=True, fashion_change_at=change_at)
    return World("one-type", two, change_at)


def attack(seed: int, *, change_at: int = 5_000, bot: Bot = BOT, town: Town = TOWN) -> World:
    """A bot clicks one item ten thousand times; nobody else changes."""
    return World("attack", replace(town, seed=seed), change_at, bot=bot)


def outage(
    seed: int, *, change_at: int = 5_000, kept: float = 0.2, seconds: float = 6 * HOUR_S, town: Town = TOWN
) -> World:
    """Logging fails for a while: a fraction of the clicks arrive, those of `kept` of the people; nobody changes."""
    return World("outage", replace(town, seed=seed), change_at, outage=Outage(kept, seconds))


def silence(seed: int, *, change_at: int = 5_000, seconds: float = 6 * HOUR_S, town: Town = TOWN) -> World:
    """Logging fails altogether for a while: no click arrives."""
    return World("silence", replace(town, seed=seed), change_at, outage=Outage(0.0, seconds))
