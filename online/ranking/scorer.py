"""Facts: live counts, remembered moments, clicks to replay; and what is gathered from them to be scored by weights.

Letters: `N` queries, `P` moments found for all of them (flat), `C` candidates of all queries (flat), `V` rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from online.arrays import below, joined
from online.counts import Counts
from online.ranking.candidates import Gatherer
from online.ranking.features import features
from online.ranking.guard import Contributed
from online.ranking.moments import HashedVectors, MomentLog, Moments, OwnMemory, WorldMemory
from online.ranking.replay_buffer import ReplayBuffer
from online.ranking.scored import Found, Gathered, Query, Scored
from online.ranking.surprise import Surprises
from online.ranking.weights import VECTORS_WIDTH, Weights
from online.settings import Settings


class Scorer:
    """Counts, memories and replay, which all versions of the weights share; `weights` are those that serve."""

    def __init__(self, settings: Settings, weights: Weights) -> None:
        self.settings, self.weights = settings, weights
        self.device = device = weights.device
        self.counts = Counts(settings.successors_held, settings.popularity_half_lives, device)
        self.gatherer = Gatherer(self.counts)
        self.log = MomentLog(settings.moments_held, settings.width, device)
        hashed = HashedVectors(VECTORS_WIDTH, settings.seed, device)
        self.surprises = Surprises(device)
        self.own_memory = OwnMemory(settings, hashed, device)
        self.world_memory = WorldMemory(settings, hashed, device)
        self.inputs = features(settings.popularity_half_lives)
        self.replay = ReplayBuffer(
            settings.replay_held, settings.replay_candidates, len(self.inputs), settings.seed, device
        )
        self.blocked = torch.zeros(0, dtype=torch.bool, device=device)  # (V,) rows that must not be listed

    def make_room(self, rows: int) -> None:
        """For so many rows of the vocabulary."""
        self.counts.grow(rows)
        V = len(self.counts)
        self.weights.grow(V)
        self.surprises.grow(V)
        if len(self.blocked) < V:
            self.blocked = torch.cat([self.blocked, self.blocked.new_zeros(V - len(self.blocked))])

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Rows that are to be handed out again."""
        at = torch.tensor(list(rows), dtype=torch.int64, device=self.device)
        self.counts.forget_rows(rows)
        self.surprises.forget_rows(at)
        self.log.forget_rows(at)
        self.weights.reset_rows(at)
        self.blocked[at] = False

    # Scoring

    def score(self, query: Query) -> Scored:
        """Everything there is to say of everybody's candidates. Gradients reach weights, item vectors and states."""
        return self.weights.score(self.gather(query), query.states)

    @torch.no_grad()
    def gather(self, query: Query) -> Gathered:
        """Candidates, what is counted of them, and the moments that point at them."""
        asked = query.asked
        moment = asked.moment()
        recalled = torch.zeros(len(asked.now), 0, dtype=torch.int64, device=self.device)
        if self.settings.reformer:
            own, world = self._recalled(query, moment)
            recalled = torch.where(self.log.holds(world), self.log.items[world % self.log.held].long(), 0)
        exclude_seen = self.settings.exclude_seen
        candidates = self.gatherer.gather(
            asked, recalled, self.blocked, exclude_seen=exclude_seen, seen=query.seen, ahead=query.ahead
        )
        surprise = self.surprises.of(candidates.rows)[:, None]
        candidates = candidates._replace(features=torch.cat([candidates.features, surprise], 1))
        if not self.settings.reformer:
            return Gathered(candidates, moment, None, None)
        return Gathered(candidates, moment, self._found(own, query), self._found(world, query))

    def places_of(self, scored: Scored, targets: Tensor) -> Tensor:
        """Places of rows (N,), one of each query, among the candidates last scored; −1 where they are not, or 0."""
        V, C = len(self.counts), len(scored.scores)
        places = self.gatherer.places.find(torch.arange(len(targets), device=self.device) * V + targets)
        return torch.where((places < C) & (targets > 0), places, -1)

    @torch.no_grad()
    def _recalled(self, query: Query, moment: Moments) -> tuple[Tensor, Tensor]:
        """Numbers of the moments found: of each person's own (N, ·), and of everybody's (N, ·); 0 for none."""
        own = torch.cat([query.numbers, self.own_memory.recall(query.slots, moment)], 1)
        world = self.world_memory.recall(moment)
        at = world % self.log.held
        # Where the item before has lost its row since, the moment lies in a bucket of the row's next owner.
        world = torch.where((self.log.last[at] > 0) & ~self.log.private[at], world, 0)
        return own, world if query.ahead is None else torch.cat([world, query.ahead.moments(moment.last)], 1)

    def _found(self, numbers: Tensor, query: Query) -> Found:
        """Moments (N, ·) and the candidates last gathered that they point at."""
        owners, at = self.log.holds(numbers).nonzero(as_tuple=True)
        numbers = numbers[owners, at]  # (P,)
        items, remembered = self.log.read(numbers)
        places = self.gatherer.places.find(owners * len(self.counts) + items)
        ages_s = query.asked.now[owners] - remembered.times
        return Found(owners, remembered, self.log.states[numbers % self.log.held], ages_s, places)

    @torch.no_grad()
    def compare(self, scored: Scored, places: Tensor) -> None:
        """What was expected of the clicks, and what came; places (N,) of the clicked items among the candidates, −1 for
        clicks that say nothing. Weights that cannot score expect nothing: what other weights see must not suffer."""
        if not bool(scored.scores.isfinite().all()):
            return
        told = (places >= 0)[scored.candidates.owners]
        rows = scored.candidates.rows
        self.surprises.add(rows[told], scored.shares()[told], rows[places[places >= 0]])

    @torch.no_grad()
    def observe(
        self, rows: Tensor, earlier: Tensor, numbers: Tensor, leaving: Tensor, slots: Tensor, *, times: Tensor
    ) -> None:
        """A micro-batch becomes part of counts and memories, after it was scored.

        rows (N,) clicked, earlier (N, NEAR) what each person had clicked before, latest first, numbers (N,) of their
        moments, times (N,) active time; leaving (K,): numbers of moments that are no longer among their owner's latest
        W, slots (K,) the owners' in the memory of older ones. Guarded clicks are no part of it, and 0 in `earlier`.
        """
        self.counts.add(rows, earlier, times)
        if self.settings.reformer:
            _, moments = self.log.read(numbers)
            known = (earlier[:, 0] > 0) & (rows > 0)
            self.world_memory.store(Moments(*(part[known] for part in moments)), numbers[known])
            if len(leaving):
                there = self.log.holds(leaving)
                self.own_memory.store(slots[there], self.log.read(leaving[there])[1], leaving[there])

    def take_back(self, contributed: Contributed) -> None:
        """Counts and moments that nobody else is to learn from any more."""
        rows, earlier, ages, numbers = (torch.from_numpy(part).to(self.device) for part in contributed)
        self.counts.take_back(rows, earlier, ages)
        self.log.private[numbers % self.log.held] = True

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object; without the weights."""
        replay, replay_state = self.replay.to_state()
        own, own_state = self.own_memory.to_state()
        arrays = {"counts": self.counts.to_state(), "log": self.log.to_state(), "replay": replay, "own_memory": own}
        arrays["surprises"] = self.surprises.to_state()
        arrays["world_memory"] = self.world_memory.to_state()
        return joined(arrays), {"replay": replay_state, "own_memory": own_state}

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave. Which rows must not be listed is for the caller to say again."""
        self.counts.load_state(below(arrays, "counts"))
        self.surprises.load_state(below(arrays, "surprises"))
        self.log.load_state(below(arrays, "log"))
        self.replay.load_state(below(arrays, "replay"), state["replay"])
        self.own_memory.load_state(below(arrays, "own_memory"), state["own_memory"])
        self.world_memory.load_state(below(arrays, "world_memory"))
        self.blocked = torch.zeros(len(self.counts), dtype=torch.bool, device=self.device)
