"""What the settings of many workers open, against Apache Kafka."""

import logging
import time
from contextlib import closing

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from online.config.settings import Settings
from online.worker.connections import open_producer, open_source, open_tail, prepare_topics
from stream.kafka import ensure_topics
from stream.source import Partition, SourceError, UnavailableError

pytestmark = pytest.mark.real


@pytest.fixture
def settings(kafka_broker, tmp_path):
    def made(name, **changed):
        names = {"clicks_topic": name, "items_topic": f"{name}.items", "dead_letters_topic": f"{name}.dead"}
        names |= {"weights_topic": f"{name}.weights", "control_topic": f"{name}.control"}
        return Settings(
            kafka_bootstrap_servers=kafka_broker.bootstrap_servers, data_dir=tmp_path, consumer_group=name,
            topic_partitions=2, **{"workers": "many", "session_timeout_s": 6.0, **names, **changed},
        )  # fmt: skip

    return made


def start(source):
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None, on_gained=lambda _: None, on_lost=lambda _: None)


def until(source, holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        source.poll(max_records=10, timeout_s=0.1)


def test_many_workers_have_their_topics_and_a_shared_source(settings):
    many = settings("many-a", worker_name="one", static_membership=True)
    prepare_topics(many)
    prepare_topics(many)
    with closing(KafkaAdminClient(bootstrap_servers=many.kafka_bootstrap_servers)) as admin:
        described = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}
        weights = ConfigResource(ConfigResourceType.TOPIC, "many-a.weights")
        text = str(admin.describe_configs([weights]))
    assert (described["many-a"], described["many-a.control"], described["many-a.weights"]) == (2, 1, 1)
    assert "86400000" in text
    with closing(open_source(many, ["many-a"], "many-a")) as source:
        start(source)
        until(source, lambda: len(source.owned()) == 2)
        assert source.owned() == {Partition("many-a", 0), Partition("many-a", 1)}
        assert source.leadership() is not None
    with closing(open_tail(many, many.weights_topic, None)) as tail, closing(open_producer(many)) as producer:
        producer.send(many.weights_topic, key=None, value=b"w")
        producer.flush()
        deadline, found = time.monotonic() + 30, []
        while not found and time.monotonic() < deadline:
            found += tail.poll()
        assert [record.value for record in found] == [b"w"]


def test_a_weights_topic_with_several_partitions_is_refused(settings):
    many = settings("many-b")
    ensure_topics(many.kafka_bootstrap_servers, {"many-b.weights": 3})
    with pytest.raises(SourceError, match=r"many-b\.weights .* has 3 partitions and needs exactly one"):
        prepare_topics(many)


def test_a_topic_that_may_not_be_made_is_waited_for(settings):
    with pytest.raises(UnavailableError, match="create it"):
        prepare_topics(settings("many-c", create_topics=False))


def test_one_worker_makes_no_topics_for_many(settings):
    one = settings("many-d", workers="one")
    prepare_topics(one)
    with closing(KafkaAdminClient(bootstrap_servers=one.kafka_bootstrap_servers)) as admin:
        assert not {"many-d.weights", "many-d.control"} & set(admin.list_topics())


def test_a_lone_worker_that_shares_a_group_is_warned_once(settings, caplog):
    one = settings("many-e", workers="one")
    prepare_topics(one)
    caplog.set_level(logging.WARNING, logger="stream")
    with closing(open_source(one, ["many-e"], "many-e")) as first:
        start(first)
        until(first, lambda: len(first.owned()) == 2)
        assert first.leadership() == 0
        assert "NEXTCLICK_WORKERS=many" not in caplog.text
        with closing(open_source(one, ["many-e"], "many-e")) as second:
            start(second)
            until(second, lambda: first.poll(max_records=1, timeout_s=0.1) == [] and len(second.owned()) == 1)
            until(first, lambda: len(first.owned()) == 1)
    warned = [one for one in caplog.messages if "NEXTCLICK_WORKERS=many" in one]
    assert len(warned) == 2  # one of each
    assert "reads 1 of the 2 partitions of many-e" in warned[0]


def test_a_worker_of_one_in_a_group_of_many_is_named(settings):
    one, many = settings("many-f", workers="one"), settings("many-f")
    prepare_topics(many)
    with closing(open_source(one, ["many-f"], "many-f")) as first:
        start(first)
        until(first, lambda: len(first.owned()) == 2)
        with closing(open_source(many, ["many-f"], "many-f")) as second:
            start(second)
            with pytest.raises(SourceError, match="share its partitions in another way"):
                until(second, lambda: False)


def test_a_session_timeout_that_the_broker_refuses_is_named(settings):
    many = settings("many-g", session_timeout_s=1.0)
    prepare_topics(many)
    with closing(open_source(many, ["many-g"], "many-g")) as source:
        start(source)
        with pytest.raises(SourceError, match="NEXTCLICK_SESSION_TIMEOUT_S"):
            until(source, lambda: False)
