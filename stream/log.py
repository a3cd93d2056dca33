"""The embedded log as a source and a producer, for where there is no Kafka. `stream.log_file` has the file.

Unlike Kafka, a group is not split: every source of a group reads all partitions.
"""

import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stream.log_file import RECORDS_MAX, Entry, Extent, Log
from stream.source import (
    OnAssigned,
    OnGained,
    OnGone,
    OnRevoked,
    Partition,
    Record,
    SourceError,
    UnavailableError,
    next_offset,
    warn_of,
)

__all__ = ["RECORDS_MAX", "Log", "LogProducer", "LogSource"]

log = logging.getLogger(__name__)

_BUFFER_RECORDS_MAX = 1_000
_BUFFER_BYTES_MAX = 8 * 2**20
_POLL_EVERY_S = 0.004


class LogSource:
    """A `PausableSource` over a log file. Every source of a group reads all partitions, those added later too."""

    def __init__(self, path: str | Path, topics: Sequence[str], group: str) -> None:
        # Positions decide nothing, so committing them need not wait for the disk.
        self._log = Log(path, durable=False)
        self._topics = tuple(topics)
        self._group = group
        self._on_assigned: OnAssigned | None = None
        self._on_gone: OnGone = warn_of
        self._extents: dict[Partition, Extent] = {}
        self._positions: dict[Partition, int] = {}
        self._paused: frozenset[Partition] = frozenset()
        self._version = -1
        self._turn = 0
        self._trouble: str | None = None
        self._closed = False

    def start(
        self,
        *,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,  # noqa: ARG002  (nothing is ever revoked)
        on_gone: OnGone = warn_of,
        on_gained: OnGained | None = None,  # noqa: ARG002  (what is assigned is owned: `on_assigned` says so)
        on_lost: OnRevoked | None = None,  # noqa: ARG002
    ) -> None:
        self._on_assigned, self._on_gone = on_assigned, on_gone
        self._refresh()

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        if self._on_assigned is None:
            raise SourceError(f"the click log {self._log.path} is polled before start()")
        try:
            records = self._poll(max_records, timeout_s)
        except UnavailableError as error:  # it has waited for long already
            if self._trouble is None:
                log.warning("waiting: %s", error)
            self._trouble = str(error)
            return []
        self._trouble = None
        return records

    def _poll(self, max_records: int, timeout_s: float) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            version = self._log.version()
            if version != self._version or self._behind():
                self._version = version
                self._refresh()
                records = self._read(max_records)
                if records:
                    return records
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return []
            time.sleep(min(left_s, _POLL_EVERY_S))

    def positions(self) -> dict[Partition, int]:
        return dict(self._positions)

    def owned(self) -> frozenset[Partition]:
        return frozenset(self._positions)

    def leadership(self) -> int | None:
        return 0

    def seek(self, partition: Partition, offset: int) -> None:
        if partition not in self._positions:
            raise SourceError(f"{partition.topic} partition {partition.partition} is not assigned: cannot seek in it")
        self._positions[partition] = offset

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        try:
            self._log.store_positions(self._group, offsets)
        except SourceError as error:
            log.warning("positions are not committed: %s", error)

    def committed(self) -> dict[Partition, int]:
        stored = self._log.stored_positions(self._group)
        return {partition: offset for partition, offset in stored.items() if partition in self._positions}

    def ends(self) -> dict[Partition, int]:
        extents = self._log.extents(self._topics)
        return {partition: extents[partition].end for partition in self._positions if partition in extents}

    def known_ends(self) -> dict[Partition, int]:
        return {partition: extent.end for partition, extent in self._extents.items()}

    def pause(self, partitions: Collection[Partition]) -> None:
        self._paused = frozenset(partitions)

    def trouble(self) -> str | None:
        return self._trouble

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._log.close()

    def _behind(self) -> list[Partition]:
        """Partitions that are not paused, nor read to their end."""
        behind = [at for at, extent in self._extents.items() if extent.end != self._positions[at]]
        return [partition for partition in behind if partition not in self._paused]

    def _refresh(self) -> None:
        """Take note of what was appended, trimmed and added meanwhile; partitions that are new are assigned."""
        extents = self._log.extents(self._topics)
        new = [partition for partition in extents if partition not in self._positions]
        if new:
            assert self._on_assigned is not None
            wanted = self._on_assigned(new)
            for partition in new:
                self._positions[partition] = wanted.get(partition, extents[partition].earliest)
        self._extents = extents
        for partition, extent in extents.items():
            at = self._positions[partition]
            self._positions[partition] = next_offset(partition, at, extent.earliest, extent.end, self._on_gone)

    def _read(self, max_records: int) -> list[Record]:
        # A busy partition must not starve the others: each poll begins with another one.
        self._turn += 1
        behind = [at for at in self._behind() if self._extents[at].end > self._positions[at]]
        start = self._turn % len(behind) if behind else 0
        records: list[Record] = []
        for partition in behind[start:] + behind[:start]:
            batch = self._log.read(
                partition, self._extents[partition], self._positions[partition], max_records - len(records)
            )
            if batch:
                if batch[0].offset > self._positions[partition]:
                    self._look_for_loss(partition)
                self._positions[partition] = batch[-1].offset + 1
                records += batch
            elif len(records) < max_records:  # all that was there has been taken out
                self._positions[partition] = self._extents[partition].end
            if len(records) >= max_records:
                break
        return records

    def _look_for_loss(self, partition: Partition) -> None:
        """Says what was trimmed since the last look; gaps that were made on purpose are no loss."""
        earliest = self._log.extents([partition.topic])[partition].earliest
        if earliest > self._positions[partition]:
            at, end = self._positions[partition], self._extents[partition].end
            next_offset(partition, at, earliest, end, self._on_gone)


class LogProducer:
    """A `Producer` to a log file; several threads may use it.

    What is sent waits here until `flush` or a full buffer, and stays here where the file cannot take it.
    """

    def __init__(self, path: str | Path, *, partitions: int = 1, records_max: int = RECORDS_MAX) -> None:
        self._log = Log(path, partitions=partitions, records_max=records_max)
        self._lock = threading.Lock()
        self._buffer: list[Entry] = []
        self._buffer_bytes = 0
        self._closed = False

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        with self._lock:
            # Emptied first: where that fails the record was not taken, and the buffer stays bounded.
            if len(self._buffer) >= _BUFFER_RECORDS_MAX or self._buffer_bytes >= _BUFFER_BYTES_MAX:
                self._append()
            self._buffer.append(Entry(topic, key, value, tuple(headers), partition))
            self._buffer_bytes += len(key or b"") + len(value or b"")

    def flush(self) -> None:
        with self._lock:
            self._append()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                self.flush()
            finally:
                self._log.close()

    def _append(self) -> None:
        if self._buffer:
            self._log.append(self._buffer)
            self._buffer, self._buffer_bytes = [], 0
