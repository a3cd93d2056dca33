"""The gradients of single clicks by the weights that are trained under differential privacy.

These are the linear ones: of the ranker's score, and of the first score. So a click's gradient has a closed form, and
is computed for all clicks at once.

Letters: `N` clicks, `K` candidates kept of each, `F` features, `P` = 2 F − 1 weights.
"""

import torch
from torch import Tensor
from torch.nn import functional

from online.learner.objectives import Networks, TrainingBatch, pruning_scores


@torch.no_grad()
def click_gradients(model: Networks, batch: TrainingBatch) -> Tensor:
    """Returns each click's gradient of its losses `ListwiseRanking` and `Pruning`, (N, P); 0 for clicks without one.

    They are not divided by the number of clicks. First come the ranker's linear weights (F,), then those of the first
    score (F - 1,). The features of candidates are taken as given.
    """
    assert batch.forced is not None
    scores, forced_scores = batch.scores, pruning_scores(model, batch)
    assert scores is not None
    assert forced_scores is not None
    pulls = _pulls(scores, batch.present, batch.places, batch.weights).sum(-1)  # (N, K)
    forced_pulls = _pulls(forced_scores, batch.forced_present, batch.forced_places, batch.weights)[..., 0]
    of_linear = torch.bmm(pulls[:, None], batch.forced)[:, 0]  # (N, F); no place was forced where there is a pull
    of_first = torch.bmm(forced_pulls[:, None], batch.forced)[:, 0, :-1]  # (N, F - 1)
    return torch.cat([of_linear, of_first], 1)


def _pulls(scores: Tensor, present: Tensor | None, places: Tensor | None, weights: Tensor | None) -> Tensor:
    """Returns the gradients of the softmax's cross-entropy by scores (N, K, M): share, less 1 for the clicked item."""
    assert present is not None
    assert places is not None
    hit = places >= 0
    scores = scores.masked_fill(~present[..., None], -torch.inf)
    shares = scores.softmax(1).nan_to_num(0.0)  # a click without candidates has none
    clicked = functional.one_hot(places.clamp(min=0), scores.shape[1])[..., None]
    pulls = torch.where(hit[:, None, None], shares - clicked, 0.0)
    return pulls if weights is None else pulls * weights[:, None, None]
