"""Membership of a Kafka consumer group that fetches nothing: it says which partitions this worker owns.

Partitions move in two rounds (KIP-429, cooperative rebalancing). In the first a member learns what it has to give up,
and goes on owning the rest; its successor gets it in the second, which the group begins once the first owner has joined
it. So between the two the owner has all the time to write its checkpoint and to commit, and no other member is held up.

kafka-python's cooperative assignor does what it should against a real broker, with corrections that are made here:
there a member that was thrown out may claim what it owned before as still its own, and says of no generation.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment
from kafka.structs import MemberState, OffsetAndMetadata

from stream.broker import SESSION_TIMEOUT_S
from stream.kafka_consumer import ASK_S_MAX, AWAY, CONSUMER, open_consumer
from stream.kafka_errors import log, source_error
from stream.source import Partition, SourceError

_HEARTBEAT_S = 1.0  # by its answer a member learns that the group rebalances, so each round takes as long
_PROBE_MS_MAX = 1_000
_PROBE_EVERY_S = 5.0
_COMMITTED_S_MAX = 1.0


class Change(NamedTuple):
    """What the group has decided about partitions, in the order of its decisions."""

    kind: Literal["gained", "revoked", "lost"]
    partitions: list[Partition]
    generation: int


class _Assignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Kafka-python's for all partitions but the control topic's, which stays with its owner as long as that is there:
    who leads changes no oftener than it must. Each member also says how many partitions it knows of; when that changes
    the group rebalances, even if the member that assigns was restarted under its name and does not know that it is the
    one."""

    version = 2  # of what a member says of itself: with the generation

    def __init__(self, control: TopicPartition, before_join: Callable[[], None]) -> None:
        super().__init__()
        self._control, self._before_join = control, before_join
        self.known = self.told = 0  # partitions of the topics, and as of the latest attempt to join

    def metadata(self, topics: Collection[str]) -> Any:
        self._before_join()
        self.told = self.known
        said = super().metadata(topics)
        said.generation_id = self.generation
        said.user_data = b"%d" % self.told
        return said

    def assign(self, cluster: Any, members: Sequence[Any]) -> Any:
        owners = []
        for member in members:
            said = member.metadata
            said.topics = [topic for topic in said.topics if topic != self._control.topic]
            if any(one.topic == self._control.topic for one in said.owned_partitions or ()):
                owners.append((said.generation_id, member.member_id))
            said.owned_partitions = [one for one in said.owned_partitions or () if one.topic != self._control.topic]
        assigned = {name: given.partitions() for name, given in super().assign(cluster, members).items()}
        least = min((len(partitions), name) for name, partitions in assigned.items())
        leader = (max(owners) if owners else least)[1]
        assigned[leader].append(self._control)
        return {name: _assignment(self.version, partitions) for name, partitions in assigned.items()}

    def forget(self) -> None:
        self.member_assignment, self.generation = None, self.DEFAULT_GENERATION_ID


def _assignment(version: int, partitions: Sequence[TopicPartition]) -> Any:
    by_topic: dict[str, list[int]] = {}
    for topic, number in sorted(partitions):
        by_topic.setdefault(topic, []).append(number)
    return ConsumerProtocolAssignment(version, list(by_topic.items()), b"")


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Is called in kafka-python's thread, at the end of an attempt to join that `Membership.step` has begun."""

    def __init__(self, membership: "Membership") -> None:
        self._membership = membership

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self._membership.note("revoked", revoked)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._membership.note("gained", assigned)

    def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        self._membership.note("lost", lost)


