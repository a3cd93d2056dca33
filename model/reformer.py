"""The Reformer over click histories: predicts a user's next click from the clicks so far.

Kitaev, Kaiser, Levskaya 2020 (arXiv 2001.04451), for histories of unlimited length: no absolute positions, attention
that is continued click by click, and time as gaps in buckets of log seconds, so that one network serves gaps of minutes
and of months.

B batch, L length, N clicks of N users, D width, H heads, d = D / H, W window, R rounds, T buckets of log time.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.items import ItemTable
from model.lsh import log_time_bucket, lsh_attention, random_rotations
from model.lsh_memory import LSHMemory
from model.memory import LocalMemory, ReformerMemory
from model.reversible import ReversibleStack
from model.runs import Runs, attend


@dataclass(frozen=True)
class ReformerConfig:
    """The shape of a Reformer.

    `layers`: "local" (the last `window` clicks) or "lsh" (the last `window` − 1 clicks of the same hash bucket).
    `feed_forward`: width of its hidden layer, in multiples of `width`; `feed_forward_chunk`: positions computed at a
    time, 0: all. `gap_buckets`: the last bucket has every gap from 2^(gap_buckets − 2) seconds on; 32 reach 34 years.

    Raises:
        ValueError: a field has an impossible value; the message names it.
    """

    layers: tuple[str, ...] = ("local", "lsh")
    width: int = 64
    heads: int = 2
    rounds: int = 2
    buckets: int = 16
    window: int = 16
    feed_forward: int = 2
    feed_forward_chunk: int = 1024
    dropout: float = 0.0
    event_types: int = 16
    gap_buckets: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.layers or set(self.layers) - {"local", "lsh"}:
            raise ValueError(f'layers: {self.layers}, has to name at least one layer, each "local" or "lsh"')
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise ValueError(f"width: {self.width}, has to be a multiple of heads ({self.heads})")
        if self.buckets < 2 or self.buckets % 2:
            raise ValueError(f"buckets: {self.buckets}, has to be even and at least 2")
        if self.window < 2:
            raise ValueError(f"window: {self.window}, has to be at least 2")
        for name in ("rounds", "feed_forward", "event_types", "gap_buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, has to be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout}, has to be in [0, 1)")


class Histories(NamedTuple):
    """Click histories, oldest click first, left-aligned, L >= 1. Entries beyond their lengths are never read."""

    items: Tensor  # (B, L) int64, rows of the item table; 0 is an unknown item
    event_types: Tensor  # (B, L) int64, below config.event_types
    timestamps: Tensor  # (B, L) float64, seconds since 1970
    lengths: Tensor  # (B,) int64


class Clicks(NamedTuple):
    """One new click of each of N different users."""

    slots: Tensor  # (N,) int64, of a ReformerMemory, distinct
    items: Tensor  # (N,) int64, rows of the item table; 0 is an unknown item
    event_types: Tensor  # (N,) int64, below config.event_types
    timestamps: Tensor  # (N,) float64, seconds since 1970


class LocalAttention(nn.Module):
    """Causal attention over the last W clicks, the click itself among them."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.heads, self.window, self.buckets = config.heads, config.window, config.gap_buckets
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.time_bias = nn.Parameter(torch.zeros(config.heads, config.gap_buckets))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, timestamps: Tensor, _lengths: Tensor) -> Tensor:
        """(B, L, D), (B, L), (B,) -> (B, L, D), in chunks of W clicks: each sees its own chunk and the one before."""
        B, L, D = x.shape
        H, W = self.heads, self.window
        chunks = -(-L // W)
        padded = F.pad(self.qkv(self.norm(x)), (0, 0, 0, chunks * W - L))
        q, k, v = padded.view(B, chunks, W, 3, H, D // H).permute(3, 0, 4, 1, 2, 5)  # 3 × (B, H, chunks, W, d)
        time = F.pad(timestamps, (0, chunks * W - L)).view(B, chunks, W)
        query = torch.arange(W, device=x.device)[:, None]
        key = torch.arange(2 * W, device=x.device) - W  # the chunk before begins at -W
        seen = (key <= query) & (key > query - W)  # (W, 2 W)
        seen = seen & ((key >= 0) | (torch.arange(chunks, device=x.device) > 0)[:, None, None])  # (chunks, W, 2 W)
        gaps = time[..., None] - _with_chunk_before(time, 2)[..., None, :]  # (B, chunks, W, 2 W)
        scores = q @ _with_chunk_before(k, 3).transpose(-1, -2) / (D // H) ** 0.5  # (B, H, chunks, W, 2 W)
        weights = self.softmax(scores, gaps, seen)
        y = weights.to(v.dtype) @ _with_chunk_before(v, 3)  # (B, H, chunks, W, 2 W) x (B, H, chunks, 2 W, d)
        y = self.out(y.permute(0, 2, 3, 1, 4).reshape(B, chunks * W, D)[:, :L])
        return self.dropout(y)  # type: ignore[no-any-return]

    def append(self, x: Tensor, memory: LocalMemory, slots: Tensor, timestamps: Tensor, *, store: bool) -> Tensor:
        """(N, D), (N,), (N,) -> (N, D), as `forward` at the last position of a history."""
        N, D = x.shape
        q, k, v = self.qkv(self.norm(x)).view(N, 3, self.heads, D // self.heads).unbind(1)  # 3 × (N, H, d)
        keys, values, times, filled = memory.read(slots)
        keys = torch.cat([keys.to(k.dtype), k[:, :, None]], 2)  # (N, H, W, d)
        values = torch.cat([values.to(v.dtype), v[:, :, None]], 2)
        gaps = timestamps[:, None] - torch.cat([times, timestamps[:, None]], 1)  # (N, W)
        seen = F.pad(filled, (0, 1), value=True)  # (N, W): what is in the ring, and the click itself
        scores = (keys @ q[..., None])[..., 0] / (D // self.heads) ** 0.5  # (N, H, W)
        weights = self.softmax(scores, gaps, seen[:, None])
        y = (weights.to(v.dtype)[:, :, None] @ values).view(N, D)  # (N, H, 1, W) x (N, H, W, d)
        if store:
            memory.write(slots, memory.clicks[slots], k, v, timestamps)
        return self.dropout(self.out(y))  # type: ignore[no-any-return]

    def extend(self, x: Tensor, memory: LocalMemory, runs: Runs, pair_bias: Tensor) -> Tensor:
        """(M, D) -> (M, D), as `append` for one row after the other. pair_bias (P,): buckets of log time."""
        M, D = x.shape
        H, d = self.heads, D // self.heads
        q, k, v = self.qkv(self.norm(x)).float().view(M, 3, H, d).permute(1, 2, 0, 3)  # 3 × (H, M, d)
        with torch.autocast(x.device.type, enabled=False):
            sight = memory.sight(runs, time_buckets=self.buckets, pair_bias=pair_bias)
            y = attend(q * d**-0.5, k, v, self.time_bias, sight)  # (H, M, d)
        memory.write_rows(runs, k, v)
        return self.dropout(self.out(y.transpose(0, 1).reshape(M, D)))  # type: ignore[no-any-return]

    def remember(self, x: Tensor, memory: LocalMemory, slots: Tensor, timestamps: Tensor, lengths: Tensor) -> None:
        """Stores the ends of histories, (B, L, D), (B,), (B, L), (B,), in empty slots."""
        number = torch.arange(x.shape[1], device=x.device)
        end = (number < lengths[:, None]) & (number > lengths[:, None] - self.window)  # the last W - 1
        row, position = end.nonzero(as_tuple=True)  # (M,)
        _, k, v = self.qkv(self.norm(x[row, position])).view(len(row), 3, self.heads, -1).unbind(1)  # (M, H, d)
        memory.write(slots[row], position, k, v, timestamps[row, position])

    def memory(self, slots: int, dtype: torch.dtype) -> LocalMemory:
        weight = self.out.weight
        width = weight.shape[0] // self.heads
        return LocalMemory(
            slots=slots, heads=self.heads, window=self.window, width=width, dtype=dtype, device=weight.device
        )

    def softmax(self, scores: Tensor, gaps: Tensor, seen: Tensor) -> Tensor:
        """scores (B, H, ...), gaps in seconds (B, ...), seen (..., broadcast) -> weights (B, H, ...)."""
        buckets = log_time_bucket(gaps, self.buckets).long()
        per_head = self.time_bias.gather(1, buckets.reshape(1, -1).expand(self.heads, -1))
        bias = per_head.view(self.heads, *buckets.shape).transpose(0, 1)  # (B, H, ...)
        return (scores.float() + bias).masked_fill(~seen, -torch.inf).softmax(-1)


class LSHAttention(nn.Module):
    """Attention over the last W − 1 clicks of the same hash bucket, in each of R rounds; queries are keys."""

    def __init__(self, config: ReformerConfig, rotations: Tensor) -> None:
        super().__init__()
        self.heads, self.window = config.heads, config.window
        self.norm = nn.LayerNorm(config.width)
        self.qk_v = nn.Linear(config.width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.time_bias = nn.Parameter(torch.zeros(config.heads, config.gap_buckets))
        self.dropout = nn.Dropout(config.dropout)
        self.rotations: Tensor
        self.register_buffer("rotations", rotations)  # saved with the model, never drawn again

    def forward(self, x: Tensor, timestamps: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, D), (B, L), (B,) -> (B, L, D)."""
        B, L, D = x.shape
        H = self.heads
        qk, v = self.qk_v(self.norm(x)).view(B, L, 2, H, D // H).permute(2, 0, 3, 1, 4)  # 2 × (B, H, L, d)
        y = lsh_attention(
            qk, v, self.rotations, window=self.window, lengths=lengths, times=timestamps, time_bias=self.time_bias
        )  # (B, H, L, d)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, L, D)))  # type: ignore[no-any-return]

    def append(self, x: Tensor, memory: LSHMemory, slots: Tensor, timestamps: Tensor, *, store: bool) -> Tensor:
        """(N, D), (N,), (N,) -> (N, D), as `forward` at the last position of a history."""
        N, D = x.shape
        qk, v = self.qk_v(self.norm(x)).view(N, 2, self.heads, D // self.heads).unbind(1)  # 2 × (N, H, d)
        with torch.autocast(x.device.type, enabled=False):  # hashing is exact in float32 only
            y = memory.append(slots, qk, v, times=timestamps, time_bias=self.time_bias, store=store)  # (N, H, d)
        return self.dropout(self.out(y.reshape(N, D)))  # type: ignore[no-any-return]

    def extend(self, x: Tensor, memory: LSHMemory, runs: Runs, pair_bias: Tensor) -> Tensor:
        """(M, D) -> (M, D), as `append` for one row after the other. pair_bias (P,): buckets of log time."""
        M, D = x.shape
        H = self.heads
        qk, v = self.qk_v(self.norm(x)).float().view(M, 2, H, D // H).permute(1, 2, 0, 3)  # 2 × (H, M, d)
        with torch.autocast(x.device.type, enabled=False):  # hashing is exact in float32 only
            y = memory.extend(runs, qk, v, time_bias=self.time_bias, pair_bias=pair_bias)  # (H, M, d)
        return self.dropout(self.out(y.transpose(0, 1).reshape(M, D)))  # type: ignore[no-any-return]

    def remember(self, x: Tensor, memory: LSHMemory, slots: Tensor, timestamps: Tensor, lengths: Tensor) -> None:
        """Stores whole histories, (B, L, D), (B,), (B, L), (B,), into empty slots."""
        row, position = (torch.arange(x.shape[1], device=x.device) < lengths[:, None]).nonzero(as_tuple=True)  # (M,)
        H = self.heads
        qk, v = self.qk_v(self.norm(x[row, position])).view(len(row), 2, H, -1).unbind(1)  # 2 × (M, H, d)
        with torch.autocast(x.device.type, enabled=False):
            memory.store(slots[row], qk, v, times=timestamps[row, position])

    def memory(self, slots: int, dtype: torch.dtype) -> LSHMemory:
        return LSHMemory(self.rotations, slots=slots, window=self.window, dtype=dtype)


class FeedForward(nn.Module):
    """A feed-forward layer at each position: (..., D) -> (..., D)."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feed_forward * config.width)
        self.down = nn.Linear(config.feed_forward * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(self.norm(x)))))  # type: ignore[no-any-return]


class Reformer(nn.Module):
    """Embeds clicks (item, event type, gap since the click before), passes them through reversible layers, and returns
    a state after each click; its product with an item's vector is the logit of that item as the next click.

    The initial weights depend on `config.seed` only. `items` has `rows` rows at first; `items.grow` adds more.
    """

    def __init__(self, config: ReformerConfig = ReformerConfig(), *, rows: int = 1024, sparse: bool = True) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.items = ItemTable(rows, config.width, seed=config.seed, sparse=sparse)
            self.event_types = nn.Embedding(config.event_types, config.width)
            self.gaps = nn.Embedding(1 + config.gap_buckets, config.width)  # 0: there is no click before
            branches = [(self._attention(kind), FeedForward(config)) for kind in config.layers]
            self.layers = ReversibleStack(branches, chunk=config.feed_forward_chunk)
            self.norm = nn.LayerNorm(config.width)
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(module.weight, std=0.02)

    def forward(self, histories: Histories, *, recompute: bool = True) -> Tensor:
        """Computes the state after each click.

        Args:
            histories: B histories of length L.
            recompute: if false, use ordinary autograd, which is faster and stores every activation.

        Returns:
            (B, L, D) float32, zero beyond a history's length.
        """
        x, timestamps, padding = self._embedded(histories)
        y1, y2 = self.layers(x, x, timestamps, histories.lengths, recompute=recompute)
        states: Tensor = self.norm((y1 + y2) / 2)
        return states.float().masked_fill(padding[..., None], 0)

    def append(self, memory: ReformerMemory, clicks: Clicks, *, store: bool = True) -> Tensor:
        """Computes each user's state after one new click, as `forward` does at the end of the history.

        The work per click does not grow with the history. Memories are constants: gradients reach the weights through
        the new positions only.

        Args:
            memory: of the users.
            clicks: one new click of each of N users.
            store: if false, leave the memory as it is, to look ahead or to train on a click that is stored later.

        Returns:
            (N, D) float32.
        """
        slots, items, event_types, timestamps = clicks
        gaps = 1 + log_time_bucket(timestamps - memory.timestamps[slots], self.config.gap_buckets)
        x = self.embed(items, event_types, gaps.masked_fill(memory.clicks[slots] == 0, 0))  # (N, D)
        y1 = y2 = x.double()  # as in ReversibleStack
        for f, g, layer in zip(self.layers.f, self.layers.g, memory.layers, strict=True):
            y1 = y1 + f.append(y2.float(), layer, slots, timestamps, store=store)  # type: ignore[operator]
            y2 = y2 + g(y1.float())
        if store:
            memory.stamp(slots, timestamps, memory.clicks[slots] + 1)
        states: Tensor = self.norm((y1.float() + y2.float()) / 2)
        return states.float()

    def extend(self, memory: ReformerMemory, runs: Runs) -> Tensor:
        """Computes the state after each of several new clicks of each user, as `append` does for one after the other.

        Memories are constants; gradients reach all new clicks.

        Args:
            memory: of the users.
            runs: M new clicks, and which of them are stored.

        Returns:
            (M, D) float32.
        """
        T = self.config.gap_buckets
        clicks = memory.clicks.index_select(0, runs.slots) + runs.nth  # (M,) before it
        before = torch.where(runs.nth == 0, memory.timestamps.index_select(0, runs.slots), runs.timestamps.roll(1))
        gaps = 1 + log_time_bucket(runs.timestamps - before, T)
        y1 = y2 = self.embed(runs.items, runs.event_types, gaps.masked_fill(clicks == 0, 0))  # (M, D)
        pair_bias = log_time_bucket(runs.gaps, T)
        for f, g, layer in zip(self.layers.f, self.layers.g, memory.layers, strict=True):
            y1 = y1 + f.extend(y2, layer, runs, pair_bias)  # type: ignore[operator]
            y2 = y2 + g(y1)
        last = runs.stored[runs.later == 0]
        memory.stamp(runs.slots[last], runs.timestamps[last], clicks[last] + 1)
        states: Tensor = self.norm((y1 + y2) / 2)
        return states.float()

    @torch.no_grad()
    def remember(self, memory: ReformerMemory, slots: Tensor, histories: Histories) -> None:
        """Stores whole histories in slots (B,), replacing their content, by one pass of `forward`; `append` continues
        from their ends."""
        memory.clear(slots)
        x, timestamps, _ = self._embedded(histories)
        y1 = y2 = x.double()
        for f, g, layer in zip(self.layers.f, self.layers.g, memory.layers, strict=True):
            seen = y2.float()
            f.remember(seen, layer, slots, timestamps, histories.lengths)  # type: ignore[operator]
            y1 = y1 + f(seen, timestamps, histories.lengths)
            y2 = y2 + g(y1.float())
        latest = timestamps.gather(1, (histories.lengths - 1).clamp(min=0)[:, None])[:, 0]
        memory.stamp(slots, latest, histories.lengths)

    def memory(self, users_held: int, *, dtype: torch.dtype = torch.float32) -> ReformerMemory:
        """Returns an empty memory for so many users, with keys and values in `dtype`."""
        layers = [f.memory(users_held, dtype) for f in self.layers.f]  # type: ignore[operator]
        return ReformerMemory(layers, slots=users_held, device=self.items.vectors.device)

    def embed(self, items: Tensor, event_types: Tensor, gaps: Tensor) -> Tensor:
        """Embeds rows, event types and gap buckets (0: no click before), each (...) -> (..., D) float32."""
        x: Tensor = self.items(items) + self.event_types(event_types) + self.gaps(gaps)
        return x

    def scores(self, states: Tensor, rows: Tensor) -> Tensor:
        """Computes logits (..., C) of states (..., D), for rows (..., C) of each state, or (C,) for all of them."""
        vectors: Tensor = self.items(rows)  # (..., C, D)
        products = states @ vectors.T if rows.dim() == 1 else (vectors @ states[..., None])[..., 0]  # (..., C)
        return products + self.items.bias(rows)

    def _embedded(self, histories: Histories) -> tuple[Tensor, Tensor, Tensor]:
        """Returns embedded clicks (B, L, D), timestamps (B, L), and which are padding (B, L); padding is zero."""
        items, event_types, timestamps, lengths = histories
        padding = torch.arange(items.shape[1], device=items.device) >= lengths[:, None]  # (B, L)
        items, event_types = items.masked_fill(padding, 0), event_types.masked_fill(padding, 0)
        timestamps = timestamps.masked_fill(padding, 0)
        gaps = 1 + log_time_bucket(timestamps.diff(dim=1), self.config.gap_buckets)  # (B, L - 1)
        return self.embed(items, event_types, F.pad(gaps, (1, 0))), timestamps, padding

    def _attention(self, kind: str) -> nn.Module:
        if kind == "local":
            return LocalAttention(self.config)
        c, generator = self.config, torch.default_generator
        return LSHAttention(c, random_rotations(c.heads, c.rounds, c.width // c.heads, c.buckets, generator=generator))


def _with_chunk_before(x: Tensor, dim: int) -> Tensor:
    """(..., chunks, W, ...) with W at `dim` -> (..., chunks, 2 W, ...): zeros stand before the first chunk."""
    before = torch.cat([torch.zeros_like(x.narrow(dim - 1, 0, 1)), x.narrow(dim - 1, 0, x.shape[dim - 1] - 1)], dim - 1)
    return torch.cat([before, x], dim)
