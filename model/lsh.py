"""LSH attention whose sequence form can be continued click by click.

Reformer's attention (Kitaev, Kaiser, Levskaya 2020, arXiv 2001.04451, section 2) with one change: a position sees the
`window` − 1 latest earlier positions of its own bucket, wherever chunk borders fall. What it sees never changes
afterwards, so `lsh_attention` (whole sequences) and `LSHMemory` (one click at a time) give the same numbers.

B batch, H heads, R rounds of hashing, L length, D width of a head, W window, T buckets of log time.
"""

import torch
from torch import Tensor


def random_rotations(heads: int, rounds: int, width: int, buckets: int, *, generator: torch.Generator) -> Tensor:
    """Directions to hash by: (H, R, D, buckets // 2) float32, Gaussian, in steps of 1/16.

    The coarse steps make `hash_buckets` exact. `buckets` is even and at least 2.
    """
    if buckets < 2 or buckets % 2:
        raise ValueError(f"buckets must be even and at least 2, not {buckets}")
    gaussian = torch.randn(heads, rounds, width, buckets // 2, generator=generator, device=generator.device)
    return (gaussian * 16).round().clamp(-63, 63) / 16


def hash_buckets(qk: Tensor, rotations: Tensor) -> Tensor:
    """Angular hashing (Andoni et al. 2015, arXiv 1509.02897): the nearest of `buckets` directions ±r.

    qk (B, H, L, D), rotations (H, R, D, buckets // 2) -> (B, H, R, L) int64.

    Equal vectors get equal buckets whatever the batch around them: qk is rounded to integers (of at least 11 bits, its
    length does not matter) so small that sums of products with `random_rotations` are exact in float32 in any order.
    """
    D = qk.shape[-1]
    bits = 24 - 6 - (D - 1).bit_length()
    qk = qk.detach().float()
    largest = qk.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent
    integers = torch.ldexp(qk, bits - exponent).round()  # (B, H, L, D)
    projected = integers.unsqueeze(2) @ rotations.float()  # (B, H, R, L, buckets // 2)
    return torch.cat((projected, -projected), -1).argmax(-1)


def log_time_bucket(gap: Tensor, buckets: int) -> Tensor:
    """Bucket of a gap in seconds: 0 below one second, k for [2^(k−1), 2^k), the last for everything longer. int64."""
    return torch.frexp(gap.clamp(min=0)).exponent.clamp(0, buckets - 1).long()


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    rotations: Tensor,
    *,
    window: int,
    lengths: Tensor | None = None,
    times: Tensor | None = None,
    time_bias: Tensor | None = None,
) -> Tensor:
    """Attention of each position to the `window` − 1 latest earlier positions of its bucket, in every round.

    qk, v (B, H, L, D), rotations (H, R, D, buckets // 2) -> (B, H, L, D). Queries are qk, keys qk of unit length,
    scores q · k / √D. A round in which a position has nothing earlier in its bucket shows it itself. Rounds are joined by
    their log-sum-exp: one softmax over everything seen, an entry found by two rounds counting twice.

    lengths (B,): sequences are left-aligned; positions from lengths[b] on are not seen, and their output is 0.
    times (B, L) float64 seconds and time_bias (H, T): time_bias[h, log_time_bucket(gap)] is added to the score.
    """
    B, H, L, D = qk.shape
    W = window
    buckets = hash_buckets(qk, rotations)  # (B, H, R, L)
    if lengths is not None:
        padding = torch.arange(L, device=qk.device) >= lengths[:, None]  # (B, L)
        qk = qk.masked_fill(padding[:, None, :, None], 0)
        v = v.masked_fill(padding[:, None, :, None], 0)
        buckets = buckets.masked_fill(padding[:, None, None], 2 * rotations.shape[-1])
    R = buckets.shape[2]
    order = torch.sort(buckets, dim=-1, stable=True)
    sorted_bucket, position = order.values, order.indices  # (B, H, R, L)
    chunks = -(-L // W)

    def chunked(x: Tensor, fill: float = 0) -> Tensor:
        """(B, H, R, L, ...) -> (B, H, R, chunks, W, ...)"""
        padded = x.new_full((B, H, R, chunks * W, *x.shape[4:]), fill)
        padded[:, :, :, :L] = x
        return padded.unflatten(3, (chunks, W))

    def with_previous(x: Tensor) -> Tensor:
        """(B, H, R, chunks, W, ...) -> (B, H, R, chunks, 2 W, ...)"""
        previous = torch.cat((torch.full_like(x[:, :, :, :1], 0), x[:, :, :, :-1]), 3)
        return torch.cat((previous, x), 4)

    def sort(x: Tensor) -> Tensor:
        """(B, H, L, D) -> (B, H, R, L, D)"""
        return x.unsqueeze(2).expand(B, H, R, L, D).gather(3, position.unsqueeze(-1).expand(B, H, R, L, D))

    k = torch.nn.functional.normalize(qk, dim=-1) / D**0.5
    q, k, values = chunked(sort(qk)), with_previous(chunked(sort(k))), with_previous(chunked(sort(v)))
    bucket = chunked(sorted_bucket, -1)
    distance = torch.arange(W, device=qk.device)[:, None] + W - torch.arange(2 * W, device=qk.device)  # (W, 2 W)
    bucket_k = torch.cat((torch.full_like(bucket[:, :, :, :1], -2), bucket[:, :, :, :-1]), 3)
    bucket_k = torch.cat((bucket_k, bucket), 4)
    seen = (bucket.unsqueeze(-1) == bucket_k.unsqueeze(-2)) & (distance > 0) & (distance < W)
    seen = seen | (~seen.any(-1, keepdim=True) & (distance == 0))  # (B, H, R, chunks, W, 2 W)
    scores = q @ k.transpose(-1, -2)
    if times is not None and time_bias is not None:
        time = chunked(times[:, None, None].expand(B, H, R, L).gather(3, position))
        gap = log_time_bucket(time.unsqueeze(-1) - with_previous(time).unsqueeze(-2), time_bias.shape[1])
        head = torch.arange(H, device=qk.device).view(H, 1, 1, 1, 1)
        scores = scores + time_bias[head, gap]
    scores = scores.masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)  # (B, H, R, chunks, W)
    output = (scores - lse.unsqueeze(-1)).exp() @ values  # (B, H, R, chunks, W, D)
    back = position.argsort(-1)
    lse = lse.flatten(3)[:, :, :, :L].gather(3, back)
    output = output.flatten(3, 4)[:, :, :, :L].gather(3, back.unsqueeze(-1).expand(B, H, R, L, D))
    output = ((lse - lse.logsumexp(2, keepdim=True)).exp().unsqueeze(-1) * output).sum(2)
    return output if lengths is None else output.masked_fill(padding[:, None, :, None], 0)
