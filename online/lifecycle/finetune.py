"""Fine-tuning: a copy of the weights learns from whole histories and from replayed clicks, in slices between two polls.

Letters: `B` histories of a step, `L` clicks of each, `D` width, `V` item rows, `K` candidates kept of a click.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from model.adam import Adam
from online.config.settings import Settings
from online.learner.history import ClicksOldestFirst
from online.learner.learner import Learner
from online.learner.next_item import Negatives, as_histories
from online.learner.objectives import ListwiseRanking, NextItem, TrainingBatch
from online.learner.ranking_model import GradientMonitor, RankingModel, build_optimizer

ROWS_OF = ("network.items.", "vectors.")  # weights with a row for each item


def examples(learner: Learner, recent_share: float, random: np.random.Generator) -> ClicksOldestFirst | None:
    """Histories to learn from, at most `finetune_histories`: those of the users seen last, and a uniform sample of all
    clicks so far with what led to them (online/learner/reservoir.py). None: no user has two clicks on known items yet.

    Whose clicks are mostly flagged is in neither.

    `recent_share`: how many of them are recent; where there are too few of one kind, there are more of the other.
    """
    count = learner.settings.finetune_histories
    slots = learner.histories.recently_seen(2 * count)
    slots = slots[~learner.mostly_flagged(slots)][:count]
    if not len(slots) or learner.vocabulary.rows <= 2:
        return None
    recent = round(recent_share * count)
    excerpts = learner.reservoir.sample(max(count - recent, count - len(slots)), random)
    latest = learner.histories.oldest_first(slots[: count - len(excerpts.lengths)], learner.settings.history_max)
    L = max(latest.rows.shape[1], excerpts.rows.shape[1])
    rows, types, times = (
        np.concatenate([_padded(one, L), _padded(other, L)])
        for one, other in zip(latest[:3], excerpts[:3], strict=True)
    )
    return ClicksOldestFirst(rows, types, times, np.concatenate([latest.lengths, excerpts.lengths]))


class FineTuning:
    """One fine-tuning of a copy. The live weights go on learning; `candidate` brings the two together.

    What is trained, and for how long, is said by `_plan` alone.
    """

    def __init__(self, learner: Learner, histories: ClicksOldestFirst, *, seed: int) -> None:
        """
        Args:
            learner: owns the live weights; knows more than one item.
            histories: to read, (users, L); their order is drawn from `seed`.
        """
        self.settings: Settings = learner.settings
        self.learner = learner
        self.weights = learner.weights.copy()
        self.start = {name: tensor.clone() for name, tensor in self.weights.tensors().items()}
        self.rows_changed: set[int] = set()  # freed or handed out since the copy was taken
        self.random = np.random.default_rng(seed)
        self.losses: list[float] = []  # of guessing the next item, step by step
        self.ranking_losses: list[float] = []
        self.failed: str | None = None  # why it must be thrown away
        self._negatives = Negatives(learner.popularity(), learner.vocabulary.rows)
        network, ranker = self.weights.network.train(), self.weights.ranker
        self._optimizer = build_optimizer(network, self.settings, self.settings.finetune_learning_rate)
        self._adam = Adam([{"params": ranker.parameters()}], learning_rate=self.settings.finetune_ranker_learning_rate)
        self._levels = [GradientMonitor(self.settings.gradient_explosion) for _ in range(2)]
        self._steps = deque(self._plan(histories))
        torch.manual_seed(seed)  # dropout's

    @property
    def done(self) -> bool:
        return not self._steps

    def run_for(self, seconds: float) -> None:
        """Steps until the time is over or nothing is left; at least one."""
        until = time.monotonic() + seconds
        while self._steps:
            self._steps.popleft()()
            if self.failed is not None:
                self._steps.clear()
            if time.monotonic() >= until:
                break

    def _plan(self, histories: ClicksOldestFirst) -> Iterator[Callable[[], None]]:
        """The steps, in order."""
        order = self.random.permutation(len(histories.lengths))
        size = self.settings.finetune_batch
        for at in range(0, len(order), size):
            yield partial(self._guess, histories, order[at : at + size])
            yield from [self._rank] * self.settings.finetune_replays

    def _guess(self, histories: ClicksOldestFirst, some: NDArray[np.int64]) -> None:
        """A step of the Reformer: every next item of some of the histories."""
        some_histories = histories.of(some).trimmed()
        with self.weights.precision():
            states = self.weights.network(as_histories(some_histories, self.weights.device))[:, :-1]  # (B, L - 1, D)
        targets = torch.from_numpy(some_histories.rows[:, 1:]).to(self.weights.device)  # (B, L - 1)
        guessed = targets != 0
        if not guessed.any():
            return
        negatives = self._negatives.draw(self.settings.negatives, self.random)
        batch = TrainingBatch(states=states[guessed], targets=targets[guessed], negatives=negatives)
        loss = NextItem().loss(self.weights, batch)
        assert loss is not None
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._take(self._levels[0], norm := self._optimizer.gradient_norm(), float(loss.detach()), self.losses)
        self._optimizer.step(norm)

    def _rank(self) -> None:
        """A step of the ranker, on replayed clicks."""
        found = self.learner.replay.sample(self.settings.replay_batch, self.random)
        if found is None:
            return
        loss = ListwiseRanking().loss(
            self.weights, TrainingBatch(replayed=(self.weights.ranker.each(found[0]), found[1]))
        )
        assert loss is not None
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parameters, most = self.weights.ranker.parameters(), self.settings.ranker_gradient_norm_max
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, most))
        self._take(self._levels[1], norm, float(loss.detach()), self.ranking_losses)
        self._adam.step()

    def _take(self, level: GradientMonitor, norm: float, loss: float, losses: list[float]) -> None:
        losses.append(loss)
        if not level.accepts(norm) or not math.isfinite(loss):
            self.failed = f"the loss is {loss:.4g} and the gradients' norm {norm:.4g}, {level.level:.4g} before"

    @torch.no_grad()
    def candidate(self) -> RankingModel:
        """Live weights + what fine-tuning changed since the copy was taken; what was learned online meanwhile stays,
        and so do the live optimizers' states.

        Rows that were freed or handed out meanwhile, and rows that are newer than the copy, keep their live values.
        """
        found = self.learner.weights.copy()
        reset = torch.tensor(sorted(self.rows_changed), dtype=torch.int64)
        live = found.tensors()
        for name, tuned in self.weights.tensors().items():
            if not tuned.is_floating_point():
                continue
            change = tuned - self.start[name]
            if name.startswith(ROWS_OF):
                change[reset[reset < len(change)]] = 0
                moved = change.any(-1).nonzero()[:, 0]
                live[name][moved] += change[moved]
                if name == "vectors.vectors":  # of unit length, wherever they move
                    live[name][moved] = F.normalize(live[name][moved], dim=-1)
            else:
                live[name] += change
        return found

    def figures(self) -> dict[str, Any]:
        """Steps, and the mean losses in the first and in the second half of them, in nats."""
        return {"steps": len(self.losses), "guessing": _halves(self.losses), "ranking": _halves(self.ranking_losses)}


def _halves(losses: list[float]) -> list[float] | None:
    half = len(losses) // 2
    return [round(float(np.mean(part)), 4) for part in (losses[:half], losses[half:])] if half else None


def _padded(part: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    return np.pad(part, ((0, 0), (0, length - part.shape[1])))
