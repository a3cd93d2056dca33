"""The command `nextclick evaluate-policy`: reads a log, estimates another policy's value, shows it with its limits."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from online.config.settings import Settings
from online.evaluation.impressions_log import JoinedLog, join
from online.evaluation.off_policy import Estimate, Options
from online.evaluation.off_policy_report import Report, evaluate
from online.evaluation.policy_log import PolicyLogError, load, parse_pairs
from online.worker.connections import open_reader
from stream.events import BadEvent, Click
from stream.events import parse as parse_event
from stream.impressions import Impression, parse
from stream.readable import plain

ATTRIBUTION_S = 1_800.0  # after a list was shown a click on it counts

_log = logging.getLogger(__name__)


def run_evaluate_policy(
    out: Console,
    file: Path | None,
    settings: Settings | None,
    *,
    policy: str | None,
    columns: str | None = None,
    where: list[str] | None = None,
    delimiter: str | None = None,
    options: Options,
    attribution_s: float = ATTRIBUTION_S,
    as_json: bool = False,
) -> None:
    """Without a file the topic of impressions is read, and clicks are joined to it.

    `attribution_s`: how long after a list was shown a click on it counts, in seconds; not of a file.

    Raises PolicyLogError, EventFileError, SourceError: one line.
    """
    try:
        named = {} if columns is None else parse_pairs(columns)
    except ValueError as error:
        raise PolicyLogError(f"--columns: {error}") from None
    if file is None:
        assert settings is not None
        file, joined = Path(settings.impressions_topic), _of_topics(settings, attribution_s)
        if not joined.rows:
            raise PolicyLogError("; ".join([f"{file.name} has no list that can be evaluated", *joined.remarks]))
    else:
        joined = None
    kept = _pairs(where or [])
    rows = None if joined is None else joined.rows
    loaded = load(file, policy, columns=named, where=kept, delimiter=delimiter, rows_of=rows)
    loaded.remarks[:0] = [] if joined is None else joined.remarks
    report = evaluate(loaded, options)
    if as_json:
        print(json.dumps(_finite({"file": file.name, "policy": policy or "column", **report.as_dict()}), indent=2))
        return
    log = loaded.log
    about = f"{len(log):,} rows, {loaded.actions:,} actions, {loaded.contexts:,} contexts"
    out.print(f"{plain(file.name)}: {about}", markup=False)
    out.print(_table(report))
    for line in report.remarks:
        out.print(line, style="dim", markup=False)
    for line in report.warnings:
        out.print(f"warning: {line}", style="yellow", markup=False)


def _of_topics(settings: Settings, attribution_s: float) -> JoinedLog:
    """The topic of impressions, with rewards from the topic of clicks."""
    return join(_impressions(settings), _clicks(settings), attribution_s=attribution_s)


def _impressions(settings: Settings) -> Iterator[Impression]:
    """Those that cannot be read are left out, and counted in the log."""
    unreadable = 0
    with closing(open_reader(settings, settings.impressions_topic)) as reader:
        for record in reader.read():
            impression = parse(record.value)
            if isinstance(impression, BadEvent):
                unreadable += 1
            else:
                yield impression
    if unreadable:
        _log.warning("%s: %d records are no impressions and are left out", settings.impressions_topic, unreadable)


def _clicks(settings: Settings) -> Iterator[Click]:
    """Messages that are no clicks are dead letters of the worker, and passed over."""
    limits, names = settings.limits, settings.click_names
    with closing(open_reader(settings, settings.clicks_topic)) as reader:
        for record in reader.read():
            click = parse_event(record.value, limits=limits, names=names)
            if isinstance(click, Click):
                yield click


def _pairs(where: list[str]) -> dict[str, str]:
    found = {}
    for one in where:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise PolicyLogError(f"--where {one}: give COLUMN=VALUE")
        found[name] = value
    return found


def _table(report: Report) -> Table:
    """For a terminal of 80 columns. `ratio` is to the logged policy's value, `rows` the effective sample size."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    view.add_column("", no_wrap=True)
    view.add_column("weights", no_wrap=True)
    for name in ("value", f"{report.level:.0%} from", "to", "ratio", "rows"):
        view.add_column(name, justify="right", no_wrap=True)
    first = report.on_policy
    _add(view, first, first, style="", end=True)
    for one in report.estimates:
        recommended = one == report.recommended
        last = one is report.estimates[-1] or one.estimator == "dr-clipped"
        _add(view, one, first, style="bold" if recommended else "dim", end=last)
    return view


def _add(view: Table, one: Estimate, first: Estimate, *, style: str, end: bool) -> None:
    ratio = "" if one is first or not first.value else f"{one.value / first.value:.2f}"
    cells = (*(_figure(value) for value in (one.value, one.low, one.high)), ratio, f"{one.effective:,.0f}")
    view.add_row(one.estimator, one.weights, *cells, style=style, end_section=end)


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.6f}" if abs(value) < 0.01 else f"{value:.4f}"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
