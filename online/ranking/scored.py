"""What is asked, what is found for it, and what weights make of that: the values that scoring passes on.

Letters: `N` queries, `W` latest moments of each, `P` moments found for all of them (flat), `C` candidates of all
queries (flat), `D` width of a state, `F` features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from online.ranking.ahead import Ahead
from online.ranking.candidates import Asked, Candidates
from online.ranking.moments import Moments


class Query(NamedTuple):
    """N people at the moments they are asked about."""

    asked: Asked
    numbers: Tensor  # (N, W) int64: of the latest moments of each, 0 where there is none
    slots: Tensor  # (N,) int64: where their older moments are remembered, −1 for nowhere
    states: Tensor | None  # (N, D) the Reformer's; None: without
    ahead: Ahead | None = None  # where they are asked about in the middle of a micro-batch
    seen: tuple[Tensor, Tensor] | None = None  # (S,) int64 each: queries, and rows that must not be listed for them

    def with_nobody(self, now: float, active: float) -> "Query":
        """The same with one more, of whom nothing is known, at a moment and the active time then."""
        asked = Asked(*map(_and_zero, self.asked))
        asked.now[-1], asked.active[-1] = now, active
        states = None if self.states is None else _and_zero(self.states)
        ahead = None if self.ahead is None else self.ahead._replace(came=_and_zero(self.ahead.came))
        slots = torch.cat([self.slots, self.slots.new_full((1,), -1)])
        return Query(asked, _and_zero(self.numbers), slots, states, ahead, self.seen)


class Found(NamedTuple):
    """P moments that a memory found, and what they point at."""

    owners: Tensor  # (P,) int64, which of the N
    moments: Moments  # (P,)
    states: Tensor  # (P, D) float16, the Reformer's then
    ages_s: Tensor  # (P,) float64
    places: Tensor  # (P,) int64 of the candidates they point at; C for none


class Gathered(NamedTuple):
    """All that weights score. It depends on none that are learned, so that several can be asked about the same."""

    candidates: Candidates
    moment: Moments  # (N,) what the queries are asked at
    own: Found | None  # of each person's moments; None: without recall
    world: Found | None  # of everybody's


class Scored(NamedTuple):
    """What was gathered, and what came of it; with gradients."""

    gathered: Gathered
    features: Tensor  # (C, F)
    scores: Tensor  # (C,)

    @property
    def candidates(self) -> Candidates:
        return self.gathered.candidates

    def shares(self) -> Tensor:
        """Each candidate's share of its query's softmax, (C,)."""
        owners, N = self.candidates.owners, len(self.candidates.starts) - 1
        most = self.scores.new_full((N,), -torch.inf).scatter_reduce(0, owners, self.scores, "amax")
        shares = (self.scores - most[owners]).exp()
        return shares / shares.new_zeros(N).index_add(0, owners, shares)[owners]

    def for_people(self, people: Tensor, V: int) -> "Scored":
        """Queries (N,) about `people` (N,), rising from 0, each at several moments -> one for each person, scored by
        the mean of the shares: of a list that stands at all these moments, that is what makes a click most likely."""
        if len(people) == int(people[-1]) + 1:  # nothing to be joined
            return self._replace(scores=self.shares())
        owners, rows, _, features = self.candidates
        shares = self.shares() / people.bincount()[people[owners]]
        keys, at = torch.unique(people[owners] * V + rows, return_inverse=True)
        scores = shares.new_zeros(len(keys)).index_add(0, at, shares)
        owners, rows = keys // V, keys % V
        starts = torch.searchsorted(owners, torch.arange(int(people.max()) + 2, device=owners.device))
        candidates = Candidates(owners, rows, starts, features[:0])
        return Scored(self.gathered._replace(candidates=candidates), self.features[:0], scores)

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best candidates of each query, best first (equal scores: the smaller row) -> their places
        (N, count), C where there are no more, and their scores (N, count)."""
        owners, starts = self.candidates.owners, self.candidates.starts
        N, C = len(starts) - 1, len(owners)
        width = max(count, int(starts.diff().max())) if N else count
        nth = torch.arange(C, device=owners.device) - starts[owners]
        dense = self.scores.new_full((N, width), -torch.inf)
        dense[owners, nth] = self.scores.detach()
        scores, order = dense.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :count], order[:, :count]
        return torch.where(scores > -torch.inf, starts[:-1, None] + order, C), scores


def _and_zero(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(1, *tensor.shape[1:])])
