"""Reads a topic other than that of clicks in a thread beside the loop."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from stream.source import Partition, Record, SourceError, TopicReader

CLOSE_S_MAX = 5.0  # longest wait for the reader's thread at the end
_PREPARED_AT_ONCE = 32  # records

Prepare = Callable[[Sequence[Record]], None]

log = logging.getLogger(__name__)


class ItemsFeed:
    """Reads a topic in a thread of its own, so that no click waits for a broker that is slow to answer.

    At most `records_max` records wait to be taken; it polls every `interval_s` seconds. While the broker is unavailable
    there are no updates, with one warning. It owns the reader, and closes it. `what`: the topic's records, for the log.
    """

    def __init__(self, reader: TopicReader, *, records_max: int, interval_s: float, what: str = "items") -> None:
        self._reader = reader
        self._interval_s = interval_s
        self._what = what
        self._waiting: queue.Queue[Record] = queue.Queue(records_max)
        self._stop = threading.Event()
        self._unavailable = False
        self._prepare: Prepare | None = None
        self._thread: threading.Thread | None = None

    def start(self, starts: Mapping[Partition, int], prepare: Prepare | None = None) -> None:
        """Starts reading.

        Args:
            starts: offsets to start at; partitions without one start at their earliest record.
            prepare: called with records before they can be taken, in the feed's thread.
        """
        self._prepare = prepare
        self._thread = threading.Thread(target=self._run, args=[dict(starts)], name=self._what, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many records wait to be taken."""
        return self._waiting.qsize()

    def take(self) -> list[Record]:
        """Returns the records that wait, in order within each partition; never blocks."""
        return [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]  # nothing else takes any

    def close(self) -> None:
        """Stops reading and frees everything."""
        self._stop.set()
        if self._thread is None:
            self._reader.close()
        else:
            self._thread.join(CLOSE_S_MAX)

    def _run(self, next_offsets: dict[Partition, int]) -> None:
        while not self._stop.is_set():
            try:
                for record in self._prepared(self._new(next_offsets)):
                    if not self._put(record):
                        break
                    next_offsets[Partition(record.topic, record.partition)] = record.offset + 1
                self._unavailable = False
            except SourceError as error:
                if not self._unavailable:
                    log.warning("%s; until then %s are not updated", error, self._what)
                self._unavailable = True
            except Exception:  # clicks must go on, whatever the error is
                log.exception("%s cannot be read; trying again", self._what)
            self._stop.wait(self._interval_s)
        self._reader.close()

    def _new(self, next_offsets: dict[Partition, int]) -> Iterator[Record]:
        for partition, end in self._reader.ends().items():
            if next_offsets.get(partition, 0) > end:
                log.warning("topic %s was created again: it is read from its beginning", partition.topic)
                del next_offsets[partition]
        yield from self._reader.read(dict(next_offsets))

    def _prepared(self, records: Iterator[Record]) -> Iterator[Record]:
        if self._prepare is None:
            yield from records
            return
        while some := list(islice(records, _PREPARED_AT_ONCE)):
            self._prepare(some)
            yield from some

    def _put(self, record: Record) -> bool:
        """Waits for room. Returns whether the record was put; it is not if `close` is called meanwhile."""
        while not self._stop.is_set():
            try:
                self._waiting.put(record, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
