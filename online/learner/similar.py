"""Items like an item: by what follows it, what occurs near it, and what is alike in content.

Letters: `V` rows of items, `S` slots of attributes, `k` items wanted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.filters.expression import BOOLEAN, NUMBER, TEXT, TITLE
from online.learner.asking import RowFilter
from online.learner.attribute_columns import TextColumn
from online.learner.facts.gather import EXPECTED_MIN
from online.learner.facts.tables import Table, neighbours
from online.learner.item_attributes import ItemAttributes
from online.learner.state import LearnerState

FOLLOWS, NEAR, CONTENT, ALL = "follows", "near", "content", "all"
FUSED = 200  # items of each way that ALL is made of
FUSION_RANK = 60.0  # added to ranks: how much less the first items of one way count than items of several
VECTORS_SHARE = 0.2  # of likeness in content that is by the model's vectors, where attributes are known

Doubles = NDArray[np.float64]


class RankedRows(NamedTuple):
    """A list of items."""

    rows: NDArray[np.int64]  # (at most k,) best first
    scores: Doubles  # the same length

    def items(self, state: LearnerState) -> list[str]:
        """Returns the ids of the items."""
        return [state.vocabulary.item_of(row) or "" for row in self.rows.tolist()]


def similar(
    state: LearnerState, item_id: str, by: str = ALL, k: int = 10, where: RowFilter | None = None
) -> RankedRows:
    """Returns the items that are like an item.

    Args:
        state: what the learner knows.
        item_id: the item; of one that has no row, only its content may be known.
        by: `follows`: shares of the clicks that came next; `near`: how often both stand within 20 clicks of each other,
            by the roots of their popularities; `content`: tags and attributes in common, and the cosine of the model's
            vectors; `all`: the three lists in one, by reciprocal rank fusion (Cormack et al. 2009), whose scores are
            shares of that of an item that is first in all three.
        k: items wanted.
        where: which rows may be listed; None: all. Items that no list may hold are never listed.

    Returns:
        At most k items, none with score 0.

    Raises:
        ValueError: there is no such way.
    """
    if by == ALL:
        return _fused([similar(state, item_id, way, FUSED, where) for way in _WAYS], k)
    if by not in _WAYS:
        raise ValueError(f"by must be one of {', '.join([*_WAYS, ALL])}, not {by!r}")
    rows, scores = _WAYS[by](state, item_id)
    others = rows != state.vocabulary.row_of(item_id)
    return _best(state, rows[others], scores[others], k, where)


def _fused(lists: Sequence[RankedRows], k: int) -> RankedRows:
    """Returns several lists in one: each item by the sum of what its ranks are worth."""
    rows = np.unique(np.concatenate([one.rows for one in lists]))
    scores = np.zeros(len(rows))
    for one in lists:
        scores[np.searchsorted(rows, one.rows)] += (1 + FUSION_RANK) / (1 + FUSION_RANK + np.arange(len(one.rows)))
    best = np.lexsort((rows, -scores))[: max(0, k)]
    return RankedRows(rows[best], scores[best] / max(1, len(lists)))


def _best(state: LearnerState, rows: NDArray[np.int64], scores: Doubles, k: int, where: RowFilter | None) -> RankedRows:
    """Returns the k rows of the highest scores above 0 that may be listed; of equal ones the first row."""
    allowed = (rows > 0) & (scores > 0) & ~state.store.items.blocked[rows]
    rows, scores = rows[allowed].astype(np.int64), scores[allowed].astype(np.float64)
    if where is not None and len(rows):
        passes = where(rows)
        rows, scores = rows[passes], scores[passes]
    if 0 < k < len(rows):
        cut = scores >= np.partition(scores, len(rows) - k)[len(rows) - k]
        rows, scores = rows[cut], scores[cut]
    best = np.lexsort((rows, -scores))[: max(0, k)]
    return RankedRows(rows[best], scores[best])


# What follows, and what occurs near


def _held(table: Table, row: int) -> tuple[NDArray[np.int64], Doubles]:
    """Returns what a table holds of a row."""
    others, counts = neighbours(table, row)
    return others.astype(np.int64), counts.astype(np.float64)


def _followed(state: LearnerState, item_id: str) -> tuple[NDArray[np.int64], Doubles]:
    row, table = state.vocabulary.row_of(item_id), state.store.tables.first
    rows, counts = _held(table, row)
    return rows, counts / max(float(table.totals[row]), 1e-9)


def _near(state: LearnerState, item_id: str) -> tuple[NDArray[np.int64], Doubles]:
    row = state.vocabulary.row_of(item_id)
    rows, counts = _held(state.store.tables.near, row)
    clicks = state.store.items.clicks
    roots = np.sqrt((clicks[rows].astype(np.float64) + EXPECTED_MIN) * (float(clicks[row]) + EXPECTED_MIN))
    return rows, counts / roots


# What is alike in content


def _content(state: LearnerState, item_id: str) -> tuple[NDArray[np.int64], Doubles]:
    """By the model's vectors alone where nothing is known of the item but clicks."""
    attributes, row, V = state.listable.attributes, state.vocabulary.row_of(item_id), state.vocabulary.rows
    by_vectors = _cosines_with(state, row) if row else np.zeros(V)
    slot = attributes.slot_of(item_id)
    by_slot = overlaps(attributes, item_id) if slot else np.zeros(1)
    if not by_slot.any():
        return np.arange(V), by_vectors
    slots = attributes.slots[:V]
    overlap = by_slot[slots]
    overlap[slots == 0] = 0.0
    scores = (1 - VECTORS_SHARE) * overlap + VECTORS_SHARE * by_vectors
    scores[overlap == 0] = 0.0
    return np.arange(V), scores


