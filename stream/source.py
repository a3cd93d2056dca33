"""The protocols for reading and writing records, which both Kafka and the embedded log implement.

A position is always the *next* offset to read: after record 41 it is 42. Committing 41 there reads record 41 twice.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)


class SourceError(Exception):
    """The broker or the embedded log refuses a request; one line that names it and says what to do."""


class UnavailableError(SourceError):
    """The request may succeed later: the broker does not answer, or the topic does not exist yet."""


class TooLargeError(SourceError):
    """A record is larger than its topic accepts; smaller ones can still be sent."""


class Partition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Messages of the broker that cannot be decoded: offsets `first` to `last`, with `records` messages as far as is
    known."""

    first: int
    last: int
    records: int
    why: str

    def __str__(self) -> str:
        where = f"offset {self.last}" if self.first == self.last else f"offsets {self.first} to {self.last}"
        return f"{where}, {self.records:,} message{'' if self.records == 1 else 's'}: {self.why}"


@dataclass(frozen=True, slots=True)
class Record:
    """One message. `timestamp_ms` is when it was appended or created, in milliseconds since 1970; -1: not known.

    `undecodable`: the record stands for messages that cannot be decoded, at the last of their offsets, without key and
    value.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    undecodable: Undecodable | None = None


#: Called with the assigned partitions; returns the positions to start from (missing ones: the earliest retained).
OnAssigned = Callable[[Sequence[Partition]], Mapping[Partition, int]]
OnRevoked = Callable[[Sequence[Partition]], None]

#: Called with partitions that a worker has come to own, and the group's committed offset of each; None: it has none.
OnGained = Callable[[Mapping[Partition, int | None]], None]


@dataclass(frozen=True, slots=True)
class OffsetOutOfRange:
    """A position that the partition does not retain; it retains `earliest` up to, not including, `end`."""

    partition: Partition
    wanted: int
    earliest: int
    end: int

    @property
    def lost(self) -> int:
        """How many records were deleted before they were read; 0 if the position is beyond the end."""
        return max(0, self.earliest - self.wanted)

    def __str__(self) -> str:
        where = f"{self.partition.topic} partition {self.partition.partition}: offset {self.wanted}"
        if self.lost:
            return f"{where} is no longer retained, {self.lost:,} records up to {self.earliest} are lost"
        return f"{where} lies beyond the end ({self.end}): the topic was created again, or lost records"


#: Called with a position that is not retained, before reading goes on from the earliest one. It may raise to stop.
OnGone = Callable[[OffsetOutOfRange], None]


def warn_of(gone: OffsetOutOfRange) -> None:
    """Logs that a position is not retained."""
    log.warning("%s; reading goes on from offset %d", gone, gone.earliest)


def next_offset(partition: Partition, wanted: int | None, earliest: int, end: int, on_gone: OnGone = warn_of) -> int:
    """Returns the offset at which reading goes on.

    A position that is not retained, or lies beyond the end (the topic was created again), is replaced by the earliest
    one, as Kafka's `auto_offset_reset=earliest` does, but never silently.

    Args:
        partition: to be read.
        wanted: the next offset; None: from the start.
        earliest: first offset that is retained.
        end: next offset to be written.
        on_gone: called if the wanted offset is not retained.
    """
    if wanted is None:
        return earliest
    if not earliest <= wanted <= end:
        on_gone(OffsetOutOfRange(partition, wanted, earliest, end))
        return earliest
    return wanted


class Source(Protocol):
    """Reads its assigned partitions, in offset order within each. For one thread at a time.

    Most sources own what they read. A shared one reads every partition, and owns some of them: each is owned by one
    worker of the group, which trains on its clicks and answers for them.
    """

    def start(
        self,
        *,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        on_gone: OnGone = warn_of,
        on_gained: OnGained | None = None,
        on_lost: OnRevoked | None = None,
    ) -> None:
        """Starts being assigned partitions. The callbacks run inside `start` or `poll`, in the caller's thread.

        Args:
            on_assigned: called with new partitions; it decides where they start, and committed offsets do not matter.
            on_revoked: called with partitions that are about to be owned by another worker; they are owned as long as
                it runs, so their offsets may still be committed, if the broker allows it. Unless the source is shared
                they are read no longer.
            on_gone: called with each position that is not retained; errors that it raises pass through.
            on_gained: of a shared source: called with partitions that are owned from now on.
            on_lost: of a shared source: called with partitions that another worker may have owned for a while, since
                the group took this one for dead. Nothing of them may be committed.
        """

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """Returns at most `max_records` records, after waiting up to `timeout_s` seconds for the first one."""

    def positions(self) -> dict[Partition, int]:
        """Returns the next offset to read, of each assigned partition."""

    def owned(self) -> frozenset[Partition]:
        """Returns the partitions whose clicks this worker trains on and answers for."""

    def leadership(self) -> int | None:
        """Returns the epoch in which this worker leads its group; None: it does not lead.

        A later leader has a higher epoch, so what a worker writes that does not know yet that it was replaced can be
        told from what its successor writes. A worker that shares with no other leads itself, at 0.
        """

    def seek(self, partition: Partition, offset: int) -> None:
        """Makes `offset` the next one to read. Raises SourceError for a partition that is not assigned."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Stores the group's positions (next offsets to read), for operators and tools that watch the lag. Those of
        partitions that are not owned are left out.

        Reading does not depend on them. So a failure (the broker is unavailable, the group rebalances) is logged, not
        raised, and the next commit makes up for it.
        """

    def committed(self) -> dict[Partition, int]:
        """Returns the group's stored positions, of the assigned partitions that have one."""

    def ends(self) -> dict[Partition, int]:
        """Returns the next offset to be written, of each assigned partition: lag = ends - positions."""

    def trouble(self) -> str | None:
        """Returns why records cannot be read, in one line, as far as `ends` and `poll` know; None if they can."""

    def close(self) -> None:
        """Leaves the group, without callbacks, and frees everything. It may be called twice."""


class PausableSource(Source, Protocol):
    """A source whose partitions can be paused, and that knows ends of partitions without asking the broker."""

    def pause(self, partitions: Collection[Partition]) -> None:
        """Pauses exactly these partitions: `poll` returns records of all others. New partitions are not paused, and
        partitions that are not assigned are ignored."""

    def known_ends(self) -> dict[Partition, int]:
        """Returns the ends as of the latest records, without asking the broker."""


class Producer(Protocol):
    """Writes records. The key determines the partition; records of one key keep their order."""

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        """Sends one record; it may wait in a bounded buffer until `flush`.

        Args:
            topic: of the record.
            key: of the record.
            value: of the record.
            headers: of the record.
            partition: None: the one that the key determines.

        Raises:
            SourceError: this record, or an earlier one, cannot be written.
            TooLargeError: this record is too large.
        """

    def flush(self) -> None:
        """Waits until everything sent is acknowledged; raises SourceError if it is not."""

    def close(self) -> None:
        """Flushes and frees everything. It may be called twice."""


#: Starts for `read`: from the earliest retained record.
FROM_EARLIEST: Mapping[Partition, int] = {}


class TopicReader(Protocol):
    """Reads one topic without a consumer group. A missing topic has no partitions. Methods raise SourceError."""

    def ends(self) -> dict[Partition, int]:
        """Returns the next offset to be written, of each partition."""

    def read(self, starts: Mapping[Partition, int] = FROM_EARLIEST) -> Iterator[Record]:
        """Yields all records from `starts` (missing: the earliest retained) to the present end, by partition."""

    def close(self) -> None:
        """Frees everything."""
