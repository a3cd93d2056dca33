"""The commands `nextclick items` and `nextclick users`: each looks at the file first, publishes a record for each
row, and says what it left out.

The topics are compacted and keyed by item or user, so publishing a file again is harmless.
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
from online.config.settings import Settings, SettingsError
from online.worker.connections import named_broker, open_producer, prepare_topics
from stream.item_files import USERS, BadRow, ItemFile, ItemTally, check_items
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
    """Publishes a record for each row of a file that is an item or user, and waits until they are acknowledged.

    Args:
        file: of items or users.
        producer: that sends them.
        topic: of these.
        limit: rows of the file; None: all.
        stop: returns whether to end early.
        on_progress: called now and then.

    Returns:
        What the rows were.

    Raises:
        EventFileError: the file cannot be read to its end.
        SourceError: the broker refuses records.
    """
    tally, sent = ItemTally(file.kind), 0
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
    """Publishes a file of items or users, or shows its first records.

    Args:
        out: where it is printed.
        file: of items or users.
        settings: loads them; not called for a dry run.
        stop: returns whether to end early.
        bad_rows_max: share of rows that may be none; nothing is published of a file with more.
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
        words = file.kind.words
        print(f"{file.name}: {ahead.items:,} of the first {ahead.rows:,} rows are {words}; nothing was published")
        _say(out, [*ahead.lines(), *file.remarks()])
        ahead.refuse_if_bad(file.name, bad_rows_max)
        return True
    ahead.refuse_if_bad(file.name, bad_rows_max, "; nothing was published")
    loaded = settings()
    topic = _topic(loaded, file)
    say_folder(loaded, file.kind.words, creates=True)
    prepare_topics(loaded)
    began = time.monotonic()
    with closing(open_producer(loaded)) as producer, _bar(file) as on_progress:
        tally = publish_items(file, producer, topic, limit=limit, stop=stop, on_progress=on_progress)
    seconds = time.monotonic() - began
    where = f"topic {topic} ({named_broker(loaded).address})"
    rate = tally.items / max(seconds, 1e-3)
    print(f"{file.name}: {tally.items:,} {file.kind.words} published to {where} in {seconds:.1f} s ({rate:,.0f}/s)")
    _say(out, [*tally.lines(), *file.remarks()])
    tally.refuse_if_bad(file.name, bad_rows_max, "; the others are published")
    if stop():
        print(f"stopped after row {tally.rows:,}: the same command publishes all rows again", file=sys.stderr)
        return False
    return True


def _topic(settings: Settings, file: ItemFile) -> str:
    """Returns the topic of what a file holds. Raises SettingsError where there is none of users."""
    if file.kind is not USERS:
        return settings.items_topic
    if settings.users_topic is None:
        raise SettingsError("there is no topic of users: name one with NEXTCLICK_USERS_TOPIC, for the worker too")
    return settings.users_topic


def _show(out: Console, file: ItemFile, limit: int | None) -> None:
    for row in islice(file.rows(), min(DRY_RUN_RECORDS, limit or DRY_RUN_RECORDS)):
        if isinstance(row, BadRow):
            text = f"line {row.line:,}: {row.detail}"
        else:
            text = f"{row.key.decode()}: {json.dumps(json.loads(row.value), ensure_ascii=False)}"
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
