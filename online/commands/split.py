"""The command `nextclick backtest --split-column`: reads the file, prints the table, writes what is asked for."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from online.commands.backtest import left_out, named_methods, prepare_outputs, progress_bars, write_json
from online.config.settings import Settings
from online.evaluation.backtest import ABLATIONS, NEXTCLICK
from online.evaluation.backtest_events import read_clicks
from online.evaluation.split import FROZEN, LEARNING_ON, METHODS, evaluate, read_split
from online.learner.facts.warm import warm_if_cold
from online.metrics import Measure
from stream.event_files import EventFile
from stream.event_files.tally import BAD_ROWS_MAX

ALL_METHODS = (NEXTCLICK, *ABLATIONS, *METHODS[1:])


def run_split(
    out: Console,
    file: EventFile,
    settings: Settings,
    *,
    column: str,
    measures: Sequence[Measure],
    bad_rows_max: float = BAD_ROWS_MAX,
    sort: bool = False,
    limit: int | None = None,
    methods: str | None = None,
    jobs: int | None = None,
    json_out: Path | None = None,
) -> None:
    """Learns from the train part of a file, predicts the test part, and prints the table.

    Args:
        out: where it is printed.
        file: of clicks.
        settings: of the learners.
        column: of the file, that says of each click which part it belongs to.
        measures: what is computed.
        bad_rows_max: share of rows that may be unreadable.
        sort: whether clicks are sorted by time first.
        limit: rows of the file; None: all.
        methods: comma-separated; None: all but the ablations.
        jobs: parallel processes; None: as many as cores.
        json_out: file of all figures; None: none.

    Raises:
        EventFileError: the file cannot be read, or has no such column.
        BacktestError: a part is empty, there are unknown methods, or something cannot be written.
    """
    wanted = METHODS if methods is None else named_methods(methods, ALL_METHODS)
    prepare_outputs(json_out)
    read = read_clicks(file, settings, limit, bad_rows_max=bad_rows_max, sort=sort)
    split = read_split(file, read, column)
    warm_if_cold(partial(Console(stderr=True).print, markup=False))
    with progress_bars(len(split.clicks), wanted) as on_progress:
        found = evaluate(
            split, settings, measures, methods=wanted, jobs=jobs or os.cpu_count() or 1, on_progress=on_progress
        )
    found = {"file": file.path.name, "seed": settings.seed, "split_column": column} | found
    out.print(_table(found, measures))
    for line in (*_remarks(found), *left_out(read), *file.remarks()):
        out.print(line, style="dim", markup=False)
    if json_out is not None:
        write_json(json_out, found)


def _table(found: dict[str, Any], measures: Sequence[Measure]) -> Table:
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    view.add_column("%", no_wrap=True)
    columns = [(how, one.name) for how in (FROZEN, LEARNING_ON) for one in measures]
    for how, name in columns:
        view.add_column(f"{how.replace('_', ' ')}\n{name.upper()}", justify="right", no_wrap=True)
    for method, figures in found["methods"].items():
        cells = [f"{100 * figures[how][name]:.2f}" for how, name in columns]
        view.add_row(method, *cells, style="bold" if method == NEXTCLICK else "")
    return view


def _remarks(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['train']:,} clicks to learn from, {found['test']:,} to predict, of which {found['scored']:,} have an "
        f"earlier one of their user and are scored; {found['users']:,} users, {found['items']:,} items"
    ]
    if found["left_out"]:
        parts = ", ".join(f"{count:,} of {cell!r}" for cell, count in found["left_out"].items())
        lines.append(f"left out, neither train nor test: {parts}")
    return [*lines, f"{found['seconds']:,.0f} s, all methods together"]
