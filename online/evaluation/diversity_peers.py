"""Other ways to choose lists that are less alike, for comparison: MMR by the largest likeness, and a DPP.

Letters: `C` candidates, `k` items of a list.
"""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
SHARPEST = 30.0  # of the DPP: the exponent that relevance has as diversity approaches 0
LEAST = 1e-12  # of what is left of an item, so that it has a logarithm


def scaled(scores: NDArray[np.floating]) -> Doubles:
    """Returns scores (C,) moved and scaled to 0 (the least) to 1 (the most); all 1 where they are equal."""
    found = np.asarray(scores, np.float64)
    low, high = found.min(initial=np.inf), found.max(initial=-np.inf)
    return (found - low) / (high - low) if high > low else np.ones(len(found))


def largest_mmr(scores: NDArray[np.floating], alike: Doubles, k: int, diversity: float) -> NDArray[np.int64]:
    """Chooses next the candidate of the largest (1 − diversity) · relevance − diversity · likeness to what is most like
    it of those chosen (maximal marginal relevance, Carbonell and Goldstein 1998). Arguments as of `diversified`."""
    relevant, nearest = scaled(scores), np.zeros(len(scores))
    allowed = np.ones(len(scores), np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(k, len(scores)):
        gains = (1 - diversity) * relevant - diversity * nearest if chosen else relevant
        best = int(np.where(allowed, gains, -np.inf).argmax())
        chosen.append(best)
        allowed[best] = False
        nearest = np.maximum(nearest, alike[best])
    return np.array(chosen, np.int64)


def greedy_dpp(scores: NDArray[np.floating], alike: Doubles, k: int, diversity: float) -> NDArray[np.int64]:
    """Chooses next the candidate that raises log det of the kernel of those chosen most, for a diversity above 0: with
    the Cholesky factor extended row by row (Chen et al. 2018, algorithm 1). The logarithm of an item's squared quality
    is relevance · (1 − diversity) / diversity."""
    log_quality = scaled(scores) * min(SHARPEST, (1 - diversity) / max(diversity, 1e-9))
    C = len(scores)
    allowed, left = np.ones(C, np.bool_), np.ones(C)  # `left`: of each item, what those chosen do not explain
    rows = np.zeros((min(k, C), C))
    chosen: list[int] = []
    for n in range(min(k, C)):
        gains = np.log(np.maximum(left, LEAST)) + log_quality
        best = int(np.where(allowed, gains, -np.inf).argmax())
        rows[n] = (alike[best] - rows[:n, best] @ rows[:n]) / np.sqrt(max(left[best], LEAST))
        left = left - rows[n] ** 2
        chosen.append(best)
        allowed[best] = False
    return np.array(chosen, np.int64)


CHOOSE = {"mmr-largest": largest_mmr, "dpp": greedy_dpp}
