"""Apache Kafka as a broker: `kafka://host:port[,host:port]`."""

# ruff: noqa: PLC0415 - Kafka's client takes long to import, and the name of a broker is logged before

from collections.abc import Sequence
from pathlib import Path

from stream.broker import ACKNOWLEDGE_S_MAX, BrokerOptions, Eraser, Topic, register
from stream.origin import Origin
from stream.source import PausableSource, Producer, TopicReader

_COMPACTED = {"cleanup.policy": "compact", "delete.retention.ms": str(7 * 86_400_000)}  # tombstones for a week


class KafkaBroker:
    """A `Broker` that is a Kafka cluster. `address`: its bootstrap servers."""

    log_path: Path | None = None

    def __init__(self, address: str, options: BrokerOptions) -> None:
        self.address = address
        self._options = options.client

    @property
    def name(self) -> str:
        return f"Kafka at {self.address}"

    def ensure_topics(self, topics: Sequence[Topic], *, create: bool) -> None:
        from stream.kafka import ensure_topics

        ensure_topics(
            self.address,
            {topic.name: topic.partitions for topic in topics},
            configs={topic.name: _COMPACTED for topic in topics if topic.compacted},
            create=create,
            client_options=self._options,
        )

    def source(self, topics: Sequence[str], group: str) -> PausableSource:
        from stream.kafka import KafkaSource

        return KafkaSource(self.address, topics, group, client_options=self._options)

    def producer(self, *, acknowledge_s_max: float = ACKNOWLEDGE_S_MAX) -> Producer:
        from stream.kafka import KafkaProducer

        return KafkaProducer(self.address, self._options, acknowledge_s_max=acknowledge_s_max)

    def reader(self, topic: str) -> TopicReader:
        from stream.readers import KafkaReader

        return KafkaReader(self.address, topic, self._options)

    def eraser(self) -> Eraser:
        from stream.eraser import KafkaEraser

        return KafkaEraser(self.address, self._options)

    def compact(self, topic: str) -> None:
        """Kafka does it by itself."""

    def retention_ms(self, topic: str) -> int | None:
        from stream.eraser import retention_ms

        return retention_ms(self.address, topic, self._options)

    def origin(self, group: str) -> Origin:
        from stream.kafka_group import group_origin

        return group_origin(self.address, group, self._options)


register("kafka", KafkaBroker)
