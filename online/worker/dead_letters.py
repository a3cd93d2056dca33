"""Writes each dead letter once, although the worker may read the same bad message again after a crash."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from online.worker.backoff import Backoff
from online.worker.poison_pills import Place, place
from stream.broker import Eraser
from stream.dead_letters import DeadLetter, DeadLetters, dead_letter
from stream.events import BadEvent
from stream.source import Partition, Producer, Record, SourceError, TopicReader

log = logging.getLogger(__name__)


class DeadLetterWriter:
    """Writes bad messages to the dead letters' topic, and knows which were written after the latest checkpoint.

    A checkpoint holds the end of that topic. A worker that resumes from it reads the dead letters written later, and
    does not write them again. While the broker refuses dead letters they are kept here, and `waits_for` is the reason:
    the caller should read no more clicks then, so that their number stays bounded.
    """

    def __init__(
        self, producer: Producer, reader: TopicReader, topic: str, eraser: Eraser, backoff: Backoff | None = None
    ) -> None:
        self._producer = producer
        self._reader = reader
        self._topic = topic
        self._eraser = eraser
        self._letters = DeadLetters(producer, topic)
        self._backoff = backoff or Backoff(0.5, 5.0)
        self._ends: dict[Partition, int] = {}
        self._there: dict[Place, BadEvent] = {}
        self._doubts: dict[Partition, int] = {}  # offsets before which another worker may have written some
        self._unacknowledged: list[tuple[Record, BadEvent]] = []
        self.waits_for: str | None = None

    def put(self, record: Record, bad: BadEvent) -> bool:
        """Writes a bad message, or keeps it for later. Returns whether it was not there yet."""
        if self._doubtful(record):
            self._search()
        if place(record) in self._there:
            return False
        self._unacknowledged.append((record, bad))
        if self.waits_for is None:
            try:
                self._letters.put(record, bad)
            except SourceError as error:
                self._failed(error)
        return True

    def doubt(self, ends: Mapping[Partition, int]) -> None:
        """Notes that messages before these offsets may be dead letters that another worker has written: before one of
        them is written here, the dead letters' topic is searched."""
        self._doubts |= ends

    def _doubtful(self, record: Record) -> bool:
        return record.offset < self._doubts.get(Partition(record.topic, record.partition), 0)

    def _search(self) -> None:
        """Reads all dead letters. If they cannot be read, none is written until they can."""
        try:
            for letter in map(dead_letter, self._reader.read({})):
                if not letter.is_mark and Partition(letter.topic, letter.partition) in self._doubts:
                    self._there[letter.topic, letter.partition, letter.offset] = BadEvent(letter.reason, letter.detail)
        except SourceError as error:
            self._failed(error)
            return
        self._doubts.clear()

    def found(self, record: Record) -> BadEvent | None:
        """Returns why a record became a dead letter after the checkpoint, in an earlier run; None if it did not."""
        return self._there.get(place(record))

    def flush(self, next_offsets: Mapping[Partition, int]) -> bool:
        """Returns whether all dead letters are acknowledged.

        If they are not, the checkpoint has to wait, because its offsets must not pass messages that are not stored.

        Args:
            next_offsets: of the checkpoint that follows; messages before them are not read again.
        """
        if self._unacknowledged:
            if self.waits_for is not None and not self._backoff.due:
                return False
            try:
                if self.waits_for is not None:
                    self._put_again()
                self._producer.flush()
                self._ends = self._reader.ends()
            except SourceError as error:
                self._failed(error)
                return False
            self._unacknowledged.clear()
            if self.waits_for is not None:
                log.info("dead letters can be written again")
            self.waits_for = None
            self._backoff.succeeded()
        later = (at for at in self._there if at[2] >= next_offsets.get(Partition(*at[:2]), 0))
        self._there = {at: self._there[at] for at in later}
        return True

    def _put_again(self) -> None:
        """Writes again those that did not arrive: some may have arrived without an acknowledgement."""
        since = {} if self._doubts else self._ends
        arrived = {(one.topic, one.partition, one.offset) for one in map(dead_letter, self._reader.read(since))}
        self._doubts.clear()
        for record, bad in self._unacknowledged:
            if place(record) not in arrived:
                self._letters.put(record, bad)

    def _failed(self, error: SourceError) -> None:
        self._backoff.failed()
        if self.waits_for is None:
            log.warning("dead letters cannot be written, so no clicks are read: %s", error)
        self.waits_for = str(error)

    def erase(self, gone: Callable[[DeadLetter], bool]) -> int:
        """Erases dead letters from their topic, once all are written. Returns how many. Raises SourceError."""
        erased = self._eraser.erase(self._topic, lambda record: gone(dead_letter(record)))
        if erased:
            self._ends = self._reader.ends()
        return erased

    def to_state(self) -> dict[str, list[list[Any]]]:
        return {
            "ends": [[topic, partition, offset] for (topic, partition), offset in self._ends.items()],
            "there": [
                [*at, why.reason, why.detail] for at, why in sorted(self._there.items())
            ],  # partitions that are behind may still meet these messages
        }

    def load_state(self, state: Mapping[str, list[list[Any]]], next_offsets: Mapping[Partition, int]) -> None:
        """Loads a state, and reads the dead letters written after it; a first start has an empty state.

        Raises:
            SourceError: the topic cannot be read.
        """
        self._ends = {Partition(topic, partition): offset for topic, partition, offset in state.get("ends", [])}
        self._there = {(topic, partition, at): BadEvent(*why) for topic, partition, at, *why in state.get("there", [])}
        for letter in map(dead_letter, self._reader.read(self._ends)):
            if not letter.is_mark and letter.offset >= next_offsets.get(Partition(letter.topic, letter.partition), 0):
                self._there[letter.topic, letter.partition, letter.offset] = BadEvent(letter.reason, letter.detail)
