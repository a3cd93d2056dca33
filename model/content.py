"""What content, and other columns beside the ranker's features, add to a candidate's score: a linear part, and a small
network whose output is 0 at first.

Letters: `N` candidates, `G` columns, `H` hidden units.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HIDDEN = 16


class ContentScore(nn.Module):
    """A score of columns that are of order 1, added to the ranker's; and a linear one, added to the first score."""

    def __init__(self, starts: Sequence[float], *, seed: int = 0) -> None:
        """`starts`: (G,) initial weights of the first score; all else adds 0 until it is trained."""
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        G, bound = len(starts), len(starts) ** -0.5
        self.first = nn.Parameter(torch.tensor(starts))
        self.linear = nn.Parameter(torch.zeros(G))
        self.up = nn.Parameter(torch.empty(G, HIDDEN).uniform_(-bound, bound, generator=random))
        self.up_bias = nn.Parameter(torch.empty(HIDDEN).uniform_(-bound, bound, generator=random))
        self.out = nn.Parameter(torch.zeros(HIDDEN))

    @property
    def trained(self) -> bool:
        """Whether any gradient has moved it."""
        return bool(self.out.detach().any()) or bool(self.linear.detach().any())

    def forward(self, columns: Tensor) -> Tensor:
        """Scores columns (..., G), which get no gradients. Returns (...)."""
        rows = columns.reshape(-1, columns.shape[-1])
        scores: Tensor = _Score.apply(  # type: ignore[no-untyped-call]
            rows, self.linear, self.up, self.up_bias, self.out
        )
        return scores.view(columns.shape[:-1])

    def by_autograd(self, columns: Tensor) -> Tensor:
        """Computes `forward` in the plainest form, as the reference for its gradients."""
        return columns @ self.linear + F.relu(columns @ self.up + self.up_bias) @ self.out


class _Score(torch.autograd.Function):
    """A score in few operations, with a hand-written backward pass: autograd's overhead took most of its time."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch hands them on one by one
        ctx: Any, rows: Tensor, linear: Tensor, up: Tensor, up_bias: Tensor, out: Tensor
    ) -> Tensor:
        hidden = torch.addmm(up_bias, rows, up).relu_()  # (N, H)
        ctx.save_for_backward(rows, hidden, out)
        return torch.mv(rows, linear).addmv_(hidden, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, out = ctx.saved_tensors
        of_hidden: Tensor = torch.ops.aten.threshold_backward(torch.outer(gradient, out), hidden, 0)
        return None, gradient @ rows, rows.T @ of_hidden, of_hidden.sum(0), gradient @ hidden


class AddedScores:
    """The sum of scores whose columns stand beside each other; after them come columns that are scores themselves, and
    then there may be a column of offsets, which count only while the scores are trained."""

    def __init__(self, parts: Mapping[str, ContentScore], *, scores: int = 0, offsets: bool = False) -> None:
        """Joins scores.

        Args:
            parts: by name, in the order of their columns.
            scores: number of columns that are scores themselves.
            offsets: whether the last column holds offsets.
        """
        self.parts, self.has_offsets = parts, offsets
        width = sum(len(part.linear) for part in parts.values())
        self.scores = slice(width, width + scores)  # their columns

    def __call__(self, columns: Tensor) -> Tensor:
        """Scores columns (..., G) of all parts. Returns (...)."""
        scores = [part(columns[..., place]) for part, place in self.known(columns)]
        return sum(scores, columns[..., self.scores].sum(-1))

    def known(self, columns: Tensor) -> Iterator[tuple[ContentScore, slice]]:
        """Yields parts and where their columns are; of several those that know something, so that no other learns."""
        start = 0
        for part in self.parts.values():
            place = slice(start, start := start + len(part.linear))
            if len(self.parts) == 1 or bool(columns[..., place].any()):
                yield part, place

    @property
    def first(self) -> Tensor:
        """The weights of the linear first score, (G,)."""
        own = self.scores.stop - self.scores.start
        parts = [part.first for part in self.parts.values()]
        weights = torch.cat([*parts, torch.ones(own, device=parts[0].device)])
        return nn.functional.pad(weights, (0, 1)) if self.has_offsets else weights

    def with_offsets(self, scores: Tensor, columns: Tensor | None) -> Tensor:
        """Adds the offsets of columns (N, K, G) to scores (N, K, networks); None: there are none."""
        return scores + columns[..., -1:] if self.has_offsets and columns is not None else scores

    def first_scores(self, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the linear first score of columns (N, G), (N,)."""
        scores: NDArray[np.float32] = (torch.from_numpy(columns) @ self.first.detach().cpu()).numpy()
        return scores
