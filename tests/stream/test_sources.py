"""One behaviour suite for every source and producer: the embedded log always, Apache Kafka where there is one."""

import itertools
import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import stream
from stream.kafka import KafkaProducer, KafkaSource, ensure_topics
from stream.log import Log, LogProducer, LogSource
from stream.source import Partition, Producer, Record, Source, SourceError


@dataclass
class World:
    """A place where topics are, whatever is behind it. `close` closes all that was opened."""

    kind: str
    where: str
    make_source: Callable[[Sequence[str], str], Source]
    make_producer: Callable[[], Producer]
    make_topic: Callable[[str, int], None]
    add_partitions: Callable[[str, int], None]
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

    def close(self) -> None:
        for one in reversed(self.opened):
            one.close()


@pytest.fixture(params=["log", pytest.param("kafka", marks=pytest.mark.real)])
def world(request: pytest.FixtureRequest, tmp_path) -> Iterator[World]:
    if request.param == "log":
        path = tmp_path / "clicks.log"
        log = Log(path)
        world = World(
            kind="log",
            where=str(path),
            make_source=lambda topics, group: LogSource(path, topics, group),
            make_producer=lambda: LogProducer(path),
            make_topic=lambda name, partitions: log.ensure_topics({name: partitions}),
            add_partitions=log.add_partitions,
        )
        world.opened.append(log)
    else:
        servers = request.getfixturevalue("kafka_broker").bootstrap_servers
        world = World(
            kind="kafka",
            where=servers,
            make_source=lambda topics, group: KafkaSource(servers, topics, group),
            make_producer=lambda: KafkaProducer(servers),
            make_topic=lambda name, partitions: ensure_topics(servers, {name: partitions}),
            add_partitions=lambda name, count: _add_kafka_partitions(servers, name, count),
        )
    yield world
    world.close()


def _add_kafka_partitions(servers: str, name: str, count: int) -> None:
    from kafka import KafkaAdminClient  # noqa: PLC0415

    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_partitions({name: {"count": count}})
    admin.close()


def fill(producer: Producer, topic: str, numbers: Sequence[int], keys: int = 1) -> None:
    for number in numbers:
        producer.send(topic, key=b"k%d" % (number % keys), value=b"%d" % number)
    producer.flush()


def drain(source: Source, count: int, *, within_s: float = 30.0, max_records: int = 100) -> list[Record]:
    """Poll until `count` records came."""
    records: list[Record] = []
    deadline = time.monotonic() + within_s
    while len(records) < count and time.monotonic() < deadline:
        records += source.poll(max_records=max_records, timeout_s=0.5)
    assert len(records) == count
    return records


def settle(source: Source, partitions: int, within_s: float = 30.0) -> None:
    """Poll until so many partitions are assigned; nothing may come meanwhile."""
    deadline = time.monotonic() + within_s
    while len(source.positions()) != partitions and time.monotonic() < deadline:
        assert source.poll(max_records=1, timeout_s=0.1) == []
    assert len(source.positions()) == partitions


def values(records: Sequence[Record]) -> list[int]:
    return [int(record.value or b"-1") for record in records]


def test_what_is_sent_is_read_untouched(world):
    topic, producer = world.topic(), world.producer()
    sent = [
        (b"k", b"v", (("reason", b"\xff\x00"), ("reason", b""))),
        (None, b"no key", ()),
        (b"tombstone", None, ()),
        (b"\x00\xff", b"x" * 900_000, ()),
    ]
    before_ms = int(time.time() * 1_000)
    for key, value, headers in sent:
        producer.send(topic, key=key, value=value, headers=headers)
    producer.flush()
    records = drain(world.source(topic), 4)
    assert [(record.key, record.value, record.headers) for record in records] == sent
    assert [(record.topic, record.partition, record.offset) for record in records] == [(topic, 0, n) for n in range(4)]
    assert all(before_ms - 60_000 <= record.timestamp_ms <= before_ms + 60_000 for record in records)


def test_a_record_without_key_and_value_passes(world):
    topic, producer = world.topic(), world.producer()
    producer.send(topic, key=None, value=None)
    producer.flush()
    assert drain(world.source(topic), 1)[0].value is None


