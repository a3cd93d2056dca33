"""What a topic holds, read without joining a group: the same from the embedded log and from Kafka."""

import time

import pytest
from kafka import KafkaProducer as Client

from stream.kafka import ensure_topics
from stream.log import LogProducer
from stream.readers import KafkaReader, LogReader
from stream.source import Partition, Record


@pytest.fixture
def reader(harness):
    """Opens a reader of a topic."""

    def open_one(topic):
        one = {"log": LogReader, "kafka": KafkaReader}[harness.kind](harness.where, topic)
        harness.opened.append(one)
        return one

    return open_one


def test_it_reads_everything_there_is_partition_by_partition(harness, reader):
    topic = harness.topic(3)
    harness.fill(harness.producer(), topic, range(200), keys=9)
    found = list(reader(topic).read())
    assert sorted(int(record.value) for record in found) == list(range(200))
    assert found == sorted(found, key=lambda record: (record.partition, record.offset))
    assert all(record.topic == topic and record.key == b"k%d" % (int(record.value) % 9) for record in found)


def test_it_begins_at_the_given_offsets_and_elsewhere_at_the_earliest(harness, reader):
    topic = harness.topic(2)
    harness.fill(harness.producer(), topic, range(60), keys=8)
    one = reader(topic)
    ends = one.ends()
    assert sum(ends.values()) == 60
    begins = {Partition(topic, 0): ends[Partition(topic, 0)] - 2}
    found = list(one.read(begins))
    assert [record.offset for record in found if record.partition == 0] == [
        ends[Partition(topic, 0)] - n for n in (2, 1)
    ]
    assert [r.offset for r in found if r.partition == 1] == list(range(ends[Partition(topic, 1)]))


def test_from_the_end_and_beyond_there_is_nothing(harness, reader):
    topic = harness.topic(1)
    harness.fill(harness.producer(), topic, range(5))
    one = reader(topic)
    assert list(one.read(one.ends())) == []
    assert list(one.read({Partition(topic, 0): 99})) == []


def test_what_comes_while_it_reads_is_left_for_the_next_time(harness, reader):
    topic = harness.topic(1)
    producer = harness.producer()
    harness.fill(producer, topic, range(5))
    one = reader(topic)
    reading = one.read()
    first = next(reading)
    harness.fill(producer, topic, range(5, 9))
    assert [int(record.value) for record in (first, *reading)] == list(range(5))
    assert [int(record.value) for record in one.read({Partition(topic, 0): 5})] == list(range(5, 9))


def test_a_topic_that_is_not_there_is_empty(reader):
    one = reader("nowhere")
    assert one.ends() == {}
    assert list(one.read()) == []


def test_an_empty_topic_ends_at_zero(harness, reader):
    topic = harness.topic(2)
    assert reader(topic).ends() == {Partition(topic, 0): 0, Partition(topic, 1): 0}
    assert list(reader(topic).read()) == []


def test_headers_keys_and_tombstones_come_as_they_were_sent(harness, reader):
    topic = harness.topic(1)
    producer = harness.producer()
    producer.send(topic, key=b"\xff", value=None, headers=[("reason", b"\x00\xff"), ("reason", b"")])
    producer.flush()
    (record,) = reader(topic).read()
    assert (record.key, record.value) == (b"\xff", None)
    assert record.headers == (("reason", b"\x00\xff"), ("reason", b""))
    assert isinstance(record, Record)


def test_it_moves_no_group_s_position(harness, reader):
    topic = harness.topic(1)
    harness.fill(harness.producer(), topic, range(10))
    source = harness.source(topic)
    list(reader(topic).read())
    assert [int(record.value) for record in harness.drain(source, 10)] == list(range(10))
    assert source.committed() == {}


@pytest.mark.real
def test_the_marks_of_transactions_are_passed_over(kafka_harness):
    topic = kafka_harness.topic(1)
    producer = Client(bootstrap_servers=kafka_harness.where, transactional_id=topic)
    producer.init_transactions()
    for abort in (False, True, False):
        producer.begin_transaction()
        for number in range(5):
            producer.send(topic, key=b"k", value=b"%d" % number).get(timeout=30)
        producer.abort_transaction() if abort else producer.commit_transaction()
    producer.close()
    reader = KafkaReader(kafka_harness.where, topic)
    kafka_harness.opened.append(reader)
    (end,) = reader.ends().values()
    assert end == 18  # a mark after each five
    assert [record.offset for record in reader.read()] == [*range(5), *range(12, 17)]
    assert [list(reader.read({Partition(topic, 0): start})) for start in (17, 18)] == [[], []]


@pytest.mark.real
def test_a_compacted_topic_gives_what_is_left_of_it(kafka_harness):
    topic = f"items-{kafka_harness.topic(1)}"
    often = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    ensure_topics(kafka_harness.where, {topic: 1}, configs={topic: often})
    producer = kafka_harness.producer()
    reader = KafkaReader(kafka_harness.where, topic)
    kafka_harness.opened.append(reader)
    deadline = time.monotonic() + 120
    found, sent = [], 0
    while len(found) == sent and time.monotonic() < deadline:
        kafka_harness.fill(producer, topic, range(sent, sent + 10), keys=2)
        sent += 10
        time.sleep(1)
        found = list(reader.read())
    assert len(found) < sent
    assert [int(record.value) for record in found[-2:]] == [sent - 2, sent - 1]
    # Meanwhile the broker may have cleaned up more.
    later = [record.offset for record in reader.read({Partition(topic, 0): 1})]
    assert set(later) <= {record.offset for record in found if record.offset}
    assert later[-2:] == [record.offset for record in found[-2:]]


def test_many_pages_of_a_trimmed_log_begin_with_what_is_retained(tmp_path):
    producer = LogProducer(tmp_path / "log.db", records_max=1_200)
    for number in range(2_000):
        producer.send("t", key=b"k", value=b"%d" % number)
    producer.close()
    reader = LogReader(tmp_path / "log.db", "t")
    found = [int(record.value) for record in reader.read()]
    assert found == list(range(found[0], 2_000))
    assert len(found) == 1_200
    assert next(iter(reader.read({Partition("t", 0): 3}))).offset == found[0]
    reader.close()


def test_partitions_that_are_added_are_read_too(log_harness):
    topic = log_harness.topic(1)
    reader = LogReader(log_harness.where, topic)
    log_harness.add_partitions(topic, 2)
    assert reader.ends() == {Partition(topic, 0): 0, Partition(topic, 1): 0}
    reader.close()
