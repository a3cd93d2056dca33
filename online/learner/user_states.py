"""What the Reformer makes of each user's clicks, continued from its memories.

Letters: `N` clicks of a micro-batch, `U` users in it, `M` positions computed, `L` clicks read of each, `D` width.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.memory import ReformerMemory
from model.reformer import Clicks
from model.runs import make_runs
from online.config.settings import Settings
from online.learner.history import ClicksOldestFirst, HistorySnapshot, UserHistories
from online.learner.next_item import as_histories
from online.learner.ranking_model import RankingModel
from online.learner.user_stores import UserKey

Histories = HistorySnapshot | UserHistories  # as they stood then, or stand now
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UserStates:
    """States before and after each click.

    Every user who clicks has a memory, which holds all of the user's clicks but the latest. So a click is computed
    twice: at once, to rank; and when the next one comes, with gradients and the weights of then, to guess that one.
    Then it is stored. All positions of a micro-batch are computed in one call, whatever the histories' lengths.

    A user who comes back after others took the slot has a memory made of their latest `online_history` clicks, and if
    there were more, a whole one a little later, by `rebuild`. Weights move while stored keys and values stay. So a
    memory is also rebuilt when it has been continued for `memory_updates_max` updates of the weights, and after
    fine-tuning.
    """

    def __init__(self, settings: Settings, weights: RankingModel, histories: UserHistories) -> None:
        self.settings = settings
        self.weights = weights
        self.histories = histories
        self.memory = weights.network.memory(settings.memory_users_held, dtype=DTYPES[settings.memory_dtype])
        self._built: dict[str, int] = {}  # users whose memory is whole, and the weights' updates when it was built
        self._wanted: OrderedDict[str, None] = OrderedDict()  # users whose memory is to be built, latest last
        self._fresh_since = 0  # memories built before so many updates are to be rebuilt

    def read(
        self,
        users: Sequence[str],
        slots: NDArray[np.int64],
        clicks: NDArray[np.int64],
        histories: Histories | None = None,
    ) -> tuple[Tensor, NDArray[np.bool_], Tensor]:
        """States around the clicks that were just appended to the histories (those of now, or as they stood then).

        users (U,) different ones, their slots in the histories (U,), how many clicks (U,) each has just made ->
        the state before each click (N, D), user by user in order, with gradients; whether anything was before it (N,);
        and the state after each user's last click (U, D), without. Nothing is known of what was before clicks that a
        history does not hold any more: a user may make more in one micro-batch than it keeps.
        """
        histories = self.histories if histories is None else histories
        memory_slots = self._memories(users, slots, np.minimum(clicks, histories.lengths(slots)), histories)
        return self._extend(self.weights, self.memory, memory_slots, slots, clicks=clicks, histories=histories)

    def _extend(
        self,
        weights: RankingModel,
        memory: ReformerMemory,
        memory_slots: Tensor,
        slots: NDArray[np.int64],
        *,
        clicks: NDArray[np.int64],
        histories: Histories,
    ) -> tuple[Tensor, NDArray[np.bool_], Tensor]:
        """As `read`, by memories (U,) that hold everything before the latest of the earlier clicks."""
        made, lengths = clicks, histories.lengths(slots)
        clicks = np.minimum(made, lengths)
        known = (lengths > clicks).astype(np.int64)  # whether there is a click before these
        rows = clicks + known  # (U,) positions of each: the click before, and the new ones
        latest = histories.oldest_first(slots, rows)
        inside = np.arange(latest.rows.shape[1]) < latest.lengths[:, None]
        positions = (latest.rows[inside], latest.event_types[inside], latest.timestamps[inside])  # (M,) each
        runs = make_runs(memory_slots, rows, positions, kept_back=1)
        with weights.precision():
            states = weights.network.extend(memory, runs)  # (M, D)
        # The state before a click stands one position earlier; there is none before a first click.
        starts = np.cumsum(rows) - rows
        nth = np.arange(made.sum()) - np.repeat(np.cumsum(made) - clicks, made)  # (N,) below 0: not held any more
        position = np.repeat(starts + known, made) + nth  # (N,) of the click itself
        had = (nth > 0) | np.repeat(known > 0, made)
        before = states.index_select(0, self._tensor(np.maximum(position - 1, 0)))
        if not had.all():
            before = before * self._tensor(had[:, None])
        return before, had, states.detach().index_select(0, self._tensor(starts + rows - 1))

    @torch.no_grad()
    def now(self, users: Sequence[str], slots: NDArray[np.int64], histories: Histories | None = None) -> Tensor:
        """The state after the latest click of each of different users, (U, D)."""
        histories = self.histories if histories is None else histories
        at_hand = np.array([self._at_hand(user) for user in users])
        states = torch.zeros(len(users), self.settings.width, device=self.weights.device)
        if at_hand.any():
            known_users = [user for user, here in zip(users, at_hand, strict=True) if here]
            # Reading is no use: which memory makes room must not depend on when lists are ranked anew.
            some_slots = self.memory.clicks.new_tensor([self.memory.directory.slot(user) for user in known_users])
            clicks = self._click(some_slots, histories.oldest_first(slots[at_hand], 1), 0)
            with self.weights.precision():
                states[at_hand] = self.weights.network.append(self.memory, clicks, store=False)
        if not at_hand.all():
            latest = histories.oldest_first(slots[~at_hand], self.settings.online_history)
            read = self.weights.states(latest)
            states[~at_hand] = read[np.arange(len(latest.lengths)), latest.lengths - 1]
        return states

    @torch.no_grad()
    def rebuild(self) -> int:
        """Builds the memories wanted most lately, at most `memory_rebuilds_max` -> how many."""
        users: list[str] = []
        while self._wanted and len(users) < self.settings.memory_rebuilds_max:
            user, _ = self._wanted.popitem()
            if user in self.histories:
                users.append(user)
        if users:
            latest = self.histories.oldest_first(self.histories.find(users), self.settings.history_max, 1)
            with self.weights.precision():
                self.weights.network.remember(
                    self.memory, self._memory_slots(users), as_histories(latest, self.weights.device)
                )
            self._built |= dict.fromkeys(users, self.weights.optimizer.steps)
            self._drop_evicted()
        return len(users)

    def forget(self, user: str) -> bool:
        """Nothing is remembered of the user -> whether there was something."""
        there = self._built.pop(user, None) is not None
        there |= self._wanted.pop(user, self) is None
        return self.memory.free(user) or there

    def forget_all(self) -> None:
        """Nothing is remembered of any user."""
        for user in self.user_ids():
            self.forget(user)

    def user_ids(self) -> set[str]:
        """Users of whom something is remembered, or is to be."""
        return {*self.memory.directory.users(), *self._built, *self._wanted}

    def count_user(self, user: UserKey) -> dict[str, int]:
        return {"attention_memories": len(self.user_ids() & user.user_ids)}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        return {"attention_memories": sum(self.forget(name) for name in user.user_ids)}

    def usage(self) -> tuple[int, int]:
        return len(self.memory.directory), self.memory.directory.capacity

    def weights_replaced(self) -> None:
        """Fine-tuned weights have taken over: memories go on, and are rebuilt as their users click."""
        self._fresh_since = self.weights.optimizer.steps + 1

    def _memories(
        self,
        users: Sequence[str],
        slots: NDArray[np.int64],
        clicks: NDArray[np.int64],
        histories: Histories,
    ) -> Tensor:
        """Memories that hold everything before the latest of the earlier clicks -> their slots (U,)."""
        lengths = histories.lengths(slots)
        at_hand = [self._at_hand(user) for user in users]
        updates, updates_max = self.weights.optimizer.steps, self.settings.memory_updates_max
        for user, here in zip(users, at_hand, strict=True):
            if here:
                built = self._built[user]
                if updates - built > updates_max or built < self._fresh_since <= updates:
                    self._want_one(user)
        memory_slots, _ = self.memory.take(users)
        missing = np.flatnonzero(~np.array(at_hand) | (lengths <= clicks))  # a forgotten history starts anew
        if len(missing):
            some_slots = memory_slots.index_select(0, self._tensor(missing))
            self._start(
                [users[at] for at in missing.tolist()], slots[missing], some_slots, clicks[missing] + 1, histories
            )
        return memory_slots

    def _start(
        self,
        users: list[str],
        slots: NDArray[np.int64],
        memory_slots: Tensor,
        behind: NDArray[np.int64],
        histories: Histories,
    ) -> None:
        """Memories of the latest clicks (or of none, for those who are new), leaving out the very last `behind`."""
        self.memory.clear(memory_slots)
        before = self._remember_latest(
            self.weights, self.memory, memory_slots, slots, behind=behind, histories=histories
        )
        for user, length in zip(users, before.tolist(), strict=True):
            self._built[user] = self.weights.optimizer.steps
            if length > self.settings.online_history:
                self._want_one(user)
        self._drop_evicted()

    @torch.no_grad()
    def _remember_latest(
        self,
        weights: RankingModel,
        memory: ReformerMemory,
        memory_slots: Tensor,
        slots: NDArray[np.int64],
        *,
        behind: NDArray[np.int64],
        histories: Histories,
    ) -> NDArray[np.int64]:
        """Puts the latest `online_history` clicks but the very last `behind` (U,) into empty memories (U,) -> how many
        clicks there are before those (U,)."""
        before: NDArray[np.int64] = np.maximum(histories.lengths(slots) - behind, 0)
        some = np.flatnonzero(before)
        if len(some):
            latest = histories.oldest_first(slots[some], self.settings.online_history, behind[some])
            some_slots = memory_slots.index_select(0, self._tensor(some))
            with weights.precision():
                weights.network.remember(memory, some_slots, as_histories(latest, weights.device))
        return before

    def _drop_evicted(self) -> None:
        """Forgets since when the memories were that have lost their slots meanwhile."""
        if len(self._built) > self.memory.directory.capacity:
            self._built = {user: at for user, at in self._built.items() if user in self.memory.directory}

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.weights.device)

    def read_anew(
        self,
        weights: RankingModel,
        slots: NDArray[np.int64],
        clicks: NDArray[np.int64],
        histories: Histories | None = None,
    ) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
        """States by any weights, from the latest clicks alone: before each of the clicks (U,) just made (N, D), user
        by user, with gradients; after each user's last one (U, D), without; and whether anything was before (N,).

        It is what `read` gives of users who have come back, by memories that are made for this once.
        """
        histories = self.histories if histories is None else histories
        memory = weights.network.memory(len(slots), dtype=DTYPES[self.settings.memory_dtype])
        memory_slots = torch.arange(len(slots), device=weights.device)
        made = np.minimum(clicks, histories.lengths(slots))
        self._remember_latest(weights, memory, memory_slots, slots, behind=made + 1, histories=histories)
        before, had, after = self._extend(weights, memory, memory_slots, slots, clicks=clicks, histories=histories)
        return before, after, had

    def _click(self, memory_slots: Tensor, latest: ClicksOldestFirst, position: int) -> Clicks:
        rows, types, times = (
            torch.from_numpy(np.ascontiguousarray(part[:, position])).to(self.weights.device) for part in latest[:3]
        )
        return Clicks(memory_slots, rows, types, times)

    def _at_hand(self, user: str) -> bool:
        return user in self._built and user in self.memory.directory

    def _memory_slots(self, users: list[str]) -> Tensor:
        slots, _ = self.memory.take(users)
        return slots

    def _want_one(self, user: str) -> None:
        self._wanted[user] = None
        self._wanted.move_to_end(user)
        if len(self._wanted) > self.settings.memory_users_held:
            self._wanted.popitem(last=False)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The slots in use, and their users."""
        directory = self.memory.directory.to_state()
        used = 1 + max((int(slot) for slot in directory["slots"]), default=-1)
        arrays = {name: _as_numpy(tensor[:used]) for name, tensor in self._kept().items()}
        return arrays, {
            "directory": directory,
            "built": self._built,
            "wanted": list(self._wanted),
            "fresh_since": self._fresh_since,
        }

    def _kept(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of each slot. Which was used last stands in the directory, in the users' order."""
        tensors = self.memory.state_tensors().items()
        return {name: tensor for name, tensor in tensors if tensor.dim() and not name.endswith(".used")}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave. Of other shapes (settings have changed), nothing: memories are rebuilt."""
        tensors = self._kept()
        fits = len(state["directory"]["slots"]) + len(state["directory"]["free"]) == self.memory.directory.capacity
        fits = fits and all(
            name in arrays
            and arrays[name].shape[1:] == tensor.shape[1:]
            and arrays[name].dtype == _as_numpy(tensor[:0]).dtype
            for name, tensor in tensors.items()
        )
        if not fits:
            return
        self.memory.directory.load_state(state["directory"])
        for name, tensor in tensors.items():
            saved = torch.from_numpy(arrays[name].copy())
            tensor[: len(saved)] = (saved.view(tensor.dtype) if tensor.element_size() == 2 else saved).to(tensor.device)
        self._built = dict(state["built"])
        self._wanted = OrderedDict.fromkeys(state["wanted"])
        self._fresh_since = state["fresh_since"]


def _as_numpy(tensor: Tensor) -> NDArray[Any]:
    """16-bit floats as their bits: numpy has no bfloat16."""
    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()
    return array
