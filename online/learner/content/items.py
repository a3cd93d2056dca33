"""The content of items: bags and vectors by slot, and how items with the same features fare.

Slots are those of online/learner/item_attributes.py, so memory is bounded as theirs is, by `items_held`. Vectors are
facts: sums of the rows of a seeded table, so that their cosines approximate those of the tf-idf weighted bags (random
projection: Achlioptas 2003). What they are worth is learned elsewhere (model/ranker.py).

Letters: `S` slots, `D` width of vectors, `N` queries, `C` candidates of all of them (flat), `L` latest items, `P` items
that may be listed, `G` columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.items import unit_vectors
from online.learner.content import kernels
from online.learner.content.bags import BAG_MAX, KIND_WEIGHTS, ROWS, TIME_FIELD, bag_of
from online.learner.content.kernels import COLUMNS_COUNT, LIFT_CLICKS, ContentArrays, OfItems
from online.learner.content.learned import LearnedWeights
from online.learner.content.near import CLICKED, LOOKED_AT, NEW
from online.learner.content.near_lists import NEW_PROMISING, NearLists
from online.learner.facts.store import Gathered
from stream.timestamps import TimestampError, seconds_of

WIDTH = 64  # D
LATEST = 20  # L
HALF_LIFE_CLICKS = 3_000.0  # of clicks by feature
HALF_LIFE_FIRSTS = 1_000.0  # of first clicks by feature, in first clicks
POPULAR_HALF_LIFE = 500.0  # of the mean vector of clicked items, in clicks
GIVEN_MAX = 16_384  # items with vectors of their own that another one's vector is compared with
COMPARED_AT_ONCE = 256  # items that are compared anew with each micro-batch, where all have to be
_VECTOR_SEED = 1  # of the projection of given vectors, beside the table's


class ItemContent:
    """Bags, vectors and counts by feature. For the loop's thread only."""

    def __init__(self, seed: int, slots: int) -> None:
        """`slots`: that there is room for."""
        self.seed = seed
        self.arrays = _empty(slots)
        self.items = 0  # with content
        self._table: NDArray[np.float32] | None = None  # (ROWS, D); 8 MB, made when it is needed first
        self.with_feature = np.zeros(ROWS, np.int32)
        self.unclicked = np.zeros(ROWS, np.int32)  # items without a click, by feature
        self.clicks = np.zeros(ROWS, np.float32)  # lately, on items with each feature
        self.firsts = np.zeros(ROWS, np.float32)
        self.weights = np.ones(ROWS, np.float32)  # of features in cosines: by kind, and by how rare each is
        self.near = NearLists(ROWS, slots)
        self._sides = np.zeros((ROWS, 2), np.float32)
        self._of_items = _of_items(slots)
        self._lifts: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None  # until something is counted
        # Clicks lately, first clicks lately, items without a click, and items when all vectors were made.
        self.totals = np.zeros(4)
        self.popular = np.zeros(WIDTH, np.float32)  # decayed sum of the vectors of clicked items
        self.learned = LearnedWeights(ROWS, WIDTH)
        self._given: dict[int, NDArray[np.float32]] = {}  # projected vectors of records, by slot
        self._projection = np.zeros((0, WIDTH), np.float32)  # of given vectors, as wide as the latest one

    def __len__(self) -> int:
        """Items with content."""
        return self.items

    @property
    def clicked(self) -> int:
        """Items with content that were clicked."""
        return self.items - int(self.totals[2])

    # Records

    def put(
        self,
        slot: int,
        content: tuple[str | None, Sequence[str], Mapping[str, float | str | bool]],
        vector: Sequence[float] | NDArray[np.float16] | None,
        *,
        clicked: bool,
        now: float,
    ) -> None:
        """Takes in what the latest record of an item says: title, tags and attributes. Call `compose` afterwards.

        Args:
            slot: of the item.
            content: title, tags, attributes.
            vector: of the record, or of its text; None: none.
            clicked: whether the item was ever clicked.
            now: seconds since 1970, by the stream; where the record has no `published_at`, the item is as old as its
                first record.
        """
        arrays = self.arrays
        was_known, published = bool(arrays.known[slot]), float(arrays.published[slot])
        clicked = clicked or bool(arrays.clicked[slot])
        self.free(slot)
        bag, heads = bag_of(*content)
        arrays.bags[slot, : len(bag)] = bag
        arrays.heads[slot], arrays.sizes[slot] = heads, len(bag)
        arrays.known[slot], arrays.clicked[slot] = len(bag) > 0 or vector is not None, clicked
        arrays.published[slot] = _published(content[2], published if was_known else now)
        if not arrays.known[slot]:
            return
        if vector is not None:
            self._given[slot], arrays.given[slot] = self._projected(vector), True
        self.items += 1
        self._lifts = None
        self.with_feature[bag] += 1
        if not clicked:
            self.unclicked[bag] += 1
            self.totals[2] += 1

    def free(self, slot: int) -> None:
        """Forgets what a slot holds."""
        arrays = self.arrays
        if not arrays.known[slot]:
            return
        bag = arrays.bags[slot, : arrays.sizes[slot]]
        self.with_feature[bag] -= 1
        if not arrays.clicked[slot]:
            self.unclicked[bag] -= 1
            self.totals[2] -= 1
        for part in arrays:
            part[slot] = 0
        self.near.free(slot)
        self._lifts = None
        self._given.pop(slot, None)
        self.items -= 1

    def compose(self, slots: Sequence[int]) -> None:
        """Makes the vectors of items that were put, and compares them with others; makes those of all items, where
        there are twice as many as the last time, since how rare a feature is has become another."""
        put = slots
        if self.items >= 2 * self.totals[3]:
            slots = np.flatnonzero(self.arrays.known).tolist()
            self.near.arrays.compared[:] = False
            self.totals[3] = self.items
            idf = np.log((self.items + 1) / (self.with_feature + 1)) + 1
            self.weights = (KIND_WEIGHTS * idf).astype(np.float32)
        if not slots:
            return
        if self._table is None:
            self._table = unit_vectors(torch.arange(1, ROWS + 1), WIDTH, seed=self.seed).numpy()
        at = np.array(slots, np.int64)
        vectors = np.empty((len(at), WIDTH), np.float32)
        kernels.compose(self.arrays, at, self.weights, self._table, vectors)
        for n, slot in enumerate(slots):
            if slot in self._given:
                vectors[n] = _unit(vectors[n] + self._given[slot])
        self.arrays.vectors[at] = vectors
        self.compare(np.array(put, np.int64))

    def compare(self, slots: NDArray[np.int64], *, clicked: bool = False) -> None:
        """Compares items (n,) with others, so that they are in each other's lists of near items. `clicked`: they are
        clicked for the first time."""
        is_clicked, features = self.arrays.clicked[slots] | clicked, (self.weights, self.with_feature)
        for kind in (CLICKED, NEW):
            of_kind = slots[is_clicked == (kind == CLICKED)]
            if len(of_kind):
                self.near.compare(self.arrays, of_kind, kind, self._given_near(of_kind), features, again=clicked)

    def _given_near(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the slots (n, ·) of the items whose given vectors are most like those of some (n,); 0: none."""
        known = self.arrays.given
        if not self._given or not known[slots].any():
            return np.zeros((len(slots), 0), np.int64)
        pool = np.flatnonzero(known)
        if len(pool) > GIVEN_MAX:
            pool = pool[np.argsort(-self.arrays.published[pool], kind="stable")[:GIVEN_MAX]]
        vectors = torch.from_numpy(self.arrays.vectors)
        products = vectors[torch.from_numpy(slots)] @ vectors[torch.from_numpy(pool)].T
        best = products.topk(min(LOOKED_AT, len(pool)), 1).indices.numpy()
        return np.where(known[slots][:, None], pool[best], 0)

    def compare_left(self) -> None:
        """Compares some of the items that have to be compared anew, or of a checkpoint without lists."""
        left = np.flatnonzero(self.arrays.known & ~self.near.arrays.compared)[:COMPARED_AT_ONCE]
        if len(left):
            self.compare(left)

    def _projected(self, vector: Sequence[float] | NDArray[np.float16]) -> NDArray[np.float32]:
        """Returns a given vector at the width of ours, of length 1."""
        if len(vector) != len(self._projection):
            numbers = torch.arange(1, len(vector) + 1)
            self._projection = unit_vectors(numbers, WIDTH, seed=self.seed + _VECTOR_SEED).numpy()
        given = np.asarray(vector, np.float64)
        largest = np.abs(given).max(initial=0.0)
        return _unit(((given / largest if largest > 0 else given) @ self._projection).astype(np.float32))

    def grow(self, slots: int) -> None:
        """Makes room for this many slots."""
        have = len(self.arrays.known)
        if slots > have:
            more = _empty(slots - have)
            both = zip(self.arrays._asdict().values(), more._asdict().values(), strict=True)
            self.arrays = ContentArrays(*(np.concatenate(parts) for parts in both))
            self.near.grow(slots)
            self._of_items = _of_items(slots)

    # Clicks

    def observe(self, slots: NDArray[np.int64]) -> None:
        """Counts clicks on items (n,) by their slots; those without content are passed over."""
        self.compare_left()
        slots = slots[self.arrays.known[slots]]
        n = len(slots)
        if not n:
            return
        self._lifts = None
        kept = np.float32(0.5 ** (n / HALF_LIFE_CLICKS))
        self.clicks *= kept
        self.totals[0] = self.totals[0] * kept + n
        new = len(np.unique(slots[~self.arrays.clicked[slots]]))
        if new:
            kept = np.float32(0.5 ** (new / HALF_LIFE_FIRSTS))
            self.firsts *= kept
            self.totals[1] = self.totals[1] * kept + new
        self.totals[2] -= kernels.add_clicks(self.arrays, slots, self.clicks, self.firsts, self.unclicked)
        self.popular = (self.popular * 0.5 ** (n / POPULAR_HALF_LIFE) + self.arrays.vectors[slots].sum(0)).astype(
            np.float32
        )

    def lifts(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns log of observed by expected clicks of each feature, and the same of first clicks, (ROWS,) each."""
        if self._lifts is None:
            self._lifts = (
                _lifts(self.clicks, self.with_feature, float(self.totals[0]) / max(self.items, 1)),
                _lifts(self.firsts, self.unclicked, float(self.totals[1]) / max(float(self.totals[2]), 1.0)),
            )
        return self._lifts

    # Queries

    def nearest(
        self, latest: NDArray[np.int64], slots_of: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns candidates of queries, rows (N, CANDIDATES_MAX), 0 where there are no more.

        Args:
            latest: (N, L) rows of the latest items, newest first, 0 beyond.
            slots_of: (V,) by row.
            rows: (P,) that may be listed, with content.
        """
        slots = slots_of[rows].astype(np.int64)
        new = ~self.arrays.clicked[slots]
        new_rows, new_slots = rows[new], slots[new]
        lift = np.empty(len(new_slots), np.float32)
        kernels.lifts_of(self.arrays, new_slots, self.lifts()[1], lift)
        best = new_rows[np.argsort(-lift, kind="stable")[:NEW_PROMISING]]
        return self.near.nearest(self.arrays, latest, slots_of, (rows, slots), (new_slots, lift), best)

    def alike(
        self, slots: NDArray[np.int64], listed: NDArray[np.bool_], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns which clicked items are most like each of some (n,), by slots: slots (n, count), 0 where there are no
        more, and shares (n, count) by their cosines, 1 in sum; 0 where none is alike. `listed`: (S,) which may be."""
        found, cosines = self.near.best(self.arrays, slots, listed, count)
        cosines = np.maximum(cosines, 0)
        return found, (cosines / np.maximum(cosines.sum(1, keepdims=True), 1e-6)).astype(np.float32)

    def columns(
        self,
        gathered: Gathered,
        latest: NDArray[np.int64],
        slots_of: NDArray[np.int32],
        now: NDArray[np.float64],
        at: tuple[int, int],
    ) -> NDArray[np.float32]:
        """Returns what content says of candidates, (C, G).

        Args:
            gathered: the candidates of N queries.
            latest: (N, L) as for `nearest`.
            slots_of: (V,) by row.
            now: (N,) seconds since 1970.
            at: which columns of the gathered features hold the items' clicks and the user's.
        """
        out = np.empty((len(gathered.rows), COLUMNS_COUNT), np.float32)
        last = profile = directions = np.zeros((len(latest), WIDTH), np.float32)
        if self._given:
            last, profile = self._situations(latest, slots_of)
            directions = self.learned.directions(profile)
        lifts, first_lifts = self.lifts()
        self._of_items.mark[0] += 1  # weights are learned between two calls
        kernels.fill_content(
            self.arrays,
            slots_of,
            gathered.starts,
            gathered.rows,
            gathered.features,
            at,
            self.weights,
            latest,
            last,
            profile,
            _unit(self.popular),
            self._sides,
            now,
            lifts,
            first_lifts,
            self.learned.features[0] * self.weights,
            directions,
            self._of_items,
            out,
        )
        return out

    def learn(
        self,
        latest: NDArray[np.int64],
        slots_of: NDArray[np.int32],
        rows: NDArray[np.int64],
        gradients: NDArray[np.float32],
    ) -> None:
        """Moves the learned weights.

        Args:
            latest: (N, L) as for `nearest`.
            slots_of: (V,) by row.
            rows: (N, K) of candidates, 0 where there are no more.
            gradients: (N, K) of the loss, by their scores.
        """
        profiles = self._situations(latest, slots_of)[1] if self._given else None
        slots = slots_of[rows].astype(np.int64)
        self.learned.learn(self.arrays, slots, gradients, profiles, self.weights, self.with_feature)

    def _situations(
        self, latest: NDArray[np.int64], slots_of: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the vectors of queries' last items and their profiles, (N, D) each."""
        last, profile = np.empty((2, len(latest), WIDTH), np.float32)
        kernels.profiles(self.arrays, slots_of, latest, last, profile)
        return last, profile

    # A checkpoint

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Returns arrays by name; none where nothing is known."""
        if not self.items:
            return {}
        used = 1 + int(np.flatnonzero(self.arrays.known)[-1])
        given = sorted(self._given)
        return {name: part[:used].copy() for name, part in self.arrays._asdict().items()} | {
            "clicks_by_feature": self.clicks.copy(),
            "firsts_by_feature": self.firsts.copy(),
            "weights_by_feature": self.weights.copy(),
            "totals": self.totals.copy(),
            "popular": self.popular.copy(),
            **self.learned.to_state(),
            **self.near.to_state(used),
            "given_slots": np.array(given, np.int64),
            "given_vectors": np.array([self._given[slot] for slot in given], np.float32).reshape(-1, WIDTH),
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], slots: int) -> None:
        """Loads what `to_state` returned. `slots`: that there is room for."""
        self.arrays, self.near, self._lifts = _empty(max(slots, 1)), NearLists(ROWS, max(slots, 1)), None
        self._of_items = _of_items(max(slots, 1))
        if not arrays:
            return
        self.grow(len(arrays["known"]))
        for name, part in self.arrays._asdict().items():
            part[: len(arrays[name])] = arrays[name]
        known, clicked = self.arrays.known, self.arrays.clicked
        self.items = int(known.sum())
        self.with_feature, self.unclicked = self._by_feature(known), self._by_feature(known & ~clicked)
        self.clicks, self.firsts = arrays["clicks_by_feature"].copy(), arrays["firsts_by_feature"].copy()
        self.weights = arrays["weights_by_feature"].copy()
        self.totals, self.popular = arrays["totals"].copy(), arrays["popular"].copy()
        self.learned.load_state(arrays)
        self.near.load_state(arrays)
        both = zip(arrays["given_slots"].tolist(), arrays["given_vectors"], strict=True)
        self._given = {slot: vector.copy() for slot, vector in both}

    def _by_feature(self, which: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Returns how many of some items (S,) have each feature."""
        inside = np.arange(BAG_MAX) < self.arrays.sizes[which][:, None]
        return np.bincount(self.arrays.bags[which][inside], minlength=ROWS).astype(np.int32)


def _empty(slots: int) -> ContentArrays:
    return ContentArrays(
        np.zeros((slots, BAG_MAX), np.uint16),
        np.zeros(slots, np.int16),
        np.zeros(slots, np.int16),
        np.zeros((slots, WIDTH), np.float32),
        np.zeros(slots, np.bool_),
        np.zeros(slots, np.float64),
        np.zeros(slots, np.bool_),
        np.zeros(slots, np.bool_),
        np.zeros(slots, np.float32),
    )


def _of_items(slots: int) -> OfItems:
    return OfItems(np.zeros(1, np.int64), np.zeros(slots, np.int64), np.zeros((slots, 5), np.float32))


def _lifts(observed: NDArray[np.float32], items: NDArray[np.int32], clicks_per_item: float) -> NDArray[np.float32]:
    """Returns log of observed by expected clicks, in float32 throughout: in float64 it took five times as long, which
    was a tenth of a click's time."""
    prior = np.float32(LIFT_CLICKS)
    expected = items.astype(np.float32) * np.float32(clicks_per_item)
    lifts: NDArray[np.float32] = np.log((observed + prior) / (expected + prior))
    return lifts


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.sqrt((vector.astype(np.float64) ** 2).sum()))
    return (vector / length).astype(np.float32) if length > 0 else vector.astype(np.float32)


def _published(attributes: Mapping[str, float | str | bool], otherwise: float) -> float:
    """Returns when an item was published, in seconds since 1970; `otherwise` where its record does not say it."""
    published = attributes.get(TIME_FIELD)
    if published is None or isinstance(published, bool):
        return otherwise
    try:
        return seconds_of(published, now=otherwise, ahead_s_max=np.inf)
    except TimestampError:
        return otherwise
