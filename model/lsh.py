"""LSH attention that can be continued click by click.

Reformer's attention (Kitaev, Kaiser, Levskaya 2020, arXiv 2001.04451, section 2) with one change: a position sees the
`window` − 1 latest earlier positions of its own bucket, wherever chunk borders fall. What it sees never changes
afterwards, so `lsh_attention` (whole sequences) and `LSHMemory` (one click at a time) give the same numbers.

B batch, H heads, R rounds of hashing, L length, D width of a head, T buckets of log time.
"""

import torch
from torch import Tensor

from model.lsh_groups import InBuckets, attend
from model.lsh_hash import hash_buckets, log_time_bucket, random_rotations
from model.lsh_memory import LSHMemory, Recalled

__all__ = ["LSHMemory", "Recalled", "hash_buckets", "log_time_bucket", "lsh_attention", "random_rotations"]


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
    scores q · k / √D. Rounds are joined by their log-sum-exp: one softmax over everything seen, in which an entry found
    by two rounds counts twice. A position sees itself only where no round shows it anything else: its key is its own
    query, so that its score is the largest there is (section 2, "Causal masking": a self-score of −1e5).

    lengths (B,): sequences are left-aligned; positions from lengths[b] on are not seen, and their output is 0.
    times (B, L) float64 seconds and time_bias (H, T): time_bias[h, log_time_bucket(gap)] is added to the score.

    Takes O(R · L · window) time and O(R · L) memory; never L × L. Raises ValueError for a window below 1, or for times
    without time_bias.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if (times is None) != (time_bias is None):
        raise ValueError("times and time_bias are given together or not at all")
    if qk.numel() == 0:
        return torch.zeros_like(v)
    with torch.autocast(qk.device.type, enabled=False):
        return attend(qk, v, time_bias, InBuckets(rotations, window, lengths, times))
