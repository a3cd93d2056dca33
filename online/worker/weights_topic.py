"""The topic over which the workers of a group share their weights: whole records in, whole records out."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from online.rounds.parts import Joiner, split
from online.rounds.weights import RoundsError
from online.worker.backoff import Backoff
from stream.source import Producer, Record, SourceError

WEIGHTS, ASK, NEWS = b"weights", b"ask", b"news"  # keys of records: parts of weights, a request for a base, JSON

log = logging.getLogger(__name__)


class Tail(Protocol):
    """Follows a topic of one partition (`stream.tail.TopicTail`)."""

    @property
    def position(self) -> int | None: ...

    @property
    def known_end(self) -> int | None: ...

    def poll(self) -> list[Record]: ...

    def trouble(self) -> str | None: ...

    def close(self) -> None: ...


#: Begins to follow the topic at an offset; None: at the earliest. Raises SourceError.
OpenTail = Callable[[int | None], Tail]


class Message(NamedTuple):
    """What a worker has told the others. Exactly one field is set."""

    weights: bytes | None = None
    asks: bool = False
    news: Mapping[str, Any] | None = None


class WeightsTopic:
    """Reads and writes whole messages. A broker that does not answer delays them, and nothing else."""

    def __init__(self, open_tail: OpenTail, producer: Producer, topic: str, backoff: Backoff | None = None) -> None:
        """Creates the two ends of the topic; reading begins with `open`."""
        self._open_tail, self._producer, self._topic = open_tail, producer, topic
        self._tail: Tail | None = None
        self._backoff = backoff or Backoff(0.5, 5.0)
        self._joiner = Joiner()
        self.bytes_written = 0

    @property
    def position(self) -> int | None:
        """The next offset to be read after a restart: parts of a message that is not whole yet are read again. None: it
        is not known yet."""
        if (since := self._joiner.oldest) is not None:
            return since
        return None if self._tail is None else self._tail.position

    def open(self, offset: int | None) -> None:
        """Begins to read at an offset; None: at the earliest. Raises SourceError."""
        if self._tail is None:
            self._tail = self._open_tail(offset)

    def read(self) -> Iterator[Message]:
        """Yields the messages that have arrived. Raises SourceError if the topic cannot be read."""
        for record in () if self._tail is None else self._tail.poll():
            message = self.message(record)
            if message is not None:
                yield message

    @property
    def caught_up(self) -> bool:
        """Whether everything has been read that was there when reading began."""
        tail = self._tail
        if tail is None or tail.position is None or tail.known_end is None:
            return False
        return tail.position >= tail.known_end

    @property
    def trouble(self) -> str | None:
        """Why it cannot be read, in one line; None: it can, as far as is known."""
        return None if self._tail is None else self._tail.trouble()

    def message(self, record: Record) -> Message | None:
        """Returns the message that a record completes; None if it completes none."""
        value = record.value or b""
        if record.key == ASK:
            return Message(asks=True)
        if record.key == NEWS:
            try:
                news = json.loads(value)
            except ValueError:
                news = None
            if isinstance(news, dict):
                return Message(news=news)
        elif record.key == WEIGHTS:
            try:
                whole = self._joiner.add(value, record.offset)
                return None if whole is None else Message(weights=whole)
            except RoundsError as error:
                where = {"topic": self._topic, "partition": record.partition, "offset": record.offset}
                log.warning("offset %d of %s: %s; it is skipped", record.offset, self._topic, error, extra=where)
                return None
        log.warning("offset %d of %s holds no message of a worker; it is skipped", record.offset, self._topic)
        return None

    def write_weights(self, record: bytes) -> bool:
        """Writes a change or a base. Returns whether the broker has acknowledged it; else it may be written again."""
        return self._write(WEIGHTS, split(record))

    def ask(self) -> bool:
        """Asks the leader for the whole base. Returns as `write_weights`."""
        return self._write(ASK, [b""])

    def write_news(self, news: Mapping[str, Any]) -> bool:
        """Tells the others of a decision. Returns as `write_weights`."""
        return self._write(NEWS, [json.dumps(news).encode()])

    def _write(self, key: bytes, values: list[bytes]) -> bool:
        if not self._backoff.due:
            return False
        try:
            for value in values:
                self._producer.send(self._topic, key=key, value=value)
            self._producer.flush()
        except SourceError as error:
            self._backoff.failed()
            log.warning("%s cannot be written yet: %s", self._topic, error)
            return False
        self._backoff.succeeded()
        self.bytes_written += sum(len(value) for value in values)
        return True

    def close(self) -> None:
        """Frees what it reads with."""
        if self._tail is not None:
            self._tail.close()


class Outbox:
    """Messages to the others, in the order in which they were decided. What the broker does not acknowledge waits."""

    def __init__(self, topic: WeightsTopic) -> None:
        """Creates an empty one."""
        self._topic = topic
        self._waiting: deque[bytes | Mapping[str, Any]] = deque()  # records, and news

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: bytes | Mapping[str, Any]) -> None:
        """Sends a message now, or later."""
        self._waiting.append(message)
        self.send()

    def send(self) -> bool:
        """Sends what waits. Returns whether nothing does any more."""
        while self._waiting:
            first = self._waiting[0]
            write = self._topic.write_weights(first) if isinstance(first, bytes) else self._topic.write_news(first)
            if not write:
                return False
            self._waiting.popleft()
        return True
