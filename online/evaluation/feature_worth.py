"""What each group of features adds to a learner's rankings.

On some micro-batches the clicks are ranked again as if a group of features said nothing: each has its running mean for
all candidates. What NDCG@10 then loses is what the group adds. Weights are not trained anew without it, so others of
the same meaning may take over some of that.

Letters: `N` clicks, `K` candidates kept of each, `F` features, `G` groups.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.ranker import Ranker
from online.learner.batches import BatchResult, TrainedStep
from online.learner.facts.feature_groups import group_of
from online.learner.facts.features import features
from online.learner.learner import Learner
from online.metrics import hit_and_ndcg_at

EVERY = 4  # micro-batches, of which one is ranked again


class FeatureWorth(NamedTuple):
    """What groups of features added to the clicks that were ranked again."""

    groups: tuple[str, ...]
    clicks: NDArray[np.int64]  # (N,) their numbers
    added: NDArray[np.float64]  # (N, G) to NDCG@10
    ndcg: NDArray[np.float64]  # (N,) with all groups


class FeatureTrial:
    """Ranks clicks again without each group of features."""

    def __init__(self, learner: Learner, first: int = 0) -> None:
        """`first`: the number of the first click that counts."""
        self.learner, self.first = learner, first
        left_out = learner.settings.features_left_out
        groups = [group_of(feature.name) for feature in features(learner.settings.popularity_half_lives)]
        self._columns = {
            group: torch.tensor([at for at, other in enumerate(groups) if other == group])
            for group in dict.fromkeys(groups)
            if group not in left_out and (group != "network" or learner.may_use_state)
        }
        self._before: Ranker | None = None  # as it was before the next micro-batch, where that is ranked again
        self._batches = 0
        self._clicks: list[NDArray[np.int64]] = []
        self._added: list[NDArray[np.float64]] = []
        self._ndcg: list[NDArray[np.float64]] = []

    def after(self, batch: range, learned: BatchResult) -> None:
        """Takes a micro-batch that was just learned."""
        if self._before is not None:
            for step in learned.steps:
                self._add(batch.start, step, learned, self._before)
        self._batches += 1
        due = batch.stop >= self.first and self._batches % EVERY == 0
        self._before = copy.deepcopy(self.learner.weights.ranker) if due else None

    @torch.no_grad()
    def _add(self, start: int, step: TrainedStep, learned: BatchResult, ranker: Ranker) -> None:
        scored = step.scored
        places = scored.places(scored.positions(learned.targets[step.part]))
        clicks = start + np.arange(step.part.start, step.part.stop)
        counted = learned.trainable[step.part] & (clicks >= self.first)
        if not counted.any() or not scored.scores.numel():
            return
        other = scored.scores - ranker(scored.features)  # what content adds, and what the ranker has learned meanwhile
        ndcg = _ndcg(scored.scores, places)
        added = np.zeros((len(clicks), len(self._columns)))
        for at, columns in enumerate(self._columns.values()):
            changed = scored.features.clone()
            changed[..., columns] = ranker.mean[columns]
            added[:, at] = ndcg - _ndcg(ranker(changed) + other, places)
        self._clicks.append(clicks[counted])
        self._added.append(added[counted])
        self._ndcg.append(ndcg[counted])

    def result(self) -> FeatureWorth:
        """Returns what was found so far."""
        return FeatureWorth(
            tuple(self._columns),
            np.concatenate([np.zeros(0, np.int64), *self._clicks]),
            np.concatenate([np.zeros((0, len(self._columns))), *self._added]),
            np.concatenate([np.zeros(0), *self._ndcg]),
        )


def _ndcg(scores: Tensor, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns NDCG@10 (N,) of the candidates at places (N,) by scores (N, K); 0 for −1. Half of the ties are ahead."""
    values = scores.double().cpu().numpy()
    own = values[np.arange(len(values)), places][:, None]
    ranks = (values > own).sum(1) + ((values == own).sum(1) - 1) / 2
    found: NDArray[np.float64] = hit_and_ndcg_at(np.where(places >= 0, ranks, np.inf))[1]
    return found
