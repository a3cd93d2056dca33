"""A Kafka topic that every worker of a group reads whole, and of which each worker owns some partitions.

Two consumers: one without a group reads all partitions, assigned by hand; the other is a member of the group and
fetches nothing (`stream.kafka_membership`). Who owns the control topic's only partition leads the group.
"""

import time
from collections.abc import Mapping
from typing import Any

from kafka import errors as kafka_errors

from stream.broker import SESSION_TIMEOUT_S
from stream.kafka_consumer import AWAY, CONSUMER, TopicReading
from stream.kafka_errors import log, source_error
from stream.kafka_membership import Membership
from stream.source import OnAssigned, OnGained, OnGone, OnRevoked, Partition, SourceError, warn_of

_NO_OPTIONS: Mapping[str, Any] = {}
_ASK_AGAIN_S = 1.0


class SharedKafkaSource(TopicReading):
    """A `PausableSource` that reads every partition of a topic and owns those that the group gives it.

    A rebalance stops no reading, and what stays with this worker is owned throughout. A partition changes its owner
    while `poll` runs: `on_revoked` before its successor gets it, `on_gained` at the successor. A worker that dies is
    noticed after the session timeout; one that is closed leaves at once, unless it has an `instance_id`.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        control_topic: str,
        group: str,
        *,
        instance_id: str | None = None,
        session_timeout_s: float = SESSION_TIMEOUT_S,
        client_options: Mapping[str, Any] = _NO_OPTIONS,
    ) -> None:
        """Connects. Raises SourceError.

        Args:
            bootstrap_servers: host:port, separated by commas.
            topic: that is read, and whose partitions are owned.
            control_topic: with one partition, to which nothing is written.
            group: consumer group.
            instance_id: a worker that starts anew under it within the session timeout gets what it owned before,
                without a rebalance. No two workers may have the same.
            session_timeout_s: a worker that says nothing for so long, in seconds, is taken for dead.
            client_options: kafka-python's own.
        """
        super().__init__(bootstrap_servers, topic, {**CONSUMER, **client_options})
        self._control = Partition(control_topic, 0)
        try:
            self._membership = Membership(
                bootstrap_servers,
                topic,
                self._control,
                group,
                instance_id=instance_id,
                session_timeout_s=session_timeout_s,
                client_options=client_options,
            )
        except SourceError:
            self._consumer.close(autocommit=False)
            raise
        self._on_revoked: OnRevoked | None = None
        self._on_gained: OnGained | None = None
        self._on_lost: OnRevoked | None = None
        self._owned: frozenset[Partition] = frozenset()
        self._gaining: set[Partition] = set()  # ours as the group sees it, but what is committed is not known yet
        self._ask_at = 0.0
        self._settled = False  # whether the group has said what this worker owns
        self._epoch: int | None = None

    def start(
        self,
        *,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        on_gone: OnGone = warn_of,
        on_gained: OnGained | None = None,
        on_lost: OnRevoked | None = None,
    ) -> None:
        self._on_assigned, self._on_revoked, self._on_gone = on_assigned, on_revoked, on_gone
        self._on_gained, self._on_lost = on_gained, on_lost
        self._follow_topic()
        self._membership.join()

    def owned(self) -> frozenset[Partition]:
        return self._owned

    def leadership(self) -> int | None:
        """Returns the generation of the group in which this worker came to lead it; None: another one leads."""
        return self._epoch

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        owned = {partition: offset for partition, offset in offsets.items() if partition in self._owned}
        if not owned:
            return
        try:
            self._membership.commit(owned)
        except (kafka_errors.RebalanceInProgressError, kafka_errors.IllegalGenerationError) as error:
            log.debug("positions are not committed while the group rebalances: %s", error)
        except AWAY as error:
            self._fares(error)
        except kafka_errors.KafkaError as error:
            log.warning("positions are not committed to Kafka at %s: %s", self._servers, error)

    def committed(self) -> dict[Partition, int]:
        """Returns the group's stored positions, also of partitions that others own."""
        try:
            return self._membership.committed(self._positions)
        except kafka_errors.KafkaError as error:
            raise source_error(self._servers, error) from error

    def close(self) -> None:
        if not self._closed:
            self._owned, self._epoch = frozenset(), None
            self._membership.close()
        super().close()

    def _before_fetch(self) -> None:
        self._take_up_new_partitions()
        if not self._positions:
            return  # the topic does not exist yet
        self._membership.partitions_known(len(self._positions))
        try:
            self._membership.step()
        finally:  # where it was refused, too
            self._act_on_changes()
        if self._gaining:
            self._gain()

    def _may_fetch(self) -> bool:
        """Not before the group has said for the first time what this worker owns, since it would only count what it
        reads; nor after a standstill before the group has said whether it still owns that."""
        if self._membership.in_doubt:
            return False
        self._settled = self._settled or (self._membership.is_member and not self._gaining)
        return self._settled

    def _act_on_changes(self) -> None:
        changes = self._membership.changes
        while changes:
            change = changes[0]
            clicks = [partition for partition in change.partitions if partition.topic == self._topic]
            if change.kind == "gained":
                self._gaining.update(clicks)
                if self._control in change.partitions:
                    self._epoch = change.generation
            else:
                self._part_with(clicks, self._on_lost if change.kind == "lost" else self._on_revoked)
                if self._control in change.partitions:
                    self._epoch = None
            changes.popleft()

    def _part_with(self, partitions: list[Partition], say: OnRevoked | None) -> None:
        self._gaining.difference_update(partitions)
        if (owned := [partition for partition in partitions if partition in self._owned]) and say is not None:
            say(owned)
        self._owned -= set(partitions)

    def _gain(self) -> None:
        """Owns what the group gave, once it is read here and the broker has said what is committed of it."""
        ready = sorted(partition for partition in self._gaining if partition in self._positions)
        if not ready or time.monotonic() < self._ask_at:
            return
        try:
            committed = self._membership.committed(ready)
        except kafka_errors.KafkaError as error:
            if not error.retriable and not isinstance(error, AWAY):
                raise
            self._ask_at = time.monotonic() + _ASK_AGAIN_S
            return
        self._gaining.difference_update(ready)
        self._owned |= set(ready)
        if self._on_gained is not None:
            self._on_gained({partition: committed.get(partition) for partition in ready})
