"""Reads what a topic holds, from given offsets to where it ends now, without a consumer group: no position moves."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors

from stream.kafka import FETCH_BYTES_MAX, as_record, open_consumer
from stream.kafka_errors import source_error
from stream.log_file import Log
from stream.source import FROM_EARLIEST, Partition, Record, UnavailableError

_NO_OPTIONS: Mapping[str, Any] = {}
_ASK_MS_MAX = 10_000
_POLL_MS = 100
_PAGE = 500


class LogReader:
    """Of the embedded log."""

    def __init__(self, path: str | Path, topic: str) -> None:
        self._log = Log(path)
        self._topic = topic

    def ends(self) -> dict[Partition, int]:
        return {partition: extent.end for partition, extent in self._log.extents([self._topic]).items()}

    def read(self, starts: Mapping[Partition, int] = FROM_EARLIEST) -> Iterator[Record]:
        for partition, extent in self._log.extents([self._topic]).items():
            offset = starts.get(partition, 0)
            while offset < extent.end:
                records = self._log.read(partition, extent, offset, _PAGE)
                if not records:
                    break
                yield from (record for record in records if record.offset < extent.end)
                offset = records[-1].offset + 1

    def close(self) -> None:
        self._log.close()


class KafkaReader:
    """Of Kafka."""

    def __init__(self, bootstrap_servers: str, topic: str, client_options: Mapping[str, Any] = _NO_OPTIONS) -> None:
        self._servers = bootstrap_servers
        self._topic = topic
        options: dict[str, Any] = {"group_id": None, "enable_auto_commit": False, "isolation_level": "read_committed"}
        options |= {"auto_offset_reset": "earliest", "allow_auto_create_topics": False, "metrics_enabled": False}
        options["fetch_max_bytes"] = FETCH_BYTES_MAX
        self._consumer = open_consumer(bootstrap_servers, {**options, **client_options})

    def ends(self) -> dict[Partition, int]:
        try:
            numbers = self._consumer.partitions_for_topic(self._topic) or ()
            where = [TopicPartition(self._topic, number) for number in sorted(numbers)]
            found = self._consumer.end_offsets(where, timeout_ms=_ASK_MS_MAX) if where else {}
        except kafka_errors.KafkaError as error:
            raise source_error(self._servers, error) from error
        return {Partition(at.topic, at.partition): int(found[at]) for at in where if at in found}

    def read(self, starts: Mapping[Partition, int] = FROM_EARLIEST) -> Iterator[Record]:
        for partition, end in self.ends().items():
            where = TopicPartition(*partition)
            try:
                self._consumer.assign([where])
                if partition in starts:
                    self._consumer.seek(where, starts[partition])
                else:
                    self._consumer.seek_to_beginning(where)
                before = None
                while (position := self._consumer.position(where, timeout_ms=_ASK_MS_MAX)) < end:
                    # It may move without messages: past the marks of transactions, and what was compacted away.
                    if position != before:
                        before, deadline = position, time.monotonic() + _ASK_MS_MAX / 1_000
                    elif time.monotonic() > deadline:
                        raise UnavailableError(f"Kafka at {self._servers} does not give {self._topic}: try again")
                    messages = self._consumer.poll(timeout_ms=_POLL_MS, max_records=_PAGE).get(where, [])
                    yield from (as_record(message) for message in messages if message.offset < end)
            except kafka_errors.KafkaError as error:
                raise source_error(self._servers, error) from error

    def close(self) -> None:
        self._consumer.close(autocommit=False)
