"""Moments: what stood before each click and what was clicked then; and the memories in which they are found again.

Letters: `N` queries, `P` moments found for all of them (flat), `K` moments to be stored, `D` width of item vectors,
`W` latest moments of a person, `E` entries of buckets looked at.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.items import ItemTable, unit_vectors
from model.lsh import random_rotations
from model.lsh_memory import LSHMemory
from model.memory import Directory
from model.zeros import zeros
from online.settings import Settings

DAY_S, WEEK_S = 86_400.0, 604_800.0
GAP_SCALE = 4.0  # of log(1 + seconds): gaps whose ratio is e^4 are unlike each other
TABLE_ROWS = 4_096  # hashed vectors are made for so many rows at a time


class Moments(NamedTuple):
    """The parts of some moments' keys, (...) each; the Reformer's state is one more."""

    last: Tensor  # int64 rows: the click before; 0 where there was none
    before: Tensor  # int64 rows: the one before that
    times: Tensor  # float64 seconds since 1970
    gaps: Tensor  # float32, log(1 + seconds since the click before)


def cosines(
    vectors: ItemTable, query: Moments, owners: Tensor, found: Moments, states: tuple[Tensor, Tensor] | None
) -> Tensor:
    """How like the present of their queries (N,) moments (P,) were, part by part: (P, len(PARTS)) float32.

    owners (P,) says which query each was found for; states: those of the queries (N, D), and of the moments (P, D).
    Hours and weekdays are angles (UTC); a gap's part falls linearly with the log of the ratio, from 1 to −1. Without
    states their part is 1, which says nothing.
    """
    last = (vectors(query.last)[owners] * vectors(found.last)).sum(-1)
    before = (vectors(query.before)[owners] * vectors(found.before)).sum(-1)
    apart = query.times[owners] - found.times
    hour, weekday = (torch.cos(apart.remainder(p) * (2 * math.pi / p)).float() for p in (DAY_S, WEEK_S))
    gap = 1 - ((query.gaps[owners] - found.gaps).abs() / GAP_SCALE).clamp(max=2)
    state = torch.ones_like(gap)
    if states is not None:
        state = (F.normalize(states[0], dim=-1)[owners] * states[1].float()).sum(-1)
    return torch.stack([last, before, hour, weekday, gap, state], -1)


class MomentLog:
    """The latest `held` moments of everybody, in a ring: 33 bytes each, and 2 for each number of a state.

    A moment has a number, counted from 1 in order of arrival, and is there until `held` others have come.
    """

    def __init__(self, held: int, state_width: int, device: torch.device) -> None:
        self.held, self.device = held, device
        self.total = 0
        self.items = zeros(held, dtype=torch.int32, device=device)  # clicked then
        self.last = zeros(held, dtype=torch.int32, device=device)
        self.before = zeros(held, dtype=torch.int32, device=device)
        self.times = zeros(held, dtype=torch.float64, device=device)
        self.gaps = zeros(held, device=device)
        self.states = zeros(held, state_width, dtype=torch.float16, device=device)  # of unit length, or 0
        self.private = torch.zeros(held, dtype=torch.bool, device=device)  # nobody else is to be reminded of it
        self.owners = zeros(held, dtype=torch.int64, device=device)

    def next_numbers(self, count: int) -> NDArray[np.int64]:
        """The numbers that the next moments will have."""
        return np.arange(self.total + 1, self.total + 1 + count)

    def append(self, items: Tensor, moments: Moments, states: Tensor | None, owners: Tensor | int = 0) -> None:
        """Clicked rows (N,), what stood before them, and the Reformer's states (N, D) then; whose they are (N,), as
        `stream.people.owner_number` says, 0: nobody's."""
        at = torch.from_numpy(self.next_numbers(len(items))).to(self.device) % self.held
        self.items[at] = items.to(torch.int32)
        self.last[at], self.before[at] = moments.last.to(torch.int32), moments.before.to(torch.int32)
        self.times[at], self.gaps[at] = moments.times, moments.gaps
        self.states[at] = 0 if states is None else F.normalize(states.detach(), dim=-1).half()
        self.private[at], self.owners[at] = False, owners
        self.total += len(items)

    def holds(self, numbers: Tensor) -> Tensor:
        """Which of the numbers (...) are still there."""
        return (numbers > 0) & (numbers > self.total - self.held)

    def read(self, numbers: Tensor) -> tuple[Tensor, Moments]:
        """The clicked rows (...), and the moments, of numbers (...) that are held."""
        at = numbers % self.held
        parts = Moments(self.last[at].long(), self.before[at].long(), self.times[at], self.gaps[at])
        return self.items[at].long(), parts

    def forget_rows(self, rows: Tensor) -> None:
        """Items that lost their row: their moments point at nothing any more."""
        gone = rows.to(torch.int32)
        for part in (self.items, self.last, self.before):
            part[torch.isin(part, gone)] = 0

    def forget_owner(self, owner: int) -> int:
        """Somebody's moments point at nothing any more, and nothing says what they were -> how many there were."""
        mine = self.owners == owner
        for name in _RINGS:
            getattr(self, name)[mine] = 0
        return int(mine.sum())

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Only what is there."""
        kept = min(self.total, self.held)
        arrays = {name: getattr(self, name)[_places(self, kept)].cpu().numpy() for name in _RINGS}
        return arrays | {"total": np.array([self.total])}

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave; with a smaller `held` the latest."""
        self.total = int(arrays["total"][0])
        kept = min(len(arrays["items"]), self.held)
        for name in _RINGS:
            part = torch.from_numpy(arrays[name][len(arrays[name]) - kept :].copy()).to(self.device)
            if part.shape[1:] == getattr(self, name).shape[1:]:
                getattr(self, name)[_places(self, kept)] = part


