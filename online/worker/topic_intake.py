"""Takes in the records of a topic beside the clicks."""

import logging
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from online.lifecycle.emit import Emit
from online.lifecycle.unreadable import UnreadableWatch
from online.worker.dead_letters import DeadLetterWriter
from online.worker.items_feed import ItemsFeed, Prepare
from online.worker.poison_pills import INTERNAL_ERROR, last_line
from online.worker.progress import Progress
from stream.dead_letters import UNDECODABLE_BATCH, undecodable, undecodable_notice
from stream.events import BadEvent
from stream.source import Partition, Record

Found = TypeVar("Found")

#: Why a topic is read from its beginning though a checkpoint has read it.
NOT_ALL_KEPT = "not all of what its records say was kept"

log = logging.getLogger(__name__)


class TopicIntake(Generic[Found]):
    """Reads records as a feed brings them; bad ones become dead letters, or are only counted.

    The next offsets of the topic are in the checkpoint, beside what came of the records: as with clicks, a worker goes
    on from there, and one without a checkpoint reads the topic from its beginning. Each of many workers reads all of
    it.
    """

    def __init__(
        self,
        topic: str,
        *,
        feed: ItemsFeed,
        read: Callable[[Record], Found | BadEvent],
        dead_letters: DeadLetterWriter | None,
        progress: Progress,
        unreadable: UnreadableWatch,
        emit: Emit,
    ) -> None:
        """`read`: reads a record, or returns why it is none. `dead_letters`: None: bad records are not kept."""
        self._topic, self._feed, self._parse = topic, feed, read
        self._dead_letters, self._progress, self._unreadable, self._emit = dead_letters, progress, unreadable, emit
        self._read_before: dict[Partition, int] = {}  # offsets before which bad records are dead letters already

    def start(self, *, anew: str = "", prepare: Prepare | None = None) -> None:
        """Begins to read where the checkpoint says. Call it once, after the checkpoint is restored.

        Args:
            anew: why all records are to be read from the beginning, for the log; "": they are not.
            prepare: called with records before they can be taken, in the feed's thread.
        """
        starts = {p: offset for p, offset in self._progress.next_offsets.items() if p.topic == self._topic}
        if anew and starts:
            log.info("the %s topic is read again, because %s", self._topic, anew)
            for partition in starts:  # a checkpoint that comes before the first record begins there too
                del self._progress.next_offsets[partition]
            self._read_before, starts = starts, {}
        self._feed.start(starts, prepare)

    def take(self) -> Iterator[tuple[Record, Found]]:
        """Yields the good records that have come. Raises SourceError."""
        for record in self._feed.take():
            found, partition = self.read(record), Partition(record.topic, record.partition)
            self._unreadable.update(found if isinstance(found, BadEvent) else None, record.value)
            if not isinstance(found, BadEvent):
                yield record, found
            elif record.offset >= self._read_before.get(partition, 0):
                self._put_aside(record, found)
            self._progress.next_offsets[partition] = record.offset + 1

    def _put_aside(self, record: Record, bad: BadEvent) -> None:
        if self._dead_letters is not None:
            self._dead_letters.put(record, bad)
        self._progress.dead_letters[bad.reason] += 1
        if bad.reason == UNDECODABLE_BATCH:
            self._emit("undecodable", *undecodable_notice(record, bad))

    def read(self, record: Record) -> Found | BadEvent:
        """Reads a record, or returns why it is none. It changes nothing; threads may call it."""
        try:
            return undecodable(record) or self._parse(record)
        except Exception as error:  # a bug of ours is no reason to stop
            log.exception("internal error: %s offset %d cannot be parsed", record.topic, record.offset)
            return BadEvent(INTERNAL_ERROR, last_line(error))
