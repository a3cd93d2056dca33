"""A bad message stands among the dead letters once, whatever was written before a crash."""

import pytest

from online.worker.backoff import Backoff
from online.worker.dead_letters import DeadLetterWriter
from stream.dead_letters import dead_letter
from stream.eraser import LogEraser
from stream.events import BadEvent
from stream.log import LogProducer
from stream.readers import LogReader
from stream.source import Partition, Record, UnavailableError

TOPIC = "clicks.dead"
BAD = BadEvent("malformed-json", "no JSON")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.db"


class Worker:
    """A box and what its checkpoints say; `crash` begins anew from the last one that was saved."""

    def __init__(self, path):
        self.path = path
        self.saved = ({}, {})
        self.crash()

    def crash(self):
        self.producer = LogProducer(self.path)
        self.begin(self.producer)

    def begin(self, producer, backoff=None):
        """A new box from what was saved."""
        self.box = DeadLetterWriter(producer, LogReader(self.path, TOPIC), TOPIC, LogEraser(self.path), backoff)
        self.box.load_state(*self.saved)

    def put(self, *places):
        for partition, offset in places:
            self.box.put(Record("clicks", partition, offset, 0, b"key", b"value"), BAD)

    def checkpoint(self, next_offsets, *, saved=True):
        offsets = {Partition("clicks", partition): offset for partition, offset in next_offsets.items()}
        self.box.flush(offsets)
        if saved:
            self.saved = (self.box.to_state(), offsets)

    def letters(self):
        return [(letter.partition, letter.offset) for letter in map(dead_letter, LogReader(self.path, TOPIC).read())]


@pytest.fixture
def worker(path):
    return Worker(path)


def test_what_is_put_stands_there_after_the_flush_with_value_and_reason(worker):
    worker.put((0, 3))
    worker.checkpoint({0: 4})
    (letter,) = map(dead_letter, LogReader(worker.path, TOPIC).read())
    assert (letter.topic, letter.partition, letter.offset, letter.reason) == ("clicks", 0, 3, "malformed-json")
    assert (letter.record.key, letter.record.value) == (b"key", b"value")


def test_after_a_crash_before_the_flush_it_is_put_again(worker):
    worker.put((0, 3))
    worker.crash()
    worker.put((0, 3))
    worker.checkpoint({0: 4})
    assert worker.letters() == [(0, 3)]


def test_after_a_crash_between_flush_and_checkpoint_it_is_not_put_again(worker):
    worker.put((0, 3))
    worker.checkpoint({0: 4})
    worker.put((0, 7), (0, 8))
    worker.checkpoint({0: 9}, saved=False)
    worker.crash()
    worker.put((0, 7), (0, 8), (0, 9))
    worker.checkpoint({0: 10})
    assert worker.letters() == [(0, 3), (0, 7), (0, 8), (0, 9)]


def test_before_the_first_checkpoint_too(worker):
    worker.put((0, 0))
    worker.checkpoint({0: 1}, saved=False)
    worker.crash()
    worker.put((0, 0), (0, 1))
    worker.checkpoint({0: 2})
    assert worker.letters() == [(0, 0), (0, 1)]


def test_one_partition_may_run_ahead_of_another_after_a_crash(worker):
    worker.put((0, 5), (1, 2))
    worker.checkpoint({0: 6, 1: 3}, saved=False)
    worker.crash()
    worker.put((0, 5), (0, 9))  # partition 1 has not come so far again
    worker.checkpoint({0: 10})
    worker.crash()
    worker.put((1, 2))
    worker.checkpoint({0: 10, 1: 3})
    worker.crash()
    worker.put((1, 4))
    worker.checkpoint({0: 10, 1: 5})
    assert worker.letters() == [(0, 5), (1, 2), (0, 9), (1, 4)]


def test_what_was_met_again_is_forgotten(worker):
    worker.put(*[(0, offset) for offset in range(50)])
    worker.checkpoint({0: 50}, saved=False)
    worker.crash()
    worker.put(*[(0, offset) for offset in range(50)])
    worker.checkpoint({0: 50})
    assert worker.saved[0]["there"] == []


def test_letters_of_others_are_no_hindrance(worker):
    worker.producer.send(TOPIC, key=None, value=b"written by hand")
    worker.producer.flush()
    worker.crash()
    worker.put((0, 0))
    worker.checkpoint({0: 1})
    assert worker.letters() == [(-1, -1), (0, 0)]


def test_without_bad_messages_nothing_is_asked_of_the_producer(worker):
    worker.producer.flush = lambda: pytest.fail("flushed")
    worker.checkpoint({0: 5})


class Failing:
    """A producer whose topic is away for so many calls; `arrives`: what is sent gets there all the same."""

    def __init__(self, producer, calls, *, arrives=False):
        self.producer, self.left, self.arrives = producer, calls, arrives
        self.sent = []

    def send(self, *args, **kwargs):
        self.sent.append((args, kwargs))

    def flush(self):
        sent, self.sent = self.sent, []
        away = self.left > 0
        self.left -= away
        if self.arrives or not away:  # else it is lost, as with a client that is begun anew
            for args, kwargs in sent:
                self.producer.send(*args, **kwargs)
            self.producer.flush()
        if away:
            raise UnavailableError("no Kafka answers")


@pytest.mark.parametrize("arrives", [False, True])
def test_while_the_topic_is_unavailable_letters_are_kept_and_written_once_later(worker, arrives):
    worker.put((0, 1))
    worker.checkpoint({0: 2})
    worker.begin(Failing(worker.producer, 3, arrives=arrives), Backoff(1e-6, 1e-6))
    box = worker.box
    worker.put((0, 3), (0, 4))
    offsets = {Partition("clicks", 0): 5}
    assert [box.flush(offsets) for _ in range(3)] == [False, False, False]
    assert box.waits_for == "no Kafka answers"
    worker.put((0, 5))
    assert box.flush(offsets)
    assert box.waits_for is None
    assert worker.letters() == [(0, 1), (0, 3), (0, 4), (0, 5)]


def test_an_unavailable_topic_is_not_asked_each_time(worker):
    failing = Failing(worker.producer, 99)
    worker.begin(failing, Backoff(3_600.0, 3_600.0))
    worker.put((0, 3))
    assert [worker.box.flush({}) for _ in range(5)] == [False] * 5
    assert failing.left == 98
