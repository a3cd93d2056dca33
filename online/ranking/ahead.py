"""What the clicks of a micro-batch add to the counts for those of them that come later, and for lists in between.

Counts move once, at the end of a micro-batch, which on a slow stream would let a click wait for hours of others'. So
whoever is asked about in the middle of one is asked about as if the clicks ahead had been counted one by one. Only what
is near (`near`) is counted as it was before the batch.

Letters: `B` clicks of a micro-batch in order, `N` queries, `C` candidates of all queries (flat), `P` half-lives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from online.counts import THIRD
from online.ranking.entries import Entries, Neighbours, Places


class Ahead(NamedTuple):
    """B clicks in order of arrival, and how many of them each query comes after."""

    rows: Tensor  # (B,) int64, clicked; 0: an item without a row
    heard: Tensor  # (B,) bool: of the others, which are guarded, nobody else learns
    earlier: Tensor  # (B, NEAR) int64: what each person had clicked before, latest first, 0 where there was nothing
    times: Tensor  # (B,) float64 active time, seconds
    numbers: Tensor  # (B,) int64 of their moments
    came: Tensor  # (N,) int64

    def before(self) -> Tensor:
        """(N, B): for each query, which clicks came earlier and count for it."""
        came = torch.arange(len(self.rows), device=self.rows.device) < self.came[:, None]
        return came & (self.rows > 0) & self.heard

    def moments(self, last: Tensor) -> Tensor:
        """Numbers (N, B) of the moments ahead of each query that had its last item (N,), 0 for none."""
        same = self.before() & (self.earlier[:, 0] == last[:, None]) & (last > 0)[:, None]
        return torch.where(same, self.numbers, 0)


class Counted:
    """What the clicks ahead add to the counts of each query."""

    def __init__(self, ahead: Ahead, latest: Tensor, base: Tensor) -> None:
        """latest (N, NEAR): what each query's person had clicked; base (N, 1): the query times the rows there are."""
        self.ahead, self.latest, self.base = ahead, latest, base
        self.before = ahead.before()
        self.keys = torch.where(self.before, base + ahead.rows, base)  # (N, B) of what was clicked; row 0: nothing
        self.places = torch.zeros(0, dtype=torch.int64)  # (N · B,) of these among the candidates; C for none

    def pairs(self, found: Neighbours) -> tuple[Neighbours, dict[str, Tensor]]:
        """What the tables hold, with the pairs ahead; and what these add to the totals of the opened rows (N,)."""
        last, before_last, third = (self.latest[:, at, None] for at in (0, 1, 2))
        earlier = self.ahead.earlier
        pairs = {
            "first": (last == earlier[:, 0]) & (last > 0),
            "second": (before_last == earlier[:, 1]) & (before_last > 0),
            "third": ((third[..., None] == earlier[:, THIRD]) & (third > 0)[..., None]).sum(2),
            "before": (last == self.ahead.rows) & (earlier[:, 0] > 0),
        }
        counts = {name: pair * self.before.float() for name, pair in pairs.items()}  # (N, B) each
        keys = dict.fromkeys(("first", "second", "third"), self.keys) | {"before": self.base + earlier[:, 0]}
        more = {
            name: getattr(found, name).and_also(Entries(torch.where(count > 0, keys[name], self.base), count))
            for name, count in counts.items()
        }
        return found._replace(**more), {name: counts[name].sum(1) for name in ("first", "second")}

    def find(self, places: Places) -> None:
        """Notes where the candidates are that were clicked ahead of their query."""
        self.places = torch.where(self.before, places.find(self.keys), len(places.keys)).flatten()

    def items(self, clicks: Tensor, last_at: Tensor, first_at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates' clicks, latest and first times (C,), with the clicks ahead."""
        times = self.ahead.times.expand_as(self.before).flatten()
        latest = last_at.new_zeros(len(clicks) + 1).scatter_reduce(0, self.places, times, "amax")[:-1]
        first = last_at.new_full((len(clicks) + 1,), torch.inf).scatter_reduce(0, self.places, times, "amin")[:-1]
        first_at = torch.where((first_at == 0) & first.isfinite(), first, first_at)
        more = self._summed(clicks.new_ones(len(times), 1), len(clicks))[:, 0]
        return clicks + more, torch.maximum(last_at, latest), first_at

    def popularity(self, popularity: Tensor, owners: Tensor, half_lives: Sequence[int]) -> Tensor:
        """(C, P) as of the batch's start -> as of each query: what was counted fades with each click ahead."""
        until = F.pad(self.ahead.heard.long().cumsum(0), (1, 0))  # (B + 1,) clicks heard before each
        came = until[self.ahead.came]  # (N,)
        ago = (came[:, None] - until[:-1]).clamp(min=0).flatten()  # (N · B,) the click itself is one
        rates = torch.tensor([2 ** (-1 / n) for n in half_lives], dtype=torch.float64, device=came.device)
        faded = (rates ** torch.arange(len(until), device=came.device)[:, None]).float()  # (B + 1, P)
        return popularity * faded[came][owners] + self._summed(faded[ago], len(popularity))

    def _summed(self, weights: Tensor, candidates: int) -> Tensor:
        """weights (N · B, ·) of each query's clicks ahead -> their sums for each candidate (C, ·)."""
        sums = weights.new_zeros(candidates + 1, weights.shape[1])
        return sums.index_add(0, self.places, weights)[:-1]
