"""The ranker: a score for each candidate from its features, trained by softmax over each click's candidates.

Letters: `N` clicks, `C` candidates of all of them (flat), `F` features, `M` networks of `H` hidden units.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 2_048  # candidates scored at a time, so that intermediate results stay in the cache (a tenth faster overall)
SLOWEST = 0.01  # least share of the newest batch in the running mean and variance of the features
DEVIATION_MIN = 0.05  # added to the deviation, so that a feature that hardly varies is not scaled up


class Columns(NamedTuple):
    """Part of a matrix of features: columns from `start` on, of some rows."""

    rows: Tensor | slice  # (R,) int64
    start: int


class Ranker(nn.Module):
    """A linear score with sensible initial weights, plus the mean of networks whose output is 0 at first.

    The networks, of two layers, see each feature minus its running mean, divided by its running deviation (over all
    candidates of all clicks). Each is trained as if it were alone beside the linear score: they differ by their random
    initial weights, and their mean errs less than one of them (an ensemble: Hansen and Salamon 1990).
    """

    def __init__(self, starts: Sequence[float], hidden: int, networks: int = 1) -> None:
        """Creates a ranker.

        Args:
            starts: (F,) initial linear weights.
            hidden: units of each hidden layer.
            networks: number of networks.
        """
        super().__init__()
        bound = hidden**-0.5  # as nn.Linear's
        self.linear = nn.Parameter(torch.tensor(starts))
        self.up = nn.Linear(len(starts), networks * hidden)
        self.mid = nn.Parameter(torch.empty(networks, hidden, hidden).uniform_(-bound, bound))  # (M, from, to)
        self.mid_bias = nn.Parameter(torch.empty(networks, 1, hidden).uniform_(-bound, bound))
        self.out = nn.Parameter(torch.zeros(networks, hidden))
        self.mean: Tensor
        self.variance: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(len(starts)))
        self.register_buffer("variance", torch.ones(len(starts)))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """Scores features (..., F). Returns (...); only differences between candidates of one click have a meaning."""
        if torch.is_grad_enabled() or features.dim() != 2:
            return self.each(features).mean(-1)
        return torch.cat([self.each(piece).mean(-1) for piece in torch.split(features, PIECE)])

    def each(self, features: Tensor, learned: Tensor | None = None, columns: Columns | None = None) -> Tensor:
        """Scores each row by each network alone, beside the linear score.

        Args:
            features: (..., F); they get no gradients.
            learned: (R, E) values that are part of the features and get gradients.
            columns: their place among the features.

        Returns:
            (..., M).
        """
        scale = (self.variance.sqrt() + DEVIATION_MIN).reciprocal()
        rows = features.reshape(-1, features.shape[-1])
        weights = (self.linear, self.up.weight, self.up.bias, self.mid, self.mid_bias, self.out)
        scores: Tensor = _Networks.apply(  # type: ignore[no-untyped-call]
            rows, learned, columns, self.mean, scale, *weights
        )
        return scores.view(*features.shape[:-1], -1)

    def each_by_autograd(self, features: Tensor) -> Tensor:
        """Computes `each` in the plainest form, as the reference for its gradients."""
        M, _, H = self.mid.shape
        scaled = (features - self.mean) / (self.variance.sqrt() + DEVIATION_MIN)
        hidden = F.relu(self.up(scaled)).reshape(-1, M, H).transpose(0, 1)  # (M, ·, H)
        hidden = F.relu(torch.baddbmm(self.mid_bias, hidden, self.mid))
        scores = torch.bmm(hidden, self.out[..., None])[..., 0]  # (M, ·)
        return (features @ self.linear)[..., None] + scores.T.reshape(*features.shape[:-1], M)

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Moves the running mean and variance towards those of features (C, F)."""
        if len(features) < 2:
            return
        self.batches += 1
        share = max(1 / int(self.batches), SLOWEST)
        self.mean += share * (features.mean(0) - self.mean)
        self.variance += share * ((features - self.mean).square().mean(0) - self.variance)


class _Networks(torch.autograd.Function):
    """The networks and the linear score in few operations, with a hand-written backward pass: autograd's overhead took
    as long as the products."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch hands them on one by one
        ctx: Any,
        rows: Tensor,  # (N, F)
        learned: Tensor | None,  # (R, E), part of the rows
        columns: Columns | None,
        mean: Tensor,
        scale: Tensor,
        linear: Tensor,
        up: Tensor,  # (M · H, F)
        up_bias: Tensor,
        mid: Tensor,  # (M, H, H)
        mid_bias: Tensor,  # (M, 1, H)
        out: Tensor,  # (M, H)
    ) -> Tensor:
        M, H, _ = mid.shape
        x = (rows - mean).mul_(scale)  # (N, F)
        h1 = torch.addmm(up_bias, x, up.T).relu_().view(-1, M, H).transpose(0, 1)  # (M, N, H)
        h2 = torch.baddbmm(mid_bias, h1, mid).relu_()  # (M, N, H)
        scores = torch.bmm(h2, out[..., None])[..., 0].T + (rows @ linear)[:, None]  # (N, M)
        ctx.save_for_backward(rows, x, h1, h2, scale, linear, up, mid, out)
        ctx.columns, ctx.width = columns, 0 if learned is None else learned.shape[1]
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, x, h1, h2, scale, linear, up, mid, out = ctx.saved_tensors
        M, H, _ = mid.shape
        whole = gradient.sum(1)  # (N,)
        of_scores = gradient.T.contiguous()[..., None]  # (M, N, 1)
        of_out = torch.bmm(h2.transpose(1, 2), of_scores)[..., 0]  # (M, H)
        of_h2 = _where_positive(of_scores * out[:, None], h2)  # (M, N, H)
        of_mid = torch.bmm(h1.transpose(1, 2), of_h2)  # (M, H, H)
        of_h1 = _where_positive(torch.bmm(of_h2, mid.transpose(1, 2)), h1)  # (M, N, H)
        of_h1 = of_h1.transpose(0, 1).reshape(-1, M * H)  # (N, M · H)
        of_learned = None
        if ctx.needs_input_grad[1]:
            at, start = ctx.columns
            part = slice(start, start + ctx.width)
            of_learned = torch.addmm(whole[at, None] * linear[part], of_h1[at], up[:, part] * scale[part])  # (R, E)
        return (
            None,
            of_learned,
            None,
            None,
            None,
            rows.T @ whole,
            of_h1.T @ x,
            of_h1.sum(0),
            of_mid,
            of_h2.sum(1, keepdim=True),
            of_out,
        )


def _where_positive(gradient: Tensor, output: Tensor) -> Tensor:
    """Returns the gradient through a ReLU, given its output."""
    return torch.ops.aten.threshold_backward(gradient, output, 0)  # type: ignore[no-any-return]
