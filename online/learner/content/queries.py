"""Queries by content: which items are candidates beside the counted ones, and what content says of all candidates.

Letters: `N` queries, `L` latest items, `P` items that may be listed, `V` rows of the vocabulary.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from online.learner.content import kernels
from online.learner.content.items import LATEST, ItemContent
from online.learner.content.near_lists import CANDIDATES_MAX
from online.learner.facts.features import COLUMNS
from online.learner.facts.gather import ClickArrays, QueryArrays, SeenRows
from online.learner.facts.store import NO_SEEN_ROWS, FeatureStore, Gathered, no_clicks
from online.learner.history import UserHistories
from online.learner.listable import Listable

ALIKE = 8  # clicked items from which an item's vector starts
STARTS_FROM = 64  # clicked items, before any is started so
_CLICKS, _HISTORY = COLUMNS["clicks"], COLUMNS["history"]


class ContentQuery(NamedTuple):
    """N queries by content."""

    latest: NDArray[np.int64]  # (N, L) rows of the users' latest items, newest first, 0 beyond
    now: NDArray[np.float64]  # (N,) seconds since 1970
    candidates: SeenRows


class Starts(NamedTuple):
    """Items with content that are clicked for the first time, and clicked ones like them."""

    rows: NDArray[np.int64]  # (n,)
    like: NDArray[np.int64]  # (n, ALIKE) rows
    shares: NDArray[np.float32]  # (n, ALIKE) by which each counts, 1 in sum; 0 where none is alike


class Knowing(Protocol):
    """What is known: a `LearnerState`."""

    store: FeatureStore
    listable: Listable


class ContentQueries:
    """Builds queries by content, and adds its columns to gathered candidates. While nothing is known of any item, there
    are none, and nothing is added."""

    def __init__(self, state: Knowing) -> None:
        self.state = state

    @property
    def content(self) -> ItemContent | None:
        """The content of items; None: nothing is known of any, or it is not used."""
        content = self.state.listable.content
        return content if content is not None and len(content) else None

    def of(
        self,
        histories: UserHistories,
        queries: QueryArrays,
        clicks: ClickArrays | None = None,
        *,
        preceding: NDArray[np.int64] | None = None,
    ) -> ContentQuery | None:
        """Returns queries by content; None where nothing is known.

        Args:
            histories: as they are before the micro-batch.
            queries: N of them.
            clicks: of the micro-batch; None: there are none.
            preceding: (N,) how many clicks of each history come before the query; None: all. With it, no candidates
                are looked for.
        """
        content = self.content
        if content is None:
            return None
        clicks = no_clicks() if clicks is None else clicks
        latest = np.empty((len(queries.slots), LATEST), np.int64)
        rings = histories.rings()
        rows, counts, slots = rings[0], rings[4], queries.slots
        if preceding is not None:
            rows, counts, slots = rows[slots], preceding, np.arange(len(slots))
        kernels.latest_rows(rows, counts, clicks.slots, clicks.rows, slots, queries.positions, latest)
        found = NO_SEEN_ROWS
        if preceding is None and len(latest):
            found = self._candidates(content, latest, queries.repeated)
        return ContentQuery(latest, queries.now, found)

    def with_columns(self, gathered: Gathered, query: ContentQuery | None) -> Gathered:
        """Returns gathered candidates with what content says of them."""
        content = self.content
        if content is None or query is None:
            return gathered
        slots_of = self.state.listable.attributes.slots
        columns = content.columns(gathered, query.latest, slots_of, query.now, (_CLICKS, _HISTORY))
        return gathered._replace(content=columns)

    def learn(self, latest: NDArray[np.int64], rows: NDArray[np.int64], gradients: NDArray[np.float32]) -> None:
        """Moves the learned weights (`ItemContent.learn`), while anything is known."""
        content = self.content
        if content is not None:
            content.learn(latest, self.state.listable.attributes.slots, rows, gradients)

    def starts(self, rows: NDArray[np.int64]) -> Starts | None:
        """Returns, of items by their rows, those that are clicked for the first time, and which clicked items are most
        like each; None: nothing is known of any. To be asked before the clicks are observed."""
        content = self.content
        if content is None:
            return None
        slots_of = self.state.listable.attributes.slots
        rows = np.unique(rows[rows > 0])
        new = rows[content.arrays.known[slots_of[rows]] & ~content.arrays.clicked[slots_of[rows]]]
        if not len(new):
            return None
        slots = slots_of[new].astype(np.int64)
        content.compare(slots, clicked=True)
        if content.clicked < STARTS_FROM:
            return None
        listed = self._listed(content)
        row_of = np.zeros(len(content.arrays.known), np.int64)
        row_of[slots_of[listed]] = listed
        near, shares = content.alike(slots, row_of > 0, ALIKE)
        return Starts(new, row_of[near], shares)

    def observe(self, rows: NDArray[np.int64]) -> None:
        """Counts clicks on items by their rows."""
        content = self.content
        if content is not None:
            content.observe(self.state.listable.attributes.slots[rows[rows > 0]].astype(np.int64))

    def _candidates(self, content: ItemContent, latest: NDArray[np.int64], repeated: NDArray[np.bool_]) -> SeenRows:
        listed = self._listed(content)
        if not len(listed):
            return NO_SEEN_ROWS
        looked = np.flatnonzero(~repeated)
        found = content.nearest(latest[looked], self.state.listable.attributes.slots, listed)
        counts = np.zeros(len(latest), np.int64)
        counts[looked] = CANDIDATES_MAX
        return SeenRows(True, np.concatenate([[0], np.cumsum(counts)]), found.reshape(-1))

    def _listed(self, content: ItemContent) -> NDArray[np.int64]:
        """Returns the rows (P,) of items with content that may be listed."""
        items, slots_of = self.state.store.items, self.state.listable.attributes.slots
        V = min(len(slots_of), len(items.blocked))
        return np.flatnonzero(content.arrays.known[slots_of[:V]] & ~items.blocked[:V])
