"""Looks at the file of the embedded log from outside (stream/log_file.py has its tables). Nothing is written."""

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from stream.inspection import BrokerView, Extent, TopicView
from stream.origin import EMBEDDED
from stream.source import Partition, Record, SourceError

_WAIT_S_MAX = 5.0


def inspect_log(path: Path, topics: Collection[str], group: str, sampled: str, records_max: int) -> BrokerView:
    """Returns what the log holds of those of the topics that exist. Raises SourceError where it cannot be read."""
    view = BrokerView(cluster=EMBEDDED)
    if not path.exists():
        return view
    # A journal is there while another process has the file open, or died with it; without one nothing is to be made.
    mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
    try:
        uri = f"file:{quote(str(path))}?{mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_S_MAX)) as db:
            _read(view, db, topics, group)
            if sampled in view.topics:
                view.latest = _latest(db, sampled, records_max)
    except sqlite3.Error as error:
        raise SourceError(f"the click log {path} cannot be read: {error}; check that it is one, and whose") from error
    return view


def _read(view: BrokerView, db: sqlite3.Connection, topics: Collection[str], group: str) -> None:
    extents: dict[str, dict[Partition, Extent]] = {}
    rows = db.execute("SELECT topic, partition, first_offset, next_offset FROM partitions ORDER BY 1, 2")
    for topic, number, earliest, end in rows:
        if topic in topics:
            extents.setdefault(topic, {})[Partition(topic, number)] = Extent(earliest, end)
    view.topics = {topic: TopicView(extents=of_topic) for topic, of_topic in extents.items()}
    rows = db.execute("SELECT topic, partition, offset FROM positions WHERE group_name = ?", (group,))
    view.committed = {Partition(topic, number): offset for topic, number, offset in rows}


def _latest(db: sqlite3.Connection, topic: str, records_max: int) -> list[Record]:
    query = (
        "SELECT partition, offset, timestamp_ms, key, value FROM records JOIN partitions ON partition_id = id"
        " WHERE topic = ? ORDER BY offset DESC LIMIT ?"
    )
    rows = db.execute(query, (topic, records_max)).fetchall()
    return [Record(topic, *row) for row in sorted(rows, key=lambda row: row[:2])]
