"""What other producers write, above all Kafka's own, read from a real broker: codecs, transactions, damage."""

import json
import os
import random
import subprocess
import uuid
from collections import Counter
from pathlib import Path

import pytest

from stream.kafka import ensure_topics
from stream.readers import KafkaReader
from stream.source import Partition

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
UNPACKED_BYTES = 3 * 2**20  # of each producer's batch: kafka-python's own zstd ends at 1 MiB


def console_producer(world, topic, codec, lines: bytes, *more: str) -> subprocess.Popen[bytes]:
    """Kafka's own console producer, sending these lines as one batch for each partition."""
    tool = Path(os.environ["KAFKA_START"]).parent / "tool"
    options = ["batch.size=8000000", "linger.ms=3000", "max.request.size=16000000", "max.block.ms=60000", *more]
    options += [f"compression.type={codec}"]
    command = [str(tool), "ConsoleProducer", "--bootstrap-server", world.where, "--topic", topic]
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
def test_each_codec_of_kafkas_own_producer_is_read_however_much_a_batch_unpacks_to(kafka_world):
    topic = f"codecs-{uuid.uuid4().hex[:8]}"
    ensure_topics(kafka_world.where, {topic: 1}, configs={topic: {"max.message.bytes": "16000000"}})
    chance = random.Random(0)
    sent, processes = Counter(), []
    for codec in CODECS:
        one = [
            json.dumps({"user_id": f"{codec}-{n}", "item_id": chance.randrange(10**9), "padding": "x" * 500})
            for n in range(UNPACKED_BYTES // 560)
        ]
        processes.append(console_producer(kafka_world, topic, codec, "\n".join(one).encode()))
        sent[codec] = len(one)
    wait_for(processes)
    end = sum(sent.values())
    records = kafka_world.drain(kafka_world.source(topic), end, within_s=120, max_records=2_000)
    assert Counter(json.loads(record.value)["user_id"].split("-")[0] for record in records) == sent
    assert [record.offset for record in records] == list(range(end))
    assert not any(record.undecodable for record in records)
    reader = KafkaReader(kafka_world.where, topic)
    kafka_world.opened.append(reader)
    assert list(reader.read({Partition(topic, 0): 1_000})) == records[1_000:]
