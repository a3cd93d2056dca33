"""Batches that cannot be decoded, through kafka-python's own fetcher: nothing stops it, and all that is sound comes."""

import collections
import struct
from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.codec import snappy_encode
from kafka.consumer.fetcher import CompletedFetch, Fetcher
from kafka.consumer.subscription_state import SubscriptionState
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

from stream import batches
from stream.batches import BAD_RECORDS_MAX, DAMAGED_TRIES_MAX, put_aside_undecodable
from stream.kafka import as_record

WHERE = TopicPartition("t", 0)
HEADER = 61  # bytes of a batch before its records
CRC, ATTRIBUTES, LAST_DELTA, PRODUCER, COUNT = 17, 21, 23, 43, 57
TRANSACTIONAL = 0x10


class Name(str):
    """The name of a header, as a C program may write it."""

    __slots__ = ()

    def encode(self, *_):
        return b"\xff\xfe"


def batch(base, count=10, codec=0, magic=2, headers=()):
    builder = MemoryRecordsBuilder(magic, codec, 1 << 20, offset=0 if magic == 2 else base)
    for number in range(count):
        here = [*headers] if number == 3 else []
        builder.append(1_000 + number, b"k", b"%d" % (base + number), headers=here)
    builder.close()
    made = bytearray(builder.buffer())
    if magic == 2 or codec:
        struct.pack_into(">q", made, 0, base if magic == 2 else base + count - 1)
    return made


def signed(made):
    """The batch with the checksum that it should have."""
    struct.pack_into(">I", made, CRC, calc_crc32c(memoryview(made)[ATTRIBUTES:]))
    return made


class Partition:
    """A broker's partition, and a consumer that reads it. `answers`: batches that come instead, once each."""

    def __init__(self, *held, size=4):
        self.held, self.size, self.answers = held, size, collections.deque()
        self.aborted = []
        ends = [struct.unpack_from(">q", one)[0] + 10 for one in held if one[16] == 2]
        self.end = max(ends, default=0)
        state = SubscriptionState("earliest")
        state.assign_from_user([WHERE])
        state.seek(WHERE, 0)
        fetcher = Fetcher.__new__(Fetcher)
        fetcher.config, fetcher._sensors, fetcher._subscriptions = dict(Fetcher.DEFAULT_CONFIG), None, state
        fetcher._isolation_level = IsolationLevel.READ_COMMITTED
        fetcher._completed_fetches, fetcher._next_partition_records = collections.deque(), None
        fetcher._paused_completed_fetches, fetcher._paused_partition_records = {}, {}
        fetcher._next_in_line_exception_metadata = None
        self.fetcher, self.state = fetcher, state
        put_aside_undecodable(SimpleNamespace(_fetcher=fetcher))

    @property
    def position(self):
        return self.state.position(WHERE).offset

    def fetch(self, error=0):
        """One answer of the broker: the batches from the position on."""
        found = [one for one in self.held if one[16] != 2 or struct.unpack_from(">q", one)[0] + 10 > self.position]
        records = b"".join(found[: self.size])
        if self.answers:
            records = self.answers.popleft()
        data = SimpleNamespace(
            error_code=error, high_watermark=self.end, diverging_epoch=None, preferred_read_replica=-1,
            aborted_transactions=self.aborted, records=bytes(records),
        )  # fmt: skip
        self.fetcher._completed_fetches.append(CompletedFetch(WHERE, self.position, 12, data, None))

    def read(self, rounds=60):
        """Everything that comes until the end."""
        found = []
        for _ in range(rounds):
            self.fetch()
            while records := self.fetcher.fetched_records(7)[0]:
                found += map(as_record, records[WHERE])
            if self.position >= self.end:
                break
        return found


def values(records):
    return [int(record.value) for record in records if not record.undecodable]


def whys(records):
    return [str(record.undecodable) for record in records if record.undecodable]


@pytest.mark.parametrize("codec", range(5))
@pytest.mark.parametrize("magic", [1, 2])
def test_what_is_sound_comes_as_it_was_sent(codec, magic):
    if magic == 1 and codec == 4:
        pytest.skip("the format before Kafka 0.11 knows no zstd")
    at = Partition(batch(0, codec=codec, magic=magic), batch(10, codec=codec))
    found = at.read()
    assert values(found) == list(range(20))
    assert [record.offset for record in found] == list(range(20))
    assert found[0].timestamp_ms == 1_000


