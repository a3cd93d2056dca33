"""Hashing for LSH attention: which bucket a vector falls into, and which bucket of log time a gap.

Both are exact: a click hashed alone gets the bucket it gets amid a whole batch, whatever order sums are taken in.
Otherwise one hash in a million would differ between training and serving.

B batch, H heads, R rounds of hashing, L length, D width of a head, T buckets of log time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model import threads

ROTATION_BITS = 6  # entries are ± 63/16 at most, in steps of 1/16
PIECE_BYTES = 1 << 21  # projections are made and reduced a piece at a time, within the CPU's cache


def random_rotations(heads: int, rounds: int, width: int, buckets: int, *, generator: torch.Generator) -> Tensor:
    """Directions to hash by: (H, R, D, buckets // 2) float32, Gaussian, in steps of 1/16.

    The steps make `hash_buckets` exact. Raises ValueError where `buckets` is odd or less than 2.
    """
    if buckets < 2 or buckets % 2:
        raise ValueError(f"buckets must be even and at least 2, not {buckets}")
    gaussian = torch.randn(heads, rounds, width, buckets // 2, generator=generator, device=generator.device)
    largest = 2**ROTATION_BITS - 1
    return (gaussian * 16).round().clamp(-largest, largest) / 16


def hash_buckets(qk: Tensor, rotations: Tensor) -> Tensor:
    """Angular hashing (Andoni et al. 2015, arXiv 1509.02897): the nearest of the directions r and −r.

    qk (B, H, L, D), rotations (H, R, D, buckets // 2) -> (B, H, R, L) int64 in [0, buckets). Has no gradient.
    """
    B, H, L, _ = qk.shape
    R, half = rotations.shape[1], rotations.shape[3]
    buckets = torch.empty(H, B * L, R, dtype=torch.int64, device=qk.device)

    def choose(piece: slice, numbered: Tensor, number: int) -> None:
        nearest = numbered.abs().amax(-1).view(torch.int32).bitwise_and_(number).long()  # (H, rows, R)
        opposite = numbered.gather(-1, nearest.unsqueeze(-1)).squeeze(-1) < 0
        buckets[:, piece] = nearest + half * opposite

    _project(qk, rotations, choose)
    return buckets.view(H, B, L, R).permute(1, 0, 3, 2)


def nearest_buckets(qk: Tensor, rotations: Tensor, probes: int) -> Tensor:
    """The nearest directions of each round, best first: (B, H, R, L, probes) int64. The first is `hash_buckets`'s."""
    B, H, L, _ = qk.shape
    R = rotations.shape[1]
    buckets = torch.empty(H, B * L, R, probes, dtype=torch.int64, device=qk.device)

    def choose(piece: slice, numbered: Tensor, _number: int) -> None:
        buckets[:, piece] = torch.cat((numbered, -numbered), -1).topk(probes, -1).indices

    _project(qk, rotations, choose)
    return buckets.view(H, B, L, R, probes).permute(1, 0, 3, 2, 4)


def log_time_bucket(gap: Tensor, buckets: int) -> Tensor:
    """Bucket of a gap in seconds: 0 below one second (or negative), k in [2^(k−1), 2^k), the last from there on. int32.

    It is the exponent of the gap as float32.
    """
    return ((gap.float().view(torch.int32) >> 23) - 126).clamp_(0, buckets - 1)


def _project(qk: Tensor, rotations: Tensor, use: Callable[[slice, Tensor, int], None]) -> None:
    """use(piece of the B · L positions, qk · rotations (H, rows, R, buckets // 2), mask of the number's bits) for each.

    The lowest bits of each projection's mantissa are replaced by its number among the directions. So the largest value
    carries its own index (finding it is a plain maximum, four times faster than argmax), and no two are equal.
    """
    B, H, L, D = qk.shape
    _, R, _, half = rotations.shape
    rows = _as_integers(qk.detach()).transpose(0, 1).reshape(H, B * L, D)
    directions = rotations.float().transpose(1, 2).reshape(H, D, R * half)
    number = (1 << (half - 1).bit_length()) - 1
    numbers = torch.arange(half, dtype=torch.int32, device=qk.device)
    step = max(1, PIECE_BYTES // (4 * H * R * half)) if qk.device.type == "cpu" else max(1, B * L)

    def work(part: range) -> None:
        for start in part:
            piece = slice(start, start + step)
            projected = torch.bmm(rows[:, piece], directions).view(H, -1, R, half)
            projected.view(torch.int32).bitwise_and_(~number).bitwise_or_(numbers)
            use(piece, projected, number)

    starts = range(0, B * L, step)
    each = max(1, -(-len(starts) // threads.count(qk.device)))
    threads.run(work, [starts[i : i + each] for i in range(0, len(starts), each)])


def _as_integers(x: Tensor) -> Tensor:
    """Scale each vector by a power of two and round, so that every sum of products with rotations fits 24 bits.

    Float32 (not TF32, which torch uses only if told to) is then exact in any order of summation. 13 bits remain at
    width 32; a vector's length does not matter to its hash.
    """
    bits = 24 - ROTATION_BITS - (x.shape[-1] - 1).bit_length()
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    power_of_two = (largest.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=2.0**-100)
    return (x * (2.0 ** (bits - 1) / power_of_two)).round_()
