import logging

from stream.dead_letters import TOPIC, DeadLetters, dead_letter
from stream.events import BadEvent
from stream.source import Record, TooLargeError


def record(value, *, key=b"k", offset=7, headers=()):
    return Record("clicks", 2, offset, 1_000, key, value, headers)


class Small:
    """A producer to a topic that takes only small records."""

    def __init__(self):
        self.sent = []

    def send(self, topic, *, key, value, headers=()):
        if len(key or b"") + len(value or b"") + sum(len(text) for _, text in headers) > 200_000:
            raise TooLargeError("too large")
        self.sent.append(Record(topic, 0, len(self.sent), 0, key, value, tuple(headers)))


def test_a_dead_letter_keeps_the_message_untouched_and_says_where_and_why(harness):
    name = harness.topic() + ".dead"
    harness.make_topic(name, 1)
    producer = harness.producer()
    letters = DeadLetters(producer, name)
    bad = BadEvent("malformed-json", "exp\xe9cted value")
    own = (("trace", b"\x00\xff"), ("reason", b"mine"))
    letters.put(record(b"\xff\xfe{", headers=own), bad)
    letters.put(record(None, key=None, offset=8), BadEvent("tombstone", "no value"))
    letters.put(record(b"x" * 1_048_000, offset=9), BadEvent("too-large", "1048000 bytes"))
    producer.flush()
    first, second, third = map(dead_letter, harness.drain(harness.source(name), 3))
    assert (first.topic, first.partition, first.offset) == ("clicks", 2, 7)
    assert (first.reason, first.detail, first.headers, first.truncated) == (bad.reason, bad.detail, own, None)
    assert (first.record.key, first.record.value) == (b"k", b"\xff\xfe{")
    assert (second.reason, second.offset, second.record.value) == ("tombstone", 8, None)
    assert (third.offset, third.record.value, third.truncated) == (9, b"x" * 1_048_000, None)


def test_what_is_too_large_is_put_aside_cut(caplog):
    producer = Small()
    with caplog.at_level(logging.WARNING):
        DeadLetters(producer).put(record(b"x" * 1_000_000, key=b"k" * 100_000), BadEvent("too-large", "…"))
    (letter,) = producer.sent
    assert letter.topic == TOPIC
    assert letter.value == b"x" * 65_536
    assert letter.key == b"k" * 65_536
    assert dict(letter.headers)["truncated"] == b"1000000"
    assert "offset 7 is truncated" in caplog.text


def test_what_others_put_there_is_shown_too(log_harness):
    producer = log_harness.producer()
    producer.send(TOPIC, key=None, value=b"x", headers=[("offset", b"\xff"), ("partition", "²".encode())])
    producer.flush()
    (letter,) = map(dead_letter, log_harness.drain(log_harness.source(TOPIC), 1))
    assert (letter.topic, letter.partition, letter.offset, letter.reason) == ("", -1, -1, "")