def test_a_batch_that_is_damaged_is_read_again_and_comes_whole_where_it_was_chance():
    damaged = batch(10)
    damaged[70] ^= 0xFF
    at = Partition(batch(0), batch(10), batch(20))
    at.answers.append(batch(0) + damaged + batch(20))
    assert values(at.read()) == list(range(30))


@pytest.mark.parametrize("codec", range(5))
def test_a_batch_that_stays_damaged_is_put_aside_with_its_offsets(codec):
    damaged = batch(10, codec=codec)
    damaged[64] ^= 0xFF
    at = Partition(batch(0), damaged, batch(20))
    found = at.read()
    assert values(found) == [*range(10), *range(20, 30)]
    assert whys(found) == ["offsets 10 to 19, 10 messages: the batch is damaged, its checksum is wrong"]
    (aside,) = [record for record in found if record.undecodable]
    assert (aside.offset, aside.key, aside.value, aside.headers) == (19, None, None, ())
    assert at.position == 30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (LAST_DELTA, 2**31 - 1),
        (LAST_DELTA, 1),
        (LAST_DELTA, -5),
        (COUNT, 1),
        (4, 0),
        (4, 25),
        (0, 2**31 - 1),
        (PRODUCER, 5),
    ],
)
def test_damage_to_a_header_passes_by_nothing_that_is_sound(field, value):
    damaged = batch(10)
    struct.pack_into(">i", damaged, field, value)
    whole = [batch(0), damaged, batch(20), batch(30)]
    at = Partition(*whole)
    # The broker finds batches by its index, so damage to a header does not lead it astray.
    fetch = at.fetch

    def by_index():
        at.answers.append(b"".join(one for number, one in enumerate(whole) if 10 * number + 10 > at.position))
        fetch()

    at.fetch = by_index
    found = at.read()
    assert values(found) == [*range(10), *range(20, 40)]
    assert len(whys(found)) == 1
    assert whys(found)[0].startswith("offsets 10 to 19, 10 messages: the batch is damaged")


def test_an_unknown_codec_and_bytes_that_do_not_unpack_are_put_aside_at_once():
    unknown, broken = batch(10), batch(20, codec=4)
    unknown[ATTRIBUTES + 1] |= 5
    broken[HEADER : HEADER + 8] = bytes(8)
    at = Partition(batch(0), signed(unknown), signed(broken), batch(30))
    found = at.read()
    assert values(found) == [*range(10), *range(30, 40)]
    first, second = whys(found)
    assert first == "offsets 10 to 19, 10 messages: its codec has the number 5, which is not known"
    assert second.startswith("offsets 20 to 29, 10 messages: zstd: ")
    assert [record.timestamp_ms for record in found if record.undecodable] == [1_009, 1_009]


def test_a_batch_that_unpacks_to_more_than_the_bound_is_put_aside(monkeypatch):
    monkeypatch.setattr(batches, "UNPACKED_BYTES_MAX", 50)
    at = Partition(batch(0), batch(10, codec=1), batch(20))
    found = at.read()
    assert values(found) == [*range(10), *range(20, 30)]
    assert whys(found) == ["offsets 10 to 19, 10 messages: gzip: it unpacks to more than 50 bytes"]


def test_an_aborted_batch_is_not_reported_though_it_cannot_be_decoded():
    aborted = batch(10, codec=1)
    aborted[ATTRIBUTES + 1] |= TRANSACTIONAL
    aborted[HEADER : HEADER + 8] = bytes(8)
    struct.pack_into(">q", aborted, PRODUCER, 77)
    at = Partition(batch(0), signed(aborted), batch(20))
    at.aborted = [SimpleNamespace(producer_id=77, first_offset=10)]
    found = at.read()
    assert (values(found), whys(found)) == ([*range(10), *range(20, 30)], [])


def test_one_message_that_is_malformed_is_put_aside_alone():
    made = batch(10)
    records = made[HEADER:]
    size = records[0] // 2 + 1
    records[4 * size + 4] = 0x7F  # a key's length beyond its record
    at = Partition(batch(0), signed(made[:HEADER] + records), batch(20))
    found = at.read()
    assert values(found) == [number for number in range(30) if number != 14]
    (why,) = whys(found)
    assert why.startswith("offset 14, 1 message: a message is malformed (")


