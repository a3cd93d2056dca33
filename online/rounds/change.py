"""What a worker's weights changed since the base, with the clicks that they learned from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from online.rounds.weights import Weights

NARROW = torch.float16  # of changes on the wire; benchmarks/rounds.py compares it with bfloat16
#: Rows of items that moved no number further than this wait until they have: else what rounding left out would go
#: over the wire as rows of its own, for each item that was ever touched.
ROW_CHANGE_MIN = 2.0**-13

Ranges = dict[int, tuple[int, int]]  # by partition: offsets from the first up to, not including, the second


class Tag(NamedTuple):
    """Which change of which worker."""

    worker: str
    epoch: str  # of the worker: another one after each start
    sequence: int  # from 1, one more for each change


@dataclass(frozen=True)
class Change:
    """What training on some clicks changed.

    Attributes:
        tag: which change it is.
        base: the number of the base that it is relative to.
        clicks: how many were trained, at least 1.
        ranges: their offsets, at least one range; none of them is empty.
        weights: dense tensors whole, items' rows that moved, running statistics as they are, growth of counters.
    """

    tag: Tag
    base: int
    clicks: int
    ranges: Ranges
    weights: Weights


def overlap(ranges: Ranges, merged: Mapping[int, int]) -> bool:
    """Returns whether any of these offsets lies before the next offset to be merged of its partition."""
    return any(start < merged.get(partition, 0) for partition, (start, _) in ranges.items())


def hull(ranges: Ranges, partition: int, start: int, stop: int) -> None:
    """Adds offsets to ranges, in place.

    If they do not follow those that are there, what lies in between counts too: then another worker's training on it
    may be dropped, but nothing is merged twice.
    """
    low, high = ranges.get(partition, (start, stop))
    ranges[partition] = min(low, start), max(high, stop)
