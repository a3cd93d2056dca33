"""Messages that are no clicks (items, feedback), put aside untouched with the reason, to be looked at and sent again.

A dead letter has the message's own key and value, and these headers before the message's own:

| header | value (UTF-8) |
| --- | --- |
| `topic`, `partition`, `offset` | where the message stands |
| `reason` | one of the `REASONS` of stream/events.py, items.py or feedback.py, or `undecodable-batch` |
| `detail` | a line for operators |
| `truncated` | only where the value was too large for the topic: how many bytes it had; the first ones are kept |

A letter with the reason `undecodable-batch` stands for messages that cannot be decoded, at the last of their offsets;
its `detail` says which offsets, and why. Their bytes stay in the topic alone: compressed, they could not be searched
for a user who is to be forgotten.

A message that was sent round again carries a header of its own, `redriven-from`: `topic:partition:offset` of what it
was. That this was done is said by a record on the dead letters' topic: a mark, with an empty key and value, the header
`redriven`, and those that say where the message stood.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stream.events import BadEvent
from stream.source import Producer, Record, TooLargeError

log = logging.getLogger(__name__)

Place = tuple[str, int, int]  # topic, partition, offset

TOPIC = "clicks.dead"
REDRIVEN_FROM = "redriven-from"
_REDRIVEN = "redriven"
_OWN_HEADERS = ("topic", "partition", "offset", "reason", "detail", "truncated", _REDRIVEN)
_TRUNCATED_BYTES = 64 * 1024
UNDECODABLE_BATCH = "undecodable-batch"


class DeadLetters:
    """Puts bad messages on their topic. Call the producer's `flush` to know that they are there."""

    def __init__(self, producer: Producer, topic: str = TOPIC) -> None:
        self._producer = producer
        self._topic = topic

    def put(self, record: Record, bad: BadEvent) -> None:
        """Hand over one bad message. Raises SourceError where the producer does, but never for the message's size."""
        own = [
            ("topic", record.topic.encode()),
            ("partition", str(record.partition).encode()),
            ("offset", str(record.offset).encode()),
            ("reason", bad.reason.encode()),
            ("detail", bad.detail.encode()),
        ]
        try:
            self._producer.send(self._topic, key=record.key, value=record.value, headers=[*own, *record.headers])
        except TooLargeError as error:
            log.warning(
                "%s partition %d offset %d is truncated: %s", record.topic, record.partition, record.offset, error
            )
            own.append(("truncated", str(len(record.value or b"")).encode()))
            # Headers and key may be what is large: the message's own headers go too, and the key is cut as well.
            self._producer.send(
                self._topic,
                key=record.key and record.key[:_TRUNCATED_BYTES],
                value=record.value and record.value[:_TRUNCATED_BYTES],
                headers=own,
            )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as it is read back. `offset` and the like say where the bad message stood.

    `record` is the dead letter itself; `headers` are the message's own; `truncated` is the value's length where it was
    cut, else None.
    """

    record: Record
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    headers: tuple[tuple[str, bytes], ...] = ()
    truncated: int | None = None
    is_mark: bool = False

    @property
    def place(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset

    @property
    def came_back(self) -> bool:
        """Whether it is one that was sent round again."""
        return any(name == REDRIVEN_FROM for name, _ in self.headers)


def send_again(
    producer: Producer, letter: DeadLetter, value: bytes | None, key: bytes | None, partition: int | None = None
) -> None:
    """To the topic where the message stood, as it was but for key and value; `partition`: None: as the key says.
    Raises SourceError."""
    own = [(name, text) for name, text in letter.headers if name != REDRIVEN_FROM]
    place = ":".join(map(str, letter.place)).encode()
    producer.send(letter.topic, key=key, value=value, headers=[*own, (REDRIVEN_FROM, place)], partition=partition)


def mark_redriven(producer: Producer, letter: DeadLetter, topic: str) -> None:
    """Says on the dead letters' topic that this one was sent again. Raises SourceError."""
    where = zip(("topic", "partition", "offset"), letter.place, strict=True)
    headers = [(name, str(value).encode()) for name, value in where]
    producer.send(topic, key=b"", value=b"", headers=[*headers, (_REDRIVEN, b"1")])


def undecodable(record: Record) -> BadEvent | None:
    """What is wrong with a record that stands for what cannot be decoded; None: it is no such record."""
    return None if record.undecodable is None else BadEvent(UNDECODABLE_BATCH, str(record.undecodable))


def undecodable_notice(record: Record, bad: BadEvent) -> tuple[str, dict[str, Any]]:
    """The line for operators, and its figures."""
    figures = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    figures |= {"messages": record.undecodable.records if record.undecodable else 1}
    return f"{record.topic} partition {record.partition}: {bad.detail}; put aside, reading goes on behind", figures


def dead_letter(record: Record) -> DeadLetter:
    """Read a record of the dead letters' topic. What others put there has empty fields and -1 for numbers, and so have
    letters that cannot be decoded themselves."""
    if bad := undecodable(record):
        return DeadLetter(record, topic="", partition=-1, offset=-1, reason=bad.reason, detail=bad.detail)
    fields: dict[str, str] = {}
    others: list[tuple[str, bytes]] = []
    for name, value in record.headers:
        if name in _OWN_HEADERS and name not in fields:
            fields[name] = value.decode(errors="replace")
        else:
            others.append((name, value))
    truncated = _number(fields.get("truncated"))
    return DeadLetter(
        record=record,
        topic=fields.get("topic", ""),
        partition=_number(fields.get("partition")),
        offset=_number(fields.get("offset")),
        reason=fields.get("reason", ""),
        detail=fields.get("detail", ""),
        headers=tuple(others),
        truncated=None if truncated < 0 else truncated,
        is_mark=_REDRIVEN in fields,
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else -1


def letters_in(records: Iterable[Record]) -> tuple[list[DeadLetter], set[Place]]:
    """The letters among the records of their topic, each once, and where those stood that were sent again."""
    letters: dict[Any, DeadLetter] = {}
    marked: set[Place] = set()
    for letter in map(dead_letter, records):
        if letter.is_mark:
            marked.add(letter.place)
        else:
            # What others put there stands nowhere.
            place = letter.place if letter.offset >= 0 else (letter.record.partition, letter.record.offset)
            letters.setdefault(place, letter)
    return list(letters.values()), marked
