"""The training objectives: each is one class that turns a training batch into a loss.

Letters: `N` clicks, `K` candidates kept of each, `F` features, `D` width of states, `V` rows of items.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.content import AddedScores
from model.reformer import Reformer
from online.learner.next_item import next_item_loss


class Networks(Protocol):
    """The part of a ranking model (online/learner/ranking_model.py) that objectives use."""

    first: nn.Parameter  # weights of the linear first score, (F - 1,)
    added: AddedScores
    network: Reformer


@dataclass(frozen=True)
class TrainingBatch:
    """Clicks with all that the objectives need of them. An objective whose fields are None or empty has no loss."""

    scores: Tensor | None = None  # (N, K, networks) of the kept candidates by each network, with gradients
    present: Tensor | None = None  # (N, K) bool
    places: Tensor | None = None  # (N,) int64 of the clicked items among the K; −1: not kept, or not to be learned from
    forced: Tensor | None = None  # (N, K, F) their features, with clicked items that were not kept put in last place
    forced_content: Tensor | None = None  # (N, K, G) their added columns; None: nothing is known
    forced_present: Tensor | None = None  # (N, K) bool
    forced_places: Tensor | None = None  # (N,) int64
    replayed: tuple[Tensor, Tensor] | None = None  # scores (R, K', networks), the clicked one's first; present (R, K')
    states: Tensor | None = None  # (N, D) before each click, with gradients
    targets: Tensor | None = None  # (N,) int64 rows that were clicked
    negatives: tuple[Tensor, Tensor] | None = None  # rows (M,), and the log chance of each
    pulled: Tensor | None = None  # (N', D) states, with gradients to the Reformer
    pull: Tensor | None = None  # (N', D) gradients of ranking for these states


class Objective(Protocol):
    """One training objective."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        """Returns the mean loss in nats, with gradients; None if the batch has nothing for this objective."""


class ListwiseRanking:
    """Ranks the clicked item above its strongest rivals.

    The loss is softmax cross-entropy over the kept candidates, and over those of replayed clicks (ListNet's top-one
    loss with one relevant item: Cao et al. 2007). Each of the ranker's networks learns as if it were alone; their
    losses are summed.
    """

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:  # noqa: ARG002 - scored already
        terms = []
        if batch.scores is not None and batch.places is not None and batch.present is not None:
            terms.append(_cross_entropy(batch.scores, batch.present, batch.places))
        if batch.replayed is not None:
            terms.append(_cross_entropy(*batch.replayed, torch.zeros_like(batch.replayed[1][:, 0], dtype=torch.int64)))
        losses = [loss for loss in terms if loss is not None]
        return torch.stack(losses).sum() if losses else None


class Pruning:
    """Keeps the clicked item among the candidates: trains the linear first score by itself, also on clicks whose item
    it had left out."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        if batch.forced is None or batch.forced_places is None or batch.forced_present is None:
            return None
        scores = batch.forced @ functional.pad(model.first, (0, 1))  # (N, K), without the network's logit
        if batch.forced_content is not None:
            scores = scores + batch.forced_content @ model.added.first
        scores = model.added.with_offsets(scores[..., None], batch.forced_content)
        return _cross_entropy(scores, batch.forced_present, batch.forced_places)


class NextItem:
    """Trains the Reformer to predict the next item against a sample of the others, and passes the gradients of ranking
    for its states on to its weights."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        losses = []
        if batch.states is not None and batch.targets is not None and batch.negatives is not None and len(batch.states):
            losses.append(next_item_loss(model.network, batch.states, batch.targets, batch.negatives).mean())
        if batch.pulled is not None and batch.pull is not None:
            losses.append((batch.pulled * batch.pull).sum())  # its gradient is `pull`; its value has no meaning
        return torch.stack(losses).sum() if losses else None


def _cross_entropy(scores: Tensor, present: Tensor, places: Tensor) -> Tensor | None:
    """Returns the mean cross-entropy of the clicks with a place, summed over networks; None if there are none.

    Args:
        scores: (N, K, networks).
        present: (N, K) which candidates there are.
        places: (N,) of the clicked items; −1 for clicks that are left out.
    """
    hit = places >= 0
    count = int(hit.sum())
    if not count:
        return None
    # All clicks are computed, those that are left out with weight 0: selecting rows would cost more.
    scores = scores.masked_fill((~present & hit[:, None])[..., None], -torch.inf)
    clicked = scores.gather(1, places.clamp(min=0)[:, None, None].expand(-1, 1, scores.shape[2]))[:, 0]  # (N, networks)
    losses = (scores.logsumexp(1) - clicked).sum(1)  # (N,)
    return torch.where(hit, losses, 0.0).sum() / count
