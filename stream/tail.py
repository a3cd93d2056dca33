"""Follows a topic of one partition as it grows, for a loop that looks into it at every turn."""

import time
from collections.abc import Callable
from typing import Protocol

from stream.source import OnAssigned, OnGone, OnRevoked, Partition, Record, SourceError, warn_of

_LOOK_EVERY_S = 0.05
_RECORDS_MAX = 500


class Followed(Protocol):
    """What a tail needs of a source that reads its topic without a group."""

    def start(self, *, on_assigned: OnAssigned, on_revoked: OnRevoked, on_gone: OnGone = warn_of) -> None:
        """As `Source.start`."""

    def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """As `Source.poll`."""

    def positions(self) -> dict[Partition, int]:
        """As `Source.positions`."""

    def known_ends(self) -> dict[Partition, int]:
        """As `PausableSource.known_ends`."""

    def seek(self, partition: Partition, offset: int) -> None:
        """As `Source.seek`."""

    def trouble(self) -> str | None:
        """As `Source.trouble`."""

    def close(self) -> None:
        """As `Source.close`."""


class TopicTail:
    """Gives what is appended to a topic of one partition. Nothing is committed. For one thread at a time.

    A topic that does not exist yet is waited for, and so is a broker that goes away.
    """

    def __init__(
        self,
        source: Followed,
        topic: str,
        start: int | None,
        earliest: Callable[[Partition], int],
        *,
        on_gone: OnGone = warn_of,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins to follow.

        Args:
            source: that reads the topic.
            topic: with one partition.
            start: offset of the first record that is wanted; None: from the earliest one that is retained.
            earliest: asks the broker for the first offset that is retained.
            on_gone: called by `poll` with a position that is not retained, before reading goes on from the earliest
                one. What it raises passes through.
            monotonic: clock, in seconds.
        """
        self._source, self._earliest, self._monotonic = source, earliest, monotonic
        self._partition = Partition(topic, 0)
        self._look_at = float("-inf")
        source.start(
            on_assigned=lambda new: {} if start is None else dict.fromkeys(new, start),
            on_revoked=lambda _: None,
            on_gone=on_gone,
        )

    def poll(self) -> list[Record]:
        """Returns what is there, without waiting; the broker's client is looked into 20 times a second.

        Raises SourceError: the topic has several partitions, so what comes first in it is not known.
        """
        now = self._monotonic()
        if now < self._look_at:
            return []
        records = self._source.poll(max_records=_RECORDS_MAX, timeout_s=0.0)
        if len(self._source.positions()) > 1:
            raise SourceError(
                f"topic {self._partition.topic} has several partitions and needs exactly one: "
                "delete it and create it again, or name another one"
            )
        self._look_at = now if records else now + _LOOK_EVERY_S  # after some there may be more
        return records

    @property
    def position(self) -> int | None:
        """The next offset to read; None: not known yet, since neither topic nor broker was there."""
        return self._source.positions().get(self._partition)

    @property
    def known_end(self) -> int | None:
        """The next offset to be written, as of the latest look; None: not known yet."""
        return self._source.known_ends().get(self._partition)

    def earliest(self) -> int:
        """Asks for the first offset that is retained. Raises SourceError."""
        return self._earliest(self._partition)

    def seek(self, offset: int) -> None:
        """Makes `offset` the next one to read. Raises SourceError where the position is not known yet."""
        self._source.seek(self._partition, offset)
        self._look_at = float("-inf")

    def trouble(self) -> str | None:
        """Returns why records cannot be read, in one line; None if they can, as far as is known."""
        return self._source.trouble()

    def close(self) -> None:
        """Frees everything. It may be called twice."""
        self._source.close()
