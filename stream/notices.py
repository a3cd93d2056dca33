"""Notices: what happened to the model, on a topic of their own, so that other programs may act on it.

Writing them is best effort. A broker that is unavailable never holds up the loop: notices wait in a queue of
limited length for a thread that writes them, and what finds no room there is counted and lost to the topic.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stream.source import Producer, SourceError

RETRY_S = 1.0  # between attempts while the broker is unavailable
_CLOSE_S_MAX = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened; on the topic as a JSON object with these fields, keyed by its kind.

    `id` follows from kind and clicks. After a crash clicks are learned again, and what they cause is emitted again,
    with the same id: a reader takes the first. `at`: milliseconds since 1970; `clicks`: learned until then; `version`:
    of the model that made the lists then; `text`: a line for operators; `figures`: what it rests on.
    """

    id: str
    kind: str
    at: int
    clicks: int
    version: int
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def encode(notice: Notice) -> bytes:
    """The value on the topic."""
    return json.dumps(notice.as_dict(), allow_nan=False).encode()


def notice(value: bytes) -> Notice:
    """A notice as it is read back. Raises ValueError: it is none."""
    fields = json.loads(value)
    try:
        return Notice(**fields)
    except TypeError as error:
        raise ValueError(f"no notice: {error}") from None


class NoticeWriter:
    """Writes notices to a topic from a thread of its own.

    `connect` makes the producer, in that thread; it is called again after each failure. `dropped` counts what found no
    room among the `waiting_max` that may wait.
    """

    def __init__(self, connect: Callable[[], Producer], topic: str, *, waiting_max: int) -> None:
        self._connect = connect
        self._topic = topic
        self._waiting: queue.Queue[Notice] = queue.Queue(waiting_max)
        self._closing = threading.Event()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
        self._thread.start()

    def put(self, notice: Notice) -> None:
        """Returns at once."""
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Writes what waits, if the broker takes it within a few seconds. Does no harm the second time."""
        self._closing.set()
        self._thread.join(_CLOSE_S_MAX)

    def _run(self) -> None:
        producer: Producer | None = None
        notice: Notice | None = None  # the one to be written next
        away = False
        while notice or not (self._closing.is_set() and self._waiting.empty()):
            notice = notice or self._next()
            if notice is None:
                continue
            try:
                producer = producer or self._connect()
                producer.send(self._topic, key=notice.kind.encode(), value=encode(notice))
                producer.flush()
                notice, away = None, False
            except Exception as error:  # this thread must not end unseen, whatever it was
                if not away:
                    log.warning("notices cannot be published: %s", error, exc_info=not isinstance(error, SourceError))
                away = True
                _close(producer)
                producer = None
                if self._closing.wait(RETRY_S):
                    break
        _close(producer)

    def _next(self) -> Notice | None:
        try:
            return self._waiting.get(timeout=0.2)
        except queue.Empty:
            return None


def _close(producer: Producer | None) -> None:
    if producer is not None:
        try:
            producer.close()
        except SourceError as error:
            log.debug("a producer of notices did not close: %s", error)
