"""The embedded log as a broker: `log:///path`, percent-encoded as in any URL."""

# ruff: noqa: PLC0415 - these two modules import Kafka's client too

from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from stream.broker import ACKNOWLEDGE_S_MAX, SESSION_TIMEOUT_S, BrokerOptions, Eraser, Topic, register
from stream.inspection import BrokerView
from stream.log import LogProducer, LogSource
from stream.log_file import Log
from stream.log_inspection import inspect_log
from stream.origin import EMBEDDED, Origin
from stream.source import (
    OnGone,
    Partition,
    PausableSource,
    Producer,
    SourceError,
    TopicReader,
    UnavailableError,
    warn_of,
)
from stream.tail import TopicTail

_PARTITIONS = 1  # one worker reads them all; a single partition keeps the order of all clicks


class LogBroker:
    """A `Broker` that is a file. Each of its topics keeps its latest `records_max` records: of a compacted one, what
    goes before them is in the checkpoint of the worker that has read it."""

    name = f"the {EMBEDDED}"

    def __init__(self, address: str, options: BrokerOptions) -> None:
        self.log_path: Path | None = Path(unquote(address))
        self._path = self.log_path
        self._records_max = options.records_max

    @property
    def address(self) -> str:
        return str(self._path)

    def ensure_topics(self, topics: Sequence[Topic], *, create: bool) -> None:  # noqa: ARG002 - there is no server
        with closing(Log(self._path, records_max=self._records_max)) as log:
            log.ensure_topics({topic.name: min(topic.partitions, _PARTITIONS) for topic in topics})

    def source(self, topics: Sequence[str], group: str) -> PausableSource:
        return LogSource(self._path, topics, group)

    def shared_source(
        self,
        topic: str,  # noqa: ARG002
        control_topic: str,  # noqa: ARG002
        group: str,  # noqa: ARG002
        *,
        instance_id: str | None = None,  # noqa: ARG002
        session_timeout_s: float = SESSION_TIMEOUT_S,  # noqa: ARG002
    ) -> PausableSource:
        raise SourceError(
            f"{self.name} has a single worker: many workers need Kafka, set NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS"
        )

    def tail(self, topic: str, start: int | None, *, on_gone: OnGone = warn_of) -> TopicTail:
        source = LogSource(self._path, [topic], group="")

        def earliest(partition: Partition) -> int:
            with closing(Log(self._path)) as log:
                extents = log.extents([topic])
            if partition not in extents:
                raise UnavailableError(f"{self.name} has no topic {topic} yet")
            return extents[partition].earliest

        return TopicTail(source, topic, start, earliest, on_gone=on_gone)

    def producer(self, *, acknowledge_s_max: float = ACKNOWLEDGE_S_MAX) -> Producer:  # noqa: ARG002 - a file answers
        return LogProducer(self._path, partitions=_PARTITIONS, records_max=self._records_max)

    def reader(self, topic: str) -> TopicReader:
        from stream.readers import LogReader

        return LogReader(self._path, topic)

    def eraser(self) -> Eraser:
        from stream.eraser import LogEraser

        return LogEraser(self._path)

    def compact(self, topic: str) -> None:
        with closing(Log(self._path)) as log:
            log.compact(topic)

    def retention_ms(self, topic: str) -> int | None:  # noqa: ARG002 - its limit is a number of records
        return None

    def origin(self, group: str) -> Origin:
        with closing(Log(self._path)) as log:
            return Origin(EMBEDDED, log.stored_positions(group))

    def inspect(self, topics: Collection[str], group: str, sampled: str, records_max: int) -> BrokerView:
        return inspect_log(self._path, topics, group, sampled, records_max)


register("log", LogBroker)
