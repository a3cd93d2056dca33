"""The item table: a vector and a bias for each row of the vocabulary, in tables that grow.

Letters: `V` rows of the table, `D` width, `N` any number of rows.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 4_096  # rows whose first vectors are made at a time: what comes in between stays in the cache


class ItemTable(nn.Module):
    """`vectors` (V, D) and `biases` (V, 1). Row 0 (padding, unknown) is zero and gets no gradient.

    A row starts as a random unit vector, so that different items are nearly orthogonal before anything is learned. It
    is a function of the seed and the row: a restart, and another machine, begin from the same. With `sparse`, gradients
    name the rows that were used, so that their cost follows the batch and not V.
    """

    def __init__(self, rows: int, width: int, *, seed: int = 0, sparse: bool = True) -> None:
        super().__init__()
        self.seed = seed
        self.sparse = sparse
        self.vectors = nn.Parameter(unit_vectors(torch.arange(rows), width, seed=seed))
        self.biases = nn.Parameter(torch.zeros(rows, 1))

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (...) int64 -> their vectors (..., D)."""
        return F.embedding(rows, self.vectors, padding_idx=0, sparse=self.sparse)

    def bias(self, rows: Tensor) -> Tensor:
        """Rows (...) int64 -> their biases (...)."""
        return F.embedding(rows, self.biases, padding_idx=0, sparse=self.sparse)[..., 0]

    @torch.no_grad()
    def grow(self, rows_needed: int) -> bool:
        """Makes room for `rows_needed` rows -> whether it had to. Values stay, new rows are as at the start. The
        parameters stay the same objects, so an optimizer need not be told. All rows are copied: ask for more at a time
        (`model.vocabulary.grown`)."""
        if rows_needed <= len(self):
            return False
        new = unit_vectors(torch.arange(len(self), rows_needed), self.vectors.shape[1], seed=self.seed).to(self.vectors)
        self.vectors.data = torch.cat([self.vectors.data, new])
        self.biases.data = torch.cat([self.biases.data, self.biases.new_zeros(len(new), 1)])
        self.vectors.grad = self.biases.grad = None  # of the old size
        return True

    @torch.no_grad()
    def reset(self, rows: Tensor) -> None:
        """Rows (N,) int64 become as at the start. Those that the table has not grown to yet will be anyway."""
        rows = rows[rows < len(self)]
        self.vectors.data[rows] = unit_vectors(rows, self.vectors.shape[1], seed=self.seed).to(self.vectors)
        self.biases.data[rows] = 0

    @torch.no_grad()
    def start(self, rows: Tensor, like: Tensor, shares: Tensor) -> None:
        """Starts rows (N,) int64 near others (N, P), which count by shares (N, P): their vectors are the sum of their
        own first vectors and the mean of the others', of length 1; their biases are the others' mean."""
        own = unit_vectors(rows, self.vectors.shape[1], seed=self.seed).to(self.vectors)
        mean = (shares[..., None] * self.vectors.data[like]).sum(1)
        self.vectors.data[rows] = F.normalize(own + F.normalize(mean, dim=-1), dim=-1)
        self.biases.data[rows] = (shares[..., None] * self.biases.data[like]).sum(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}vectors")
        if saved is not None:
            self.grow(len(saved))
            self.vectors.data = self.vectors.data[: len(saved)].clone()
            self.biases.data = self.biases.data[: len(saved)].clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


def unit_vectors(rows: Tensor, width: int, *, seed: int) -> Tensor:
    """Rows (N,) int64 -> random unit vectors (N, width) float32 on the CPU, each a function of its row and the seed.

    Row 0 gets the zero vector. Normal numbers (Box and Muller 1958) from a counter hashed by splitmix64.
    """
    if len(rows) > PIECE:
        return torch.cat([unit_vectors(piece, width, seed=seed) for piece in torch.split(rows, PIECE)])
    cells = rows.cpu().numpy()[:, None] * width + np.arange(width)  # (N, width)
    counters = (2 * cells).astype(np.uint64) + np.uint64((seed << 40) % 2**64)
    radius = np.sqrt(-2 * np.log(_uniform(counters)))
    vectors = radius * np.cos(2 * np.pi * _uniform(counters + np.uint64(1)))  # (N, width)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[rows.cpu().numpy() == 0] = 0
    return torch.from_numpy(vectors.astype(np.float32))


def _uniform(counters: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """splitmix64 (Steele, Lea, Flood 2014) of each counter, as a number in (0, 1]."""
    with np.errstate(over="ignore"):
        x = counters * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(11)).astype(np.float64) + 1) / 2**53
