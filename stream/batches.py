"""Batches of Kafka's messages: what cannot be decoded comes as a record that says so, and reading goes on behind it.

kafka-python raises instead, at each new attempt, so that one batch holds up its partition for ever. It also unpacks to
any size. Here a batch is checked and unpacked (stream/codecs.py) before kafka-python sees it; transactions, offsets and
records stay kafka-python's. A wrong checksum may be chance on the way, so the batch is asked for a few times first.
"""

import logging
import struct
import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import decode_varint

from stream.codecs import UNPACKED_BYTES_MAX, UnpackError, unpack
from stream.source import Undecodable

DAMAGED_TRIES_MAX = 3  # reads of a damaged batch, before it is put aside
BAD_RECORDS_MAX = 100  # of one batch are put aside each, before the rest of it is put aside as a whole

_CODEC_MASK = 0x07
_ASK_AGAIN_S = 0.1
_REPORTED_EVERY_S = 30.0
log = logging.getLogger("stream.kafka")
_GOES_ON = "; reading goes on at the next offset that can be read"


def put_aside_undecodable(consumer: KafkaConsumer) -> None:
    """From now on what this consumer cannot decode comes as a message with an `Undecodable` as its checksum."""
    _Unreadable(consumer._fetcher)


def undecodable_of(message: Any) -> Undecodable | None:
    """What a message of kafka-python's stands for, if it stands for what cannot be decoded."""
    return message.checksum if isinstance(message.checksum, Undecodable) else None


class _Unreadable:
    """What one consumer's fetcher cannot decode. Puts itself between the fetcher and what a broker has answered."""

    def __init__(self, fetcher: Any) -> None:
        self._fetcher = fetcher
        self._partition_records, self._parse = fetcher.PartitionRecords, fetcher._parse_fetched_data
        self._tries: dict[TopicPartition, tuple[int, int]] = {}  # offset of a damaged batch, and reads of it
        self._passed: dict[TopicPartition, tuple[int, int]] = {}  # what was put aside last: first and next offset
        self._reported_until: dict[TopicPartition, float] = {}  # that the broker cannot give what is asked for
        self._silent: set[TopicPartition] = set()  # where more was passed than was said
        fetcher.PartitionRecords, fetcher._parse_fetched_data = self._guarded, self._parsed

    def _guarded(self, fetch_offset: int, where: TopicPartition, records: Any, **options: Any) -> Any:
        return self._partition_records(fetch_offset, where, _Batches(self, where, fetch_offset, records), **options)

    def _parsed(self, completed: Any) -> Any:
        """The records of an answer; of one that begins with what is no batch, what stands for it."""
        where, at = completed.topic_partition, completed.fetched_offset
        try:
            return self._parse(completed)
        except kafka_errors.UnknownError:
            # It may be over soon, or the broker's disk is damaged: passing it by could lose what is there.
            if time.monotonic() >= self._reported_until.get(where, 0.0):
                self._reported_until[where] = time.monotonic() + _REPORTED_EVERY_S
                text = "%s partition %d: the broker cannot give offset %d, see its log; it is asked until it can"
                log.warning(text, where.topic, where.partition, at)
            time.sleep(_ASK_AGAIN_S)
            return None
        except kafka_errors.KafkaError as error:
            # A batch whose length is wrong is taken for one that is not complete.
            if not (isinstance(error, kafka_errors.CorruptRecordError) or "no complete records" in str(error)):
                raise
            batches = _Batches(self, where, at, None, structure="what the broker gives is no batch of messages")
            return self._partition_records(at, where, batches)

    def high_watermark(self, where: TopicPartition) -> float:
        """The broker gives nothing from here on."""
        known = self._fetcher._subscriptions.assignment.get(where)
        return float("inf") if known is None or known.highwater is None else known.highwater

    def is_to_be_read_again(self, where: TopicPartition, offset: int) -> bool:
        """Whether a damaged batch at this offset may come whole yet."""
        before = self._tries.get(where, (-1, 0))
        count = before[1] + 1 if before[0] == offset else 1
        self._tries[where] = offset, count
        return count < DAMAGED_TRIES_MAX

    def follows(self, where: TopicPartition, offset: int) -> bool:
        """Whether all before this offset was put aside just now."""
        return where in self._passed and self._passed[where][1] == offset

    def passes(self, where: TopicPartition, first: int, next_offset: int, *, silently: bool) -> None:
        """What was put aside; silently: more of what was put aside just before."""
        self._passed[where] = self._passed[where][0] if silently else first, next_offset
        if silently:
            self._silent.add(where)
            if next_offset >= self.high_watermark(where):
                self.reads_on(where)

    def reads_on(self, where: TopicPartition) -> None:
        """Behind it something can be read, or it is the end."""
        if where in self._silent:
            self._silent.remove(where)
            first, after = self._passed[where]
            text = "%s partition %d: the broker gave nothing for offsets %d to %d; reading goes on behind"
            log.warning(text, where.topic, where.partition, first, after - 1)


