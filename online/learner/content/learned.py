"""Weights by which content is scored that are learned one by one: of each feature, and of given vectors' directions.

- A weight for each word, part of a word, tag and value: an item's score is the mean over its weighted bag. So what
  matters here (a genre does, a year in a title does not) is learned from any language's text. A feature that few items
  share has none: it would say which item it is.
- A matrix between the user's profile and the vector of an item whose record has one. It begins with 0 beside the plain
  cosine: together they are a learned projection that begins as the identity.

Both follow the gradient of the ranking loss by the ranker's score (share, less 1 for what was clicked) with Adagrad
(Duchi, Hazan, Singer 2011). They belong to no user and to no item, so their memory is fixed: 300 KB.

Letters: `N` queries, `K` candidates kept of each, `D` width of vectors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from online.learner.content import kernels
from online.learner.content.kernels import ContentArrays

RATE = 0.05  # of learning: how far one large gradient moves a weight
EPSILON = 0.3  # added to the root of the squared gradients' sum, so that few small gradients move little
ITEMS_MIN = 5  # items that share a feature, from which on it has a weight
Floats = NDArray[np.float32]


class LearnedWeights:
    """Weights of features (F,), and between profile and item (D, D); with their sums of squared gradients."""

    def __init__(self, features: int, width: int) -> None:
        self.features, self.matrix = np.zeros((2, features), np.float32), np.zeros((2, width, width), np.float32)
        self._gradient = np.zeros(features, np.float32)

    def directions(self, profiles: Floats) -> Floats:
        """Returns what an item's vector is multiplied with, for each of the profiles (N, D): (N, D)."""
        return _product(profiles, self.matrix[0])

    def learn(  # noqa: PLR0917 - arrays of one step
        self,
        arrays: ContentArrays,
        slots: NDArray[np.int64],
        gradients: Floats,
        profiles: Floats | None,
        weights: Floats,
        with_feature: NDArray[np.int32],
    ) -> None:
        """Takes one step.

        Args:
            arrays: of the items.
            slots: (N, K) of the candidates.
            gradients: (N, K) of the loss, by the candidates' scores.
            profiles: (N, D) of the queries; None: no item has a vector.
            weights: (F,) of features in cosines.
            with_feature: (F,) items with each feature.
        """
        touched = np.empty(slots.size * arrays.bags.shape[1], np.int32)
        of_vectors = np.zeros((len(slots), self.matrix.shape[1]), np.float32)
        count = kernels.add_gradients(arrays, slots, gradients, weights, self._gradient, touched, of_vectors)
        kernels.step_features(self.features, self._gradient, touched[:count], with_feature, ITEMS_MIN, RATE, EPSILON)
        if profiles is not None:
            _step(self.matrix, _product(profiles.T, of_vectors))

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Returns arrays by name; none where nothing was learned."""
        learned = self.features.any() or self.matrix.any()
        return {"learned_features": self.features.copy(), "learned_matrix": self.matrix.copy()} if learned else {}

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Loads what `to_state` returned; where it is missing, nothing is learned yet."""
        if "learned_features" in arrays:
            self.features, self.matrix = arrays["learned_features"].copy(), arrays["learned_matrix"].copy()


def _step(weights: Floats, gradient: Floats) -> None:
    """Moves weights, the first of two; the second are their sums of squared gradients."""
    weights[1] += gradient * gradient
    weights[0] -= RATE * gradient / (np.sqrt(weights[1]) + np.float32(EPSILON))


def _product(a: Floats, b: Floats) -> Floats:
    """Returns a @ b, by torch, which keeps to its number of threads."""
    found: Floats = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return found
