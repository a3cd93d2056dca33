"""Real outages of real servers: nothing is lost, nothing learned twice, and lists end as if nothing had happened."""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import CLUSTER_FAULTS, FAULTS, holds, matrix
from online.worker.backoff import Backoff
from online.worker.dead_letters import DeadLetterWriter
from stream.dead_letters import dead_letter
from stream.eraser import KafkaEraser
from stream.events import BadEvent
from stream.kafka import KafkaProducer, ensure_topics
from stream.readers import KafkaReader
from stream.source import Partition, Record, UnavailableError

QUICK_IN_CLUSTER = ("slots moved",)
QUICK = ("worker killed", "broker killed", "topic later", "redis killed")


@pytest.mark.real
@pytest.mark.timeout(900)
def test_what_fails_in_the_middle_changes_neither_what_is_learned_nor_the_lists() -> None:
    if not os.environ.get("KAFKA_START") or not os.environ.get("REDIS_SERVER"):
        pytest.skip("KAFKA_START and REDIS_SERVER are not set: tests against real servers are left out")
    faults = [fault for fault in FAULTS if fault.name in QUICK]
    kafka_start, redis_program = Path(os.environ["KAFKA_START"]), os.environ["REDIS_SERVER"]
    rows = matrix(kafka_start, redis_program, faults, clicks=120, rate=20, say=print)
    assert [row["fault"] for row in rows] == ["undisturbed", *(fault.name for fault in faults)]
    assert all(row["events"] == row["learned"] == 120 for row in rows), rows
    assert all(map(holds, rows)), rows


@pytest.mark.real
@pytest.mark.timeout(900)
def test_what_fails_in_a_cluster_changes_neither_what_is_learned_nor_the_lists() -> None:
    """The fault that holds most at once; the others are `python -m benchmarks.faults --cluster`."""
    if not os.environ.get("KAFKA_START") or not os.environ.get("REDIS_SERVER"):
        pytest.skip("KAFKA_START and REDIS_SERVER are not set: tests against real servers are left out")
    faults = [fault for fault in CLUSTER_FAULTS if fault.name in QUICK_IN_CLUSTER]
    kafka_start, redis_program = Path(os.environ["KAFKA_START"]), os.environ["REDIS_SERVER"]
    rows = matrix(kafka_start, redis_program, faults, clicks=60, rate=20, say=print, cluster=True)
    assert [row["fault"] for row in rows] == ["undisturbed", *(fault.name for fault in faults)]
    assert all(row["events"] == row["learned"] == 60 for row in rows), rows
    assert all(map(holds, rows)), rows


@pytest.mark.real
def test_dead_letters_wait_for_an_unavailable_broker_and_are_written_once(kafka_broker: Any) -> None:
    topic = "outages.dead"
    ensure_topics(kafka_broker.bootstrap_servers, {topic: 1})
    producer = KafkaProducer(kafka_broker.bootstrap_servers, acknowledge_s_max=2.0)
    reader = KafkaReader(kafka_broker.bootstrap_servers, topic)
    box = DeadLetterWriter(producer, reader, topic, KafkaEraser(kafka_broker.bootstrap_servers), Backoff(1e-6, 1e-6))
    box.load_state({}, {})
    box.put(Record("clicks", 0, 1, 0, b"k", b"v"), BadEvent("malformed-json", ""))
    offsets = {Partition("clicks", 0): 9}
    assert box.flush(offsets)
    kafka_broker.kill()
    try:
        for offset in (2, 3):
            box.put(Record("clicks", 0, offset, 0, b"k", b"v"), BadEvent("malformed-json", ""))
        assert not box.flush(offsets)
        assert "Kafka" in str(box.waits_for)
        box.put(Record("clicks", 0, 4, 0, b"k", b"v"), BadEvent("malformed-json", ""))
    finally:
        kafka_broker.start()
    while not box.flush(offsets):
        pass
    letters = [dead_letter(record).offset for record in reader.read()]
    assert letters == [1, 2, 3, 4]
    producer.close()
    reader.close()


@pytest.mark.real
def test_a_topic_that_others_are_to_make_is_named_and_not_made(kafka_broker: Any) -> None:
    with pytest.raises(UnavailableError, match="has no topic made-by-others yet: create it"):
        ensure_topics(kafka_broker.bootstrap_servers, {"made-by-others": 1}, create=False)
    ensure_topics(kafka_broker.bootstrap_servers, {"made-by-others": 1})
    ensure_topics(kafka_broker.bootstrap_servers, {"made-by-others": 1}, create=False)
