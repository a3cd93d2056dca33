"""Brokers by URL: the one place that chooses the implementation of topics.

An implementation is a module `stream/<scheme>_broker.py` that registers itself under its scheme; no other module needs
to know it. `kafka://host:port,host:port` is Apache Kafka, and so is a plain `host:port,host:port`; `log:///path` is the
embedded log.
"""

import importlib.util
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stream.inspection import BrokerView
from stream.origin import Origin
from stream.source import OnGone, PausableSource, Producer, Record, SourceError, TopicReader, warn_of
from stream.tail import TopicTail

ACKNOWLEDGE_S_MAX = 30.0
SESSION_TIMEOUT_S = 10.0
_SCHEME = re.compile(r"[a-z][a-z0-9]*", re.ASCII)
_DEFAULT_SCHEME = "kafka"


class Topic(NamedTuple):
    """A topic that has to exist."""

    name: str
    partitions: int = 1  # at most: a broker that only one process reads may create fewer
    compacted: bool = False  # whether only the latest record of each key is kept
    retention_s: float | None = None  # how long records are kept; None: as long as the broker's rule says
    single: bool = False  # whether more than one partition is an error, also of a topic that is there already


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Options beside the URL; a broker ignores those that it has no use for."""

    client: Mapping[str, Any] = field(default_factory=dict)  # options of its client library: TLS, users, passwords
    records_max: int = 1_000_000  # of one partition of the embedded log


class Eraser(Protocol):
    """Erases records. The others keep their order within each partition; readers may see gaps in the offsets."""

    def erase(self, topic: str, matches: Callable[[Record], bool]) -> int:
        """Erases every present record that matches. Returns how many. Raises SourceError."""


class Broker(Protocol):
    """Creates all parts that read and write topics. It connects to nothing by itself; methods raise SourceError."""

    @property
    def name(self) -> str:
        """The broker's name in logs and messages."""

    @property
    def address(self) -> str:
        """Servers or a path, which tell it from other brokers of its kind."""

    @property
    def log_path(self) -> Path | None:
        """The file of the embedded log; None: a server keeps the records."""

    def ensure_topics(self, topics: Sequence[Topic], *, create: bool) -> None:
        """Creates missing topics; existing ones stay as they are. `create`: if false, a server must have them.

        Raises SourceError, also for a topic that has to have a single partition and has more.
        """

    def source(self, topics: Sequence[str], group: str) -> PausableSource:
        """Opens a reader of topics that is a member of a consumer group."""

    def shared_source(
        self,
        topic: str,
        control_topic: str,
        group: str,
        *,
        instance_id: str | None = None,
        session_timeout_s: float = SESSION_TIMEOUT_S,
    ) -> PausableSource:
        """Opens a reader of a whole topic, of which it owns the partitions that the group gives it.

        Args:
            topic: to be read.
            control_topic: whose only partition belongs to the group's leader.
            group: consumer group.
            instance_id: name under which a reader that is opened again soon gets what it had; None: it has none.
            session_timeout_s: after so long without a sign of life, in seconds, others get what it had.
        """

    def tail(self, topic: str, start: int | None, *, on_gone: OnGone = warn_of) -> TopicTail:
        """Opens a follower of a topic of one partition; arguments as of `TopicTail`."""

    def producer(self, *, acknowledge_s_max: float = ACKNOWLEDGE_S_MAX) -> Producer:
        """Opens a writer; a record that is not acknowledged within `acknowledge_s_max` seconds has failed."""

    def reader(self, topic: str) -> TopicReader:
        """Opens a reader of one topic, without a consumer group."""

    def eraser(self) -> Eraser:
        """Opens an eraser of records."""

    def compact(self, topic: str) -> None:
        """Compacts a topic now, if the broker does not compact by itself."""

    def retention_ms(self, topic: str) -> int | None:
        """Returns how long records are kept, in milliseconds; None: for ever, or it is not known."""

    def origin(self, group: str) -> Origin:
        """Returns which stream this is, and the group's committed offsets."""

    def inspect(self, topics: Collection[str], group: str, sampled: str, records_max: int) -> BrokerView:
        """Returns what there is of these topics and of the group, with about the latest `records_max` records of the
        topic `sampled`. It writes nothing, also where nothing exists yet."""


#: Opens a broker; the first argument is the part of the URL after `scheme://`.
Open = Callable[[str, BrokerOptions], Broker]

_OPENERS: dict[str, Open] = {}


def register(scheme: str, opened: Open) -> None:
    """Registers the function that opens brokers for URLs of this scheme."""
    if not _SCHEME.fullmatch(scheme):
        raise ValueError(f"{scheme!r} is no scheme: lower-case letters and digits")
    _OPENERS[scheme] = opened


def open_broker(url: str, options: BrokerOptions | None = None) -> Broker:
    """Returns the broker for a URL, without connecting yet. Raises SourceError for an unknown scheme."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = _DEFAULT_SCHEME, url
    if scheme not in _OPENERS and _SCHEME.fullmatch(scheme):
        module = f"stream.{scheme}_broker"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    if scheme not in _OPENERS:
        raise SourceError(f"there is no broker for URLs that begin with {scheme}://: use kafka:// or log://")
    return _OPENERS[scheme](rest, options or BrokerOptions())
