"""Attention of several new clicks of each person at once: to what is remembered, and to each other.

Every new click stands in a row of its own; the rows of one person stand together, oldest first. What a row may see of
the other rows is a list of pairs that is known before anything is computed.

U people, M rows, P pairs of rows, H heads, d width of a head, A entries of memory that a row looks at, T buckets of log
time.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.lsh_hash import log_time_bucket


@dataclass(frozen=True, slots=True)
class Runs:
    """New clicks of U different people, M rows in all, and where each stands."""

    people: Tensor  # (U,) int64 slots of a ReformerMemory, distinct
    slots: Tensor  # (M,) of each row
    items: Tensor  # (M,) int64, rows of the item table
    event_types: Tensor  # (M,) int64
    timestamps: Tensor  # (M,) float64 seconds since 1970
    nth: Tensor  # (M,) how many rows of the same person stand before it
    queries: Tensor  # (P,) row that sees ...
    keys: Tensor  # (P,) ... this row. First each row itself, in order; then the earlier rows of the same person
    longest: int  # rows of one person
    stored: Tensor  # rows that memories are to keep, in order: all of a person's but the last, or all
    last_stored: Tensor  # (·,) the last of them of each person that has one
    nth_stored_from_end: Tensor  # of each of `stored`: how many stored rows of the same person stand behind it

    @property
    def rows(self) -> int:
        return len(self.slots)

    def gaps(self) -> Tensor:
        """Seconds between the two clicks of each pair, (P,)."""
        return self.timestamps[self.queries] - self.timestamps[self.keys]


def make_runs(
    people: Tensor,
    lengths: NDArray[np.int64],
    clicks: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    *,
    kept_back: int = 0,
) -> Runs:
    """People (U,) with so many rows each (U,), at least one; items, event types and timestamps of the rows (M,).

    `kept_back`: how many of each person's last rows are not stored yet.
    """
    U, device = len(lengths), people.device
    person = np.repeat(np.arange(U), lengths)  # (M,)
    M = len(person)
    starts = np.cumsum(lengths) - lengths
    row = np.arange(M)
    nth = row - starts[person]
    queries = np.repeat(row, nth)  # of the pairs with an earlier row
    ends = np.cumsum(nth)
    keys = np.arange(len(queries)) + np.repeat(starts[person] - (ends - nth), nth)
    behind = lengths[person] - 1 - nth  # rows of the same person behind it
    stored = np.flatnonzero(behind >= kept_back)

    def put(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device)

    items, event_types, timestamps = (torch.from_numpy(part).to(device) for part in clicks)
    return Runs(
        people=people,
        slots=people if U == M else people[put(person)],
        items=items,
        event_types=event_types,
        timestamps=timestamps,
        nth=put(nth),
        queries=put(np.concatenate([row, queries])),
        keys=put(np.concatenate([row, keys])),
        longest=int(lengths.max(initial=0)),
        stored=put(stored),
        last_stored=put(np.flatnonzero(behind == kept_back)),
        nth_stored_from_end=put(behind[stored] - kept_back),
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    entries: Tensor,
    *,
    runs: Runs,
    entry_gaps: Tensor,
    entry_seen: Tensor,
    pair_weights: Tensor,
    time_bias: Tensor,
) -> Tensor:
    """One softmax over what each row sees of its memory and of the rows -> (H, M, d).

    q, k, v (H, M, d): scores are q · k as they are. entries (H, M, A, 2 d): keys and values remembered, constants;
    entry_gaps (M, A) or (H, M, A) seconds, entry_seen the same shape, bool. pair_weights (P,) or (H, P): how often a
    pair counts, 0: not at all. time_bias (H, T).
    """
    H, M, d = q.shape
    A, T = entries.shape[2], time_bias.shape[1]
    head = torch.arange(0, H * T, T, device=q.device)
    flat = time_bias.reshape(-1)
    index = log_time_bucket(entry_gaps, T) + head[:, None, None]  # (H, M, A)
    bias = flat.index_select(0, index.view(-1)).view(H, M, A)
    old = torch.bmm(entries[..., :d].reshape(H * M, A, d), q.reshape(H * M, d, 1)).view(H, M, A)
    old = (old + bias).masked_fill(~entry_seen, -torch.inf)
    pair_bias = time_bias.index_select(1, log_time_bucket(runs.gaps(), T)) + pair_weights.log()
    place = runs.queries * M + runs.keys  # (P,)
    new = torch.full((H, M * M), -torch.inf, device=q.device, dtype=q.dtype)
    new = new.scatter(1, place.expand(H, -1), pair_bias.to(q.dtype)).view(H, M, M)
    new = torch.baddbmm(new, q, k.transpose(1, 2))
    weights = torch.cat([old, new], 2).softmax(-1)
    seen = torch.bmm(weights[..., :A].reshape(H * M, 1, A), entries[..., d:].reshape(H * M, A, d)).view(H, M, d)
    return torch.baddbmm(seen, weights[..., A:], v)
