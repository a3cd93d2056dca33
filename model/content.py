"""What content adds to a candidate's score: a linear part, and a small network whose output is 0 at first.

Letters: `N` candidates, `G` columns, `H` hidden units.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
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
        """Scores columns (..., G). Returns (...)."""
        return columns @ self.linear + F.relu(columns @ self.up + self.up_bias) @ self.out

    def first_scores(self, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the linear first score of columns (N, G), (N,)."""
        scores: NDArray[np.float32] = (torch.from_numpy(columns) @ self.first.detach().cpu()).numpy()
        return scores
