"""Clicks with their records, and how they are cut into micro-batches."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stream.events import Click, Forget
from stream.source import Record


@dataclass(frozen=True)
class ReceivedClick:
    """A click with its record.

    Attributes:
        click: the click.
        record: its record.
        owned: whether this worker answers for its user.
        learned: whether its weights learn from it; else it is only counted.
    """

    click: Click
    record: Record
    owned: bool = True
    learned: bool = True

    @property
    def offset(self) -> str:
        """`partition:next offset`, as in lists."""
        return f"{self.record.partition}:{self.record.offset + 1}"

    @property
    def clicked_at_ms(self) -> int:
        return int(1000 * self.click.timestamp)


@dataclass(frozen=True)
class ForgetRequest:
    """A request to forget a user, with its record. `owned`: whether this worker erases the user's dead letters."""

    event: Forget
    record: Record
    owned: bool = True


COUNTED_MAX = 8  # clicks of a micro-batch, in times the most that are learned from

#: Clicks that are learned together, or a request that stands by itself.
MicroBatch = list[ReceivedClick] | ForgetRequest


def micro_batches(
    received: Sequence[ReceivedClick | ForgetRequest],
    size_max: int,
    per_user_max: int,
    alone: Callable[[Record], bool] = lambda _: False,
) -> Iterator[MicroBatch]:
    """Cuts clicks into micro-batches, in order; a batch also ends before a request to forget a user.

    Args:
        received: clicks and requests, in order.
        size_max: most clicks of a micro-batch that are learned from; all of its clicks are at most `COUNTED_MAX` times
            as many.
        per_user_max: most clicks of one user in it, because a history has to hold more than one micro-batch.
        alone: whether a record must be a micro-batch of its own.
    """
    batch: list[ReceivedClick] = []
    of_user: Counter[str] = Counter()
    learned = 0  # clicks of the batch
    ends = False  # with the click taken last
    for one in received:
        if isinstance(one, ForgetRequest):
            if batch:
                yield batch
            yield one
            batch, of_user, learned, ends = [], Counter(), 0, False
            continue
        begins = alone(one.record)
        full = learned == size_max or len(batch) == COUNTED_MAX * size_max
        if batch and (begins or ends or full or of_user[one.click.user_id] == per_user_max):
            yield batch
            batch, of_user, learned = [], Counter(), 0
        batch.append(one)
        learned += one.learned
        of_user[one.click.user_id] += 1
        ends = begins
    if batch:
        yield batch
