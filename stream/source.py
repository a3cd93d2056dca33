"""Where records come from and where they go: the protocols that Kafka and the embedded log both keep.

A position is always the *next* offset to read: after record 41 it is 42. Committing 41 there reads record 41 twice.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)


class SourceError(Exception):
    """The broker or the log file cannot do what was asked. One line that names it and says what to do."""


class TooLargeError(SourceError):
    """One record is larger than its topic takes; smaller ones still pass."""


class Partition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Record:
    """One message. `timestamp_ms` is when it was appended or created, in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


#: Given the partitions that were assigned, returns the positions to start from (missing ones: the earliest retained).
OnAssigned = Callable[[Sequence[Partition]], Mapping[Partition, int]]
OnRevoked = Callable[[Sequence[Partition]], None]


def next_offset(partition: Partition, wanted: int | None, earliest: int, end: int) -> int:
    """Where reading goes on, given the offsets that are retained: `earliest` up to, not including, `end`.

    None means from the start. A position that is gone, or lies beyond the end (the topic was made anew), is replaced by
    the earliest one as Kafka's `auto_offset_reset=earliest` does, but never silently.
    """
    if wanted is None:
        return earliest
    if earliest <= wanted <= end:
        return wanted
    gone = "is no longer retained: records are lost" if wanted < earliest else f"lies beyond the end ({end})"
    log.warning(
        "%s partition %d: offset %d %s; going on from %d", partition.topic, partition.partition, wanted, gone, earliest
    )
    return earliest


class Source(Protocol):
    """Reads the partitions it is assigned, in offset order within each. Not for use by several threads at once."""

    def start(self, *, on_assigned: OnAssigned, on_revoked: OnRevoked) -> None:
        """Begin to be assigned partitions.

        Both callbacks run inside `start` or `poll`, in the caller's thread. `on_assigned` gets the partitions that are
        new and decides where they start; what is committed decides nothing. `on_revoked` gets the ones that go, while
        they may still be committed where the broker allows it.
        """

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """At most `max_records` records, waiting up to `timeout_s` seconds for the first; [] when nothing came."""

    def positions(self) -> dict[Partition, int]:
        """The next offset to read, of each assigned partition."""

    def seek(self, partition: Partition, offset: int) -> None:
        """Read `offset` next. Raises SourceError for a partition that is not assigned."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Store the group's positions (next offsets to read), for people and tools that watch the lag.

        They decide nothing, so what cannot be stored now (the broker is away, the group rebalances) is logged, not
        raised, and made good by the next commit.
        """

    def committed(self) -> dict[Partition, int]:
        """The group's stored positions, of the assigned partitions that have one."""

    def ends(self) -> dict[Partition, int]:
        """The next offset to be written, of each assigned partition: lag = ends - positions."""

    def close(self) -> None:
        """Leave the group, without calling back, and free everything. Does no harm the second time."""


class Producer(Protocol):
    """Writes records. The partition follows from the key; records of one key keep their order."""

    def send(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Hand over one record; it may wait in a bounded buffer until `flush`.

        Raises SourceError, also for a record handed over earlier; TooLargeError where this one is too large.
        """

    def flush(self) -> None:
        """Return when everything sent is acknowledged; SourceError otherwise."""

    def close(self) -> None:
        """Flush and free everything. Does no harm the second time."""
