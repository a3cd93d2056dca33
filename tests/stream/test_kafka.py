"""What only Kafka has: rebalances, outages, topics that are not there. The rest is in test_sources.py."""

import logging
import os
import signal
import threading
import time
import uuid

import pytest

from stream import kafka_errors
from stream.dead_letters import DeadLetters, dead_letter
from stream.events import BadEvent
from stream.kafka import KafkaProducer, KafkaSource, ensure_topics
from stream.source import Partition, Record, SourceError, TooLargeError

MAKERS = {
    "source": lambda at: KafkaSource(at, ["clicks"], "group"),
    "producer": KafkaProducer,
    "topics": lambda at: ensure_topics(at, {"clicks": 1}),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_broker_that_is_not_there_is_named(make, free_port, monkeypatch):
    monkeypatch.setitem(kafka_errors._COMMON, "bootstrap_timeout_ms", 300)
    threads = threading.active_count()
    with pytest.raises(SourceError) as error:
        make(f"127.0.0.1:{free_port}")
    message = str(error.value)
    assert message.startswith(f"no Kafka answers at 127.0.0.1:{free_port}: start it, or check NEXTCLICK_KAFKA_")
    assert "\n" not in message
    assert threading.active_count() == threads


class Member:
    """A member of a consumer group that keeps its positions as a worker keeps its checkpoint."""

    def __init__(self, harness, topic, group, checkpoint, source=None):
        self.source = source or KafkaSource(harness.where, [topic], group)
        harness.opened.append(self.source)
        self.checkpoint = checkpoint
        self.records = []
        self.owned = set()
        self.threads = set()
        self.source.start(on_assigned=self.on_assigned, on_revoked=self.on_revoked)

    def on_assigned(self, partitions):
        self.threads.add(threading.current_thread())
        self.owned |= set(partitions)
        return {partition: self.checkpoint[partition] for partition in partitions if partition in self.checkpoint}

    def on_revoked(self, partitions):
        self.threads.add(threading.current_thread())
        assert set(partitions) <= self.owned
        self.owned -= set(partitions)
        self.source.commit({partition: self.source.positions()[partition] for partition in partitions})

    def step(self):
        records = self.source.poll(max_records=10, timeout_s=0.1)
        self.records += records
        self.checkpoint.update(self.source.positions())


def until(condition, members, within_s=60.0):
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        for member in members:
            member.step()
    assert condition()


@pytest.mark.real
def test_two_members_share_the_partitions_and_hand_them_over_without_loss(kafka_harness, caplog):
    caplog.set_level(logging.WARNING, logger="stream")
    topic, group, checkpoint = kafka_harness.topic(4), uuid.uuid4().hex, {}
    producer = kafka_harness.producer()
    kafka_harness.fill(producer, topic, range(400), keys=50)
    first = Member(kafka_harness, topic, group, checkpoint)
    until(lambda: len(first.records) >= 100, [first])
    second = Member(kafka_harness, topic, group, checkpoint)

    # Two threads, as two workers are two processes: a rebalance waits for every member to take part.
    stop = threading.Event()

    def work():
        while not stop.is_set():
            second.step()

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: len(first.owned) == len(second.owned) == 2 and not first.owned & second.owned, [first])
    kafka_harness.fill(producer, topic, range(400, 800), keys=50)
    until(lambda: len(first.records) + len(second.records) >= 800, [first])
    stop.set()
    thread.join()
    second.source.close()
    until(lambda: len(first.owned) == 4, [first])
    kafka_harness.fill(producer, topic, range(800, 1_000), keys=50)
    until(lambda: len(first.records) + len(second.records) >= 1_000, [first])

    numbers = sorted(int(record.value) for record in first.records + second.records)
    assert numbers == list(range(1_000))
    assert first.threads == {threading.current_thread()}
    assert second.threads == {thread}
    first.source.commit(first.source.positions())
    assert first.source.committed() == first.source.positions() == first.source.ends()
    assert "not committed" not in caplog.text


@pytest.mark.real
def test_reading_and_writing_go_on_after_an_outage_of_the_broker(kafka_harness, kafka_broker):
    topic = kafka_harness.topic()
    producer, source = kafka_harness.producer(), kafka_harness.source(topic)
    kafka_harness.fill(producer, topic, range(5))
    kafka_harness.drain(source, 5)
    kafka_broker.kill()
    began = time.monotonic()
    assert source.poll(max_records=10, timeout_s=2.0) == []
    source.commit({Partition(topic, 0): 5})
    assert source.ends() == {Partition(topic, 0): 5}
    assert source.poll(max_records=10, timeout_s=1.0) == []
    assert time.monotonic() - began < 60
    kafka_broker.start()
    kafka_harness.fill(producer, topic, range(5, 8))
    assert [int(record.value) for record in kafka_harness.drain(source, 3, within_s=60)] == [5, 6, 7]
    source.commit(source.positions())
    assert source.committed() == {Partition(topic, 0): 8}


@pytest.mark.real
def test_a_broker_that_hangs_does_not_hang_the_reader(kafka_harness, kafka_broker):
    topic = kafka_harness.topic()
    source = kafka_harness.source(topic)
    kafka_harness.settle(source, 1)
    kafka_broker.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert source.poll(max_records=10, timeout_s=1.0) == []
        source.ends()
        source.commit({Partition(topic, 0): 0})
        assert time.monotonic() - began < 30
    finally:
        kafka_broker.signal(signal.SIGCONT)
    kafka_harness.fill(kafka_harness.producer(), topic, [1])
    kafka_harness.drain(source, 1, within_s=60)


@pytest.mark.real
def test_a_topic_that_is_not_there_is_named_and_others_still_work(kafka_harness):
    topic, producer = kafka_harness.topic(), kafka_harness.producer()
    with pytest.raises(SourceError, match="does not offer topic no-such-topic: create it"):
        producer.send("no-such-topic", key=b"k", value=b"v")
    kafka_harness.fill(producer, topic, range(3))
    kafka_harness.drain(kafka_harness.source(topic), 3)


@pytest.mark.real
def test_a_record_that_the_topic_refuses_is_an_error_and_the_next_one_passes(kafka_harness):
    topic, producer = kafka_harness.topic(), kafka_harness.producer()
    with pytest.raises(TooLargeError, match=topic):
        producer.send(topic, key=b"k", value=os.urandom(1_500_000))
    with pytest.raises(TooLargeError, match=topic):
        producer.send(topic, key=b"k", value=b"x" * 5_000_000)
    kafka_harness.fill(producer, topic, range(3))
    kafka_harness.drain(kafka_harness.source(topic), 3)


@pytest.mark.real
def test_a_dead_letter_larger_than_its_topic_takes_is_cut(kafka_harness):
    topic, producer = kafka_harness.topic(), kafka_harness.producer()
    DeadLetters(producer, topic).put(Record("clicks", 0, 1, 0, b"k", b"x" * 3_000_000), BadEvent("too-large", "…"))
    producer.flush()
    (letter,) = map(dead_letter, kafka_harness.drain(kafka_harness.source(topic), 1))
    assert letter.truncated == 3_000_000
    assert letter.record.value == b"x" * 65_536
