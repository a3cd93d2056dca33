"""What is popular, for users who have seen all of their candidates, where seen items are excluded, or have hidden them.

Letters: `U` users, `V` rows of items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.learner.queries import QueryBuilder
from online.learner.state import LearnerState


class PopularFill(NamedTuple):
    """Popular items, and which of them each user has seen or hidden."""

    shares: NDArray[np.float64]  # (V,) of recent clicks; 0 of what must not be listed
    latest: NDArray[np.int64]  # (U, ·) rows that each user has clicked lately, where seen items are excluded
    starts: NDArray[np.int64]  # (U + 1,) of all that must not be shown to each
    rows: NDArray[np.int64]

    def fill(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Lists (U, count) and their scores; those that are empty get what is popular and not seen by their users ->
        both, and whose lists these are (U,). The list of a user who has clicked everything stays empty."""
        empty = np.count_nonzero(rows, axis=1) == 0
        count = rows.shape[1]
        for at in np.flatnonzero(empty).tolist():
            shares = self.shares.copy()
            shares[self.latest[at]] = 0
            shares[self.rows[self.starts[at] : self.starts[at + 1]]] = 0
            best = np.argsort(-shares, kind="stable")[:count]
            best = best[shares[best] > 0]
            rows[at, : len(best)], scores[at, : len(best)] = best, shares[best]
        return rows, scores, empty & (np.count_nonzero(rows, axis=1) > 0)


def popular_fill(
    state: LearnerState, queries: QueryBuilder, users: Sequence[str], slots: NDArray[np.int64]
) -> PopularFill | None:
    """As everything stands now, for users (U,) and the slots of their histories (U,); None where no list can lack all
    of its items: seen ones are not excluded, and none of these users has hidden any."""
    if not state.settings.exclude_seen and not any(user in state.hidden for user in users):
        return None
    shares = state.popularity()
    shares[state.store.items.blocked[: len(shares)]] = 0
    shares /= max(shares.sum(), 1e-12)
    starts, rows = queries.barred_from(users)
    # Of users who had to make room there, their histories still know the latest clicks.
    kept = state.histories.history_max if state.settings.exclude_seen else 0
    latest = state.histories.newest_first(slots, kept).rows
    return PopularFill(shares, latest, starts, rows)
