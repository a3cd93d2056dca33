"""What is asked of whom: people as they were before a click, after it, or between two clicks of a micro-batch.

Letters: `N` queries, `B` clicks of a micro-batch, `U` people in it, `L` lists, `D` width of states.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.arrays import as_tensor
from online.counts import NEAR
from online.history import UserHistories
from online.ranking.ahead import Ahead
from online.ranking.candidates import Asked
from online.ranking.guard import Guard
from online.ranking.learned import Batch, Look
from online.ranking.return_times import ReturnTimes
from online.ranking.scored import Query
from online.ranking.scorer import Scorer
from online.ranking.seen_items import SeenItems
from online.ranking.states import UserStates
from online.settings import Settings


class StatesAround(NamedTuple):
    """The Reformer's states around the clicks of a micro-batch, without gradients."""

    before: Tensor  # (B, D) each click
    after: Tensor  # (U, D) each person's last click


class Questions:
    """Makes queries from histories, the Reformer's states, and how long people stay away."""

    def __init__(
        self,
        settings: Settings,
        histories: UserHistories,
        *,
        scorer: Scorer,
        states: UserStates,
        returns: ReturnTimes,
        guard: Guard,
        seen: SeenItems | None = None,
    ) -> None:
        """`seen`: what users have clicked, where that must not be listed."""
        self.settings, self.histories, self.scorer = settings, histories, scorer
        self.states, self.returns, self.guard, self.seen = states, returns, guard, seen
        self.device = scorer.device

    def at(
        self,
        users: Sequence[str],
        slots: NDArray[np.int64],
        now: NDArray[np.float64],
        behind: NDArray[np.int64] | int,
        states: Tensor | None,
        *,
        active: NDArray[np.float64],
    ) -> Query:
        """People (N,) as they were before their very last `behind` (N,) clicks, asked about at `now` (N,), which is
        the active time `active` (N,); states (N, D)."""
        newest = self.histories.newest(slots, self.settings.history_max, behind)
        asked = Asked(*map(self._tensor, (newest.rows, newest.timestamps, newest.lengths, now, active)))
        numbers = self._tensor(newest.numbers[:, : self.settings.recall_latest])
        return Query(
            asked, numbers, self._tensor(self.scorer.own_memory.slots(users)), states, seen=self._seen_by(users)
        )

    def _seen_by(self, users: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """What users (N,) had clicked before the micro-batch that is being learned; what they have clicked in it stands
        in their histories."""
        if self.seen is None:
            return None
        starts, rows = self.seen.of(users)
        return self._tensor(np.repeat(np.arange(len(users)), np.diff(starts))), self._tensor(rows)

    def at_looks(
        self,
        users: Sequence[str],
        slots: NDArray[np.int64],
        ages_s: NDArray[np.float64],
        behind: NDArray[np.int64] | int,
        states: Tensor | None,
        *,
        active: NDArray[np.float64],
    ) -> tuple[Query, NDArray[np.int64]]:
        """The same people (U,), whose lists are written at ages (U,) and at these active times (U,), at the moments at
        which these are likely to be looked at -> N queries, and whom each is about (N,), rising from 0."""
        people, looked_at = self.returns.looks(ages_s)
        clicked_at = self.histories.newest(slots, 1, behind).timestamps[:, 0]
        if not isinstance(behind, int):
            behind = behind[people]
        who = [users[at] for at in people.tolist()]
        states = None if states is None else states[self._tensor(people)]
        active = (active - ages_s)[people] + looked_at
        return self.at(who, slots[people], clicked_at[people] + looked_at, behind, states, active=active), people

    def ahead(self, batch: Batch, asked: Asked) -> Ahead:
        """What the clicks (B,), asked for one by one, are to each other."""
        earlier = torch.nn.functional.pad(asked.rows[:, :NEAR], (0, max(0, NEAR - asked.rows.shape[1])))
        # What was guarded precedes nothing either: clicked between popular items it would become their neighbour.
        before = self.guard.was_guarded(self.histories.newest(batch.slots, NEAR, batch.behind + 1).numbers)
        earlier[:, : before.shape[1]][self._tensor(before)] = 0
        rows, heard, numbers = self._tensor(batch.rows), self._tensor(batch.heard), self._tensor(batch.numbers)
        return Ahead(rows, heard, earlier, asked.active, numbers, torch.arange(len(rows), device=self.device))

    def at_looks_between(
        self, batch: Batch, looks: Sequence[Look], ahead: Ahead, around: StatesAround | None
    ) -> tuple[Query, NDArray[np.int64]]:
        """As `at_looks`, for lists (L,) that are written while a micro-batch comes in, of people who have a history.
        The same person may stand there several times, with clicks in between."""
        users = [look.user_id for look in looks]
        slots = self.histories.find(users)
        came = np.array([look.came for look in looks], np.int64)
        later = (batch.slots == slots[:, None]) & (np.arange(len(batch.slots)) >= came[:, None])  # (L, B)
        behind = later.sum(1)
        ages_s = np.array([look.written_at for look in looks])
        ages_s -= self.histories.newest(slots, 1, behind).timestamps[:, 0]
        states = None if around is None else self._states_between(batch, users, slots, later, around)
        active = np.array([look.active for look in looks])
        query, lists = self.at_looks(users, slots, ages_s, behind, states, active=active)
        return query._replace(ahead=ahead._replace(came=self._tensor(came[lists]))), lists

    def _states_between(
        self,
        batch: Batch,
        users: Sequence[str],
        slots: NDArray[np.int64],
        later: NDArray[np.bool_],
        around: StatesAround,
    ) -> Tensor:
        """The states (L, D) of people as they were before those clicks of the batch that came later (L, B): the one
        before the first of these, or the one after their last click."""
        found = around.before.new_zeros(len(users), around.before.shape[1])
        more = np.asarray(later.any(1))
        found[self._tensor(more)] = around.before[self._tensor(later.argmax(1)[more])]
        same = batch.slots[batch.behind == 0] == slots[:, None]  # (L, U)
        ended = ~more & same.any(1)
        found[self._tensor(ended)] = around.after[self._tensor(same.argmax(1)[ended])]
        absent = np.flatnonzero(~more & ~ended).tolist()
        if absent:
            found[absent] = self.states.now([users[at] for at in absent], slots[absent])
        return found

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return as_tensor(array, self.device)