_RINGS = ("items", "last", "before", "times", "gaps", "states", "private", "owners")


def _places(log: MomentLog, kept: int) -> Tensor:
    return torch.arange(log.total - kept + 1, log.total + 1, device=log.device) % log.held


class HashedVectors:
    """The item vectors that moments are hashed by: those all items started with, functions of their rows.

    They never move, so a moment is found in the bucket it was put into, however old. Scores use the learned vectors.
    """

    def __init__(self, width: int, seed: int, device: torch.device) -> None:
        self.width, self.seed = width, seed
        self._table = torch.zeros(0, width, dtype=torch.float16, device=device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (...) -> (..., D) float32."""
        needed = int(rows.max()) + 1 if rows.numel() else 0
        if needed > len(self._table):
            more = torch.arange(len(self._table), -(-needed // TABLE_ROWS) * TABLE_ROWS)
            new = unit_vectors(more, self.width, seed=self.seed).to(self._table)
            self._table = torch.cat([self._table, new])
        return self._table[rows].float()


class OwnMemory:
    """Of some people, the moments older than their latest W: in buckets of the item before, and in buckets of the time.

    So the whole history is within reach, at a cost that does not grow with it.
    """

    def __init__(self, settings: Settings, vectors: HashedVectors, device: torch.device) -> None:
        self.vectors, self.probes = vectors, settings.recall_probes
        self.directory = Directory(settings.recall_users_held)
        generator = torch.Generator().manual_seed(settings.seed + 1)
        self.memory = LSHMemory(
            random_rotations(2, 1, vectors.width, settings.recall_buckets, generator=generator).to(device),
            slots=settings.recall_users_held,
            window=settings.recall_ring + 1,
            value_width=0,
            times=False,
            payloads=True,
            dtype=torch.float16,
        )

    def slots(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Where each one's moments are, (N,); −1 for nowhere."""
        return np.array([self.directory.slot(user) for user in users], np.int64)

    def take(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Slots (N,) of different people; new ones are empty, and whoever was here longest ago makes room."""
        slots, new = self.directory.take(users)
        found = np.array(slots, np.int64)
        self.memory.clear(torch.from_numpy(found[np.array(new, bool)]).to(self.memory.clicks.device))
        return found

    def forget(self, user: str) -> bool:
        """Nobody finds the person's moments here any more -> whether they had any."""
        slot = self.directory.free(user)
        if slot is not None:
            self.memory.free(self.memory.clicks.new_tensor([slot]))
        return slot is not None

    def store(self, slots: Tensor, moments: Moments, numbers: Tensor) -> None:
        """Moments (K,) of the owners of slots (K,), which may repeat."""
        self.memory.store(slots, self._keys(moments), payloads=numbers)

    def recall(self, slots: Tensor, moment: Moments) -> Tensor:
        """Numbers of the moments found, (N, E), each once, 0 for none; slots (N,), −1 for nobody's."""
        here = slots >= 0
        if not bool(here.any()):
            return slots.new_zeros(len(slots), 0)
        found = self.memory.recall(slots.clamp(min=0), self._keys(moment), probes=self.probes)
        numbers = torch.where(found.found & here[:, None, None], found.payloads, 0).flatten(1).sort(1).values
        numbers[:, 1:][numbers[:, 1:] == numbers[:, :-1]] = 0  # found by the item, and by the time
        return numbers

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The slots in use, and who has them."""
        directory = self.directory.to_state()
        used = 1 + max((int(slot) for slot in directory["slots"]), default=-1)
        return _arrays(self.memory, used), {"directory": directory}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave; of other shapes (settings have changed), nothing."""
        held = len(state["directory"]["slots"]) + len(state["directory"]["free"])
        if held == self.directory.capacity and _load(self.memory, arrays):
            self.directory.load_state(state["directory"])

    def _keys(self, moments: Moments) -> Tensor:
        """(N, 2, D): the vector of the item before; the hour with weekday and gap, weighed by half."""
        day, week = (moments.times.remainder(p) * (2 * math.pi / p) for p in (DAY_S, WEEK_S))
        gap = moments.gaps / GAP_SCALE
        parts = [day.cos(), day.sin(), week.cos() / 2, week.sin() / 2, gap.cos() / 2, gap.sin() / 2]
        clock = torch.stack([part.float() for part in parts], -1)
        return torch.stack([self.vectors(moments.last), F.pad(clock, (0, self.vectors.width - clock.shape[1]))], 1)


class WorldMemory:
    """Everybody's moments in buckets of the item before: one slot that all share, as large as its settings say."""

    def __init__(self, settings: Settings, vectors: HashedVectors, device: torch.device) -> None:
        self.vectors = vectors
        generator = torch.Generator().manual_seed(settings.seed + 2)
        self.memory = LSHMemory(
            random_rotations(1, 1, vectors.width, settings.world_buckets, generator=generator).to(device),
            slots=1,
            window=settings.world_ring + 1,
            value_width=0,
            times=False,
            payloads=True,
            dtype=torch.float16,
        )

    def store(self, moments: Moments, numbers: Tensor) -> None:
        """Moments (K,) that had a click before them."""
        self.memory.store(torch.zeros_like(numbers), self.vectors(moments.last)[:, None], payloads=numbers)

    def recall(self, moment: Moments) -> Tensor:
        """Numbers of the moments found, (N, E), each once, 0 for none."""
        keys = self.vectors(moment.last)[:, None]
        found = self.memory.recall(torch.zeros_like(moment.last), keys, probes=1)
        return torch.where(found.found & (moment.last > 0)[:, None, None], found.payloads, 0).flatten(1)

    def to_state(self) -> dict[str, NDArray[Any]]:
        return _arrays(self.memory, 1)

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave; of other shapes (settings have changed), nothing."""
        _load(self.memory, arrays)


def _arrays(memory: LSHMemory, slots: int) -> dict[str, NDArray[Any]]:
    """Of the first `slots` slots."""
    return {name: tensor[:slots].cpu().numpy() for name, tensor in memory.state_tensors().items()}


def _load(memory: LSHMemory, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Puts back what `_arrays` gave -> whether it had the memory's shapes; if not, nothing is changed."""
    tensors = memory.state_tensors()
    if any(name not in arrays or arrays[name].shape[1:] != tensor.shape[1:] for name, tensor in tensors.items()):
        return False
    for name, tensor in tensors.items():
        tensor[: len(arrays[name])] = torch.from_numpy(arrays[name].copy()).to(tensor)
    memory.clock = int(memory.used.max()) + 1
    return True
