"""Weights: everything that is learned by gradients, with the optimizers that move it. One version of the model.

What is counted and remembered (scorer.py: facts) does not belong to it. So several versions can score what was gathered
once, and be taught by the same clicks.

Letters: `N` clicks, `L` clicks read of each person, `D` width of states, `C` candidates of all clicks (flat), `F`
features, `K` candidates kept of a click, `V` rows of items.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.adam import Adam
from model.items import ItemTable
from model.optim import Optimizer, OptimizerConfig, RowwiseAdagrad
from model.ranker import Ranker, listwise_losses
from model.recall import RecallHeads
from model.reformer import Reformer, ReformerConfig
from online.arrays import below
from online.history import Latest
from online.ranking.features import OWN_HEADS, WORLD_HEADS, features
from online.ranking.moments import cosines
from online.ranking.next_item import as_histories, next_item_loss
from online.ranking.replay_buffer import among_rivals
from online.ranking.scored import Found, Gathered, Scored
from online.settings import Settings

MISS_LOSS = 10.0  # nats, for a click on something that was no candidate; also the most that one click can cost
VECTORS_WIDTH = 32
LEVEL_STEPS_MIN = 100  # before any norm counts as an explosion
LEVEL_SLOWEST = 0.02  # share of the newest norm in the level


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def build_reformer(settings: Settings) -> Reformer:
    """A new network, the same for the same settings on every machine."""
    config = ReformerConfig(
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
        rounds=settings.rounds,
        buckets=settings.buckets,
        window=settings.window,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    return Reformer(config).to(choose_device(settings.device))


def build_optimizer(network: Reformer, settings: Settings, learning_rate: float) -> Optimizer:
    return Optimizer(
        network,
        OptimizerConfig(
            learning_rate=learning_rate,
            rows_learning_rate=settings.item_learning_rate,
            weight_decay=settings.weight_decay,
            clip_norm=settings.gradient_norm_max,
            warm_up_steps=settings.warm_up_steps,
            half_life_steps=settings.learning_rate_half_life_steps,
        ),
    )


class NormLevel:
    """The running level of gradients' norms, which tells an explosion from a large step.

    Beyond the limit, a norm counts as the limit: so what has risen for good becomes the level after some dozen steps.
    """

    def __init__(self, explosion: float) -> None:
        """`explosion`: a norm of more than so many times the level is one."""
        self.explosion = explosion
        self.level, self.steps = 0.0, 0

    def takes(self, norm: float) -> bool:
        """Whether a step with this norm may be taken; the level moves towards it. Not finite: no, and it does not."""
        if not math.isfinite(norm):
            return False
        most = math.inf if self.steps < LEVEL_STEPS_MIN else self.explosion * self.level
        self.steps += 1
        self.level += max(1 / self.steps, LEVEL_SLOWEST) * (min(norm, most) - self.level)
        return norm <= most


class Weights:
    """The Reformer, recall's heads and item vectors, the ranker; and for each what moves it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = choose_device(settings.device)
        self.bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and self.device.type == "cuda"
        )
        self.network = build_reformer(settings).eval()  # dropout is for fine-tuning
        self.optimizer = build_optimizer(self.network, settings, settings.learning_rate)
        starts = [feature.start for feature in features(settings.popularity_half_lives)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.ranker = Ranker(starts, settings.ranker_hidden, settings.ranker_networks).to(self.device)
        self.own, self.world = RecallHeads(OWN_HEADS).to(self.device), RecallHeads(WORLD_HEADS).to(self.device)
        self.vectors = ItemTable(1024, VECTORS_WIDTH, seed=settings.seed).to(self.device)
        heads = [*self.own.parameters(), *self.world.parameters()]
        groups = [
            {"params": list(self.ranker.parameters()), "lr": settings.ranker_learning_rate},
            {"params": heads, "lr": settings.recall_learning_rate},
        ]
        self.adam = Adam(groups)
        table = {"vectors": self.vectors.vectors}
        self.adagrad = RowwiseAdagrad(table, learning_rate=settings.recall_vectors_learning_rate)
        self.levels = [NormLevel(settings.gradient_explosion) for _ in range(2)]  # the network's, and what ranks
        self.skipped = 0  # steps not taken, because of their gradients

    # Rows of items

    def grow(self, rows: int) -> None:
        """Makes room for so many rows; tables grow by doubling."""
        self.network.items.grow(rows)
        self.vectors.grow(rows)

    def reset_rows(self, rows: Tensor) -> None:
        """Rows (N,) int64 that are to be handed out again become as at the start, without their optimizers' state."""
        self.network.items.reset(rows)
        self.optimizer.reset_rows(rows)
        self.vectors.reset(rows)
        self.adagrad.reset_rows(rows)

    @torch.no_grad()
    def move_rows(self, before: Tensor, now: Tensor, rows: int) -> None:
        """Items that stood in rows `before` (N,) int64 stand in rows `now` (N,). All other rows become as at the start;
        there are `rows` at least."""
        self.grow(rows)
        tables = [table.data for table in (*self.network.items.parameters(), *self.vectors.parameters())]
        kept = [table[before] for table in tables]
        held = [(part.sums, name) for part in (self.optimizer.rows, self.adagrad) for name in part.sums]
        kept_sums = [sums[name][before] for sums, name in held]
        self.reset_rows(torch.arange(1, len(self.vectors), device=self.device))
        for table, values in zip(tables, kept, strict=True):
            table[now] = values
        for (sums, name), values in zip(held, kept_sums, strict=True):
            sums[name][now] = values

    # Scoring

    def precision(self) -> torch.autocast:
        """A context in which the network's products are computed as `settings.precision` says; weights stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def states(self, latest: Latest) -> Tensor:
        """The state after each click, (N, L, D)."""
        with self.precision():
            states: Tensor = self.network(as_histories(latest, self.device), recompute=False)
        return states

    def score(self, gathered: Gathered, states: Tensor | None) -> Scored:
        """Everything there is to say of the candidates of N queries, whose states are (N, D). Gradients reach weights,
        item vectors and states."""
        candidates, C = gathered.candidates, len(gathered.candidates.rows)
        recalled = [
            torch.zeros(C, len(heads.gains), device=self.device)
            if found is None
            else self._heads(heads, found, gathered, states)
            for heads, found in ((self.own, gathered.own), (self.world, gathered.world))
        ]
        inputs = torch.cat([candidates.features, *recalled, self._logits(gathered, states)], 1)
        with torch.no_grad():
            scores = self.ranker(inputs)
        return Scored(gathered, inputs, scores)

    def _heads(self, heads: RecallHeads, found: Found, gathered: Gathered, states: Tensor | None) -> Tensor:
        """What moments say of the candidates -> (C, heads)."""
        both = None if states is None else (states, found.states)
        alike = cosines(self.vectors, gathered.moment, found.owners, found.moments, both)
        return heads(alike, found.ages_s, found.places, len(gathered.candidates.rows))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _logits(self, gathered: Gathered, states: Tensor | None) -> Tensor:
        """What the states say of the candidates, (C, 1); 0 without states."""
        owners, rows = gathered.candidates.owners, gathered.candidates.rows
        if states is None:
            return torch.zeros(len(rows), 1, device=self.device)
        return self.network.scores(states.detach()[owners], rows[:, None]).float()

    # Learning

    def losses(
        self, scored: Scored, places: Tensor, again: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor | None, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """What clicks cost, and what is to be learned from them.

        places (N,) of the clicked items among the candidates, −1 where they are not among them; again: clicks from the
        replay buffer -> the mean loss of those that were candidates, with gradients, replayed clicks added (None
        without any); the losses of all (N,), in nats; and what the replay buffer may keep, and of which clicks
        (N,) that is (None without any).

        What is learned from are each click's strongest rivals, as many as are kept for replay: the others have next to
        no share of the softmax, and none of its gradient.
        """
        each = torch.full((len(places),), MISS_LOSS, device=self.device)
        if not len(scored.scores):
            return None, each, None
        found = listwise_losses(scored.scores, scored.candidates.owners, places.clamp(min=0))
        hit = (places >= 0) & found.isfinite()  # what cannot be scored must not be replayed again and again
        if not bool(hit.any()):
            return None, each, None
        each[hit] = found.detach()[hit].clamp(max=MISS_LOSS)
        best = scored.best(self.settings.replay_candidates)[0][hit]
        inputs, present = among_rivals(scored.features, best, places[hit])
        loss = self.ranking_loss(inputs, present)
        if again is not None:
            loss = loss + self.ranking_loss(*again)
        return loss, each, (inputs.detach(), present, hit)

    def ranking_loss(self, inputs: Tensor, present: Tensor) -> Tensor:
        """Features (N, K, F) of clicked items, which come first, and rivals; which are there (N, K) -> mean loss,
        summed over the ranker's networks."""
        scores = self.ranker.each(inputs).masked_fill(~present[..., None], -torch.inf)  # (N, K, networks)
        return torch.sum(torch.mean(scores.logsumexp(1) - scores[:, 0], 0))

    def guessing_loss(self, states: Tensor, wanted: Tensor, negatives: tuple[Tensor, Tensor]) -> Tensor:
        """States (N, D) before clicks on rows (N,), against sampled rows and their log chances -> mean loss in nats."""
        return next_item_loss(self.network, states, wanted, negatives).mean()

    def learn(self, ranking: Tensor | None, guessing: Tensor | None, seen: Tensor) -> None:
        """One step along the gradients of the losses that there are.

        ranking: `losses` gave it; guessing: the Reformer's mean loss; seen (C, F): the features scored.
        """
        losses = [loss for loss in (guessing, ranking) if loss is not None]
        if not losses:
            return
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        self.step(seen, network=guessing is not None, ranking=ranking is not None)

    @torch.no_grad()
    def step(self, seen: Tensor, *, network: bool = False, ranking: bool = True) -> None:
        """Moves the network, and what ranks, along the gradients there are. If any is not finite, or they explode,
        nothing moves, which is counted."""
        parameters = [parameter for _, module in self._ranking() for parameter in module.parameters()]
        norms = [
            self.optimizer.gradient_norm() if network else None,
            self._ranking_norm(parameters) if ranking else None,
        ]
        taken = [level.takes(norm) for level, norm in zip(self.levels, norms, strict=True) if norm is not None]
        self.skipped += not all(taken)
        if network and all(taken):
            self.optimizer.step(norms[0])
        if ranking and all(taken):
            self._step_ranking()
            self.ranker.observe(seen)
        for parameter in parameters:
            parameter.grad = None

    def _ranking_norm(self, parameters: list[nn.Parameter]) -> float:
        vectors = self.vectors.vectors
        vectors.grad = None if vectors.grad is None else vectors.grad.coalesce()
        gradients = [p.grad for p in parameters if p.grad is not None]
        return float(nn.utils.get_total_norm([g.values() if g.is_sparse else g for g in gradients]))

    def _step_ranking(self) -> None:
        vectors = self.vectors.vectors
        nn.utils.clip_grad_norm_(self.ranker.parameters(), self.settings.ranker_gradient_norm_max)
        self.adam.step()
        if vectors.grad is not None:
            self.adagrad.step()
            rows = vectors.grad.indices()[0]
            vectors.data[rows] = F.normalize(vectors.data[rows], dim=-1)

    def hasten(self, factor: float) -> None:
        """All learning rates are `factor` times those of the settings until this is said anew."""
        settings = self.settings
        self.optimizer.boost = factor
        for group, rate in zip(
            self.adam.param_groups, (settings.ranker_learning_rate, settings.recall_learning_rate), strict=True
        ):
            group["lr"] = factor * rate
        self.adagrad.learning_rate = factor * settings.recall_vectors_learning_rate

    # As one thing

    def copy(self) -> "Weights":
        """The same, to go another way from here."""
        return copy.deepcopy(self, {id(self.settings): self.settings})

    def tensors(self) -> dict[str, Tensor]:
        """Every weight by name, the running means of the ranker's features among them; (V, ·) those of items."""
        modules = [("network", self.network), *self._ranking()]
        return {f"{m}.{name}": tensor for m, module in modules for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether every weight is."""
        return all(math.isfinite(float(tensor.float().sum())) for tensor in self.tensors().values())

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Arrays by name: weights and optimizers."""
        tensors = self.tensors()
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}
        for number, parameter in enumerate(self._dense()):
            for name, moment in self.adam.state.get(parameter, {}).items():
                tensors[f"adam.{number}.{name}"] = moment
        tensors["adagrad"] = self.adagrad.sums["vectors"]
        levels = [number for level in self.levels for number in (level.level, level.steps)]
        tensors["levels"] = torch.tensor([*levels, self.skipped], dtype=torch.float64)
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        for name, module in (("network", self.network), *self._ranking()):
            module.load_state_dict(below(tensors, name))
        self.optimizer.load_state_tensors(below(tensors, "optimizer"))
        self.adam.state.clear()
        for number, parameter in enumerate(self._dense()):
            if moments := below(tensors, f"adam.{number}"):
                self.adam.state[parameter] = {
                    name: moment if name == "step" else moment.to(self.device) for name, moment in moments.items()
                }
        self.adagrad.sums["vectors"] = tensors["adagrad"].to(self.device)
        levels = arrays["levels"].tolist()
        for at, level in enumerate(self.levels):
            level.level, level.steps = levels[2 * at], int(levels[2 * at + 1])
        self.skipped = int(levels[-1])

    def _ranking(self) -> Iterator[tuple[str, nn.Module]]:
        """What ranks beside the network, by name."""
        yield from {"ranker": self.ranker, "own": self.own, "world": self.world, "vectors": self.vectors}.items()

    def _dense(self) -> list[nn.Parameter]:
        return [parameter for group in self.adam.param_groups for parameter in group["params"]]
