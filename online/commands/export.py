"""The command `nextclick export`: histories, lists, items and counts as Parquet files.

They come from the newest checkpoint of the data folder and the lists in Redis; only those files are written.

Letters: `V` rows of the vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from rich.console import Console

from online.commands.lookup import OTHER_TYPE, type_names
from online.commands.newest_checkpoint import NewestCheckpoint, load_newest
from online.config.settings import Settings
from online.learner.facts.moments import places_held
from online.learner.facts.tables import neighbours
from online.learner.learner import Learner
from online.worker.connections import open_lists, open_reader
from stream.events import Forget, parse
from stream.lists import Lists
from stream.user_ids import digest_of

GROUP_ROWS = 50_000  # of a file that are in memory at once

Rows = Iterator[tuple[Any, ...]]

_MOMENT = pa.timestamp("us", tz="UTC")
SCHEMAS = {
    "histories": pa.schema([
        ("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", _MOMENT), ("event_type", pa.string()),
    ]),
    "lists": pa.schema([
        ("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string()), ("score", pa.float64()),
        ("written_at", pa.timestamp("ms", tz="UTC")), ("version", pa.int64()),
    ]),
    "items": pa.schema([
        ("item_id", pa.string()), ("clicks", pa.int64()), ("popularity", pa.float64()), ("first_at", _MOMENT),
        ("last_at", _MOMENT), ("title", pa.string()), ("tags", pa.list_(pa.string())), ("available", pa.bool_()),
    ]),
    "pairs": pa.schema([("item_id", pa.string()), ("next_item_id", pa.string()), ("count", pa.float64())]),
}  # fmt: skip


class ExportError(Exception):
    """It cannot be exported; one line."""


def run_export(out: Console, settings: Settings, folder: Path, *, force: bool) -> None:
    """Writes all files, one after the other, and says how many rows each has.

    Users who have asked to be forgotten are not in them, also where no worker has come to the request yet.

    Raises:
        ExportError: files are there already, or cannot be written.
        CheckpointError, ListsError, SourceError: what is exported cannot be read.
    """
    paths = {name: folder / f"{name}.parquet" for name in SCHEMAS}
    if not force and (there := [path.name for path in paths.values() if path.exists()]):
        raise ExportError(f"{folder} has {', '.join(there)} already: name another folder, or overwrite with --force")
    newest = load_newest(settings)
    lists = open_lists(settings)
    gone = forgotten_since(settings, newest)
    learner = newest.learner
    made: dict[str, Callable[[], Rows]] = {
        "histories": lambda: histories_of(learner, gone),
        "lists": lambda: lists_of(lists, gone),
        "items": lambda: items_of(learner),
        "pairs": lambda: pairs_of(learner),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in made.items():
            count = _write(paths[name], SCHEMAS[name], rows())
            out.print(f"{paths[name]}: {count:,} rows", markup=False, soft_wrap=True)
    except OSError as error:
        raise ExportError(f"cannot write to {folder} ({error.strerror}): free space, or name another folder") from error
    out.print(f"from checkpoint {newest.number} of {settings.data_dir}, and {lists.address}", markup=False, style="dim")


def forgotten_since(settings: Settings, newest: NewestCheckpoint) -> frozenset[str]:
    """Returns digests of users who have asked to be forgotten, on the topic behind what the checkpoint has seen."""
    wanted = b'"nextclick.forget"'
    digests = set()
    with closing(open_reader(settings, settings.clicks_topic)) as reader:
        ends = reader.ends()
        starts = {at: offset for at, offset in newest.next_offsets.items() if offset <= ends.get(at, -1)}
        for record in reader.read(starts) if newest.next_offsets else ():
            if record.value is not None and wanted in record.value:
                event = parse(record.value)
                if isinstance(event, Forget):
                    digests.add(event.user_sha256)
    return frozenset(digests)


def _write(path: Path, schema: pa.Schema, rows: Rows) -> int:
    """Writes a file of rows in groups, under another name until it is complete -> how many rows."""
    writing, count = path.with_name(f".{path.name}.writing"), 0
    try:
        with parquet.ParquetWriter(writing, schema) as writer:
            while group := list(islice(rows, GROUP_ROWS)):
                columns = [
                    pa.array(column, field.type) for column, field in zip(zip(*group, strict=True), schema, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=GROUP_ROWS)
                count += len(group)
        writing.replace(path)
    finally:
        with suppress(OSError):
            writing.unlink(missing_ok=True)
    return count


def histories_of(learner: Learner, gone: frozenset[str]) -> Rows:
    """The clicks that are kept of each user, oldest first; an item that is no longer known is null."""
    names = type_names(learner)
    for user in learner.histories.users():
        if gone and digest_of(user) in gone:
            continue
        (slot,) = learner.histories.find([user]).tolist()
        rows, types, times, _ = learner.histories.clicks_of(slot)
        items = learner.vocabulary.items_of(rows.tolist())
        for item, kind, at in zip(items, types.tolist(), times.tolist(), strict=True):
            yield user, item, _micros(at), names.get(kind, OTHER_TYPE)


def lists_of(lists: Lists, gone: frozenset[str]) -> Rows:
    """The list of each user in Redis, by rank from 1."""
    seen: set[str] = set()  # a scan may meet a user twice
    cursor, page = lists.page()
    while True:
        for user, top in page.items():
            if user in seen or (gone and digest_of(user) in gone):
                continue
            seen.add(user)
            for rank, (item, score) in enumerate(zip(top.items, top.scores, strict=False), start=1):
                yield user, rank, item, score, top.written_at, top.version
        if not cursor:
            return
        cursor, page = lists.page(cursor)


def items_of(learner: Learner) -> Rows:
    """Each item with clicks, then those of which only a record, or that they are not available, is known."""
    clicks, popularity = learner.store.items.clicks, learner.popularity()
    first, last = _clicked_at(learner)
    attributes = learner.listable.attributes
    names = learner.vocabulary.items_of(range(learner.vocabulary.rows))
    counted = ((name, row) for row, name in enumerate(names) if name is not None)
    others = sorted((learner.unavailable | set(attributes.items())) - set(filter(None, names)))
    for name, row in (*counted, *((name, 0) for name in others)):
        about = attributes.title(name), attributes.tags(name), name not in learner.unavailable
        at = _micros(first[row]), _micros(last[row])
        yield name, int(clicks[row]) if row else 0, float(popularity[row]) if row else 0.0, *at, *about


def _clicked_at(learner: Learner) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When each row (V,) was clicked first and last, in seconds since 1970, as far as moments are kept; else NaN."""
    log, rows = learner.store.log, len(learner.store)
    places = places_held(log)
    items, times = log.items[places], log.times[places]
    first, last = np.full(rows, np.inf), np.full(rows, -np.inf)
    np.minimum.at(first, items, times)
    np.maximum.at(last, items, times)
    held = np.bincount(items, minlength=rows)[:rows]
    # Where fewer moments are kept than clicks were counted, the first of them is gone.
    first[(held < learner.store.items.clicks[:rows]) | np.isinf(first)] = np.nan
    last[np.isinf(last)] = np.nan
    first[0] = last[0] = np.nan
    return first, last


def pairs_of(learner: Learner) -> Rows:
    """What followed each item, and how often, as far as it is kept (`NEXTCLICK_SUCCESSORS_HELD`)."""
    table = learner.store.tables.first
    names = learner.vocabulary.items_of(range(learner.vocabulary.rows))
    for row, name in enumerate(names):
        if name is None:
            continue
        others, counts = neighbours(table, row)
        for other, count in zip(others.tolist(), counts.tolist(), strict=True):
            if other < len(names) and names[other] is not None:
                yield name, names[other], count


def _micros(seconds: float) -> int | None:
    return None if np.isnan(seconds) else round(1e6 * seconds)
