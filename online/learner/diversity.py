"""Lists that are less alike in themselves: what is chosen next depends on what was chosen before.

Two ways: maximal marginal relevance (Carbonell and Goldstein 1998), and a determinantal point process, whose best list
is looked for greedily (Chen et al. 2018). Both start from scores and likenesses, whatever these were made of.

Letters: `C` candidates, `D` width of vectors, `T` tags that occur, `k` items of a list.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

MMR, DPP = "mmr", "dpp"
TAGS_SHARE = 0.5  # of likeness that is by tags, where two items have any
SHARPEST = 30.0  # of the DPP: the exponent that the score has as diversity approaches 0

Doubles = NDArray[np.float64]
Places = NDArray[np.int64]


def likeness(vectors: NDArray[np.floating] | None, tags: Sequence[Sequence[str]] | None = None) -> Doubles:
    """Returns how alike candidates are: cosines of their vectors (0 where less), and what their tags have in common.

    Args:
        vectors: (C, D) of any length; None: only tags count.
        tags: of each of the C; None: only vectors count. Two items without tags are compared by their vectors alone.

    Returns:
        (C, C) from 0 to 1, with 1 on the diagonal; positive semidefinite up to the cut at 0.
    """
    if vectors is None and tags is None:
        raise ValueError("likeness needs vectors or tags")
    C = len(tags) if vectors is None else len(vectors)  # type: ignore[arg-type]
    alike = np.zeros((C, C)) if vectors is None else np.maximum(cosines(np.asarray(vectors, np.float64)), 0.0)
    if tags is not None and any(tags):
        share = 1.0 if vectors is None else TAGS_SHARE
        by_tags = tag_cosines(tags)
        has = np.array([bool(one) for one in tags])
        alike = np.where(has[:, None] & has, (1 - share) * alike + share * by_tags, alike)
    np.fill_diagonal(alike, 1.0)
    return alike


def cosines(vectors: Doubles) -> Doubles:
    """Returns the cosines of vectors (C, D), (C, C); 0 for those without length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    found: Doubles = np.clip(unit @ unit.T, -1, 1)
    return found


def tag_cosines(tags: Sequence[Sequence[str]]) -> Doubles:
    """Returns the cosines of sets of tags, (C, C): tags in common by the root of the product of both numbers."""
    codes = {tag: code for code, tag in enumerate(dict.fromkeys(tag for one in tags for tag in one))}
    table = np.zeros((len(tags), len(codes)))
    for at, one in enumerate(tags):
        table[at, [codes[tag] for tag in one]] = 1.0
    return cosines(table)


def relevance(scores: NDArray[np.floating]) -> Doubles:
    """Returns scores (C,) moved and scaled to 0 (the least) to 1 (the most); all 1 where they are equal."""
    finite = np.asarray(scores, np.float64)
    worst = finite[np.isfinite(finite)].min(initial=0.0) if np.isfinite(finite).any() else 0.0
    finite = np.where(np.isfinite(finite), finite, worst)
    low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    return (finite - low) / (high - low) if high > low else np.ones(len(finite))


def diversified(
    scores: NDArray[np.floating],
    alike: Doubles | Callable[[], Doubles],
    k: int,
    *,
    diversity: float = 0.0,
    max_per_tag: int | None = None,
    tags: Sequence[Sequence[str]] | None = None,
    method: str = MMR,
) -> Places:
    """Chooses a list.

    Args:
        scores: (C,) of candidates, in the order in which they would be listed (best first; ties as they stand).
        alike: (C, C) how alike they are (`likeness`), or what computes it if it is needed.
        k: items wanted.
        diversity: 0: the order stays exactly as it is; 1: only likeness counts after the first item.
        max_per_tag: how many items of the list may have the same tag; None: any number.
        tags: of each candidate, where `max_per_tag` is given.
        method: MMR or DPP.

    Returns:
        Places among the candidates in the order of the list, at most k of them: fewer where tags leave fewer.
    """
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must be from 0 to 1, not {diversity}")
    cap = _TagCap(tags, max_per_tag)
    if diversity == 0:
        return cap.first(len(scores), k)
    similarity = alike() if callable(alike) else alike
    choose = {MMR: _mmr, DPP: _dpp}[method]
    return choose(relevance(scores), similarity, k, diversity, cap)


