"""Ranks users' lists, and keeps the ones that are served.

Letters: `N` clicks of a micro-batch, `U` users in it, `D` width of states, `L` lists that are ranked.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.learner.batches import Ranking
from online.learner.facts.store import Gathered
from online.learner.history import SERVED, next_in_batch
from online.learner.popular_fill import PopularFill, popular_fill
from online.learner.preparing import PreparedBatch, served_part
from online.learner.queries import ListQueries, QueryBuilder
from online.learner.state import LearnerState
from online.learner.training import ReformerStates
from online.metrics import ranks_in

SCORE_DIGITS = 6  # of scores in lists
EXACT_POWER_MAX = 22  # of ten, among float64


class ListRanker:
    """Ranks lists by the live weights."""

    def __init__(self, state: LearnerState, queries: QueryBuilder) -> None:
        self.state, self.queries = state, queries

    @torch.no_grad()
    def rank(
        self, users: Sequence[str], slots: NDArray[np.int64], ages_s: NDArray[np.float64], states: Tensor | None
    ) -> list[Ranking]:
        """Ranks lists of users, and the popular list with them; they count as served from now on.

        Args:
            users: (U,) ids, all different.
            slots: (U,) of their histories.
            ages_s: (U,) seconds between the user's latest click and the writing of the list.
            states: (U, D) the Reformer's; None: not used.
        """
        state = self.state
        requests = self.queries.of_users(users, slots, ages_s).and_also(self.queries.of_unknown_user(0, state.now[1]))
        lists = self.queries.lists(requests, now=state.now[0])
        added = state.added.of(state.histories, lists.queries, lists.users)
        gathered = state.store.ask(
            state.histories, lists.queries, flagged=state.abuse_filter.flagged, seen=lists.seen,
            more=added.candidates,
        )  # fmt: skip
        gathered = state.with_columns(gathered, added, state.histories, lists.queries)
        if states is not None:
            states = torch.cat([states, states.new_zeros(1, states.shape[1])])
        rows, scores = self.best_rows(gathered, lists, states)
        return self._serve(slots, rows, scores, popular_fill(state, self.queries, users, slots))

    def popular_list(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns rows and scores of the list for users without a history, as of the latest ranking, without
        unavailable items."""
        state = self.state
        if state.popular_list is None:
            states = torch.zeros(0, state.settings.width, device=state.device) if state.deep_state else None
            self.rank([], np.zeros(0, np.int64), np.zeros(0), states)
        assert state.popular_list is not None
        return state.popular_list

    # The lists of a micro-batch

    def best_rows(
        self, gathered: Gathered, lists: ListQueries, states: Tensor | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the best rows of each requested list (L, ·), 0 where there are no more, and their scores.

        Args:
            gathered: candidates of the queries.
            lists: which queries belong to which list.
            states: (L, D) the Reformer's; None: not used.
        """
        count = max(self.state.settings.list_size, SERVED)
        if states is not None:
            states = states[self.state.tensor(lists.order[lists.lists])]
        with torch.no_grad():
            scored = self.state.score(gathered, states, max(count, self.state.settings.candidates_kept))
        rows, scores = scored.best(lists.lists, count)
        self._leave_out_blocked(rows, scores)
        back = np.argsort(lists.order)
        return rows[back], scores[back]

    def states(self, prepared: PreparedBatch, read: ReformerStates) -> Tensor | None:
        """Returns the states (L, D) of the lists' users at the time when each list is written; None: not used."""
        before, after, network = read.before, read.after, read.network
        if before is None or after is None or network is None:
            return None
        requests, batch = prepared.requests, prepared.batch
        B, U = len(before), len(after)
        later = (batch.slots == requests.slots[:, None]) & (batch.positions >= requests.preceding[:, None])  # (L, B)
        clicked = batch.slots[prepared.last_clicks] == requests.slots[:, None]  # (L, U)
        at = np.where(clicked.any(1), B + clicked.argmax(1), B + U)  # after the last click; or of no click
        at = np.where(later.any(1), later.argmax(1), at)  # before the first of those that come later
        states = torch.cat([before.detach(), after, after.new_zeros(1, after.shape[1])])[self.state.tensor(at)]
        others = np.flatnonzero((at == B + U) & (requests.slots >= 0)).tolist()
        if others:
            users = list(dict.fromkeys(requests.users[one] for one in others))
            slots = np.array([requests.slots[requests.users.index(user)] for user in users], np.int64)
            present = self.state.states.now(users, slots, network.histories)
            place = {user: n for n, user in enumerate(users)}
            states[others] = present[[place[requests.users[one]] for one in others]]
        return states

    def write(
        self, prepared: PreparedBatch, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> dict[str, Ranking]:
        """Returns the lists of the batch's users by user id, and marks them as served. In rows (L, ·) they come last,
        before the popular list."""
        last = slice(len(rows) - len(prepared.last_clicks) - 1, None)
        slots = prepared.batch.slots[prepared.last_clicks]
        for at, hidden in enumerate(prepared.hidden or ()):  # some may be hidden since the candidates were gathered
            self._leave_out(rows[last][at], scores[last][at], np.isin(rows[last][at], hidden))
        rankings = self._serve(slots, rows[last], scores[last], prepared.popular_fill)
        return dict(zip(prepared.users, rankings, strict=True))

    def test_served(self, prepared: PreparedBatch, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores the list that was served to each user before the click. Returns the clicked items' ranks in it, (N,).

        A user's second click within a micro-batch is scored with the list that follows from the first one, although
        Redis gets only the last list.
        """
        batch, histories = prepared.batch, self.state.histories
        served = histories.served[batch.slots].astype(np.int64)  # (N, SERVED)
        served[next_in_batch(batch.slots)[prepared.repeated]] = rows[: len(prepared.repeated), :SERVED]
        held = self.state.popular_list
        served = np.where(
            served.any(1, keepdims=True), served, prepared.popular if held is None else served_part(held[0])
        )
        popular = np.broadcast_to(prepared.popular, served.shape)
        assert prepared.gathered is not None
        followed = filled(prepared.gathered.followers.astype(np.int64), prepared.popular)
        lists = {"served": served, "popular": popular, "followed": followed}
        trainable = batch.trainable
        self.state.scores.add({name: rows[trainable] for name, rows in lists.items()}, batch.targets[trainable])
        return ranks_in(served, batch.targets)

    def impressions(self, prepared: PreparedBatch, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Returns the first places of the impressions' lists as rows (I + 1, SERVED), 0 where there are no more. The
        last is the popular list as of the batch's start, for users whose history was evicted."""
        if prepared.impressions is None:
            return None
        first, known = len(prepared.repeated), prepared.known_impressions
        popular = rows[first + len(known), :SERVED]
        shown = np.broadcast_to(popular, (len(prepared.impressions) + 1, SERVED)).copy()
        shown[known] = rows[first : first + len(known), :SERVED]
        return shown

    def named(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranking:
        """Returns a list with the ids of its items."""
        items = self.state.vocabulary.items_of(rows.tolist())
        return Ranking([item for item in items if item is not None], list(compress(rounded(scores), items)))

    def _leave_out_blocked(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Removes items that became unavailable since the candidates were gathered from lists (L, ·), in place."""
        gone = self.state.store.items.blocked[rows]
        for at in np.flatnonzero(gone.any(1)).tolist():
            self._leave_out(rows[at], scores[at], gone[at])

    @staticmethod
    def _leave_out(rows: NDArray[np.int64], scores: NDArray[np.float32], gone: NDArray[np.bool_]) -> None:
        """Removes items (K,) from a list (K,), in place; what comes after them moves up."""
        kept = ~gone
        count = int(kept.sum())
        rows[:count], scores[:count] = rows[kept], scores[kept]
        rows[count:], scores[count:] = 0, -np.inf

    def _serve(
        self, slots: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32], fill: PopularFill | None
    ) -> list[Ranking]:
        """Marks lists (U + 1, ·), the last of them the popular list, as served. Returns them."""
        rows, scores = rows[:, : self.state.settings.list_size], scores[:, : self.state.settings.list_size]
        self.state.popular_list = rows[-1][rows[-1] > 0], scores[-1][rows[-1] > 0]
        rows, scores = rows[:-1], scores[:-1]
        popular = np.zeros(len(rows), bool)
        if fill is not None:
            fill.shares[self.state.store.items.blocked[: len(fill.shares)]] = 0  # some may be blocked since it was made
            rows, scores, popular = fill.fill(rows, scores)
        histories = self.state.histories
        histories.served[slots] = 0
        histories.served[slots, : min(SERVED, rows.shape[1])] = rows[:, :SERVED]
        return [
            replace(self.named(list_rows[list_rows > 0], list_scores[list_rows > 0]), popular=bool(is_popular))
            for list_rows, list_scores, is_popular in zip(rows, scores, popular, strict=True)
        ]


def filled(lists: NDArray[np.int64], popular: NDArray[np.int64]) -> NDArray[np.int64]:
    """Fills lists (N, K) of rows, 0 beyond their ends, with popular rows (K,), each row once, in place."""
    short = np.flatnonzero((lists == 0).any(1))
    for at in short.tolist():
        rows = list(dict.fromkeys([row for row in (*lists[at].tolist(), *popular.tolist()) if row]))
        rows = rows[: lists.shape[1]]
        lists[at] = 0
        lists[at, : len(rows)] = rows
    return lists


def rounded(scores: NDArray[np.float32]) -> list[float]:
    """Rounds scores to SCORE_DIGITS significant digits, as far as powers of ten are exact."""
    exact = scores.astype(np.float64)
    with np.errstate(divide="ignore"):
        scale = 10.0 ** np.minimum(SCORE_DIGITS - 1 - np.floor(np.log10(np.abs(exact))), EXACT_POWER_MAX)
    rounded_scores: list[float] = (np.round(exact * scale) / scale).tolist()
    return rounded_scores