class Membership:
    """A member of a consumer group. For one thread at a time; heartbeats are sent by kafka-python's.

    Its user calls `step` often, and takes what is in `changes` before the next one: as long as a revocation
    stands there, this member does not go on with the rebalance.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        control: Partition,
        group: str,
        *,
        instance_id: str | None = None,
        session_timeout_s: float = SESSION_TIMEOUT_S,
        client_options: Mapping[str, Any],
    ) -> None:
        """Connects. Raises SourceError.

        Args:
            bootstrap_servers: host:port, separated by commas.
            topic: whose partitions are shared out evenly.
            control: partition that goes to one member and stays there.
            group: to be joined.
            instance_id: a name by which a worker that starts anew within the session timeout gets what it had.
            session_timeout_s: after which a member without a sign of life is thrown out, in seconds.
            client_options: kafka-python's own.
        """
        self._servers, self._group, self._instance_id = bootstrap_servers, group, instance_id
        self._topics = [topic, control.topic]
        self._session_s = session_timeout_s
        self._assignor = _Assignor(TopicPartition(*control), self._before_join)
        own = {
            "group_id": group,
            "group_instance_id": instance_id,
            "session_timeout_ms": int(session_timeout_s * 1_000),
            "heartbeat_interval_ms": int(1_000 * min(_HEARTBEAT_S, session_timeout_s / 3.5)),
            "partition_assignment_strategy": [self._assignor],
        }
        self._consumer = open_consumer(bootstrap_servers, {**CONSUMER, **client_options, **own})
        self._coordinator = self._consumer._coordinator
        self._held: set[Partition] = set()  # as of the last of `changes`
        self.changes: deque[Change] = deque()
        self._probe_at = 0.0
        self._joining: Any = None  # kafka-python's future
        self._closed = False

    def join(self) -> None:
        """Begins to join the group."""
        self._consumer.subscribe(topics=self._topics, listener=_Listener(self))

    def step(self) -> None:
        """Begins to take part in a rebalance if there is one. Raises SourceError where the group refuses this member.

        An unavailable broker is not an error: what was owned stays so, as no other member can get it meanwhile.
        """
        if not self._joined() or any(change.kind != "gained" for change in self.changes):
            return
        coordinator = self._coordinator
        if coordinator.state is MemberState.STABLE and self._overdue():
            self._probe()
        if self._held and coordinator._generation.is_lost():
            self._lose()
        elif coordinator.rejoining or coordinator.need_rejoin() or self._assignor.told != self._assignor.known:
            coordinator.request_rejoin()
            # In kafka-python's thread, which waits for as long as the group takes. With a time limit it would forget,
            # in 3.0, what the group answers between two attempts, and join again without end.
            self._joining = coordinator._manager.call_soon(coordinator.ensure_active_group_async)
        else:
            with self._clear():
                coordinator.poll_heartbeat()
            coordinator._maybe_start_heartbeat_loop()

    def _joined(self) -> bool:
        """Whether no attempt to join is under way."""
        if self._joining is None:
            return True
        if not self._joining.is_done:
            return False
        joining, self._joining = self._joining, None
        if joining.failed():
            with self._clear():
                raise joining.exception
        return True

    @contextmanager
    def _clear(self) -> Iterator[None]:
        """Errors in one line; one that passes is only noted."""
        try:
            yield
        except kafka_errors.KafkaError as error:
            if not error.retriable and not isinstance(error, AWAY):
                self._lose()
                raise self._refusal(error) from error
            log.debug("Kafka at %s: %s", self._servers, error)

    @property
    def is_member(self) -> bool:
        """Whether the group has assigned partitions to this member, or none, and `changes` holds no more of it."""
        joined = self._joining is None and self._coordinator.state is MemberState.STABLE
        return joined and not self.changes and self._coordinator._generation.generation_id >= 0

    @property
    def in_doubt(self) -> bool:
        """Whether the group may have taken this member for dead, and has not answered yet whether it has."""
        stable = self._joining is None and self._coordinator.state is MemberState.STABLE
        return stable and bool(self._coordinator.heartbeat.session_timeout_expired())

    def partitions_known(self, count: int) -> None:
        """Tells how many partitions there are. Where that is new to the group it assigns them at once."""
        self._assignor.known = count

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """As `Source.commit`. Errors of kafka-python pass."""
        there = {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        self._consumer.commit(there, timeout_ms=int(ASK_S_MAX * 1_000))

    def committed(
        self, partitions: Collection[Partition], *, within_s: float = _COMMITTED_S_MAX
    ) -> dict[Partition, int]:
        """Returns the group's committed offsets, of those partitions that have one. Errors of kafka-python pass."""
        there = [TopicPartition(*partition) for partition in partitions]
        found = self._coordinator.fetch_committed_offsets(there, timeout_ms=int(within_s * 1_000)) if there else {}
        return {Partition(where.topic, where.partition): int(at.offset) for where, at in found.items()}

    def note(self, kind: Literal["gained", "revoked", "lost"], those: set[TopicPartition]) -> None:
        """Notes a decision of the group."""
        partitions = sorted(Partition(where.topic, where.partition) for where in those)
        if kind == "gained":
            self._held |= set(partitions)
        else:
            partitions = [partition for partition in partitions if partition in self._held]
            self._held -= set(partitions)
            if kind == "lost":
                self._assignor.forget()
        if partitions:
            self.changes.append(Change(kind, partitions, self._coordinator._generation.generation_id))

    def close(self) -> None:
        """Leaves the group at once, unless it has a name there: then its place is kept for the session timeout."""
        self._closed = True
        self._held.clear()
        self._consumer.close(autocommit=False, timeout_ms=int(ASK_S_MAX * 1_000))

    def _lose(self) -> None:
        self.note("lost", {TopicPartition(*partition) for partition in set(self._held)})
        self._consumer._subscription.assign_from_subscribed([])

    def _before_join(self) -> None:
        """kafka-python 3.0 does not say that all is lost where it is thrown out in the midst of a rebalance, and would
        join again as the owner of what others own by then."""
        if self._closed:
            raise kafka_errors.IllegalStateError("closed: does not join again")
        if self._held and self._coordinator._generation.is_lost():
            self._lose()

    def _overdue(self) -> bool:
        """Whether the group may have taken this member for dead: the process stood still, or its name was taken."""
        heartbeat = self._coordinator.heartbeat
        return bool(heartbeat.session_timeout_expired() or not self._coordinator._heartbeat_enabled)

    def _probe(self) -> None:
        """Asks the group at once, before anything is done in its name; without an answer no member was replaced."""
        if time.monotonic() < self._probe_at:
            return
        self._probe_at = time.monotonic() + _PROBE_EVERY_S
        try:
            self._consumer._net.run(self._heartbeat)
        except kafka_errors.FencedInstanceIdError as error:
            self._lose()
            raise self._refusal(error) from error
        except kafka_errors.KafkaError as error:
            log.debug("Kafka at %s: %s", self._servers, error)

    async def _heartbeat(self) -> None:
        coordinator = self._coordinator
        if await coordinator.ensure_coordinator_ready_async(timeout_ms=_PROBE_MS_MAX):
            manager = coordinator._manager
            await manager.wait_for(manager.call_soon(coordinator._send_heartbeat_request), _PROBE_MS_MAX)
            coordinator.heartbeat.received_heartbeat()

    def _refusal(self, error: kafka_errors.KafkaError) -> SourceError:
        group = f"consumer group {self._group} at {self._servers}"
        if isinstance(error, kafka_errors.FencedInstanceIdError):
            return SourceError(
                f"another worker of {group} has the name {self._instance_id}: "
                "give each its own, by NEXTCLICK_WORKER_NAME"
            )
        if isinstance(error, kafka_errors.InconsistentGroupProtocolError):
            return SourceError(
                f"{group} has members that share its partitions in another way: stop them, or set "
                "NEXTCLICK_WORKERS=many on all of them"
            )
        if isinstance(error, kafka_errors.InvalidSessionTimeoutError):
            return SourceError(
                f"Kafka at {self._servers} does not take a session timeout of {self._session_s:g} s: "
                "change NEXTCLICK_SESSION_TIMEOUT_S, or the broker's group.min.session.timeout.ms"
            )
        return source_error(self._servers, error)