def test_each_partition_keeps_its_order_without_gaps_and_a_key_its_partition(world):
    topic, producer = world.topic(3), world.producer()
    fill(producer, topic, range(300), keys=20)
    records = drain(world.source(topic), 300)
    of_partition = {number: [r for r in records if r.partition == number] for number in range(3)}
    for of_one in of_partition.values():
        assert [record.offset for record in of_one] == list(range(len(of_one)))
        assert values(of_one) == sorted(values(of_one))
    where = {record.key: record.partition for record in records}
    assert all(where[record.key] == record.partition for record in records)
    assert len({record.partition for record in records}) > 1


def test_a_poll_is_bounded_and_waits_no_longer_than_asked(world):
    topic, producer = world.topic(2), world.producer()
    fill(producer, topic, range(50), keys=10)
    source = world.source(topic)
    seen: list[Record] = []
    while len(seen) < 50:
        batch = source.poll(max_records=7, timeout_s=5.0)
        assert len(batch) <= 7
        seen += batch
    began = time.monotonic()
    assert source.poll(max_records=7, timeout_s=0.3) == []
    assert 0.2 <= time.monotonic() - began < 10
    assert source.poll(max_records=7, timeout_s=0) == []


def test_positions_are_the_next_offsets_to_read_and_ends_the_next_to_be_written(world):
    topic, producer = world.topic(), world.producer()
    partition = Partition(topic, 0)
    fill(producer, topic, range(10))
    source = world.source(topic)
    drain(source, 4, max_records=4)
    assert source.positions() == {partition: 4}
    assert source.ends() == {partition: 10}
    fill(producer, topic, [10])
    assert source.ends() == {partition: 11}
    drain(source, 7)
    assert source.positions() == source.ends() == {partition: 11}


def test_records_that_come_later_are_read(world):
    topic, producer = world.topic(), world.producer()
    source = world.source(topic)
    settle(source, 1)
    for number in range(5):
        fill(producer, topic, [number])
        assert values(drain(source, 1)) == [number]


def test_seek_reads_again_or_skips(world):
    topic, producer = world.topic(), world.producer()
    partition = Partition(topic, 0)
    fill(producer, topic, range(10))
    source = world.source(topic)
    drain(source, 10)
    source.seek(partition, 3)
    assert source.positions() == {partition: 3}
    assert values(drain(source, 7)) == list(range(3, 10))
    source.seek(partition, 0)
    source.seek(partition, 8)
    assert values(drain(source, 2)) == [8, 9]
    with pytest.raises(SourceError, match="not assigned"):
        source.seek(Partition(topic, 9), 0)


def test_what_is_committed_is_there_after_a_restart(world):
    topic, producer = world.topic(2), world.producer()
    fill(producer, topic, range(20), keys=10)
    source = world.source(topic, group=topic)
    drain(source, 20)
    assert source.committed() == {}
    source.commit({})
    source.commit({Partition(topic, 0): 3})
    source.commit({Partition(topic, 1): 2})
    source.close()
    source.close()
    again = world.source(topic, group=topic)
    drain(again, 20)
    assert again.committed() == {Partition(topic, 0): 3, Partition(topic, 1): 2}
    other = world.source(topic, group=topic + "-other")
    drain(other, 20)
    assert other.committed() == {}


def test_the_application_s_positions_win_over_the_committed_ones(world):
    topic, producer = world.topic(2), world.producer()
    fill(producer, topic, range(40), keys=10)
    first = world.source(topic, group=topic)
    drain(first, 40)
    first.commit(first.positions())
    first.close()
    partition = Partition(topic, 0)
    end = first.positions()[partition]
    second = world.source(topic, group=topic, positions={partition: end - 2})
    # Partition 1 has no position: it starts from the earliest, not from what is committed.
    records = drain(second, 40 - end + 2)
    assert [record.offset for record in records if record.partition == 0] == [end - 2, end - 1]
    assert [record.offset for record in records if record.partition == 1] == list(range(40 - end))


def test_a_position_beyond_the_end_starts_over_and_says_so(world, caplog):
    topic, producer = world.topic(), world.producer()
    fill(producer, topic, range(5))
    with caplog.at_level(logging.WARNING):
        assert values(drain(world.source(topic, positions={Partition(topic, 0): 99}), 5)) == list(range(5))
    assert "99" in caplog.text


