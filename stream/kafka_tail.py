"""The tail of a Kafka topic: a consumer without a group."""

from collections.abc import Mapping
from typing import Any

from kafka import errors as kafka_errors

from stream.kafka_consumer import CONSUMER, TopicReading
from stream.kafka_errors import source_error
from stream.source import OnAssigned, OnGone, OnRevoked, Partition, UnavailableError, warn_of
from stream.tail import TopicTail

_NO_OPTIONS: Mapping[str, Any] = {}
_PARTITION_FETCH_BYTES_MAX = 4 * 2**20  # a topic alone, of few and large records


class _Followed(TopicReading):
    def start(
        self,
        *,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,  # noqa: ARG002  (nothing is ever revoked)
        on_gone: OnGone = warn_of,
    ) -> None:
        self._on_assigned, self._on_gone = on_assigned, on_gone
        self._follow_topic()

    def earliest(self, partition: Partition) -> int:
        try:
            return self._offsets(self._consumer.beginning_offsets, [partition])[partition]
        except kafka_errors.KafkaError as error:
            raise source_error(self._servers, error, partition.topic) from error
        except KeyError as error:
            raise UnavailableError(f"Kafka at {self._servers} has no topic {partition.topic} yet") from error


def kafka_tail(
    bootstrap_servers: str,
    topic: str,
    start: int | None,
    *,
    on_gone: OnGone = warn_of,
    client_options: Mapping[str, Any] = _NO_OPTIONS,
) -> TopicTail:
    """Follows a Kafka topic from an offset; arguments as of `TopicTail`. Raises SourceError."""
    options = {**CONSUMER, "max_partition_fetch_bytes": _PARTITION_FETCH_BYTES_MAX, **client_options}
    source = _Followed(bootstrap_servers, topic, options)
    return TopicTail(source, topic, start, source.earliest, on_gone=on_gone)
