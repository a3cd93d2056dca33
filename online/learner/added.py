"""What is added to gathered candidates beside the ranker's features: further candidates, and columns of what is known
of items (content/), of users (groups/) and of lists that were shown (shown/).

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
from online.learner.content.columns import LEARNED, Column
from online.learner.content.near_lists import CANDIDATES_MAX as CONTENT_CANDIDATES_MAX
from online.learner.content.queries import ContentQueries, ContentQuery, Knowing
from online.learner.facts.features import COLUMNS
from online.learner.facts.gather import ClickArrays, QueryArrays, SeenRows
from online.learner.facts.store import NO_SEEN_ROWS, Gathered
from online.learner.groups import columns as group_columns
from online.learner.groups.groups import CANDIDATES_MAX as GROUP_CANDIDATES_MAX
from online.learner.groups.groups import FEW_CLICKS, UserGroups
from online.learner.history import UserHistories
from online.learner.shown import columns as shown_columns
from online.learner.shown.shown import ShownItems

#: The columns of each part, in their order. Content's are there always.
PARTS: dict[str, tuple[Column, ...]] = {
    "content": content_columns.COLUMNS,
    "groups": group_columns.COLUMNS,
    "shown": shown_columns.COLUMNS,
}


def parts_of(settings: Settings) -> list[str]:
    """Returns the parts that have columns."""
    wanted = {"content": True, "groups": settings.groups_users, "shown": settings.learn_impressions}
    return [part for part in PARTS if wanted[part]]


def columns_of(settings: Settings) -> tuple[Column, ...]:
    """Returns all columns, G: of the parts, then the scores (`LEARNED`), then the offset."""
    offsets = (shown_columns.OFFSET,) if settings.learn_impressions else ()
    return (*(column for part in parts_of(settings) for column in PARTS[part]), *LEARNED, *offsets)


def candidates_max(settings: Settings) -> int:
    """Returns how many candidates of a query are added at most."""
    groups = GROUP_CANDIDATES_MAX if settings.groups_users else 0
    return (CONTENT_CANDIDATES_MAX if settings.content else 0) + groups


class AddedQuery(NamedTuple):
    """N queries for what is added."""

    content: ContentQuery | None  # None: nothing is known of items
    groups: NDArray[np.int64] | None  # (N, K) of the users, 0 beyond; None: nothing is known of users
    candidates: SeenRows
    users: Sequence[str]  # N; "" for none


NOTHING = AddedQuery(None, None, NO_SEEN_ROWS, ())


class AddedQueries:
    """Builds queries for what is added, and adds its columns to gathered candidates."""

    def __init__(self, state: Knowing, settings: Settings, groups: UserGroups | None, shown: ShownItems | None) -> None:
        """`groups`: None where users are not grouped; `shown`: None where impressions are not learned."""
        self.state, self.content, self.groups, self.shown = state, ContentQueries(state), groups, shown
        parts, start = {}, 0
        for part in parts_of(settings):
            parts[part] = slice(start, start := start + len(PARTS[part]))
        self._places, self._width = parts, len(columns_of(settings))
        self._learned = slice(start, start + len(LEARNED))

    def of(
        self,
        histories: UserHistories,
        queries: QueryArrays,
        users: Sequence[str],
        clicks: ClickArrays | None = None,
        *,
        preceding: NDArray[np.int64] | None = None,
    ) -> AddedQuery:
        """Returns queries.

        Args:
            histories: as they are before the micro-batch.
            queries: N of them.
            users: N ids; "" for none.
            clicks: of the micro-batch; None: there are none.
            preceding: (N,) how many clicks of each history come before the query; None: all. With it, no candidates
                are looked for.
        """
        by_content = self.content.of(histories, queries, clicks, preceding=preceding)
        found = NO_SEEN_ROWS if by_content is None else by_content.candidates
        if self.groups is None or not self.groups.active:
            return AddedQuery(by_content, None, found, users)
        lengths = preceding
        if lengths is None:
            lengths = np.where(queries.slots >= 0, histories.lengths(np.maximum(queries.slots, 0)), 0)
        few = lengths < FEW_CLICKS
        groups = self.groups.groups(users, queries.now, few)
        if preceding is None:
            wanted = few & ~queries.repeated
            found = _beside(found, self.groups.candidates(groups, wanted, self.state.store.items.blocked))
        return AddedQuery(by_content, groups, found, users)

    def with_columns(self, gathered: Gathered, query: AddedQuery, clicks: ClickBatch | None = None) -> Gathered:
        """Returns gathered candidates with what is known of them; where nothing is, as they are.

        `clicks`: N clicks, each of which follows its query.
        """
        found = self.content.with_columns(gathered, query.content)
        if len(self._places) == 1:
            return found
        known = {"content": None if found.content is None else found.content[:, : -len(LEARNED)]}
        if self.groups is not None and query.groups is not None:
            known["groups"] = self.groups.columns(gathered, query.groups, COLUMNS["history"])
        if self.shown is not None and self.shown.model.clicks.any():
            known["shown"] = self.shown.columns(gathered, query.users)
        offsets = None
        if self.shown is not None and clicks is not None:
            offsets = self.shown.offsets(gathered, clicks.users, clicks.rows, clicks.times)
        if offsets is None and all(columns is None for columns in known.values()):
            return gathered
        out = np.zeros((len(gathered.rows), self._width), np.float32)
        if found.content is not None:
            out[:, self._learned] = found.content[:, -len(LEARNED) :]
        if offsets is not None:
            out[:, -1] = offsets
        for part, columns in known.items():
            if columns is not None:
                out[:, self._places[part]] = columns
        return gathered._replace(content=out)

    def observe(self, batch: ClickBatch, now: float) -> None:
        """Counts clicks, once they have been queried. `now`: the stream's time, in seconds since 1970."""
        self.content.observe(batch.rows[batch.trainable])
        if self.groups is not None and self.groups.active:
            self.groups.observe(batch.users, batch.rows, batch.times, batch.active, batch.trainable)
        if self.shown is not None:
            self.shown.observe(batch.users, batch.rows, batch.times, batch.trainable, now)


def _beside(some: SeenRows, others: SeenRows) -> SeenRows:
    """Returns the rows of N queries, and beside them others."""
    if not some.on:
        return others
    N = len(some.starts) - 1
    parts = [rows.rows[rows.starts[q] : rows.starts[q + 1]] for q in range(N) for rows in (some, others)]
    return SeenRows(True, some.starts + others.starts, np.concatenate([np.zeros(0, np.int64), *parts]))
