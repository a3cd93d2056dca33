"""Takes records out of a topic: those of a user who is to be forgotten."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors

from stream.kafka import KafkaProducer
from stream.kafka_errors import connected, source_error
from stream.log_file import Log
from stream.readers import KafkaReader, LogReader
from stream.source import Partition, Record

_NO_OPTIONS: Mapping[str, Any] = {}
_DELETE_MS_MAX = 30_000


log = logging.getLogger(__name__)


class LogEraser:
    """Of the embedded log: offsets stay as they are, with gaps between them."""

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def erase(self, topic: str, matches: Callable[[Record], bool]) -> int:
        places: dict[Partition, list[int]] = {}
        with closing(LogReader(self._path, topic)) as reader:
            for record in reader.read():
                if matches(record):
                    places.setdefault(Partition(record.topic, record.partition), []).append(record.offset)
        with closing(Log(self._path)) as file:
            for partition, offsets in places.items():
                file.erase(partition, offsets)
        return sum(map(len, places.values()))


class KafkaEraser:
    """Of Kafka, which deletes no single record: what stays is written again at the end, with its time, and everything
    before that is deleted. A crash in between leaves it there twice, until the next time."""

    def __init__(self, bootstrap_servers: str, client_options: Mapping[str, Any] = _NO_OPTIONS) -> None:
        self._servers, self._options = bootstrap_servers, client_options

    def erase(self, topic: str, matches: Callable[[Record], bool]) -> int:
        with closing(KafkaReader(self._servers, topic, self._options)) as reader:
            erased = sum(map(matches, reader.read()))
            if not erased:
                return 0
            ends = reader.ends()
            with closing(KafkaProducer(self._servers, self._options)) as producer:
                for record in _once(record for record in reader.read() if not (record.undecodable or matches(record))):
                    at = record.partition
                    if record.offset < ends.get(Partition(topic, at), 0):
                        producer.send(
                            topic, key=record.key, value=record.value, headers=record.headers,
                            partition=at, timestamp_ms=record.timestamp_ms,
                        )  # fmt: skip
        self._delete_before(ends)
        return erased

    def _delete_before(self, ends: Mapping[Partition, int]) -> None:
        admin = connected(KafkaAdminClient, self._servers, dict(self._options))
        try:
            admin.delete_records({TopicPartition(*partition): end for partition, end in ends.items() if end},
                                 timeout_ms=_DELETE_MS_MAX)  # fmt: skip
        except kafka_errors.KafkaError as error:
            raise source_error(self._servers, error) from error
        finally:
            admin.close()


def retention_ms(bootstrap_servers: str, topic: str, client_options: Mapping[str, Any] = _NO_OPTIONS) -> int | None:
    """How long Kafka keeps a topic's records, in milliseconds; None: it does not say, or for ever."""
    from kafka.admin import ConfigResource, ConfigResourceType  # noqa: PLC0415 - only this needs it

    admin = connected(KafkaAdminClient, bootstrap_servers, dict(client_options))
    try:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
        value = int(_value_of(found, "retention.ms"))
    except (kafka_errors.KafkaError, KeyError, TypeError, ValueError) as error:
        log.debug("the retention of %s is not known: %s", topic, error)
        return None
    finally:
        admin.close()
    return None if value < 0 else value


def _value_of(found: Any, name: str) -> Any:
    """A setting's value, however deep it lies in kafka-python's answer."""
    if isinstance(found, dict):
        if name in found:
            return found[name]["value"] if isinstance(found[name], dict) else found[name]
        for inner in found.values():
            if (value := _value_of(inner, name)) is not None:
                return value
    return None


def _once(records: Iterator[Record]) -> Iterator[Record]:
    """Leaves out what an erasing that was cut short has written twice."""
    seen: set[bytes] = set()
    for record in records:
        mark = hashlib.sha256(repr((record.key, record.value, record.headers, record.timestamp_ms)).encode()).digest()
        if mark not in seen:
            seen.add(mark)
            yield record