def test_a_batch_of_malformed_messages_alone_ends_in_one_letter_after_some():
    made = batch(0, count=2 * BAD_RECORDS_MAX)
    size = 2 * BAD_RECORDS_MAX
    records, at = made[HEADER:], 0
    while at < len(records):
        length = records[at] // 2 + 1
        records[at + length - 1] = 0x7E  # so many headers
        at += length
    partition = Partition(signed(made[:HEADER] + records))
    partition.end = size
    found = partition.read()
    assert len(found) == BAD_RECORDS_MAX + 1
    assert (found[-1].undecodable.first, found[-1].undecodable.last) == (BAD_RECORDS_MAX, size - 1)
    assert partition.position == size


def test_a_header_whose_name_is_no_text_costs_no_click():
    at = Partition(batch(0, headers=[(Name("x"), b"v")]))
    found = at.read()
    assert values(found) == list(range(10))
    assert found[3].headers == (("\ufffd\ufffd", b"v"),)


def test_what_is_no_batch_at_all_is_passed_offset_by_offset(caplog):
    for junk in (
        b"\0" * 8 + b"\0\0\0\x05" + b"\0" * 5,
        b"\0" * 8 + b"\x7f\0\0\0" + b"\0" * 90,
        b"\0" * 8 + b"\xff\0\0\0",
    ):
        at = Partition(batch(0), bytearray(100), batch(20))
        at.held[1][16] = 2
        fetch = at.fetch

        def junk_first(at=at, junk=junk, fetch=fetch):
            if 10 <= at.position < 20:
                at.answers.append(junk)
            fetch()

        at.size, at.fetch = 1, junk_first
        found = at.read()
        assert values(found) == [*range(10), *range(20, 30)]
        (why,) = whys(found)
        assert why.startswith("offset 10, 1 message: ")
        assert why.endswith("; reading goes on at the next offset that can be read")
        assert "t partition 0: the broker gave nothing for offsets 10 to 19; reading goes on behind" in caplog.text
        caplog.clear()


def test_what_the_broker_cannot_give_is_requested_again_and_reported_once(caplog, monkeypatch):
    monkeypatch.setattr(batches, "_ASK_AGAIN_S", 0.0)
    at = Partition(batch(0))
    for _ in range(5):
        at.fetch(error=-1)
        assert at.fetcher.fetched_records(7) == ({}, False)
    assert caplog.text.count("cannot give offset 0, see its log") == 1
    assert values(at.read()) == list(range(10))


def test_what_is_no_fault_of_a_batch_is_raised_as_before():
    at = Partition(batch(0))
    at.fetch(error=kafka_errors.TopicAuthorizationFailedError.errno)
    with pytest.raises(kafka_errors.TopicAuthorizationFailedError):
        at.fetcher.fetched_records(7)


def test_reading_from_the_middle_of_a_batch_that_cannot_be_decoded_tells_of_it():
    damaged = batch(0)
    damaged[70] ^= 0xFF
    at = Partition(damaged, batch(10))
    at.state.seek(WHERE, 4)
    found = at.read()
    assert values(found) == list(range(10, 20))
    assert [record.offset for record in found if record.undecodable] == [9]


def test_a_message_without_a_time_has_none():
    message = SimpleNamespace(
        topic="t", partition=0, offset=1, timestamp=None, key=b"k", value=b"v", headers=[], checksum=123
    )
    assert as_record(message).timestamp_ms == -1
    assert as_record(message).undecodable is None


def test_a_damaged_batch_is_not_asked_for_for_ever():
    damaged = batch(0)
    damaged[70] ^= 0xFF
    at = Partition(damaged)
    for reads in range(1, DAMAGED_TRIES_MAX + 1):
        at.fetch()
        found = at.fetcher.fetched_records(7)[0]
        assert bool(found) == (reads == DAMAGED_TRIES_MAX)


def test_xerial_snappy_with_the_magic_of_another_byte_order_is_read():
    payload = batch(0)[HEADER:]
    packed = bytearray(snappy_encode(bytes(payload)))
    packed[8:16] = struct.pack("<ii", 1, 1)  # as redpanda's producers write it
    made = batch(0)[:HEADER] + packed
    struct.pack_into(">i", made, 8, len(made) - 12)
    made[ATTRIBUTES + 1] |= 2
    assert values(Partition(signed(made)).read()) == list(range(10))
