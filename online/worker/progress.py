"""The worker's progress in the stream: next offsets and totals."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream.source import Partition


@dataclass
class Progress:
    """Next offsets and totals, saved in each checkpoint with the weights, so that both always agree.

    `next_offsets` has, for every partition ever read, the first offset that the weights have not seen.
    """

    next_offsets: dict[Partition, int] = field(default_factory=dict)
    learned: int = 0
    learned_from: int = 0  # of these, the clicks that this worker's weights learned from; a worker alone: all
    untrained: int = 0  # of these, the clicks without training, because the lag was too large
    duplicates: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)  # by reason
    put_aside: int = 0  # latest events in a row on which our own code failed
    lost: int = 0  # messages that the broker deleted before they were read
    finetunings: int = 0
    refreshes: int = 0  # lists written again without a click: they had aged, or were stale
    latest_offset: str = ""  # `partition:next offset` of the click learned last
    latest_clicked_at_ms: int = 0

    def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Returns the next offsets of those partitions that have been read before."""
        return {partition: self.next_offsets[partition] for partition in partitions if partition in self.next_offsets}

    def passed(self, positions: Mapping[Partition, int]) -> None:
        """Advances to the source's positions, which are also past markers of transactions and aborted messages. An
        empty partition does not count as read."""
        for partition, offset in positions.items():
            if offset or partition in self.next_offsets:
                self.next_offsets[partition] = offset

    def to_state(self) -> dict[str, Any]:
        return {
            "next_offsets": [[topic, partition, offset] for (topic, partition), offset in self.next_offsets.items()],
            "learned": self.learned,
            "learned_from": self.learned_from,
            "untrained": self.untrained,
            "duplicates": self.duplicates,
            "dead_letters": dict(self.dead_letters),
            "put_aside": self.put_aside,
            "lost": self.lost,
            "finetunings": self.finetunings,
            "refreshes": self.refreshes,
            "latest_offset": self.latest_offset,
            "latest_clicked_at_ms": self.latest_clicked_at_ms,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.next_offsets = {Partition(topic, partition): offset for topic, partition, offset in state["next_offsets"]}
        self.learned, self.untrained = state["learned"], state["untrained"]
        self.learned_from = state.get("learned_from", self.learned)  # older checkpoints: of a worker that was alone
        self.duplicates = state["duplicates"]
        self.dead_letters = Counter(state["dead_letters"])
        self.put_aside, self.lost = state["put_aside"], state["lost"]
        self.finetunings, self.refreshes = state["finetunings"], state["refreshes"]
        self.latest_offset, self.latest_clicked_at_ms = state["latest_offset"], state["latest_clicked_at_ms"]
