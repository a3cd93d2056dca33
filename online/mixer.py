"""Mixes what was counted with what the network says: one weight for each feature, learned from each click."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.candidates import FEATURES, Candidates

MISS_LOSS = 10.0  # nats, for a click on something that was no candidate; also the most that one click can cost
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Mixer:
    """A linear score over candidates' features, trained online by softmax over the candidates of each click (Adam)."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.weights = np.array([start for *_, start in FEATURES], np.float64)  # (F,)
        self._moments = np.zeros((2, len(FEATURES)))
        self._steps = 0

    def scores(self, candidates: Candidates) -> NDArray[np.float32]:
        """(C,) scores; only their order and differences within one user mean anything."""
        return (candidates.features @ self.weights).astype(np.float32)

    def learn(self, candidates: Candidates, targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """One step on the clicks (N,) that were among their candidates -> each click's loss (N,) before it, in nats.

        Users without candidates, and clicks on anything else, cost `MISS_LOSS` and teach nothing.
        """
        losses = np.full(len(targets), MISS_LOSS)
        places = candidates.places_of(targets)
        hit = np.flatnonzero(places >= 0)
        if not len(hit):
            return losses
        scores = candidates.features @ self.weights  # (C,)
        filled = np.flatnonzero(np.diff(candidates.starts))  # users that have candidates
        starts = candidates.starts[filled]
        user = np.repeat(np.arange(len(filled)), np.diff(candidates.starts)[filled])  # (C,) index into `filled`
        shifted = np.exp(scores - np.maximum.reduceat(scores, starts)[user])
        probabilities = shifted / np.add.reduceat(shifted, starts)[user]  # (C,)
        losses[hit] = np.minimum(-np.log(np.maximum(probabilities[places[hit]], 1e-30)), MISS_LOSS)

        taught = np.isin(filled, hit)[user]
        expected = (probabilities * taught) @ candidates.features
        self._step((expected - candidates.features[places[hit]].sum(0)) / len(hit))
        return losses

    def _step(self, gradient: NDArray[Any]) -> None:
        """Adam (Kingma & Ba 2015, algorithm 1)."""
        self._steps += 1
        betas = np.array(BETAS)[:, None]
        self._moments += (1 - betas) * (np.stack([gradient, gradient**2]) - self._moments)
        mean, square = self._moments / (1 - betas**self._steps)
        self.weights -= self.learning_rate * mean / (np.sqrt(square) + EPSILON)

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {"weights": self.weights, "moments": self._moments, "steps": np.array([self._steps])}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.weights, self._moments = arrays["weights"].copy(), arrays["moments"].copy()
        self._steps = int(arrays["steps"][0])
