"""What a broker holds and how it is set, looked at from outside: nothing is written, and no position moves."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

from stream.source import Partition, Record, SourceError, TopicReader

TOPICS, SETTINGS, COMMITTED, LATEST = "topics", "settings", "committed", "latest"  # parts that may fail alone


class Extent(NamedTuple):
    """What a partition retains: its earliest offset, and the next one to be written."""

    earliest: int
    end: int


@dataclass(frozen=True)
class TopicView:
    """One topic."""

    extents: Mapping[Partition, Extent] = field(default_factory=dict)
    replicas: int = 0  # of the partition that has fewest; 0: the broker keeps no replicas
    leaderless: int = 0  # partitions that can be neither read nor written now
    settings: Mapping[str, str] = field(default_factory=dict)  # the broker's own, by name


@dataclass
class BrokerView:
    """A broker at one moment. `errors`: why a part of it is not known, one line, by part."""

    cluster: str = ""
    brokers: int = 0  # 0: there is no server
    topics: dict[str, TopicView] = field(default_factory=dict)  # those that exist
    committed: dict[Partition, int] = field(default_factory=dict)  # of the group
    latest: list[Record] = field(default_factory=list)  # of the sampled topic, in the order of offsets per partition
    errors: dict[str, str] = field(default_factory=dict)


def read_latest(view: BrokerView, topic: str, records_max: int, open_reader: Callable[[str], TopicReader]) -> None:
    """Adds the latest records of a topic to a view, about as many of each partition."""
    extents = {at: extent for at, extent in view.topics[topic].extents.items() if extent.end > extent.earliest}
    each = -(-records_max // max(1, len(extents)))
    starts = {at: max(extent.earliest, extent.end - each) for at, extent in view.topics[topic].extents.items()}
    if not extents:
        return
    try:
        with closing(open_reader(topic)) as reader:
            view.latest = list(reader.read(starts))
    except SourceError as error:
        view.errors[LATEST] = str(error)