class _TagCap:
    """Counts the tags of what was chosen, and says what may still be chosen."""

    def __init__(self, tags: Sequence[Sequence[str]] | None, most: int | None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"max_per_tag must be at least 1, not {most}")
        self.most = most
        self._tags = [] if most is None or tags is None else [set(one) for one in tags]
        self._counts: dict[str, int] = {}
        self._having: dict[str, list[int]] = {}
        for at, one in enumerate(self._tags):
            for tag in one:
                self._having.setdefault(tag, []).append(at)

    def first(self, C: int, k: int) -> Places:
        """Returns the first k of C candidates that may be chosen together."""
        allowed = np.ones(C, np.bool_)
        kept: list[int] = []
        for at in range(C):
            if len(kept) == k:
                break
            if allowed[at]:
                kept.append(at)
                self.take(at, allowed)
        return np.array(kept, np.int64)

    def take(self, at: int, allowed: NDArray[np.bool_]) -> None:
        """Notes that a candidate was chosen; those that may not be chosen any more become False."""
        allowed[at] = False
        if self.most is None or not self._tags:
            return
        for tag in self._tags[at]:
            self._counts[tag] = self._counts.get(tag, 0) + 1
            if self._counts[tag] == self.most:
                allowed[self._having[tag]] = False


def _mmr(relevant: Doubles, alike: Doubles, k: int, diversity: float, cap: _TagCap) -> Places:
    """Next is always the candidate of the largest (1 − diversity) · relevance − diversity · likeness to what is chosen
    and most like it."""
    allowed, nearest = np.ones(len(relevant), np.bool_), np.zeros(len(relevant))
    chosen: list[int] = []
    while len(chosen) < k and allowed.any():
        gains = (1 - diversity) * relevant - diversity * nearest
        if not chosen:
            gains = relevant  # at 1 too, the first is the most relevant
        best = int(np.where(allowed, gains, -np.inf).argmax())
        chosen.append(best)
        cap.take(best, allowed)
        np.maximum(nearest, alike[best], out=nearest)
    return np.array(chosen, np.int64)


def _dpp(relevant: Doubles, alike: Doubles, k: int, diversity: float, cap: _TagCap) -> Places:
    """Next is always the candidate that raises log det of the kernel of the chosen most: with the Cholesky factor
    extended row by row (Chen et al. 2018, algorithm 1)."""
    C = len(relevant)
    # log q² = a · relevance with a from `SHARPEST` to 0: Chen et al. call a / 2 θ / 2(1 − θ).
    log_quality = relevant * min(SHARPEST, (1 - diversity) / diversity)
    allowed, left = (
        np.ones(C, np.bool_),
        np.ones(C),
    )  # `left`: d², the part of each item that those chosen do not explain
    rows = np.zeros((min(k, C), C))
    chosen: list[int] = []
    while len(chosen) < k and allowed.any():
        gains = np.log(np.maximum(left, 1e-12)) + log_quality
        best = int(np.where(allowed, gains, -np.inf).argmax())
        n = len(chosen)
        root = np.sqrt(max(left[best], 1e-12))
        rows[n] = (alike[best] - rows[:n, best] @ rows[:n]) / root
        left = left - rows[n] ** 2
        chosen.append(best)
        cap.take(best, allowed)
    return np.array(chosen, np.int64)


def intra_list_similarity(alike: Doubles, places: Places) -> float:
    """Returns the mean likeness of the pairs of a list; 0 for a list of one."""
    n = len(places)
    if n < 2:
        return 0.0
    part = alike[np.ix_(places, places)]
    return float((part.sum() - np.trace(part)) / (n * (n - 1)))


def gini(counts: NDArray[np.floating]) -> float:
    """Returns the Gini coefficient of how often items (V,) were listed: 0: all alike; towards 1: only a few."""
    ordered = np.sort(np.asarray(counts, np.float64))
    n, total = len(ordered), ordered.sum()
    if not n or not total:
        return 0.0
    return float((2 * (np.arange(1, n + 1) * ordered).sum()) / (n * total) - (n + 1) / n)
