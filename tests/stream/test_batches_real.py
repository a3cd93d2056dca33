"""What other producers write, above all Kafka's own, read from a real broker: codecs, transactions, damage."""

import json
import os
import random
import struct
import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka import KafkaProducer as Client

from stream import batches
from stream.codecs import CODECS as NAMES
from stream.codecs import UNPACKED_BYTES_MAX, unpack
from stream.kafka import ensure_topics
from stream.readers import KafkaReader
from stream.source import Partition

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
UNPACKED_BYTES = 3 * 2**20  # of each producer's batch: kafka-python's own zstd ends at 1 MiB


def console_producer(harness, topic, codec, lines: bytes, *more: str) -> subprocess.Popen[bytes]:
    """Kafka's own console producer, sending these lines as one batch for each partition."""
    tool = Path(os.environ["KAFKA_START"]).parent / "tool"
    options = ["batch.size=8000000", "linger.ms=3000", "max.request.size=16000000", "max.block.ms=60000", *more]
    options += [f"compression.type={codec}"]
    command = [str(tool), "ConsoleProducer", "--bootstrap-server", harness.where, "--topic", topic]
    command += ["--batch-size", "8000000", "--max-memory-bytes", "64000000", "--timeout", "3000"]
    command += ["--compression-codec", codec, "--request-timeout-ms", "30000"]
    for option in options:
        command += ["--command-property", option]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process.stdin.write(lines)
    process.stdin.close()
    return process


def wait_for(processes) -> None:
    for process in processes:
        said = process.stderr.read().decode()
        assert process.wait(timeout=120) == 0, said
        assert "ERROR" not in said, said


