"""What the items topic says, read beside the loop."""

import logging
import queue
import threading
from collections.abc import Iterator, Mapping

from stream.source import Partition, Record, SourceError, TopicReader

CLOSE_S_MAX = 5.0  # a reader that waits for its broker longer than that is left behind

log = logging.getLogger(__name__)


class ItemsFeed:
    """Reads the items topic in a thread of its own, so that no click waits for a broker that is slow to answer.

    At most `records_max` records wait to be taken; it looks for new ones every `interval_s` seconds. While the broker
    is unavailable nothing comes, with one warning. The reader is its own from now on.
    """

    def __init__(self, reader: TopicReader, *, records_max: int, interval_s: float) -> None:
        self._reader = reader
        self._interval_s = interval_s
        self._waiting: queue.Queue[Record] = queue.Queue(records_max)
        self._stop = threading.Event()
        self._away = False
        self._thread: threading.Thread | None = None

    def start(self, starts: Mapping[Partition, int]) -> None:
        """Begin to read at these offsets, elsewhere at the earliest."""
        self._thread = threading.Thread(target=self._run, args=[dict(starts)], name="items", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many records wait to be taken."""
        return self._waiting.qsize()

    def take(self) -> list[Record]:
        """What waits, in order within each partition; never blocks."""
        return [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]  # nothing else takes any

    def close(self) -> None:
        """Stop reading and free everything."""
        self._stop.set()
        if self._thread is None:
            self._reader.close()
        else:
            self._thread.join(CLOSE_S_MAX)

    def _run(self, next_offsets: dict[Partition, int]) -> None:
        while not self._stop.is_set():
            try:
                for record in self._new(next_offsets):
                    if not self._put(record):
                        break
                    next_offsets[Partition(record.topic, record.partition)] = record.offset + 1
                self._away = False
            except SourceError as error:
                if not self._away:
                    log.warning("%s; until then no item comes or goes", error)
                self._away = True
            except Exception:  # clicks must go on, whatever this is
                log.exception("items cannot be read; it is tried again")
            self._stop.wait(self._interval_s)
        self._reader.close()

    def _new(self, next_offsets: dict[Partition, int]) -> Iterator[Record]:
        for partition, end in self._reader.ends().items():
            if next_offsets.get(partition, 0) > end:
                log.warning("topic %s was made anew: it is read from its beginning", partition.topic)
                del next_offsets[partition]
        yield from self._reader.read(dict(next_offsets))

    def _put(self, record: Record) -> bool:
        """Waits for room -> whether it was put; not, where the end is asked for meanwhile."""
        while not self._stop.is_set():
            try:
                self._waiting.put(record, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
