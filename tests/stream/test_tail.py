"""Following a topic of one partition: the same from the embedded log and from Kafka."""

import time

import pytest

from stream.broker import BrokerOptions
from stream.kafka_tail import kafka_tail
from stream.log_broker import LogBroker
from stream.source import OffsetOutOfRange, Partition, SourceError
from stream.tail import TopicTail


@pytest.fixture(params=["log", pytest.param("kafka", marks=pytest.mark.real)])
def harness(request):
    return request.getfixturevalue(f"{request.param}_harness")


@pytest.fixture
def follow(harness):
    """Begins to follow a topic."""

    def one(topic, start=None, **options):
        if harness.kind == "log":
            tail = LogBroker(harness.where, BrokerOptions()).tail(topic, start, **options)
        else:
            tail = kafka_tail(harness.where, topic, start, **options)
        harness.opened.append(tail)
        return tail

    return one


def take(tail, count, within_s=30.0):
    """Polls until so many records came, and a little longer."""
    records, deadline = [], time.monotonic() + within_s
    while len(records) < count and time.monotonic() < deadline:
        records += tail.poll()
        time.sleep(0.002)
    for _ in range(30):
        records += tail.poll()
        time.sleep(0.005)
    return [int(record.value) for record in records]


def test_it_gives_what_is_there_and_what_is_appended(harness, follow):
    topic, producer = harness.topic(), harness.producer()
    harness.fill(producer, topic, range(5))
    tail = follow(topic)
    assert take(tail, 5) == list(range(5))
    assert tail.position == tail.known_end == 5
    for number in range(5, 8):
        harness.fill(producer, topic, [number])
        assert take(tail, 1) == [number]
    assert tail.position == 8
    assert tail.earliest() == 0
    assert tail.trouble() is None


def test_it_starts_at_an_offset_and_can_be_moved(harness, follow):
    topic = harness.topic()
    harness.fill(harness.producer(), topic, range(9))
    tail = follow(topic, 6)
    assert take(tail, 3) == [6, 7, 8]
    tail.seek(2)
    assert take(tail, 7) == list(range(2, 9))


def test_at_the_end_it_waits_for_what_comes(harness, follow):
    topic = harness.topic()
    harness.fill(harness.producer(), topic, range(4))
    tail = follow(topic, 4)
    assert take(tail, 1, within_s=1) == []
    harness.fill(harness.producer(), topic, [4])
    assert take(tail, 1) == [4]


@pytest.mark.parametrize("start", [2, 99])
def test_an_offset_that_is_not_retained_is_reported(harness, follow, start):
    topic, told = harness.topic(), []
    harness.fill(harness.producer(), topic, range(9))
    harness.trim(topic, 6)
    tail = follow(topic, start, on_gone=told.append)
    assert take(tail, 3) == [6, 7, 8]
    assert told == [OffsetOutOfRange(Partition(topic, 0), start, 6, 9)]
    assert tail.earliest() == 6


def test_records_that_expire_before_they_are_read_are_reported(harness, follow):
    topic, told = harness.topic(), []
    harness.fill(harness.producer(), topic, range(3))
    tail = follow(topic, on_gone=told.append)
    assert take(tail, 3) == [0, 1, 2]
    harness.fill(harness.producer(), topic, range(3, 9))
    harness.trim(topic, 7)
    read = take(tail, 2)
    assert read[-2:] == [7, 8]
    assert sum(gone.lost for gone in told) == 6 - len(read)


def test_what_on_gone_raises_comes_out(harness, follow):
    topic = harness.topic()
    harness.fill(harness.producer(), topic, range(3))

    def stop(gone):
        raise SourceError(str(gone))

    with pytest.raises(SourceError, match="beyond the end"):
        take(follow(topic, 99, on_gone=stop), 1)


def test_a_topic_that_is_made_later_is_followed(harness, follow):
    topic = f"later-{time.time_ns()}"
    tail = follow(topic)
    assert take(tail, 1, within_s=0.2) == []
    assert tail.position is None
    with pytest.raises(SourceError):
        tail.earliest()
    harness.make_topic(topic, 1)
    harness.fill(harness.producer(), topic, range(3))
    assert take(tail, 3) == [0, 1, 2]


def test_several_partitions_are_an_error(harness, follow):
    topic = harness.topic(2)
    with pytest.raises(SourceError, match="several partitions and needs exactly one"):
        take(follow(topic), 1)


def test_while_nothing_is_due_the_source_is_left_alone():
    now, looks = [0.0], []

    class Source:
        def start(self, **callbacks):
            pass

        def poll(self, *, max_records, timeout_s):  # noqa: ARG002
            looks.append(now[0])
            return []

        def positions(self):
            return {}

    tail = TopicTail(Source(), "t", None, lambda _: 0, monotonic=lambda: now[0])
    for turn in range(1_000):
        now[0] = turn / 1_000
        tail.poll()
    assert 15 <= len(looks) <= 21


@pytest.mark.real
def test_an_outage_is_survived(kafka_harness, kafka_broker):
    topic, producer = kafka_harness.topic(), kafka_harness.producer()
    kafka_harness.fill(producer, topic, range(3))
    tail = kafka_tail(kafka_harness.where, topic, None)
    kafka_harness.opened.append(tail)
    assert take(tail, 3) == [0, 1, 2]
    kafka_broker.kill()
    assert take(tail, 1, within_s=2) == []
    kafka_broker.start()
    kafka_harness.fill(producer, topic, [3])
    assert take(tail, 1, within_s=60) == [3]
