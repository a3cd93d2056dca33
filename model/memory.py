"""The Reformer's memory: one slot for each user, so that the next click needs no history.

S slots, N clicks of N users, H heads, W window, d width of a head.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from model.lsh_hash import log_time_bucket
from model.runs import Runs, Sight


class LocalMemory:
    """A ring of the latest W − 1 keys and values for each slot and head: what local attention sees beside the click."""

    def __init__(
        self, *, slots: int, heads: int, window: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # A key and its value are read together, so they lie together.
        self.entries = torch.zeros(slots, heads, window - 1, 2 * width, dtype=dtype, device=device)
        self.times = torch.zeros(slots, window - 1, dtype=torch.float64, device=device)
        self.clicks = torch.zeros(slots, dtype=torch.int64, device=device)

    @property
    def bytes_per_slot(self) -> int:
        """(W − 1) · (2 · H · d · bytes of dtype + 8) + 8."""
        _, H, ring, width = self.entries.shape
        return ring * (H * width * self.entries.element_size() + 8) + 8

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slots (N,) -> keys and values (N, H, W − 1, d), times (N, W − 1), which of them are filled (N, W − 1)."""
        filled = torch.arange(self.times.shape[1], device=slots.device) < self.clicks[slots, None]
        keys, values = self.entries[slots].chunk(2, -1)
        return keys, values, self.times[slots], filled

    def sight(self, runs: Runs, *, time_buckets: int, pair_bias: Tensor) -> Sight:
        """What rows (M,) see, of as many clicks as the ring holds and themselves; pair_bias (P,)."""
        S, H, ring, width = self.entries.shape
        clicks = self.clicks.index_select(0, runs.slots)[:, None]  # (M, 1)
        place = torch.arange(ring, device=clicks.device)
        # The next click goes into the place of the oldest, which is what the one after it does not see any more.
        ages = (place - clicks).remainder(ring)  # (M, ring), 0: the oldest
        head = torch.arange(H, device=clicks.device)[:, None]
        of_head = self.entries.view(S * H, ring, width).index_select(0, (runs.slots * H + head).view(-1))
        gaps = runs.timestamps[:, None] - self.times.index_select(0, runs.slots)
        return Sight(
            entries=of_head.view(H, -1, ring, width).float(),
            entry_bias=log_time_bucket(gaps, time_buckets) + (head * time_buckets).int()[:, None],
            entry_seen=(place < clicks) & (ages >= runs.nth[:, None]),
            pairs=runs.places,
            pair_bias=pair_bias,
            pair_weights=(runs.queries - runs.keys <= ring).float(),
        )

    @torch.no_grad()
    def write_rows(self, runs: Runs, keys: Tensor, values: Tensor) -> None:
        """Keys and values (H, M, d) of those rows that are to be stored."""
        _, H, ring, width = self.entries.shape
        kept, slots, times = runs.stored, runs.stored_slots, runs.stored_times
        if runs.longest_stored > ring:  # some would be overwritten at once
            fits = (runs.later < ring).nonzero()[:, 0]
            kept, slots, times = kept[fits], slots[fits], times[fits]
        place = (self.clicks.index_select(0, slots) + runs.nth.index_select(0, kept)).remainder(ring)
        entries = torch.cat([keys, values], 2).index_select(1, kept).to(self.entries.dtype)  # (H, S, 2 d)
        head = torch.arange(H, device=slots.device)[:, None]
        flat = (slots * H + head) * ring + place  # (H, S)
        self.entries.view(-1, width).index_copy_(0, flat.view(-1), entries.view(-1, width))
        self.times.view(-1).index_copy_(0, slots * ring + place, times)
        self.clicks.index_add_(0, runs.stored_slots, torch.ones_like(runs.stored_slots))

    @torch.no_grad()
    def write(self, slots: Tensor, numbers: Tensor, keys: Tensor, values: Tensor, times: Tensor) -> None:
        """Over the oldest entries. Slots (N,), how many clicks came before each in its slot (N,), keys and values
        (N, H, d), times (N,). A slot may be there for as many clicks in a row as its ring holds."""
        place = numbers % self.times.shape[1]
        self.entries[slots, :, place] = torch.cat([keys, values], -1).to(self.entries.dtype)
        self.times[slots, place] = times
        self.clicks.scatter_reduce_(0, slots, numbers + 1, "amax")

    def clear(self, slots: Tensor) -> None:
        """Forgets what the slots hold, and overwrites it with zeros."""
        held = slots[self.clicks[slots] > 0]
        for tensor in self.state_tensors().values():
            tensor[held] = 0

    def state_tensors(self) -> dict[str, Tensor]:
        return {"entries": self.entries, "times": self.times, "clicks": self.clicks}


class LayerMemory(Protocol):
    """What every layer's memory can do."""

    @property
    def bytes_per_slot(self) -> int: ...
    def clear(self, slots: Tensor) -> None: ...
    def state_tensors(self) -> dict[str, Tensor]: ...


