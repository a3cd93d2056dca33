"""A made-up site that shows lists, whose right answers are known: which positions are examined, and what attracts whom.

An item is clicked if its position is examined and it attracts the user (the position-based model). Some items are
promoted whatever they attract, so that clicks alone mislead: they count what is shown.

Letters: `U` users, `V` items, `K` positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.events import Click
from stream.impressions import Impression, ShownItem

_GROUPS = 6  # of users, each of which likes other items
_OTHERS = 0.15  # how much an item attracts users of another group
_VISIT_GAP_S = 60.0  # mean time between two visits of anyone
START_S = 1_730_448_000.0

#: Returns the list for a user (by number) at a moment, in seconds since 1970: numbers of K items.
Policy = Callable[[int, float], NDArray[np.int64]]


class Visit(NamedTuple):
    """A list that was shown, and the clicks on it."""

    shown: Impression
    clicks: list[Click]


@dataclass(frozen=True)
class ShownWorld:
    """A site, the same for the same fields. `steepness`: examination falls as position^−steepness; `drawn_share`: of
    slots whose item is drawn at random from all items."""

    users: int = 300
    items: int = 300
    positions: int = 10
    steepness: float = 0.8
    drawn_share: float = 0.0
    seed: int = 0

    @cached_property
    def examination(self) -> NDArray[np.float64]:
        """Probability that a position is examined, (K,)."""
        found: NDArray[np.float64] = np.power(np.arange(1.0, self.positions + 1), -self.steepness)
        return found

    @cached_property
    def attraction(self) -> NDArray[np.float64]:
        """Probability that a user clicks an item that is examined, (U, V)."""
        random = np.random.default_rng((self.seed, 1))
        of_item = random.beta(1.0, 3.0, self.items)
        liked = np.arange(self.users)[:, None] % _GROUPS == np.arange(self.items) % _GROUPS
        found: NDArray[np.float64] = of_item * np.where(liked, 1.0, _OTHERS)
        return found

    @cached_property
    def promotion(self) -> NDArray[np.float64]:
        """How much each item is promoted by the site's own lists, (V,): nothing to do with what it attracts."""
        return np.random.default_rng((self.seed, 2)).normal(0.0, 1.0, self.items)

    def own_lists(self, random: np.random.Generator) -> Policy:
        """Returns the site's policy: promoted items, and some more of those that the user's group likes."""

        def policy(user: int, at: float) -> NDArray[np.int64]:  # noqa: ARG001 - as policies are called
            liked = np.arange(self.items) % _GROUPS == user % _GROUPS
            scores = self.promotion + liked + random.gumbel(size=self.items)
            return np.argsort(-scores)[: self.positions]

        return policy

    def visits(self, n: int, policy: Policy | None = None) -> Iterator[Visit]:
        """Yields the first `n` visits, in order of time. `policy`: None: the site's own."""
        random = np.random.default_rng((self.seed, 3))
        policy = self.own_lists(np.random.default_rng((self.seed, 4))) if policy is None else policy
        at = START_S
        for number in range(n):
            at += float(random.exponential(_VISIT_GAP_S))
            user = int(random.integers(self.users))
            items = policy(user, at)
            drawn = random.random(len(items)) < self.drawn_share
            others = random.permutation(np.setdiff1d(np.arange(self.items), items))[: len(items)]
            items = np.where(drawn, others, items)
            clicked = random.random(len(items)) < self.examination[: len(items)] * self.attraction[user, items]
            yield Visit(
                Impression(
                    request_id=str(number),
                    user_id=f"u{user}",
                    timestamp=at,
                    policy="site",
                    version=0,
                    explored=self.drawn_share > 0,
                    items=tuple(
                        ShownItem(item_id=f"i{item}", position=place, explored=was_drawn)
                        for place, (item, was_drawn) in enumerate(zip(items.tolist(), drawn.tolist(), strict=True), 1)
                    ),
                ),
                [
                    Click(user_id=f"u{user}", item_id=f"i{item}", timestamp=at + 5.0 * nth)
                    for nth, item in enumerate(items[clicked].tolist(), 1)
                ],
            )

    def expected_clicks(self, user: int, items: list[str]) -> float:
        """Returns the clicks that a list would get, in the mean."""
        rows = [int(item[1:]) for item in items[: self.positions]]
        return float((self.examination[: len(rows)] * self.attraction[user, rows]).sum())
