"""Records of several partitions in the order of their event time: Kafka Streams' rule (KIP-353, KIP-695).

Each partition has a bounded buffer. The record handed out next is the earliest one at the head of a buffer, so within a
partition the order stays that of its offsets. While the buffer of a partition is empty though it is known to have more,
nothing is handed out: what comes next in it may be earlier. That wait is bounded. A partition that has not delivered by
then (its leader is unavailable) is left out until its position moves, so it holds the others up once, not at every
record. A partition that has been read to its end holds nothing up.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from stream.source import OnAssigned, OnGained, OnGone, OnRevoked, Partition, PausableSource, Record, warn_of

BUFFER_RECORDS_MAX = 2_048  # of one partition; with as many, or as many bytes, it is paused
BUFFER_BYTES_MAX = 2**20
FETCH_RECORDS_MAX = 512  # a buffer may grow beyond its limit by one fetch
_WAIT_SLICE_S = 0.02  # a position may also move without a record, past the marks of transactions
_LONG_AGO = float("-inf")

log = logging.getLogger(__name__)

#: When that happened which a record tells of, in seconds since 1970; None: it does not say. Must not raise.
EventTime = Callable[[Record], float | None]


class _Buffered(NamedTuple):
    seconds: float
    record: Record


class _Buffer:
    """What was fetched of one partition and not handed out yet."""

    def __init__(self) -> None:
        self.waiting: deque[_Buffered] = deque()
        self.bytes = 0
        self._latest = _LONG_AGO

    @property
    def full(self) -> bool:
        return len(self.waiting) >= BUFFER_RECORDS_MAX or self.bytes >= BUFFER_BYTES_MAX

    @property
    def seconds(self) -> float:
        """The event time of what is next."""
        return self.waiting[0].seconds

    def put(self, record: Record, seconds: float | None) -> None:
        """A record without a time goes with the one before it: it neither waits nor jumps the queue."""
        self._latest = self._latest if seconds is None else seconds
        self.waiting.append(_Buffered(self._latest, record))
        self.bytes += _size(record)

    def take(self) -> Record:
        record = self.waiting.popleft().record
        self.bytes -= _size(record)
        return record


@dataclass
class _Wait:
    """For a partition to deliver what is known to come after `position`. One that was in vain stays, and is over."""

    position: int
    began: float
    reported: bool = False  # that it was in vain


class MergedSource:
    """A `Source` that reads another one, and hands its records out by event time.

    `positions` are those of the application: what is buffered here counts as not read. With a single partition all
    goes straight through, nothing is buffered and no record's time is looked at.
    """

    def __init__(
        self,
        source: PausableSource,
        event_time: EventTime,
        *,
        wait_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wait_s`: for a partition that is known to have more, before the others go on without it."""
        self._source = source
        self._event_time = event_time
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._buffers: dict[Partition, _Buffer] = {}  # the ones that hold, or have held, something
        self._waits: dict[Partition, _Wait] = {}

    def start(
        self,
        *,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        on_gone: OnGone = warn_of,
        on_gained: OnGained | None = None,
        on_lost: OnRevoked | None = None,
    ) -> None:
        """As `Source.start`. With `on_gained` the source is a shared one: what is revoked is still read."""

        def assigned(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
            self._forget(partitions)
            return on_assigned(partitions)

        def revoked(partitions: Sequence[Partition]) -> None:
            on_revoked(partitions)  # first: as long as it runs, positions are those of the application
            if on_gained is None:
                self._forget(partitions)

        if on_gained is None:
            self._source.start(on_assigned=assigned, on_revoked=revoked, on_gone=on_gone)
        else:
            self._source.start(
                on_assigned=assigned, on_revoked=revoked, on_gone=on_gone, on_gained=on_gained, on_lost=on_lost
            )

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        deadline = self._monotonic() + timeout_s
        if not self._holds_some() and len(self._source.positions()) <= 1:
            self._source.pause(())
            records = self._source.poll(max_records=max_records, timeout_s=timeout_s)
            if len(self._source.positions()) <= 1:
                return records
            self._put(records)  # more partitions were assigned meanwhile
        else:
            self._fetch(0.0 if self._holds_some() else timeout_s)
        while self._holds_some() and (missing := self._missing()):
            now = self._monotonic()
            if now >= deadline:
                return []
            over = min(self._waits[partition].began for partition in missing) + self._wait_s
            self._fetch(max(0.0, min(deadline - now, over - now, _WAIT_SLICE_S)))
        # Nothing is fetched from here on: a partition that is revoked takes its records with it.
        return self._take(max_records)

    def positions(self) -> dict[Partition, int]:
        positions = self._source.positions()
        for partition, buffer in self._buffers.items():
            if buffer.waiting and partition in positions:
                positions[partition] = buffer.waiting[0].record.offset
        return positions

    def owned(self) -> frozenset[Partition]:
        return self._source.owned()

    def leadership(self) -> int | None:
        return self._source.leadership()

    def seek(self, partition: Partition, offset: int) -> None:
        self._source.seek(partition, offset)
        self._forget([partition])

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self._source.commit(offsets)

    def committed(self) -> dict[Partition, int]:
        return self._source.committed()

    def ends(self) -> dict[Partition, int]:
        return self._source.ends()

    def trouble(self) -> str | None:
        return self._source.trouble()

    def close(self) -> None:
        self._source.close()

    def _buffered(self, partition: Partition) -> bool:
        return partition in self._buffers and bool(self._buffers[partition].waiting)

    def _holds_some(self) -> bool:
        return any(buffer.waiting for buffer in self._buffers.values())

    def _forget(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._buffers.pop(partition, None)
            self._waits.pop(partition, None)

    def _fetch(self, timeout_s: float) -> None:
        """Buffers all that is there, waiting up to `timeout_s` seconds for the first record."""
        while True:
            self._source.pause([partition for partition, buffer in self._buffers.items() if buffer.full])
            records = self._source.poll(max_records=FETCH_RECORDS_MAX, timeout_s=timeout_s)
            self._put(records)
            if len(records) < FETCH_RECORDS_MAX:
                return
            timeout_s = 0.0

    def _put(self, records: Sequence[Record]) -> None:
        for record in records:
            buffer = self._buffers.setdefault(Partition(record.topic, record.partition), _Buffer())
            buffer.put(record, self._event_time(record))

    def _missing(self) -> list[Partition]:
        """Partitions that hold the others up: nothing of them is buffered, and more is known to come. Their waits begin
        here."""
        now = self._monotonic()
        missing = {at: position for at, position in self._behind(now).items() if not self._buffered(at)}
        for partition, position in missing.items():
            if partition not in self._waits or self._waits[partition].position != position:
                self._waits[partition] = _Wait(position, now)
        return list(missing)

    def _behind(self, now: float) -> dict[Partition, int]:
        """The positions of those that are known to have more, but not of those that were waited for in vain."""
        ends = self._source.known_ends()
        behind = {}
        for partition, position in self._source.positions().items():
            if position < ends.get(partition, position) and not self._in_vain(partition, position, now):
                behind[partition] = position
        return behind

    def _in_vain(self, partition: Partition, position: int, now: float) -> bool:
        wait = self._waits.get(partition)
        if wait is None or wait.position != position or now - wait.began < self._wait_s:
            return False
        if not wait.reported and self._wait_s:
            wait.reported = True
            where = f"{partition.topic} partition {partition.partition}"
            log.warning(
                "%s has a record at offset %d that does not arrive: later records of other partitions pass it",
                where,
                position,
            )
        return True

    def _take(self, max_records: int) -> list[Record]:
        """The earliest of what is buffered, until a partition would hold the others up."""
        behind = self._behind(self._monotonic())
        # With equal times the lower partition comes first.
        heads = [(buffer.seconds, partition) for partition, buffer in self._buffers.items() if buffer.waiting]
        heapify(heads)
        records: list[Record] = []
        while heads and len(records) < max_records:
            _, partition = heads[0]
            buffer = self._buffers[partition]
            records.append(buffer.take())
            if buffer.waiting:
                heapreplace(heads, (buffer.seconds, partition))
            elif partition in behind:
                break
            else:
                heappop(heads)
        return records


def _size(record: Record) -> int:
    return len(record.key or b"") + len(record.value or b"")
