"""What is added to gathered candidates beside the ranker's features: further candidates, and columns of what is known
of items (content/) and of users (groups/).

Parts that the settings leave out have no columns. While nothing is known there are neither candidates nor columns.

Letters: `N` queries, `C` candidates of all of them (flat), `K` groups of a user, `G` columns.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.learner.batches import ClickBatch
from online.learner.content import columns as content_columns
from online.learner.content.columns import Column
from online.learner.content.items import CANDIDATES_MAX as CONTENT_CANDIDATES_MAX
from online.learner.content.queries import ContentQueries, ContentQuery, Knowing
from online.learner.facts.features import COLUMNS
from online.learner.facts.gather import ClickArrays, QueryArrays, SeenRows
from online.learner.facts.store import NO_SEEN_ROWS, Gathered
from online.learner.groups import columns as group_columns
from online.learner.groups.groups import CANDIDATES_MAX as GROUP_CANDIDATES_MAX
from online.learner.groups.groups import FEW_CLICKS, UserGroups
from online.learner.history import UserHistories

#: The columns of each part, in their order. Content's are there always.
PARTS: dict[str, tuple[Column, ...]] = {"content": content_columns.COLUMNS, "groups": group_columns.COLUMNS}


def parts_of(settings: Settings) -> list[str]:
    """Returns the parts that have columns."""
    wanted = {"content": True, "groups": settings.users_topic is not None}
    return [part for part in PARTS if wanted[part]]


def columns_of(settings: Settings) -> tuple[Column, ...]:
    """Returns all columns, G."""
    return tuple(column for part in parts_of(settings) for column in PARTS[part])


def candidates_max(settings: Settings) -> int:
    """Returns how many candidates of a query are added at most."""
    groups = GROUP_CANDIDATES_MAX if settings.users_topic is not None else 0
    return (CONTENT_CANDIDATES_MAX if settings.content else 0) + groups


class AddedQuery(NamedTuple):
    """N queries for what is added."""

    content: ContentQuery | None  # None: nothing is known of items
    groups: NDArray[np.int64] | None  # (N, K) of the users, 0 beyond; None: nothing is known of users
    candidates: SeenRows


NOTHING = AddedQuery(None, None, NO_SEEN_ROWS)


class AddedQueries:
    """Builds queries for what is added, and adds its columns to gathered candidates."""

    def __init__(self, state: Knowing, settings: Settings, groups: UserGroups | None) -> None:
        """`groups`: None where there is no users topic."""
        self.state, self.content, self.groups = state, ContentQueries(state), groups
        parts, start = {}, 0
        for part in parts_of(settings):
            parts[part] = slice(start, start := start + len(PARTS[part]))
        self._places, self._width = parts, start

    def of(
        self,
        histories: UserHistories,
        queries: QueryArrays,
        users: Sequence[str],
        clicks: ClickArrays | None = None,
        *,
        preceding: NDArray[np.int64] | None = None,
        groups: NDArray[np.int64] | None = None,
    ) -> AddedQuery:
        """Returns queries.

        Args:
            histories: as they are before the micro-batch.
            queries: N of them.
            users: N ids; "" for none.
            clicks: of the micro-batch; None: there are none.
            preceding: (N,) how many clicks of each history come before the query; None: all. With it, no candidates
                are looked for.
            groups: (N, K) of the users; None: those that are known.
        """
        by_content = self.content.of(histories, queries, clicks, preceding=preceding)
        found = NO_SEEN_ROWS if by_content is None else by_content.candidates
        if self.groups is None or not len(self.groups):
            return AddedQuery(by_content, None, found)
        groups = self.groups.groups(users) if groups is None else self.groups.shared(groups)
        if preceding is None:
            lengths = np.where(queries.slots >= 0, histories.lengths(np.maximum(queries.slots, 0)), 0)
            few = (lengths < FEW_CLICKS) & ~queries.repeated
            found = _beside(found, self.groups.candidates(groups, few, self.state.store.items.blocked))
        return AddedQuery(by_content, groups, found)

    def with_columns(self, gathered: Gathered, query: AddedQuery) -> Gathered:
        """Returns gathered candidates with what is known of them; where nothing is, as they are."""
        found = self.content.with_columns(gathered, query.content)
        if self.groups is None or query.groups is None:
            return found if len(self._places) == 1 or found.content is None else self._joined(found, found.content)
        by_groups = self.groups.columns(gathered, query.groups, COLUMNS["history"])
        return self._joined(found, found.content, by_groups)

    def _joined(
        self, gathered: Gathered, content: NDArray[np.float32] | None, groups: NDArray[np.float32] | None = None
    ) -> Gathered:
        columns = np.zeros((len(gathered.rows), self._width), np.float32)
        for part, of_part in (("content", content), ("groups", groups)):
            if of_part is not None:
                columns[:, self._places[part]] = of_part
        return gathered._replace(content=columns)

    def observe(self, batch: ClickBatch) -> None:
        """Counts clicks, once they have been queried."""
        self.content.observe(batch.rows[batch.trainable])
        if self.groups is not None and len(self.groups):
            self.groups.observe(batch.users, batch.rows, batch.active, batch.trainable)


def _beside(some: SeenRows, others: SeenRows) -> SeenRows:
    """Returns the rows of N queries, and beside them others."""
    if not some.on:
        return others
    N = len(some.starts) - 1
    parts = [rows.rows[rows.starts[q] : rows.starts[q + 1]] for q in range(N) for rows in (some, others)]
    return SeenRows(True, some.starts + others.starts, np.concatenate([np.zeros(0, np.int64), *parts]))
