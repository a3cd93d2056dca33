"""What the learner takes in, a micro-batch at a time, and what it gives.

Letters: `N` clicks of a micro-batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Batch(NamedTuple):
    """N clicks in order of arrival."""

    users: list[str]  # N
    slots: NDArray[np.int64]  # (N,) their histories'
    rows: NDArray[np.int64]  # (N,) of the clicked items, 0 where an item has none
    targets: NDArray[np.int64]  # (N,) the same, 0 where nobody had clicked the item before
    times: NDArray[np.float64]  # (N,) seconds since 1970
    behind: NDArray[np.int64]  # (N,) clicks of the same user that come after
    numbers: NDArray[np.int64]  # (N,) of their moments


@dataclass(frozen=True)
class Ranking:
    """One user's new list, best item first."""

    items: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Learned:
    """What one micro-batch of N clicks gave: its users' new lists, and how well each click was foreseen.

    Ranks count from 0, half of the ties as ahead. What is no candidate, or not in a list, has rank inf.
    """

    rankings: dict[str, Ranking]
    losses: list[float]  # N, in nats
    ranks: NDArray[np.float64]  # (N,) of the clicked item among all candidates at the moment of the click
    candidates: NDArray[np.int64]  # (N,) how many candidates there were
    served_ranks: NDArray[np.float64]  # (N,) of the clicked item in the first SERVED places of the list that stood
