"""The command `nextclick tune`: reads the file, shows how far it is, prints what was found, writes it as settings."""

import math
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from online.commands.backtest import left_out
from online.config.sections.learning import FeatureGroup
from online.config.settings import ENV_FILE, PREFIX, Settings
from online.evaluation.backtest_events import read_clicks
from online.evaluation.tune import CONFIDENCE, IDLE, LATER, SEARCH, OnProgress, SearchProgress, Tuned, tune
from online.evaluation.tune_runs import TuneError
from online.learner.facts.warm import warm_if_cold
from stream.event_files import EventFile
from stream.event_files.tally import BAD_ROWS_MAX
from stream.readable import plain

_MUCH_SLOWER = 0.8


def run_tune(
    out: Console,
    file: EventFile,
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
    *,
    to: Path,
    bad_rows_max: float = BAD_ROWS_MAX,
    sort: bool = False,
    force: bool = False,
    limit: int | None = None,
    share: float = 0.5,
    trials: int = 30,
    jobs: int = 1,
    timeout_s: float | None = None,
) -> None:
    """Writes the settings file `to`. `stop` ends the search with what it has.

    Raises EventFileError, and TuneError for too few clicks and for a file that cannot be written or exists already.
    """
    _prepare(to, force)
    read = read_clicks(file, settings, limit, bad_rows_max=bad_rows_max, sort=sort)
    if not read.clicks:
        raise TuneError("; ".join([f"{file.name} holds no click that can be read", *left_out(read)]))
    warm_if_cold(partial(Console(stderr=True).print, markup=False))
    with _bar(trials) as on_progress:
        tuned = tune(
            read.clicks,
            settings,
            share=share,
            trials=trials,
            jobs=jobs,
            timeout_s=math.inf if timeout_s is None else timeout_s,
            stop=stop,
            on_progress=on_progress,
        )
    out.print(table(tuned))
    if tuned.features:
        out.print(f"What NDCG@10 loses without a group of features, on {tuned.features_clicks:,} of the later clicks:")
        out.print(features_table(tuned))
    for line in (verdict(tuned), *remarks(tuned), *left_out(read), *file.remarks()):
        out.print(line, markup=False, soft_wrap=True)
    _write(to, settings_file(tuned, settings, file.path.name), force)
    out.print(_how_to_use(to, tuned), markup=False, soft_wrap=True)


def _how_to_use(to: Path, tuned: Tuned) -> str:
    if not tuned.better:
        return f"written: {to}, which holds the settings as they are: there is nothing to change"
    return f"written: {to}; to use it, start the worker with {ENV_FILE}={shlex.quote(str(to))} nextclick worker"


def _prepare(to: Path, force: bool) -> None:
    """What cannot be written is said before the work and not after it."""
    if to.is_dir():
        raise TuneError(f"--out {to} is a folder: name a file in it")
    if not to.parent.is_dir():
        raise TuneError(f"--out {to}: there is no folder {to.parent}")
    if to.exists() and not force:
        raise TuneError(f"--out {to} exists already: name another file, or overwrite it with --force")
    if not os.access(to if to.exists() else to.parent, os.W_OK):
        raise TuneError(f"--out {to} cannot be written: you may not write there")


def _write(to: Path, text: str, force: bool) -> None:
    try:
        with to.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise TuneError(f"{to} has come into being meanwhile and is left as it is; this was for it:\n{text}") from None
    except OSError as error:
        raise TuneError(f"{to} cannot be written ({error.strerror}); this was for it:\n{text}") from None


def table(tuned: Tuned) -> Table:
    """Settings and figures, as they stand and as found, for a terminal of 80 columns."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    view.add_column("", no_wrap=True)
    for name in ("as it stands", "found"):
        view.add_column(name, justify="right", no_wrap=True)
    found = tuned.found
    for name, stood in found.stood.items():
        view.add_row(name, str(stood), str(found.best[name]), end_section=name == [*found.stood][-1])
    view.add_row(f"NDCG@10, clicks searched ({tuned.searched:,})", f"{found.stood_ndcg:.4f}", f"{found.best_ndcg:.4f}")
    later = f"later clicks ({tuned.events - tuned.searched:,})"
    view.add_row(f"NDCG@10, {later}", f"{tuned.stood.ndcg:.4f}", f"{tuned.best.ndcg:.4f}", style="bold")
    view.add_row(f"hit@10, {later}", f"{tuned.stood.hit:.4f}", f"{tuned.best.hit:.4f}")
    view.add_row("clicks/s", f"{tuned.stood.events_per_s:,.0f}", f"{tuned.best.events_per_s:,.0f}", style="dim")
    return view


def features_table(tuned: Tuned) -> Table:
    """What each group of features adds, for a terminal of 80 columns."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    view.add_column("features", no_wrap=True)
    view.add_column("loss", justify="right", no_wrap=True)
    view.add_column("interval", justify="right", no_wrap=True)
    for one in tuned.features:
        wide = "one user only" if math.isinf(one.wide) else f"± {100 * one.wide:.2f} %"
        view.add_row(one.group, f"{100 * one.added:.2f} %", wide, style="dim" if one.idle else "")
    return view


