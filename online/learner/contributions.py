"""What each feature adds to the ranker's score of a candidate, compared with a base: it adds up to the difference.

Along the straight line from the base to the candidate, the gradient of the score is integrated (integrated gradients,
Sundararajan et al. 2017). The networks are piecewise linear, so the integral needs no steps and has no error: between
two kinks of the first layer a unit of the second layer is linear, and the share of such a piece on which it is positive
follows from its values at both ends.

Letters: `N` candidates, `F` features, `M` networks of `H` hidden units, `S` pieces of the line.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.content import ContentScore
from model.ranker import DEVIATION_MIN, Ranker

Doubles = NDArray[np.float64]
_CANDIDATES_AT_ONCE = 32  # so that intermediate results stay small


class RankerArrays(NamedTuple):
    """The ranker's weights as float64."""

    linear: Doubles  # (F,)
    mean: Doubles  # (F,)
    scale: Doubles  # (F,) one by the deviation
    up: Doubles  # (M, H, F)
    up_bias: Doubles  # (M, H)
    mid: Doubles  # (M, H, H) from, to
    mid_bias: Doubles  # (M, 1, H)
    out: Doubles  # (M, H)

    @staticmethod
    def of(ranker: Ranker) -> "RankerArrays":
        """Returns copies of a ranker's weights."""
        M, H = ranker.out.shape

        def array(name: str) -> Doubles:
            values: Doubles = ranker.get_parameter(name).detach().double().cpu().numpy()
            return values

        deviation = ranker.variance.double().cpu().numpy() ** 0.5 + DEVIATION_MIN
        mean: Doubles = ranker.mean.double().cpu().numpy()
        return RankerArrays(
            array("linear"),
            mean,
            1 / deviation,
            array("up.weight").reshape(M, H, -1),
            array("up.bias").reshape(M, H),
            array("mid"),
            array("mid_bias"),
            array("out"),
        )

    @staticmethod
    def of_added(content: ContentScore) -> "RankerArrays":
        """Returns what a part of the added columns adds to scores, as the same arrays: its one hidden layer passes
        through the second."""
        linear, up, up_bias, out = (
            part.detach().double().cpu().numpy() for part in (content.linear, content.up, content.up_bias, content.out)
        )
        G, H = up.shape
        return RankerArrays(
            linear,
            np.zeros(G),
            np.ones(G),
            up.T[None].copy(),
            up_bias[None],
            np.eye(H)[None],
            np.zeros((1, 1, H)),
            out[None],
        )


def scores(weights: RankerArrays, features: Doubles) -> Doubles:
    """Returns the ranker's scores (N,) of features (N, F), the mean over its networks, in float64."""
    x = (features - weights.mean) * weights.scale
    first = np.maximum(np.einsum("nf,mhf->mnh", x, weights.up) + weights.up_bias[:, None], 0)
    second = np.maximum(first @ weights.mid + weights.mid_bias, 0)
    found: Doubles = (second @ weights.out[..., None])[..., 0].mean(0) + features @ weights.linear
    return found


def contributions(weights: RankerArrays, features: Doubles, base: Doubles) -> Doubles:
    """Returns what each feature adds to the score of each candidate.

    Args:
        weights: of the ranker.
        features: (N, F) of candidates.
        base: (F,) that they are compared with.

    Returns:
        (N, F); the sum over F is the difference of the scores, but for rounding.
    """
    apart = features - base
    parts = [
        _mean_gradients(weights, apart[at : at + _CANDIDATES_AT_ONCE], base)
        for at in range(0, len(apart), _CANDIDATES_AT_ONCE)
    ]
    gradients = np.concatenate(parts) if parts else np.zeros_like(apart)
    found: Doubles = apart * (weights.linear + gradients * weights.scale)
    return found


def _mean_gradients(weights: RankerArrays, apart: Doubles, base: Doubles) -> Doubles:
    """Returns the networks' gradient at the scaled features, mean over the line from the base to base + apart (N, F)
    and over the networks, (N, F)."""
    # 1. Where along the line, from 0 to 1, units of the first layer change their sign.
    start = weights.up @ ((base - weights.mean) * weights.scale) + weights.up_bias  # (M, H)
    slope = np.einsum("nf,mhf->nmh", apart * weights.scale, weights.up)  # (N, M, H)
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = -start / slope
    kinks = np.where((kinks > 0) & (kinks < 1), kinks, 1.0)  # NaN too
    kinks.sort(-1)
    most = int((kinks < 1).sum(-1).max(initial=0))
    N, M, _ = kinks.shape
    ends = np.concatenate([np.zeros((N, M, 1)), kinks[..., :most], np.ones((N, M, 1))], -1)  # (N, M, S + 1)

    # 2. On which share of each piece units of the second layer are positive.
    first = np.maximum(start[:, None] + ends[..., None] * slope[:, :, None], 0)  # (N, M, S + 1, H)
    second = first @ weights.mid + weights.mid_bias
    before, after = second[..., :-1, :], second[..., 1:, :]
    above = np.maximum(before, 0) + np.maximum(after, 0)
    whole = np.abs(before) + np.abs(after)
    positive = np.divide(above, whole, out=np.zeros_like(whole), where=whole > 0)  # (N, M, S, H)
    lengths = np.diff(ends)[..., None] * positive

    # 3. The gradient, backwards through both layers.
    middle = (ends[..., :-1] + ends[..., 1:])[..., None] / 2
    active = start[:, None] + middle * slope[:, :, None] > 0
    of_first = ((lengths * weights.out[:, None]) @ weights.mid.transpose(0, 2, 1) * active).sum(-2)  # (N, M, H)
    gradients: Doubles = np.einsum("nmh,mhf->nf", of_first, weights.up) / M
    return gradients
