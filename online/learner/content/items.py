"""The content of items: bags and vectors by slot, and how items with the same features fare.

Slots are those of online/learner/item_attributes.py, so memory is bounded as theirs is, by `items_held`. Vectors are
facts: sums of the rows of a seeded table, so that their cosines approximate those of the tf-idf weighted bags (random
projection: Achlioptas 2003). What they are worth is learned elsewhere (model/ranker.py).

Letters: `S` slots, `D` width of vectors, `N` queries, `C` candidates of all of them (flat), `L` latest items, `P` items
of the pool, `G` columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.items import unit_vectors
from online.learner.content import kernels
from online.learner.content.bags import BAG_MAX, KIND_WEIGHTS, ROWS, TIME_FIELD, bag_of
from online.learner.content.kernels import COLUMNS_COUNT, LIFT_CLICKS, LOOKED_AT, NEAREST, NEW_SUITING, ContentArrays
from online.learner.content.learned import ITEMS_MIN, LearnedWeights
from online.learner.facts.store import Gathered
from stream.timestamps import TimestampError, seconds_of

WIDTH = 64  # D
LATEST = 20  # L
HALF_LIFE_CLICKS = 3_000.0  # of clicks by feature
HALF_LIFE_FIRSTS = 1_000.0  # of first clicks by feature, in first clicks
POPULAR_HALF_LIFE = 500.0  # of the mean vector of clicked items, in clicks
POOL_MAX = 16_384  # items among which the nearest are looked for
NEW_PROMISING = 4  # candidates of a query: new items that promise most to all users
CANDIDATES_MAX = NEAREST + NEW_SUITING + NEW_PROMISING
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
        self._sides = np.zeros((ROWS, 2), np.float32)
        # Clicks lately, first clicks lately, items without a click, and items when all vectors were made.
        self.totals = np.zeros(4)
        self.popular = np.zeros(WIDTH, np.float32)  # decayed sum of the vectors of clicked items
        self.learned = LearnedWeights(ROWS, WIDTH)
        self._given: dict[int, NDArray[np.float32]] = {}  # projected vectors of records, by slot
        self._projection = np.zeros((0, WIDTH), np.float32)  # of given vectors, as wide as the latest one

    def __len__(self) -> int:
        """Items with content."""
        return self.items

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
        self._given.pop(slot, None)
        self.items -= 1

    def compose(self, slots: Sequence[int]) -> None:
        """Makes the vectors of items that were put; of all items, where there are twice as many as the last time, since
        how rare a feature is has become another."""
        if self.items >= 2 * self.totals[3]:
            slots = np.flatnonzero(self.arrays.known).tolist()
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

    # Clicks

    def observe(self, slots: NDArray[np.int64]) -> None:
        """Counts clicks on items (n,) by their slots; those without content are passed over."""
        slots = slots[self.arrays.known[slots]]
        n = len(slots)
        if not n:
            return
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

    def lifts(self) -> NDArray[np.float32]:
        """Returns log of observed by expected clicks of each feature, (ROWS,)."""
        return _lifts(self.clicks, self.with_feature, float(self.totals[0]) / max(self.items, 1))

    def first_lifts(self) -> NDArray[np.float32]:
        """Returns the same of first clicks."""
        return _lifts(self.firsts, self.unclicked, float(self.totals[1]) / max(float(self.totals[2]), 1.0))

    # Queries

    def nearest(
        self, latest: NDArray[np.int64], slots_of: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns candidates of queries, rows (N, CANDIDATES_MAX), 0 where there are no more.

        Args:
            latest: (N, L) rows of the latest items, newest first, 0 beyond.
            slots_of: (V,) by row.
            rows: (P,) of the pool.
        """
        N, slots = len(latest), slots_of[rows].astype(np.int64)
        last, profile = self._situations(latest, slots_of)
        vectors = torch.from_numpy(self.arrays.vectors[slots])
        scores = (torch.from_numpy(last + profile) @ vectors.T).numpy()  # (N, P)
        lift = np.empty(len(slots), np.float32)
        kernels.lifts_of(self.arrays, slots, self.first_lifts(), lift)
        lift[self.arrays.clicked[slots]] = -np.inf
        found = np.zeros((N, CANDIDATES_MAX), np.int64)
        kernels.find_nearest(
            self.arrays,
            slots_of,
            self.weights,
            latest,
            scores,
            lift,
            rows,
            self._sides,
            np.empty((2, LOOKED_AT), np.float32),
            np.empty((2, LOOKED_AT), np.int64),
            found[:, : NEAREST + NEW_SUITING],
        )
        best = np.argsort(-lift, kind="stable")[:NEW_PROMISING]
        best = rows[best[lift[best] > -np.inf]]
        found[:, NEAREST + NEW_SUITING :][:, : len(best)] = best
        return found

    def alike(
        self, slots: NDArray[np.int64], pool: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns which of a pool's items (P,) are most like each of some (n,), by slots: places (n, count) in the
        pool, and shares (n, count) by their cosines, 1 in sum; 0 where none is alike."""
        vectors = torch.from_numpy(self.arrays.vectors)
        best = (vectors[torch.from_numpy(slots)] @ vectors[torch.from_numpy(pool)].T).topk(count, 1)
        cosines = best.values.clamp(min=0)
        return best.indices.numpy(), (cosines / cosines.sum(1, keepdim=True).clamp(min=1e-6)).numpy()

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
        last, profile = self._situations(latest, slots_of)
        kernels.fill_content(
            self.arrays,
            slots_of,
            gathered.starts,
            gathered.rows,
            np.ascontiguousarray(gathered.features[:, at[0]]),
            np.ascontiguousarray(gathered.features[:, at[1]]),
            self.weights,
            latest,
            last,
            profile,
            _unit(self.popular),
            self._sides,
            now,
            self.lifts(),
            self.first_lifts(),
            self.learned.features[0] * self.weights,
            self.learned.directions(profile),
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
        _, profiles = self._situations(latest, slots_of)
        slots, shared = slots_of[rows].astype(np.int64), self.with_feature >= ITEMS_MIN
        self.learned.learn(self.arrays, slots, gradients, profiles, self.weights, shared)

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
            "given_slots": np.array(given, np.int64),
            "given_vectors": np.array([self._given[slot] for slot in given], np.float32).reshape(-1, WIDTH),
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], slots: int) -> None:
        """Loads what `to_state` returned. `slots`: that there is room for."""
        self.arrays = _empty(max(slots, 1))
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
