"""The command `nextclick backtest`: reads the file, shows how far it is, prints the table, writes what is asked for."""

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from online.config.settings import Settings
from online.evaluation import diversity_report
from online.evaluation.backtest import ALL_METHODS, ALL_METHODS_WITH_USERS, OnProgress, backtest, runs_of, usual_methods
from online.evaluation.backtest_events import EACH, BacktestError, Read, read_clicks, stream_times
from online.evaluation.backtest_items import ItemSchedule, ReadItems, read_items, read_users
from online.evaluation.backtest_report import remarks, report, table
from online.evaluation.breakdown import breakdown, breakdown_remarks, breakdown_table, curves_of
from online.evaluation.diversity import Setting, diversity_curve
from online.learner.content.encoders import load_encoder
from online.learner.facts.warm import warm_if_cold
from stream.event_files import EventFile
from stream.event_files.tally import BAD_ROWS_MAX
from stream.item_files import ItemFile


def run_backtest(
    out: Console,
    file: EventFile,
    settings: Settings,
    *,
    bad_rows_max: float = BAD_ROWS_MAX,
    sort: bool = False,
    limit: int | None = None,
    methods: str | None = None,
    jobs: int | None = None,
    finetune_every: int = 0,
    json_out: Path | None = None,
    plots: Path | None = None,
    diversity: str | None = None,
    items: ItemFile | None = None,
    users: ItemFile | None = None,
    baskets: str = EACH,
) -> None:
    """Runs the methods over a file, prints the table, and writes what is asked for.

    Args:
        out: where it is printed.
        file: of clicks.
        settings: of the learners.
        bad_rows_max: share of rows that may be unreadable.
        sort: whether clicks are sorted by time first.
        limit: rows of the file; None: all.
        methods: comma-separated; None: all.
        jobs: parallel processes; None: as many as cores.
        finetune_every: clicks between two fine-tunings; 0: none.
        json_out: file of all figures; None: none.
        plots: folder of pictures; None: none.
        diversity: values of which lists are compared, comma-separated; None: none.
        items: what learners get to know of items; None: nothing.
        users: likewise of users.
        baskets: which lines of a basket are scored, of `BASKETS`.

    Raises:
        EventFileError: a file cannot be read.
        BacktestError: there are too few clicks or unknown methods, or something cannot be written.
        SettingsError: the encoder of items' texts cannot be loaded.
    """
    choices = () if diversity is None else _diversities(diversity)
    settings, wanted = _methods(settings, methods, users)
    prepare_outputs(json_out, plots)
    if items is not None and settings.content and settings.text_encoder is not None:
        load_encoder(settings.text_encoder)  # before the files are read
    of_items = None if items is None else read_items(items, bad_rows_max=bad_rows_max)
    of_users, users_tally = ([], None) if users is None else read_users(users, bad_rows_max=bad_rows_max)
    read = read_clicks(file, settings, limit, bad_rows_max=bad_rows_max, sort=sort)
    if not read.clicks:
        raise BacktestError(f"{file.name} holds no click that can be read; " + "; ".join(left_out(read)))
    gc.freeze()  # the clicks stay to the end: they need not be looked through again and again
    warm_if_cold(partial(Console(stderr=True).print, markup=False))
    with progress_bars(len(read.clicks), wanted) as on_progress:
        outcome = backtest(
            read.clicks,
            settings,
            methods=wanted,
            jobs=jobs or os.cpu_count() or 1,
            finetune_every=finetune_every,
            items=of_items,
            users=of_users,
            baskets=baskets,
            on_progress=on_progress,
        )
    found = (
        report(outcome)
        | breakdown(outcome)
        | {
            "file": file.path.name,
            "seed": settings.seed,
            "finetune_every": finetune_every,
            "unreadable": dict(read.unreadable),
            "duplicates": read.duplicates,
            "backward": read.tally.backward,  # clicks earlier than one before them, as the file has them
            "sorted": read.sorted,
        }
    )
    about: list[str] = []
    if items is not None and of_items is not None:
        found["items_file"], about = _about(items, of_items, read, settings)
    if users is not None and users_tally is not None:
        clicking = {click.user_id for click in read.clicks}
        known = len(clicking.intersection(user.user_id for user in of_users))
        found["users_file"] = {"file": users.name, "users": users_tally.items, "clicking_users_known": known}
        about += [f"users of {users.name}: {known:,} of {len(clicking):,} users who click are in it"]
        about += [*users.columns.lines(), *users_tally.lines(), *users.remarks()]
    out.print(table(found))
    parts = breakdown_table(found, new_items=items is not None, new_users=users is not None)
    if parts is not None:
        out.print(parts)
    lines = (*remarks(found), *breakdown_remarks(found), *left_out(read), *file.remarks(), *about)
    for line in lines:
        out.print(line, style="dim", markup=False)
    if choices:
        found["diversity"] = _diversity(out, read, settings, choices, of_items)
    if json_out is not None:
        write_json(json_out, found)
    if plots is not None:
        from online.evaluation.plots import save_plots  # noqa: PLC0415 - matplotlib takes a second to import

        try:
            title = f"{file.path.name}: {len(read.clicks):,} clicks"
            saved = save_plots(plots, outcome, title)
            if curves := curves_of(outcome):
                from online.evaluation import calibration_plot  # noqa: PLC0415 - the same

                saved.append(calibration_plot.save_plot(plots, curves, title))
            if choices:
                from online.evaluation.diversity_plot import save_plot  # noqa: PLC0415 - the same

                saved.append(save_plot(plots, found["diversity"], title))
        except OSError as error:
            raise BacktestError(f"the plots cannot be saved in {plots}: {error.strerror}") from None
        out.print("saved: " + ", ".join(map(str, saved)), markup=False)


