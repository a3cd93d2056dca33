"""One change out of several: the question of how much each worker's steps count.

Letters: `N` changes, `n` items.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from online.rounds.change import Change
from online.rounds.weights import GROUPS, MEAN, VARIANCE, Weights, group_of


def combine(changes: Sequence[Change], gain: float = 0.0) -> Weights:
    """Combines changes; a row of an item, over those changes that touched it.

    Each change counts with w^(1 − gain), where w is its share of the clicks. So `gain` 0 is the average by clicks, 1 is
    the sum, and with equal clicks the result is the average times N^gain.

    Running means and variances are those of all clicks together, whatever the gain: a sum of changes would overshoot,
    and could make a variance negative. Counters grow by the sum.

    Args:
        changes: N of them, in the order of the topic.
        gain: from 0 to 1.

    Returns:
        The change, float32.
    """
    total = sum(change.clicks for change in changes)
    dense: dict[str, Tensor] = {}
    counters: dict[str, int] = {}
    for change in changes:
        weight = (change.clicks / total) ** (1 - gain)
        for name, values in change.weights.dense.items():
            scaled = values.float() * weight
            dense[name] = dense[name] + scaled if name in dense else scaled
        for name, growth in change.weights.counters.items():
            counters[name] = counters.get(name, 0) + growth
    items: dict[str, tuple[str, ...]] = {}
    rows: dict[str, Tensor] = {}
    for group in GROUPS:
        ids, tensors = _combined_rows([c for c in changes if c.weights.items.get(group)], group, gain)
        if ids:
            items[group] = ids
            rows |= tensors
    return Weights(dense, items, rows, _statistics(changes), counters)


def _combined_rows(changes: Sequence[Change], group: str, gain: float) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Returns the items (n,) of one table that any change touched, and their rows' changes."""
    ids = {item: at for at, item in enumerate(dict.fromkeys(i for c in changes for i in c.weights.items[group]))}
    places = [torch.tensor([ids[item] for item in change.weights.items[group]]) for change in changes]
    clicks = torch.zeros(len(ids))  # of those that touched the row
    for change, at in zip(changes, places, strict=True):
        clicks[at] += change.clicks
    rows: dict[str, Tensor] = {}
    for change, at in zip(changes, places, strict=True):
        weight = (change.clicks / clicks[at]) ** (1 - gain)
        for name, values in change.weights.rows.items():
            if group_of(name) == group:
                if name not in rows:
                    rows[name] = torch.zeros(len(ids), *values.shape[1:])
                rows[name][at] += values.float() * weight.view(-1, *[1] * (values.dim() - 1))
    return tuple(ids), rows


def _statistics(changes: Sequence[Change]) -> dict[str, Tensor]:
    """Returns mean and variance of the features over all changes' clicks."""
    told = [change for change in changes if {MEAN, VARIANCE} <= change.weights.statistics.keys()]
    if not told:
        return {}
    total = sum(change.clicks for change in told)
    shares = [change.clicks / total for change in told]
    means = [change.weights.statistics[MEAN].double() for change in told]
    variances = [change.weights.statistics[VARIANCE].double() for change in told]
    mean = torch.stack([share * mean for share, mean in zip(shares, means, strict=True)]).sum(0)
    variance = torch.stack(
        [
            share * (variance + (each - mean).square())
            for share, variance, each in zip(shares, variances, means, strict=True)
        ]
    ).sum(0)
    return {MEAN: mean.float(), VARIANCE: variance.float()}
