"""The training steps of a fine-tuning: the same in the worker, in slices, and outside it, in one or more processes.

Letters: `B` histories of a step, `L` clicks of each, `D` width, `V` item rows, `K` candidates kept of a click.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from model.adam import Adam
from online.learner.history import ClicksOldestFirst
from online.learner.next_item import Negatives, as_histories
from online.learner.objectives import ListwiseRanking, NextItem, TrainingBatch
from online.learner.ranking_model import GradientMonitor, RankingModel, build_optimizer
from online.learner.replay_buffer import Replayed
from online.lifecycle.shares import Alone, Shares, idle_row


class Replay(Protocol):
    """Kept clicks, as a `ReplayBuffer` (online/learner/replay_buffer.py) has them."""

    def sample(self, count: int, random: np.random.Generator | None = None) -> Replayed | None: ...


class TuningSteps:
    """Trains weights on whole histories and on kept clicks. What is trained, and for how long, is said by `_plan`
    alone."""

    def __init__(
        self,
        weights: RankingModel,
        histories: ClicksOldestFirst,
        *,
        negatives: Negatives,
        replay: Replay,
        seed: int,
        shares: Shares | None = None,
    ) -> None:
        """
        Args:
            weights: trained in place.
            histories: to read, (users, L); their order is drawn from `seed`.
            negatives: items that guesses are measured against.
            replay: kept clicks, for the ranker.
            seed: of all random numbers.
            shares: how the steps are shared with other processes; None: there are none.
        """
        self.settings, self.weights = weights.settings, weights
        self.random = np.random.default_rng(seed)
        self.losses: list[float] = []  # of guessing the next item, step by step
        self.ranking_losses: list[float] = []
        self.failed: str | None = None  # why it must be thrown away
        self._negatives, self._replay, self._shares = negatives, replay, shares or Alone()
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
        whole = histories.of(some).trimmed()  # (B, L): as wide for every process
        mine = self._shares.take(len(some))
        read = whole.of(np.arange(len(some))[idle_row(mine)])
        with self.weights.precision():
            states = self.weights.network(as_histories(read, self.weights.device))[:, :-1]  # (B, L - 1, D)
        targets = torch.from_numpy(read.rows[:, 1:]).to(self.weights.device)  # (B, L - 1)
        guessed = (targets != 0) & (mine.stop > mine.start)
        count = int((whole.rows[:, 1:] != 0).sum())
        if not count:
            return
        negatives = self._negatives.draw(self.settings.negatives, self.random)
        batch = TrainingBatch(states=states[guessed], targets=targets[guessed], negatives=negatives)
        self._optimizer.zero_grad()
        part, loss = NextItem().loss(self.weights, batch), 0.0
        if part is not None:
            part = self._shares.part(part, int(guessed.sum()), count)
            part.backward()  # type: ignore[no-untyped-call]
            loss = float(part.detach())
        dense, tables = self._optimizer.dense.values(), self._optimizer.rows.tables.values()
        loss = self._shares.gather(loss, list(dense), list(tables), [whole.rows, negatives[0].numpy()])
        self._take(self._levels[0], norm := self._optimizer.gradient_norm(), loss, self.losses)
        self._optimizer.step(norm)

    def _rank(self) -> None:
        """A step of the ranker, on replayed clicks.

        Each process computes all of it, and their gradients are averaged: it is small. And shared out, it would not be
        what one process does: where a gradient is zero but for rounding (a shift of all scores), Adam would make a
        step of the rounding.
        """
        found = self._replay.sample(self.settings.replay_batch, self.random)
        if found is None:
            return
        each = self.weights.ranker.each(self.weights.as_used(found.features))
        if found.content is not None:
            added = self.weights.added
            each = added.with_offsets(each + added(found.content).detach()[..., None], found.content)  # learned online
        batch = TrainingBatch(replayed=(each, found.present), replayed_weights=found.weights)
        self._adam.zero_grad()
        ranked = ListwiseRanking().loss(self.weights, batch)
        assert ranked is not None
        ranked.backward()  # type: ignore[no-untyped-call]
        parameters, most = list(self.weights.ranker.parameters()), self.settings.ranker_gradient_norm_max
        loss = self._shares.agree(float(ranked.detach()), parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, most))
        self._take(self._levels[1], norm, loss, self.ranking_losses)
        self._adam.step()

    def _take(self, level: GradientMonitor, norm: float, loss: float, losses: list[float]) -> None:
        losses.append(loss)
        if not level.accepts(norm) or not math.isfinite(loss):
            self.failed = f"the loss is {loss:.4g} and the gradients' norm {norm:.4g}, {level.level:.4g} before"


def figures_of(losses: list[float], ranking_losses: list[float]) -> dict[str, Any]:
    """Returns the number of steps, and the mean losses in the first half of the steps and in the second, in nats."""
    return {"steps": len(losses), "guessing": _halves(losses), "ranking": _halves(ranking_losses)}


def _halves(losses: list[float]) -> list[float] | None:
    half = len(losses) // 2
    return [round(float(np.mean(part)), 4) for part in (losses[:half], losses[half:])] if half else None
