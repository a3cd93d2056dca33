"""Slow and obviously right: what the fast attention has to equal, outputs and gradients.

B batch, H heads, R rounds of hashing, L length, D width of a head.
"""

import torch
from torch import Tensor

from model.lsh import hash_buckets, log_time_bucket


def visible(buckets: list[int], position: int, window: int) -> list[int]:
    """What one round shows a position: the latest `window` − 1 earlier ones of its bucket."""
    earlier = [other for other in range(position) if buckets[other] == buckets[position]]
    return earlier[max(0, len(earlier) - (window - 1)) :]


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
    """The definition, as loops: one softmax over everything that any round shows; a position that is shown nothing sees
    itself. As `model.lsh.lsh_attention`."""
    B, H, L, D = qk.shape
    buckets = hash_buckets(qk, rotations).tolist()  # (B, H, R, L)
    output = torch.zeros_like(v)
    for b in range(B):
        for h in range(H):
            for i in range(L if lengths is None else int(lengths[b])):
                seen = [j for of_round in buckets[b][h] for j in visible(of_round, i, window)] or [i]
                keys = torch.nn.functional.normalize(qk[b, h, seen], dim=-1)
                scores = keys @ qk[b, h, i] / D**0.5
                if times is not None and time_bias is not None:
                    gap = times[b, i] - times[b, seen]
                    scores = scores + time_bias[h, log_time_bucket(gap, time_bias.shape[1])]
                output[b, h, i] = scores.softmax(0) @ v[b, h, seen]
    return output
