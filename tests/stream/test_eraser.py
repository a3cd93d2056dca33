"""What is taken out of a topic is gone, and what stays is there once and in order: in the log and in Kafka."""

import pytest

from stream.eraser import KafkaEraser, LogEraser, retention_ms
from stream.log_file import Entry, Log
from stream.readers import KafkaReader, LogReader
from stream.source import Partition


@pytest.fixture
def eraser(harness):
    return {"log": LogEraser, "kafka": KafkaEraser}[harness.kind](harness.where)


@pytest.fixture
def records(harness):
    """What a topic holds now."""

    def read(topic, starts=None):
        reader = {"log": LogReader, "kafka": KafkaReader}[harness.kind](harness.where, topic)
        harness.opened.append(reader)
        return list(reader.read(starts or {}))

    return read


def fill(harness, topic, values, partition=None):
    producer = harness.producer()
    for number, value in enumerate(values):
        producer.send(topic, key=b"k%d" % number, value=value, headers=[("h", b"%d" % number)], partition=partition)
    producer.flush()


def told(records):
    return [(record.partition, record.key, record.value, record.headers, record.timestamp_ms) for record in records]


def test_what_is_gone_is_gone_and_the_rest_is_as_it_was(harness, eraser, records):
    topic = harness.topic(2)
    fill(harness, topic, [b"stay", b"go", b"stay too", b"go", b"last"], partition=1)
    fill(harness, topic, [b"go", b"elsewhere"], partition=0)
    before = records(topic)
    assert eraser.erase(topic, lambda record: record.value == b"go") == 3
    kept = [record for record in before if record.value != b"go"]
    assert told(records(topic)) == told(kept)
    assert eraser.erase(topic, lambda record: record.value == b"go") == 0
    assert told(records(topic)) == told(kept)


def test_of_a_topic_that_is_not_there_nothing_is_erased(eraser):
    assert eraser.erase("topic-that-is-not-there", lambda _: True) == 0


def test_all_may_go_and_readers_from_before_go_on(harness, eraser, records):
    topic = harness.topic()
    fill(harness, topic, [b"a", b"b"])
    assert eraser.erase(topic, lambda _: True) == 2
    assert records(topic) == []
    fill(harness, topic, [b"c"])
    assert [record.value for record in records(topic, {Partition(topic, 0): 1})] == [b"c"]


def test_an_erasing_that_was_cut_short_leaves_nothing_twice(harness, eraser, records, monkeypatch):
    if harness.kind == "log":
        pytest.skip("the log writes nothing again")
    topic = harness.topic()
    fill(harness, topic, [b"stay", b"go", b"stay too"])
    before = records(topic)
    with monkeypatch.context() as patch:
        patch.setattr(eraser, "_delete_before", lambda _: None)  # as if it had died before
        eraser.erase(topic, lambda record: record.value == b"go")
    assert len(records(topic)) == 5
    eraser.erase(topic, lambda record: record.value == b"go")
    assert told(records(topic)) == told([before[0], before[2]])


def test_a_record_goes_to_the_partition_that_is_asked_for(harness, records):
    topic = harness.topic(3)
    fill(harness, topic, [b"x"], partition=2)
    assert [record.partition for record in records(topic)] == [2]


def test_a_source_comes_past_gaps_without_a_word_of_loss(log_harness, caplog):
    topic = log_harness.topic()
    fill(log_harness, topic, [b"a", b"b", b"c", b"d"])
    LogEraser(log_harness.where).erase(topic, lambda record: record.value != b"c")
    source = log_harness.source(topic)
    assert [record.value for record in log_harness.drain(source, 1)] == [b"c"]
    assert source.poll(max_records=5, timeout_s=0.0) == []
    assert source.positions() == source.ends() == {Partition(topic, 0): 4}
    assert "lost" not in caplog.text


def test_the_file_holds_no_bytes_of_what_was_erased(tmp_path):
    path = tmp_path / "log.db"
    file, reader = Log(path), Log(path)
    file.append([Entry("clicks", b"u%d" % (n % 50), b"secret-%d;" % (n % 50) * 20) for n in range(2_000)])
    at = Partition("clicks", 0)
    mine = [record.offset for record in file.mentions(at, [b"secret-7;"])]
    assert len(mine) == 40
    file.erase(at, mine)
    reader.extents(["clicks"])
    file.scrub()
    held = b"".join(part.read_bytes() for part in tmp_path.iterdir())
    assert b"secret-7;" not in held
    assert b"secret-17;" in held
    assert len(reader.read(at, reader.extents(["clicks"])[at], 0, 5_000)) == 1_960


def test_a_partition_that_a_log_does_not_have_is_an_error(tmp_path):
    with pytest.raises(Exception, match="clicks has no partition 3"):
        Log(tmp_path / "log.db").append([Entry("clicks", b"k", b"v", (), 3)])


@pytest.mark.real
def test_kafka_says_how_long_it_keeps_a_topic(kafka_harness, kafka_broker):
    topic = kafka_harness.topic()
    assert retention_ms(kafka_broker.bootstrap_servers, topic) == 7 * 86_400_000
    assert retention_ms(kafka_broker.bootstrap_servers, "topic-that-is-not-there") is None
