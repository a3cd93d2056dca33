"""What Kafka says of a cluster and a group without members."""

import pytest

from online.config.settings import Settings
from online.worker.connections import open_producer, open_source, prepare_topics, stream_origin
from stream.source import Partition

pytestmark = pytest.mark.real


def test_the_cluster_has_a_name_and_a_group_its_committed_offsets(kafka_broker, tmp_path):
    topic = "group-test"
    names = {"clicks_topic": topic, "items_topic": f"{topic}.items", "dead_letters_topic": f"{topic}.dead"}
    settings = Settings(
        kafka_bootstrap_servers=kafka_broker.bootstrap_servers, data_dir=tmp_path, consumer_group=topic,
        topic_partitions=2, **names,
    )  # fmt: skip
    prepare_topics(settings)
    new = stream_origin(settings)
    assert new.committed == {}
    assert len(new.cluster) > 5
    with_records = open_producer(settings)
    for number in range(6):
        with_records.send(topic, key=None, value=b"x", partition=number % 2)
    with_records.close()
    source = open_source(settings, [topic], topic)
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    read = 0
    while read < 6:
        read += len(source.poll(max_records=10, timeout_s=1.0))
    source.commit(source.positions())
    source.close()
    assert stream_origin(settings) == (new.cluster, {Partition(topic, 0): 3, Partition(topic, 1): 3})
