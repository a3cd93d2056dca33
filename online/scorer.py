"""Scores of candidates, and how they are learned: live counts and recall, weighed by the ranker.

Letters: `N` queries, `W` latest moments of each, `P` moments found for all of them (flat), `C` candidates of all
queries (flat), `D` width of a state, `F` features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.items import ItemTable
from model.optim import RowwiseAdagrad
from model.ranker import Ranker, listwise_losses
from model.recall import RecallHeads
from model.reformer import Reformer
from online.arrays import below, joined
from online.candidates import Asked, Candidates, Gatherer
from online.counts import Counts
from online.features import OWN_HEADS, WORLD_HEADS, features
from online.moments import MomentLog, Moments, OwnMemory, WorldMemory, cosines
from online.replay_buffer import ReplayBuffer
from online.settings import Settings

MISS_LOSS = 10.0  # nats, for a click on something that was no candidate; also the most that one click can cost
VECTORS_WIDTH = 32


class Query(NamedTuple):
    """N people at the moments they are asked about."""

    asked: Asked
    numbers: Tensor  # (N, W) int64: of the latest moments of each, 0 where there is none
    slots: Tensor  # (N,) int64: where their older moments are remembered, −1 for nowhere
    states: Tensor | None  # (N, D) the Reformer's; None: without

    def with_nobody(self, now: float) -> "Query":
        """The same with one more, of whom nothing is known."""
        rows, times, lengths, moments = self.asked
        asked = Asked(_and_zero(rows), _and_zero(times), _and_zero(lengths), _and_zero(moments))
        asked.now[-1] = now
        states = None if self.states is None else _and_zero(self.states)
        return Query(asked, _and_zero(self.numbers), torch.cat([self.slots, self.slots.new_full((1,), -1)]), states)


class Scored(NamedTuple):
    """What was asked, and what came of it; with gradients."""

    candidates: Candidates
    features: Tensor  # (C, F)
    scores: Tensor  # (C,)

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


class Scorer:
    """Counts, memories, and the weights that turn them into scores. What is learned online, apart from the Reformer."""

    def __init__(self, settings: Settings, network: Reformer) -> None:
        self.settings, self.network = settings, network
        self.device = device = network.items.vectors.device
        self.counts = Counts(settings.successors_held, settings.popularity_half_lives, device)
        self.gatherer = Gatherer(self.counts)
        self.log = MomentLog(settings.moments_held, settings.width, device)
        self.own_memory = OwnMemory(settings, VECTORS_WIDTH, device)
        self.world_memory = WorldMemory(settings, VECTORS_WIDTH, device)
        self.inputs = features(settings.popularity_half_lives)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.ranker = Ranker([feature.start for feature in self.inputs], settings.ranker_hidden).to(device)
        self.own, self.world = RecallHeads(OWN_HEADS).to(device), RecallHeads(WORLD_HEADS).to(device)
        self.vectors = ItemTable(1024, VECTORS_WIDTH, seed=settings.seed).to(device)
        heads = [*self.own.parameters(), *self.world.parameters()]
        groups = [
            {"params": list(self.ranker.parameters()), "lr": settings.ranker_learning_rate},
            {"params": heads, "lr": settings.recall_learning_rate},
        ]
        self.adam = torch.optim.Adam(groups, foreach=True)
        table = {"vectors": self.vectors.vectors}
        self.adagrad = RowwiseAdagrad(table, learning_rate=settings.recall_vectors_learning_rate)
        self.replay = ReplayBuffer(
            settings.replay_held, settings.replay_candidates, len(self.inputs), settings.seed, device
        )
        self.blocked = torch.zeros(0, dtype=torch.bool, device=device)  # (V,) rows that must not be listed

    def make_room(self, rows: int) -> None:
        """For so many rows of the vocabulary."""
        self.counts.grow(rows)
        V = len(self.counts)
        self.vectors.grow(V)
        if len(self.blocked) < V:
            self.blocked = torch.cat([self.blocked, self.blocked.new_zeros(V - len(self.blocked))])

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Rows that are to be handed out again."""
        at = torch.tensor(list(rows), dtype=torch.int64, device=self.device)
        self.counts.forget_rows(rows)
        self.log.forget_rows(at)
        self.vectors.reset(at)
        self.adagrad.reset_rows(at)
        self.blocked[at] = False

    # Scoring

    def score(self, query: Query) -> Scored:
        """Everything there is to say of everybody's candidates. Gradients reach weights, item vectors and states."""
        asked = query.asked
        N = len(asked.now)
        moment = asked.moment()
        if self.settings.reformer:
            own, world = self._recalled(query, moment)
            recalled = torch.where(self.log.holds(world), self.log.items[world % self.log.held].long(), 0)
        else:
            recalled = torch.zeros(N, 0, dtype=torch.int64, device=self.device)
        exclude_seen = self.settings.exclude_seen
        candidates = self.gatherer.gather(asked, recalled, self.blocked, exclude_seen=exclude_seen)
        C = len(candidates.rows)
        if self.settings.reformer:
            found = [self._heads(self.own, own, moment, query, C), self._heads(self.world, world, moment, query, C)]
        else:
            found = [torch.zeros(C, len(OWN_HEADS) + len(WORLD_HEADS), device=self.device)]
        inputs = torch.cat([candidates.features, *found, self._logits(query, candidates)], 1)
        with torch.no_grad():
            scores = self.ranker(inputs)
        return Scored(candidates, inputs, scores)

    def places_of(self, scored: Scored, targets: Tensor) -> Tensor:
        """Places of rows (N,), one of each query, among the candidates last scored; −1 where they are not, or 0."""
        V, C = len(self.counts), len(scored.scores)
        places = self.gatherer.places.find(torch.arange(len(targets), device=self.device) * V + targets)
        return torch.where((places < C) & (targets > 0), places, -1)

    def _logits(self, query: Query, candidates: Candidates) -> Tensor:
        """What the states say of the candidates, (C, 1); 0 without states."""
        if query.states is None:
            return torch.zeros(len(candidates.rows), 1, device=self.device)
        states = query.states.detach()[candidates.owners]  # (C, D)
        with torch.no_grad():
            return self.network.scores(states, candidates.rows[:, None]).float()

    @torch.no_grad()
    def _recalled(self, query: Query, moment: Moments) -> tuple[Tensor, Tensor]:
        """Numbers of the moments found: of each person's own (N, ·), and of everybody's (N, ·); 0 for none."""
        own = torch.cat([query.numbers, self.own_memory.recall(query.slots, moment)], 1)
        world = self.world_memory.recall(moment)
        # Where the item before has lost its row since, the moment lies in a bucket of the row's next owner.
        return own, torch.where(self.log.last[world % self.log.held] > 0, world, 0)

    def _heads(self, heads: RecallHeads, numbers: Tensor, moment: Moments, query: Query, C: int) -> Tensor:
        """What moments (N, ·) say of the candidates last gathered -> (C, heads)."""
        owners, at = self.log.holds(numbers).nonzero(as_tuple=True)
        numbers = numbers[owners, at]  # (P,)
        items, remembered = self.log.read(numbers)
        places = self.gatherer.places.find(owners * len(self.counts) + items)
        states = None if query.states is None else (query.states, self.log.states[numbers % self.log.held])
        alike = cosines(self.vectors, moment, owners, remembered, states)
        return heads(alike, query.asked.now[owners] - remembered.times, places, C)  # type: ignore[no-any-return]

    # Learning

    def losses(self, scored: Scored, places: Tensor) -> tuple[Tensor | None, Tensor]:
        """places (N,) of the clicked items among the candidates, −1 where they are not among them -> the mean loss of
        the others, with gradients, replayed clicks added (None without any); and the losses of all (N,), in nats.

        What is learned from are each click's strongest rivals, as many as are kept for replay: the others have next to
        no share of the softmax, and none of its gradient.
        """
        each = torch.full((len(places),), MISS_LOSS, device=self.device)
        if not len(scored.scores):
            return None, each
        found = listwise_losses(scored.scores, scored.candidates.owners, places.clamp(min=0))
        hit = (places >= 0) & found.isfinite()  # what cannot be scored must not be replayed again and again
        if not bool(hit.any()):
            return None, each
        each[hit] = found.detach()[hit].clamp(max=MISS_LOSS)
        inputs, present = self.replay.among_rivals(
            scored.features, scored.best(self.replay.candidates)[0][hit], places[hit]
        )
        loss = self._loss(inputs, present)
        if (again := self.replay.sample(self.settings.replay_batch)) is not None:
            loss = loss + self._loss(*again)
        self.replay.add(inputs.detach(), present)
        return loss, each

    def _loss(self, inputs: Tensor, present: Tensor) -> Tensor:
        """Features (N, K, F) of clicked items, which come first, and rivals; which are there (N, K) -> mean loss."""
        scores = self.ranker(inputs).masked_fill(~present, -torch.inf)
        return torch.mean(scores.logsumexp(1) - scores[:, 0])

    @torch.no_grad()
    def step(self, scored: Scored) -> None:
        """Moves the weights along the gradients there are; if any of these is not finite, nothing."""
        vectors = self.vectors.vectors
        vectors.grad = None if vectors.grad is None else vectors.grad.coalesce()
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([g.values() if g.is_sparse else g for g in gradients])
        if bool(norm.isfinite()):
            nn.utils.clip_grad_norm_(self.ranker.parameters(), self.settings.ranker_gradient_norm_max)
            self.adam.step()
            if vectors.grad is not None:
                self.adagrad.step()
                rows = vectors.grad.indices()[0]
                vectors.data[rows] = F.normalize(vectors.data[rows], dim=-1)
            self.ranker.observe(scored.features)
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def observe(self, rows: Tensor, earlier: Tensor, numbers: Tensor, leaving: Tensor, slots: Tensor) -> None:
        """A micro-batch becomes part of counts and memories, after it was scored.

        rows (N,) clicked, earlier (N, NEAR) what each person had clicked before, latest first, numbers (N,) of their
        moments; leaving (K,): numbers of moments that are no longer among their owner's latest W, slots (K,) the
        owners' in the memory of older ones.
        """
        _, moments = self.log.read(numbers)
        self.counts.add(rows, earlier, moments.times)
        if self.settings.reformer:
            known = (moments.last > 0) & (rows > 0)
            self.world_memory.store(Moments(*(part[known] for part in moments)), numbers[known])
            if len(leaving):
                there = self.log.holds(leaving)
                self.own_memory.store(slots[there], self.log.read(leaving[there])[1], leaving[there])

    def _parameters(self) -> list[nn.Parameter]:
        modules = (self.ranker, self.own, self.world, self.vectors)
        return [parameter for module in modules for parameter in module.parameters()]

    def _modules(self) -> dict[str, nn.Module]:
        return {"ranker": self.ranker, "own": self.own, "world": self.world, "vectors": self.vectors}

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object."""
        tensors = {f"{m}.{n}": t for m, module in self._modules().items() for n, t in module.state_dict().items()}
        for number, parameter in enumerate(self._dense()):
            for name, moment in self.adam.state.get(parameter, {}).items():
                tensors[f"adam.{number}.{name}"] = moment
        tensors["adagrad"] = self.adagrad.sums["vectors"]
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        replay, replay_state = self.replay.to_state()
        own, own_state = self.own_memory.to_state()
        others = {"counts": self.counts.to_state(), "log": self.log.to_state(), "replay": replay, "own_memory": own}
        others["world_memory"] = self.world_memory.to_state()
        return arrays | joined(others), {"replay": replay_state, "own_memory": own_state}

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave. Which rows must not be listed is for the caller to say again."""
        for name, module in self._modules().items():
            module.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in below(arrays, name).items()})
        self.adam.state.clear()
        for number, parameter in enumerate(self._dense()):
            moments = {name: torch.from_numpy(array.copy()) for name, array in below(arrays, f"adam.{number}").items()}
            if moments:
                self.adam.state[parameter] = {
                    name: moment if name == "step" else moment.to(self.device) for name, moment in moments.items()
                }
        self.adagrad.sums["vectors"] = torch.from_numpy(arrays["adagrad"].copy()).to(self.device)
        self.counts.load_state(below(arrays, "counts"))
        self.log.load_state(below(arrays, "log"))
        self.replay.load_state(below(arrays, "replay"), state["replay"])
        self.own_memory.load_state(below(arrays, "own_memory"), state["own_memory"])
        self.world_memory.load_state(below(arrays, "world_memory"))
        self.blocked = torch.zeros(len(self.counts), dtype=torch.bool, device=self.device)

    def _dense(self) -> list[nn.Parameter]:
        return [parameter for group in self.adam.param_groups for parameter in group["params"]]


def _and_zero(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(1, *tensor.shape[1:])])
