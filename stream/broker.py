"""Brokers by URL: the one place where it is decided what stands behind topics.

An implementation is a module `stream/<scheme>_broker.py` that registers itself under its scheme; nothing else has to
know it. `kafka://host:port,host:port` is Apache Kafka, and so is a plain `host:port,host:port`; `log:///path` is the
embedded log.
"""

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stream.origin import Origin
from stream.source import PausableSource, Producer, Record, SourceError, TopicReader

ACKNOWLEDGE_S_MAX = 30.0
_SCHEME = re.compile(r"[a-z][a-z0-9]*", re.ASCII)
_DEFAULT_SCHEME = "kafka"


class Topic(NamedTuple):
    """A topic that is to be there."""

    name: str
    partitions: int = 1  # at most: a broker that is read by one process alone may make fewer
    compacted: bool = False  # only the latest record of each key stays


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What is beside the URL. A broker takes what concerns it."""

    client: Mapping[str, Any] = field(default_factory=dict)  # of its client library: TLS, users, passwords
    records_max: int = 1_000_000  # of one partition, where the broker runs in our own processes


class Eraser(Protocol):
    """All that is kept stays in its order within each partition; readers may come past gaps."""

    def erase(self, topic: str, matches: Callable[[Record], bool]) -> int:
        """Takes out every record that is there now and that matches -> how many. Raises SourceError."""


class Broker(Protocol):
    """Makes all parts that read and write topics. To have one connects to nothing; methods raise SourceError."""

    @property
    def name(self) -> str:
        """As logs and messages name it."""

    @property
    def address(self) -> str:
        """Servers or a path: tells it from other brokers of its kind."""

    @property
    def log_path(self) -> Path | None:
        """The file of the embedded log; None: a server keeps the records, and they are not ours to change."""

    def ensure_topics(self, topics: Sequence[Topic], *, create: bool) -> None:
        """Makes the topics that are missing; those that are there stay as they are. `create`: false where a server has
        to have them already."""

    def source(self, topics: Sequence[str], group: str) -> PausableSource:
        """Reads topics as a member of a consumer group."""

    def producer(self, *, acknowledge_s_max: float = ACKNOWLEDGE_S_MAX) -> Producer:
        """Writes to topics; what a server has not acknowledged after that time has failed."""

    def reader(self, topic: str) -> TopicReader:
        """Reads what a topic holds, without a consumer group."""

    def eraser(self) -> Eraser:
        """Takes records out of topics."""

    def compact(self, topic: str) -> None:
        """Does now what is due of compaction, where the broker does not do it by itself."""

    def retention_ms(self, topic: str) -> int | None:
        """How long records are kept, in milliseconds; None: it does not say, or for ever."""

    def origin(self, group: str) -> Origin:
        """Which stream this is, and what the group has committed there."""


#: Given what follows `scheme://`.
Open = Callable[[str, BrokerOptions], Broker]

_OPENERS: dict[str, Open] = {}


def register(scheme: str, opened: Open) -> None:
    """From now on `open_broker` opens URLs of this scheme so."""
    if not _SCHEME.fullmatch(scheme):
        raise ValueError(f"{scheme!r} is no scheme: lower-case letters and digits")
    _OPENERS[scheme] = opened


def open_broker(url: str, options: BrokerOptions | None = None) -> Broker:
    """The broker at a URL. It connects to nothing yet. Raises SourceError for a scheme that no module registers."""
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
