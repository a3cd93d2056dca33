"""A simple model of the reward, for the doubly robust estimator: means of cells, drawn towards those of wider ones.

`N` rows, `G` groups (a context at a position), `C` cells (an action in a group that the log shows there), `K` folds.

The mean of an action at a position is drawn towards that of the action in its context, this towards its context's
mean, and that towards the mean of all: (sum + strength × wider mean) / (count + strength). Folds choose the strength.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STRENGTHS = (10.0, 100.0, 1_000.0, 10_000.0)  # in rows


@dataclass(frozen=True)
class Cells:
    """How rows fall into cells, and cells into wider ones.

    `cell`, `group` (N,) number each row's; `of_group`, `of_action`, `of_context` (C,) each cell's group, action in its
    context, and context; `group_context` (G,) each group's context. `target` and `frequency` (C,) are the evaluated
    policy's probability, and how often the log shows the action in its group.
    """

    cell: Ints
    group: Ints
    of_group: Ints
    of_action: Ints
    of_context: Ints
    group_context: Ints
    target: Floats
    frequency: Floats

    @classmethod
    def of(cls, action: Ints, context: Ints, position: Ints, target: Floats) -> "Cells":
        """From rows (N,). Where the target differs within a cell, the cell has its mean."""
        _, context = np.unique(context, return_inverse=True)
        _, first, group = np.unique(context * (position.max() + 1) + position, return_index=True, return_inverse=True)
        group_context = context[first]
        key, cell, count = np.unique(group * (action.max() + 1) + action, return_inverse=True, return_counts=True)
        of_group = key // (action.max() + 1)
        of_context = group_context[of_group]
        _, of_action = np.unique(of_context * (action.max() + 1) + key % (action.max() + 1), return_inverse=True)
        return cls(
            cell=cell,
            group=group,
            of_group=of_group,
            of_action=of_action,
            of_context=of_context,
            group_context=group_context,
            target=np.bincount(cell, target) / count,
            frequency=count / np.bincount(group)[of_group],
        )

    def seen(self) -> Floats:
        """Of each group (G,), the evaluated policy's probability of what the log shows there at all, at most 1."""
        return np.minimum(1.0, np.bincount(self.of_group, self.target, len(self.group_context)))


@dataclass(frozen=True)
class RewardModel:
    """`fitted` (N,): the expected reward of each row's action; `direct` (N,): of the evaluated policy in its group.

    Both come from the folds that the row is not in.
    """

    fitted: Floats
    direct: Floats
    strength: float

    @classmethod
    def fit(cls, reward: Floats, cells: Cells, unit: Ints, *, folds: int, seed: int) -> "RewardModel":
        """Fits by cross-fitting: units that belong together stay in one fold.

        Args:
            reward: of each row (N,).
            cells: where the rows fall.
            unit: numbers of the units (N,).
            folds: how many, at least 2.
            seed: which unit goes into which fold.
        """
        fold = np.random.default_rng(seed).integers(0, folds, int(unit.max()) + 1)[unit]
        fits = [_fit(reward, cells, fold, folds, strength) for strength in _STRENGTHS]
        errors = [float(((reward - by_cell[fold, cells.cell]) ** 2).sum()) for by_cell, _ in fits]
        by_cell, by_context = fits[int(np.argmin(errors))]
        # Actions that the log does not show in a group are expected to earn what its context does.
        groups = len(cells.group_context)
        total: Floats = np.maximum(1.0, np.bincount(cells.of_group, cells.target, groups))
        of_seen = [np.bincount(cells.of_group, one * cells.target, groups) / total for one in by_cell]
        direct: Floats = np.stack(of_seen) + (1 - cells.seen()) * by_context[:, cells.group_context]
        return cls(by_cell[fold, cells.cell], direct[fold, cells.group], _STRENGTHS[int(np.argmin(errors))])


def _fit(reward: Floats, cells: Cells, fold: Ints, folds: int, strength: float) -> tuple[Floats, Floats]:
    """Expected rewards of cells (K, C) and of contexts (K, contexts), each without the rows of its fold."""
    size = len(cells.of_group)
    place = fold * size + cells.cell
    count = np.bincount(place, minlength=folds * size).reshape(folds, size)
    total = np.bincount(place, reward, folds * size).reshape(folds, size)
    count, total = count.sum(axis=0) - count, total.sum(axis=0) - total
    mean = total.sum(axis=1, keepdims=True) / np.maximum(1, count.sum(axis=1, keepdims=True))
    levels: Sequence[Ints] = (cells.of_context, cells.of_action, np.arange(size))
    expected, by_context = np.broadcast_to(mean, (folds, size)), mean
    for level, of in enumerate(levels):
        counts, totals = _sums(count, of), _sums(total, of)
        parents = _first(expected, of)
        means = (totals + strength * parents) / (counts + strength)
        by_context = means if level == 0 else by_context
        expected = means[:, of]
    return expected, by_context


def _sums(values: NDArray[np.generic], of: Ints) -> Floats:
    """Sums (K, wider) of values (K, C)."""
    return np.stack([np.bincount(of, row) for row in np.asarray(values, dtype=np.float64)])


def _first(values: Floats, of: Ints) -> Floats:
    """Of each wider cell the value (K, wider) of its cells (K, C), which share it."""
    _, first = np.unique(of, return_index=True)
    return values[:, first]
