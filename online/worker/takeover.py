"""What a former owner of partitions may have left undone: dead letters that are not written, and clicks not trained.

This worker has counted these clicks already. It trains on those that the base has not merged, a micro-batch each turn,
so that other clicks do not wait.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from online.learner.learner import Learner
from online.worker.dead_letters import DeadLetterWriter
from online.worker.intake import Intake
from online.worker.micro_batches import ReceivedClick
from stream.source import Partition, Record, SourceError, TopicReader

log = logging.getLogger(__name__)


class Owed(NamedTuple):
    """Offsets of a partition that are to be gone over."""

    start: int | None  # the group's committed offset; None: the earliest
    trained: int  # clicks before it are trained, or another worker's change covers them
    stop: int  # where this worker has begun to own it


class Takeover:
    """Goes over what former owners have read. For the loop's thread only."""

    def __init__(
        self,
        *,
        clicks: TopicReader,
        intake: Intake,
        dead_letters: DeadLetterWriter,
        learner: Learner,
        trained: Callable[[int, int, int, int], None],
        is_merged: Callable[[int, int], bool],
        batch_max: int,
        behind_max: int,
    ) -> None:
        """Creates one with nothing to do.

        Args:
            clicks: reads clicks again.
            intake: parses them.
            dead_letters: where bad messages go.
            learner: what learns.
            trained: notes that the weights have learned from offsets: partition, start, stop, clicks.
            is_merged: whether the base has an offset of a partition.
            batch_max: clicks that are trained in one turn.
            behind_max: the latest so many offsets of a partition are trained; older clicks are not held any more.
        """
        self._clicks, self._intake, self._dead_letters, self._learner = clicks, intake, dead_letters, learner
        self._trained, self._is_merged = trained, is_merged
        self._batch_max, self._behind_max = batch_max, behind_max
        self._owed: dict[Partition, Owed] = {}
        self._waiting: dict[Partition, deque[ReceivedClick]] = {}
        self.counts: Counter[str] = Counter()  # trained_again; skipped: the rest, of whose past too little is held

    def gained(
        self, committed: Mapping[Partition, int | None], at: Mapping[Partition, int], trained: Mapping[int, int]
    ) -> None:
        """Takes partitions over.

        Args:
            committed: the group's offsets.
            at: this worker's positions.
            trained: the offset, by partition, before which clicks are trained, or another worker's change covers them.
        """
        try:
            self._dead_letters.doubt({p: end for p, end in self._clicks.ends().items() if p in committed})
        except SourceError:  # then nothing of it was read, either
            self._dead_letters.doubt(dict.fromkeys(committed, 2**62))
        for partition, start in committed.items():
            stop = at.get(partition, 0)
            done = max(trained.get(partition.partition, 0), stop - self._behind_max)
            if stop > min(start or 0, done):
                self._owed[partition] = Owed(start, done, stop)
        self.go_over()

    def only(self, owned: Collection[Partition]) -> None:
        """Leaves the other partitions to their new owners."""
        self._owed = {partition: owed for partition, owed in self._owed.items() if partition in owned}
        self._waiting = {partition: some for partition, some in self._waiting.items() if partition in owned}

    def is_pending(self, partition: Partition) -> bool:
        """Returns whether bad messages of its former owner may not be dead letters yet: then nothing is committed."""
        return partition in self._owed

    @property
    def training(self) -> bool:
        """Whether clicks are to be trained."""
        return bool(self._waiting)

    def go_over(self) -> None:
        """Reads again what former owners had read: bad messages become dead letters, clicks wait to be trained."""
        try:
            for partition, owed in list(self._owed.items()):
                clicks = deque(
                    one
                    for one in self._intake.take_over(self._between(partition, owed), since=owed.start or 0)
                    if one.record.offset >= owed.trained
                )
                del self._owed[partition]
                if clicks:
                    self._waiting[partition] = clicks
                    number = partition.partition
                    log.info("trains %d clicks of partition %d again", len(clicks), number, extra={"partition": number})
        except SourceError as error:
            log.warning("what the former owner has read cannot be read again yet: %s", error)

    def _between(self, partition: Partition, owed: Owed) -> Iterator[Record]:
        starts = {other: end for other, end in self._clicks.ends().items() if other != partition}
        for record in self._clicks.read(starts | {partition: min(owed.start or 0, owed.trained)}):
            if record.partition == partition.partition:
                if record.offset >= owed.stop:
                    return
                yield record

    def train(self) -> int:
        """Trains at most a micro-batch of clicks. Returns how many."""
        for partition, waiting in list(self._waiting.items()):
            batch: list[ReceivedClick] = []
            while waiting and len(batch) < self._batch_max:
                one = waiting.popleft()
                if not self._is_merged(partition.partition, one.record.offset):
                    batch.append(one)
            if not waiting:
                del self._waiting[partition]
            if not batch:
                continue
            clicks = self._learner.train_again([one.click for one in batch])
            self.counts["trained_again"] += clicks
            self.counts["skipped"] += len(batch) - clicks
            self._trained(partition.partition, batch[0].record.offset, batch[-1].record.offset + 1, clicks)
            return clicks
        return 0
