"""Scored candidates: the kept candidates of each query with the scores of one version of the weights.

Letters: `N` queries, `C` candidates of all of them (flat), `K` candidates kept of a query, `F` features.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.learner.facts.store import Gathered
from online.learner.prune import find_rows, join_views, rank_behind


class ScoredCandidates(NamedTuple):
    """For each query the K best candidates by a linear score, with the ranker's scores."""

    gathered: Gathered
    first: NDArray[np.float32]  # (C,) the linear score of all candidates
    kept: NDArray[np.int64]  # (N, K) positions among all C, by that score; −1 where there are no more
    features: Tensor  # (N, K, F); 0 where there are no more
    present: Tensor  # (N, K) bool
    scores: Tensor  # (N, K) the ranker's, −inf where there are no more
    each: Tensor  # (N, K, networks) the scores of each of the ranker's networks, with gradients
    replayed: Tensor | None = None  # (R, K', networks) the same for replayed clicks, with gradients
    recalled: tuple[NDArray[np.float32], ...] = ()  # (C, heads) soft counts of each memory
    lifts: NDArray[np.float32] = np.zeros(0, np.float32)  # (C,) log of observed by expected clicks
    content: Tensor | None = None  # (N, K, G) added columns, 0 where there are no more; None: nothing is known
    head_inputs: Tensor | None = None  # (N, K, D) of the heads; None: there are none
    heads: Tensor | None = None  # (N, K, T + 1) chances of the named event types, and the value, if it is next
    situation: Tensor | None = None  # (N, S) of the queries, for calibration
    chances: Tensor | None = None  # (N, K) that each is next: the share, calibrated; None: not predicted
    lost: NDArray[np.float32] | None = None  # (N, K) log of what is left after events against the item; 0: all
    order: NDArray[np.float32] | None = None  # (N, K) what lists are ranked by, −inf where there is none; None: scores

    def rows(self) -> NDArray[np.int64]:
        """Returns the rows of the kept candidates, (N, K); 0 where there are no more."""
        if not len(self.gathered.rows):
            return np.zeros(self.kept.shape, np.int64)
        return np.where(self.kept >= 0, self.gathered.rows[self.kept], 0).astype(np.int64)

    def shares(self) -> Tensor:
        """Returns each kept candidate's share of its query's softmax, (N, K); 0 where there are no more."""
        return self.scores.softmax(1).nan_to_num(0.0) if self.scores.numel() else self.scores

    def ranked_by(self) -> NDArray[np.float32]:
        """Returns what the kept candidates are ranked by, (N, K): the objective, or the ranker's score."""
        return self.scores.float().cpu().numpy() if self.order is None else self.order

    def finite(self) -> bool:
        """Returns whether every score is finite."""
        return bool(self.scores[self.present].isfinite().all()) and bool(np.isfinite(self.first).all())

    def positions(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the positions of targets (N,), one row a query, among all C candidates; −1 for none, or for row 0."""
        positions = np.empty(len(targets), np.int64)
        find_rows(self.gathered.starts, self.gathered.rows, targets, positions)
        return positions

    def without(self, barred: NDArray[np.int64], positions: NDArray[np.int64]) -> "ScoredCandidates":
        """Returns the same as if some candidates were not there, but for those at positions (N,), one a query.

        Args:
            barred: positions among all C candidates.
            positions: the queries' targets among all C; −1 for none.
        """
        if not len(barred):
            return self
        barred_kept = np.isin(self.kept, barred) & (self.kept != positions[:, None])
        out = torch.from_numpy(barred_kept).to(self.present.device)
        return self._replace(present=self.present & ~out, scores=self.scores.masked_fill(out, -torch.inf))

    def places(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Converts positions (N,) among all C to places (N,) among the K kept; −1 for candidates that are not kept."""
        same = (self.kept == positions[:, None]) & (positions >= 0)[:, None]
        return np.where(same.any(1), same.argmax(1), -1)

    def ranks(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns ranks (N,), from 0, of candidates at positions (N,) among all of their query; inf for −1.

        The kept candidates are ranked by the objective, or the ranker's score, and after them the others by the linear
        score. Half of the ties count as higher; NaN counts as less than any number.
        """
        ranks = np.full(len(positions), np.inf)
        rank_behind(self.gathered.starts, self.first, self.kept, positions, ranks)
        places = self.places(positions)
        there = np.flatnonzero(places >= 0)
        by = self.scores if self.order is None else torch.from_numpy(self.order)
        scores = by.nan_to_num(-torch.inf, torch.inf, -torch.inf).cpu().numpy()[there]
        clicked = scores[np.arange(len(there)), places[there]][:, None]
        ranks[there] = (scores > clicked).sum(1) + ((scores == clicked).sum(1) - 1) / 2
        return ranks

    def best(self, users: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Joins the queries of each user into one list.

        Args:
            users: (N,) the number of each query's user, rising from 0.
            count: length of the lists.

        Returns:
            Rows (U, count), best first, 0 where there are no more; and their scores (U, count), −inf there.
        """
        U = int(users[-1]) + 1 if len(users) else 0
        rows, scores = np.zeros((U, count), np.int64), np.full((U, count), -np.inf, np.float32)
        shares = self.shares().float().cpu().numpy() if self.order is None else self.order
        join_views(self.gathered.rows, self.kept, shares, users, rows, scores)
        return rows, scores

    def tops(self, count: int) -> NDArray[np.int64]:
        """Returns the rows of the best candidates of each query, (N, count); 0 where there are no more."""
        order = np.argsort(-self.ranked_by(), axis=1, kind="stable")[:, :count]
        rows = np.take_along_axis(self.rows(), order, 1)
        return np.pad(rows, ((0, 0), (0, count - rows.shape[1])))
