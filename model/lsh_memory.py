"""LSH attention's streaming form, and recall: a ring of entries for each bucket of many users.

S slots, N clicks, H heads, R rounds of hashing, D width of a head's key, W window, T buckets of log time, P probes,
E = R · P · (W − 1) entries that a query looks at.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import normalize

from model.lsh_hash import hash_buckets, log_time_bucket, nearest_buckets
from model.runs import Runs, Sight, attend
from model.zeros import zeros

PIECE_BYTES = 1 << 21  # entries are read a piece at a time, within the CPU's cache


class Recalled(NamedTuple):
    """What `LSHMemory.recall` found, in no particular order; what stands where `found` is False means nothing."""

    found: Tensor  # (N, H, E) bool
    payloads: Tensor  # (N, H, E) int64, as stored
    cosines: Tensor  # (N, H, E) of query and key; differentiable in the query
    times: Tensor | None  # (N, H, E) float64 seconds, as stored


class LSHMemory:
    """For each slot, head, round and bucket a ring of the latest `window` − 1 entries, in preallocated tensors.

    An entry is a unit key and, as asked for, a value (for attention), a time, and a payload (for recall). A slot
    belongs to one user or to all users. A click costs O(R · window · D), and a slot takes `bytes_per_slot` bytes,
    however long its history is. On a CPU, memory that was never written costs nothing.

    rotations (H, R, D, buckets // 2), as for `lsh_attention`. value_width 0: no values, `recall` alone. dtype: of keys
    and values; of 16 bits it halves the bytes, and attention agrees with the sequence form to its precision.
    """

    def __init__(
        self,
        rotations: Tensor,
        *,
        slots: int,
        window: int,
        value_width: int | None = None,
        times: bool = True,
        payloads: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if slots < 1 or window < 1:
            raise ValueError(f"slots and window must be at least 1, not {slots} and {window}")
        H, R, D, half = rotations.shape
        self.rotations, self.ring, self.width = rotations, window - 1, D
        value_width = D if value_width is None else value_width
        device = rotations.device
        rings = (slots, H, R, 2 * half)
        # A key and its value are read together, so they lie together.
        self.entries = zeros(*rings, self.ring, D + value_width, dtype=dtype, device=device)
        self.counts = torch.zeros(rings, dtype=torch.int32, device=device)  # ever stored in each ring
        self.times = zeros(*rings, self.ring, dtype=torch.float64, device=device) if times else None
        self.payloads = zeros(*rings, self.ring, dtype=torch.int64, device=device) if payloads else None
        # Of each click in its slot.
        self.numbers = zeros(*rings, self.ring, dtype=torch.int64, device=device) if payloads else None
        self.clicks = torch.zeros(slots, dtype=torch.int64, device=device)  # ever stored in each slot
        self.used = torch.full((slots,), -1, dtype=torch.int64, device=device)  # by the clock; −1: free
        self.clock = 0

    @property
    def bytes_per_slot(self) -> int:
        """H · R · buckets · ((W − 1) · (width of key and value · bytes of dtype + 8 with times + 16 with payloads) + 4)
        + 16."""
        _, H, R, buckets, ring, width = self.entries.shape
        entry = width * self.entries.element_size() + 8 * (self.times is not None) + 16 * (self.payloads is not None)
        return H * R * buckets * (ring * entry + 4) + 16

    # Attention

    def append(
        self,
        slots: Tensor,
        qk: Tensor,
        v: Tensor,
        *,
        times: Tensor | None = None,
        time_bias: Tensor | None = None,
        payloads: Tensor | None = None,
        store: bool = True,
    ) -> Tensor:
        """One new click of each of N slots: what `lsh_attention` gives at this position, (N, H, D); then stores it.

        slots (N,), distinct; qk (N, H, D), v (N, H, value width), times (N,) float64 seconds, time_bias (H, T) or None,
        payloads (N,). Stored entries are constants: gradients reach qk, v and time_bias of the new clicks.
        `store=False` leaves the memory as it is. Raises ValueError where slots repeat.
        """
        if torch.unique(slots).numel() != slots.numel():
            raise ValueError("slots must be distinct: a click sees the one before it only once that is stored")
        buckets = hash_buckets(qk.unsqueeze(2), self.rotations).squeeze(-1)  # (N, H, R)
        rings = self._rings(slots, buckets)
        pieces = [
            self._attend(rings[i], qk[i], v[i], None if times is None else times[i], time_bias)
            for i in self._pieces(rings)
        ]
        output = torch.cat(pieces)
        if store:
            self._store(slots, buckets, qk, v, times=times, payloads=payloads)
        return output

    def _attend(self, rings: Tensor, qk: Tensor, v: Tensor, times: Tensor | None, time_bias: Tensor | None) -> Tensor:
        """rings (N, H, R), qk and v (N, H, ·) -> (N, H, value width). One softmax over all rounds' entries."""
        N, H, D = qk.shape
        R = rings.shape[2]
        with torch.autocast(qk.device.type, enabled=False):
            v = v.to(qk.dtype)
            entries = self._read(self.entries, rings).flatten(0, 1).to(qk.dtype)  # (N · H, R · ring, D + ·)
            scores = (entries[..., :D] @ qk.reshape(N * H, D, 1) * D**-0.5).view(N, H, R * self.ring)
            if time_bias is not None:
                scores = scores + self._bias(rings, times, time_bias)
            filled = self._filled(rings).flatten(2)  # (N, H, R · ring)
            alone = ~filled.any(-1, keepdim=True)  # then the click sees itself, and its score does not matter
            scores = F.pad(scores, (0, 1)).masked_fill(~torch.cat((filled, alone), -1), -torch.inf)
            weights = scores.softmax(-1, dtype=torch.promote_types(qk.dtype, torch.float32)).to(qk.dtype)
            seen, itself = weights[..., :-1], weights[..., -1:]
            output: Tensor = (seen.reshape(N * H, 1, R * self.ring) @ entries[..., D:]).view(v.shape)
            return output + itself * v

    def extend(self, runs: Runs, qk: Tensor, v: Tensor, *, time_bias: Tensor, pair_bias: Tensor) -> Tensor:
        """Several new clicks of each slot: what `append` gives for one after the other, (H, M, D); then stores those
        that are to be stored. For memories with times and without payloads.

        qk, v (H, M, D) of the rows, time_bias (H, T), pair_bias (P,): the bucket of log time of each pair. Gradients
        reach all new clicks, also through the later ones that see them; stored entries are constants.
        """
        if self.times is None or self.payloads is not None:
            raise ValueError("extend needs a memory that keeps times, and no payloads")
        H, M, D = qk.shape
        R, ring, width = self.counts.shape[2], self.ring, self.entries.shape[-1]
        buckets = hash_buckets(qk.unsqueeze(0), self.rotations)[0].transpose(1, 2)  # (H, M, R)
        line = torch.arange(H * R, device=qk.device).view(H, 1, R)
        rings = (runs.slots[:, None] * (H * R) + line) * self.counts.shape[3] + buckets  # (H, M, R)
        flat = rings.view(-1)
        counts = self.counts.view(-1).index_select(0, flat).view(H, M, R)
        queries, keys = runs.queries[M:], runs.keys[M:]  # the pairs of different rows
        same = buckets.index_select(1, queries) == buckets.index_select(1, keys)  # (H, P - M, R)
        earlier = torch.zeros_like(counts).index_add_(1, queries, same.to(counts.dtype))  # rows of the same ring
        if runs.longest > ring:
            same &= earlier.index_select(1, queries) - earlier.index_select(1, keys) <= ring
        alone = (counts + earlier == 0).all(2) if ring else torch.ones(H, M, dtype=torch.bool, device=qk.device)
        # The next entry goes into the place of the oldest, which is what the one after it does not see any more.
        place = torch.arange(ring, dtype=torch.int32, device=qk.device)
        ages = (place - counts[..., None]).remainder(max(1, ring))  # (H, M, R, ring), 0: the oldest
        seen = (place < counts[..., None]) & (ages >= earlier[..., None])
        times = self.times.view(-1, ring).index_select(0, flat).view(H, M, R * ring)
        head = torch.arange(0, time_bias.numel(), time_bias.shape[1], dtype=torch.int32, device=qk.device)
        unit = normalize(qk, dim=-1)
        sight = Sight(
            entries=self.entries.view(-1, ring, width).index_select(0, flat).view(H, M, R * ring, width).to(qk.dtype),
            entry_bias=log_time_bucket(runs.timestamps[:, None] - times, time_bias.shape[1]).add_(head[:, None, None]),
            entry_seen=seen.view(H, M, R * ring),
            pairs=runs.places,
            pair_bias=pair_bias,
            pair_weights=torch.cat([alone, same.sum(2)], 1),  # in how many rounds; itself where none shows anything
        )
        output = attend(qk * D**-0.5, unit, v, time_bias, sight)
        with torch.no_grad():
            self._store_rows(runs, rings, counts + earlier, torch.cat([unit, v], 2))
        return output

    def _store_rows(self, runs: Runs, rings: Tensor, numbers: Tensor, entries: Tensor) -> None:
        """Stores rows that `extend` was given: rings (H, M, R), entries ever stored there before (H, M, R), entries
        (H, M, width)."""
        rings, numbers = rings.index_select(1, runs.stored), numbers.index_select(1, runs.stored)  # (H, S, R)
        self.counts.view(-1).index_add_(0, rings.view(-1), torch.ones_like(rings, dtype=torch.int32).view(-1))
        self.clicks.index_add_(0, runs.stored_slots, torch.ones_like(runs.stored_slots))
        self._touch(runs.stored_slots)
        if not self.ring or self.times is None:
            return
        place = (rings * self.ring + numbers.remainder(self.ring)).view(-1)  # (H · S · R,)
        entries = entries.index_select(1, runs.stored).to(self.entries.dtype)
        entries = entries[:, :, None].expand(-1, -1, rings.shape[2], -1).flatten(0, 2)
        times = runs.stored_times[:, None].expand(rings.shape).reshape(-1)
        if runs.longest_stored > self.ring:  # some would be overwritten at once
            kept = (numbers >= self.counts.view(-1)[rings] - self.ring).view(-1).nonzero()[:, 0]
            place, entries, times = place[kept], entries[kept], times[kept]
        self.entries.view(-1, self.entries.shape[-1]).index_copy_(0, place, entries)
        self.times.view(-1).index_copy_(0, place, times)

    def _bias(self, rings: Tensor, times: Tensor | None, time_bias: Tensor) -> Tensor:
        """(N, H, R · ring) from time_bias (H, T)."""
        if times is None or self.times is None:
            raise ValueError("time_bias needs the times of the clicks, and a memory that keeps times")
        gaps = times[:, None, None] - self._read(self.times, rings)
        T = time_bias.shape[1]
        head = torch.arange(time_bias.shape[0], device=rings.device)[:, None] * T
        return time_bias.reshape(-1)[log_time_bucket(gaps, T) + head]

    # Storing

    @torch.no_grad()
    def store(
        self,
        slots: Tensor,
        keys: Tensor,
        values: Tensor | None = None,
        *,
        times: Tensor | None = None,
        payloads: Tensor | None = None,
    ) -> None:
        """Stores clicks without attending; slots may repeat: clicks of the same slot are stored in their order.

        slots (N,), keys (N, H, D) of any length, values (N, H, value width), times (N,) float64 seconds, payloads (N,).
        """
        buckets = hash_buckets(keys.unsqueeze(2), self.rotations).squeeze(-1)  # (N, H, R)
        self._store(slots, buckets, keys, values, times=times, payloads=payloads)

    @torch.no_grad()
    def _store(
        self,
        slots: Tensor,
        buckets: Tensor,
        keys: Tensor,
        values: Tensor | None,
        *,
        times: Tensor | None,
        payloads: Tensor | None,
    ) -> None:
        for name, kept, given in (("times", self.times, times), ("payloads", self.payloads, payloads)):
            if kept is not None and given is None:
                raise ValueError(f"this memory keeps {name}: {name} has to be given")
        H, R = buckets.shape[1:]
        rings = self._rings(slots, buckets).reshape(-1)  # (N · H · R,)
        earlier, later = _ranks(rings)  # of the same ring, in this call
        if self.ring:
            kept = (later < self.ring).nonzero().squeeze(-1)  # others would be overwritten at once
            place = rings * self.ring + (self.counts.view(-1)[rings] + earlier) % self.ring
            place, click = place[kept], kept // (H * R)
            entry = normalize(keys, dim=-1) if values is None else torch.cat((normalize(keys, dim=-1), values), -1)
            entry = entry.to(self.entries.dtype).flatten(0, 1)[kept // R]
            self.entries.view(-1, self.entries.shape[-1])[place] = entry
            if self.times is not None and times is not None:
                self.times.view(-1)[place] = times[click]
            if self.payloads is not None and self.numbers is not None and payloads is not None:
                self.payloads.view(-1)[place] = payloads[click]
                self.numbers.view(-1)[place] = (self.clicks[slots] + _ranks(slots)[0])[click]
        self.counts.view(-1).index_add_(0, rings, torch.ones_like(rings, dtype=torch.int32))
        self.clicks.index_add_(0, slots, torch.ones_like(slots))
        self._touch(slots)

    # Recall

    def recall(self, slots: Tensor, queries: Tensor, *, probes: int | None = None) -> Recalled:
        """The entries in the queries' buckets, each once however many rounds found it.

        slots (N,), which may repeat; queries (N, H, D) of any length. Looks into the `probes` nearest buckets of each
        round (Lv et al. 2007, multi-probe LSH), log2(buckets) unless told: then a single round holds 96 % of the
        entries with a cosine of 0.95 and more, which counts where the others' rings have dropped one already.
        Raises ValueError where the memory keeps no payloads.
        """
        if self.payloads is None or self.numbers is None:
            raise ValueError("recall needs a memory with payloads=True")
        if probes is None:
            probes = (self.counts.shape[3] - 1).bit_length()
        buckets = nearest_buckets(queries.unsqueeze(2), self.rotations, probes)[..., 0, :]  # (N, H, R, P)
        rings = self._rings(slots, buckets.flatten(2))  # (N, H, R · P)
        found = self._filled(rings).flatten(2)  # (N, H, E)
        numbers = self._read(self.numbers, rings).masked_fill_(~found, -1)
        numbers, order = numbers.sort(-1)
        found = numbers >= 0
        found[..., 1:] &= numbers[..., 1:] != numbers[..., :-1]
        unit = normalize(queries, dim=-1).unsqueeze(-1)  # (N, H, D, 1)
        keys = (self._read(self.entries, rings[i])[..., : self.width] for i in self._pieces(rings))  # (·, H, E, D)
        cosines = torch.cat(
            [(k.to(unit.dtype) @ unit[i]).squeeze(-1) for k, i in zip(keys, self._pieces(rings), strict=True)]
        )
        return Recalled(
            found=found,
            payloads=self._read(self.payloads, rings).gather(-1, order),
            cosines=cosines.gather(-1, order),
            times=self._read(self.times, rings).gather(-1, order) if self.times is not None else None,
        )

    # Slots

    def allocate(self, count: int) -> tuple[Tensor, Tensor]:
        """Empty slots: free ones, then those least recently stored to -> (slots (count,), which were evicted (count,)).

        Raises ValueError where the memory has fewer slots.
        """
        if count > self.used.numel():
            raise ValueError(f"{count} slots are asked for, the memory has {self.used.numel()}")
        slots = self.used.argsort(stable=True)[:count]
        evicted = self.used[slots] >= 0
        self.clear(slots)
        self._touch(slots)
        return slots, evicted

    def clear(self, slots: Tensor) -> None:
        """Clears the slots, and overwrites their entries with zeros, because a user may have to be forgotten."""
        held = slots[self.clicks[slots] > 0]  # memory that was never written costs nothing, and must not be written now
        for name, tensor in self.state_tensors().items():
            if name != "used":
                tensor[held] = 0

    def free(self, slots: Tensor) -> None:
        """Gives the slots back."""
        self.clear(slots)
        self.used[slots] = -1

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything but the rotations, by name. Not copies: write them before the next click is stored."""
        tensors = {
            "entries": self.entries,
            "counts": self.counts,
            "times": self.times,
            "payloads": self.payloads,
            "numbers": self.numbers,
            "clicks": self.clicks,
            "used": self.used,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state_tensors`. Raises ValueError, changing nothing, where one is missing or of another shape."""
        mine = self.state_tensors()
        for name, tensor in mine.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                found = list(tensors[name].shape) if name in tensors else "nothing"
                raise ValueError(f"memory state: {name} has to be {list(tensor.shape)}, found {found}")
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])
        self.clock = int(self.used.max()) + 1

    def _touch(self, slots: Tensor) -> None:
        self.used[slots] = self.clock
        self.clock += 1

    # Rings by number

    def _rings(self, slots: Tensor, buckets: Tensor) -> Tensor:
        """slots (N,), buckets (N, H, R · P) -> the rings' numbers, (N, H, R · P)."""
        _, H, R, count = self.counts.shape
        line = torch.arange(H * R, device=slots.device).view(1, H, R).repeat_interleave(buckets.shape[2] // R, 2)
        return (slots[:, None, None] * (H * R) + line) * count + buckets

    def _read(self, tensor: Tensor, rings: Tensor) -> Tensor:
        """Whole rings of a (S, H, R, buckets, ring, ...) tensor: (N, H, rings · ring, ...)."""
        N, H, count = rings.shape
        read = tensor.flatten(0, 3).index_select(0, rings.reshape(-1))
        return read.view(N, H, count * self.ring, *tensor.shape[5:])

    def _pieces(self, rings: Tensor) -> list[slice]:
        """Ranges of clicks whose entries fit PIECE_BYTES; one range where there are no clicks."""
        bytes_each = 4 * rings[0:1].numel() * self.ring * self.entries.shape[-1]
        step = max(1, PIECE_BYTES // max(1, bytes_each)) if rings.device.type == "cpu" else len(rings)
        return [slice(start, start + step) for start in range(0, max(1, len(rings)), max(1, step))]

    def _filled(self, rings: Tensor) -> Tensor:
        """Which entries of these rings there are: (N, H, rings, ring) bool."""
        return torch.arange(self.ring, device=rings.device) < self.counts.view(-1)[rings].unsqueeze(-1)


def _ranks(x: Tensor) -> tuple[Tensor, Tensor]:
    """How many equal elements stand before each, and how many after."""
    values, order = x.sort(stable=True)
    index = torch.arange(x.numel(), device=x.device)
    earlier, later = torch.empty_like(index), torch.empty_like(index)
    earlier[order] = index - torch.searchsorted(values, values)
    later[order] = torch.searchsorted(values, values, right=True) - 1 - index
    return earlier, later
