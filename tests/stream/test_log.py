"""What only the embedded log promises; the rest is in test_sources.py."""

import logging
import sqlite3
import threading
from random import Random

import pytest

from stream import log_file
from stream.log import Log, LogProducer, LogSource
from stream.log_file import Entry
from stream.readers import LogReader
from stream.source import Partition, SourceError, UnavailableError

TOPIC = "clicks"
PARTITION = Partition(TOPIC, 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "clicks.log"


def started(path, positions=None, topics=(TOPIC,)):
    source = LogSource(path, topics, "group")
    source.start(on_assigned=lambda _: positions or {}, on_revoked=lambda _: None)
    return source


def append(path, count, **options):
    producer = LogProducer(path, **options)
    for number in range(count):
        producer.send(TOPIC, key=b"k", value=b"%d" % number)
    producer.close()


def test_only_the_latest_records_are_kept(path):
    append(path, 2_500, records_max=100)
    source = started(path)
    records = source.poll(max_records=1_000, timeout_s=0)
    assert [record.offset for record in records] == list(range(2_400, 2_500))
    assert source.ends() == {PARTITION: 2_500}
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM records").fetchone() == (100,)


def test_the_file_stops_growing_when_old_records_go(path):
    append(path, 20_000, records_max=1_000)
    size = path.stat().st_size
    append(path, 40_000, records_max=1_000)
    assert path.stat().st_size <= 2 * size


@pytest.mark.parametrize("seed", range(5))
def test_a_compacted_topic_keeps_the_latest_record_of_each_key_where_it_stands(path, seed):
    random = Random(seed)
    log = Log(path, partitions=2)
    entries = [Entry("items", b"%d" % random.randrange(9), random.choice([None, b"%d" % at])) for at in range(200)]
    log.append([*entries, *(Entry("other", b"k", b"v") for _ in range(5))])
    reader = LogReader(path, "items")
    before, ends = list(reader.read()), reader.ends()
    log.compact("items")
    latest = {record.key: record for record in before}
    assert list(reader.read()) == sorted(latest.values(), key=lambda record: (record.partition, record.offset))
    assert reader.ends() == ends
    assert len(list(LogReader(path, "other").read())) == 5
    log.compact("items")
    log.compact("nowhere")
    log.append(entries[:1])
    assert [record.value for record in reader.read(ends)] == [entries[0].value]
    reader.close()


def test_a_position_that_is_no_longer_retained_jumps_and_says_so(path, caplog):
    append(path, 200, records_max=50)
    with caplog.at_level(logging.WARNING):
        source = started(path, {PARTITION: 7})
    assert source.positions() == {PARTITION: 150}
    assert "offset 7 is no longer retained" in caplog.text


def test_a_reader_that_is_overtaken_jumps_and_says_so(path, caplog):
    append(path, 10, records_max=50)
    source = started(path)
    assert len(source.poll(max_records=5, timeout_s=0)) == 5
    append(path, 100, records_max=50)
    with caplog.at_level(logging.WARNING):
        records = source.poll(max_records=1_000, timeout_s=0)
    assert [record.offset for record in records] == list(range(60, 110))
    assert "offset 5 is no longer retained" in caplog.text


def test_partitions_by_key_are_the_same_for_ever(path):
    log = Log(path, partitions=4)
    log.append([Entry(TOPIC, key, b"v") for key in (b"u1", b"u2", b"u3", b"", b"\xff")])
    source = started(path)
    records = source.poll(max_records=10, timeout_s=0)
    assert {record.key: record.partition for record in records} == {b"u1": 2, b"u2": 0, b"u3": 2, b"": 0, b"\xff": 0}


def test_records_without_a_key_are_spread(path):
    log = Log(path, partitions=4)
    log.append([Entry(TOPIC, None, b"v")] * 8)
    assert {extent.end for extent in log.extents([TOPIC]).values()} == {2}


def test_a_busy_partition_does_not_starve_the_others(path):
    log = Log(path)
    log.ensure_topics({"a": 1, "b": 1})
    log.append([Entry("a", b"k", b"v")] * 1_000 + [Entry("b", b"k", b"v")])
    source = started(path, topics=("a", "b"))
    seen = [record.topic for _ in range(2) for record in source.poll(max_records=10, timeout_s=0)]
    assert "b" in seen


def test_topics_that_are_there_keep_their_partitions(path):
    log = Log(path)
    log.ensure_topics({TOPIC: 2})
    log.ensure_topics({TOPIC: 5, "other": 3})
    assert [partition.topic for partition in log.extents([TOPIC, "other"])] == [TOPIC] * 2 + ["other"] * 3


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be looked at" * 50, b"\x00" * 4096])
@pytest.mark.parametrize("make", [LogProducer, lambda path: LogSource(path, [TOPIC], "g")])
def test_a_file_that_is_no_log_is_named_and_left_alone(tmp_path, make, content):
    path = tmp_path / "something.txt"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"something\.txt is not a click log") as error:
        make(path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_another_program_s_database_is_named_and_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE partitions (x)")
    with pytest.raises(SourceError, match=r"other\.sqlite is not a click log but another SQLite database"):
        Log(path)


@pytest.mark.parametrize("name", ["", "file/clicks.log"])
def test_a_path_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=str(tmp_path)):
        Log(tmp_path / name)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_disk_that_was_full_is_waited_for_though_it_no_longer_is(path, monkeypatch, before, after):
    """Room may come back between the attempt that fails and the look at the disk."""
    full = iter([before, after])

    def fail(*_, **__):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(Log, "_is_full", lambda _: next(full))
    monkeypatch.setattr(log_file.sqlite3, "connect", fail)
    with pytest.raises(SourceError, match="unable to open") as refused:
        Log(path)
    assert isinstance(refused.value, UnavailableError) == (before or after)


def test_a_full_disk_is_named_loses_nothing_and_bounds_the_buffer(path):
    producer = LogProducer(path)
    log = producer._log
    log._db.execute("PRAGMA max_page_count = 64")
    sent = 0

    def send_until_full():
        nonlocal sent
        while True:
            producer.send(TOPIC, key=b"k", value=b"%d" % sent + b" " * 1_000)
            sent += 1
            if sent % 50 == 0:
                producer.flush()

    with pytest.raises(SourceError, match=r"clicks\.log cannot be used: database or disk is full; free some space"):
        send_until_full()
    with pytest.raises(SourceError, match="full"):
        producer.flush()
    log._db.execute("PRAGMA max_page_count = 1000000")
    producer.close()
    records = started(path).poll(max_records=10_000, timeout_s=0)
    assert [int(record.value) for record in records] == list(range(sent))


def test_threads_may_share_a_producer(path):
    producer = LogProducer(path)

    def send(name):
        for number in range(500):
            producer.send(TOPIC, key=name, value=b"%d" % number)

    threads = [threading.Thread(target=send, args=(b"%d" % n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.close()
    records = started(path).poll(max_records=10_000, timeout_s=0)
    for name in (b"0", b"1", b"2", b"3"):
        assert [int(record.value) for record in records if record.key == name] == list(range(500))


def test_many_may_make_the_same_file_at_once(path):
    failures = []

    def make():
        try:
            append(path, 10)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(started(path).poll(max_records=1_000, timeout_s=0)) == 80


def test_a_file_that_is_damaged_in_the_middle_is_named_in_one_line(path):
    append(path, 5_000)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[8_192:-4_096] = bytes(len(content) - 12_288)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"{path.name} .*malformed.*: move it away") as error:
        started(path).poll(max_records=5_000, timeout_s=0)
    assert "\n" not in str(error.value)
