"""Attention within buckets over whole sequences: one sort for all rounds, chunks, and a backward made by hand.

Every (sequence, head, round) is a line of L positions. All lines are sorted by bucket at once and laid end to end, so
what a position may see are its predecessors in this order, as far as they share its bucket. Chunks of C queries attend
to themselves and the W rows before them.

The backward takes ring attention's view of rounds (Liu et al. 2023, arXiv 2310.01889): with an entry's final weight,
its weight within its round times the round's share, each round's part of the gradient is complete by itself, and
joining the rounds needs no gradient of its own. Scores are computed again rather than kept.

B batch, H heads, R rounds of hashing, L length, D width of a head, W window, C queries of a chunk, K = C + W keys of a
chunk, M rows in sorted order (padded to whole chunks), T buckets of log time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from model.lsh_hash import log_time_bucket

# Scores live a piece at a time: on a CPU within the cache, elsewhere large enough to fill the device.
PIECE_BYTES = {"cpu": 1 << 20, "other": 1 << 27}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each position of each line stands in sorted order."""

    window: int
    chunk: int
    source: Tensor  # (W + M,) row (of B · H · L) at each place; the first W and the places after the last are fillers
    empty: Tensor  # (M,) bool, these places belong to no position, or to one that only other rounds show something
    mask_row: Tensor  # (M,) row of `masks` for each place
    masks: Tensor  # (·, K) of 0 and −inf, overlapping rows
    places: Tensor  # (B · H · L, R) place of each row in each round
    padding: Tensor | None  # (B · H · L, 1) bool

    def mask(self, places: slice) -> Tensor:
        """What these places see of their chunks' keys: (places, K) of 0 and −inf."""
        return self.masks.index_select(0, self.mask_row[places])


