"""The file of the embedded log: topics, partitions and offsets in SQLite.

Any number of processes may append and read at once, and a kill -9 in the middle of an append leaves nothing half
written. A key's partition is crc32(key) modulo the number of partitions; records without a key take turns. Each
partition keeps its latest `records_max` records.
"""

import errno
import itertools
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from stream.source import Partition, Record, SourceError, UnavailableError

RECORDS_MAX = 1_000_000
_LOCK_WAIT_S_MAX = 30.0
_ROOM_BYTES_MIN = 2**16  # with less SQLite cannot make its files
_PASSING = {"database or disk is full", "database is locked"}

# "nxcl": SQLite's own way to say whose file this is.
_APPLICATION_ID = 0x6E78636C
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS partitions (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    first_offset INTEGER NOT NULL DEFAULT 0,
    next_offset INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, partition)
);
CREATE TABLE IF NOT EXISTS records (
    partition_id INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    key BLOB,
    value BLOB,
    headers TEXT,
    PRIMARY KEY (partition_id, offset)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (
    group_name TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (group_name, topic, partition)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = 1;
"""


class Entry(NamedTuple):
    """A record before it has a partition and an offset."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None  # None: by the key


class Extent(NamedTuple):
    """A partition's row, its earliest retained offset, and the next offset to be written."""

    id: int
    earliest: int
    end: int


class Log:
    """The file itself. It is made where there is none; topics are made with `partitions` partitions when first used.

    `records_max` bounds the records that each partition keeps; the oldest go first. `durable`: an append that returned
    outlives a power cut; otherwise it outlives a killed process only. All methods raise SourceError.
    """

    def __init__(
        self, path: str | Path, *, partitions: int = 1, records_max: int = RECORDS_MAX, durable: bool = True
    ) -> None:
        if partitions < 1 or records_max < 1:
            raise SourceError(f"the log {path} needs at least one partition and one record in each")
        self.path = Path(path)
        self._partitions = partitions
        self._records_max = records_max
        self._turns = itertools.count()
        with self._clear_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=_LOCK_WAIT_S_MAX, isolation_level=None, check_same_thread=False
            )
        try:
            with self._clear_errors():
                self._prepare(durable)
        except SourceError:
            self._db.close()
            raise

    def _prepare(self, durable: bool) -> None:
        self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self._db.execute("PRAGMA journal_size_limit = 67108864")
        # What is deleted is overwritten with zeros: it may be of a user who is to be forgotten.
        self._db.execute("PRAGMA secure_delete = ON")
        with self._transaction():
            (owner,) = self._db.execute("PRAGMA application_id").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if owner != _APPLICATION_ID and (owner or tables):
                raise SourceError(f"{self.path} is not a click log but another SQLite database: choose another path")
            if owner != _APPLICATION_ID:
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
        # Kept in the file: a process that comes later finds it set. Two that come first at once may have to try again.
        deadline = time.monotonic() + _LOCK_WAIT_S_MAX
        while self._db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def ensure_topics(self, topics: Mapping[str, int]) -> None:
        """Make the topics that are missing, with so many partitions; those that are there stay as they are."""
        with self._clear_errors(), self._transaction():
            there = {partition.topic for partition in self.extents(topics)}
            for topic, count in topics.items():
                if topic not in there:
                    self._add_partitions(topic, 0, count)

    def _add_partitions(self, topic: str, start: int, end: int) -> None:
        numbers = [(topic, number) for number in range(start, end)]
        self._db.executemany("INSERT INTO partitions (topic, partition) VALUES (?, ?)", numbers)

    def extents(self, topics: Iterable[str]) -> dict[Partition, Extent]:
        """The partitions of those topics that exist, in order."""
        names = list(topics)
        query = (
            "SELECT topic, partition, id, first_offset, next_offset FROM partitions WHERE topic IN ({}) ORDER BY 1, 2"
        )
        with self._clear_errors():
            rows = self._db.execute(query.format(",".join("?" * len(names))), names).fetchall()
        return {Partition(topic, number): Extent(*extent) for topic, number, *extent in rows}

    def append(self, entries: Sequence[Entry]) -> None:
        """Append all or nothing."""
        now_ms = int(time.time() * 1_000)
        with self._clear_errors(), self._transaction():
            extents = self._writable({entry.topic for entry in entries})
            ends = {topic: [extent.end for extent in of_topic] for topic, of_topic in extents.items()}
            rows = []
            for topic, key, value, headers, wanted in entries:
                turn = next(self._turns) if key is None else zlib.crc32(key)
                number = turn % len(ends[topic]) if wanted is None else wanted
                if number >= len(ends[topic]):
                    raise SourceError(f"{topic} has no partition {number} in the log {self.path}")
                offset = ends[topic][number]
                rows.append((extents[topic][number].id, offset, now_ms, key, value, _headers_to_text(headers)))
                ends[topic][number] = offset + 1
            self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)
            for topic, of_topic in extents.items():
                for extent, end in zip(of_topic, ends[topic], strict=True):
                    if end > extent.end:
                        self._close_append(extent, end)

    def _writable(self, topics: set[str]) -> dict[str, list[Extent]]:
        extents: dict[str, list[Extent]] = {topic: [] for topic in topics}
        for partition, extent in self.extents(topics).items():
            extents[partition.topic].append(extent)
        for topic in [topic for topic, of_topic in extents.items() if not of_topic]:
            for number in range(self._partitions):
                row = self._db.execute("INSERT INTO partitions (topic, partition) VALUES (?, ?)", (topic, number))
                extents[topic].append(Extent(int(row.lastrowid or 0), 0, 0))
        return extents

    def _close_append(self, extent: Extent, end: int) -> None:
        first = max(extent.earliest, end - self._records_max)
        self._db.execute(
            "UPDATE partitions SET first_offset = ?, next_offset = ? WHERE id = ?", (first, end, extent.id)
        )
        if first > extent.earliest:
            self._db.execute("DELETE FROM records WHERE partition_id = ? AND offset < ?", (extent.id, first))

    def compact(self, topic: str) -> None:
        """Leave of each key only the latest record, tombstones too; offsets stay as they are, with gaps between them.

        Kafka does this by itself to a topic whose `cleanup.policy` is `compact`; here it has to be asked for.
        """
        superseded = (
            "DELETE FROM records WHERE partition_id = ?1 AND offset NOT IN"
            " (SELECT max(offset) FROM records WHERE partition_id = ?1 GROUP BY key)"
        )
        with self._clear_errors(), self._transaction():
            for extent in self.extents([topic]).values():
                self._db.execute(superseded, (extent.id,))

    def erase(self, partition: Partition, offsets: Iterable[int]) -> None:
        """Take records out; offsets stay as they are, with gaps between them."""
        with self._clear_errors(), self._transaction():
            extent = self.extents([partition.topic])[partition]
            rows = [(extent.id, offset) for offset in offsets]
            self._db.executemany("DELETE FROM records WHERE partition_id = ? AND offset = ?", rows)

    def mentions(self, partition: Partition, words: Sequence[bytes]) -> Iterator[Record]:
        """Records whose key or value holds one of the words as bytes, in whatever context, oldest first."""
        extent = self.extents([partition.topic])[partition]
        some = " OR ".join(["instr(key, ?) OR instr(value, ?)"] * len(words))
        query = f"SELECT offset, timestamp_ms, key, value, headers FROM records WHERE partition_id = ? AND ({some})"
        with self._clear_errors():
            rows = self._db.execute(query, (extent.id, *(word for word in words for _ in range(2))))
            for number, timestamp_ms, key, value, headers in rows:
                yield Record(*partition, number, timestamp_ms, key, value, _headers_of_text(headers))

    def scrub(self) -> None:
        """Build the file anew from what is in it, so that no bytes of what was deleted stay, in its journal neither. It
        needs as much room again; others wait."""
        with self._clear_errors():
            self._db.execute("VACUUM")
            busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise SourceError(f"the journal of {self.path} is in use, and holds what was deleted: try again")

    def read(self, partition: Partition, extent: Extent, offset: int, records_max: int) -> list[Record]:
        """Up to `records_max` records from `offset` on."""
        query = (
            "SELECT offset, timestamp_ms, key, value, headers FROM records"
            " WHERE partition_id = ? AND offset >= ? ORDER BY offset LIMIT ?"
        )
        with self._clear_errors():
            rows = self._db.execute(query, (extent.id, offset, records_max)).fetchall()
        return [
            Record(*partition, number, timestamp_ms, key, value, _headers_of_text(headers))
            for number, timestamp_ms, key, value, headers in rows
        ]

    def store_positions(self, group: str, offsets: Mapping[Partition, int]) -> None:
        rows = [(group, *partition, offset) for partition, offset in offsets.items()]
        with self._clear_errors(), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", rows)

    def stored_positions(self, group: str) -> dict[Partition, int]:
        query = "SELECT topic, partition, offset FROM positions WHERE group_name = ?"
        with self._clear_errors():
            rows = self._db.execute(query, (group,)).fetchall()
        return {Partition(topic, number): offset for topic, number, offset in rows}

    def version(self) -> int:
        """A number that changes when another connection has written."""
        with self._clear_errors():
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def close(self) -> None:
        self._db.close()

    def _is_full(self) -> bool:
        """SQLite says so of data alone: of its journal or its index it says that they cannot be opened, or read."""
        try:
            disk = os.statvfs(self.path.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < _ROOM_BYTES_MIN or (disk.f_files > 0 and disk.f_ffree == 0)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # Where the disk is full SQLite has rolled back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        was_full = self._is_full()  # it may have room again by the time that an error is looked at
        try:
            yield
        except sqlite3.OperationalError as error:
            advice = {
                "database or disk is full": "free some space",
                "database is locked": "another program holds it: end that one, or choose another path",
            }.get(str(error), "check that the folder is there and may be written to")
            # A lock passes, and so does a full disk.
            passes = str(error) in _PASSING or was_full or self._is_full()
            kind = UnavailableError if passes else SourceError
            raise kind(f"the click log {self.path} cannot be used: {error}; {advice}") from error
        except sqlite3.DatabaseError as error:
            raise SourceError(
                f"{self.path} is not a click log ({error}): move it away, or choose another path"
            ) from error
        except sqlite3.Error as error:
            raise SourceError(f"the click log {self.path} cannot be used: {error}") from error
        except OSError as error:
            kind = UnavailableError if error.errno in (errno.ENOSPC, errno.EDQUOT) else SourceError
            raise kind(f"the click log {self.path} cannot be made: {error.strerror or error}") from error


def _headers_to_text(headers: tuple[tuple[str, bytes], ...]) -> str | None:
    return json.dumps([(name, value.decode("latin-1")) for name, value in headers]) if headers else None


def _headers_of_text(text: str | None) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value.encode("latin-1")) for name, value in json.loads(text)) if text else ()
