"""Kafka as a source and a producer, by kafka-python."""

import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import KafkaProducer as Client
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from stream.broker import ACKNOWLEDGE_S_MAX
from stream.kafka_consumer import ASK_S_MAX, AWAY, FETCH_BYTES_MAX, KafkaReading, as_record, open_consumer
from stream.kafka_consumer import CONSUMER as _CONSUMER
from stream.kafka_errors import connected, log, source_error
from stream.source import (
    OnAssigned,
    OnGained,
    OnGone,
    OnRevoked,
    Partition,
    SourceError,
    TooLargeError,
    UnavailableError,
    warn_of,
)

__all__ = ["FETCH_BYTES_MAX", "KafkaProducer", "KafkaSource", "as_record", "ensure_topics", "open_consumer"]

_JOIN_SLICE_MS = 2_000
_DEAD_LETTER_BYTES_MAX = 2 * 2**20
_BUFFER_BYTES_MAX = 8 * 2**20
_BUFFER_RECORDS_MAX = 20_000
# Beyond this a record may be more than its topic takes, so its acknowledgement is waited for.
_LARGE_BYTES = 512 * 1024

_NO_OPTIONS: Mapping[str, Any] = {}
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


class KafkaSource(KafkaReading):
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
        super().__init__(bootstrap_servers, {**_CONSUMER, "group_id": group, **client_options})
        self._topics = list(topics)
        self._listener = _Listener(self._consumer)
        self._on_revoked: OnRevoked | None = None
        self._warned = False

    def start(
        self,
        *,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        on_gone: OnGone = warn_of,
        on_gained: OnGained | None = None,  # noqa: ARG002  (what is assigned is owned: `on_assigned` says so)
        on_lost: OnRevoked | None = None,  # noqa: ARG002
    ) -> None:
        self._on_assigned, self._on_revoked, self._on_gone = on_assigned, on_revoked, on_gone
        self._consumer.subscribe(topics=self._topics, listener=self._listener)

    def owned(self) -> frozenset[Partition]:
        return frozenset(self._positions)

    def leadership(self) -> int | None:
        return 0

    def _before_fetch(self) -> None:
        self._join_if_needed()

    def _after_fetch(self) -> None:
        self._act_on_decisions()

    def _undecided(self) -> set[Partition]:
        return {partition for _, some in self._listener.decisions for partition in some}

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

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        there = {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        if not there:
            return
        try:
            self._consumer.commit(there, timeout_ms=int(ASK_S_MAX * 1_000))
        except (kafka_errors.RebalanceInProgressError, kafka_errors.IllegalGenerationError) as error:
            log.debug("positions are not committed while the group rebalances: %s", error)
        except AWAY as error:
            self._fares(error)
        except kafka_errors.KafkaError as error:
            log.warning("positions are not committed to Kafka at %s: %s", self._servers, error)

    def committed(self) -> dict[Partition, int]:
        found = {}
        try:
            for partition in self._positions:
                offset = self._consumer.committed(TopicPartition(*partition), timeout_ms=int(ASK_S_MAX * 1_000))
                if offset is not None:
                    found[partition] = int(offset)
        except kafka_errors.KafkaError as error:
            raise source_error(self._servers, error) from error
        return found

    def _act_on_decisions(self) -> None:
        while self._listener.decisions:
            kind, partitions = self._listener.decisions[0]
            if kind == "revoked":
                self._revoke([partition for partition in partitions if partition in self._positions])
            elif partitions:
                self._assign(partitions)
            self._listener.decisions.popleft()
            if kind == "assigned":
                self._warn_of_others()

    def _warn_of_others(self) -> None:
        """Says once that the group gave this worker a part only. What it counts and learns is then its own."""
        for topic in self._topics:
            count = len(self._consumer._cluster.partitions_for_topic(topic) or ())
            mine = sum(partition.topic == topic for partition in self._positions)
            if mine < count and not self._warned:
                self._warned = True
                log.warning(
                    "this worker reads %d of the %d partitions of %s: others of its group read the rest, and the "
                    "weights and counts of each are its own; set NEXTCLICK_WORKERS=many on all of them",
                    mine, count, topic,
                )  # fmt: skip

    def _revoke(self, partitions: list[Partition]) -> None:
        if partitions:
            assert self._on_revoked is not None
            self._on_revoked(partitions)
        for partition in partitions:
            self._forget(partition)


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
            self._client.close(timeout=ASK_S_MAX)

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
    single: Collection[str] = (),
    create: bool = True,
    client_options: Mapping[str, Any] = _NO_OPTIONS,
) -> None:
    """Make the topics that are missing, with so many partitions; those that are there stay as they are.

    `configs` are Kafka's settings by topic. A topic named `*.dead` takes messages of twice Kafka's usual size unless
    set otherwise: a dead letter is the whole bad message and its headers. Raises SourceError, also for a topic among
    `single` that has several partitions; UnavailableError for a topic that is missing and may not be made, by the
    broker's rules or because `create` is false.
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
        there_already = sorted(there & set(single))
        for topic in admin.describe_topics(there_already) if there_already else ():
            if (count := len(topic["partitions"])) > 1:
                raise SourceError(
                    f"topic {topic['name']} at {bootstrap_servers} has {count} partitions and needs exactly one: "
                    "delete it, or name another one"
                )
    except kafka_errors.KafkaError as error:
        raise source_error(bootstrap_servers, error) from error
    finally:
        admin.close()


def _sorted(partitions: set[TopicPartition]) -> list[Partition]:
    return sorted(Partition(where.topic, where.partition) for where in partitions)
