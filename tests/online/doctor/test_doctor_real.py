"""`nextclick doctor` against real servers: what it finds, and that it writes nothing."""

import json
import time
import uuid
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka import KafkaProducer as Client

from online.config.settings import Settings
from online.doctor.examination import examine
from online.worker.connections import broker_of, prepare_topics
from stream.kafka import KafkaProducer, ensure_topics
from stream.kafka_group import group_origin
from stream.lists import connect
from stream.source import Partition

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
TOPICS = ("clicks", "items", "dead_letters", "events")


@pytest.fixture
def settings(kafka_broker, redis_server, tmp_path):
    run = uuid.uuid4().hex[:8]
    names = {f"{name}_topic": f"{name}-{run}" for name in TOPICS} | {"consumer_group": f"group-{run}"}
    connect(redis_server.url).flushall()
    return Settings(
        kafka_bootstrap_servers=kafka_broker.bootstrap_servers,
        redis_url=redis_server.url,
        data_dir=tmp_path / "data",
        **names,
    )


def publish(settings, values, **options):
    producer = KafkaProducer(settings.kafka_bootstrap_servers, options)
    for value in values:
        producer.send(settings.clicks_topic, key=b"u", value=value)
    producer.close()


def click(number):
    return json.dumps({"user_id": "u", "item_id": f"i{number}", "timestamp": 1_700_000_000 + number}).encode()


def found(settings, check):
    return [(one.state, one.text) for one in examine(settings) if one.check == check]


def test_a_sound_stream_has_nothing_wrong_and_stays_as_it_is(settings, kafka_broker, redis_server):
    prepare_topics(settings)
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        publish(settings, map(click, range(20)), compression_type=codec)
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap_servers)
    before = set(admin.list_topics()), {group["group_id"] for group in admin.list_groups()}
    verdicts = examine(settings)
    assert [one for one in verdicts if one.state == "wrong"] == []
    assert (set(admin.list_topics()), {group["group_id"] for group in admin.list_groups()}) == before
    admin.close()
    assert connect(redis_server.url).dbsize() == 0
    assert not settings.data_dir.exists()
    shown = {one.check: one for one in verdicts}
    assert shown["replication"].state == "warning"  # one broker
    assert "80 of the latest 80 messages are clicks" in shown["latest clicks"].text
    assert shown["against Redis"].state == shown["against the topic"].state == "ok"


def test_missing_topics_are_not_made(settings, kafka_broker):
    assert found(settings, "topics")[0][0] == "warning"
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap_servers)
    assert not {settings.clicks_topic, settings.items_topic} & set(admin.list_topics())
    admin.close()


def test_topics_that_lose_clicks_are_found(settings):
    configs = {
        settings.clicks_topic: {"retention.ms": "3600000", "max.message.bytes": "2000"},
        settings.items_topic: {"cleanup.policy": "delete"},
    }
    ensure_topics(settings.kafka_bootstrap_servers, dict.fromkeys(configs, 1), configs=configs)
    verdicts = examine(settings)
    wrong = {one.check for one in verdicts if one.state == "wrong"}
    assert {"retention", "cleanup"} <= wrong
    assert any(one.check == "message size" for one in verdicts)


def test_messages_that_are_no_clicks_and_a_clock_that_is_behind_are_found(settings):
    prepare_topics(settings)
    publish(settings, [click(0), b"{", b"[]"])
    client = Client(bootstrap_servers=settings.kafka_bootstrap_servers)
    client.send(settings.clicks_topic, value=click(1), timestamp_ms=int(1_000 * time.time()) + 1_800_000)
    client.close()
    assert found(settings, "latest clicks")[0][0] == "wrong"
    assert found(settings, "against the topic")[0][0] == "wrong"


def test_offsets_without_a_checkpoint_are_found(settings):
    prepare_topics(settings)
    publish(settings, map(click, range(5)))
    source = broker_of(settings).source([settings.clicks_topic], settings.consumer_group)
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    while not source.positions():
        source.poll(max_records=10, timeout_s=1.0)
    at = {partition: 5 for partition, end in source.ends().items() if end}
    source.commit(at)
    source.close()
    assert Partition(settings.clicks_topic, next(iter(at)).partition) in dict(
        group_origin(settings.kafka_bootstrap_servers, settings.consumer_group).committed
    )
    ((state, text),) = found(settings, "checkpoint")
    assert state == "wrong"
    assert "has read" in text


def test_a_redis_that_evicts_is_found(settings, start_redis):
    server = start_redis(["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], tls=False)
    try:
        evicting = settings.model_copy(update={"redis_url": Settings(redis_url=server.url).redis_url})
        assert found(evicting, "eviction")[0][0] == "warning"
    finally:
        server.kill()


def test_a_wrong_password_is_found_and_not_shown(settings, start_redis):
    server = start_redis(["--requirepass", "planted-right"], tls=False)
    try:
        url = server.url.replace("redis://", "redis://:planted-wrong@")
        wrong = settings.model_copy(update={"redis_url": Settings(redis_url=url).redis_url})
        (verdict,) = [one for one in examine(wrong) if (one.area, one.check) == ("redis", "reachable")]
        assert verdict.state == "wrong"
        assert "user or password is wrong" in verdict.text
        assert "planted" not in json.dumps(verdict.as_dict())
    finally:
        server.kill()


def test_servers_that_do_not_answer_are_wrong(free_port, tmp_path: Path):
    away = Settings(
        kafka_bootstrap_servers=f"127.0.0.1:{free_port}",
        redis_url=f"redis://127.0.0.1:{free_port}/0",
        data_dir=tmp_path,
    )
    found_away = {(one.area, one.check): one.state for one in examine(away)}
    assert found_away["broker", "reachable"] == "wrong"
    assert found_away["redis", "reachable"] == "wrong"
    assert found_away["folder", "data folder"] == "ok"


def test_a_cluster_and_a_primary_behind_sentinels_are_looked_at(settings, redis_cluster, redis_sentinels):
    of_sentinels = Settings(redis_url=redis_sentinels.url, redis_sentinel_password="planted-2")
    for given in (Settings(redis_url=redis_cluster.url), of_sentinels):
        names = ("redis_url", "redis_sentinel_password")
        chosen = settings.model_copy(update={name: getattr(given, name) for name in names})
        verdicts = [one for one in examine(chosen) if one.area in {"redis", "clock"}]
        assert "wrong" not in {one.state for one in verdicts}, verdicts
        assert any(one.check == "version" and one.state == "ok" for one in verdicts)
