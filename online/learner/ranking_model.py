"""The ranking model: one version of all weights that are trained by gradients, with their optimizers.

Counts and moments (facts/) do not belong to it. So several versions can score candidates that were gathered once, and
learn from the same clicks.

Letters: `N` clicks, `L` clicks read of each user, `D` width of states, `C` candidates of all clicks (flat), `F`
features, `K` candidates kept of a click, `V` rows of items.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.adam import Adam
from model.content import AddedScores, ContentScore
from model.heads import Calibration, Heads
from model.items import ItemTable
from model.optim import Optimizer, OptimizerConfig, RowwiseAdagrad
from model.ranker import Columns, Ranker
from model.recall import RecallHeads
from model.reformer import Reformer, ReformerConfig
from online.config.settings import Settings
from online.learner.added import PARTS, parts_of
from online.learner.arrays import as_tensor, below
from online.learner.content.columns import LEARNED
from online.learner.content.queries import Starts
from online.learner.facts.feature_groups import OWN_MOMENTS, WORLD_MOMENTS, group_of
from online.learner.facts.features import OWN_HEADS, WORLD_HEADS, features
from online.learner.facts.moments import Hits, Keys
from online.learner.facts.store import Gathered
from online.learner.history import ClicksOldestFirst
from online.learner.next_item import as_histories
from online.learner.objectives import Objective, TrainingBatch
from online.learner.prune import columns_at, keep_best, put_columns, put_inputs
from online.learner.recall import soft_counts, with_gradients
from online.learner.replay_buffer import Replayed
from online.learner.scoring import ScoredCandidates
from online.learner.worth.facts import LOST, LOST_WITH_USER
from online.learner.worth.heads import (
    head_inputs,
    head_starts,
    heads_moments,
    load_heads,
    situations,
    types_as_bytes,
)
from online.learner.worth.objective import Objective as RankingObjective

MISS_LOSS = 10.0  # nats, for a click on an item that was not kept; also the largest loss of a click
VECTORS_WIDTH = 32
HEADS = ("heads.", "calibration.")  # weights that fine-tuning leaves as they are
CALIBRATION_RATE = 4.0  # of learning, times that of the heads: it has few weights
SITUATION = ("history", "gap", "last_clicks")  # features of the ranker that all candidates of a query share
LEVEL_STEPS_MIN = 100  # before any norm counts as an explosion
LEVEL_SLOWEST = 0.02  # share of the newest norm in the level


def choose_device(name: str) -> torch.device:
    """Returns the device of a name; `auto` is CUDA if it is available."""
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def build_reformer(settings: Settings) -> Reformer:
    """Creates a Reformer; the same settings give the same weights on every machine."""
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
    """Creates the optimizer of a Reformer."""
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


def _added_score(part: str, settings: Settings) -> ContentScore:
    """Creates the score of a part of what is added, as it is before it is trained."""
    return ContentScore([column.start for column in PARTS[part]], seed=settings.seed)


class GradientMonitor:
    """The running level of gradient norms, which tells an explosion from a large step.

    A norm beyond the limit counts as the limit: so the level reaches norms that stay high in some dozen steps.
    """

    def __init__(self, explosion: float) -> None:
        """`explosion`: how many times the level a norm must exceed to count as an explosion."""
        self.explosion = explosion
        self.level, self.steps = 0.0, 0

    def accepts(self, norm: float) -> bool:
        """Updates the level with a norm, and returns whether a step with it may be taken. A norm that is not finite is
        refused, and leaves the level as it is."""
        if not math.isfinite(norm):
            return False
        most = math.inf if self.steps < LEVEL_STEPS_MIN else self.explosion * self.level
        self.steps += 1
        self.level += max(1 / self.steps, LEVEL_SLOWEST) * (min(norm, most) - self.level)
        return norm <= most


class Memory(NamedTuple):
    """The moments with which recall compares the present one."""

    keys: Keys  # of all moments that are held
    states: Tensor  # (held, D) float16, the Reformer's states at these moments


class RankingModel:
    """The Reformer, recall's heads and item vectors, the first score and the ranker, each with its optimizer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = choose_device(settings.device)
        self.bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and self.device.type == "cuda"
        )
        self.network = build_reformer(settings).eval()  # dropout is for fine-tuning
        self.optimizer = build_optimizer(self.network, settings, settings.learning_rate)
        declared = features(settings.popularity_half_lives)
        starts = [feature.start for feature in declared]
        groups_of = [group_of(feature.name) for feature in declared]
        self._left_out = [at for at, group in enumerate(groups_of) if group in settings.features_left_out]  # columns
        self._situation = [at for at, feature in enumerate(declared) if feature.name in SITUATION]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.ranker = Ranker(starts, settings.ranker_hidden, settings.ranker_networks).to(self.device)
        # The first score does not use the Reformer's logit, which is computed for kept candidates only.
        self.first = nn.Parameter(torch.tensor(starts[:-1], device=self.device))
        self.own, self.world = RecallHeads(OWN_HEADS).to(self.device), RecallHeads(WORLD_HEADS).to(self.device)
        self.vectors = ItemTable(1024, VECTORS_WIDTH, seed=settings.seed).to(self.device)
        heads = [*self.own.parameters(), *self.world.parameters()]
        self._ranker_parameters = list(self.ranker.parameters())
        self._ranking_parameters = [*self._ranker_parameters, *heads, *self.vectors.parameters(), self.first]
        # All of them, so that the optimizer's numbers do not depend on which the settings leave out.
        of_parts = {part: _added_score(part, settings).to(self.device) for part in PARTS}
        self.added = AddedScores(
            {part: of_parts[part] for part in parts_of(settings)},
            scores=len(LEARNED),
            offsets=settings.learn_impressions,
        )
        # Workers of a group share weights of one shape, whatever the settings of each are.
        self._parts = of_parts if settings.workers == "many" else self.added.parts
        added = [parameter for score in of_parts.values() for parameter in score.parameters()]
        self._ranking_parameters += added
        self.objective = RankingObjective(settings)
        self.heads: Heads | None = None
        if settings.predicts_worth:
            self.heads = Heads(head_starts(len(starts), len(settings.weights_by_type)), seed=settings.seed).to(
                self.device
            )
            self.calibration = Calibration(len(SITUATION)).to(self.device)
            self.heads_adam = Adam(self._heads_groups())
        groups = [
            {"params": [*self._ranker_parameters, self.first], "lr": settings.ranker_learning_rate},
            {"params": heads, "lr": settings.recall_learning_rate},
            {"params": added, "lr": settings.content_learning_rate},
        ]
        self.adam = Adam(groups)
        table = {"vectors": self.vectors.vectors}
        self.adagrad = RowwiseAdagrad(table, learning_rate=settings.recall_vectors_learning_rate)
        self.levels = [GradientMonitor(settings.gradient_explosion) for _ in range(2)]  # of the network, of ranking
        self.skipped = 0  # steps not taken, because of their gradients
        self.uses_state = True  # whether the Reformer's state is read at all, where the settings allow it

    def _heads_modules(self) -> dict[str, nn.Module]:
        """What predicts more than the next item, by name; nothing where nothing is set."""
        return {} if self.heads is None else {"heads": self.heads, "calibration": self.calibration}

    def _heads_groups(self) -> list[dict[str, Any]]:
        """The heads' own groups of parameters."""
        assert self.heads is not None
        rate = self.settings.heads_learning_rate
        return [
            {"params": self.heads.parameters(), "lr": rate},
            {"params": self.calibration.parameters(), "lr": CALIBRATION_RATE * rate},
        ]

    # Rows of items

    def grow(self, rows: int) -> None:
        """Makes room for at least `rows` rows."""
        self.network.items.grow(rows)
        self.vectors.grow(rows)

    def reset_rows(self, rows: Tensor) -> None:
        """Resets rows (N,) int64, which will be given to other items, with their optimizer state."""
        self.network.items.reset(rows)
        self.optimizer.reset_rows(rows)
        self.vectors.reset(rows)
        self.adagrad.reset_rows(rows)

    def start_rows(self, starts: Starts) -> None:
        """Starts the Reformer's vectors and biases of items from those of items like them in content."""
        self.network.items.start(*(as_tensor(part, self.device) for part in starts))

    @torch.no_grad()
    def move_rows(self, before: Tensor, now: Tensor, rows: int) -> None:
        """Moves items from rows `before` (N,) int64 to rows `now` (N,), and resets all other rows.

        Args:
            before: rows of the items so far.
            now: their new rows.
            rows: least number of rows afterwards.
        """
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
        """Returns a context in which products are computed as `settings.precision` says; weights stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def states(self, latest: ClicksOldestFirst) -> Tensor:
        """Returns the state after each click, (N, L, D)."""
        with self.precision():
            states: Tensor = self.network(as_histories(latest, self.device), recompute=False)
        return states

    def score(
        self,
        gathered: Gathered,
        lifts: NDArray[np.float32],
        memory: Memory,
        states: Tensor | None,
        *,
        kept: int,
        replayed: Replayed | None = None,
    ) -> ScoredCandidates:
        """Scores candidates of N queries: all of them by the first score, and the best by the ranker.

        Args:
            gathered: the candidates with their counted features.
            lifts: log of observed by expected clicks of each candidate, (C,).
            memory: the moments with which recall compares the queries.
            states: the Reformer's, (N, D); None: not used.
            kept: K, how many candidates of each query the ranker sees.
            replayed: earlier clicks that are scored too.

        Returns:
            Scores, with gradients to weights, item vectors and states if torch records any.
        """
        N, C = len(gathered.starts) - 1, len(gathered.rows)
        gathered, lifts = self._used(gathered, lifts)
        recalled = [self._counts(heads, gathered, hits, memory, states) for heads, hits in self._recalls(gathered)]
        first = self._first_scores(gathered.features, lifts, recalled)
        if gathered.content is not None:
            first += self.added.first_scores(gathered.content)
        if gathered.worth is not None:
            first += gathered.worth[:, LOST_WITH_USER]
        places = np.empty((N, kept), np.int64)
        keep_best(gathered.starts, first, places)
        features, there, scores, each = self._blank(N, kept if not C else 0)
        scored = ScoredCandidates(
            gathered, first, places, features, there, scores, each, recalled=tuple(recalled), lifts=lifts
        )
        if not C:
            return scored
        R = 0 if replayed is None else replayed.features.shape[:2].numel()
        rows, present = self._inputs(scored, places, states, R)
        if replayed is not None:
            rows[N * kept :] = self.as_used(replayed.features).view(R, -1)
        learned, columns = self._learned(scored, memory, states)
        every = self.ranker.each(rows, learned, columns)  # in one call: its cost is mostly the number of operations
        added = self._added_columns(gathered, places, replayed)
        if added is not None:
            every = every + self.added(added)[:, None]
            if gathered.content is not None:
                scored = scored._replace(content=added[: N * kept].view(N, kept, -1))
        each = every[: N * kept].view(N, kept, -1)
        if replayed is not None:
            again = every[N * kept :].view(*replayed.features.shape[:2], -1)
            scored = scored._replace(replayed=self.added.with_offsets(again, replayed.content))
        scores = each.detach().mean(-1).masked_fill_(~present, -torch.inf)
        features = rows[: N * kept].view(N, kept, -1)
        return self._with_worth(scored._replace(features=features, present=present, scores=scores, each=each))

    def as_used(self, features: Tensor) -> Tensor:
        """Returns features (..., F) as the ranker reads them: 0 where they are left out by the settings, and the
        network's logit at its mean where the state is not used."""
        if self._left_out:
            features = features.index_fill(-1, torch.tensor(self._left_out, device=features.device), 0.0)
        if self.uses_state:
            return features
        return torch.cat([features[..., :-1], self.ranker.mean[-1].expand(*features.shape[:-1], 1)], -1)

    def _used(self, gathered: Gathered, lifts: NDArray[np.float32]) -> tuple[Gathered, NDArray[np.float32]]:
        """Returns candidates and their lifts with 0 in place of the features that are left out by the settings."""
        if not self._left_out:
            return gathered, lifts
        counted, lift = gathered.features.copy(), gathered.features.shape[1]
        counted[:, [at for at in self._left_out if at < lift]] = 0
        return gathered._replace(features=counted), np.zeros_like(lifts) if lift in self._left_out else lifts

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Moves the ranker's running means towards features (C, F); of a logit that is not used, they stay."""
        spread = self.ranker.variance[-1].clone()
        self.ranker.observe(features)
        if not self.uses_state:  # its value is the mean, all the time
            self.ranker.variance[-1] = spread

    @torch.no_grad()
    def _with_worth(self, scored: ScoredCandidates) -> ScoredCandidates:
        """Returns scored candidates with what the heads predict of them, in the order of the objective."""
        if self.heads is None or scored.gathered.worth is None:
            return scored
        columns = columns_at(scored.kept, scored.gathered.worth)  # (N, K, W)
        known = as_tensor(columns[..., : LOST.start], self.device)
        inputs = head_inputs(self.ranker, scored.features, known)
        lost = columns[..., LOST].sum(-1)
        situation = situations(self.ranker, scored.features, self._situation)
        chances = self.calibration.chances(scored.scores.detach(), situation)
        scored = scored._replace(
            head_inputs=inputs, heads=self.heads.predicted(inputs), situation=situation, chances=chances, lost=lost
        )
        return scored._replace(order=self.objective.order(scored))

    def inputs(
        self, scored: ScoredCandidates, places: NDArray[np.int64], states: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the ranker's inputs for candidates.

        Args:
            scored: the queries' candidates.
            places: (N, K) positions among all C; −1 for none.
            states: (N, D) the Reformer's; None: not used.

        Returns:
            Features (N, K, F), 0 for none, and which are present (N, K).
        """
        rows, present = self._inputs(scored, places, states, 0)
        return rows.view(*places.shape, -1), present

    def content_of(self, scored: ScoredCandidates, places: NDArray[np.int64]) -> Tensor:
        """Returns the added columns of candidates at places (N, K), positions among all C, (N, K, G); 0 for −1."""
        assert scored.gathered.content is not None
        return as_tensor(columns_at(places, scored.gathered.content), self.device)

    def _added_columns(self, gathered: Gathered, places: NDArray[np.int64], replayed: Replayed | None) -> Tensor | None:
        """Returns the added columns of candidates at places (N, K), and below those of replayed clicks, as one matrix;
        0 where nothing is known; None: nothing is."""
        again = None if replayed is None or replayed.content is None else replayed.content
        if gathered.content is None and again is None:
            return None
        known = gathered.content if again is None else again
        assert known is not None
        R = 0 if replayed is None else replayed.features.shape[:2].numel()
        matrix = np.zeros((places.size + R, known.shape[-1]), np.float32)
        if gathered.content is not None:
            put_columns(places.reshape(-1), gathered.content, matrix)
        columns = as_tensor(matrix, self.device)
        if again is not None:
            columns[places.size :] = again.view(R, -1)
        return columns

    def _inputs(
        self, scored: ScoredCandidates, places: NDArray[np.int64], states: Tensor | None, more: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the same as one matrix, (N · K + more, F), whose last rows are uninitialised."""
        N, K = places.shape
        rows = torch.empty(N * K + more, len(self.first) + 1)
        items = np.empty((N, K), np.int64)
        gathered, (own, world) = scored.gathered, scored.recalled
        put_inputs(places, gathered.rows, gathered.features, scored.lifts, own, world, items, rows.numpy())
        rows, present = rows.to(self.device), as_tensor(places >= 0, self.device)
        if states is not None:
            rows[: N * K, -1] = self._logits(as_tensor(items, self.device), states).masked_fill_(~present, 0.0).view(-1)
        elif not self.uses_state:
            rows[: N * K, -1] = self.ranker.mean[-1]
        return rows, present

    def _learned(
        self, scored: ScoredCandidates, memory: Memory, states: Tensor | None
    ) -> tuple[Tensor | None, Columns | None]:
        """Returns the soft counts of all kept candidates (M, heads), with gradients to recall, and their place among
        the ranker's inputs; None if there are no gradients."""
        if not torch.is_grad_enabled() or not self.settings.reformer:
            return None, None
        gathered, vectors, there = scored.gathered, self.vectors.vectors, np.flatnonzero(scored.kept >= 0)
        at = scored.kept.reshape(-1)[there]
        parts, start = [], gathered.features.shape[1] + 1
        for (heads, hits), counts in zip(self._recalls(gathered), scored.recalled, strict=True):
            if hits is not None:
                args = (vectors, gathered.keys, states, memory.keys, memory.states, hits, counts, at)
                parts.append(with_gradients(heads, *args))
            elif not parts:
                start += counts.shape[1]
        if not parts:
            return None, None
        all_of_them = len(there) == scored.kept.size
        rows = slice(0, len(there)) if all_of_them else as_tensor(there, self.device)
        return torch.cat(parts, 1), Columns(rows, start)

    def _first_scores(
        self, features: NDArray[np.float32], lifts: NDArray[np.float32], recalled: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Returns the linear score of every candidate, (C,).

        It uses torch, which keeps to its number of threads: numpy's BLAS takes all cores, and its threads spin.
        """
        weights = self.first.detach().cpu()
        at = features.shape[1]
        scores = torch.addmv(torch.from_numpy(lifts) * weights[at], torch.from_numpy(features), weights[:at])
        at += 1
        for counts in recalled:
            scores.addmv_(torch.from_numpy(counts), weights[at : at + counts.shape[1]])
            at += counts.shape[1]
        linear_scores: NDArray[np.float32] = scores.numpy()
        return linear_scores

    def _blank(self, N: int, K: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the tensors of no candidates: features, which are present, scores, and scores of each network."""
        zeros = torch.zeros(N, K, len(self.first) + 1, device=self.device)
        return zeros, zeros[..., 0].bool(), zeros[..., 0] - torch.inf, zeros[..., :1]

    def _recalls(self, gathered: Gathered) -> list[tuple[RecallHeads, Hits | None]]:
        """Returns each memory's heads, and the moments that it finds; None: it is not used."""
        left_out, reformer = self.settings.features_left_out, self.settings.reformer
        memories = ((OWN_MOMENTS, self.own, gathered.own), (WORLD_MOMENTS, self.world, gathered.world))
        return [(heads, hits if reformer and name not in left_out else None) for name, heads, hits in memories]

    def _counts(
        self, heads: RecallHeads, gathered: Gathered, hits: Hits | None, memory: Memory, states: Tensor | None
    ) -> NDArray[np.float32]:
        """Returns the soft counts of the candidates, (C, heads)."""
        C = len(gathered.rows)
        if hits is None:
            return np.zeros((C, len(heads.gains)), np.float32)
        return soft_counts(
            heads, self.vectors.vectors, gathered.keys, states, memory.keys, memory.states, hits, C
        )  # fmt: skip

    @torch.no_grad()
    def _logits(self, items: Tensor, states: Tensor) -> Tensor:
        """Returns the Reformer's logits (N, K) of item rows (N, K), by states (N, D)."""
        table = self.network.items
        logits = torch.baddbmm(table.bias(items)[..., None], table(items), states.detach()[..., None].to(table.vectors))
        return logits[..., 0]

    # Learning

    def train(self, batch: TrainingBatch, objectives: Sequence[Objective]) -> bool:
        """Takes one step along the gradients of the objectives' losses, and returns whether it was taken.

        If gradients are not finite or explode, the step is skipped and counted in `skipped`.
        """
        losses = [loss for loss in (objective.loss(self, batch) for objective in objectives) if loss is not None]
        if not losses:
            return False
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return self._step()

    @torch.no_grad()
    def _step(self) -> bool:
        """Steps all optimizers whose parameters have gradients. Returns whether the step was taken."""
        parameters = self._ranking_parameters
        network = any(p.grad is not None for p in self.optimizer.parameters)
        ranking = any(p.grad is not None for p in parameters)
        norms = [
            self.optimizer.gradient_norm() if network else None,
            self._ranking_norm(parameters) if ranking else None,
        ]
        taken = [level.accepts(norm) for level, norm in zip(self.levels, norms, strict=True) if norm is not None]
        self.skipped += not all(taken)
        if all(taken):
            self._step_heads()
        if network and all(taken):
            self.optimizer.step(norms[0])
        if ranking and all(taken):
            self._step_ranking()
        for parameter in parameters:
            parameter.grad = None
        return all(taken)

    def _step_heads(self) -> None:
        """Steps the heads, if they have gradients; by themselves, so that they do not count for the others' norms."""
        if self.heads is None or self.heads.linear.grad is None:
            return
        parameters = [*self.heads.parameters(), *self.calibration.parameters()]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.ranker_gradient_norm_max)
        if bool(norm.isfinite()):
            self.heads_adam.step()
        else:
            self.skipped += 1
        self.heads_adam.zero_grad()

    @property
    def linear_weights(self) -> int:
        """How many weights `step_linear` moves."""
        return len(self.ranker.linear) + len(self.first)

    def step_linear(self, gradient: Tensor, learning_rate: float) -> None:
        """Takes one step of the linear weights alone: of the ranker's, then of the first score's.

        Args:
            gradient: of both, joined: (F + F - 1,).
            learning_rate: Adam's.
        """
        gradient, size = gradient.to(self.device), len(self.ranker.linear)
        self.ranker.linear.grad, self.first.grad = gradient[:size].clone(), gradient[size:].clone()
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        self.adam.zero_grad()

    def _ranking_norm(self, parameters: list[nn.Parameter]) -> float:
        vectors = self.vectors.vectors
        vectors.grad = None if vectors.grad is None else vectors.grad.coalesce()
        gradients = [p.grad for p in parameters if p.grad is not None]
        return float(nn.utils.get_total_norm([g.values() if g.is_sparse else g for g in gradients]))

    def _step_ranking(self) -> None:
        vectors = self.vectors.vectors
        nn.utils.clip_grad_norm_(self._ranker_parameters, self.settings.ranker_gradient_norm_max)
        self.adam.step()
        if vectors.grad is not None:
            self.adagrad.step()
            rows = vectors.grad.indices()[0]
            vectors.data[rows] = F.normalize(vectors.data[rows], dim=-1)

    def scale_learning_rate(self, factor: float) -> None:
        """Sets all learning rates to `factor` times those of the settings, until the next call."""
        settings = self.settings
        self.optimizer.boost = factor
        for group, rate in zip(
            self.adam.param_groups,
            (settings.ranker_learning_rate, settings.recall_learning_rate, settings.content_learning_rate),
            strict=True,
        ):
            group["lr"] = factor * rate
        self.adagrad.learning_rate = factor * settings.recall_vectors_learning_rate
        if self.heads is not None:
            for group, base in zip(self.heads_adam.param_groups, self._heads_groups(), strict=True):
                group["lr"] = factor * base["lr"]

    # Copies and checkpoints

    def copy(self) -> "RankingModel":
        """Returns a copy that can be trained independently."""
        return copy.deepcopy(self, {id(self.settings): self.settings})

    def tensors(self) -> dict[str, Tensor]:
        """Returns every weight by name, with the running means of the ranker's features; those of items are (V, ·)."""
        modules = [("network", self.network), *self._ranking()]
        modules += self._heads_modules().items()
        named = {f"{m}.{name}": tensor for m, module in modules for name, tensor in module.state_dict().items()}
        return named | {"first": self.first.data}

    @torch.no_grad()
    def finite(self) -> bool:
        """Returns whether every weight is finite."""
        return all(math.isfinite(float(tensor.float().sum())) for tensor in self.tensors().values())

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Returns arrays by name: weights and optimizer state."""
        tensors = self.tensors()
        untrained = tuple(f"{part}." for part, score in self._parts.items() if not score.trained)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(untrained)}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}
        for number, parameter in enumerate(self._dense()):
            for name, moment in self.adam.state.get(parameter, {}).items():
                tensors[f"adam.{number}.{name}"] = moment
        if self.heads is not None:
            moments = heads_moments(self._heads_modules(), self.heads_adam)
            tensors |= {f"heads_adam.{name}": tensor for name, tensor in moments.items()}
            tensors["heads_types"] = types_as_bytes(self.settings)
        tensors["adagrad"] = self.adagrad.sums["vectors"]
        levels = [number for level in self.levels for number in (level.level, level.steps)]
        tensors["levels"] = torch.tensor([*levels, self.skipped], dtype=torch.float64)
        if not self.uses_state:
            tensors["without_state"] = torch.tensor(1)
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Loads what `to_state` returned."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        for name, module in (("network", self.network), *self._ranking()):
            saved = below(tensors, name)
            if name in PARTS and not saved:  # it was not trained by then
                saved = _added_score(name, self.settings).state_dict()
            module.load_state_dict(saved)
        self.uses_state = "without_state" not in tensors or not self.settings.tries_state
        self.first.data.copy_(tensors["first"])
        self.optimizer.load_state_tensors(below(tensors, "optimizer"))
        self.adam.state.clear()
        for number, parameter in enumerate(self._dense()):
            if moments := below(tensors, f"adam.{number}"):
                self.adam.state[parameter] = {
                    name: moment if name == "step" else moment.to(self.device) for name, moment in moments.items()
                }
        self.adagrad.sums["vectors"] = tensors["adagrad"].to(self.device)
        if self.heads is not None:
            load_heads(self._heads_modules(), self.heads_adam, tensors, self.settings)
        levels = arrays["levels"].tolist()
        for at, level in enumerate(self.levels):
            level.level, level.steps = levels[2 * at], int(levels[2 * at + 1])
        self.skipped = int(levels[-1])

    def _ranking(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the modules other than the network, by name."""
        yield from {"ranker": self.ranker, "own": self.own, "world": self.world, "vectors": self.vectors}.items()
        yield from self._parts.items()

    def _dense(self) -> list[nn.Parameter]:
        return [parameter for group in self.adam.param_groups for parameter in group["params"]]
