"""Records on which our own code fails: tried once more, then each alone, then put aside. The stream goes on.

An error within a micro-batch leaves counts that moved beside weights that did not. So the worker goes back to its
checkpoint, as after a crash. The second time it meets the micro-batch all is done as it was the first time: what was
chance leaves no trace. Where it fails again, its clicks are learned one by one, and what fails alone goes to the dead
letters. A worker that is started anew has nothing in quarantine: the code may be another.
"""

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from online.worker.micro_batches import ForgetRequest, ReceivedClick
from stream.source import Partition, Record

INTERNAL_ERROR = "internal-error"  # a dead letter's reason
ALONE = 2  # times that a record was among what failed, after which it is taken alone, or put aside if it was alone
_DETAIL_CHARACTERS_MAX = 200

Place = tuple[str, int, int]


class InconsistentStateError(Exception):
    """A bug of ours met a micro-batch: what is in memory is half done, so everything goes on from the checkpoint."""


class InternalError(Exception):
    """One event after the other meets bugs of ours; one line that says what to do."""


class Quarantine:
    """What is known of the records that failed, across returns to the checkpoint; some bytes for each of them."""

    def __init__(self) -> None:
        self._failed: Counter[Place] = Counter()
        self._aside: dict[Place, str] = {}

    @property
    def empty(self) -> bool:
        """Whether no record that failed can be met again."""
        return not self._failed and not self._aside

    def alone(self, record: Record) -> bool:
        """Whether it has to be a micro-batch of its own."""
        return self._failed[place(record)] >= ALONE

    def aside(self, record: Record) -> str | None:
        """Why it is not learned: the traceback's last line. None: it may be."""
        return self._aside.get(place(record))

    def failed(self, records: Sequence[Record], error: Exception) -> bool:
        """A micro-batch failed -> whether a record is put aside from now on."""
        self._failed.update(map(place, records))
        if len(records) > 1 or self._failed[place(records[0])] < ALONE:
            return False
        self._aside[place(records[0])] = last_line(error)
        return True

    @contextmanager
    def watch(
        self, batch: Sequence[ReceivedClick] | ForgetRequest, expected: tuple[type[Exception], ...]
    ) -> Iterator[None]:
        """Around what is done with a micro-batch. `expected`: errors that are no bugs of ours; they pass.

        Raises InconsistentStateError for all others."""
        try:
            yield
        except expected:
            raise
        except Exception as error:
            records = [batch.record] if isinstance(batch, ForgetRequest) else [one.record for one in batch]
            aside = self.failed(records, error)
            then = "it goes to the dead letters" if aside else "they are tried again"
            first = "{} partition {} offset {}".format(*place(records[0]))
            raise InconsistentStateError(
                f"a bug of ours met {len(records)} click(s), the first of them at {first}; {then}, everything goes on "
                f"from the checkpoint: {last_line(error)}"
            ) from error

    def forget_before(self, next_offsets: Mapping[Partition, int]) -> None:
        """A checkpoint says so: what lies before is not met again."""
        for at in [at for at in self._failed if at[2] < next_offsets.get(Partition(*at[:2]), 0)]:
            del self._failed[at]
            self._aside.pop(at, None)


def place(record: Record) -> Place:
    """Where it stands."""
    return record.topic, record.partition, record.offset


def last_line(error: Exception) -> str:
    """What a traceback ends with, on one line."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= _DETAIL_CHARACTERS_MAX else text[: _DETAIL_CHARACTERS_MAX - 3] + "..."
