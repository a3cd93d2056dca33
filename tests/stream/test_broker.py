"""Brokers by URL: one suite for all of them, and one that is made up here, which nothing else knows."""

# ruff: noqa: ARG002 - a made-up broker keeps to the protocol

import re
import uuid
import zlib
from pathlib import Path
from typing import ClassVar

import pytest

import stream
from stream import broker as broker_module
from stream.broker import BrokerOptions, Topic, open_broker, register
from stream.origin import Origin
from stream.source import Partition, Record, SourceError

PARTITIONS = 2


class Memory:
    """Topics and commits of one address, in this process."""

    at: ClassVar = {}

    def __init__(self):
        self.topics, self.commits = {}, {}


class MemoryBroker:
    """All of a `Broker` that a worker cannot do without."""

    log_path = None

    def __init__(self, address, options):
        self.address, self.options = address, options
        self.name = f"memory at {address}"
        self.memory = Memory.at.setdefault(address, Memory())

    def ensure_topics(self, topics, *, create):
        for topic in topics:
            if not create and topic.name not in self.memory.topics:
                raise SourceError(f"{self.name} has no topic {topic.name}")
            self.memory.topics.setdefault(topic.name, [[] for _ in range(topic.partitions)])

    def source(self, topics, group):
        return MemorySource(self.memory, topics, group)

    def producer(self, *, acknowledge_s_max=1.0):
        return MemoryProducer(self.memory)

    def reader(self, topic):
        return MemoryReader(self.memory, topic)

    def eraser(self):
        raise SourceError(f"{self.name} cannot erase")

    def compact(self, topic):
        pass

    def retention_ms(self, topic):
        return None

    def origin(self, group):
        return Origin(self.address, dict(self.memory.commits.get(group, {})))


class MemoryProducer:
    def __init__(self, memory):
        self.memory = memory

    def send(self, topic, *, key, value, headers=(), partition=None):
        parts = self.memory.topics[topic]
        at = zlib.crc32(key or b"") % len(parts) if partition is None else partition
        parts[at].append(Record(topic, at, len(parts[at]), 0, key, value, tuple(headers)))

    def flush(self):
        pass

    def close(self):
        pass


class MemoryReader:
    def __init__(self, memory, topic):
        self.memory, self.topic = memory, topic

    def ends(self):
        return {Partition(self.topic, at): len(part) for at, part in enumerate(self.memory.topics.get(self.topic, []))}

    def read(self, starts=None):
        for partition, end in self.ends().items():
            yield from self.memory.topics[self.topic][partition.partition][(starts or {}).get(partition, 0) : end]

    def close(self):
        pass


class MemorySource:
    def __init__(self, memory, topics, group):
        self.memory, self.topics, self.group = memory, topics, group
        self.at, self.paused = {}, ()

    def start(self, *, on_assigned, on_revoked, on_gone=None):
        new = [partition for topic in self.topics for partition in MemoryReader(self.memory, topic).ends()]
        self.at = dict.fromkeys(new, 0) | dict(on_assigned(new))

    def poll(self, *, max_records, timeout_s):
        records = []
        for partition, offset in self.at.items():
            if partition not in self.paused:
                part = self.memory.topics[partition.topic][partition.partition]
                records += part[offset : offset + max_records - len(records)]
        for record in records:
            self.at[Partition(record.topic, record.partition)] = record.offset + 1
        return records

    def positions(self):
        return dict(self.at)

    def pause(self, partitions):
        self.paused = tuple(partitions)

    def seek(self, partition, offset):
        self.at[partition] = offset

    def commit(self, offsets):
        self.memory.commits.setdefault(self.group, {}).update(offsets)

    def committed(self):
        return dict(self.memory.commits.get(self.group, {}))

    def ends(self):
        return {at: end for topic in self.topics for at, end in MemoryReader(self.memory, topic).ends().items()}

    def known_ends(self):
        return self.ends()

    def trouble(self):
        return None

    def close(self):
        pass


