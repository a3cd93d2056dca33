"""Dead letters once each, although the worker may meet the same bad message again after a crash."""

from collections.abc import Mapping
from typing import Any

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
        self._there: set[tuple[str, int, int]] = set()
        self._unflushed = False

    def put(self, record: Record, bad: BadEvent) -> None:
        """Raises SourceError."""
        if (record.topic, record.partition, record.offset) not in self._there:
            self._letters.put(record, bad)
            self._unflushed = True

    def flush(self, next_offsets: Mapping[Partition, int]) -> None:
        """Returns when everything put is acknowledged. Raises SourceError.

        `next_offsets`: what the checkpoint that follows says; messages before them are not met again.
        """
        if self._unflushed:
            self._producer.flush()
            self._ends = self._reader.ends()
            self._unflushed = False
        self._there = {place for place in self._there if place[2] >= next_offsets.get(Partition(*place[:2]), 0)}

    def to_state(self) -> dict[str, list[list[Any]]]:
        return {
            "ends": [[topic, partition, offset] for (topic, partition), offset in self._ends.items()],
            "there": [list(place) for place in sorted(self._there)],  # other partitions may not be so far yet
        }

    def load_state(self, state: Mapping[str, list[list[Any]]], next_offsets: Mapping[Partition, int]) -> None:
        """Reads what was put there after the checkpoint; a first start has an empty state. Raises SourceError."""
        self._ends = {Partition(topic, partition): offset for topic, partition, offset in state.get("ends", [])}
        self._there = {(topic, partition, offset) for topic, partition, offset in state.get("there", [])}
        for letter in map(dead_letter, self._reader.read(self._ends)):
            if letter.offset >= next_offsets.get(Partition(letter.topic, letter.partition), 0):
                self._there.add((letter.topic, letter.partition, letter.offset))
