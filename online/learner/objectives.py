"""The training objectives: each is one class that turns a training batch into a loss.

Letters: `N` clicks, `K` candidates kept of each, `F` features, `D` width of states, `V` rows of items.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.content import AddedScores
from model.heads import LOG_VALUE_MAX, Calibration, Heads
from model.reformer import Reformer
from online.learner.next_item import next_item_loss


class Networks(Protocol):
    """The part of a ranking model (online/learner/ranking_model.py) that objectives use."""

    first: nn.Parameter  # weights of the linear first score, (F - 1,)
    added: AddedScores
    network: Reformer
    heads: Heads | None
    calibration: Calibration


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
    weights: Tensor | None = None  # (N,) by which each click counts; None: all by 1
    replayed_weights: Tensor | None = None  # (R,) likewise
    worth: "WorthTargets | None" = None
    states: Tensor | None = None  # (N, D) before each click, with gradients
    targets: Tensor | None = None  # (N,) int64 rows that were clicked
    negatives: tuple[Tensor, Tensor] | None = None  # rows (M,), and the log chance of each
    pulled: Tensor | None = None  # (N', D) states, with gradients to the Reformer
    pull: Tensor | None = None  # (N', D) gradients of ranking for these states


@dataclass(frozen=True)
class WorthTargets:
    """N clicks as they were scored, and the n clicked candidates among them with what the clicks were."""

    scores: Tensor  # (N, K) of all clicks' kept candidates, without gradients; −inf where there are no more
    situation: Tensor  # (N, S)
    places: Tensor  # (N,) of the clicked items among the K; −1: not kept
    counted: Tensor  # (N,) bool: trained towards
    inputs: Tensor  # (n, D) of the heads
    labels: Tensor  # (n, T) which of the named event types each is
    values: Tensor  # (n,) NaN: it has none
    mean_value: float


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
            terms.append(_cross_entropy(batch.scores, batch.present, batch.places, batch.weights))
        if batch.replayed is not None:
            first = torch.zeros_like(batch.replayed[1][:, 0], dtype=torch.int64)
            terms.append(_cross_entropy(*batch.replayed, first, batch.replayed_weights))
        losses = [loss for loss in terms if loss is not None]
        return torch.stack(losses).sum() if losses else None


class Pruning:
    """Keeps the clicked item among the candidates: trains the linear first score by itself, also on clicks whose item
    it had left out."""

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        scores = pruning_scores(model, batch)
        if scores is None or batch.forced_places is None or batch.forced_present is None:
            return None
        return _cross_entropy(scores, batch.forced_present, batch.forced_places, batch.weights)


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


class Worth:
    """Trains the calibration of shares, and the heads: the chance of each event type of the click that came (logistic
    loss), and its value (Poisson deviance, so that it is the mean that is predicted; in units of the mean value).

    What the heads read is given, so that no gradient reaches the ranker.
    """

    def loss(self, model: Networks, batch: TrainingBatch) -> Tensor | None:
        targets = batch.worth
        if targets is None or model.heads is None or not len(targets.inputs):
            return None
        return self._of_heads(model.heads, targets) + self._of_chances(model.calibration, targets)

    @staticmethod
    def _of_chances(calibration: Calibration, targets: WorthTargets) -> Tensor:
        """Returns how badly the calibrated shares foresaw which item is next, and whether it is a candidate."""
        scores, odds = calibration(targets.scores, targets.situation)
        kept = targets.places >= 0
        whether = functional.binary_cross_entropy_with_logits(odds, kept.float(), reduction="none")
        clicked = scores.gather(1, targets.places.clamp(min=0)[:, None])[:, 0]
        which = torch.where(kept, scores.logsumexp(1) - clicked, 0.0)
        return torch.where(targets.counted, whether + which, 0.0).sum() / max(1, len(odds))

    @staticmethod
    def _of_heads(heads: Heads, targets: WorthTargets) -> Tensor:
        found = heads(targets.inputs)  # (n, T + 1)
        by_type = functional.binary_cross_entropy_with_logits(found[:, :-1], targets.labels, reduction="none")
        loss = by_type.sum(1).mean()
        valued = targets.values.isfinite()
        log_value = found[:, -1].clamp(max=LOG_VALUE_MAX)
        value, mean = targets.values.nan_to_num(0.0), targets.mean_value
        by_value = (log_value.exp() - value * log_value) / mean
        return loss + torch.where(valued, by_value, 0.0).sum() / len(targets.inputs)


def pruning_scores(model: Networks, batch: TrainingBatch) -> Tensor | None:
    """Returns the first scores of the kept candidates, (N, K, 1); None if the batch has nothing for `Pruning`."""
    if batch.forced is None:
        return None
    scores = batch.forced @ functional.pad(model.first, (0, 1))  # (N, K), without the network's logit
    if batch.forced_content is not None:
        scores = scores + batch.forced_content @ model.added.first
    return model.added.with_offsets(scores[..., None], batch.forced_content)


def _cross_entropy(scores: Tensor, present: Tensor, places: Tensor, weights: Tensor | None = None) -> Tensor | None:
    """Returns the mean cross-entropy of the clicks with a place, summed over networks; None if there are none.

    Args:
        scores: (N, K, networks).
        present: (N, K) which candidates there are.
        places: (N,) of the clicked items; −1 for clicks that are left out.
        weights: (N,) of the clicks; None: each weighs 1. They do not change what is divided by.
    """
    hit = places >= 0
    count = int(hit.sum())
    if not count:
        return None
    # All clicks are computed, those that are left out with weight 0: selecting rows would cost more.
    scores = scores.masked_fill((~present & hit[:, None])[..., None], -torch.inf)
    clicked = scores.gather(1, places.clamp(min=0)[:, None, None].expand(-1, 1, scores.shape[2]))[:, 0]  # (N, networks)
    losses = (scores.logsumexp(1) - clicked).sum(1)  # (N,)
    losses = losses if weights is None else losses * weights
    return torch.where(hit, losses, 0.0).sum() / count
