"""Attention within buckets, its sequences and heads shared out among threads.

Each thread has operations of its own from hashing to the last gradient, and waits for the others once in each
direction. See model/threads.py for why.

B batch, H heads, R rounds of hashing, L length, D width of a head, T buckets of log time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from model import threads
from model.lsh_chunks import BucketAttention, TimeGaps, sort_by_bucket
from model.lsh_hash import hash_buckets

SCORES_MIN = 1 << 18  # of a thread: with fewer it costs more to share them out


@dataclass(frozen=True, slots=True)
class InBuckets:
    """What is the same for all gradients."""

    rotations: Tensor  # (H, R, D, buckets // 2)
    window: int
    lengths: Tensor | None  # (B,)
    times: Tensor | None  # (B, L) float64 seconds

    def of(self, batch: slice, heads: slice) -> "InBuckets":
        """Returns that of some sequences and heads."""
        lengths, times = (None if x is None else x[batch] for x in (self.lengths, self.times))
        return InBuckets(self.rotations[heads], self.window, lengths, times)

    def attention(self, qk: Tensor, v: Tensor, time_bias: Tensor | None) -> Tensor:
        """qk, v (B, H, L, D), time_bias (H, T) or None -> (B, H, L, D)."""
        B, H, L, D = qk.shape
        buckets = hash_buckets(qk, self.rotations)  # (B, H, R, L)
        bucket_count = 2 * self.rotations.shape[3]
        layout = sort_by_bucket(buckets, window=self.window, bucket_count=bucket_count, lengths=self.lengths)
        if self.lengths is not None:
            padding = torch.arange(L, device=qk.device) >= self.lengths.to(qk.device)[:, None]
            padding = padding[:, None, :, None]  # whatever stands there, even NaN, is not computed with
            qk, v = qk.masked_fill(padding, 0), v.masked_fill(padding, 0)
        k = normalize(qk, dim=-1) * D**-0.5
        rows = torch.cat((qk, k.to(qk.dtype), v.to(qk.dtype)), -1).view(B * H * L, 3 * D)
        gaps = None
        if self.times is not None:
            head = torch.arange(H, dtype=torch.int32, device=qk.device)
            times = self.times[:, None].expand(B, H, L)
            gaps = TimeGaps(times.reshape(-1), head[:, None].expand(B, H, L).reshape(-1))
        output: Tensor = BucketAttention.apply(rows, time_bias, gaps, layout)  # type: ignore[no-untyped-call]
        return output.view(B, H, L, D)


def attend(qk: Tensor, v: Tensor, time_bias: Tensor | None, given: InBuckets) -> Tensor:
    """qk, v (B, H, L, D), time_bias (H, T) or None -> (B, H, L, D), on as many threads as there is work for."""
    groups = _groups(qk, given)
    if len(groups) == 1:
        return given.attention(qk, v, time_bias)
    if not torch.is_grad_enabled():
        qk, v, time_bias = qk.detach(), v.detach(), None if time_bias is None else time_bias.detach()
    output: Tensor = InGroups.apply(qk, v, time_bias, given, groups)  # type: ignore[no-untyped-call]
    return output


def _groups(qk: Tensor, given: InBuckets) -> list[tuple[slice, slice]]:
    """Returns ranges of sequences and of heads, one pair for each thread; one pair where there is little to share."""
    B, H, L, _ = qk.shape
    scores = B * H * L * given.rotations.shape[1] * (given.window + max(16, given.window // 2))
    most = min(threads.count(qk.device), max(1, scores // SCORES_MIN))
    of_heads = min(H, most)
    of_sequences = min(B, most // of_heads)
    return [(batch, heads) for batch in _shared(B, of_sequences) for heads in _shared(H, of_heads)]


def _shared(count: int, parts: int) -> list[slice]:
    """Returns ranges of nearly equal lengths that make up range(count)."""
    return [slice(n * count // parts, (n + 1) * count // parts) for n in range(parts)]


class InGroups(torch.autograd.Function):
    """Attention of each group on a thread of its own, and so its gradients."""

    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes them by position
        ctx: Any, qk: Tensor, v: Tensor, time_bias: Tensor | None, given: InBuckets, groups: list[tuple[slice, slice]]
    ) -> Tensor:
        output = torch.empty_like(v)
        ctx.groups, ctx.graphs = groups, [None] * len(groups)
        ctx.save_for_backward(qk, v, time_bias)
        graph = any(ctx.needs_input_grad)

        def work(n: int) -> None:
            batch, heads = groups[n]
            with torch.set_grad_enabled(graph):
                own_qk, own_v = (x[batch, heads].detach().requires_grad_(graph) for x in (qk, v))
                own_bias = None if time_bias is None else time_bias[heads].detach().requires_grad_(graph)
                found = given.of(batch, heads).attention(own_qk, own_v, own_bias)
            output[batch, heads] = found.detach()
            if graph:
                ctx.graphs[n] = (found, [x for x in (own_qk, own_v, own_bias) if x is not None])

        threads.run(work, range(len(groups)))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, time_bias = ctx.saved_tensors
        grad_qk, grad_v = torch.empty_like(qk), torch.empty_like(v)
        biases = [None if time_bias is None else torch.zeros_like(time_bias) for _ in ctx.groups]

        def work(n: int) -> None:
            batch, heads = ctx.groups[n]
            found, inputs = ctx.graphs[n]
            own = torch.autograd.grad(found, inputs, grad[batch, heads], retain_graph=True)
            grad_qk[batch, heads], grad_v[batch, heads] = own[:2]
            bias = biases[n]
            if bias is not None:
                bias[heads] = own[2]

        threads.run(work, range(len(ctx.groups)))
        grad_bias = None if time_bias is None else torch.stack([x for x in biases if x is not None]).sum(0)
        return grad_qk, grad_v, grad_bias, None, None
