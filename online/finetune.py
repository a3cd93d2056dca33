"""Fine-tuning: whole recent histories through the reversible stack, on a copy, in slices between two polls.

Letters: `B` histories of a step, `L` clicks of each, `D` width, `V` item rows.
"""

import copy
import time

import numpy as np
import torch

from online.history import Latest
from online.learner import Learner
from online.next_item import Negatives, as_histories, next_item_loss
from online.settings import Settings
from online.weights import build_optimizer


class FineTuning:
    """One fine-tuning of a copy of the network. The live one goes on learning; `publish` brings the two together."""

    def __init__(self, learner: Learner, recent: Latest, *, seed: int) -> None:
        """
        Args:
            learner: owns the live weights; knows more than one item.
            recent: the histories to read, (users, L); the order in which they are read is drawn from `seed`.
        """
        self.settings: Settings = learner.settings
        self.learner = learner
        self.network = copy.deepcopy(learner.weights.network).train()
        self.optimizer = build_optimizer(self.network, self.settings, self.settings.finetune_learning_rate)
        self.start = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        self.random = np.random.default_rng(seed)
        self.negatives = Negatives(learner.popularity(), learner.vocabulary.rows)
        self.losses: list[float] = []
        order = self.random.permutation(len(recent.lengths))
        size = self.settings.finetune_batch
        self._steps = [recent.of(order[at : at + size]) for at in range(0, len(order), size)]
        torch.manual_seed(seed)  # dropout's
        learner.rows_changed.clear()

    @property
    def done(self) -> bool:
        return not self._steps

    def run_for(self, seconds: float) -> None:
        """Steps until the time is over or nothing is left; at least one."""
        until = time.monotonic() + seconds
        while self._steps:
            self._step(self._steps.pop())
            if time.monotonic() >= until:
                break

    def _step(self, batch: Latest) -> None:
        with self.learner.weights.precision():
            states = self.network(as_histories(batch, self.learner.device))[:, :-1]  # (B, L - 1, D)
        targets = torch.from_numpy(batch.rows[:, 1:]).to(self.learner.device)  # (B, L - 1)
        guessed = targets != 0
        if not guessed.any():
            return
        negatives = self.negatives.draw(self.settings.negatives, self.random)
        loss = next_item_loss(self.network, states[guessed], targets[guessed], negatives).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses.append(float(loss.detach()))

    @torch.no_grad()
    def publish(self) -> None:
        """Live weights += what fine-tuning changed since the copy was taken; what was learned online meanwhile stays.

        Rows that were freed or handed out meanwhile, and rows that are newer than the copy, keep their live values.
        """
        reset = torch.tensor(sorted(self.learner.rows_changed), dtype=torch.int64)
        live = dict(self.learner.weights.network.named_parameters())
        for name, tuned in self.network.named_parameters():
            change = tuned - self.start[name]
            if name.startswith("items."):
                change[reset[reset < len(change)]] = 0
            live[name][: len(change)].add_(change)
