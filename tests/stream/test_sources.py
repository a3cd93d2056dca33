"""One behaviour suite for every source and producer: the embedded log always, Apache Kafka where there is one."""

import itertools
import logging
import time
import uuid
from collections.abc import Mapping, Sequence

import pytest

from stream.source import Partition, Record, SourceError


def values(records: Sequence[Record]) -> list[int]:
    return [int(record.value or b"-1") for record in records]


def test_what_is_sent_is_read_untouched(harness):
    topic, producer = harness.topic(), harness.producer()
    sent = [
        (b"k", b"v", (("reason", b"\xff\x00"), ("reason", b""))),
        (None, b"no key", ()),
        (b"tombstone", None, ()),
        (b"\x00\xff", b"x" * 900_000, ()),
    ]
    before_ms = int(time.time() * 1_000)
    for key, value, headers in sent:
        producer.send(topic, key=key, value=value, headers=headers)
    producer.flush()
    records = harness.drain(harness.source(topic), 4)
    assert [(record.key, record.value, record.headers) for record in records] == sent
    assert [(record.topic, record.partition, record.offset) for record in records] == [(topic, 0, n) for n in range(4)]
    assert all(before_ms - 60_000 <= record.timestamp_ms <= before_ms + 60_000 for record in records)


def test_a_record_without_key_and_value_passes(harness):
    topic, producer = harness.topic(), harness.producer()
    producer.send(topic, key=None, value=None)
    producer.flush()
    assert harness.drain(harness.source(topic), 1)[0].value is None


def test_each_partition_keeps_its_order_without_gaps_and_a_key_its_partition(harness):
    topic, producer = harness.topic(3), harness.producer()
    harness.fill(producer, topic, range(300), keys=20)
    records = harness.drain(harness.source(topic), 300)
    of_partition = {number: [r for r in records if r.partition == number] for number in range(3)}
    for of_one in of_partition.values():
        assert [record.offset for record in of_one] == list(range(len(of_one)))
        assert values(of_one) == sorted(values(of_one))
    where = {record.key: record.partition for record in records}
    assert all(where[record.key] == record.partition for record in records)
    assert len({record.partition for record in records}) > 1


def test_a_poll_is_bounded_and_waits_no_longer_than_asked(harness):
    topic, producer = harness.topic(2), harness.producer()
    harness.fill(producer, topic, range(50), keys=10)
    source = harness.source(topic)
    seen: list[Record] = []
    while len(seen) < 50:
        batch = source.poll(max_records=7, timeout_s=5.0)
        assert len(batch) <= 7
        seen += batch
    began = time.monotonic()
    assert source.poll(max_records=7, timeout_s=0.3) == []
    assert 0.2 <= time.monotonic() - began < 10
    assert source.poll(max_records=7, timeout_s=0) == []


def test_positions_are_the_next_offsets_to_read_and_ends_the_next_to_be_written(harness):
    topic, producer = harness.topic(), harness.producer()
    partition = Partition(topic, 0)
    harness.fill(producer, topic, range(10))
    source = harness.source(topic)
    harness.drain(source, 4, max_records=4)
    assert source.positions() == {partition: 4}
    assert source.ends() == {partition: 10}
    harness.fill(producer, topic, [10])
    assert source.ends() == {partition: 11}
    harness.drain(source, 7)
    assert source.positions() == source.ends() == {partition: 11}


def test_a_lone_worker_owns_what_it_reads_and_leads_itself(harness):
    topic = harness.topic(2)
    source = harness.source(topic)
    assert source.owned() <= {Partition(topic, 0), Partition(topic, 1)}
    harness.settle(source, 2)
    assert source.owned() == {Partition(topic, 0), Partition(topic, 1)}
    assert source.leadership() is not None


def test_records_that_come_later_are_read(harness):
    topic, producer = harness.topic(), harness.producer()
    source = harness.source(topic)
    harness.settle(source, 1)
    for number in range(5):
        harness.fill(producer, topic, [number])
        assert values(harness.drain(source, 1)) == [number]