def _idle(tuned: Tuned) -> str:
    """Groups of features that hardly add anything and can be left out, as the setting's value."""
    return ",".join(one.group for one in tuned.features if one.idle and one.group in get_args(FeatureGroup))


def verdict(tuned: Tuned) -> str:
    """One line: whether what was found is better, on clicks that the search has not seen."""
    if tuned.found.best == tuned.found.stood:
        return "no trial was better on the searched clicks: the settings stay as they stand"
    low, high = tuned.interval
    between = "one user only" if math.isinf(low) else f"{100 * CONFIDENCE:.0f} % interval {low:+.4f} to {high:+.4f}"
    gain = f"NDCG@10 on later clicks {tuned.gain:+.4f} ({between})"
    if tuned.better:
        return f"better: {gain}"
    result = "worse" if tuned.worse else "no difference that can be told from chance"
    return f"{result}: {gain}; the settings stay as they stand"


def remarks(tuned: Tuned) -> Iterator[str]:
    """Lines that go below it."""
    found = tuned.found
    if idle := _idle(tuned):
        yield f"features that add less than {100 * IDLE:g} %: {idle}; {PREFIX}FEATURES_LEFT_OUT leaves them out"
    if tuned.better and tuned.best.events_per_s < _MUCH_SLOWER * tuned.stood.events_per_s:
        yield f"slower: {tuned.best.events_per_s:,.0f} clicks/s, not {tuned.stood.events_per_s:,.0f}"
    yield f"trials: {found.trials}, {found.pruned} of them given up early"
    took = f"{found.seconds:,.0f} s to search, {tuned.judging_s:,.0f} s to compare on all clicks"
    yield f"took {found.seconds + tuned.judging_s:,.0f} s: {took}"


def settings_file(tuned: Tuned, settings: Settings, stream: str) -> str:
    """`NEXTCLICK_NAME=value` lines for the worker and docker-compose, after comments that say where they come from.

    Where what was found is not better on later clicks, the lines hold the settings as they stood, and comments say what
    it was.
    """
    found, later = tuned.found, tuned.events - tuned.searched
    seen = "left out" if settings.exclude_seen else "in the lists"
    lines = [
        "# Settings by `nextclick tune`: for NEXTCLICK_ENV_FILE, for env_file in docker-compose, or `set -a; . FILE`.",
        f"# Stream: {plain(stream)}, {tuned.events:,} clicks; items seen before: {seen}; seed {settings.seed}.",
        f"# NDCG@10 on the first {tuned.searched:,}, which were searched (trials: {found.trials}): "
        f"as it stood {found.stood_ndcg:.5f}, found {found.best_ndcg:.5f}.",
        f"# NDCG@10 on the {later:,} after them: as it stood {tuned.stood.ndcg:.5f}, found {tuned.best.ndcg:.5f}.",
        f"# {verdict(tuned)}.",
    ]
    if tuned.kept != found.best:
        lines.append("# So these are the settings AS THEY STOOD. What was found is:")
        lines += [f"# {line}" for line in _assignments(found.best)]
    if idle := _idle(tuned):
        lines.append(f"# Features that add less than {100 * IDLE:g} %; without the # the ranker does without them:")
        lines.append(f"# {PREFIX}FEATURES_LEFT_OUT={idle}")
    return "\n".join([*lines, *_assignments(tuned.kept), ""])


def _assignments(values: dict[str, Any]) -> list[str]:
    return [f"{PREFIX}{name.upper()}={value}" for name, value in values.items()]


@contextmanager
def _bar(trials: int) -> Iterator[OnProgress]:
    """A bar for the search and one for the later clicks, on a terminal; yields what is to be called with progress."""
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=16), TaskProgressColumn(),
        TextColumn("{task.fields[note]}"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {stage: bars.add_task(stage, total=1.0, note="") for stage in (SEARCH, LATER)}

        def on_progress(now: SearchProgress) -> None:
            note = f"{now.trials}/{trials} trials, best NDCG@10 {now.best:.4f}" if now.stage == SEARCH else ""
            bars.update(tasks[now.stage], completed=now.share, note=note)

        yield on_progress
