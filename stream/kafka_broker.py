"""Apache Kafka as a broker: `kafka://host:port[,host:port]`."""

# ruff: noqa: PLC0415 - Kafka's client takes long to import, and the name of a broker is logged before

from collections.abc import Collection, Sequence
from pathlib import Path

from stream.broker import ACKNOWLEDGE_S_MAX, SESSION_TIMEOUT_S, BrokerOptions, Eraser, Topic, register
from stream.inspection import BrokerView, read_latest
from stream.origin import Origin
from stream.source import OnGone, PausableSource, Producer, TopicReader, warn_of
from stream.tail import TopicTail

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
            configs={topic.name: _configs(topic) for topic in topics},
            single=[topic.name for topic in topics if topic.single],
            create=create,
            client_options=self._options,
        )

    def source(self, topics: Sequence[str], group: str) -> PausableSource:
        from stream.kafka import KafkaSource

        return KafkaSource(self.address, topics, group, client_options=self._options)

    def shared_source(
        self,
        topic: str,
        control_topic: str,
        group: str,
        *,
        instance_id: str | None = None,
        session_timeout_s: float = SESSION_TIMEOUT_S,
    ) -> PausableSource:
        from stream.kafka_shared import SharedKafkaSource

        return SharedKafkaSource(
            self.address,
            topic,
            control_topic,
            group,
            instance_id=instance_id,
            session_timeout_s=session_timeout_s,
            client_options=self._options,
        )

    def tail(self, topic: str, start: int | None, *, on_gone: OnGone = warn_of) -> TopicTail:
        from stream.kafka_tail import kafka_tail

        return kafka_tail(self.address, topic, start, on_gone=on_gone, client_options=self._options)

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

    def inspect(self, topics: Collection[str], group: str, sampled: str, records_max: int) -> BrokerView:
        from stream.kafka_inspection import inspect_kafka

        view = inspect_kafka(self.address, topics, group, self._options)
        if sampled in view.topics and not view.topics[sampled].leaderless:
            read_latest(view, sampled, records_max, self.reader)
        return view


def _configs(topic: Topic) -> dict[str, str]:
    configs = dict(_COMPACTED) if topic.compacted else {}
    if topic.retention_s is not None:
        # Kafka deletes files, not records: they have to be begun more often than they are deleted.
        configs |= {
            "retention.ms": str(int(topic.retention_s * 1_000)),
            "segment.ms": str(int(topic.retention_s * 100)),
        }
    return configs


register("kafka", KafkaBroker)
