"""What the Reformer remembers of the people it follows: one slot each, so that one more click needs no history.

S slots, N clicks of N people, H heads, W window, d width of a head.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from model.lsh import log_time_bucket


class LocalMemory:
    """A ring of the latest W − 1 keys and values for each slot and head: what local attention sees beside the click."""

    def __init__(
        self, *, slots: int, heads: int, window: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = torch.zeros(slots, heads, window - 1, width, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.times = torch.zeros(slots, window - 1, dtype=torch.float64, device=device)
        self.clicks = torch.zeros(slots, dtype=torch.int64, device=device)

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slots (N,) -> keys and values (N, H, W − 1, d), times (N, W − 1), which of them are filled (N, W − 1)."""
        filled = torch.arange(self.times.shape[1], device=slots.device) < self.clicks[slots, None]
        return self.keys[slots], self.values[slots], self.times[slots], filled

    @torch.no_grad()
    def write(self, slots: Tensor, keys: Tensor, values: Tensor, times: Tensor) -> None:
        """Distinct slots (N,), keys and values (N, H, d), times (N,): over the oldest entry of each ring."""
        place = self.clicks[slots] % self.times.shape[1]
        self.keys[slots, :, place] = keys.to(self.keys.dtype)
        self.values[slots, :, place] = values.to(self.values.dtype)
        self.times[slots, place] = times
        self.clicks[slots] += 1

    def clear(self, slots: Tensor) -> None:
        self.clicks[slots] = 0

    def state_tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values, "times": self.times, "clicks": self.clicks}


class BucketMemory:
    """A ring of the latest W − 1 keys and values for each slot, head, round and bucket: what LSH attention sees."""

    def __init__(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> None:
        """shape: (S, H, R, buckets, W − 1, d)."""
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.times = torch.zeros(shape[:-1], dtype=torch.float64, device=device)
        self.clicks = torch.zeros(shape[:-2], dtype=torch.int64, device=device)

    def attend(
        self, slots: Tensor, buckets: Tensor, qk: Tensor, v: Tensor, *, timestamps: Tensor, time_bias: Tensor
    ) -> Tensor:
        """Slots (N,), buckets (N, H, R), qk and v (N, H, d), timestamps (N,), time_bias (H, T) -> (N, H, d)."""
        place = self._place(slots, buckets)
        N, H, d = qk.shape
        own = (N, H, buckets.shape[2], 1, d)  # the click itself: seen in rounds that show nothing else
        keys = torch.cat([self.keys[place].to(qk.dtype), normalize(qk, dim=-1)[:, :, None, None].expand(own)], 3)
        values = torch.cat([self.values[place].to(v.dtype), v[:, :, None, None].expand(own)], 3)  # (N, H, R, W, d)
        filled = torch.arange(self.times.shape[-1], device=slots.device) < self.clicks[place][..., None]
        seen = torch.cat([filled, ~filled.any(-1, keepdim=True)], 3)  # (N, H, R, W)
        gap = log_time_bucket(pad(timestamps[:, None, None, None] - self.times[place], (0, 1)), time_bias.shape[1])
        bias = time_bias.gather(1, gap.transpose(0, 1).reshape(H, -1).long()).view(H, N, *gap.shape[2:])
        scores = (keys @ qk[:, :, None, :, None])[..., 0] * d**-0.5  # (N, H, R, W)
        scores = (scores.float() + bias.transpose(0, 1)).masked_fill(~seen, -torch.inf)
        weights = scores.flatten(2).softmax(-1).to(v.dtype)  # (N, H, R W): all rounds in one softmax
        output: Tensor = (weights[:, :, None] @ values.flatten(2, 3))[:, :, 0]
        return output

    @torch.no_grad()
    def write(self, slots: Tensor, buckets: Tensor, qk: Tensor, v: Tensor, timestamps: Tensor) -> None:
        """As `attend`: over the oldest entry of each bucket's ring."""
        place = self._place(slots, buckets)
        entry = (*place, self.clicks[place] % self.times.shape[-1])
        self.keys[entry] = normalize(qk, dim=-1)[:, :, None].to(self.keys.dtype)
        self.values[entry] = v[:, :, None].to(self.values.dtype)
        self.times[entry] = timestamps[:, None, None]
        self.clicks[place] += 1

    def _place(self, slots: Tensor, buckets: Tensor) -> tuple[Tensor, ...]:
        heads, rounds = (torch.arange(n, device=slots.device) for n in buckets.shape[1:])
        return slots[:, None, None], heads[:, None], rounds, buckets

    def clear(self, slots: Tensor) -> None:
        self.clicks[slots] = 0

    def state_tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values, "times": self.times, "clicks": self.clicks}


