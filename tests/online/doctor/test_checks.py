"""What each check of `nextclick doctor` finds, on views of brokers, servers and disks that are made up."""

import threading
from dataclasses import replace

import pytest

from online.config.settings import Settings, SettingsError, load_settings
from online.doctor.checkpoint_checks import CheckpointView, check_checkpoint
from online.doctor.click_checks import check_clicks
from online.doctor.clock_checks import CLOCK_APART_S_MAX, check_record_times, check_redis_clock
from online.doctor.examination import side_by_side
from online.doctor.folder_checks import Disk, check_disk, check_folder
from online.doctor.redis_checks import check_nodes
from online.doctor.settings_checks import check_settings, unusable
from online.doctor.topic_checks import (
    OUTAGE_S_MAX,
    WEIGHTS_BYTES_MIN,
    check_partitions,
    check_replicas,
    check_retention,
    check_topics,
)
from online.doctor.verdict import any_wrong
from online.rounds.parts import PART_BYTES_MAX
from stream.inspection import COMMITTED, LATEST, SETTINGS, BrokerView, Extent, TopicView
from stream.redis_inspection import RedisNode
from stream.source import Partition, Record, SourceError, Undecodable

EXTENT = Extent(0, 10)
CLICKS = Partition("clicks", 0)
USUAL = {
    "retention.ms": str(7 * 86_400_000),
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "min.insync.replicas": "2",
}
MANY = {"kafka_bootstrap_servers": "k:9092", "redis_url": "redis://r:6379/0", "workers": "many"}


def topic(name="clicks", partitions=1, extent=EXTENT, replicas=3, **settings):
    given = {key.replace("_", "."): str(value) for key, value in settings.items()}
    extents = {Partition(name, number): extent for number in range(partitions)}
    return TopicView(extents=extents, replicas=replicas, settings=USUAL | given)


def view(*topics, **fields):
    names = {next(iter(one.extents)).topic: one for one in topics}
    usual = {
        name: topic(name) for name in ("clicks", "nextclick.events", "nextclick.feedback", "nextclick.impressions")
    }
    usual |= {"items": topic("items", cleanup_policy="compact")}
    usual |= {"clicks.dead": topic("clicks.dead", max_message_bytes=2**21)}
    usual |= {name: topic(name) for name in ("nextclick.control", "nextclick.weights")}
    return BrokerView(cluster="c", brokers=3, topics=usual | names, **fields)


def record(value=b'{"user_id": "u", "item_id": "i", "timestamp": 1}', at_ms=1_000, **fields):
    return Record("clicks", 0, 0, at_ms, None, value, **fields)


def states(verdicts, check=None):
    return {verdict.state for verdict in verdicts if check in (None, verdict.check)}


def settings(tmp_path, **given):
    return Settings(data_dir=tmp_path / "data", **given)


@pytest.fixture
def usual(tmp_path):
    return settings(tmp_path)


# Settings


