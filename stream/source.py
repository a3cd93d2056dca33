"""Where records come from and where they go: the protocols that Kafka and the embedded log both keep.

A position is always the *next* offset to read: after record 41 it is 42. Committing 41 there reads record 41 twice.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)


class SourceError(Exception):
    """The broker or the log file cannot do what was asked. One line that names it and says what to do."""


class UnavailableError(SourceError):
    """What was asked for is not there now, but may come: a broker that does not answer, a topic not made yet."""


class TooLargeError(SourceError):
    """One record is larger than its topic takes; smaller ones still pass."""


class Partition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Messages that the broker has and that cannot be decoded: offsets `first` to `last`, of which `records` hold one
    as far as is known."""

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

    `undecodable`: this stands for messages that cannot be decoded, at the last of their offsets, with neither key nor
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


#: Given the partitions that were assigned, returns the positions to start from (missing ones: the earliest retained).
OnAssigned = Callable[[Sequence[Partition]], Mapping[Partition, int]]
OnRevoked = Callable[[Sequence[Partition]], None]


@dataclass(frozen=True, slots=True)
class OffsetOutOfRange:
    """A position that the partition does not have: `earliest` up to, not including, `end` are retained."""

    partition: Partition
    wanted: int
    earliest: int
    end: int

    @property
    def lost(self) -> int:
        """Records that cannot be read any more; 0 where the position lies beyond the end: the topic was made anew."""
        return max(0, self.earliest - self.wanted)

    def __str__(self) -> str:
        where = f"{self.partition.topic} partition {self.partition.partition}: offset {self.wanted}"
        if self.lost:
            return f"{where} is no longer retained, {self.lost:,} records up to {self.earliest} are lost"
        return f"{where} lies beyond the end ({self.end}): the topic was made anew, or lost records"


#: Called with a position that is gone, before reading goes on from the earliest one; what it raises ends the reading.
OnGone = Callable[[OffsetOutOfRange], None]


def warn_of(gone: OffsetOutOfRange) -> None:
    """Says it in the log."""
    log.warning("%s; going on from %d", gone, gone.earliest)


def next_offset(partition: Partition, wanted: int | None, earliest: int, end: int, on_gone: OnGone = warn_of) -> int:
    """Where reading goes on, given the offsets that are retained: `earliest` up to, not including, `end`.

    None means from the start. A position that is gone, or lies beyond the end (the topic was made anew), is replaced by
    the earliest one as Kafka's `auto_offset_reset=earliest` does, but never silently.
    """
    if wanted is None:
        return earliest
    if not earliest <= wanted <= end:
        on_gone(OffsetOutOfRange(partition, wanted, earliest, end))
        return earliest
    return wanted


class Source(Protocol):
    """Reads the partitions it is assigned, in offset order within each. Not for use by several threads at once."""

    def start(self, *, on_assigned: OnAssigned, on_revoked: OnRevoked, on_gone: OnGone = warn_of) -> None:
        """Begin to be assigned partitions.

        The callbacks run inside `start` or `poll`, in the caller's thread. `on_assigned` gets the partitions that are
        new and decides where they start; what is committed decides nothing. `on_revoked` gets the ones that go, while
        they may still be committed where the broker allows it. `on_gone` gets each position that is not retained (any
        more); what it raises comes out of `start` or `poll`.
        """

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """At most `max_records` records, waiting up to `timeout_s` seconds for the first; [] when nothing came."""

    def positions(self) -> dict[Partition, int]:
        """The next offset to read, of each assigned partition."""

    def seek(self, partition: Partition, offset: int) -> None:
        """Read `offset` next. Raises SourceError for a partition that is not assigned."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Store the group's positions (next offsets to read), for operators and tools that watch the lag.

        They decide nothing, so what cannot be stored now (the broker is unavailable, the group rebalances) is logged,
        not raised, and made good by the next commit.
        """

    def committed(self) -> dict[Partition, int]:
        """The group's stored positions, of the assigned partitions that have one."""

    def ends(self) -> dict[Partition, int]:
        """The next offset to be written, of each assigned partition: lag = ends - positions."""

    def trouble(self) -> str | None:
        """What records are waited for, in one line, as far as `ends` and `poll` have noticed; None: nothing."""

    def close(self) -> None:
        """Leave the group, without calling back, and free everything. Does no harm the second time."""


class PausableSource(Source, Protocol):
    """A source of which some partitions can be left out for a while, and that knows of more than it has fetched."""

    def pause(self, partitions: Collection[Partition]) -> None:
        """From now on `poll` gives nothing of these partitions, and of all others what there is. What is assigned anew
        is not paused. Those that are not assigned (any more) are passed over."""

    def known_ends(self) -> dict[Partition, int]:
        """As `ends`, as far as it is known without asking the broker: what came with the latest records."""


class Producer(Protocol):
    """Writes records. The partition follows from the key; records of one key keep their order."""

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        """Hand over one record; it may wait in a bounded buffer until `flush`. `partition`: None: as its key says.

        Raises SourceError, also for a record handed over earlier; TooLargeError where this one is too large.
        """

    def flush(self) -> None:
        """Return when everything sent is acknowledged; SourceError otherwise."""

    def close(self) -> None:
        """Flush and free everything. Does no harm the second time."""


#: Reading begins with the earliest retained record.
FROM_EARLIEST: Mapping[Partition, int] = {}


class TopicReader(Protocol):
    """A topic that is not there has no partitions; that is no error. Methods raise SourceError."""

    def ends(self) -> dict[Partition, int]:
        """The next offset to be written, of each partition."""

    def read(self, starts: Mapping[Partition, int] = FROM_EARLIEST) -> Iterator[Record]:
        """Everything from `starts` (missing: the earliest retained) to the end as it is now, partition by partition."""

    def close(self) -> None:
        """Free everything."""