class _Batches:
    """The batches of one answer, as kafka-python's MemoryRecords gives them; each has passed its checks.

    Behind a damaged one it ends: which transactions were aborted has to be asked anew.
    """

    def __init__(
        self, unreadable: _Unreadable, where: TopicPartition, fetch_offset: int, records: Any, structure: str = ""
    ) -> None:
        self._unreadable, self._where, self._records = unreadable, where, records
        self._fetch_offset = self._next = fetch_offset
        self._structure = structure
        self._over = False

    def next_batch(self) -> Any:
        if self._over:
            return None
        if self._structure:
            return self._no_batch(self._structure)
        try:
            batch = self._records.next_batch()
            sound = batch is None or (batch.validate_crc() and self._fits(batch))
        except (kafka_errors.CorruptRecordError, AssertionError, struct.error, IndexError, ValueError) as error:
            return self._no_batch(f"this is no batch of messages ({_line(error)})")
        if not sound:
            return self._damaged(batch)
        return None if batch is None else self._unpacked(batch)

    def _fits(self, batch: Any) -> bool:
        """Whether its offsets can be true: the checksum does not cover the first one."""
        high_watermark = self._unreadable.high_watermark(self._where)
        limit = high_watermark if batch.base_offset == self._next else self._limit()
        return (batch.magic < 2 or _last(batch) >= self._next) and _last(batch) < limit

    def _following(self) -> int | None:
        """Where the next batch begins, if it came too."""
        following = self._records._next_slice
        return None if following is None else int.from_bytes(following[:8], "big", signed=True)

    def _limit(self) -> float:
        """What the batch at hand cannot have any more."""
        return self._following() or self._unreadable.high_watermark(self._where)

    def _unpacked(self, batch: Any) -> Any:
        self._unreadable.reads_on(self._where)
        last = _last(batch)
        self._next = last + 1
        try:
            _unpack(batch)
        except UnpackError as error:
            count = batch.records_count if batch.magic >= 2 else 1
            return _Aside(Undecodable(batch.base_offset, last, count, str(error)), batch)
        return _Guarded(batch, last)

    def _damaged(self, batch: Any) -> Any:
        """A batch whose checksum is wrong: nothing in its header has to be true."""
        end, limit = self._following(), self._limit()
        believed = batch.base_offset < limit and max(batch.base_offset, _last(batch)) >= self._next
        first = batch.base_offset if believed else self._next
        if batch.base_offset != self._next and self._unreadable.follows(self._where, self._next):
            # It was put aside before, and the broker believes what it says of its offsets.
            return self.next_batch() if end is not None and end <= self._next else self._step(None)
        if self._unreadable.is_to_be_read_again(self._where, first):
            self._over = True
            return None
        last = _last(batch)
        why = "the batch is damaged, its checksum is wrong"
        true = batch.magic < 2 or batch.records_count == last - first + 1
        if not (true and first <= last < limit):
            why += _GOES_ON if end is None else ""
            last = first if end is None else max(first, end - 1)
        last = max(last, self._fetch_offset)
        return self._step(Undecodable(first, last, last - first + 1, why))

    def _no_batch(self, why: str) -> Any:
        """Where the next one begins the broker alone knows: it is asked for each next offset, until one comes."""
        if self._unreadable.follows(self._where, self._next):
            return self._step(None)
        if self._unreadable.is_to_be_read_again(self._where, self._next):
            self._over = True
            return None
        return self._step(Undecodable(self._next, self._next, 1, why + _GOES_ON))

    def _step(self, what: Undecodable | None) -> "_Aside":
        self._over = True
        passed = what or Undecodable(self._next, self._next, 0, "")
        self._unreadable.passes(self._where, passed.first, passed.last + 1, silently=what is None)
        return _Aside(passed, None, reported=what is not None)


