"""The learner's input and output, one micro-batch at a time.

Letters: `N` clicks of a micro-batch, `U` users in it, `K` candidates kept of a click, `D` width of states.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from online.learner.arrays import as_tensor
from online.learner.content.queries import Starts
from online.learner.history import HistorySnapshot, UserHistories, earlier_in_batch
from online.learner.replay_buffer import Replayed
from online.learner.scoring import ScoredCandidates


class ClickBatch(NamedTuple):
    """N clicks in order of arrival: all of a micro-batch, or those that the weights learn from."""

    users: list[str]  # N
    slots: NDArray[np.int64]  # (N,) of the users' histories
    rows: NDArray[np.int64]  # (N,) of the clicked items, 0 where an item has none
    targets: NDArray[np.int64]  # (N,) the same, 0 where the item had no click before
    types: NDArray[np.int64]  # (N,) event types
    values: NDArray[np.float64]  # (N,) NaN: it has none
    times: NDArray[np.float64]  # (N,) seconds since 1970
    active: NDArray[np.float64]  # (N,) active time (online/learner/stream_time.py)
    nth: NDArray[np.int64]  # (N,) clicks of the same user that came earlier in the batch
    behind: NDArray[np.int64]  # (N,) clicks of the same user that come later in it
    previous_at: NDArray[np.float64]  # (N,) seconds, of the same user's click before; NaN: there was none
    numbers: NDArray[np.int64]  # (N,) of their moments
    user_hashes: NDArray[np.int64]  # (N,) of their users, as `stream.user_ids.hash_of_digest` says
    trainable: NDArray[np.bool_]  # (N,) to be learned from: not flagged as abuse
    positions: NDArray[np.int64]  # (N,) in the micro-batch
    lines: NDArray[np.int64]  # (N,) which of its user's clicks at this very time each is, from 1: of a basket's lines

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """By which each click trains the ranker, (N,); None: all by 1.

        The n-th of a user's clicks at one time counts 1/n. The lines of a basket come in no order, and there may be a
        hundred: counted in full they would teach little but what lies beside each other, and the first click of a visit
        would be predicted worse.
        """
        return (1 / self.lines).astype(np.float32) if (self.lines > 1).any() else None

    def only(self, mask: NDArray[np.bool_]) -> "ClickBatch":
        """Returns the clicks for which the mask (N,) holds, as if there were no others."""
        at = np.flatnonzero(mask)
        users, *others = self
        kept: Any = [[users[one] for one in at.tolist()], *(field[at] for field in others)]
        batch = ClickBatch(*kept)
        nth, behind = earlier_in_batch(batch.slots), earlier_in_batch(batch.slots[::-1])[::-1]
        return batch._replace(nth=nth, behind=behind)

    def part(self, part: slice) -> "ClickBatch":
        """Returns the clicks of a slice."""
        fields: Any = [field[part] for field in self]
        return ClickBatch(*fields)


class Impression(NamedTuple):
    """A list that is written within a micro-batch, for a user who clicked before, and viewed later."""

    user_id: str
    preceding: int  # clicks of the micro-batch before it
    written_at: float  # seconds since 1970
    active: float  # active time then, in seconds


@dataclass(frozen=True)
class StepWorth:
    """What n clicks are worth, and what they teach the predictions of types and value."""

    weights: NDArray[np.float32]  # (n,) by which each click trains the ranker: 1 on average, 0: not towards it
    positions: NDArray[np.int64]  # (n,) of the clicked items among all candidates; −1: none, or flagged
    counted: NDArray[np.bool_]  # (n,) trained towards, and not flagged
    labels: NDArray[np.float32]  # (n, T) which of the named types each is
    values: NDArray[np.float32]  # (n,) clipped; NaN: it has none
    mean_value: float  # of clicks that have one


@dataclass(frozen=True)
class TrainedStep:
    """Some clicks of a micro-batch, in order, with all that another model needs to be tested and trained on the same.

    Valid until the next micro-batch is learned.
    """

    part: slice  # of the micro-batch
    scored: ScoredCandidates  # by the live model, without gradients
    positions: NDArray[np.int64]  # (n,) of the clicked items among all candidates; −1: none, or not to be learned from
    replayed: Replayed | None
    losses: NDArray[np.float64]  # (n,) loss of each click before it was learned, in nats
    ranks: NDArray[np.float64]  # (n,) of the clicked items among all candidates
    barred: NDArray[np.int64]  # positions among all candidates on which a click would be flagged as a repeat
    weights: NDArray[np.float32] | None = None  # (n,) by which each click trains the ranker; None: all by 1
    worth: StepWorth | None = None  # None: nothing but the next item is learned


@dataclass(frozen=True)
class TrainedNetwork:
    """The histories behind a micro-batch's clicks, and the targets on which the Reformer was trained."""

    histories: HistorySnapshot | UserHistories  # as they stood just after the micro-batch
    slots: NDArray[np.int64]  # (U,) of the histories
    clicks: NDArray[np.int64]  # (U,) how many clicks each has just made
    order: NDArray[np.int64]  # (N,) where each click stands when they are sorted by user
    guessed: NDArray[np.bool_]  # (N,) which clicks are targets
    targets: Tensor  # their rows
    negatives: tuple[Tensor, Tensor] | None  # sampled rows and their log probabilities; None: it was not trained

    def narrowed(self, had: NDArray[np.bool_]) -> "TrainedNetwork":
        """Returns what is trained of a network whose `targets` are still those of all clicks (N,): the clicks before
        which something is known. `had` (N,): whether it is, user by user."""
        guessed = self.guessed & had[self.order]
        return replace(
            self, guessed=guessed, targets=self.targets[as_tensor(np.flatnonzero(guessed), self.targets.device)]
        )


@dataclass(frozen=True)
class Ranking:
    """One user's new list, best item first."""

    items: list[str]
    scores: list[float]  # shares: how likely each is the next click, if that is a candidate; 6 significant digits
    popular: bool = False  # whether it is filled from the popular items, because no candidate was left


@dataclass(frozen=True)
class BatchResult:
    """The result of one micro-batch, of which N clicks were learned from: lists, and how well each click was predicted.

    Ranks count from 0, with half of the ties counted as higher. An item that is no candidate, or not in the list, has
    rank inf.
    """

    rankings: dict[str, Ranking]
    losses: list[float]  # N, in nats
    ranks: NDArray[np.float64]  # (N,) of the clicked item among all candidates at the moment of the click
    candidates: NDArray[np.int64]  # (N,) how many candidates there were
    served_ranks: NDArray[np.float64]  # (N,) of the clicked item in the first SERVED places of the list served before
    targets: NDArray[np.int64]  # (N,) rows of the clicked items, 0 where they had no click before
    trainable: NDArray[np.bool_]  # (N,) which clicks were learned from; those flagged as abuse do not count for scores
    steps: list[TrainedStep]
    network: TrainedNetwork | None  # None: the Reformer's states are not used
    trained: bool = True  # whether the weights were trained on it
    freed: Sequence[int] = ()  # rows that lost their item
    taken: Sequence[int] = ()  # rows that were handed out
    expired: int = 0  # items that lost their rows, because they had no clicks for long
    starts: Starts | None = None  # items whose vectors started from those of others
    impressions: NDArray[np.int64] | None = None  # (impressions + 1, SERVED) rows of their lists; last, the popular one

    def finite(self) -> bool:
        """Returns whether all scores of the live model are finite."""
        return all(step.scored.finite() for step in self.steps)