@pytest.mark.real
def test_each_codec_of_kafkas_own_producer_is_read_however_much_a_batch_unpacks_to(kafka_harness, monkeypatch):
    sizes = Counter()

    def measured(codec, data, bytes_max):
        found = unpack(codec, data, bytes_max)
        sizes[NAMES[codec]] = max(sizes[NAMES[codec]], len(found))
        return found

    monkeypatch.setattr(batches, "unpack", measured)
    topic = f"codecs-{uuid.uuid4().hex[:8]}"
    ensure_topics(kafka_harness.where, {topic: 1}, configs={topic: {"max.message.bytes": "16000000"}})
    chance = random.Random(0)
    sent, processes = Counter(), []
    for codec in CODECS:
        one = [
            json.dumps({"user_id": f"{codec}-{n}", "item_id": chance.randrange(10**9), "padding": "x" * 500})
            for n in range(UNPACKED_BYTES // 560)
        ]
        processes.append(console_producer(kafka_harness, topic, codec, "\n".join(one).encode()))
        sent[codec] = len(one)
    wait_for(processes)
    end = sum(sent.values())
    records = kafka_harness.drain(kafka_harness.source(topic), end, within_s=120, max_records=2_000)
    assert Counter(json.loads(record.value)["user_id"].split("-")[0] for record in records) == sent
    assert [record.offset for record in records] == list(range(end))
    assert not any(record.undecodable for record in records)
    assert sizes.keys() == set(CODECS) - {"none"}
    assert min(sizes.values()) > 2 * 2**20
    reader = KafkaReader(kafka_harness.where, topic)
    kafka_harness.opened.append(reader)
    assert list(reader.read({Partition(topic, 0): 1_000})) == records[1_000:]


def transactional(harness, name):
    producer = Client(bootstrap_servers=harness.where, transactional_id=name)
    harness.opened.append(producer)
    producer.init_transactions()
    return producer


def send_five(producer, topic, *, aborted):
    producer.begin_transaction()
    for number in range(5):
        producer.send(topic, key=b"k", value=b"%d" % number)
    producer.flush()
    producer.abort_transaction() if aborted else producer.commit_transaction()


def reach(source, end, within_s=60.0):
    """Polls until the position of its only partition is `end` -> what came."""
    found, deadline = [], time.monotonic() + within_s
    while time.monotonic() < deadline and [*source.positions().values()] != [end]:
        found += source.poll(max_records=3, timeout_s=0.2)
    assert [*source.positions().values()] == [end]
    return found


@pytest.mark.real
def test_marks_and_aborted_messages_are_no_lag_and_what_is_open_is_not_either(kafka_harness, caplog):
    topic = kafka_harness.topic()
    partition = Partition(topic, 0)
    producer = transactional(kafka_harness, topic)
    source = kafka_harness.source(topic, group=topic)
    kafka_harness.settle(source, 1)
    for aborted in (True, False, True, True):
        send_five(producer, topic, aborted=aborted)
    assert [record.offset for record in reach(source, 24)] == list(range(6, 11))
    assert source.positions() == {partition: 24}  # behind the last mark
    source.commit(source.positions())
    assert source.committed() == source.ends() == {partition: 24}

    other = transactional(kafka_harness, f"{topic}-open")
    other.begin_transaction()
    other.send(topic, key=b"k", value=b"open")
    other.flush()
    kafka_harness.fill(kafka_harness.producer(), topic, [7])
    assert source.poll(max_records=10, timeout_s=1.0) == []
    assert source.ends() == source.positions() == {partition: 24}  # nothing more can be read yet
    other.commit_transaction()
    assert len(reach(source, 27)) == 2
    source.close()

    later = kafka_harness.source(topic, group=topic, positions={partition: 24})
    assert len(reach(later, 27)) == 2
    assert "retained" not in caplog.text
    assert "made anew" not in caplog.text


@pytest.mark.real
def test_a_batch_damaged_on_the_broker_s_disk_stops_neither_source_nor_reader(kafka_harness, kafka_broker):
    topic = kafka_harness.topic()
    for at in range(0, 40, 10):
        producer = Client(bootstrap_servers=kafka_harness.where, compression_type="gzip", linger_ms=500)
        for number in range(at, at + 10):
            producer.send(topic, key=b"k", value=b"%d" % number)
        producer.close()
    (segment,) = (kafka_broker._log.parent / "data").rglob(f"{topic}-0/*0.log")
    held, places = segment.read_bytes(), [0]
    while places[-1] < len(held):
        places.append(places[-1] + 12 + struct.unpack_from(">i", held, places[-1] + 8)[0])
    with segment.open("r+b") as file:
        file.seek(places[2] - 5)  # in the records of the second batch
        file.write(b"\xff\x00")
    records = reach(kafka_harness.source(topic), 40)
    assert [int(record.value) for record in records if not record.undecodable] == [*range(10), *range(20, 40)]
    (aside,) = [record.undecodable for record in records if record.undecodable]
    assert str(aside) == "offsets 10 to 19, 10 messages: the batch is damaged, its checksum is wrong"
    reader = KafkaReader(kafka_harness.where, topic)
    kafka_harness.opened.append(reader)
    assert list(reader.read()) == records


@pytest.mark.real
def test_a_batch_that_unpacks_beyond_the_bound_is_put_aside_and_reading_goes_on(kafka_harness):
    topic, size = kafka_harness.topic(), UNPACKED_BYTES_MAX + 1
    producer = Client(bootstrap_servers=kafka_harness.where, compression_type="gzip", max_request_size=2 * size)
    producer.send(topic, value=bytes(size)).get(timeout=60)
    producer.close()
    kafka_harness.fill(kafka_harness.producer(), topic, [1])
    bomb, after = reach(kafka_harness.source(topic), 2)
    assert str(bomb.undecodable) == "offset 0, 1 message: gzip: it unpacks to more than 134,217,728 bytes"
    assert after.value == b"1"


@pytest.mark.real
def test_keys_values_headers_and_times_of_any_kind_come_as_they_are(kafka_harness):
    created, appended = kafka_harness.topic(), f"appended-{uuid.uuid4().hex[:8]}"
    ensure_topics(kafka_harness.where, {appended: 1}, configs={appended: {"message.timestamp.type": "LogAppendTime"}})
    client = Client(bootstrap_servers=kafka_harness.where)
    for topic in (created, appended):
        client.send(topic, key=None, value=b"no key", timestamp_ms=1_000)
        client.send(topic, key=b"k", value=None, headers=[("h", b""), ("\u00e9", b"\xff")], timestamp_ms=0)
        client.send(topic, key=b"k", value=b"", timestamp_ms=2_000)
    client.close()
    for topic, times in ((created, [1_000, 0, 2_000]), (appended, None)):
        records = kafka_harness.drain(kafka_harness.source(topic), 3)
        assert [(one.key, one.value) for one in records] == [(None, b"no key"), (b"k", None), (b"k", b"")]
        assert records[1].headers == (("h", b""), ("\u00e9", b"\xff"))
        now_ms = 1_000 * time.time()
        if times is None:
            assert all(now_ms - 120_000 < one.timestamp_ms < now_ms + 120_000 for one in records)
        else:
            assert [one.timestamp_ms for one in records] == times


@pytest.mark.real
def test_a_topic_made_anew_is_read_from_its_beginning_and_reported(kafka_harness):
    topic, gone, known = kafka_harness.topic(), [], {}
    source = kafka_harness.make_source([topic], topic)
    kafka_harness.opened.append(source)
    source.start(on_assigned=lambda _: known, on_revoked=lambda _: None, on_gone=gone.append)
    kafka_harness.fill(kafka_harness.producer(), topic, range(20))
    kafka_harness.drain(source, 20)
    known |= source.positions()  # as a checkpoint has them
    admin = KafkaAdminClient(bootstrap_servers=kafka_harness.where)
    admin.delete_topics([topic])
    assert source.poll(max_records=10, timeout_s=3.0) == []
    kafka_harness.make_topic(topic, 1)
    kafka_harness.fill(kafka_harness.producer(), topic, range(3))
    admin.close()
    assert [int(record.value) for record in kafka_harness.drain(source, 3, within_s=60)] == [0, 1, 2]
    assert [(one.wanted, one.lost) for one in gone] == [(20, 0)]
