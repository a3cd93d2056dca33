"""What all sources that read Kafka share: one consumer of kafka-python, and what it needs help with."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from stream.batches import put_aside_undecodable, undecodable_of
from stream.kafka_errors import connected, log, source_error
from stream.source import (
    OnAssigned,
    OnGone,
    Partition,
    Record,
    SourceError,
    next_offset,
    warn_of,
)

ASK_S_MAX = 5.0
_POLL_SLICE_S = 0.5

# Of all partitions together, in one answer of a broker. A first message that is larger still comes, as large as its
# topic takes (`max.message.bytes`).
FETCH_BYTES_MAX = 8 * 2**20

AWAY = kafka_errors.KafkaConnectionError, kafka_errors.KafkaTimeoutError, kafka_errors.NodeNotReadyError

CONSUMER = {
    "metrics_enabled": False,
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
    "allow_auto_create_topics": False,
    # A topic or partition that is made later is seen within this time.
    "metadata_max_age_ms": 5_000,
    # Small, so that partitions that are behind take turns, and all of them are soon there to be merged.
    "max_partition_fetch_bytes": 64 * 2**10,
    "fetch_max_bytes": FETCH_BYTES_MAX,
    # After a kill -9 the group waits this long for the dead member before its successor gets the partitions.
    "session_timeout_ms": 10_000,
    "heartbeat_interval_ms": 3_000,
    "max_poll_interval_ms": 300_000,
}
_WAIT_S = 0.02


class KafkaReading(ABC):
    """A consumer that reads partitions from positions that the application names, and says what is gone.

    How partitions come and go is the subclasses' part: they call `_assign` for new ones, and `_forget` for those that
    leave, from `_before_fetch` or `_after_fetch`.
    """

    def __init__(self, bootstrap_servers: str, options: Mapping[str, Any]) -> None:
        self._servers = bootstrap_servers
        self._consumer = open_consumer(bootstrap_servers, options)
        fetcher = self._consumer._fetcher
        fetcher._parse_fetched_data = self._noting_ends(fetcher._parse_fetched_data)
        self._on_assigned: OnAssigned | None = None
        self._on_gone: OnGone = warn_of
        self._positions: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._trouble: str | None = None
        self._closed = False

    @abstractmethod
    def _before_fetch(self) -> None:
        """Lets partitions come and go, before records are fetched. Errors of kafka-python may pass."""

    def _after_fetch(self) -> None:  # noqa: B027 - most have nothing to do then
        """The same, after records were fetched: those of partitions that leave here are not handed out."""

    def _may_fetch(self) -> bool:
        """Returns whether records may be handed out yet."""
        return True

    def _undecided(self) -> set[Partition]:
        """Returns partitions whose assignment is not settled yet; pausing leaves them alone."""
        return set()

    def _forget(self, partition: Partition) -> None:
        self._positions.pop(partition, None)
        self._paused.discard(partition)

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        if self._on_assigned is None:
            raise SourceError("Kafka is polled before start()")
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            records = self._poll_once(max_records, min(left_s, _POLL_SLICE_S))
            if records or left_s == 0.0:
                return records

    def _poll_once(self, max_records: int, timeout_s: float) -> list[Record]:
        fetched: dict[TopicPartition, list[Any]] = {}
        try:
            self._before_fetch()
            if not self._may_fetch():
                time.sleep(min(timeout_s, _WAIT_S))
                return []
            self._unpark()
            fetched = self._consumer.poll(timeout_ms=int(timeout_s * 1_000), max_records=max_records)
            self._after_fetch()
            positions = self._consumers_positions()
            self._look_for_what_is_gone(fetched, positions)
        except kafka_errors.KafkaError as error:
            if not error.retriable:
                raise source_error(self._servers, error) from error
            log.debug("Kafka at %s: %s", self._servers, error)
            if isinstance(error, AWAY):
                self._fares(error)
            for where in fetched:  # what it gave before it failed is read again
                if (partition := Partition(where.topic, where.partition)) in self._positions:
                    self.seek(partition, self._positions[partition])
            time.sleep(min(timeout_s, 0.1))
            return []
        records = []
        for where, batch in fetched.items():
            partition = Partition(where.topic, where.partition)
            if batch and partition in self._positions:
                records += [as_record(message) for message in batch]
        self._positions = positions
        if records:
            self._fares(None)
        return records

    def _consumers_positions(self) -> dict[Partition, int]:
        """They pass what no message comes of: marks of transactions, aborted messages, what was compacted away."""
        found = dict(self._positions)
        for partition in found:
            state = self._consumer._subscription.assignment.get(TopicPartition(*partition))
            if state is not None and state.position is not None:
                found[partition] = state.position.offset
        return found

    def positions(self) -> dict[Partition, int]:
        return dict(self._positions)

    def seek(self, partition: Partition, offset: int) -> None:
        if partition not in self._positions:
            raise SourceError(f"{partition.topic} partition {partition.partition} is not assigned: cannot seek in it")
        try:
            self._consumer.seek(TopicPartition(*partition), offset)
        except ValueError:
            return  # taken away since the last poll; the next one says so
        self._positions[partition] = offset

    def ends(self) -> dict[Partition, int]:
        """As `Source.ends`; the last ones known while the broker is unavailable."""
        try:
            self._ends = self._offsets(self._consumer.end_offsets, list(self._positions))
            if self._ends:
                self._fares(None)
        except kafka_errors.KafkaError as error:
            self._fares(error)
        return {partition: self._ends[partition] for partition in self._positions if partition in self._ends}

    def known_ends(self) -> dict[Partition, int]:
        return {partition: self._ends[partition] for partition in self._positions if partition in self._ends}

    def _noting_ends(self, parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Takes note of how far a partition can be read, which stands in every answer to a fetch. kafka-python offers
        the high watermark alone; what lies between the two belongs to transactions that are still open."""

        def parse_noting(fetched: Any) -> Any:
            where, stable = fetched.topic_partition, fetched.partition_data.last_stable_offset
            partition = Partition(where.topic, where.partition)
            # The answer may be older than one to `ends`.
            self._ends[partition] = max(self._ends.get(partition, 0), stable)
            return parse(fetched)

        return parse_noting

    def pause(self, partitions: Collection[Partition]) -> None:
        undecided = self._undecided()
        wanted = set(partitions) & self._positions.keys()
        for partition in (wanted ^ self._paused) - undecided:  # those begin anew at the next poll
            change = self._consumer.pause if partition in wanted else self._consumer.resume
            with suppress(KeyError):  # taken away since the last poll; the next one says so
                change(TopicPartition(*partition))
        self._paused = wanted

    def _unpark(self) -> None:
        """What kafka-python 3.0 has parsed of a partition before it was paused comes back only while it holds no answer
        of another one, and it takes one that is used up for such: the partition would never come back."""
        fetcher = self._consumer._fetcher
        if not fetcher._next_partition_records:
            fetcher._next_partition_records = None

    def trouble(self) -> str | None:
        return self._trouble

    def _fares(self, error: Exception | None) -> None:
        """Says once that the broker does not answer, and once that it does again."""
        if error is None and self._trouble is not None:
            log.info("Kafka at %s answers again", self._servers)
        if error is not None and self._trouble is None:
            log.warning("waiting: %s", source_error(self._servers, error))
        self._trouble = None if error is None else str(source_error(self._servers, error))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._consumer.close(autocommit=False, timeout_ms=int(ASK_S_MAX * 1_000))

    def _assign(self, partitions: list[Partition]) -> None:
        # Asked first: where the broker does not answer this raises, and the whole is tried again at the next poll.
        earliest = self._offsets(self._consumer.beginning_offsets, partitions)
        ends = self._offsets(self._consumer.end_offsets, partitions)
        assert self._on_assigned is not None
        wanted = self._on_assigned(partitions)
        for partition in partitions:
            offset = next_offset(partition, wanted.get(partition), earliest[partition], ends[partition], self._on_gone)
            try:
                self._consumer.seek(TopicPartition(*partition), offset)
                self._consumer.resume(TopicPartition(*partition))
            except (ValueError, KeyError):
                continue  # taken away again meanwhile; the decision that says so is next
            self._positions[partition] = offset
            self._ends[partition] = ends[partition]
            self._paused.discard(partition)

    def _look_for_what_is_gone(
        self, fetched: Mapping[TopicPartition, Sequence[Any]], positions: Mapping[Partition, int]
    ) -> None:
        """Where reading jumped, kafka-python went on from the earliest record by itself, unless the gap is one of
        transactions' marks, or of compaction."""
        firsts = {Partition(where.topic, where.partition): batch[0].offset for where, batch in fetched.items() if batch}
        jumped = {p: at for p, at in {**positions, **firsts}.items() if at != self._positions.get(p, at)}
        for partition, earliest in self._offsets(self._consumer.beginning_offsets, list(jumped)).items():
            wanted, at = self._positions[partition], jumped[partition]
            # It lies before where it was where the topic was made anew.
            next_offset(partition, wanted, max(wanted, min(earliest, at)) if at > wanted else at, at, self._on_gone)

    def _offsets(self, ask: Any, partitions: list[Partition]) -> dict[Partition, int]:
        if not partitions:
            return {}
        answer = ask([TopicPartition(*partition) for partition in partitions], timeout_ms=int(ASK_S_MAX * 1_000))
        return {Partition(where.topic, where.partition): int(offset) for where, offset in answer.items()}


