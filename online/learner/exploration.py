"""Draws a list at random from the model's scores, with the probability of what is shown (exploration).

`n` candidates, `k` slots. Slot by slot, from the top: with probability `explore` an item is drawn from the softmax of
score / temperature over the items that are left, otherwise the best one that is left is taken. With `explore` 1 this is
the Plackett-Luce model, whose lists are those of sorting score / temperature + Gumbel noise (Yellott 1977), and so they
are drawn here. Whether a slot is explored does not depend on the scores.

Two probabilities can be had of an item at a slot:

- `propensity`, exact: given the items above it. The list's is their product. It is what a log needs.
- `position_propensities`, approximated: whatever stands above it, as the mean of the exact ones over lists that are
  drawn. It has no bias; its standard error is at most 0.5 / sqrt(draws), and that of the first slot is 0.
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExploredList:
    """`order` (k,) indexes the candidates; `propensity`, `explored` (k,): how likely, and how, each slot was filled."""

    order: Ints
    propensity: Floats
    explored: NDArray[np.bool_]


def draw_list(scores: Floats, k: int, *, explore: float, temperature: float, request_id: str) -> ExploredList:
    """Draws a list; the same request id gives the same one.

    Args:
        scores: of the candidates (n,), higher is better; log-probabilities make the softmax their distribution.
        k: slots; fewer where there are fewer candidates.
        explore: expected share of the slots that are drawn, from 0 to 1.
        temperature: of the scores' unit; 0 draws the best item that is left.
        request_id: seeds the draw.

    Returns:
        The list, with the exact probability of each of its items given those above.

    Raises:
        ValueError: for scores that are not finite, a share or a temperature out of range, and a negative k.
    """
    _check(scores, k, explore, temperature)
    return _draw(np.asarray(scores, dtype=np.float64), k, explore, temperature, _random(request_id))


def draw_from_shares(
    shares: NDArray[np.floating], k: int, *, explore: float, temperature: float, request_id: str
) -> ExploredList:
    """Draws a list by the shares of a softmax, best first.

    Candidates whose share is 0 are not drawn: they follow in their order after all others, so that what stands there is
    certain given the items above it.

    Args:
        shares: of the candidates (n,), none below the next.
        k, explore, temperature, request_id: as for `draw_list`, by the logarithms of the shares.

    Raises:
        ValueError: as `draw_list`.
    """
    n = int((shares > 0).sum())
    scores = np.log(shares[:n].astype(np.float64))
    found = draw_list(scores, k, explore=explore, temperature=temperature, request_id=request_id)
    rest = np.arange(n, min(len(shares), max(k, n)))
    return ExploredList(
        order=np.concatenate([found.order, rest]),
        propensity=np.concatenate([found.propensity, np.ones(len(rest))]),
        explored=np.concatenate([found.explored, np.zeros(len(rest), np.bool_)]),
    )


def position_propensities(
    scores: Floats, k: int, *, explore: float, temperature: float, draws: int = 200, seed: int = 0
) -> Floats:
    """The probability (k, n) that a candidate stands at a slot, whatever stands above it; from `draws` lists."""
    _check(scores, k, explore, temperature)
    scores = np.asarray(scores, dtype=np.float64)
    random = np.random.default_rng(seed)
    found = np.zeros((min(k, len(scores)), len(scores)))
    for _ in range(draws):
        drawn = _draw(scores, k, explore, temperature, random)
        left = np.ones(len(scores), dtype=bool)
        for slot, item in enumerate(drawn.order):
            found[slot] += slot_probabilities(scores, left, explore=explore, temperature=temperature)
            left[item] = False
    return found / draws


def slot_probabilities(scores: Floats, left: NDArray[np.bool_], *, explore: float, temperature: float) -> Floats:
    """The probability (n,) of each candidate at the next slot, given which are `left` (n,), at least one."""
    best = int(np.where(left, scores, -np.inf).argmax())
    found = np.zeros(len(scores))
    if temperature > 0 and explore > 0:
        with np.errstate(over="ignore"):  # a difference of scores / a tiny temperature: then exp gives 0
            found[left] = np.exp((scores[left] - scores[best]) / temperature)
        found *= explore / found.sum()
    else:
        found[best] = explore
    found[best] += 1 - explore
    return found


def _draw(scores: Floats, k: int, explore: float, temperature: float, random: np.random.Generator) -> ExploredList:
    # The order in which the numbers are taken is part of what a seed means.
    noise, coins = random.gumbel(size=len(scores)), random.random(min(k, len(scores)))
    # The noise is added in the scores' unit: temperature 0 then is no special case.
    noisy = scores + temperature * noise
    left = np.ones(len(scores), dtype=bool)
    explored = coins < explore
    order = np.empty(len(coins), dtype=np.int64)
    propensity = np.empty(len(coins))
    for slot, explores in enumerate(explored):
        item = int(np.where(left, noisy if explores else scores, -np.inf).argmax())
        order[slot] = item
        exact = slot_probabilities(scores, left, explore=explore, temperature=temperature)[item]
        propensity[slot] = min(exact, 1.0)  # the sum of its parts may round above 1
        left[item] = False
    return ExploredList(order, propensity, explored)


def _random(request_id: str) -> np.random.Generator:
    digest = blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=16, person=b"exploration").digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _check(scores: Floats, k: int, explore: float, temperature: float) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if not 0 <= explore <= 1:
        raise ValueError(f"explore must lie between 0 and 1, it is {explore}")
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature must be finite and not negative, it is {temperature}")
    if k < 0:
        raise ValueError(f"k must not be negative, it is {k}")
