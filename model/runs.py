"""Attention of several new clicks of each user at once: to what is remembered, and to each other.

Every new click stands in a row of its own; the rows of one user stand together, oldest first. What a row may see of
the other rows is a list of pairs that is known before anything is computed.

U users, M rows, S of them stored, P pairs of rows, H heads, d width of a head, A entries of memory that a row looks
at, T buckets of log time.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Runs:
    """New clicks of U different users, M rows in all; what each sees of the others; and which of them are stored.

    S rows are stored: all of a user's but the last few.
    """

    slots: Tensor  # (M,) int64, of a ReformerMemory
    items: Tensor  # (M,) int64, rows of the item table
    event_types: Tensor  # (M,) int64
    timestamps: Tensor  # (M,) float64 seconds since 1970
    nth: Tensor  # (M,) how many rows of the same user stand before it
    queries: Tensor  # (P,) row that sees ...
    keys: Tensor  # (P,) ... this row. First each row itself, in order; then the earlier rows of the same user
    places: Tensor  # (P,) of the pair in a flattened (M, M)
    gaps: Tensor  # (P,) seconds between the two
    longest: int  # rows of one user
    stored: Tensor  # (S,) rows, in order
    stored_slots: Tensor  # (S,)
    stored_times: Tensor  # (S,)
    later: Tensor  # (S,) how many stored rows of the same user stand behind it
    longest_stored: int  # stored rows of one user


def make_runs(
    user_slots: Tensor,
    lengths: NDArray[np.int64],
    clicks: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    *,
    kept_back: int = 0,
) -> Runs:
    """Lists the pairs of rows that see each other.

    Args:
        user_slots: (U,) slots of different users.
        lengths: (U,) how many rows each user has.
        clicks: the rows' items, event types and timestamps (seconds since 1970), (M,) each.
        kept_back: how many of each user's last rows are not stored yet.
    """
    U, M = len(lengths), int(lengths.sum())
    user = np.repeat(np.arange(U), lengths)  # (M,)
    starts = np.cumsum(lengths) - lengths
    row = np.arange(M)
    nth = row - starts[user]
    # The pairs with an earlier row: row i has nth[i] of them, which begin with the user's first row.
    queries = np.repeat(row, nth)
    keys = np.arange(len(queries)) + np.repeat(starts[user] - np.cumsum(nth) + nth, nth)
    queries, keys = np.concatenate([row, queries]), np.concatenate([row, keys])
    behind = lengths[user] - 1 - nth
    stored = np.flatnonzero(behind >= kept_back)
    times = clicks[2]

    def put(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(user_slots.device)

    slots, kept = user_slots.index_select(0, put(user)), put(stored)
    longest = int(lengths.max(initial=0))
    return Runs(
        slots=slots,
        items=put(clicks[0]),
        event_types=put(clicks[1]),
        timestamps=put(times),
        nth=put(nth),
        queries=put(queries),
        keys=put(keys),
        places=put(queries * M + keys),
        gaps=put(times[queries] - times[keys]),
        longest=longest,
        stored=kept,
        stored_slots=slots.index_select(0, kept),
        stored_times=put(times[stored]),
        later=put(behind[stored] - kept_back),
        longest_stored=max(0, longest - kept_back),
    )


@dataclass(frozen=True, slots=True)
class Sight:
    """What each row sees, and how far away in time."""

    entries: Tensor  # (H, M, A, 2 d) keys and values remembered: constants, of the type of the queries
    entry_bias: Tensor  # (H, M, A) int32, place in a flattened (H, T) of each one's bucket of log time
    entry_seen: Tensor  # (M, A) or (H, M, A) bool
    pairs: Tensor  # (P,) place in a flattened (M, M)
    pair_bias: Tensor  # (P,) int32, bucket of log time
    pair_weights: Tensor  # (P,) or (H, P) how often a pair counts, 0: not at all


def attend(q: Tensor, k: Tensor, v: Tensor, time_bias: Tensor, sight: Sight) -> Tensor:
    """One softmax over what each row sees of its memory and of the rows -> (H, M, d).

    q, k, v (H, M, d), scores are q · k as they are; time_bias (H, T) is added. What autograd would do, in fewer steps.
    """
    output: Tensor = _Attention.apply(q, k, v, time_bias, sight)  # type: ignore[no-untyped-call]
    return output


def attend_by_autograd(q: Tensor, k: Tensor, v: Tensor, time_bias: Tensor, sight: Sight) -> Tensor:
    """`attend`, by autograd."""
    return _weigh(q, k, v, time_bias, sight)[0]


def _weigh(q: Tensor, k: Tensor, v: Tensor, time_bias: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """-> the output (H, M, d), and the weights of entries and rows (H, M, A + M)."""
    H, M, d = q.shape
    A = sight.entries.shape[2]
    keys, values = sight.entries.view(H * M, A, 2 * d).chunk(2, -1)
    bias = time_bias.reshape(-1).index_select(0, sight.entry_bias.view(-1)).view(H, M, A)
    # A row times a matrix: on a CPU several times faster than a matrix times a column.
    old = torch.bmm(q.reshape(H * M, 1, d), keys.mT).view(H, M, A)
    old = (old + bias).masked_fill(~sight.entry_seen, -torch.inf)
    pair_bias = time_bias.index_select(1, sight.pair_bias) + sight.pair_weights.log()  # (H, P)
    new = torch.full((H, M * M), -torch.inf, device=q.device, dtype=q.dtype)
    new = new.scatter_(1, sight.pairs.expand(H, -1), pair_bias).view(H, M, M)
    new = torch.baddbmm(new, q, k.mT)
    weights = torch.cat([old, new], 2).softmax(-1)
    seen = (weights[..., :A].reshape(H * M, A, 1) * values).sum(1).view(H, M, d)  # faster than its product on a CPU
    return torch.baddbmm(seen, weights[..., A:], v), weights


class _Attention(torch.autograd.Function):
    """q, k, v (H, M, d), time_bias (H, T) -> (H, M, d)."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, time_bias: Tensor, sight: Sight
    ) -> Tensor:
        output, weights = _weigh(q, k, v, time_bias, sight)
        ctx.save_for_backward(q, k, v, output, weights)
        ctx.sight, ctx.buckets = sight, time_bias.shape[1]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, output, weights = ctx.saved_tensors
        sight: Sight = ctx.sight
        H, M, d = q.shape
        A = sight.entries.shape[2]
        keys, values = sight.entries.view(H * M, A, 2 * d).chunk(2, -1)
        grad = grad.contiguous()
        mean = (grad * output).sum(-1, keepdim=True)  # (H, M, 1)
        of_old = torch.bmm(grad.view(H * M, 1, d), values.mT).view(H, M, A).sub_(mean).mul_(weights[..., :A])
        of_new = torch.bmm(grad, v.mT).sub_(mean).mul_(weights[..., A:])  # (H, M, M)
        grad_q = torch.baddbmm((of_old.view(H * M, A, 1) * keys).sum(1).view(H, M, d), of_new, k)
        grad_k, grad_v = torch.bmm(of_new.mT, q), torch.bmm(weights[..., A:].mT, grad)
        grad_bias = torch.zeros(H * ctx.buckets, device=q.device, dtype=q.dtype)
        grad_bias.index_add_(0, sight.entry_bias.view(-1), of_old.view(-1))
        of_pairs = of_new.view(H, M * M).index_select(1, sight.pairs)  # (H, P)
        grad_bias.view(H, -1).index_add_(1, sight.pair_bias, of_pairs)
        return grad_q, grad_k, grad_v, grad_bias.view(H, -1), None
