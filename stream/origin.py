"""Which stream records come from: offsets mean something there and nowhere else."""

from collections.abc import Mapping
from typing import NamedTuple

from stream.source import Partition

EMBEDDED = "embedded log"


class Origin(NamedTuple):
    """A cluster, and what a consumer group has committed there."""

    cluster: str  # Kafka's id of it, EMBEDDED, or "" where the broker does not say
    committed: Mapping[Partition, int]
