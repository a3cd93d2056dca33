"""What the learner takes in, a micro-batch at a time, and what it gives.

Letters: `N` clicks of a micro-batch, `U` people in it, `K` candidates kept of a click to learn from, `F` features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from online.ranking.scored import Scored


class Batch(NamedTuple):
    """N clicks in order of arrival."""

    users: list[str]  # N
    slots: NDArray[np.int64]  # (N,) their histories'
    rows: NDArray[np.int64]  # (N,) of the clicked items, 0 where an item has none
    targets: NDArray[np.int64]  # (N,) the same, 0 where nobody had clicked the item before
    times: NDArray[np.float64]  # (N,) seconds since 1970
    active: NDArray[np.float64]  # (N,) active time (online/stream_time.py)
    behind: NDArray[np.int64]  # (N,) clicks of the same user that come after
    numbers: NDArray[np.int64]  # (N,) of their moments
    heard: NDArray[np.bool_]  # (N,) to be learned from: not guarded


class Read(NamedTuple):
    """Whose histories say what stood before each click."""

    slots: NDArray[np.int64]  # (U,) of the histories
    clicks: NDArray[np.int64]  # (U,) how many clicks each has just made
    order: NDArray[np.int64]  # (N,) where each click stands when they are sorted by person


class Lesson(NamedTuple):
    """What a micro-batch asked and taught, without gradients: enough to test and teach other weights by the same.

    It is for use before the next micro-batch is learned: `read` names histories, which move.
    """

    scored: Scored  # by the live weights
    places: Tensor  # (N,) of the clicked items among the candidates, −1 where they are not among them, or guarded
    seen: Tensor  # (·, F) features of the candidates for clicks that are not guarded
    again: tuple[Tensor, Tensor] | None  # replayed clicks: features (·, K, F), and which are there (·, K)
    taught: NDArray[np.bool_]  # (N,) which clicks the Reformer has learned to guess
    wanted: Tensor  # their rows
    negatives: tuple[Tensor, Tensor] | None  # what it guessed against; None: it has not learned
    read: Read | None = None  # None: the Reformer's states take no part
    freed: Sequence[int] = ()  # rows that lost their item
    taken: Sequence[int] = ()  # rows that were handed out


class Look(NamedTuple):
    """A list that is written while a micro-batch comes in, for somebody who clicked before, and looked at later."""

    user_id: str
    came: int  # clicks of the micro-batch that had come
    written_at: float  # seconds since 1970
    active: float  # active time then


@dataclass(frozen=True)
class Ranking:
    """One user's new list, best item first."""

    items: list[str]
    scores: list[float]  # shares: how likely each is the next click, if that is a candidate; 6 significant digits
    popular: bool = False  # whether it is what is popular, without what the user has clicked: no candidate was left


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
    targets: NDArray[np.int64]  # (N,) rows of the clicked items, 0 where nobody had clicked them before
    heard: NDArray[np.bool_]  # (N,) which clicks were learned from; the others, guarded, say nothing of the lists
    lesson: Lesson
    trained: bool = True  # whether the weights were trained on it
    expired: int = 0  # items that lost their rows, because they had no clicks for long
    looked: NDArray[np.int64] | None = None  # (looks + 1, SERVED) rows of the lists asked for; last, of anybody's