def _cosines_with(state: LearnerState, row: int) -> Doubles:
    """Returns how alike recall's vectors are to that of a row, (V,): cosines, 0 where less. Items without a click have
    vectors that say nothing yet."""
    V = state.vocabulary.rows
    vectors = state.weights.vectors.vectors.detach().float().cpu().numpy()[:V]
    lengths = np.sqrt(np.einsum("vd,vd->v", vectors, vectors))
    products = (vectors @ vectors[row]).astype(np.float64)
    scale = lengths.astype(np.float64) * float(lengths[row])
    found = np.divide(products, scale, out=np.zeros(V), where=scale > 0)
    found[state.store.items.clicks[:V] == 0] = 0.0
    cosines: Doubles = np.maximum(found, 0.0)
    return cosines


def overlaps(attributes: ItemAttributes, item_id: str) -> Doubles:
    """Returns what items have in common with an item, by slot, (S,): the weight of what both have, over the weight of
    what either has.

    Tags, texts and truth values weigh as much as they are rare: log(1 + items / items that have it). Numbers weigh 1,
    and are had in common to exp(−difference / deviation).
    """
    slot, items = attributes.slot_of(item_id), max(1, len(attributes))
    common, either = np.zeros(attributes.capacity), _all_tag_weights(attributes, items)
    own = either[slot]
    for tag in attributes.tags(item_id):
        slots = attributes.tagged(tag)
        common[slots] += _weight(items, len(slots))
    for name, kinds in attributes.kinds().items():
        for kind in kinds if name != TITLE else ():
            both, theirs = _compared(attributes, name, kind, slot, items)
            if theirs[slot] > 0:  # what only others have an attribute of says nothing about the item
                common += both
                either = either + theirs
                own += theirs[slot]
    union = own + either - common
    found: Doubles = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    found[0] = 0.0
    return np.minimum(found, 1.0)


def _weight(items: int, having: int) -> float:
    return math.log1p(items / max(1, having))


def _all_tag_weights(attributes: ItemAttributes, items: int) -> Doubles:
    """Returns the weight of all tags of each slot, (S,)."""
    codes = attributes.tag_codes()
    counts = np.bincount(codes.ravel(), minlength=1).astype(np.float64)
    weights = np.log1p(items / np.maximum(counts, 1))
    weights[0] = 0.0
    found: Doubles = weights[codes].sum(1)
    return found


def _compared(attributes: ItemAttributes, name: str, kind: str, slot: int, items: int) -> tuple[Doubles, Doubles]:
    """Returns what each slot has in common with `slot` in one attribute, and what it weighs there, (S,) both."""
    nothing = np.zeros(attributes.capacity)
    if kind == NUMBER and (numbers := attributes.numbers(name)) is not None:
        known = ~np.isnan(numbers)
        deviation = float(numbers[known].std()) or 1.0
        alike = np.exp(-np.abs(np.where(known, numbers, 0.0) - numbers[slot]) / deviation) if known[slot] else nothing
        return np.where(known, alike, 0.0), known.astype(np.float64)
    codes: NDArray[np.integer] | None = None
    if kind == TEXT and isinstance(column := attributes.texts(name), TextColumn):
        codes = column.codes
    elif kind == BOOLEAN and (truths := attributes.booleans(name)) is not None:
        codes = truths.astype(np.int32) + 1
    if codes is None or not codes[slot]:
        return nothing, nothing
    counts = np.bincount(codes)
    weights = np.log1p(items / np.maximum(counts, 1))
    weights[0] = 0.0
    theirs: Doubles = weights[codes]
    return np.where(codes == codes[slot], theirs, 0.0), theirs


_WAYS: Mapping[str, Callable[[LearnerState, str], tuple[NDArray[np.int64], Doubles]]] = {
    FOLLOWS: _followed,
    NEAR: _near,
    CONTENT: _content,
}
