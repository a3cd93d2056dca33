"""Kafka as a source and a producer, by kafka-python."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import KafkaProducer as Client
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from stream.batches import put_aside_undecodable, undecodable_of
from stream.broker import ACKNOWLEDGE_S_MAX
from stream.kafka_errors import connected, log, source_error
from stream.source import (
    OnAssigned,
    OnGone,
    OnRevoked,
    Partition,
    Record,
    SourceError,
    TooLargeError,
    UnavailableError,
    next_offset,
    warn_of,
)

_POLL_SLICE_S = 0.5
_JOIN_SLICE_MS = 2_000
_ASK_S_MAX = 5.0
_DEAD_LETTER_BYTES_MAX = 2 * 2**20
_BUFFER_BYTES_MAX = 8 * 2**20
_BUFFER_RECORDS_MAX = 20_000
# Beyond this a record may be more than its topic takes, so its acknowledgement is waited for.
_LARGE_BYTES = 512 * 1024

# Of all partitions together, in one answer of a broker. A first message that is larger still comes, as large as its
# topic takes (`max.message.bytes`).
FETCH_BYTES_MAX = 8 * 2**20

_AWAY = kafka_errors.KafkaConnectionError, kafka_errors.KafkaTimeoutError, kafka_errors.NodeNotReadyError

_NO_OPTIONS: Mapping[str, Any] = {}
_CONSUMER = {
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
_PRODUCER = {
    "metrics_enabled": False,
    "acks": "all",
    "enable_idempotence": True,
    "compression_type": "lz4",
    "linger_ms": 5,
    "batch_size": 64 * 1024,
    "max_request_size": _DEAD_LETTER_BYTES_MAX,
    "allow_auto_create_topics": False,
}


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes what the group decides, for the caller's thread to act on.

    kafka-python calls this in its own thread, where nothing may block. A partition that is new stays paused until the
    application has said where it starts.
    """

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self.decisions: deque[tuple[str, list[Partition]]] = deque()

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.decisions.append(("revoked", _sorted(revoked)))

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._consumer.pause(*assigned)
        self.decisions.append(("assigned", _sorted(assigned)))


