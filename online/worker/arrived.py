"""Clicks on their way into the learner: where each came from, and cut into micro-batches."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stream.events import Click, Forget
from stream.source import Record


@dataclass(frozen=True)
class Arrived:
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
class ToForget:
    """Somebody is to be forgotten, and where that stands."""

    event: Forget
    record: Record


def micro_batches(
    arrived: Sequence[Arrived | ToForget],
    size_max: int,
    per_user_max: int,
    alone: Callable[[Record], bool] = lambda _: False,
) -> Iterator[list[Arrived] | ToForget]:
    """Cuts clicks into runs, in order, of at most `size_max` clicks and `per_user_max` of one user (a history has to
    remember more than one run brings). `alone`: which must be runs of their own. A run also ends where somebody is to
    be forgotten, which stands by itself."""
    batch: list[Arrived] = []
    of_user: Counter[str] = Counter()
    ends = False  # with the click taken last
    for one in arrived:
        if isinstance(one, ToForget):
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
