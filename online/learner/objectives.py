"""What is learned towards: each objective is one class that turns a training batch into a loss.

Letters: `N` clicks, `K` candidates kept of each, `F` features, `D` width of states, `V` rows of items.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.reformer import Reformer
from online.learner.next_item import next_item_loss


class Networks(Protocol):
    """What objectives know of a ranking model (online/learner/ranking_model.py)."""

    first: nn.Parameter  # weights of the linear first score, (F - 1,)
    network: Reformer


@dataclass(frozen=True)
class TrainingBatch:
    """Some clicks, and all that objectives may want to know of them. What is None or empty teaches nothing."""

    scores: Tensor | None = None  # (N, K, networks) of the kept candidates by each network, with gradients
    present: Tensor | None = None  # (N, K) bool
    places: Tensor | None = None  # (N,) int64 of the clicked items among the K; −1: not kept, or not to be learned from
    forced: Tensor | None = None  # (N, K, F) their features, with clicked items that were not kept put in last place
    forced_present: Tensor | None = None  # (N, K) bool
    forced_places: Tensor | None = None  # (N,) int64
    replayed: tuple[Tensor, Tensor] | None = None  # scores (R, K', networks), the clicked one's first; present (R, K')
    states: Tensor | None = None  # (N, D) before each click, with gradients
    targets: Tensor | None = None  # (N,) int64 rows that were clicked
    negatives: tuple[Tensor, Tensor] | None = None  # rows (M,), and the log chance of each
    pulled: Tensor | None = None  # (N', D) states with gradients, and what ranking wants of them
    pull: Tensor | None = None  # (N', D)


class Objective(Protocol):
    """One thing that is learned towards."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        """The mean loss in nats, with gradients; None where the batch has nothing to learn from."""


class ListwiseRanking:
    """The clicked item ahead of its strongest rivals: softmax cross-entropy over the kept candidates, and over those of
    replayed clicks (ListNet's top-one loss with one relevant item: Cao et al. 2007). Each of the ranker's networks
    learns as if it were alone; their losses are summed."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:  # noqa: ARG002 - scored already
        found = []
        if batch.scores is not None and batch.places is not None and batch.present is not None:
            found.append(_cross_entropy(batch.scores, batch.present, batch.places))
        if batch.replayed is not None:
            found.append(_cross_entropy(*batch.replayed, torch.zeros_like(batch.replayed[1][:, 0], dtype=torch.int64)))
        losses = [loss for loss in found if loss is not None]
        return torch.stack(losses).sum() if losses else None


class Pruning:
    """The clicked item among those that are kept at all: the linear first score is learned by itself, and also from
    clicks whose item it had left out."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        if batch.forced is None or batch.forced_places is None or batch.forced_present is None:
            return None
        scores = batch.forced @ functional.pad(model.first, (0, 1))  # (N, K); it knows no logit of the network
        return _cross_entropy(scores[..., None], batch.forced_present, batch.forced_places)


class NextItem:
    """The Reformer guesses the next item, against a sample of the others; and its states move to where recall can use
    them better."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        found = []
        if batch.states is not None and batch.targets is not None and batch.negatives is not None and len(batch.states):
            found.append(next_item_loss(model.network, batch.states, batch.targets, batch.negatives).mean())
        if batch.pulled is not None and batch.pull is not None:
            found.append((batch.pulled * batch.pull).sum())  # its gradient is `pull`, its value says nothing
        return torch.stack(found).sum() if found else None


def _cross_entropy(scores: Tensor, present: Tensor, places: Tensor) -> Tensor | None:
    """scores (N, K, networks), present (N, K), places (N,) of the clicked ones, −1 for clicks that teach nothing ->
    mean loss of those that do, summed over networks; None where none does."""
    hit = places >= 0
    count = int(hit.sum())
    if not count:
        return None
    # All are gone through, with a weight of 0 where there is nothing to learn: picking some costs more than that.
    scores = scores.masked_fill((~present & hit[:, None])[..., None], -torch.inf)
    clicked = scores.gather(1, places.clamp(min=0)[:, None, None].expand(-1, 1, scores.shape[2]))[:, 0]  # (N, networks)
    losses = (scores.logsumexp(1) - clicked).sum(1)  # (N,)
    return torch.where(hit, losses, 0.0).sum() / count
