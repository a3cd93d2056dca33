"""The command `nextclick replay`: looks at the file first, publishes what is new in it, and says what it did."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from online.commands.embedded_folder import say_folder
from online.commands.replay import Pace, Replayed, replay
from online.commands.replay_progress import Progress
from online.commands.views import reasons_line
from online.config.settings import Settings
from online.worker.connections import named_broker, open_producer, prepare_topics
from stream.event_files import EventFile, check_rows

_INTERRUPTED = 130


def run_replay(
    out: Console,
    file: EventFile,
    settings: Settings,
    stop_on_signals: Callable[[], threading.Event],
    *,
    pace: Pace,
    limit: int | None = None,
    restart: bool = False,
    bad_rows_max: float,
) -> None:
    """Publish what `file` has that is not published yet. Signals stop it once it publishes.

    Nothing is published of a file that cannot be read, or with a larger share than `bad_rows_max` of rows that are no
    clicks, as far as that shows in the rows looked at before. Exits with 130 when it was stopped. Raises
    EventFileError, ReplayError and SourceError.
    """
    where = named_broker(settings).address
    limits = settings.limits
    progress = Progress(settings.data_dir / "replay", file, f"{where} {settings.clicks_topic}")
    rows = 0 if restart else progress.load()
    if progress.remark is not None:
        out.print(progress.remark, markup=False)
    ahead = check_rows(file, limits=limits, skip=rows, bad_before=progress.bad, limit=limit)
    ahead.refuse_if_bad(file, bad_rows_max, "; nothing was published" if rows == 0 else "; no more was published")
    _say(out, file.remarks())
    if rows and ahead.rows > rows:
        out.print(f"goes on after {rows:,} rows that are published already (--restart begins anew)", style="dim")
    say_folder(settings, "replay", creates=True)
    prepare_topics(settings)
    with closing(open_producer(settings)) as producer, _bar(file, limit) as on_progress:
        done = replay(
            file, producer, settings.clicks_topic, progress,
            pace=pace, limit=limit, stop=stop_on_signals(), limits=limits, on_progress=on_progress,
        )  # fmt: skip
    _say_replayed(done, file, f"topic {settings.clicks_topic} ({where})")
    done.tally.refuse_if_bad(file, bad_rows_max, "; they are published, and will be dead letters")


def _say(out: Console, lines: Iterator[str]) -> None:
    for line in lines:
        out.print(line, style="dim", markup=False, soft_wrap=True)


def _say_replayed(done: Replayed, file: EventFile, where: str) -> None:
    if done.already_done:
        print(f"{file.name}: {done.rows:,} rows are already published to {where}; use --restart to publish them again")
        return
    rate = done.published / max(done.seconds, 1e-3)
    print(f"{file.name}: {done.published:,} events published to {where} in {done.seconds:.1f} s ({rate:,.0f}/s)")
    if done.broken:
        print(f"not readable as clicks, so they will be dead letters: {reasons_line(done.broken)}")
    order = done.tally.order_line()
    if order is not None:
        print(f"{order}; sort the file by time to have them learned in order")
    if done.stopped:
        print(f"stopped after row {done.rows:,}: the same command goes on from there", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED)


@contextmanager
def _bar(file: EventFile, limit: int | None) -> Iterator[Callable[[Replayed], None]]:
    """Shows how far a replay is, on a terminal; yields what is to be called with its progress."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rows]} rows"),
        TextColumn("{task.fields[rate]} events/s"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(file.path.name, total=1.0, rows="0", rate="?")

        def on_progress(done: Replayed) -> None:
            share = max(file.fraction, done.rows / limit if limit else 0.0)
            rate = f"{done.published / max(done.seconds, 1e-3):,.0f}"
            bar.update(task, completed=min(1.0, share), rows=f"{done.rows:,}", rate=rate)

        yield on_progress