class TopicReading(KafkaReading):
    """Reads all partitions of one topic, without a group, also those that are added later."""

    def __init__(self, bootstrap_servers: str, topic: str, options: Mapping[str, Any]) -> None:
        super().__init__(bootstrap_servers, {**options, "group_id": None})
        self._topic = topic

    def _follow_topic(self) -> None:
        self._consumer._cluster.set_topics([self._topic])

    def _before_fetch(self) -> None:
        self._take_up_new_partitions()

    def _take_up_new_partitions(self) -> None:
        numbers = self._consumer._cluster.partitions_for_topic(self._topic) or ()
        if len(numbers) <= len(self._positions):
            return
        there = [TopicPartition(self._topic, number) for number in sorted(numbers)]
        new = [at for at in there if Partition(at.topic, at.partition) not in self._positions]
        # The state of those that are there already stays. Until it is known where the new ones start they are paused.
        self._consumer.assign(there)
        self._consumer.pause(*new)
        self._assign([Partition(at.topic, at.partition) for at in new])


def open_consumer(bootstrap_servers: str, options: Mapping[str, Any]) -> KafkaConsumer:
    """A consumer of kafka-python that nothing it reads can stop. Raises SourceError where no broker answers."""
    consumer = connected(KafkaConsumer, bootstrap_servers, options)
    put_aside_undecodable(consumer)
    return consumer


def as_record(message: Any) -> Record:
    """A message of kafka-python's consumer as ours."""
    headers = tuple((name, value or b"") for name, value in message.headers or ())
    timestamp_ms = -1 if message.timestamp is None else message.timestamp  # formats before Kafka 0.10 have none
    return Record(
        message.topic, message.partition, message.offset, timestamp_ms, message.key, message.value, headers,
        undecodable_of(message),
    )  # fmt: skip
