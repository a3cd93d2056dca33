"""Dead letters once each, although the worker may meet the same bad message again after a crash."""

from collections.abc import Mapping
from typing import Any

from online.quarantine import Place, place
from stream.dead_letters import DeadLetters, dead_letter
from stream.events import BadEvent
from stream.readers import TopicReader
from stream.source import Partition, Producer, Record


class DeadLetterBox:
    """Puts bad messages on the dead letters' topic, and knows which were put there after the last checkpoint.

    A checkpoint remembers where that topic ended. A worker that goes on from it reads what was written later, and
    leaves those messages out when it meets them again.
    """

    def __init__(self, producer: Producer, reader: TopicReader, topic: str) -> None:
        self._producer = producer
        self._reader = reader
        self._letters = DeadLetters(producer, topic)
        self._ends: dict[Partition, int] = {}
        self._there: dict[Place, BadEvent] = {}
        self._unflushed = False

    def put(self, record: Record, bad: BadEvent) -> None:
        """Raises SourceError."""
        if place(record) not in self._there:
            self._letters.put(record, bad)
            self._unflushed = True

    def found(self, record: Record) -> BadEvent | None:
        """Why it was put there after the last checkpoint, by a worker that did not come to the next one."""
        return self._there.get(place(record))

    def flush(self, next_offsets: Mapping[Partition, int]) -> None:
        """Returns when everything put is acknowledged. Raises SourceError.

        `next_offsets`: what the checkpoint that follows says; messages before them are not met again.
        """
        if self._unflushed:
            self._producer.flush()
            self._ends = self._reader.ends()
            self._unflushed = False
        ahead = (at for at in self._there if at[2] >= next_offsets.get(Partition(*at[:2]), 0))
        self._there = {at: self._there[at] for at in ahead}

    def to_state(self) -> dict[str, list[list[Any]]]:
        return {
            "ends": [[topic, partition, offset] for (topic, partition), offset in self._ends.items()],
            "there": [
                [*at, why.reason, why.detail] for at, why in sorted(self._there.items())
            ],  # other partitions may not be so far yet
        }

    def load_state(self, state: Mapping[str, list[list[Any]]], next_offsets: Mapping[Partition, int]) -> None:
        """Reads what was put there after the checkpoint; a first start has an empty state. Raises SourceError."""
        self._ends = {Partition(topic, partition): offset for topic, partition, offset in state.get("ends", [])}
        self._there = {(topic, partition, at): BadEvent(*why) for topic, partition, at, *why in state.get("there", [])}
        for letter in map(dead_letter, self._reader.read(self._ends)):
            if letter.offset >= next_offsets.get(Partition(letter.topic, letter.partition), 0):
                self._there[letter.topic, letter.partition, letter.offset] = BadEvent(letter.reason, letter.detail)
