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


def test_what_is_sent_is_read_untouched(world):
    topic, producer = world.topic(), world.producer()
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
    records = world.drain(world.source(topic), 4)
    assert [(record.key, record.value, record.headers) for record in records] == sent
    assert [(record.topic, record.partition, record.offset) for record in records] == [(topic, 0, n) for n in range(4)]
    assert all(before_ms - 60_000 <= record.timestamp_ms <= before_ms + 60_000 for record in records)


def test_a_record_without_key_and_value_passes(world):
    topic, producer = world.topic(), world.producer()
    producer.send(topic, key=None, value=None)
    producer.flush()
    assert world.drain(world.source(topic), 1)[0].value is None


def test_each_partition_keeps_its_order_without_gaps_and_a_key_its_partition(world):
    topic, producer = world.topic(3), world.producer()
    world.fill(producer, topic, range(300), keys=20)
    records = world.drain(world.source(topic), 300)
    of_partition = {number: [r for r in records if r.partition == number] for number in range(3)}
    for of_one in of_partition.values():
        assert [record.offset for record in of_one] == list(range(len(of_one)))
        assert values(of_one) == sorted(values(of_one))
    where = {record.key: record.partition for record in records}
    assert all(where[record.key] == record.partition for record in records)
    assert len({record.partition for record in records}) > 1


def test_a_poll_is_bounded_and_waits_no_longer_than_asked(world):
    topic, producer = world.topic(2), world.producer()
    world.fill(producer, topic, range(50), keys=10)
    source = world.source(topic)
    seen: list[Record] = []
    while len(seen) < 50:
        batch = source.poll(max_records=7, timeout_s=5.0)
        assert len(batch) <= 7
        seen += batch
    began = time.monotonic()
    assert source.poll(max_records=7, timeout_s=0.3) == []
    assert 0.2 <= time.monotonic() - began < 10
    assert source.poll(max_records=7, timeout_s=0) == []


def test_positions_are_the_next_offsets_to_read_and_ends_the_next_to_be_written(world):
    topic, producer = world.topic(), world.producer()
    partition = Partition(topic, 0)
    world.fill(producer, topic, range(10))
    source = world.source(topic)
    world.drain(source, 4, max_records=4)
    assert source.positions() == {partition: 4}
    assert source.ends() == {partition: 10}
    world.fill(producer, topic, [10])
    assert source.ends() == {partition: 11}
    world.drain(source, 7)
    assert source.positions() == source.ends() == {partition: 11}


def test_records_that_come_later_are_read(world):
    topic, producer = world.topic(), world.producer()
    source = world.source(topic)
    world.settle(source, 1)
    for number in range(5):
        world.fill(producer, topic, [number])
        assert values(world.drain(source, 1)) == [number]


def test_seek_reads_again_or_skips(world):
    topic, producer = world.topic(), world.producer()
    partition = Partition(topic, 0)
    world.fill(producer, topic, range(10))
    source = world.source(topic)
    world.drain(source, 10)
    source.seek(partition, 3)
    assert source.positions() == {partition: 3}
    assert values(world.drain(source, 7)) == list(range(3, 10))
    source.seek(partition, 0)
    source.seek(partition, 8)
    assert values(world.drain(source, 2)) == [8, 9]
    with pytest.raises(SourceError, match="not assigned"):
        source.seek(Partition(topic, 9), 0)


def test_what_is_committed_is_there_after_a_restart(world):
    topic, producer = world.topic(2), world.producer()
    world.fill(producer, topic, range(20), keys=10)
    source = world.source(topic, group=topic)
    world.drain(source, 20)
    assert source.committed() == {}
    source.commit({})
    source.commit({Partition(topic, 0): 3})
    source.commit({Partition(topic, 1): 2})
    source.close()
    source.close()
    again = world.source(topic, group=topic)
    world.drain(again, 20)
    assert again.committed() == {Partition(topic, 0): 3, Partition(topic, 1): 2}
    other = world.source(topic, group=topic + "-other")
    world.drain(other, 20)
    assert other.committed() == {}


def test_the_application_s_positions_win_over_the_committed_ones(world):
    topic, producer = world.topic(2), world.producer()
    world.fill(producer, topic, range(40), keys=10)
    first = world.source(topic, group=topic)
    world.drain(first, 40)
    first.commit(first.positions())
    first.close()
    partition = Partition(topic, 0)
    end = first.positions()[partition]
    second = world.source(topic, group=topic, positions={partition: end - 2})
    # Partition 1 has no position: it starts from the earliest, not from what is committed.
    records = world.drain(second, 40 - end + 2)
    assert [record.offset for record in records if record.partition == 0] == [end - 2, end - 1]
    assert [record.offset for record in records if record.partition == 1] == list(range(40 - end))


def test_a_position_beyond_the_end_starts_over_and_says_so(world, caplog):
    topic, producer = world.topic(), world.producer()
    world.fill(producer, topic, range(5))
    with caplog.at_level(logging.WARNING):
        assert values(world.drain(world.source(topic, positions={Partition(topic, 0): 99}), 5)) == list(range(5))
    assert "99" in caplog.text


def test_a_topic_that_is_made_later_is_read(world):
    topic, later = world.topic(), f"later-{uuid.uuid4().hex[:12]}"
    source = world.source([topic, later])
    world.settle(source, 1)
    world.make_topic(later, 1)
    world.fill(world.producer(), later, range(3))
    assert values(world.drain(source, 3)) == [0, 1, 2]
    assert set(world.assigned) == {Partition(topic, 0), Partition(later, 0)}