def test_settings_that_cannot_be_used_are_a_verdict_each(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_BUCKETS", "3")
    monkeypatch.setenv("NEXTCLICK_NO_SUCH", "1")
    with pytest.raises(SettingsError) as error:
        load_settings()
    found = unusable(error.value)
    assert len(found) >= 2
    assert states(found) == {"wrong"}
    assert any("NEXTCLICK_NO_SUCH" in one.text for one in found)


@pytest.mark.parametrize(
    ("given", "state", "says"),
    [
        ({"workers": "many"}, "wrong", "embedded log"),
        ({**MANY, "redis_url": None}, "wrong", "embedded Redis of its own"),
        ({**MANY, "static_membership": True}, "wrong", "NEXTCLICK_WORKER_NAME"),
        ({"clicks_topic": "items"}, "wrong", "same topic"),
        ({"redis_value_bytes_max": 100}, "wrong", "a list of 50"),
        ({"redis_url": "redis://r:6379/0"}, "warning", "embedded"),
        ({"gate": False}, "warning", "also a worse one"),
        ({"checkpoint_interval_s": 7_200}, "warning", "7,200 s"),
        ({"list_ttl_s": 60}, "warning", "60 s"),
    ],
)
def test_settings_that_contradict_each_other_or_are_unusual_are_found(tmp_path, given, state, says):
    found = [one for one in check_settings(settings(tmp_path, **given)) if says in one.text]
    assert [one.state for one in found] == [state]
    assert found[0].way_out


def test_usual_settings_are_fine(tmp_path):
    assert states(check_settings(settings(tmp_path, **MANY))) == {"ok"}
    assert states(check_settings(settings(tmp_path))) == {"ok"}


# The clock


@pytest.mark.parametrize(("apart", "state"), [(0.2, "ok"), (CLOCK_APART_S_MAX + 1, "wrong"), (-3_600.0, "wrong")])
def test_a_wrong_clock_is_found_by_redis(apart, state):
    found = check_redis_clock([RedisNode("a:1", clock_ahead_s=0.0), RedisNode("b:1", clock_ahead_s=apart)])
    assert found.state == state
    assert (f"{'behind' if apart > 0 else 'ahead of'} that of Redis at b:1" in found.text) == (state == "wrong")


def test_a_wrong_clock_is_found_by_records_from_the_future():
    latest = [record(at_ms=-1), record(at_ms=100_000)]
    assert check_record_times(latest, 99.0, by_broker=True).state == "ok"
    assert check_record_times(latest, 1_000.0, by_broker=True).state == "ok"  # a topic may be quiet
    late = check_record_times(latest, 40.0, by_broker=True)
    assert (late.state, "the broker's" in late.text) == ("wrong", True)
    assert check_record_times([record(at_ms=-1)], 1.0, by_broker=False).state == "not checked"


# Topics


def test_a_usual_broker_is_fine(tmp_path):
    chosen = settings(tmp_path, **MANY)
    seen = view()
    checked = [check_topics(chosen, seen), check_retention(chosen, seen), check_replicas(chosen, seen)]
    assert {state for found in checked for state in states(found)} == {"ok"}


def test_missing_topics_are_wrong_only_where_no_worker_makes_them(tmp_path):
    seen = view()
    del seen.topics["items"]
    assert states(check_topics(settings(tmp_path), seen), "topics") == {"warning"}
    assert states(check_topics(settings(tmp_path, create_topics=False), seen), "topics") == {"wrong"}


def test_partitions_without_a_leader_are_found(usual):
    assert "wrong" in states(check_topics(usual, view(replace(topic(), leaderless=1))), "topics")


@pytest.mark.parametrize(
    ("settings_of_topic", "state"),
    [
        ({"retention_ms": 3_600_000}, "wrong"),
        ({"retention_ms": -1}, "ok"),
        ({"retention_ms": int(OUTAGE_S_MAX * 1_000)}, "ok"),
        ({"retention_bytes": 1_000}, "wrong"),  # 48 bytes a second
        ({"retention_bytes": 10**9}, "ok"),
    ],
)
def test_retention_shorter_than_an_outage_is_found(usual, settings_of_topic, state):
    seen = view(topic(**settings_of_topic), latest=[record(at_ms=1_000 * second) for second in range(10)])
    assert states(check_retention(usual, seen)) == {state}


def test_how_long_bytes_last_is_not_known_of_a_topic_without_clicks(usual):
    assert states(check_retention(usual, view(topic(retention_bytes=10**9)))) == {"warning"}


@pytest.mark.parametrize(
    ("name", "policy", "state"),
    [
        ("clicks", "compact", "wrong"),
        ("clicks", "compact,delete", "wrong"),
        ("clicks.dead", "compact", "wrong"),
        ("items", "delete", "wrong"),
        ("items", "compact, delete", "warning"),
    ],
)
def test_a_wrong_cleanup_policy_is_found(usual, name, policy, state):
    found = [
        one for one in check_topics(usual, view(topic(name, cleanup_policy=policy))) if one.text.startswith(name + " ")
    ]
    assert state in states(found, "cleanup")


@pytest.mark.parametrize(
    ("name", "state"), [("nextclick.weights", "wrong"), ("clicks", "warning"), ("clicks.dead", "warning")]
)
def test_limits_of_message_sizes_that_are_too_small_are_found(tmp_path, name, state):
    seen = view(topic(name, max_message_bytes=1_000))
    assert state in states(check_topics(settings(tmp_path, **MANY), seen), "message size")
    assert WEIGHTS_BYTES_MIN > PART_BYTES_MAX


def test_the_topics_of_a_group_have_one_partition(tmp_path):
    seen = view(topic("nextclick.control", partitions=2))
    assert "wrong" in states(check_topics(settings(tmp_path, **MANY), seen), "topics")


@pytest.mark.parametrize(
    ("replicas", "least", "state"), [(1, 1, "warning"), (3, 3, "warning"), (3, 1, "warning"), (3, 2, "ok")]
)
def test_replication_is_judged(usual, replicas, least, state):
    assert states(check_replicas(usual, view(topic(replicas=replicas, min_insync_replicas=least)))) == {state}


def test_more_workers_than_partitions_are_found(tmp_path):
    many = settings(tmp_path, **MANY)
    assert states(check_partitions(many, view(topic(partitions=2)), 3)) == {"warning"}
    assert states(check_partitions(many, view(topic(partitions=3)), 3)) == {"ok"}
    assert states(check_partitions(many, view(), None)) == {"not checked"}


def test_what_the_user_may_not_see_is_not_checked(usual):
    found = check_topics(usual, view(errors={SETTINGS: "Kafka at k does not allow this"}))
    assert states(found, "topics' settings") == {"not checked"}


# Clicks


@pytest.mark.parametrize(("bad", "state"), [(0, "ok"), (1, "ok"), (10, "warning"), (60, "wrong")])
def test_messages_that_are_no_clicks_are_found(usual, bad, state):
    seen = view(latest=[record()] * (200 - bad) + [record(b"{")] * bad)
    (found,) = [one for one in check_clicks(usual, seen) if one.check == "latest clicks"]
    assert found.state == state
    assert f"{200 - bad} of the latest 200" in found.text
    assert ("malformed-json" in found.text) == (bad > 0)


def test_batches_that_cannot_be_decoded_are_found(usual):
    seen = view(latest=[record(), record(None, undecodable=Undecodable(4, 9, 6, "zstd: it is truncated"))])
    (found,) = [one for one in check_clicks(usual, seen) if one.check == "latest batches"]
    assert found.state == "wrong"
    assert "offsets 4 to 9" in found.text


def test_clicks_that_cannot_be_read_are_not_checked(usual):
    assert states(check_clicks(usual, view())) == {"not checked"}
    assert states(check_clicks(usual, view(errors={LATEST: "no"}))) == {"not checked"}


# Redis

NODE = RedisNode("", 0.0, "7.2.4", "master", used_bytes=50, bytes_max=100, policy="noeviction", evicted=0)


@pytest.mark.parametrize(
    ("changes", "check", "state"),
    [
        ({}, "memory", "ok"),
        ({"bytes_max": 0, "policy": "allkeys-lru"}, "memory", "ok"),
        ({"policy": "allkeys-lru"}, "eviction", "warning"),
        ({"policy": "volatile-ttl", "evicted": 7}, "eviction", "wrong"),
        ({"used_bytes": 85}, "memory", "warning"),
        ({"used_bytes": 99}, "memory", "wrong"),
        ({"version": "6.0.16"}, "version", "wrong"),
        ({"version": None}, "version", "not checked"),
        ({"role": "slave"}, "role", "wrong"),
        ({"problem": "NOPERM"}, "server", "not checked"),
    ],
)
def test_what_is_wrong_with_redis_is_found(changes, check, state):
    found = check_nodes([replace(NODE, **changes)])
    assert states(found, check) == {state}
    assert any_wrong(found) == (state == "wrong")


def test_of_a_cluster_each_server_is_judged():
    found = check_nodes([replace(NODE, name="a:1"), replace(NODE, name="b:1", used_bytes=99)])
    assert [one.text[:4] for one in found if one.state == "wrong"] == ["b:1:"]
    assert sum(one.check == "version" for one in found) == 1


# The folder


@pytest.mark.parametrize(
    ("disk", "checkpoint", "state"),
    [
        (Disk(50 * 2**30, 100 * 2**30, 10, read_only=False), 0, "ok"),
        (Disk(5 * 2**30, 100 * 2**30, 10, read_only=False), 0, "warning"),
        (Disk(2**20, 100 * 2**30, 10, read_only=False), 0, "wrong"),
        (Disk(5 * 2**30, 10 * 2**30, 10, read_only=False), 3 * 2**30, "wrong"),
        (Disk(50 * 2**30, 100 * 2**30, 0, read_only=False), 0, "wrong"),
        (Disk(50 * 2**30, 100 * 2**30, None, read_only=False), 0, "ok"),
    ],
)
def test_a_disk_that_is_full_is_found(tmp_path, disk, checkpoint, state):
    assert states(check_disk(tmp_path, disk, checkpoint)) == {state}


def test_a_folder_that_cannot_be_written_to_is_found(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    assert states(check_folder(file)) == {"wrong"}
    assert states(check_folder(tmp_path / "new"), "data folder") == {"ok"}
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("online.doctor.folder_checks.os.access", lambda *_: False)
    assert states(check_folder(tmp_path), "data folder") == {"wrong"}
    monkeypatch.setattr("online.doctor.folder_checks.disk_of", lambda _: Disk(2**40, 2**40, None, read_only=True))
    (found,) = [one for one in check_folder(tmp_path) if one.check == "data folder"]
    assert (found.state, "read-only" in found.text) == ("wrong", True)


# The checkpoint


def newest(tmp_path, offset=5, **fields):
    read_from = {"cluster": "c", "topic": "clicks", "group": "nextclick"}
    return replace(CheckpointView(tmp_path, 3, 100, {CLICKS: offset}, read_from), **fields)


def test_offsets_without_a_checkpoint_are_found(tmp_path):
    seen = view(committed={CLICKS: 5})
    assert states(check_checkpoint(settings(tmp_path), CheckpointView(), seen)) == {"wrong"}
    assert states(check_checkpoint(settings(tmp_path, **MANY), CheckpointView(), seen)) == {"warning"}
    assert states(check_checkpoint(settings(tmp_path), CheckpointView(), view())) == {"ok"}
    hidden = view(errors={COMMITTED: "no"})
    assert states(check_checkpoint(settings(tmp_path), CheckpointView(), hidden)) == {"not checked"}


@pytest.mark.parametrize(
    ("fields", "state", "says"),
    [
        ({}, "ok", "checkpoint 3"),
        ({"offset": 0}, "wrong", "2 clicks are lost"),
        ({"offset": 99}, "wrong", "made anew"),
        ({"next_offsets": {Partition("other", 0): 5}}, "wrong", "has read topic other, not clicks"),
        ({"read_from": {"cluster": "d"}}, "wrong", "another cluster"),
        ({"read_from": {"cluster": "c", "group": "g"}}, "warning", "group g"),
        ({"problem": "it was made with NEXTCLICK_WIDTH=8"}, "wrong", "NEXTCLICK_WIDTH=8"),
        ({"unknown": "needs the packages"}, "not checked", "needs the packages"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_found(tmp_path, usual, fields, state, says):
    seen = view(topic(extent=Extent(2, 10)))
    (found,) = check_checkpoint(usual, newest(tmp_path, **fields), seen)
    assert (found.state, says in found.text) == (state, True)


def test_without_a_broker_a_checkpoint_is_not_compared(tmp_path, usual):
    assert states(check_checkpoint(usual, newest(tmp_path), None)) == {"not checked"}


# All together


def test_a_question_without_an_answer_holds_up_none_of_the_others():
    never = threading.Event()

    def refused():
        raise SourceError("no Kafka answers")

    def broken():
        raise ZeroDivisionError("secret")

    slow, quick, wrong, bug = side_by_side(0.2, never.wait, lambda: 7, refused, broken)
    assert (slow.value, slow.in_time) == (None, False)
    assert quick.value == 7
    assert (wrong.problem, wrong.in_time) == ("no Kafka answers", True)
    assert "ZeroDivisionError" in bug.problem
    assert "secret" not in bug.problem
    never.set()
