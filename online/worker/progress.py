"""What has been taken in, and from where to go on: the part of the worker's state that is about the stream itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream.source import Partition


@dataclass
class Progress:
    """Next offsets and totals. Saved in each checkpoint with the weights, so that both always agree.

    `next_offsets` holds, for every partition ever read, the first offset that the weights have not seen.
    """

    next_offsets: dict[Partition, int] = field(default_factory=dict)
    learned: int = 0
    untrained: int = 0  # of them, those that the weights were not trained on, because it was too far behind
    duplicates: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)  # by reason
    put_aside: int = 0  # events in a row, up to now, that our own code fails on
    lost: int = 0  # messages that the broker did not keep until they were read
    finetunings: int = 0
    refreshes: int = 0  # lists ranked anew without a click: they had aged, or were behind
    latest_offset: str = ""  # `partition:next offset` of the click learned last
    latest_clicked_at_ms: int = 0

    def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Where to go on, of those partitions that have been read before."""
        return {partition: self.next_offsets[partition] for partition in partitions if partition in self.next_offsets}

    def passed(self, positions: Mapping[Partition, int]) -> None:
        """All before these positions was taken in, or is nothing to take in: marks of transactions, aborted messages.
        A partition that holds nothing is none that was read."""
        for partition, offset in positions.items():
            if offset or partition in self.next_offsets:
                self.next_offsets[partition] = offset

    def to_state(self) -> dict[str, Any]:
        return {
            "next_offsets": [[topic, partition, offset] for (topic, partition), offset in self.next_offsets.items()],
            "learned": self.learned,
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
        self.duplicates = state["duplicates"]
        self.dead_letters = Counter(state["dead_letters"])
        self.put_aside, self.lost = state["put_aside"], state["lost"]
        self.finetunings, self.refreshes = state["finetunings"], state["refreshes"]
        self.latest_offset, self.latest_clicked_at_ms = state["latest_offset"], state["latest_clicked_at_ms"]