def sort_by_bucket(buckets: Tensor, *, window: int, bucket_count: int, lengths: Tensor | None) -> Layout:
    """buckets (B, H, R, L) -> Layout."""
    B, H, R, L = buckets.shape
    W, C = window, max(16, window // 2)
    device = buckets.device
    line = torch.arange(B * H * R, device=device).view(B, H, R, 1)
    key = line * bucket_count + buckets
    count, padding = key.numel(), None
    if lengths is not None:
        padded = torch.arange(L, device=device) >= lengths.to(device)[:, None]  # (B, L)
        key = key.masked_fill(padded[:, None, None], B * H * R * bucket_count)  # sorts after everything
        count = H * R * int(lengths.sum())
        padding = padded[:, None].expand(B, H, L).reshape(-1, 1)
    key = key.reshape(-1)
    key = key.int() if B * H * R * bucket_count < 2**31 else key  # sorts faster
    key, place = key.sort(stable=True)  # place: flat index into (B, H, R, L)
    key, place = key[:count], place[:count]

    M = max(1, -(-count // C)) * C
    rows = torch.arange(B * H * L, device=device).view(B * H, 1, L).expand(B * H, R, L).reshape(-1)
    source = rows.new_zeros(W + M)
    source[W : W + count] = rows[place]

    index = torch.arange(M, device=device)
    first = torch.ones(count, dtype=torch.bool, device=device)
    first[1:] = key[1:] != key[:-1]
    start = torch.where(first, index[:count], 0).cummax(0).values
    seen = index.new_zeros(M)  # how many predecessors each place sees
    seen[:count] = (index[:count] - start).clamp_(max=W - 1)
    masks, stride = _masks(W, C, device)
    places = rows.new_zeros(B * H * R * L).scatter_(0, place, index[:count])
    places = places.view(B * H, R, L).transpose(1, 2).reshape(-1, R)
    # A place that sees no predecessor shows its position itself, which counts only if that is so in every round.
    alone = seen == 0
    with_others = ~alone[places].all(1)  # (B · H · L,)
    return Layout(
        window=W,
        chunk=C,
        source=source,
        empty=(index >= count) | (alone & with_others[source[W:]]),
        mask_row=seen * stride + (C - 1 - index % C),
        masks=masks,
        places=places,
        padding=padding,
    )


def _masks(W: int, C: int, device: torch.device) -> tuple[Tensor, int]:
    """Masks of a query: row seen · stride + (C − 1 − c) for the c-th of a chunk that sees `seen` predecessors.

    The mask of the next query is that of this one moved by one, so all of a chunk's are views into one strip.
    """
    stride = 2 * C + W - 1
    distance = W + C - 1 - torch.arange(stride, device=device)  # from key to query, in sorted order
    seen = torch.arange(W, device=device)[:, None]
    visible = torch.where(seen > 0, (distance >= 1) & (distance <= seen), distance == 0)  # (W, stride)
    strips = torch.zeros(W, stride, device=device).masked_fill_(~visible, float("-inf"))
    return strips.as_strided((W * stride - (C + W) + 1, C + W), (1, 1)), stride


@dataclass(frozen=True, slots=True)
class TimeGaps:
    """The buckets of log time between queries and keys."""

    times: Tensor  # (B · H · L,) float64 seconds
    heads: Tensor  # (B · H · L,) int32

    def index(self, places: slice, layout: Layout, buckets: int) -> Tensor:
        """Index into a flattened (H, T) table for each score of a piece: (chunks · C · K,) int32."""
        W, C = layout.window, layout.chunk
        source = layout.source[places.start : places.stop + W]
        times = self.times[source]
        queries = times[W:].view(-1, C, 1)
        keys = times.as_strided((queries.shape[0], 1, C + W), (C, 0, 1))
        offset = (self.heads[source[W:]] * buckets).view(-1, C, 1)
        return log_time_bucket(queries - keys, buckets).add_(offset).view(-1)


def _pieces(layout: Layout, bytes_each: int) -> Iterator[slice]:
    """Ranges of places, whole chunks, whose scores fit a piece."""
    C, M = layout.chunk, layout.mask_row.shape[0]
    piece_bytes = PIECE_BYTES["cpu" if layout.source.device.type == "cpu" else "other"]
    step = C * max(1, piece_bytes // (bytes_each * C * (C + layout.window)))
    for start in range(0, M, step):
        yield slice(start, min(start + step, M))


def _gather(rows: Tensor, layout: Layout, places: slice) -> tuple[Tensor, Tensor, Tensor]:
    """q (chunks, C, D), k and v (chunks, K, D) of a piece, as overlapping views of one gather."""
    W, C, D = layout.window, layout.chunk, rows.shape[1] // 3
    piece = rows.index_select(0, layout.source[places.start : places.stop + W])
    chunks = (piece.shape[0] - W) // C
    q, k, v = (
        piece.as_strided((chunks, size, D), (C * 3 * D, 3 * D, 1), offset)
        for size, offset in ((C, W * 3 * D), (C + W, D), (C + W, 2 * D))
    )
    return q, k, v


@dataclass(frozen=True, slots=True)
class Problem:
    """What both directions need."""

    rows: Tensor  # (B · H · L, 3 D): q, k (scaled) and v
    time_bias: Tensor | None  # (H, T)
    gaps: TimeGaps | None
    layout: Layout

    def index(self, places: slice) -> Tensor | None:
        """Index into the flattened time_bias for each score."""
        if self.gaps is None or self.time_bias is None:
            return None
        return self.gaps.index(places, self.layout, self.time_bias.shape[1])

    def weights(self, q: Tensor, k: Tensor, places: slice, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and their softmax, (chunks, C, K) both."""
        scores = self.layout.mask(places).to(q.dtype).view(q.shape[0], q.shape[1], -1)
        if index is not None and self.time_bias is not None:
            scores += self.time_bias.reshape(-1)[index].view_as(scores)
        scores.baddbmm_(q, k.mT)
        return scores, scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))

    def forward(self, output: Tensor, lse: Tensor) -> None:
        """Fills output (M, D) and lse (M,), each round's by itself."""
        for places in _pieces(self.layout, self.rows.element_size()):
            q, k, v = _gather(self.rows, self.layout, places)
            scores, weights = self.weights(q, k, places, self.index(places))
            lse[places] = (scores.amax(-1) - weights.amax(-1).log_()).view(-1)
            output[places] = torch.bmm(weights.to(v.dtype), v).view(-1, v.shape[-1])

    def backward(self, grad: Tensor, *, share: Tensor, mean: Tensor, grad_bias: Tensor | None) -> Tensor:
        """Returns gradients in sorted order, from the first key on: (M / C + chunks that W rows span, C, 3 D).

        grad (B · H · L, D); share and mean (M / C, C, 1) of each place. Adds to grad_bias (H · T,).
        """
        layout = self.layout
        W, C, D = layout.window, layout.chunk, grad.shape[1]
        sorted_grad = self.rows.new_zeros(len(mean) - (-W // C), C, 3 * D)
        for places in _pieces(layout, self.rows.element_size()):
            first = places.start // C
            chunks = slice(first, places.stop // C)
            q, k, v = _gather(self.rows, layout, places)
            index = self.index(places)
            weights = self.weights(q, k, places, index)[1].mul_(share[chunks])
            grad_output = grad.index_select(0, layout.source[W + places.start : W + places.stop]).view(-1, C, D)
            grad_scores = (torch.bmm(grad_output, v.mT) - mean[chunks]).mul_(weights)
            if grad_bias is not None and index is not None:
                grad_bias.index_add_(0, index, grad_scores.view(-1).to(grad_bias.dtype))
            grad_scores, weights = grad_scores.to(q.dtype), weights.to(q.dtype)
            grad_k, grad_v = torch.bmm(grad_scores.mT, q), torch.bmm(weights.mT, grad_output)
            for start in range(0, C + W, C):  # a chunk's keys end in the next chunks' rows
                block = first + start // C
                theirs = sorted_grad[block : block + len(q), : min(C, C + W - start)]
                theirs[..., D : 2 * D] += grad_k[:, start : start + C]
                theirs[..., 2 * D :] += grad_v[:, start : start + C]
            # The piece's queries stand W rows after its first keys.
            queries = sorted_grad.view(-1, 3 * D)[W + first * C :][: len(q) * C]
            queries[:, :D] = torch.bmm(grad_scores, k).view(-1, D)
        return sorted_grad


class BucketAttention(torch.autograd.Function):
    """rows (B · H · L, 3 D) of q, k (scaled) and v, time_bias (H, T) or None -> (B · H · L, D)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, time_bias: Tensor | None, gaps: TimeGaps | None, layout: Layout) -> Tensor:
        problem = Problem(rows, time_bias, gaps, layout)
        M, D = layout.mask_row.shape[0], rows.shape[1] // 3
        output = rows.new_empty(M, D)
        lse = rows.new_empty(M, dtype=torch.promote_types(rows.dtype, torch.float32))
        problem.forward(output, lse)
        lse.masked_fill_(layout.empty, -torch.inf)
        lse_of_rounds = lse[layout.places]  # (B · H · L, R)
        shares = lse_of_rounds.softmax(-1).to(output.dtype)
        joined = embedding_bag(layout.places, output, mode="sum", per_sample_weights=shares)
        if layout.padding is not None:
            joined.masked_fill_(layout.padding, 0)
        lse_of_all = lse_of_rounds.logsumexp(-1)[layout.source[layout.window :]]
        share = (lse - lse_of_all).exp_().masked_fill_(layout.empty, 0)  # (M,) of its round in each place's output
        ctx.save_for_backward(rows, time_bias, joined, share)
        ctx.gaps, ctx.layout = gaps, layout
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        rows, time_bias, joined, share = ctx.saved_tensors
        layout: Layout = ctx.layout
        problem = Problem(rows, time_bias, ctx.gaps, layout)
        W, C, D = layout.window, layout.chunk, grad.shape[1]
        grad = grad.contiguous()
        share = share.view(-1, C, 1)
        mean = (grad * joined).sum(-1, dtype=share.dtype)[layout.source[W:]].view(-1, C, 1)

        grad_bias = None if time_bias is None else torch.zeros_like(time_bias).view(-1)
        sorted_grad = problem.backward(grad, share=share, mean=mean, grad_bias=grad_bias)
        grad_rows = embedding_bag(layout.places + W, sorted_grad.view(-1, 3 * D), mode="sum")
        if layout.padding is not None:
            grad_rows.masked_fill_(layout.padding, 0)
        return grad_rows, None if time_bias is None or grad_bias is None else grad_bias.view_as(time_bias), None, None
