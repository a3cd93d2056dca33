"""Fine-tuning: a copy of the weights learns from whole histories and from replayed clicks, in slices between two polls.

What it learned is then added to the live weights, which have gone on learning.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from online.learner.history import ClicksOldestFirst
from online.learner.learner import Learner
from online.learner.next_item import Negatives
from online.learner.ranking_model import RankingModel
from online.lifecycle.tuning_steps import TuningSteps, figures_of

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


class Tuning(Protocol):
    """A fine-tuning that goes on beside the live weights, in the worker or outside it."""

    rows_changed: set[int]  # freed or handed out since it began
    failed: str | None  # why it must be thrown away

    @property
    def waits(self) -> bool:
        """Whether it goes on without the worker's time, so that the worker only has to look after it."""

    @property
    def done(self) -> bool: ...

    def run_for(self, seconds: float) -> None:
        """Goes on for so long, if it takes the worker's time."""

    def candidate(self) -> RankingModel:
        """Returns live weights + what was tuned, once it is done and has not failed."""

    def figures(self) -> dict[str, Any]:
        """Returns steps and losses, for notices."""

    def close(self) -> None:
        """Ends it, and removes what it left on the disk."""


class FineTuning(TuningSteps):
    """One fine-tuning of a copy, in the worker. The live weights go on learning; `candidate` brings the two
    together."""

    waits = False

    def __init__(self, learner: Learner, histories: ClicksOldestFirst, *, seed: int) -> None:
        """
        Args:
            learner: owns the live weights; knows more than one item.
            histories: to read, (users, L); their order is drawn from `seed`.
            seed: of all random numbers.
        """
        self.learner = learner
        weights = learner.weights.copy()
        self.start = {name: tensor.clone() for name, tensor in weights.tensors().items()}
        self.rows_changed: set[int] = set()  # freed or handed out since the copy was taken
        negatives = Negatives(learner.popularity(), learner.vocabulary.rows)
        super().__init__(weights, histories, negatives=negatives, replay=learner.replay, seed=seed)

    def candidate(self) -> RankingModel:
        """Does `carried_over`."""
        return carried_over(self.learner, self.start, self.weights.tensors(), self.rows_changed)

    def figures(self) -> dict[str, Any]:
        """Returns steps, and the mean losses in the first half of the steps and in the second, in nats."""
        return figures_of(self.losses, self.ranking_losses)

    def close(self) -> None:
        """There is nothing to end."""


@torch.no_grad()
def carried_over(
    learner: Learner, start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rows_changed: set[int]
) -> RankingModel:
    """Returns live weights + what fine-tuning changed since the copy was taken; what was learned online meanwhile
    stays, and so do the live optimizers' states.

    Rows that were freed or handed out meanwhile, and rows that are newer than the copy, keep their live values.

    Args:
        learner: owns the live weights.
        start: the copy, by name.
        tuned: the same, fine-tuned.
        rows_changed: rows that were freed or handed out meanwhile.
    """
    found = learner.weights.copy()
    reset = torch.tensor(sorted(rows_changed), dtype=torch.int64)
    live = found.tensors()
    for name, tensor in tuned.items():
        if not tensor.is_floating_point():
            continue
        change = tensor - start[name]
        if name.startswith(ROWS_OF):
            change[reset[reset < len(change)]] = 0
            moved = change.any(-1).nonzero()[:, 0]
            live[name][moved] += change[moved]
            if name == "vectors.vectors":  # of unit length, wherever they move
                live[name][moved] = F.normalize(live[name][moved], dim=-1)
        else:
            live[name] += change
    return found


def _padded(part: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    return np.pad(part, ((0, 0), (0, length - part.shape[1])))