class ReformerMemory:
    """One memory per layer, the time of each user's latest click, and the users' slots. Made by `Reformer.memory`."""

    def __init__(self, layers: Sequence[LayerMemory], *, slots: int, device: torch.device) -> None:
        self.layers = list(layers)
        self.directory = Directory(slots)
        self.timestamps = torch.zeros(slots, dtype=torch.float64, device=device)  # (S,) of the latest click
        self.clicks = torch.zeros(slots, dtype=torch.int64, device=device)  # (S,)

    def take(self, user_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the slots (N,) of users, all different, and which of them are new (N,).

        New slots are empty: the caller has to put the users' histories into them. The least recently used are evicted.
        """
        slots, new = self.directory.take(user_ids)
        slots_, new_ = self.clicks.new_tensor(slots), torch.tensor(new, dtype=torch.bool, device=self.clicks.device)
        if any(new):
            self.clear(slots_[new_])
        return slots_, new_

    def free(self, user_id: str) -> bool:
        """Frees the user's slot. Returns whether there was one."""
        slot = self.directory.free(user_id)
        if slot is not None:
            self.clear(self.clicks.new_tensor([slot]))
        return slot is not None

    def clear(self, slots: Tensor) -> None:
        """Slots (N,) know of no click any more."""
        self.clicks[slots] = 0
        self.timestamps[slots] = 0
        for layer in self.layers:
            layer.clear(slots)

    def stamp(self, slots: Tensor, timestamps: Tensor, clicks: Tensor) -> None:
        """Distinct slots (N,) know of so many clicks (N,), the latest at timestamps (N,)."""
        self.timestamps[slots] = timestamps
        self.clicks[slots] = clicks

    @property
    def bytes_per_user(self) -> int:
        """16, and every layer's `bytes_per_slot`."""
        return 16 + sum(layer.bytes_per_slot for layer in self.layers)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything but the directory (`directory.to_state()`): `timestamps`, `clicks`, `layers.<n>.<name>`. Not
        copies: write them before the next click is appended."""
        found = {"timestamps": self.timestamps, "clicks": self.clicks}
        for n, layer in enumerate(self.layers):
            found.update({f"layers.{n}.{name}": tensor for name, tensor in layer.state_tensors().items()})
        return found

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """ValueError: a tensor is missing or has another shape."""
        _fill(self.state_tensors(), tensors)


def _fill(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(f"memory state: {name} has to be {list(tensor.shape)}, found {found}")
        tensor.copy_(tensors[name])


class Directory:
    """Assigns the slots 0 ... S − 1 to users; the least recently used is evicted."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots: {slots}, has to be at least 1")
        self.capacity = slots
        self._slots: OrderedDict[str, int] = OrderedDict()  # in the order of use
        self._free = list(range(slots - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._slots

    def users(self) -> list[str]:
        """Returns the users who have a slot, least recently used first."""
        return list(self._slots)

    def slot(self, user_id: str) -> int:
        """Returns the user's slot, -1 for none. It does not count as a use."""
        return self._slots.get(user_id, -1)

    def take(self, user_ids: Sequence[str]) -> tuple[list[int], list[bool]]:
        """Gives each of these users a slot.

        Returns:
            Each user's slot, and whether it is new: then it may hold another user's memory, which has to be cleared.

        Raises:
            ValueError: a user is named twice, or there are more users than slots.
        """
        if len(set(user_ids)) != len(user_ids):
            raise ValueError("user_ids: a user may be named only once")
        if len(user_ids) > self.capacity:
            raise ValueError(f"user_ids: {len(user_ids)} users at once, but there are only {self.capacity} slots")
        new = [user_id not in self._slots for user_id in user_ids]
        for user_id in user_ids:  # first, so that no user of this same call is evicted
            if user_id in self._slots:
                self._slots.move_to_end(user_id)
        slots = []
        for user_id in user_ids:
            if user_id not in self._slots:
                self._slots[user_id] = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            slots.append(self._slots[user_id])
        return slots, new

    def free(self, user_id: str) -> int | None:
        """Frees the user's slot. Returns it, or None if there was none."""
        slot = self._slots.pop(user_id, None)
        if slot is not None:
            self._free.append(slot)
        return slot

    def to_state(self) -> dict[str, list[str] | list[int]]:
        return {"users": list(self._slots), "slots": list(self._slots.values()), "free": list(self._free)}

    def load_state(self, state: Mapping[str, list[str] | list[int]]) -> None:
        """ValueError: the state is not one of this many slots."""
        if sorted([*state["slots"], *state["free"]]) != list(range(self.capacity)):
            raise ValueError(f"directory state: every one of the {self.capacity} slots must be there once")
        self._slots = OrderedDict(zip(state["users"], state["slots"], strict=True))  # type: ignore[arg-type]
        self._free = list(state["free"])  # type: ignore[arg-type]
