"""Partitions of Apache Kafka merged by event time."""

import itertools
import random
import threading
import time
import uuid
from contextlib import closing

import pytest
from kafka import KafkaProducer as Client

from stream.kafka import KafkaSource
from stream.merge import MergedSource
from stream.source import Partition
from tests.stream.test_kafka import Member, until

pytestmark = pytest.mark.real


def event_time(record):
    return float(record.value.split()[0])


def merged_source(harness, topic, group="", *, wait_s=30.0):
    source = MergedSource(KafkaSource(harness.where, [topic], group or uuid.uuid4().hex), event_time, wait_s=wait_s)
    harness.opened.append(source)
    return source


def started(harness, topic, **options):
    source = merged_source(harness, topic, **options)
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    return source


def publish(harness, topic, seconds, weights, order="file"):
    """One message for each time, with 200 bytes more; `weights`: how often each partition is chosen."""
    chance, producer = random.Random(3), harness.producer()
    rows = [(chance.choices(range(len(weights)), weights)[0], at) for at in seconds]
    for number, at in sorted(rows, key=lambda row: row[0]) if order == "partition" else rows:
        producer.send(topic, key=b"k", value=b"%d %s" % (at, b"x" * 200), partition=number)
    producer.flush()


@pytest.mark.parametrize("order", ["file", "partition"])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (20, 1, 1, 0)], ids=["even", "skewed"])
def test_an_archive_that_waits_comes_out_in_the_order_of_time(kafka_harness, weights, order):
    topic = kafka_harness.topic(4)
    publish(kafka_harness, topic, range(6_000), weights, order)
    source = started(kafka_harness, topic)
    records = kafka_harness.drain(source, 6_000, max_records=512, within_s=120)
    assert [event_time(one) for one in records] == list(range(6_000))
    assert source.positions() == source.ends()


def test_an_archive_that_is_written_meanwhile_comes_out_in_almost_that_order(kafka_harness):
    topic = kafka_harness.topic(4)
    source = started(kafka_harness, topic)
    kafka_harness.settle(source, 4)
    writer = threading.Thread(target=publish, args=(kafka_harness, topic, range(6_000), (1, 1, 1, 1)))
    writer.start()
    seen = []
    deadline = time.monotonic() + 120
    while len(seen) < 6_000 and time.monotonic() < deadline:
        seen += [event_time(one) for one in source.poll(max_records=512, timeout_s=0.05)]
        time.sleep(0.2)  # as a worker that learns
    writer.join()
    assert sorted(seen) == list(range(6_000))
    assert sum(later < earlier for earlier, later in itertools.pairwise(seen)) < 200
    latest = list(itertools.accumulate(seen, max))
    late = [most - at for most, at in zip(latest, seen, strict=True)]
    assert sum(rows > 1_000 for rows in late) < 600  # rows of the file


def test_idle_partitions_and_open_transactions_hold_no_other_up(kafka_harness):
    topic = kafka_harness.topic(4)
    source = started(kafka_harness, topic)
    kafka_harness.settle(source, 4)
    options = {"bootstrap_servers": kafka_harness.where, "transactional_id": topic}
    with closing(Client(**options)) as transactional:
        transactional.init_transactions()
        for number in range(3):
            transactional.begin_transaction()
            transactional.send(topic, value=b"%d" % number, partition=0)
            transactional.flush()
            kafka_harness.fill(kafka_harness.producer(), topic, [100 + number])  # elsewhere, or behind it
            producer = kafka_harness.producer()
            producer.send(topic, key=b"k", value=b"%d" % number, partition=1)
            producer.flush()
            began, found = time.monotonic(), []
            while not any(one.partition == 1 for one in found) and time.monotonic() < began + 30:
                found += source.poll(max_records=100, timeout_s=0.5)
            assert time.monotonic() - began < 15  # a wait would be 30
            (transactional.commit_transaction, transactional.abort_transaction)[number % 2]()
            time.sleep(0.2)
            while source.poll(max_records=100, timeout_s=0.5):
                pass


def test_members_that_merge_share_partitions_and_hand_them_over_without_loss(kafka_harness):
    topic, group, checkpoint = kafka_harness.topic(4), uuid.uuid4().hex, {}
    producer = kafka_harness.producer()
    kafka_harness.fill(producer, topic, range(2_000), keys=50)
    members = []
    for _ in range(2):
        member = Member(kafka_harness, topic, group, checkpoint, merged_source(kafka_harness, topic, group))
        members.append(member)
        if len(members) == 1:
            until(lambda: len(members[0].records) >= 100, members)  # much is buffered
    first, second = members
    stop = threading.Event()

    def work():
        while not stop.is_set():
            second.step()

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: len(first.owned) == len(second.owned) == 2 and not first.owned & second.owned, [first])
    kafka_harness.fill(producer, topic, range(2_000, 2_400), keys=50)
    until(lambda: len(first.records) + len(second.records) >= 2_400, [first], within_s=120)
    stop.set()
    thread.join()
    second.source.close()
    until(lambda: len(first.owned) == 4, [first])
    kafka_harness.fill(producer, topic, range(2_400, 2_500), keys=50)
    until(lambda: len(first.records) + len(second.records) >= 2_500, [first])
    assert sorted(int(one.value) for one in first.records + second.records) == list(range(2_500))


def test_a_full_partition_is_paused_and_the_others_go_on(kafka_harness):
    topic = kafka_harness.topic(2)
    source = kafka_harness.source(topic)
    kafka_harness.settle(source, 2)
    source.pause([Partition(topic, 0), Partition("another", 0)])
    producer = kafka_harness.producer()
    for number in range(2):
        for value in range(3):
            producer.send(topic, key=b"k", value=b"%d" % value, partition=number)
    producer.flush()
    assert {one.partition for one in kafka_harness.drain(source, 3)} == {1}
    assert source.poll(max_records=10, timeout_s=1.0) == []
    source.pause(())
    assert {one.partition for one in kafka_harness.drain(source, 3)} == {0}
    assert source.known_ends() == source.ends() == {Partition(topic, 0): 3, Partition(topic, 1): 3}
