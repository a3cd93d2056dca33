"""Clicks on their way into the learner: where each came from, and cut into micro-batches."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stream.events import Click, Forget
from stream.source import Record


@dataclass(frozen=True)
class ReceivedClick:
    """A click and where it came from."""

    click: Click
    record: Record

    @property
    def offset(self) -> str:
        """`partition:next offset`, as lists carry it."""
        return f"{self.record.partition}:{self.record.offset + 1}"

    @property
    def clicked_at_ms(self) -> int:
        return int(1000 * self.click.timestamp)


@dataclass(frozen=True)
class ForgetRequest:
    """A user is to be forgotten, and where that request stands."""

    event: Forget
    record: Record


#: Clicks that are learned together, or a request that stands by itself.
MicroBatch = list[ReceivedClick] | ForgetRequest


def micro_batches(
    received: Sequence[ReceivedClick | ForgetRequest],
    size_max: int,
    per_user_max: int,
    alone: Callable[[Record], bool] = lambda _: False,
) -> Iterator[MicroBatch]:
    """Cuts clicks into runs, in order, of at most `size_max` clicks and `per_user_max` of one user (a history has to
    remember more than one run brings). `alone`: which must be runs of their own. A run also ends before a request to
    forget a user."""
    batch: list[ReceivedClick] = []
    of_user: Counter[str] = Counter()
    ends = False  # with the click taken last
    for one in received:
        if isinstance(one, ForgetRequest):
            if batch:
                yield batch
            yield one
            batch, of_user, ends = [], Counter(), False
            continue
        begins = alone(one.record)
        if batch and (begins or ends or len(batch) == size_max or of_user[one.click.user_id] == per_user_max):
            yield batch
            batch, of_user = [], Counter()
        batch.append(one)
        of_user[one.click.user_id] += 1
        ends = begins
    if batch:
        yield batch