@pytest.fixture
def memory_url():
    register("memory", MemoryBroker)
    yield f"memory://{uuid.uuid4().hex}"
    del broker_module._OPENERS["memory"]


@pytest.fixture(params=["memory", "log", pytest.param("kafka", marks=pytest.mark.real)])
def url(request, tmp_path):
    if request.param == "kafka":
        return f"kafka://{request.getfixturevalue('kafka_broker').bootstrap_servers}"
    return f"log://{tmp_path}/clicks.db" if request.param == "log" else request.getfixturevalue("memory_url")


def polled(source, count):
    records = []
    for _ in range(600):
        records += source.poll(max_records=10, timeout_s=0.1)
        if len(records) >= count:
            return records
    raise AssertionError(f"{len(records)} of {count} records came")


def test_what_is_published_is_polled_committed_and_read(url):
    topic, group = f"t-{uuid.uuid4().hex}", f"g-{uuid.uuid4().hex}"
    broker = open_broker(url)
    broker.ensure_topics([Topic(topic, PARTITIONS), Topic(f"{topic}-items", compacted=True)], create=True)
    producer = broker.producer()
    sent = {b"%d" % number for number in range(10)}
    for value in sent:
        producer.send(topic, key=value, value=value)
    producer.flush()

    source = broker.source([topic], group)
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    assert {record.value for record in polled(source, len(sent))} == sent
    source.commit(source.positions())
    assert source.committed() == {at: end for at, end in source.positions().items() if end}
    source.close()

    again = open_broker(url)  # as another process would
    assert {at: end for at, end in again.origin(group).committed.items() if end} == {
        at: end for at, end in again.reader(topic).ends().items() if end
    }
    assert {record.value for record in again.reader(topic).read()} == sent
    again.compact(f"{topic}-items")
    assert again.address in url
    producer.close()


def test_servers_without_a_scheme_are_kafka_s():
    plain, named = open_broker("a:9092,b:9092"), open_broker("kafka://a:9092,b:9092")
    assert plain.name == named.name == "Kafka at a:9092,b:9092"
    assert plain.address == "a:9092,b:9092"
    assert plain.log_path is None


def test_the_path_of_a_log_may_hold_any_character(tmp_path):
    broker = open_broker(f"log://{tmp_path}/50%25 of %23 it/log.db")
    assert broker.log_path == tmp_path / "50% of # it" / "log.db"
    assert broker.address == str(broker.log_path)
    assert broker.name == "the embedded log"


def test_options_reach_the_broker(memory_url):
    options = BrokerOptions(client={"user": "u"}, records_max=7)
    assert open_broker(memory_url, options).options is options


@pytest.mark.parametrize("url", ["pulsar://host:6650", "../kafka://x", "Kafka ://x", "://x"])
def test_a_scheme_that_nothing_registers_is_refused_in_one_line(url):
    with pytest.raises(SourceError, match="there is no broker for URLs that begin with") as error:
        open_broker(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scheme", ["", "Kafka", "a.b", "a/b"])
def test_only_a_scheme_can_be_registered(scheme):
    with pytest.raises(ValueError, match="is no scheme"):
        register(scheme, MemoryBroker)


def test_which_broker_it_is_is_decided_in_one_place():
    """Elsewhere the setting is not asked for, and no module but the brokers' own names their classes."""
    root = Path(stream.__file__).parent.parent
    asked, made = set(), set()
    for path in [*root.glob("online/**/*.py"), *root.glob("stream/**/*.py")]:
        name, text = str(path.relative_to(root)), path.read_text()
        if re.search(r"\.kafka_bootstrap_servers", text):
            asked.add(name)
        if re.search(r"\b(Kafka|Log)(Source|Producer|Reader|Eraser)\(", re.sub(r"class \w+\(?", "", text)):
            made.add(name)
    assert asked == {"online/worker/connections.py"}
    assert made == {"stream/kafka_broker.py", "stream/log_broker.py", "stream/eraser.py"}