def test_a_topic_that_is_made_later_is_read(world):
    topic, later = world.topic(), f"later-{uuid.uuid4().hex[:12]}"
    source = world.source([topic, later])
    settle(source, 1)
    world.make_topic(later, 1)
    fill(world.producer(), later, range(3))
    assert values(drain(source, 3)) == [0, 1, 2]
    assert set(world.assigned) == {Partition(topic, 0), Partition(later, 0)}


def test_a_partition_that_is_added_later_is_read_from_its_beginning(world):
    topic = world.topic(1)
    source = world.source(topic)
    settle(source, 1)
    world.add_partitions(topic, 2)
    time.sleep(0.5)
    producer = world.producer()
    fill(producer, topic, range(40), keys=20)
    records = drain(source, 40)
    assert {record.partition for record in records} == {0, 1}
    assert source.positions() == source.ends()


def test_several_topics_are_read_by_one_source(world):
    topics, producer = [world.topic(), world.topic()], world.producer()
    for topic in topics:
        fill(producer, topic, range(5))
    records = drain(world.source(topics), 10)
    for topic in topics:
        assert values([record for record in records if record.topic == topic]) == list(range(5))


def test_two_groups_read_independently(world):
    topic, producer = world.topic(), world.producer()
    fill(producer, topic, range(5))
    first, second = world.source(topic, group=topic + "-1"), world.source(topic, group=topic + "-2")
    assert values(drain(first, 5)) == values(drain(second, 5)) == list(range(5))


def test_callbacks_run_in_the_thread_that_polls_and_their_errors_come_out(world):
    topic, producer = world.topic(), world.producer()
    fill(producer, topic, [0])
    source = world.make_source([topic], uuid.uuid4().hex)
    world.opened.append(source)

    def on_assigned(_: Sequence[Partition]) -> Mapping[Partition, int]:
        raise LookupError("no checkpoint")

    def begin() -> None:
        source.start(on_assigned=on_assigned, on_revoked=lambda _: None)
        for _ in itertools.repeat(None, 100):
            source.poll(max_records=1, timeout_s=0.5)

    with pytest.raises(LookupError, match="no checkpoint"):
        begin()


def test_polling_before_start_is_an_error(world):
    source = world.make_source([world.topic()], "g")
    world.opened.append(source)
    with pytest.raises(SourceError, match="start"):
        source.poll(max_records=1, timeout_s=0)


def test_a_producer_takes_more_than_its_buffer_and_flushes_when_closed(world):
    topic, producer = world.topic(), world.producer()
    for number in range(2_500):
        producer.send(topic, key=b"k", value=b"%d" % number)
    producer.close()
    producer.close()
    assert values(drain(world.source(topic), 2_500, max_records=500)) == list(range(2_500))


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


def write(world: World, topic: str, key: str, count: int) -> subprocess.Popen[bytes]:
    """A process that appends so many records, and prints what is acknowledged."""
    command = [sys.executable, "-c", WRITER, world.kind, world.where, topic, key, str(count)]
    return subprocess.Popen(command, cwd=Path(stream.__file__).parent.parent, stdout=subprocess.PIPE)


def test_processes_that_write_at_once_lose_and_mix_up_nothing(world):
    topic = world.topic(2)
    writers = [write(world, topic, str(number), 200) for number in range(3)]
    records = drain(world.source(topic), 600, within_s=60)
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for number in range(3):
        assert values([record for record in records if record.key == b"%d" % number]) == list(range(200))
    for number in range(2):
        offsets = [record.offset for record in records if record.partition == number]
        assert offsets == list(range(len(offsets)))


def test_what_a_killed_writer_was_told_is_there_and_in_order(world):
    topic = world.topic()
    writer = write(world, topic, "k", 1_000_000)
    told = [int(writer.stdout.readline()) for _ in range(20)][-1]
    writer.kill()
    told = max([told, *(int(line) for line in writer.stdout.readlines() if line.endswith(b"\n"))])
    writer.wait()
    fill(world.producer(), topic, [-1])
    source, seen = world.source(topic), [0]
    while seen[-1] != -1:
        seen += values(source.poll(max_records=500, timeout_s=1.0))
    read = seen[1:-1]
    assert read == list(range(len(read)))
    assert len(read) > told
