"""Brokers to test against: the embedded log always, Apache Kafka where there is one."""

import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, TopicPartition

import stream
from stream.kafka import KafkaProducer, KafkaSource, ensure_topics
from stream.kafka_shared import SharedKafkaSource
from stream.log import Log, LogProducer, LogSource
from stream.merge import MergedSource
from stream.readers import KafkaReader
from stream.source import Partition, Producer, Record, Source

WRITER = """
import sys
import stream
from stream.kafka import KafkaProducer
from stream.log import LogProducer
kind, where, topic, key, count = sys.argv[1:]
producer = {"log": LogProducer, "kafka": KafkaProducer}[kind](where)
for number in range(int(count)):
    producer.send(topic, key=key.encode(), value=b"%d" % number)
    if number % 7 == 0:
        producer.flush()
        print(number, flush=True)
producer.close()
"""


def appended_s(record: Record) -> float:
    return record.timestamp_ms / 1_000


@dataclass
class BrokerHarness:
    """A broker with topics: the embedded log or Kafka. `close` closes all that was opened."""

    kind: str
    where: str
    make_source: Callable[[Sequence[str], str], Any]
    make_producer: Callable[[], Producer]
    make_topic: Callable[[str, int], None]
    add_partitions: Callable[[str, int], None]
    trim: Callable[[str, int], None]  # what lies before that offset, in partition 0, is retained no longer
    opened: list[Any] = field(default_factory=list)
    assigned: list[Partition] = field(default_factory=list)

    def topic(self, partitions: int = 1) -> str:
        name = f"topic-{uuid.uuid4().hex[:12]}"
        self.make_topic(name, partitions)
        return name

    def producer(self) -> Producer:
        self.opened.append(self.make_producer())
        return self.opened[-1]

    def source(
        self, topics: str | Sequence[str], group: str = "", positions: Mapping[Partition, int] | None = None
    ) -> Source:
        """A started source; it starts from `positions`, elsewhere from the earliest."""
        topics = [topics] if isinstance(topics, str) else topics
        source = self.make_source(topics, group or uuid.uuid4().hex)
        self.opened.append(source)

        def on_assigned(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
            self.assigned.extend(partitions)
            return positions or {}

        source.start(on_assigned=on_assigned, on_revoked=lambda _: None)
        return source

    def merged(self) -> "BrokerHarness":
        """With sources that merge by the time at which records were appended."""
        make = self.make_source
        self.make_source = lambda topics, group: MergedSource(make(topics, group), appended_s, wait_s=1.0)
        return self

    def close(self) -> None:
        for one in reversed(self.opened):
            one.close()

    def write(self, topic: str, key: str, count: int) -> subprocess.Popen[bytes]:
        """A process that appends so many records, and prints what is acknowledged."""
        command = [sys.executable, "-c", WRITER, self.kind, self.where, topic, key, str(count)]
        return subprocess.Popen(command, cwd=Path(stream.__file__).parent.parent, stdout=subprocess.PIPE)

    @staticmethod
    def fill(producer: Producer, topic: str, numbers: Sequence[int], keys: int = 1) -> None:
        for number in numbers:
            producer.send(topic, key=b"k%d" % (number % keys), value=b"%d" % number)
        producer.flush()

    @staticmethod
    def drain(source: Source, count: int, *, within_s: float = 30.0, max_records: int = 100) -> list[Record]:
        """Poll until `count` records came."""
        records: list[Record] = []
        deadline = time.monotonic() + within_s
        while len(records) < count and time.monotonic() < deadline:
            records += source.poll(max_records=max_records, timeout_s=0.5)
        assert len(records) == count
        return records

    @staticmethod
    def settle(source: Source, partitions: int, within_s: float = 30.0) -> None:
        """Poll until so many partitions are assigned; nothing may come meanwhile."""
        deadline = time.monotonic() + within_s
        while len(source.positions()) != partitions and time.monotonic() < deadline:
            assert source.poll(max_records=1, timeout_s=0.1) == []
        assert len(source.positions()) == partitions


@pytest.fixture(
    params=["log", *(pytest.param(name, marks=pytest.mark.real) for name in ("kafka", "shared"))],
)
def broker_harness(request: pytest.FixtureRequest) -> BrokerHarness:
    """Each kind of broker in turn."""
    return request.getfixturevalue(f"{request.param}_harness")


@pytest.fixture(params=["", "merged"])
def harness(request: pytest.FixtureRequest, broker_harness: BrokerHarness) -> BrokerHarness:
    """The same, and with sources that merge partitions by event time."""
    return broker_harness.merged() if request.param else broker_harness


@pytest.fixture
def log_harness(tmp_path: Path) -> Iterator[BrokerHarness]:
    path = tmp_path / "clicks.log"
    log = Log(path)
    harness = BrokerHarness(
        kind="log",
        where=str(path),
        make_source=lambda topics, group: LogSource(path, topics, group),
        make_producer=lambda: LogProducer(path),
        make_topic=lambda name, partitions: log.ensure_topics({name: partitions}),
        add_partitions=lambda name, count: add_log_partitions(log, name, count),
        trim=lambda name, before: _trim_log(path, name, before),
    )
    harness.opened.append(log)
    yield harness
    harness.close()


@pytest.fixture
def kafka_harness(kafka_broker: Any) -> Iterator[BrokerHarness]:
    servers = kafka_broker.bootstrap_servers
    harness = BrokerHarness(
        kind="kafka",
        where=servers,
        make_source=lambda topics, group: KafkaSource(servers, topics, group),
        make_producer=lambda: KafkaProducer(servers),
        make_topic=lambda name, partitions: ensure_topics(servers, {name: partitions}),
        add_partitions=lambda name, count: _add_kafka_partitions(servers, name, count),
        trim=lambda name, before: _trim_kafka(servers, name, before),
    )
    yield harness
    harness.close()


class OwningSource(SharedKafkaSource):
    """Hands records out once it owns all partitions, as what a lone worker does comes to."""

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        deadline = time.monotonic() + 30
        while self._on_assigned and not self._owns_all() and time.monotonic() < deadline:
            self._before_fetch()
        return super().poll(max_records=max_records, timeout_s=timeout_s)

    def _owns_all(self) -> bool:
        return bool(self._positions) and len(self.owned()) == len(self._positions)


@pytest.fixture
def shared_harness(kafka_harness: BrokerHarness) -> BrokerHarness:
    """Sources that read a topic whole, each alone in its group."""
    control = kafka_harness.topic()

    def make(topics: Sequence[str], group: str) -> Any:
        if len(topics) > 1:
            pytest.skip("a shared source reads one topic")
        return OwningSource(kafka_harness.where, topics[0], control, group)

    kafka_harness.make_source = make
    return kafka_harness


def add_log_partitions(log: Log, name: str, count: int) -> None:
    """As an operator might, by SQL: nothing of ours gives a topic that is there more partitions."""
    there = len(log.extents([name]))
    with closing(sqlite3.connect(log.path)) as file, file:
        rows = [(name, number) for number in range(there, count)]
        file.executemany("INSERT INTO partitions (topic, partition) VALUES (?, ?)", rows)


def _add_kafka_partitions(servers: str, name: str, count: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_partitions({name: count})
    admin.close()
    deadline = time.monotonic() + 30
    with closing(KafkaReader(servers, name)) as reader:
        while len(reader.ends()) < count:  # until then a producer does not know of them
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _trim_kafka(servers: str, name: str, before: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.delete_records({TopicPartition(name, 0): before})
    admin.close()


def _trim_log(path: Path, name: str, before: int) -> None:
    """As an append to a log that keeps fewer records does."""
    with closing(sqlite3.connect(path)) as file, file:
        (number,) = file.execute("SELECT id FROM partitions WHERE topic = ? AND partition = 0", [name]).fetchone()
        file.execute("UPDATE partitions SET first_offset = ? WHERE id = ?", [before, number])
        file.execute("DELETE FROM records WHERE partition_id = ? AND offset < ?", [number, before])