def _diversities(text: str) -> tuple[Setting, ...]:
    """0 comes first, with which the others are compared."""
    try:
        values = [float(one) for one in text.split(",") if one.strip()]
    except ValueError:
        raise BacktestError(f"--diversity: numbers from 0 to 1, comma-separated, not {text!r}") from None
    if not values or not all(0 <= value <= 1 for value in values):
        raise BacktestError(f"--diversity: numbers from 0 to 1, not {text!r}")
    return tuple(Setting(value) for value in dict.fromkeys((0.0, *values)))


def _about(items: ItemFile, read: ReadItems, clicks: Read, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """What a file of items held, as JSON, and as lines."""
    times = stream_times(clicks.clicks)
    clicked = {click.item_id for click in clicks.clicks}
    known = len(clicked.intersection(item.item_id for item in read.items))
    found = {
        "file": items.name,
        "rows": read.tally.rows,
        "items": read.tally.items - read.tally.repeated,
        "clicked_items_known": known,
        "published_within": ItemSchedule(read, times[0], times[-1]).within,
        "unavailable": read.unavailable,
        "left_out": dict(read.tally.bad),
        "list_filter": settings.list_filter,
    }
    lines = [
        f"items of {items.name}: {found['items']:,}, of which {found['published_within']:,} come when they were "
        f"published, the others before the stream; {known:,} of {len(clicked):,} clicked items are in it",
        *items.columns.lines(),
    ]
    if read.unavailable:
        lines.append(f"{read.unavailable:,} items are not available; since when is not known, so they are listed here")
    if settings.list_filter is not None:
        lines.append(f"lists hold only items with: {settings.list_filter} (NEXTCLICK_LIST_FILTER)")
    return found, [*lines, *read.tally.lines(), *items.remarks()]


def _diversity(
    out: Console, read: Read, settings: Settings, choices: Sequence[Setting], items: ReadItems | None
) -> list[dict[str, Any]]:
    """Runs one more learner, whose lists are chosen with each setting, and prints what came of it."""
    tags = None if items is None else {item.item_id: item.tags for item in items.items}
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("diversity", total=len(read.clicks))
        figures = diversity_curve(
            read.clicks,
            settings,
            choices,
            tags_of=None if tags is None else lambda item: tags.get(item, ()),
            on_progress=lambda done: bars.update(task, completed=done),
        )
    out.print(diversity_report.table(figures))
    for line in diversity_report.remarks():
        out.print(line, style="dim", markup=False)
    return figures


def _methods(settings: Settings, named: str | None, users: ItemFile | None) -> tuple[Settings, tuple[str, ...]]:
    """Returns the settings and the methods for a backtest, in which something is known of users or not."""
    every = ALL_METHODS
    if users is not None:
        settings = settings.model_copy(update={"users_topic": settings.users_topic or "users"})
        every = ALL_METHODS_WITH_USERS
    return settings, usual_methods(settings, every) if named is None else named_methods(named, every)


def named_methods(text: str, methods: Sequence[str]) -> tuple[str, ...]:
    """The methods that are named, comma-separated, of those that there are. Raises BacktestError for others."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in methods]
    if unknown or not names:
        raise BacktestError(f"--methods: there is no {', '.join(unknown) or 'method'}; there are {', '.join(methods)}")
    return tuple(method for method in methods if method in names)


def prepare_outputs(json_out: Path | None, plots: Path | None = None) -> None:
    """What cannot be written is said before the work and not after it."""
    if json_out is not None:
        if not json_out.parent.is_dir():
            raise BacktestError(f"--json {json_out}: there is no folder {json_out.parent}")
        if json_out.is_dir():
            raise BacktestError(f"--json {json_out} is a folder: name a file in it")
    if plots is not None and plots.exists() and not plots.is_dir():
        raise BacktestError(f"--plots {plots} is a file: name a folder")


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Writes figures. Raises BacktestError where that is not possible."""
    try:
        path.write_text(json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise BacktestError(f"{path} cannot be written: {error.strerror}") from None


def left_out(read: Read) -> Iterator[str]:
    if read.unreadable:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in read.unreadable.most_common())
        yield f"left out, not readable as clicks: {reasons}"
    if read.duplicates:
        yield f"left out, with the event id of an earlier one: {read.duplicates:,}"
    order = read.tally.order_line()
    if order is not None:
        yield f"{order}: " + ("sorted by time first" if read.sorted else "these figures are NOT by time (--sort sorts)")


@contextmanager
def progress_bars(events: int, methods: Sequence[str]) -> Iterator[OnProgress]:
    """A bar for each run, on a terminal; yields what is to be called with their progress."""
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=16), TaskProgressColumn(),
        TextColumn("{task.fields[ndcg]}"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {
            run.name: bars.add_task(run.name, total=events, ndcg="") for run in runs_of(methods)
        }

        def on_progress(name: str, done: int, ndcg: float) -> None:
            fields: dict[str, Any] = {"ndcg": f"NDCG@10 {ndcg:.4f}"} if ndcg else {}
            bars.update(tasks[name], completed=done, **fields)

        yield on_progress
