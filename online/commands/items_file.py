"""The command `nextclick items`: looks at the file first, publishes a record for each item, and says what it left out.

The topic is compacted and keyed by item, so publishing a file again is harmless.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from online.commands.embedded_folder import say_folder
from online.config.settings import Settings
from online.worker.connections import named_broker, open_producer, prepare_topics
from stream.item_files import BadRow, ItemFile, ItemTally, check_items
from stream.source import Producer

DRY_RUN_RECORDS = 5
_UNACKNOWLEDGED_ROWS_MAX = 5_000

#: Called with the rows that were gone through and the share of the file that they are.
OnProgress = Callable[[int, float], None]


def publish_items(
    file: ItemFile,
    producer: Producer,
    topic: str,
    *,
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = lambda *_: None,
) -> ItemTally:
    """Publishes a record for each row of a file that is an item, and waits until they are acknowledged.

    Args:
        file: of items.
        producer: that sends them.
        topic: of items.
        limit: rows of the file; None: all.
        stop: returns whether to end early.
        on_progress: called now and then.

    Returns:
        What the rows were.

    Raises:
        EventFileError: the file cannot be read to its end.
        SourceError: the broker refuses records.
    """
    tally, sent = ItemTally(), 0
    for row in islice(file.rows(), limit):
        if stop():
            break
        tally.add(row)
        if not isinstance(row, BadRow):
            producer.send(topic, key=row.key, value=row.value)
            sent += 1
        if sent >= _UNACKNOWLEDGED_ROWS_MAX:
            producer.flush()
            sent = 0
            on_progress(tally.rows, file.fraction)
    producer.flush()
    return tally


def run_items(
    out: Console,
    file: ItemFile,
    settings: Callable[[], Settings],
    stop: Callable[[], bool],
    *,
    bad_rows_max: float,
    limit: int | None = None,
    dry_run: bool = False,
) -> bool:
    """Publishes a file of items, or shows its first records.

    Args:
        out: where it is printed.
        file: of items.
        settings: loads them; not called for a dry run.
        stop: returns whether to end early.
        bad_rows_max: share of rows that may be no items; nothing is published of a file with more.
        limit: rows of the file; None: all.
        dry_run: whether nothing is published.

    Returns:
        Whether it went through the file, and was not stopped.

    Raises:
        EventFileError: the file cannot be read, or has too many bad rows.
        SourceError: the broker refuses records.
    """
    _say(out, file.columns.lines())
    ahead = check_items(file, limit)
    if dry_run:
        _show(out, file, limit)
        print(f"{file.name}: {ahead.items:,} of the first {ahead.rows:,} rows are items; nothing was published")
        _say(out, [*ahead.lines(), *file.remarks()])
        ahead.refuse_if_bad(file.name, bad_rows_max)
        return True
    ahead.refuse_if_bad(file.name, bad_rows_max, "; nothing was published")
    loaded = settings()
    say_folder(loaded, "items", creates=True)
    prepare_topics(loaded)
    began = time.monotonic()
    with closing(open_producer(loaded)) as producer, _bar(file) as on_progress:
        tally = publish_items(file, producer, loaded.items_topic, limit=limit, stop=stop, on_progress=on_progress)
    seconds = time.monotonic() - began
    where = f"topic {loaded.items_topic} ({named_broker(loaded).address})"
    rate = tally.items / max(seconds, 1e-3)
    print(f"{file.name}: {tally.items:,} items published to {where} in {seconds:.1f} s ({rate:,.0f}/s)")
    _say(out, [*tally.lines(), *file.remarks()])
    tally.refuse_if_bad(file.name, bad_rows_max, "; the others are published")
    if stop():
        print(f"stopped after row {tally.rows:,}: the same command publishes all rows again", file=sys.stderr)
        return False
    return True


def _show(out: Console, file: ItemFile, limit: int | None) -> None:
    for row in islice(file.rows(), min(DRY_RUN_RECORDS, limit or DRY_RUN_RECORDS)):
        if isinstance(row, BadRow):
            text = f"line {row.line:,}: {row.detail}"
        else:
            text = f"{row.item.item_id}: {json.dumps(json.loads(row.value), ensure_ascii=False)}"
        out.print(text, markup=False, soft_wrap=True)


def _say(out: Console, lines: list[str]) -> None:
    for line in lines:
        out.print(line, style="dim", markup=False, soft_wrap=True)


@contextmanager
def _bar(file: ItemFile) -> Iterator[OnProgress]:
    """Shows how far it is, on a terminal; yields what is to be called with the progress."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rows]} rows"),
        TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(file.name, total=1.0, rows="0")
        yield lambda rows, share: bar.update(task, completed=share, rows=f"{rows:,}")