def test_seek_reads_again_or_skips(harness):
    topic, producer = harness.topic(), harness.producer()
    partition = Partition(topic, 0)
    harness.fill(producer, topic, range(10))
    source = harness.source(topic)
    harness.drain(source, 10)
    source.seek(partition, 3)
    assert source.positions() == {partition: 3}
    assert values(harness.drain(source, 7)) == list(range(3, 10))
    source.seek(partition, 0)
    source.seek(partition, 8)
    assert values(harness.drain(source, 2)) == [8, 9]
    with pytest.raises(SourceError, match="not assigned"):
        source.seek(Partition(topic, 9), 0)


def test_what_is_committed_is_there_after_a_restart(harness):
    topic, producer = harness.topic(2), harness.producer()
    harness.fill(producer, topic, range(20), keys=10)
    source = harness.source(topic, group=topic)
    harness.drain(source, 20)
    assert source.committed() == {}
    source.commit({})
    source.commit({Partition(topic, 0): 3})
    source.commit({Partition(topic, 1): 2})
    source.close()
    source.close()
    again = harness.source(topic, group=topic)
    harness.drain(again, 20)
    assert again.committed() == {Partition(topic, 0): 3, Partition(topic, 1): 2}
    other = harness.source(topic, group=topic + "-other")
    harness.drain(other, 20)
    assert other.committed() == {}


def test_the_application_s_positions_win_over_the_committed_ones(harness):
    topic, producer = harness.topic(2), harness.producer()
    harness.fill(producer, topic, range(40), keys=10)
    first = harness.source(topic, group=topic)
    harness.drain(first, 40)
    first.commit(first.positions())
    first.close()
    partition = Partition(topic, 0)
    end = first.positions()[partition]
    second = harness.source(topic, group=topic, positions={partition: end - 2})
    # Partition 1 has no position: it starts from the earliest, not from what is committed.
    records = harness.drain(second, 40 - end + 2)
    assert [record.offset for record in records if record.partition == 0] == [end - 2, end - 1]
    assert [record.offset for record in records if record.partition == 1] == list(range(40 - end))


def test_a_position_beyond_the_end_starts_over_and_says_so(harness, caplog):
    topic, producer = harness.topic(), harness.producer()
    harness.fill(producer, topic, range(5))
    with caplog.at_level(logging.WARNING):
        assert values(harness.drain(harness.source(topic, positions={Partition(topic, 0): 99}), 5)) == list(range(5))
    assert "99" in caplog.text


def test_a_topic_that_is_made_later_is_read(harness):
    topic, later = harness.topic(), f"later-{uuid.uuid4().hex[:12]}"
    source = harness.source([topic, later])
    harness.settle(source, 1)
    harness.make_topic(later, 1)
    harness.fill(harness.producer(), later, range(3))
    assert values(harness.drain(source, 3)) == [0, 1, 2]
    assert set(harness.assigned) == {Partition(topic, 0), Partition(later, 0)}


def test_a_partition_that_is_added_later_is_read_from_its_beginning(harness):
    topic = harness.topic(1)
    positions: dict[Partition, int] = {}  # Kafka assigns the first one anew, too
    source = harness.source(topic, positions=positions)
    harness.settle(source, 1)
    harness.add_partitions(topic, 2)
    producer = harness.producer()
    harness.fill(producer, topic, range(40), keys=20)
    records, deadline = [], time.monotonic() + 30
    while len(records) < 40 and time.monotonic() < deadline:
        records += source.poll(max_records=100, timeout_s=0.5)
        positions |= source.positions()
    assert sorted(values(records)) == list(range(40))
    assert {record.partition for record in records} == {0, 1}
    assert source.positions() == source.ends()


def test_several_topics_are_read_by_one_source(harness):
    topics, producer = [harness.topic(), harness.topic()], harness.producer()
    for topic in topics:
        harness.fill(producer, topic, range(5))
    records = harness.drain(harness.source(topics), 10)
    for topic in topics:
        assert values([record for record in records if record.topic == topic]) == list(range(5))


def test_two_groups_read_independently(harness):
    topic, producer = harness.topic(), harness.producer()
    harness.fill(producer, topic, range(5))
    first, second = harness.source(topic, group=topic + "-1"), harness.source(topic, group=topic + "-2")
    assert values(harness.drain(first, 5)) == values(harness.drain(second, 5)) == list(range(5))


