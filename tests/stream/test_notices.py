"""Notices reach their topic if it can be reached, and never hold up who tells them."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import notices as notices_module
from stream.notices import Notice, NoticeWriter, encode, notice
from stream.source import SourceError

WAIT_S = 30.0


def told(number):
    return Notice(f"alarm-{number}-0", "alarm", 1_700_000_000_000, number, 3, "the world has changed", {"loss": 2.5})


class Broker:
    """Takes notices while it is there; `answer` blocks it."""

    def __init__(self):
        self.there, self.taken, self.connected = True, [], 0
        self.answer = threading.Event()
        self.answer.set()

    def connect(self):
        self.connected += 1
        return self

    def send(self, topic, *, key, value):
        assert (topic, key) == ("events", b"alarm")
        self.answer.wait(WAIT_S)
        if not self.there:
            raise SourceError("no broker answers")
        self.taken.append(notice(value).clicks)

    def flush(self):
        pass

    def close(self):
        pass


def wait_until(true):
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def broker(monkeypatch):
    monkeypatch.setattr(notices_module, "RETRY_S", 0.01)
    return Broker()


def test_notices_are_on_their_topic_in_order_when_the_writer_is_closed(harness):
    topic = harness.topic()
    writer = NoticeWriter(harness.make_producer, topic, waiting_max=100)
    for number in range(20):
        writer.put(told(number))
    writer.close()
    records = harness.drain(harness.source(topic), 20)
    assert [notice(record.value) for record in records] == [told(number) for number in range(20)]
    assert {record.key for record in records} == {b"alarm"}
    assert writer.dropped == 0


def test_an_unavailable_broker_is_reported_once_and_gets_every_notice_later(broker, caplog):
    broker.there = False
    writer = NoticeWriter(broker.connect, "events", waiting_max=100)
    for number in range(5):
        writer.put(told(number))
    wait_until(lambda: broker.connected > 3)
    broker.there = True
    wait_until(lambda: broker.taken == [0, 1, 2, 3, 4])
    writer.close()
    assert [record.message for record in caplog.records] == ["notices cannot be published: no broker answers"]


def test_a_surprise_does_not_end_the_writer(broker, caplog):
    surprises = [ValueError("a surprise")]

    def connect():
        if surprises:
            raise surprises.pop()
        return broker.connect()

    writer = NoticeWriter(connect, "events", waiting_max=3)
    writer.put(told(7))
    wait_until(lambda: broker.taken == [7])
    writer.close()
    assert "a surprise" in caplog.text


def test_notices_without_room_are_counted_and_the_writer_does_not_wait(broker):
    broker.answer.clear()
    writer = NoticeWriter(broker.connect, "events", waiting_max=3)
    writer.put(told(0))
    wait_until(lambda: broker.connected == 1)  # the first is in the writer's hands, the queue is empty
    for number in range(1, 11):
        writer.put(told(number))  # returns, although the broker does not answer
    assert writer.dropped == 7
    broker.answer.set()
    writer.close()
    assert broker.taken == [0, 1, 2, 3]


def test_closing_does_not_wait_for_a_broker_that_never_comes(broker):
    broker.there = False
    writer = NoticeWriter(broker.connect, "events", waiting_max=3)
    writer.put(told(0))
    writer.close()
    writer.close()
    assert not any(thread.name == "notices" for thread in threading.enumerate())


@given(
    st.builds(
        Notice, st.text(), st.text(), st.integers(), st.integers(), st.integers(), st.text(),
        st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text()),
    )
)  # fmt: skip
def test_a_notice_is_read_as_it_was_written(one):
    assert notice(encode(one)) == one


@pytest.mark.parametrize("value", [b"", b"no json", b"{}", b'{"id": "x", "unknown": 1}'])
def test_an_invalid_notice_is_refused(value):
    with pytest.raises(ValueError, match=r"notice|Expecting"):
        notice(value)
