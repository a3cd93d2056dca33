"""What is said about weights over the wire: which tensors there are, how each is combined, and a set of values.

Items' rows are named by item id, because rows differ from worker to worker. Letters: `D` width, `n` items.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from model.items import unit_vectors

MEAN, VARIANCE = "ranker.mean", "ranker.variance"
GROUPS = ("network.items", "vectors")  # item tables, by the names of their modules
UNIT = frozenset({"vectors.vectors"})  # whose rows have length 1 in the live weights
FIXED = ".rotations"  # seeded, never trained
SINCE_0_3 = ("groups.", "shown.")  # a base of before may lack these: they keep the values that they begin with
START_BITS = 40
COUNTER_MAX = 2**53


class RoundsError(ValueError):
    """A record that says something impossible; one line."""


class Shape(NamedTuple):
    """Which tensors the weights have."""

    dense: dict[str, tuple[int, ...]]  # that gradients move
    rows: dict[str, tuple[int, ...]]  # of items, without the first dimension
    statistics: dict[str, tuple[int, ...]]  # running mean and variance of the ranker's features
    counters: tuple[str, ...]  # integers that only grow

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Shape":
        """Returns the shape of `RankingModel.tensors()`."""
        shape = cls({}, {}, {}, tuple(name for name, tensor in tensors.items() if not tensor.is_floating_point()))
        for name, tensor in tensors.items():
            if name.endswith(FIXED) or name in shape.counters:
                continue
            if group_of(name) in GROUPS:
                shape.rows[name] = tuple(tensor.shape[1:])
            else:
                (shape.statistics if name in (MEAN, VARIANCE) else shape.dense)[name] = tuple(tensor.shape)
        return shape


@dataclass(frozen=True)
class Weights:
    """Values, or changes of values, by the names of the tensors; what is not named has not changed.

    Attributes:
        dense: tensors of gradients, whole.
        items: ids by item table, each once.
        rows: (n, ·) for each tensor of an item table, in the order of its `items`.
        statistics: float32; always the values themselves, never changes.
        counters: counts, or their growth.
    """

    dense: dict[str, Tensor] = field(default_factory=dict)
    items: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def check(self, shape: Shape, *, whole: bool = False) -> None:
        """Raises RoundsError if these cannot be weights of that shape, are not finite, or lack tensors of a `whole`."""
        lacking = (shape.dense.keys() | shape.statistics.keys()) - (self.dense.keys() | self.statistics.keys())
        lacking = {name for name in lacking if not name.startswith(SINCE_0_3)}
        if whole and (lacking or set(shape.counters) - self.counters.keys()):
            raise RoundsError(f"a whole base lacks {sorted(lacking) or 'counters'}")
        for kind, tensors, expected in (
            ("dense", self.dense, shape.dense),
            ("statistics", self.statistics, shape.statistics),
        ):
            for name, tensor in tensors.items():
                if expected.get(name) != tuple(tensor.shape):
                    raise RoundsError(f"{kind} {name}: shape {tuple(tensor.shape)}, expected {expected.get(name)}")
        self._check_rows(shape)
        if VARIANCE in self.statistics and bool((self.statistics[VARIANCE] < 0).any()):
            raise RoundsError("a variance below 0")
        for name, count in self.counters.items():
            if name not in shape.counters or not 0 <= count <= COUNTER_MAX:
                raise RoundsError(f"counter {name}: {count}, unknown or out of bounds")
        for name, tensor in (self.dense | self.rows | self.statistics).items():
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise RoundsError(f"{name}: not finite")

    def _check_rows(self, shape: Shape) -> None:
        for group, items in self.items.items():
            if group not in GROUPS or len(set(items)) != len(items):
                raise RoundsError(f"items of {group}: an unknown table, or an item twice")
        for name, tensor in self.rows.items():
            wanted = (len(self.items.get(group_of(name), ())), *shape.rows.get(name, (-1,)))
            if wanted != tuple(tensor.shape):
                raise RoundsError(f"rows {name}: shape {tuple(tensor.shape)}, expected {wanted}")


def group_of(name: str) -> str:
    """Returns the item table that a tensor belongs to, if it does: its name without the last part."""
    return name.rpartition(".")[0]


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds to a narrower type; what is too large for it becomes its largest number (and the rest goes next time)."""
    most = torch.finfo(dtype).max
    return tensor.clamp(-most, most).to(dtype)


def start_of(name: str, items: Sequence[str], tail: tuple[int, ...], seed: int) -> Tensor:
    """Returns the first values of items' rows, (n, ·) float32: a function of the item's id.

    Vectors are random unit vectors, biases 0. They are rounded to float16, so that the last digit of a machine's
    logarithm or cosine makes no difference.
    """
    if not name.endswith(".vectors"):
        return torch.zeros(len(items), *tail)
    keys = [int.from_bytes(hashlib.blake2b(item.encode(), digest_size=START_BITS // 8).digest()) for item in items]
    return unit_vectors(torch.tensor(keys, dtype=torch.int64) + 1, tail[0], seed=seed).half().float()
