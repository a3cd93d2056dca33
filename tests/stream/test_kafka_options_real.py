"""Each option that we give to kafka-python is held by the part that has to follow it.

Versions of it drop one on the way. A part is asked for every option that it says it knows (its
DEFAULT_CONFIG), so another one that is lost is found too.
"""

from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from online.config.clients import kafka_options
from online.config.settings import load_settings
from stream import kafka
from stream import kafka_errors as ours
from stream.kafka import KafkaProducer, ensure_topics
from stream.kafka_errors import connected
from stream.readers import KafkaReader

# What no other part is told: the client follows it itself.
OF_THE_CLIENT = {
    "consumer": {"metrics_enabled", "bootstrap_timeout_ms", "auto_offset_reset", "group_id"},
    "producer": {"metrics_enabled", "bootstrap_timeout_ms", "max_request_size", "max_block_ms", "enable_idempotence"},
    "admin": {"bootstrap_timeout_ms"},
}


def parts_of(client: Any) -> list[Any]:
    found = [
        getattr(client, name)
        for name in ("_fetcher", "_coordinator", "_sender", "_accumulator")
        if hasattr(client, name)
    ]
    manager = (client._sender._client if hasattr(client, "_sender") else client._client)._manager
    return [*found, manager, manager.cluster]


def lost(client: Any, options: dict[str, Any], own: set[str]) -> list[str]:
    """Options that a part knows and does not have as they were given, or that no part knows."""
    parts = parts_of(client)
    wrong = [
        f"{type(part).__name__}.{name}"
        for part in parts
        for name, value in options.items()
        if name in part.DEFAULT_CONFIG and part.config[name] != value
    ]
    unknown = [name for name in options if name not in own and not any(name in part.DEFAULT_CONFIG for part in parts)]
    return wrong + unknown


@pytest.mark.real
def test_what_the_source_asks_for_reaches_the_parts_of_its_consumer(kafka_harness):
    source = kafka_harness.source(kafka_harness.topic())
    options = {**ours._COMMON, **kafka._CONSUMER}
    isolation = options.pop("isolation_level")
    assert lost(source._consumer, options, OF_THE_CLIENT["consumer"]) == []
    assert isolation == "read_committed"
    assert source._consumer._fetcher._isolation_level == 1
    assert source._consumer._subscription._default_offset_reset_strategy is not None
    assert source._consumer._metrics is None


@pytest.mark.real
def test_what_a_reader_asks_for_reaches_the_parts_of_its_consumer(kafka_harness):
    reader = KafkaReader(kafka_harness.where, kafka_harness.topic())
    kafka_harness.opened.append(reader)
    options = {"allow_auto_create_topics": False, "fetch_max_bytes": kafka.FETCH_BYTES_MAX, "enable_auto_commit": False}
    assert lost(reader._consumer, options, set()) == []
    assert reader._consumer._fetcher._isolation_level == 1


@pytest.mark.real
def test_what_the_producer_asks_for_reaches_its_parts(kafka_harness):
    producer = KafkaProducer(kafka_harness.where, acknowledge_s_max=7.0)
    kafka_harness.opened.append(producer)
    client, options = producer._client, {**ours._COMMON, **producer._options}
    held = {"acks": -1, "compression_type": 3}  # as they are on the wire
    assert (client.config["acks"], client._sender.config["acks"]) == (-1, -1)
    assert client._accumulator.config["compression_attrs"] == held["compression_type"]
    options = {name: value for name, value in options.items() if name not in held}
    assert lost(client, options, OF_THE_CLIENT["producer"]) == []
    assert client._transaction_manager is not None
    assert client._metrics is None
    with pytest.raises(kafka_errors.MessageSizeTooLargeError):
        client.send(kafka_harness.topic(), value=b"x" * (kafka._DEAD_LETTER_BYTES_MAX + 1))


@pytest.mark.real
def test_what_settings_say_of_security_reaches_each_client(kafka_harness):
    options = kafka_options(load_settings(kafka_bootstrap_servers=kafka_harness.where))
    admin = connected(KafkaAdminClient, kafka_harness.where, options)
    try:
        assert lost(admin, {**ours._COMMON, **options}, OF_THE_CLIENT["admin"]) == []
    finally:
        admin.close()


@pytest.mark.real
def test_no_client_of_ours_lets_the_broker_make_a_topic_that_is_gone(kafka_harness):
    source, reader = kafka_harness.source("gone-source"), KafkaReader(kafka_harness.where, "gone-reader")
    kafka_harness.opened.append(reader)
    producer = kafka_harness.producer()
    with pytest.raises(Exception, match="does not offer topic gone-producer"):
        producer.send("gone-producer", key=b"k", value=b"v")
    assert reader.ends() == {}
    assert source.poll(max_records=1, timeout_s=6.0) == []  # longer than metadata is kept
    admin = connected(KafkaAdminClient, kafka_harness.where, {})
    try:
        assert not admin._manager.cluster.metadata_request().allow_auto_topic_creation
        topic = f"{kafka_harness.topic()}-deleted"
        ensure_topics(kafka_harness.where, {topic: 1})
        other = kafka_harness.source(topic)
        kafka_harness.settle(other, 1)
        admin.delete_topics([topic])
        assert other.poll(max_records=1, timeout_s=6.0) == []
        assert not {"gone-source", "gone-reader", "gone-producer", topic} & set(admin.list_topics())
    finally:
        admin.close()
