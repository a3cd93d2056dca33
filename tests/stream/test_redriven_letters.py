"""The marks of letters that were sent again, and what came back: through the log and through Kafka."""

from stream.dead_letters import DeadLetters, dead_letter, mark_redriven, send_again
from stream.events import BadEvent
from stream.source import Record

BAD = BadEvent("malformed-json", "no JSON")


def letters(harness, topic, count):
    return [dead_letter(record) for record in harness.drain(harness.source(topic), count)]


def test_a_letter_is_sent_again_and_marked_and_known_when_it_comes_back(harness):
    dead, clicks = harness.topic(), harness.topic()
    producer = harness.producer()
    DeadLetters(producer, dead).put(Record(clicks, 2, 7, 0, b"u1", b"{", (("mine", b"x"),)), BAD)
    producer.flush()
    (letter,) = letters(harness, dead, 1)
    assert (letter.place, letter.is_mark, letter.came_back) == ((clicks, 2, 7), False, False)
    send_again(producer, letter, b"{}", b"u1")
    mark_redriven(producer, letter, dead)
    producer.flush()
    (again,) = harness.drain(harness.source(clicks), 1)
    assert (again.key, again.value) == (b"u1", b"{}")
    assert again.headers == (("mine", b"x"), ("redriven-from", f"{clicks}:2:7".encode()))
    DeadLetters(producer, dead).put(again, BAD)
    producer.flush()
    _, mark, back = letters(harness, dead, 3)
    assert (mark.place, mark.is_mark) == ((clicks, 2, 7), True)
    assert (back.place, back.is_mark, back.came_back) == ((clicks, 0, 0), False, True)
    send_again(producer, back, b"{}", b"u1")
    producer.flush()
    last = harness.drain(harness.source(clicks), 2)[-1]
    assert last.headers == (("mine", b"x"), ("redriven-from", f"{clicks}:0:0".encode()))  # of where it was last
