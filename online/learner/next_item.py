"""Guessing the next item, by which the Reformer learns: negatives, and the loss against them.

Letters: `N` guesses, `D` width, `V` rows, `K` negatives.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.loss import sampled_softmax_loss
from model.reformer import Histories, Reformer
from online.learner.history import ClicksOldestFirst

UNIFORM_SHARE = 0.5  # of the negatives; the rest follow recent popularity


class Negatives:
    """Items that a guess is measured against: half of them uniform, half by recent popularity, with replacement."""

    def __init__(self, popularity: NDArray[np.float64], rows: int) -> None:
        """`popularity` (V,) of every row; only the first `rows` rows are in use, and row 0 never is."""
        share = np.array(popularity[:rows], np.float64)
        share[0] = 0.0
        total = share.sum()
        uniform = np.full(rows, 1.0 / (rows - 1))
        uniform[0] = 0.0
        self._q = uniform if total <= 0 else UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * share / total
        self._steps = np.cumsum(self._q)

    def draw(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Rows (count,) int64 and the log of the probability of each, (count,) float32."""
        rows = np.searchsorted(self._steps, random.random(count) * self._steps[-1], side="right")
        rows = np.minimum(rows, len(self._q) - 1)
        return torch.from_numpy(rows), torch.from_numpy(np.log(self._q[rows])).float()


def next_item_loss(network: Reformer, states: Tensor, targets: Tensor, negatives: tuple[Tensor, Tensor]) -> Tensor:
    """States (N, D) guess targets (N,) against sampled negatives (K,) -> losses (N,) in nats."""
    rows, log_q = (part.to(states.device) for part in negatives)
    target_logits = network.scores(states, targets[:, None])[:, 0]  # (N,)
    negative_logits = network.scores(states, rows)  # (N, K)
    return sampled_softmax_loss(target_logits, negative_logits, targets, rows, log_q)


def as_histories(latest: ClicksOldestFirst, device: torch.device) -> Histories:
    return Histories(*(torch.from_numpy(part).to(device) for part in latest))