def test_callbacks_run_in_the_thread_that_polls_and_their_errors_come_out(harness):
    topic, producer = harness.topic(), harness.producer()
    harness.fill(producer, topic, [0])
    source = harness.make_source([topic], uuid.uuid4().hex)
    harness.opened.append(source)

    def on_assigned(_: Sequence[Partition]) -> Mapping[Partition, int]:
        raise LookupError("no checkpoint")

    def begin() -> None:
        source.start(on_assigned=on_assigned, on_revoked=lambda _: None)
        for _ in itertools.repeat(None, 100):
            source.poll(max_records=1, timeout_s=0.5)

    with pytest.raises(LookupError, match="no checkpoint"):
        begin()


def test_polling_before_start_is_an_error(harness):
    source = harness.make_source([harness.topic()], "g")
    harness.opened.append(source)
    with pytest.raises(SourceError, match="start"):
        source.poll(max_records=1, timeout_s=0)


def test_a_producer_takes_more_than_its_buffer_and_flushes_when_closed(harness):
    topic, producer = harness.topic(), harness.producer()
    for number in range(2_500):
        producer.send(topic, key=b"k", value=b"%d" % number)
    producer.close()
    producer.close()
    assert values(harness.drain(harness.source(topic), 2_500, max_records=500)) == list(range(2_500))


def test_processes_that_write_at_once_lose_and_mix_up_nothing(harness):
    topic = harness.topic(2)
    writers = [harness.write(topic, str(number), 200) for number in range(3)]
    records = harness.drain(harness.source(topic), 600, within_s=60)
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for number in range(3):
        assert values([record for record in records if record.key == b"%d" % number]) == list(range(200))
    for number in range(2):
        offsets = [record.offset for record in records if record.partition == number]
        assert offsets == list(range(len(offsets)))


def test_what_was_acknowledged_to_a_killed_writer_is_there_and_in_order(harness):
    topic = harness.topic()
    writer = harness.write(topic, "k", 1_000_000)
    told = [int(writer.stdout.readline()) for _ in range(20)][-1]
    writer.kill()
    told = max([told, *(int(line) for line in writer.stdout.readlines() if line.endswith(b"\n"))])
    writer.wait()
    harness.fill(harness.producer(), topic, [-1])
    source, seen = harness.source(topic), [0]
    while seen[-1] != -1:
        seen += values(source.poll(max_records=500, timeout_s=1.0))
    read = seen[1:-1]
    assert read == list(range(len(read)))
    assert len(read) > told


def gone_of(harness, topic, wanted, on_gone=None):
    """A source that wants an offset of partition 0, and what it was told is gone."""
    told = []
    source = harness.make_source([topic], uuid.uuid4().hex)
    harness.opened.append(source)
    source.start(
        on_assigned=lambda _: {Partition(topic, 0): wanted},
        on_revoked=lambda _: None,
        on_gone=on_gone or told.append,
    )
    return source, told


def test_a_position_no_longer_retained_is_reported_with_what_is_lost(harness):
    topic = harness.topic()
    harness.fill(harness.producer(), topic, range(9))
    harness.trim(topic, 6)
    source, told = gone_of(harness, topic, 2)
    assert values(harness.drain(source, 3)) == [6, 7, 8]
    (gone,) = told
    assert (gone.partition, gone.wanted, gone.earliest, gone.end, gone.lost) == (Partition(topic, 0), 2, 6, 9, 4)
    assert "offset 2 is no longer retained, 4 records up to 6 are lost" in str(gone)


def test_records_that_expire_while_it_reads_are_reported_too(harness):
    topic = harness.topic()
    harness.fill(harness.producer(), topic, range(3))
    source, told = gone_of(harness, topic, 0)
    assert values(harness.drain(source, 3)) == [0, 1, 2]
    harness.fill(harness.producer(), topic, range(3, 9))
    harness.trim(topic, 7)
    read = [int(record.value) for _ in range(40) for record in source.poll(max_records=10, timeout_s=0.2)]
    lost = sum(gone.lost for gone in told)
    assert read[-2:] == [7, 8]
    assert lost == 6 - len(read)  # whatever was under way when they went was still read
    assert source.positions() == source.ends()


def test_what_is_raised_about_a_position_that_is_gone_ends_the_reading(harness):
    topic = harness.topic()
    harness.fill(harness.producer(), topic, range(5))

    def stop(gone):
        raise SourceError(str(gone))

    with pytest.raises(SourceError, match="offset 99 lies beyond the end"):
        harness.drain(gone_of(harness, topic, 99, stop)[0], 5)