class LayerMemory(Protocol):
    """What every layer's memory can do."""

    def clear(self, slots: Tensor) -> None: ...
    def state_tensors(self) -> dict[str, Tensor]: ...


class ReformerMemory:
    """One memory per layer, and when each person clicked last; who has which slot. Made by `Reformer.memory`."""

    def __init__(self, layers: Sequence[LayerMemory], *, slots: int, device: torch.device) -> None:
        self.layers = list(layers)
        self.directory = Directory(slots)
        self.timestamps = torch.zeros(slots, dtype=torch.float64, device=device)  # (S,) of the latest click
        self.clicks = torch.zeros(slots, dtype=torch.int64, device=device)  # (S,)

    def take(self, user_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Distinct people -> their slots (N,) and which of them are new (N,): those slots are empty now, and it is up
        to the caller to put the person's history into them. The least recently used make room."""
        slots, new = self.directory.take(user_ids)
        slots_, new_ = self.clicks.new_tensor(slots), torch.tensor(new, dtype=torch.bool, device=self.clicks.device)
        self.clear(slots_[new_])
        return slots_, new_

    def free(self, user_id: str) -> None:
        """Forgets the person."""
        slot = self.directory.free(user_id)
        if slot is not None:
            self.clear(self.clicks.new_tensor([slot]))

    def clear(self, slots: Tensor) -> None:
        """Slots (N,) know of no click any more."""
        self.clicks[slots] = 0
        for layer in self.layers:
            layer.clear(slots)

    def stamp(self, slots: Tensor, timestamps: Tensor) -> None:
        """Distinct slots (N,) clicked at timestamps (N,)."""
        self.timestamps[slots] = timestamps
        self.clicks[slots] += 1

    def bytes_per_user(self) -> int:
        """Measured: the bytes of all tensors over the number of slots."""
        return sum(tensor.nbytes for tensor in self.state_tensors().values()) // self.directory.capacity

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
    """Who has which of the slots 0 ... S − 1. Whoever was asked for longest ago makes room."""

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
        """Who has a slot, least recently used first."""
        return list(self._slots)

    def take(self, user_ids: Sequence[str]) -> tuple[list[int], list[bool]]:
        """-> each one's slot, and whether it is new to them (its memory is somebody else's, and has to be cleared).

        ValueError: the same person twice, or more people than there are slots.
        """
        if len(set(user_ids)) != len(user_ids):
            raise ValueError("user_ids: every person may be named once")
        if len(user_ids) > self.capacity:
            raise ValueError(f"user_ids: {len(user_ids)} people at once, there are {self.capacity} slots")
        new = [user_id not in self._slots for user_id in user_ids]
        for user_id in user_ids:  # first, so that nobody is evicted whose turn comes later in this same call
            if user_id in self._slots:
                self._slots.move_to_end(user_id)
        slots = []
        for user_id in user_ids:
            if user_id not in self._slots:
                self._slots[user_id] = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            slots.append(self._slots[user_id])
        return slots, new

    def free(self, user_id: str) -> int | None:
        """Takes the person's slot away -> the slot, None if they had none."""
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
