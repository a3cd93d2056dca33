"""What is learned towards: each objective is one class that turns a training batch into a loss.

Letters: `N` clicks, `K` candidates kept of each, `F` features, `D` width of states, `V` rows of items.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from online.ranking.next_item import next_item_loss

if TYPE_CHECKING:
    from online.ranking.model import RankingModel


@dataclass(frozen=True)
class TrainingBatch:
    """Some clicks, and all that objectives may want to know of them. What is None or empty teaches nothing."""

    features: Tensor | None = None  # (N, K, F) of the kept candidates, with gradients
    present: Tensor | None = None  # (N, K) bool
    places: Tensor | None = None  # (N,) int64 of the clicked items among the K; −1: not kept, or not to be learned from
    forced: Tensor | None = None  # (N, K, F) the same features, with clicked items that were not kept put in last place
    forced_present: Tensor | None = None  # (N, K) bool
    forced_places: Tensor | None = None  # (N,) int64
    replayed: tuple[Tensor, Tensor] | None = None  # features (R, K', F), the clicked one's first; present (R, K')
    states: Tensor | None = None  # (N, D) before each click, with gradients
    targets: Tensor | None = None  # (N,) int64 rows that were clicked
    negatives: tuple[Tensor, Tensor] | None = None  # rows (M,), and the log chance of each
    pulled: Tensor | None = None  # (N', D) states with gradients, and what ranking wants of them
    pull: Tensor | None = None  # (N', D)


class Objective(Protocol):
    """One thing that is learned towards."""

    def loss(self, model: "RankingModel", batch: TrainingBatch) -> Tensor | None:
        """The mean loss in nats, with gradients; None where the batch has nothing to learn from."""


class ListwiseRanking:
    """The clicked item ahead of its strongest rivals: softmax cross-entropy over the kept candidates, and over those of
    replayed clicks (ListNet's top-one loss with one relevant item: Cao et al. 2007). Each of the ranker's networks
    learns as if it were alone; their losses are summed."""

    def loss(self, model: "RankingModel", batch: TrainingBatch) -> Tensor | None:
        found = []
        if batch.features is not None and batch.places is not None and batch.present is not None:
            hit = (batch.places >= 0).nonzero()[:, 0]
            if len(hit):
                scores = model.ranker.each(batch.features[hit])  # (n, K, networks)
                found.append(_cross_entropy(scores, batch.present[hit], batch.places[hit]))
        if (found and batch.replayed is not None) or (batch.features is None and batch.replayed is not None):
            features, present = batch.replayed
            first = torch.zeros(len(features), dtype=torch.int64, device=features.device)
            found.append(_cross_entropy(model.ranker.each(features), present, first))
        return torch.stack(found).sum() if found else None


class Pruning:
    """The clicked item among those that are kept at all: the linear first score is learned by itself, and also from
    clicks whose item it had left out."""

    def loss(self, model: "RankingModel", batch: TrainingBatch) -> Tensor | None:
        if batch.forced is None or batch.forced_places is None or batch.forced_present is None:
            return None
        hit = (batch.forced_places >= 0).nonzero()[:, 0]
        if not len(hit):
            return None
        scores = batch.forced[hit].detach()[..., :-1] @ model.first  # (n, K)
        return _cross_entropy(scores[..., None], batch.forced_present[hit], batch.forced_places[hit])


class NextItem:
    """The Reformer guesses the next item, against a sample of the others; and its states move to where recall can use
    them better."""

    def loss(self, model: "RankingModel", batch: TrainingBatch) -> Tensor | None:
        found = []
        if batch.states is not None and batch.targets is not None and batch.negatives is not None and len(batch.states):
            found.append(next_item_loss(model.network, batch.states, batch.targets, batch.negatives).mean())
        if batch.pulled is not None and batch.pull is not None:
            found.append((batch.pulled * batch.pull).sum())  # its gradient is `pull`, its value says nothing
        return torch.stack(found).sum() if found else None


def _cross_entropy(scores: Tensor, present: Tensor, places: Tensor) -> Tensor:
    """scores (N, K, networks), present (N, K), places (N,) of the clicked ones -> mean loss, summed over networks."""
    scores = scores.masked_fill(~present[..., None], -torch.inf)
    clicked = scores.gather(1, places[:, None, None].expand(-1, 1, scores.shape[2]))[:, 0]  # (N, networks)
    return (scores.logsumexp(1) - clicked).mean(0).sum()