class KafkaSource:
    """A `PausableSource` that is one member of a consumer group.

    Raises SourceError where no broker answers at first. When one goes away later, `poll` returns nothing until it is
    back; `client_options` are kafka-python's own (security_protocol, sasl_*, ssl_*).
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Sequence[str],
        group: str,
        *,
        client_options: Mapping[str, Any] = _NO_OPTIONS,
    ) -> None:
        self._servers = bootstrap_servers
        self._topics = list(topics)
        self._consumer = open_consumer(bootstrap_servers, {**_CONSUMER, "group_id": group, **client_options})
        self._listener = _Listener(self._consumer)
        fetcher = self._consumer._fetcher
        fetcher._parse_fetched_data = self._noting_ends(fetcher._parse_fetched_data)
        self._on_assigned: OnAssigned | None = None
        self._on_revoked: OnRevoked | None = None
        self._on_gone: OnGone = warn_of
        self._positions: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._trouble: str | None = None
        self._closed = False

    def start(self, *, on_assigned: OnAssigned, on_revoked: OnRevoked, on_gone: OnGone = warn_of) -> None:
        self._on_assigned, self._on_revoked, self._on_gone = on_assigned, on_revoked, on_gone
        self._consumer.subscribe(topics=self._topics, listener=self._listener)

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
            self._join_if_needed()
            self._unpark()
            fetched = self._consumer.poll(timeout_ms=int(timeout_s * 1_000), max_records=max_records)
            self._act_on_decisions()
            positions = self._consumers_positions()
            self._look_for_what_is_gone(fetched, positions)
        except kafka_errors.KafkaError as error:
            if not error.retriable:
                raise source_error(self._servers, error) from error
            log.debug("Kafka at %s: %s", self._servers, error)
            if isinstance(error, _AWAY):
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

    def _join_if_needed(self) -> None:
        """Take part in a rebalance, before kafka-python's own `poll` does, for two reasons.

        There the application would be called in another thread, when nothing can be committed any more; here it still
        owns its partitions. And a `poll` whose time is up while joining may forget, in kafka-python 3.0, that it has
        begun to: the leader of the group then waits for ever. Asking for the rejoin keeps it in mind.
        """
        coordinator = self._consumer._coordinator
        if not (coordinator.rejoining or coordinator.need_rejoin()):
            return
        self._revoke(list(self._positions))
        coordinator.request_rejoin()
        coordinator.ensure_active_group(timeout_ms=_JOIN_SLICE_MS)
        self._act_on_decisions()

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

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        there = {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        if not there:
            return
        try:
            self._consumer.commit(there, timeout_ms=int(_ASK_S_MAX * 1_000))
        except (kafka_errors.RebalanceInProgressError, kafka_errors.IllegalGenerationError) as error:
            log.debug("positions are not committed while the group rebalances: %s", error)
        except _AWAY as error:
            self._fares(error)
        except kafka_errors.KafkaError as error:
            log.warning("positions are not committed to Kafka at %s: %s", self._servers, error)

    def committed(self) -> dict[Partition, int]:
        found = {}
        try:
            for partition in self._positions:
                offset = self._consumer.committed(TopicPartition(*partition), timeout_ms=int(_ASK_S_MAX * 1_000))
                if offset is not None:
                    found[partition] = int(offset)
        except kafka_errors.KafkaError as error:
            raise source_error(self._servers, error) from error
        return found

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
        undecided = {partition for _, some in self._listener.decisions for partition in some}
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
            self._consumer.close(autocommit=False, timeout_ms=int(_ASK_S_MAX * 1_000))

    def _act_on_decisions(self) -> None:
        while self._listener.decisions:
            kind, partitions = self._listener.decisions[0]
            if kind == "revoked":
                self._revoke([partition for partition in partitions if partition in self._positions])
            elif partitions:
                self._assign(partitions)
            self._listener.decisions.popleft()

    def _revoke(self, partitions: list[Partition]) -> None:
        if partitions:
            assert self._on_revoked is not None
            self._on_revoked(partitions)
        for partition in partitions:
            self._positions.pop(partition, None)
            self._paused.discard(partition)

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
        answer = ask([TopicPartition(*partition) for partition in partitions], timeout_ms=int(_ASK_S_MAX * 1_000))
        return {Partition(where.topic, where.partition): int(offset) for where, offset in answer.items()}


class KafkaProducer:
    """A `Producer` to Kafka: idempotent, acknowledged by all replicas, partitioned by key as Kafka's own clients do.

    A record without key and value gets an empty key, because kafka-python sends no other. Several threads may use it.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        client_options: Mapping[str, Any] = _NO_OPTIONS,
        *,
        acknowledge_s_max: float = ACKNOWLEDGE_S_MAX,
    ) -> None:
        """`acknowledge_s_max`: a record that the broker has not acknowledged by then has failed."""
        self._servers = bootstrap_servers
        self._acknowledge_s_max = acknowledge_s_max
        wait_ms = int(1_000 * acknowledge_s_max)
        limits = {"delivery_timeout_ms": wait_ms, "request_timeout_ms": min(15_000, wait_ms - 500)}
        limits["max_block_ms"] = min(10_000, wait_ms)
        self._options = {**_PRODUCER, **limits, **client_options}
        self._client = connected(Client, bootstrap_servers, self._options)
        self._lock = threading.RLock()
        self._failure: Exception | None = None
        self._waiting_records = 0
        self._waiting_bytes = 0
        self._closed = False

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """As `Producer.send`; `timestamp_ms`: milliseconds since 1970, None: now."""
        size = len(key or b"") + len(value or b"") + sum(len(name) + len(text) for name, text in headers)
        large = size >= _LARGE_BYTES
        with self._lock:
            if large or self._waiting_records >= _BUFFER_RECORDS_MAX or self._waiting_bytes >= _BUFFER_BYTES_MAX:
                self.flush()
            self._raise_failure()
            try:
                future = self._client.send(
                    topic, value=value, key=b"" if key is None and value is None else key, headers=list(headers),
                    partition=partition, timestamp_ms=timestamp_ms,
                )  # fmt: skip
                if large:
                    future.get(timeout=self._acknowledge_s_max)
                    return
            except (kafka_errors.KafkaError, ValueError, TypeError) as error:
                self._renew()
                if isinstance(error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError):
                    raise TooLargeError(f"a record of {size} bytes is more than topic {topic} takes") from error
                raise source_error(self._servers, error, topic) from error
            future.add_errback(self._note_failure)
            self._waiting_records += 1
            self._waiting_bytes += size

    def flush(self) -> None:
        with self._lock:
            self._waiting_records = self._waiting_bytes = 0
            try:
                # The records' own time limit comes first; this one only guards against waiting for ever.
                self._client.flush(timeout=self._acknowledge_s_max + 10)
            except kafka_errors.KafkaError as error:
                self._note_failure(error)
            self._raise_failure()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            self._client.close(timeout=_ASK_S_MAX)

    def _note_failure(self, error: Exception) -> None:
        self._failure = error

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            if not self._closed:
                self._renew()
            raise source_error(self._servers, failure) from failure

    def _renew(self) -> None:
        """Begin anew: a client refuses everything after one refused record, and asks for a missing topic for ever."""
        old = self._client
        self._client = connected(Client, self._servers, self._options)
        self._failure = None
        old.close(timeout=0)


def ensure_topics(
    bootstrap_servers: str,
    topics: Mapping[str, int],
    *,
    configs: Mapping[str, Mapping[str, str]] = _NO_OPTIONS,
    create: bool = True,
    client_options: Mapping[str, Any] = _NO_OPTIONS,
) -> None:
    """Make the topics that are missing, with so many partitions; those that are there stay as they are.

    `configs` are Kafka's settings by topic. A topic named `*.dead` takes messages of twice Kafka's usual size unless
    set otherwise: a dead letter is the whole bad message and its headers. Raises SourceError; UnavailableError for a
    topic that is missing and may not be made, by the broker's rules or because `create` is false.
    """
    admin = connected(KafkaAdminClient, bootstrap_servers, dict(client_options))
    try:
        there = set(admin.list_topics())
        for name, partitions in topics.items():
            if name in there:
                continue
            if not create:
                raise UnavailableError(f"Kafka at {bootstrap_servers} has no topic {name} yet: create it")
            usual = {"max.message.bytes": str(_DEAD_LETTER_BYTES_MAX)} if name.endswith(".dead") else {}
            wanted = {"num_partitions": partitions, "configs": {**usual, **configs.get(name, {})}}
            try:
                admin.create_topics({name: wanted}, wait_for_metadata=True)
            except kafka_errors.TopicAlreadyExistsError:
                continue  # another process was faster
            except kafka_errors.AuthorizationError as error:
                raise UnavailableError(
                    f"Kafka at {bootstrap_servers} has no topic {name} that this user may see, nor lets it make one: "
                    "create it, or change the ACLs"
                ) from error
    except kafka_errors.KafkaError as error:
        raise source_error(bootstrap_servers, error) from error
    finally:
        admin.close()


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


def _sorted(partitions: set[TopicPartition]) -> list[Partition]:
    return sorted(Partition(where.topic, where.partition) for where in partitions)
