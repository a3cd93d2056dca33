"""How several processes share each training step, so that together they take the step that one would take alone.

Every process has the same weights and knows the whole batch. It computes the gradients of its own rows of the batch,
as their part of the whole batch's mean; the sums of these over all processes are what one process would have computed.

Letters: `B` rows of a batch, `U` item rows that a batch uses, `D` width.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F


class Shares(Protocol):
    """Which part of a step this process does, and what all of them found together."""

    def take(self, count: int) -> slice:
        """Returns which of the next batch's `count` rows are this process's; there may be none."""

    def part(self, loss: Tensor, mine: int, whole: int) -> Tensor:
        """Turns the mean over `mine` examples into their part of the mean over all `whole` of them."""

    def gather(
        self,
        loss: float,
        dense: Sequence[nn.Parameter],
        tables: Sequence[nn.Parameter] = (),
        used: Sequence[NDArray[np.int64]] = (),
    ) -> float:
        """Replaces each gradient by its sum over all processes, and returns the sum of `loss`.

        Args:
            loss: this process's part, in nats.
            dense: parameters with ordinary gradients.
            tables: item tables, whose gradients name the rows that were used.
            used: arrays of rows; no process used any other. Row 0 has no gradient.
        """

    def agree(self, loss: float, parameters: Sequence[nn.Parameter]) -> float:
        """Replaces each gradient by its mean over all processes, and returns the mean of `loss`: for a step that each
        of them has computed as a whole."""


class Alone:
    """One process, which does everything."""

    def take(self, count: int) -> slice:
        return slice(0, count)

    def part(self, loss: Tensor, mine: int, whole: int) -> Tensor:  # noqa: ARG002 - as the others
        return loss

    def gather(
        self,
        loss: float,
        dense: Sequence[nn.Parameter],  # noqa: ARG002
        tables: Sequence[nn.Parameter] = (),  # noqa: ARG002
        used: Sequence[NDArray[np.int64]] = (),  # noqa: ARG002
    ) -> float:
        return loss

    def agree(self, loss: float, parameters: Sequence[nn.Parameter]) -> float:  # noqa: ARG002
        return loss


class Together:
    """One of `processes` processes of torch's default process group."""

    def __init__(self, number: int, processes: int) -> None:
        """`number`: which of the processes this one is, from 0."""
        self.number, self.processes = number, processes
        self.rows = 0  # of the latest batch, B
        self.read = slice(0, 0)  # of these, the rows that this process computes

    def take(self, count: int) -> slice:
        first, end = (count * (self.number + more) // self.processes for more in (0, 1))
        self.rows, self.read = count, idle_row(mine := slice(first, end))
        return mine

    def part(self, loss: Tensor, mine: int, whole: int) -> Tensor:
        return loss * (mine / whole)

    @torch.no_grad()
    def gather(
        self,
        loss: float,
        dense: Sequence[nn.Parameter],
        tables: Sequence[nn.Parameter] = (),
        used: Sequence[NDArray[np.int64]] = (),
    ) -> float:
        device = dense[0].device
        rows = _rows(used, device)  # (U,)
        there = torch.tensor([float(p.grad is not None) for p in (*dense, *tables)], device=device)
        pieces = [torch.tensor([loss], device=device), there]
        pieces += [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
        pieces += [_of_rows(table, rows) for table in tables]
        flat = torch.cat([piece.reshape(-1).float() for piece in pieces])
        dist.all_reduce(flat)  # one message for everything: it waits for the slowest process only once
        summed = torch.split(flat, [piece.numel() for piece in pieces])
        # A parameter that no process has a gradient of must have none afterwards: Adam would decay it.
        for parameter, count, values in zip((*dense, *tables), summed[1].tolist(), summed[2:], strict=True):
            if not count:
                parameter.grad = None
            elif not any(parameter is table for table in tables):
                parameter.grad = values.view_as(parameter).to(parameter.dtype, copy=True)
            else:
                found = values.view(len(rows), *parameter.shape[1:]).clone()
                parameter.grad = torch.sparse_coo_tensor(
                    rows[None], found, parameter.shape, is_coalesced=True, check_invariants=False
                )
        return float(summed[0])

    @torch.no_grad()
    def agree(self, loss: float, parameters: Sequence[nn.Parameter]) -> float:
        loss = self.gather(loss, parameters)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= self.processes
        return loss / self.processes


def _rows(used: Sequence[NDArray[np.int64]], device: torch.device) -> Tensor:
    """Returns the different rows of all arrays but row 0, rising, (U,)."""
    rows = np.unique(np.concatenate([array.reshape(-1) for array in used])) if used else np.zeros(0, np.int64)
    return torch.from_numpy(rows[rows > 0]).to(device)


def _of_rows(table: nn.Parameter, rows: Tensor) -> Tensor:
    """Returns a table's gradients in these rows, (U, D)."""
    if table.grad is None:
        return table.new_zeros(len(rows), *table.shape[1:])
    if not table.grad.is_sparse:
        return table.grad[rows]
    gradient = table.grad.coalesce()
    values = table.new_zeros(len(rows), *table.shape[1:])
    values[torch.searchsorted(rows, gradient.indices()[0])] = gradient.values().to(values.dtype)
    return values


class SharedDropout(nn.Module):
    """Dropout whose random numbers are drawn for the whole batch, of which this process uses its own rows: so what is
    dropped does not depend on the number of processes."""

    def __init__(self, p: float, shares: Together) -> None:
        super().__init__()
        self.p, self.shares = p, shares

    def forward(self, x: Tensor) -> Tensor:
        """This process's rows of the batch, (B', ...) -> (B', ...)."""
        if not self.training or not self.p:
            return x
        kept = F.dropout(x.new_ones(self.shares.rows, *x.shape[1:]), self.p)  # (B, ...), 0 or 1 / (1 − p)
        return x * kept[self.shares.read]


def share_dropout(network: nn.Module, shares: Together) -> None:
    """Puts `SharedDropout` in the place of every dropout layer."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, SharedDropout(child.p, shares).train(child.training))


def idle_row(rows: slice) -> slice:
    """Returns the rows of a batch to compute: a process without any computes the first, and counts it zero, so that it
    draws the same random numbers as the others."""
    return rows if rows.stop > rows.start else slice(0, 1)