class _Guarded:
    """A batch whose records are read one by one: one that is malformed comes as what stands for it."""

    def __init__(self, batch: Any, last_offset: int) -> None:
        self._batch, self._last_offset = batch, last_offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def validate_crc(self) -> bool:
        return True  # it was

    def __iter__(self) -> Iterator[Any]:
        batch, at, bad = self._batch, self._batch.base_offset, 0
        records = iter(batch)
        while True:
            try:
                record = next(records)
                if batch.magic < 2 and not record.validate_crc():
                    raise kafka_errors.CorruptRecordError("the checksum of a message is wrong")
            except StopIteration:
                return
            except MemoryError:
                raise
            except Exception as error:
                if at > self._last_offset:
                    return  # all messages were read; what stands behind them are no messages
                if batch.magic >= 2 and not isinstance(batch._buffer, _Lenient):
                    batch._buffer = _Lenient(batch._buffer)
                    continue
                bad += 1
                why = f"a message is malformed ({_line(error)})"
                if bad <= BAD_RECORDS_MAX and at < self._last_offset and _skip_record(batch):
                    yield _AsideRecord(Undecodable(at, at, 1, why), batch)
                    at += 1
                    continue
                last = max(at, self._last_offset)
                yield _AsideRecord(Undecodable(at, last, last - at + 1, why), batch)
                return
            at = record.offset + 1
            yield record


class _Aside:
    """Stands for a batch that cannot be decoded. Whether it is of an aborted transaction its header says, where that is
    to be trusted: `batch`."""

    magic = 2
    is_control_batch = False

    def __init__(self, what: Undecodable, batch: Any, *, reported: bool = True) -> None:
        self._what, self._batch, self._reported = what, batch, reported
        self._has_producer = batch is not None and batch.magic >= 2 and batch.has_producer_id()
        self.leader_epoch = batch.leader_epoch if batch is not None and batch.magic >= 2 else -1
        self.producer_id = batch.producer_id if self._has_producer else -1
        self.is_transactional = self._has_producer and batch.is_transactional
        self.base_offset, self.last_offset, self.next_offset = what.first, what.last, what.last + 1

    def has_producer_id(self) -> bool:
        return self._has_producer

    def validate_crc(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        if self._reported:
            yield _AsideRecord(self._what, self._batch)


class _AsideRecord:
    """Stands for messages, as one of kafka-python's records, at the last of their offsets."""

    key = value = None
    size_in_bytes = 0
    timestamp_type = 0

    def __init__(self, what: Undecodable, batch: Any) -> None:
        self.offset, self.checksum = what.last, what
        self.headers: list[tuple[str, bytes]] = []
        self.timestamp = batch.max_timestamp if batch is not None and batch.magic >= 2 else -1

    def validate_crc(self) -> bool:
        return True


def _last(batch: Any) -> int:
    return int(batch.last_offset if batch.magic >= 2 else batch.base_offset)


def _unpack(batch: Any) -> None:
    """Unpacks a batch in its place. Raises UnpackError."""
    codec = batch.attributes & _CODEC_MASK if batch.magic >= 2 else batch.compression_type
    if not codec or (batch.magic >= 2 and (batch.is_control_batch or not batch.records_count)):
        return
    if batch.magic >= 2:
        batch._buffer = unpack(codec, bytes(memoryview(batch._buffer)[batch._pos :]), UNPACKED_BYTES_MAX)
        batch._pos, batch._decompressed = 0, True
        return
    if batch.magic == 0 and codec == 3:
        raise UnpackError("lz4 of Kafka before 0.10, which has a framing of its own")
    batch._buffer = memoryview(unpack(codec, _legacy_payload(batch), UNPACKED_BYTES_MAX))
    batch._decompressed = True


def _legacy_payload(batch: LegacyRecordBatch) -> bytes:
    """What is compressed in a message of the formats before Kafka 0.11: its value."""
    _, value = batch._read_key_value(batch.KEY_OFFSET_V1 if batch.magic else batch.KEY_OFFSET_V0)
    if value is None:
        raise UnpackError("there is nothing in it")
    return bytes(value)


def _skip_record(batch: Any) -> bool:
    """Goes behind the record that was not read -> whether there is such a place."""
    if batch.magic < 2:
        return False
    try:
        size, at = decode_varint(batch._buffer, batch._pos)
    except (IndexError, ValueError):
        return False
    if size <= 0 or at + size > len(batch._buffer):
        return False
    batch._pos = at + size
    batch._next_record_index += 1
    return True


class _Lenient(bytes):
    """Bytes whose text may be of any encoding, as the names of headers that C programs have written."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
