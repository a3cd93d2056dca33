"""Records on which our own code fails: they are retried, then learned one by one, then put aside. The stream goes on.

An error within a micro-batch leaves counts that have changed beside weights that have not. So the worker returns to its
checkpoint, as after a crash, and retries the micro-batch, so that a transient error leaves no trace. If it fails again,
its clicks are learned one by one, and a click that fails alone becomes a dead letter. A worker that is restarted has an
empty quarantine, because its code may have changed.
"""

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from online.worker.micro_batches import ForgetRequest, ReceivedClick
from stream.source import Partition, Record

INTERNAL_ERROR = "internal-error"  # a dead letter's reason
ALONE = 2  # failures of a record after which it is learned alone, or put aside if it was alone
_DETAIL_CHARACTERS_MAX = 200

Place = tuple[str, int, int]


class InconsistentStateError(Exception):
    """Our own code failed on a micro-batch: the state in memory is inconsistent; resume from the checkpoint."""


class InternalError(Exception):
    """Our own code failed on too many events in a row; one line that says what to do."""


class Quarantine:
    """The records that failed, kept across returns to the checkpoint; some bytes each."""

    def __init__(self) -> None:
        self._failed: Counter[Place] = Counter()
        self._aside: dict[Place, str] = {}

    @property
    def empty(self) -> bool:
        """Whether no record that failed can be met again."""
        return not self._failed and not self._aside

    def alone(self, record: Record) -> bool:
        """Returns whether a record has to be a micro-batch of its own."""
        return self._failed[place(record)] >= ALONE

    def aside(self, record: Record) -> str | None:
        """Returns why a record is put aside (the traceback's last line); None if it is not."""
        return self._aside.get(place(record))

    def failed(self, records: Sequence[Record], error: Exception) -> bool:
        """Notes that a micro-batch failed. Returns whether its record is put aside from now on."""
        self._failed.update(map(place, records))
        if len(records) > 1 or self._failed[place(records[0])] < ALONE:
            return False
        self._aside[place(records[0])] = last_line(error)
        return True

    @contextmanager
    def watch(
        self, batch: Sequence[ReceivedClick] | ForgetRequest, expected: tuple[type[Exception], ...]
    ) -> Iterator[None]:
        """Wraps the processing of a micro-batch.

        Args:
            batch: the micro-batch.
            expected: errors of the environment, which pass through.

        Raises:
            InconsistentStateError: any other error was raised.
        """
        try:
            yield
        except expected:
            raise
        except Exception as error:
            records = [batch.record] if isinstance(batch, ForgetRequest) else [one.record for one in batch]
            aside = self.failed(records, error)
            then = "it becomes a dead letter" if aside else "they are retried"
            first = "{} partition {} offset {}".format(*place(records[0]))
            raise InconsistentStateError(
                f"internal error on {len(records)} click(s), the first of them at {first}; {then}, and the worker "
                f"resumes from its checkpoint: {last_line(error)}"
            ) from error

    def forget_before(self, next_offsets: Mapping[Partition, int]) -> None:
        """Drops records before the next offsets of a checkpoint, which are not read again."""
        for at in [at for at in self._failed if at[2] < next_offsets.get(Partition(*at[:2]), 0)]:
            del self._failed[at]
            self._aside.pop(at, None)


def place(record: Record) -> Place:
    """Returns topic, partition and offset of a record."""
    return record.topic, record.partition, record.offset


def last_line(error: Exception) -> str:
    """Returns the end of a traceback as one line."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= _DETAIL_CHARACTERS_MAX else text[: _DETAIL_CHARACTERS_MAX - 3] + "..."
