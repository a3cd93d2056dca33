"""Builds training batches from clicks that the weights have just scored.

Letters: `N` clicks, `K` candidates kept of each, `D` width of states.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.learner.arrays import as_tensor
from online.learner.batches import StepWorth, TrainedNetwork
from online.learner.content.kernels import softmax_gradients
from online.learner.objectives import ListwiseRanking, NextItem, Pruning, TrainingBatch, Worth, WorthTargets
from online.learner.preparing import PreparedBatch
from online.learner.ranking_model import MISS_LOSS, RankingModel
from online.learner.replay_buffer import Replayed
from online.learner.scoring import ScoredCandidates
from online.learner.state import LearnerState

RANKING, GUESSING = (ListwiseRanking(), Pruning(), Worth()), (NextItem(),)


@dataclass(frozen=True)
class ReformerStates:
    """The Reformer's states around a micro-batch, before it learns from it; all None if it is not used."""

    network: TrainedNetwork | None = None
    before: Tensor | None = None  # (N, D) before each click, with the gradients of the network
    leaf: Tensor | None = None  # (N, D) the same as a leaf; it collects the gradients of ranking for these states
    after: Tensor | None = None  # (U, D) after each user's last click


def read_states(state: LearnerState, prepared: PreparedBatch, *, train: bool) -> ReformerStates:
    """Returns the states before and after these clicks, and stores them as the states of the clicks' moments."""
    network, batch = prepared.network, prepared.batch
    if network is None or not state.deep_state:
        if state.may_use_state:  # their places may hold the states of older moments
            state.store.note_states(batch.numbers, np.zeros((len(batch.numbers), state.settings.width), np.float16))
        return ReformerStates()
    with torch.set_grad_enabled(train):
        before, had, after = state.states.read(prepared.users, network.slots, network.clicks, network.histories)
        before = before[state.tensor(network.order)]
    network = network.narrowed(had & train)
    leaf = before.detach().requires_grad_(train)
    unit = torch.nn.functional.normalize(leaf.detach(), dim=-1)
    state.store.note_states(batch.numbers, unit.half().cpu().numpy())
    return ReformerStates(network, before, leaf, after)


def click_losses(shares: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the loss of each click (N,), in nats, at most MISS_LOSS.

    Args:
        shares: (N, K) probabilities of the kept candidates.
        places: (N,) of the clicked item among them; −1 for none.
    """
    losses = np.full(len(places), MISS_LOSS)
    kept = np.flatnonzero(places >= 0)
    losses[kept] = np.minimum(-np.log(np.maximum(shares[kept, places[kept]], 1e-30)), MISS_LOSS)
    return losses


def score_gradients(
    scored: ScoredCandidates, positions: NDArray[np.int64], weights: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Returns the gradients of clicks' losses (the softmax's cross-entropy) by their kept candidates' scores, (N, K).

    Args:
        scored: the candidates.
        positions: (N,) of the clicked items among all candidates; −1: none, or not to be learned from.
        weights: (N,) by which each click counts; None: all by 1.
    """
    scores = scored.scores.float().cpu().numpy()
    gradients, weights = np.empty_like(scores), np.ones(len(scores), np.float32) if weights is None else weights
    softmax_gradients(scores, scored.places(positions), weights, gradients)
    return gradients


def training_batch(  # noqa: PLR0917 - each is of one click
    model: RankingModel,
    scored: ScoredCandidates,
    positions: NDArray[np.int64],
    states: Tensor | None,
    replayed: Replayed | None,
    weights: NDArray[np.float32] | None = None,
    worth: StepWorth | None = None,
) -> TrainingBatch:
    """Builds the batch for the ranker from clicks whose candidates the model has just scored.

    Args:
        model: the model that learns.
        scored: the candidates, with their scores.
        positions: (N,) of the clicked items among all candidates; −1: none, or not to be learned from.
        states: (N, D) the Reformer's; None: not used.
        replayed: replayed clicks; None: none.
        weights: (N,) by which each click trains the ranker; None: all by 1.
        worth: what the clicks are worth; None: all the same.
    """
    places = scored.places(positions)
    left_out = np.flatnonzero((positions >= 0) & (places < 0))
    forced, forced_present, forced_places = scored.features, scored.present, places
    forced_content = scored.content
    if len(left_out):
        K = scored.kept.shape[1]
        at = as_tensor(left_out, model.device)
        inputs, _ = model.inputs(scored, positions[left_out, None], None if states is None else states[at])
        forced = scored.features.clone()
        forced[at, K - 1] = inputs[:, 0]
        if scored.content is not None:
            forced_content = scored.content.clone()
            forced_content[at, K - 1] = model.content_of(scored, positions[left_out, None])[:, 0]
        forced_present = scored.present.clone()
        forced_present[at, K - 1] = True
        forced_places = places.copy()
        forced_places[left_out] = K - 1
    return TrainingBatch(
        scores=model.added.with_offsets(scored.each, scored.content),
        present=scored.present,
        places=as_tensor(places, model.device),
        forced=forced,
        forced_content=forced_content,
        forced_present=forced_present,
        forced_places=as_tensor(forced_places, model.device),
        replayed=None if replayed is None or scored.replayed is None else (scored.replayed, replayed.present),
        weights=None if weights is None else as_tensor(weights, model.device),
        replayed_weights=None if replayed is None else replayed.weights,
        worth=None if worth is None else worth_targets(scored, worth),
    )


def worth_targets(scored: ScoredCandidates, worth: StepWorth) -> WorthTargets | None:
    """Returns what the heads learn from clicks whose candidates were scored; None where there are no heads."""
    if scored.head_inputs is None or scored.situation is None:
        return None
    places = scored.places(worth.positions)
    kept = np.flatnonzero(places >= 0)
    device = scored.head_inputs.device
    inputs = scored.head_inputs[as_tensor(kept, device), as_tensor(places[kept], device)]
    labels, values = as_tensor(worth.labels[kept], device), as_tensor(worth.values[kept], device)
    return WorthTargets(
        scores=scored.scores,
        situation=scored.situation,
        places=as_tensor(places, device),
        counted=as_tensor(worth.counted, device),
        inputs=inputs,
        labels=labels,
        values=values,
        mean_value=worth.mean_value,
    )


def guessing_batch(network: TrainedNetwork, before: Tensor, pull: Tensor | None) -> TrainingBatch:
    """Builds the batch for the Reformer: the clicks to predict, and the gradients of ranking for its states.

    Args:
        network: targets and negatives.
        before: (N, D) the states before the clicks.
        pull: (N, D) gradients of ranking for these states; None: none.
    """
    guessed = as_tensor(np.flatnonzero(network.guessed), before.device)
    return TrainingBatch(
        states=before[guessed] if network.negatives is not None and len(guessed) else None,
        targets=network.targets,
        negatives=network.negatives,
        pulled=None if pull is None else before,
        pull=pull,
    )
