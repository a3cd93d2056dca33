"""Lists that are less alike in themselves: what is chosen next depends on what was chosen before.

Greedily, as in maximal marginal relevance (Carbonell and Goldstein 1998), but with the sum of the likenesses to all
that was chosen instead of the largest of them (max-sum dispersion: Borodin et al. 2012). The sum grows from place to
place, so the first places, which matter most, stay; measured, it costs less NDCG for the same likeness than the largest
one, and than a determinantal point process (online/evaluation/diversity_peers.py).

Letters: `C` candidates, `D` width of vectors, `T` tags that occur, `k` items of a list.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from online.learner.state import LearnerState

TAGS_SHARE = 0.5  # of likeness that is by tags, where two items have any
POOL = 200  # candidates that a varied list is chosen from
FLATTENED = 2.0  # what scores are divided by: so relevance is the root of an item's share, by that of the best one's

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
    """Returns relevance from scores (C,), (C,): 1 of the best, and e^−1/2 for each that a score is lower; 0 of what is
    not finite."""
    found = np.asarray(scores, np.float64)
    finite = np.isfinite(found)
    best = found[finite].max(initial=-np.inf)
    return np.where(finite, np.exp(np.where(finite, found - best, 0.0) / FLATTENED), 0.0)


def diversified(
    scores: NDArray[np.floating],
    alike: Doubles | Callable[[], Doubles],
    k: int,
    *,
    diversity: float = 0.0,
    max_per_tag: int | None = None,
    tags: Sequence[Sequence[str]] | None = None,
) -> Places:
    """Chooses a list.

    Args:
        scores: (C,) of candidates, in the order in which they would be listed (best first; ties as they stand).
        alike: (C, C) how alike they are (`likeness`), or what computes it if it is needed.
        k: items wanted.
        diversity: 0: the order stays exactly as it is; 1: only likeness counts after the first item. At 0.4, lists are
            half as alike (docs/explanations.md).
        max_per_tag: how many items of the list may have the same tag; None: any number.
        tags: of each candidate, where `max_per_tag` is given.

    Returns:
        Places among the candidates in the order of the list, at most k of them: fewer where tags leave fewer.
    """
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must be from 0 to 1, not {diversity}")
    cap = TagCap(tags, max_per_tag)
    if diversity == 0:
        return cap.first(len(scores), k)
    relevant, similarity = relevance(scores), alike() if callable(alike) else alike
    allowed, sums = np.ones(len(relevant), np.bool_), np.zeros(len(relevant))
    chosen: list[int] = []
    while len(chosen) < k and allowed.any():
        # At 1 too, the first is the most relevant.
        gains = (1 - diversity) * relevant - diversity * sums if chosen else relevant
        best = int(np.where(allowed, gains, -np.inf).argmax())
        chosen.append(best)
        cap.take(best, allowed)
        sums += similarity[best]
    return np.array(chosen, np.int64)


def varied(
    state: LearnerState,
    rows: NDArray[np.int64],
    shares: NDArray[np.floating],
    k: int,
    *,
    diversity: float = 0.0,
    max_per_tag: int | None = None,
) -> Places:
    """Chooses a list among a question's candidates, by the live item vectors and what is known of items' tags.

    Args:
        state: what the learner knows.
        rows: (C,) of candidates in their order, best first.
        shares: (C,) of the softmax, as in `Answer.scores`; 0 of what the ranker did not score.
        k: items wanted.
        diversity: as for `diversified`.
        max_per_tag: likewise.

    Returns:
        Places among the candidates, at most k. With a diversity above 0 they are among the first `POOL` (or 4 k).
    """
    C = len(rows) if diversity == 0 else min(len(rows), max(POOL, 4 * k))
    rows, tags = rows[:C], None
    attributes = state.listable.attributes
    if len(attributes) and (diversity > 0 or max_per_tag is not None):
        tags = [attributes.tags(item or "") for item in state.vocabulary.items_of(rows.tolist())]
    with np.errstate(divide="ignore"):
        scores = np.log(np.asarray(shares[:C], np.float64))

    def alike() -> Doubles:
        return likeness(state.weights.vectors.vectors.detach()[torch.from_numpy(rows)].float().cpu().numpy(), tags)

    return diversified(scores, alike, k, diversity=diversity, max_per_tag=max_per_tag, tags=tags)


class TagCap:
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