def test_a_partition_that_is_added_later_is_read_from_its_beginning(world):
    topic = world.topic(1)
    positions: dict[Partition, int] = {}  # Kafka assigns the first one anew, too
    source = world.source(topic, positions=positions)
    world.settle(source, 1)
    world.add_partitions(topic, 2)
    producer = world.producer()
    world.fill(producer, topic, range(40), keys=20)
    records, deadline = [], time.monotonic() + 30
    while len(records) < 40 and time.monotonic() < deadline:
        records += source.poll(max_records=100, timeout_s=0.5)
        positions |= source.positions()
    assert sorted(values(records)) == list(range(40))
    assert {record.partition for record in records} == {0, 1}
    assert source.positions() == source.ends()


def test_several_topics_are_read_by_one_source(world):
    topics, producer = [world.topic(), world.topic()], world.producer()
    for topic in topics:
        world.fill(producer, topic, range(5))
    records = world.drain(world.source(topics), 10)
    for topic in topics:
        assert values([record for record in records if record.topic == topic]) == list(range(5))


def test_two_groups_read_independently(world):
    topic, producer = world.topic(), world.producer()
    world.fill(producer, topic, range(5))
    first, second = world.source(topic, group=topic + "-1"), world.source(topic, group=topic + "-2")
    assert values(world.drain(first, 5)) == values(world.drain(second, 5)) == list(range(5))


def test_callbacks_run_in_the_thread_that_polls_and_their_errors_come_out(world):
    topic, producer = world.topic(), world.producer()
    world.fill(producer, topic, [0])
    source = world.make_source([topic], uuid.uuid4().hex)
    world.opened.append(source)

    def on_assigned(_: Sequence[Partition]) -> Mapping[Partition, int]:
        raise LookupError("no checkpoint")

    def begin() -> None:
        source.start(on_assigned=on_assigned, on_revoked=lambda _: None)
        for _ in itertools.repeat(None, 100):
            source.poll(max_records=1, timeout_s=0.5)

    with pytest.raises(LookupError, match="no checkpoint"):
        begin()


def test_polling_before_start_is_an_error(world):
    source = world.make_source([world.topic()], "g")
    world.opened.append(source)
    with pytest.raises(SourceError, match="start"):
        source.poll(max_records=1, timeout_s=0)


def test_a_producer_takes_more_than_its_buffer_and_flushes_when_closed(world):
    topic, producer = world.topic(), world.producer()
    for number in range(2_500):
        producer.send(topic, key=b"k", value=b"%d" % number)
    producer.close()
    producer.close()
    assert values(world.drain(world.source(topic), 2_500, max_records=500)) == list(range(2_500))


def test_processes_that_write_at_once_lose_and_mix_up_nothing(world):
    topic = world.topic(2)
    writers = [world.write(topic, str(number), 200) for number in range(3)]
    records = world.drain(world.source(topic), 600, within_s=60)
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for number in range(3):
        assert values([record for record in records if record.key == b"%d" % number]) == list(range(200))
    for number in range(2):
        offsets = [record.offset for record in records if record.partition == number]
        assert offsets == list(range(len(offsets)))


def test_what_a_killed_writer_was_told_is_there_and_in_order(world):
    topic = world.topic()
    writer = world.write(topic, "k", 1_000_000)
    told = [int(writer.stdout.readline()) for _ in range(20)][-1]
    writer.kill()
    told = max([told, *(int(line) for line in writer.stdout.readlines() if line.endswith(b"\n"))])
    writer.wait()
    world.fill(world.producer(), topic, [-1])
    source, seen = world.source(topic), [0]
    while seen[-1] != -1:
        seen += values(source.poll(max_records=500, timeout_s=1.0))
    read = seen[1:-1]
    assert read == list(range(len(read)))
    assert len(read) > told


def gone_of(world, topic, wanted, on_gone=None):
    """A source that wants an offset of partition 0, and what it was told is gone."""
    told = []
    source = world.make_source([topic], uuid.uuid4().hex)
    world.opened.append(source)
    source.start(
        on_assigned=lambda _: {Partition(topic, 0): wanted},
        on_revoked=lambda _: None,
        on_gone=on_gone or told.append,
    )
    return source, told


def test_a_position_that_is_no_longer_retained_is_told_with_what_is_lost(world):
    topic = world.topic()
    world.fill(world.producer(), topic, range(9))
    world.trim(topic, 6)
    source, told = gone_of(world, topic, 2)
    assert values(world.drain(source, 3)) == [6, 7, 8]
    (gone,) = told
    assert (gone.partition, gone.wanted, gone.earliest, gone.end, gone.lost) == (Partition(topic, 0), 2, 6, 9, 4)
    assert "offset 2 is no longer retained, 4 records up to 6 are lost" in str(gone)


def test_records_that_go_while_it_reads_are_told_too(world):
    topic = world.topic()
    world.fill(world.producer(), topic, range(3))
    source, told = gone_of(world, topic, 0)
    assert values(world.drain(source, 3)) == [0, 1, 2]
    world.fill(world.producer(), topic, range(3, 9))
    world.trim(topic, 7)
    read = [int(record.value) for _ in range(40) for record in source.poll(max_records=10, timeout_s=0.2)]
    lost = sum(gone.lost for gone in told)
    assert read[-2:] == [7, 8]
    assert lost == 6 - len(read)  # whatever was under way when they went was still read
    assert source.positions() == source.ends()


def test_what_is_raised_about_a_position_that_is_gone_ends_the_reading(world):
    topic = world.topic()
    world.fill(world.producer(), topic, range(5))

    def stop(gone):
        raise SourceError(str(gone))

    with pytest.raises(SourceError, match="offset 99 lies beyond the end"):
        world.drain(gone_of(world, topic, 99, stop)[0], 5)
