"""The command `nextclick`. Each command imports what it needs when it runs, so that `--help` answers at once."""
# ruff: noqa: PLC0415

import gc
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from online.commands.extras import MissingExtraError, require_extras
from online.commands.file_options import (
    BAD_ROWS_MAX,
    BadRowsOption,
    ColumnsOption,
    DelimiterOption,
    EncodingOption,
    FileArgument,
    ItemColumnsOption,
    OnlyOption,
    SortOption,
    TagSeparatorOption,
    TimezoneOption,
    UserColumnsOption,
    bad_rows_share,
    open_file,
    open_items,
)  # fmt: skip

if TYPE_CHECKING:
    from online.config.settings import Settings
    from online.worker.overview import Overview
    from stream.item_files import ItemFile
    from stream.lists import Lists

app = typer.Typer(
    help="A recommender that learns from every click: Kafka in, lists in Redis. Settings: NEXTCLICK_* variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, soft_wrap=False)

#: Errors that an operator can fix: shown as one line. Looked up by name, because importing them all takes a second.
_EXPECTED = {
    "online.config.settings": ("SettingsError",),
    "online.evaluation.backtest_events": ("BacktestError",),
    "online.evaluation.policy_log": ("PolicyLogError",),
    "online.worker.checkpoint": ("CheckpointError",),
    "online.worker.start": ("StartError",),
    "online.commands.demo": ("DemoError",),
    "online.commands.explain": ("ExplainError",),
    "stream.event_files": ("EventFileError",),
    "online.worker.poison_pills": ("InternalError",),
    "online.commands.replay_progress": ("ReplayError",),
    "online.commands.embedded_folder": ("OtherFolderError",),
    "online.commands.export": ("ExportError",),
    "online.commands.forget": ("ForgetError",),
    "online.commands.lookup": ("UnknownError",),
    "online.commands.dead_letters": ("LettersError",),
    "online.commands.redrive": ("RedriveError",),
    "online.worker.ask": ("RequestError",),
    "online.api.server": ("ServeError",),
    "online.evaluation.tune_runs": ("TuneError",),
    "stream.source": ("SourceError",),
    "stream.lists": ("ListsError",),
}

_INTERRUPTED = 130
STARTING_OR_WAITING = 3  # exit status of `nextclick status`; 1 and 2 are those of all commands
_DEMO_ROWS_CHECKED = 20_000  # a demo of a long file begins soon


DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the state; else NEXTCLICK_DATA_DIR, else the user's own.")
]


@contextmanager
def _loading() -> Iterator[None]:
    """As long as code is loaded nothing becomes garbage, and what was loaded stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class NothingThereError(Exception):
    """What was asked for does not exist (yet); the message is one line."""


def main() -> None:
    """The console script: errors that an operator can fix are one line and exit status 1, wrong usage is 2."""
    try:
        app(prog_name="nextclick")
    except Exception as error:
        if not _is_expected(error):
            if not _logs_json():
                raise
            logging.getLogger(__name__).critical("internal error: %s", error, exc_info=error)
            sys.exit(1)
        about = "nextclick " if isinstance(error, MissingExtraError) else "nextclick: "  # which begins with the command
        if _logs_json():
            logging.getLogger(__name__).critical("%s", error)
        else:
            print(f"{about}{error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _nextclick(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        try:
            print(metadata.version("nextclick"))
        except metadata.PackageNotFoundError:
            print("not installed")
        raise typer.Exit


@app.command(epilog="Example: nextclick demo --seconds 30")
def demo(  # noqa: PLR0917 - typer's options
    seconds: Annotated[
        float, typer.Option(help="How long clicks are published; 0: no limit, a file to its end.", min=0)
    ] = 45,
    seed: Annotated[int, typer.Option(help="Which town, and which network.", min=0)] = 0,
    data: Annotated[Path | None, typer.Option(help="Clicks of a file (as for replay) instead of a town's.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep log and checkpoints there; otherwise they are deleted.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0: any free one.", min=0, max=65_535)] = None,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    timezone: TimezoneOption = None,
    bad_rows_max: BadRowsOption = BAD_ROWS_MAX,
    stay: Annotated[
        bool | None,
        typer.Option(
            "--stay/--no-stay", help="Serve the dashboard on until Ctrl-C; as it is: at a terminal.", show_default=False
        ),
    ] = None,
) -> None:
    """Show it all in one process: simulated clicks, learning, and what one click changes.

    Embedded log and Redis: no broker, no server, nothing left behind.
    """
    require_extras("demo", "worker", "embedded")
    share = bad_rows_share(bad_rows_max)
    events = open_file(data, columns, delimiter, encoding, timezone) if data is not None else None
    if events is not None:
        from stream.event_files import check_rows

        check_rows(events, limit=_DEMO_ROWS_CHECKED).refuse_if_bad(events, share)
    out.print("loading PyTorch and the rest …", style="dim")
    from online.commands.demo import ConsoleLog, run_demo
    from online.commands.demo_terminal import stays
    from online.logs import log_to

    log_to(ConsoleLog(out), "warning")
    stop = _stop_on_signals()
    stay = stays(out) if stay is None else stay
    run_demo(out, stop, seconds=seconds, seed=seed, data=events, data_dir=data_dir, port=port, stay=stay)


@app.command(epilog="Example: nextclick worker --data-dir /var/lib/nextclick")
def worker(
    data_dir: DataDir = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Without a checkpoint: learn from the earliest click that is kept.")
    ] = False,
) -> None:
    """Learn from the clicks topic and keep every user's list in Redis, until stopped (Ctrl-C or SIGTERM).

    It goes on from the latest checkpoint in its data folder. Where the group has read clicks and there is none, it
    stops, and says how to go on. A checkpoint of another topic or cluster is gone on from with --from-beginning only.
    """
    settings = _folder_settings(data_dir)
    from online.logs import name_log_lines

    name_log_lines(component="worker")
    extras = [*(["embedded"] if settings.redis_url is None else []), *(["privacy"] if settings.private else [])]
    require_extras("worker", "worker", *extras)
    stop = _stop_on_signals()
    from online.worker.start import announce

    announce(settings)
    from online.api.worker_http import worker_http

    with worker_http(settings) as monitor:  # it answers while the rest is loaded
        with _loading():
            from online.worker.main import run_worker  # takes seconds

        run_worker(settings, stop, from_beginning=from_beginning, monitor=monitor)


@app.command(epilog="Example: nextclick serve --port 8080")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.", min=0, max=65_535)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer.", min=1, max=64)] = None,
    descriptor: Annotated[int | None, typer.Option("--socket", hidden=True)] = None,
    data_dir: DataDir = None,
) -> None:
    """Serve lists, health, metrics and the dashboard over HTTP.

    It starts whatever is there: until Redis answers (and Kafka, where it takes clicks), /readyz is 503 and says why.
    """
    given = {"api_host": host, "api_port": port, "api_workers": workers}
    given = {name: value for name, value in given.items() if value is not None}
    settings = _folder_settings(data_dir, log_only=True, **given)
    stop = _stop_on_signals()
    from online.logs import name_log_lines

    name_log_lines(component="api")
    from online.api.serve import serve as serve_until

    serve_until(settings, stop, descriptor=descriptor)


@app.command("api-key", epilog="Example: nextclick api-key shop")
def api_key(name: Annotated[str, typer.Argument(help="Name of the client: letters, digits, dots, dashes.")]) -> None:
    """Make a key for the API, shown only now, and the entry of NEXTCLICK_API_KEYS that makes the API accept it.

    The API keeps only the key's hash. To revoke a key, remove its entry and start the API again.
    """
    from online.api.keys import make_key

    try:
        key, entry = make_key(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    print(f"key, for the client (keep it, it is not shown again): {key}")
    print(f"entry of NEXTCLICK_API_KEYS (comma-separated): {entry}")


@app.command(epilog="Example: nextclick replay clicks.csv.gz --rate 500")
def replay(  # noqa: PLR0917 - typer's options
    file: FileArgument,
    rate: Annotated[float | None, typer.Option(help="Events per second.", min=1e-6)] = None,
    speedup: Annotated[float | None, typer.Option(help="Times faster than it happened.", min=1e-6)] = None,
    limit: Annotated[int | None, typer.Option(help="Publish the file's first N rows only.", min=1)] = None,
    restart: Annotated[bool, typer.Option("--restart/--resume", help="From the beginning, or where it ended.")] = False,
    data_dir: DataDir = None,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    timezone: TimezoneOption = None,
    bad_rows_max: BadRowsOption = BAD_ROWS_MAX,
) -> None:
    """Publish a file of events to the clicks topic, as fast as it takes them or at a pace.

    Needed columns: user (or user_id), item (or item_id), timestamp; others are named by --columns.
    Read where present: event_type, event_id, value (or rating).

    The file is checked first: a file that cannot be read is refused before anything is published.
    Interrupt it at any time: the same command goes on where it ended, also when the file has grown.
    Publishing twice is harmless: the worker knows each row by its event id.
    """
    if rate is not None and speedup is not None:
        raise typer.BadParameter("choose --rate or --speedup, not both")
    share = bad_rows_share(bad_rows_max)
    events, settings = open_file(file, columns, delimiter, encoding, timezone), _folder_settings(data_dir)
    from online.commands.replay import Pace
    from online.commands.replay_run import run_replay

    run_replay(
        out, events, settings, _stop_on_signals,
        pace=Pace(rate, speedup), limit=limit, restart=restart, bad_rows_max=share,
    )  # fmt: skip


@app.command(epilog="Example: nextclick item i9 --unavailable")
def item(  # noqa: PLR0917 - typer's options
    item_id: Annotated[str, typer.Argument(help="Item id.")],
    available: Annotated[bool, typer.Option("--available", help="Publish that lists may hold it.")] = False,
    unavailable: Annotated[bool, typer.Option("--unavailable", help="Publish that lists must not hold it.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Publish a tombstone: the item no longer exists.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="A name to show; goes with --available or --unavailable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="The same; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What is known, as JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show what is known of an item; or publish one record to the items topic, with one of the three flags.

    A record replaces the item's earlier one. What is withdrawn or not available leaves every list within seconds,
    until it is published as available.
    """
    from online.commands.item_record import publish_item, wanted_record

    wanted = wanted_record(available=available, unavailable=unavailable, withdraw=withdraw, title=title, tags=tag)
    if wanted is None:
        settings = _folder_settings(data_dir, log_only=True)
        _look_up(settings, "item", item_id, as_json=as_json)
        return
    if as_json:
        raise typer.BadParameter("--json goes with an item that is shown, not with one that is published")
    publish_item(lambda: _folder_settings(data_dir, log_only=True), item_id, wanted)


@app.command(epilog="Example: nextclick items items.csv.gz --dry-run")
def items(  # noqa: PLR0917 - typer's options
    file: Annotated[Path, typer.Argument(help="CSV, JSON lines (also packed) or Parquet; - reads stdin.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what the columns are, and the first records.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Publish the file's first N rows only.", min=1)] = None,
    data_dir: DataDir = None,
    columns: ItemColumnsOption = None,
    only: OnlyOption = None,
    tag_separator: TagSeparatorOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    timezone: TimezoneOption = None,
    bad_rows_max: BadRowsOption = BAD_ROWS_MAX,
) -> None:
    """Publish a file of items to the items topic: one record per row, which replaces the item's earlier one.

    Fields: id (needed), title, tags, published_at, available. All other columns with single values become attributes.

    The file is checked first: one that cannot be read is refused before anything is published.
    Publishing twice is harmless: the latest record of an item counts.
    """
    opened = open_items(
        file, columns=columns, only=only, tag_separator=tag_separator,
        delimiter=delimiter, encoding=encoding, timezone=timezone,
    )  # fmt: skip
    _publish_file(opened, data_dir, bad_rows_max, limit=limit, dry_run=dry_run)


@app.command(epilog="Example: nextclick users users.csv.gz --dry-run")
def users(  # noqa: PLR0917 - typer's options
    file: Annotated[Path, typer.Argument(help="CSV, JSON lines (also packed) or Parquet; - reads stdin.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what the columns are, and the first records.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Publish the file's first N rows only.", min=1)] = None,
    data_dir: DataDir = None,
    columns: UserColumnsOption = None,
    only: OnlyOption = None,
    tag_separator: TagSeparatorOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    bad_rows_max: BadRowsOption = BAD_ROWS_MAX,
) -> None:
    """Publish a file of users' attributes to the users topic: one record per row, which replaces the earlier one.

    Fields: id (needed), tags. All other columns with single values become attributes. NEXTCLICK_USERS_TOPIC names the
    topic.

    The file is checked first: one that cannot be read is refused before anything is published.
    """
    opened = open_items(
        file, columns=columns, only=only, tag_separator=tag_separator, delimiter=delimiter, encoding=encoding,
        users=True,
    )  # fmt: skip
    _publish_file(opened, data_dir, bad_rows_max, limit=limit, dry_run=dry_run)


def _publish_file(
    opened: "ItemFile", data_dir: Path | None, bad_rows_max: str, *, limit: int | None, dry_run: bool
) -> None:
    """Publishes a file of items or users."""
    share = bad_rows_share(bad_rows_max)
    from online.commands.items_file import run_items

    def settings() -> "Settings":
        return _folder_settings(data_dir, log_only=True)

    stop = (lambda: False) if dry_run else _stop_on_signals().is_set
    if not run_items(out, opened, settings, stop, bad_rows_max=share, limit=limit, dry_run=dry_run):
        raise typer.Exit(_INTERRUPTED)


@app.command(epilog="Example: nextclick user ada-1")
def user(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="User id.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show everything known of a user: the latest 50 clicks, which of them are flagged as abuse, and the list.

    It reads the newest checkpoint of the data folder and Redis, and writes nothing.
    """
    _look_up(_folder_settings(data_dir, log_only=True), "user", user_id, as_json=as_json)


@app.command(epilog="Example: nextclick export exported")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of the files; it is made.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Write histories, lists, items and pairs of items as Parquet files.

    They come from the newest checkpoint of the data folder and the lists in Redis. Users who are to be forgotten are
    not in them.
    """
    require_extras("export", "backtest")
    settings = _folder_settings(data_dir, log_only=True)
    with _loading():
        from online.commands.export import run_export

    run_export(out, settings, folder, force=force)


@app.command(epilog="Example: nextclick hide u1 i9 --for-days 30")
def hide(
    user_id: Annotated[str, typer.Argument(help="User id.")],
    item_id: Annotated[str, typer.Argument(help="Item id.")],
    for_days: Annotated[
        float | None, typer.Option(help="Days until the item may be shown again. Without: never.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let the user see the item again.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show a user an item no more: publish one record to the feedback topic.

    It takes effect with the user's next list, which the worker writes at once.
    """
    settings = _folder_settings(data_dir, log_only=True)
    from online.commands.hide import HideError, run_hide

    try:
        run_hide(settings, user_id, item_id, for_days=for_days, undo=undo)
    except HideError as error:
        raise typer.BadParameter(str(error)) from None


@app.command(epilog="Example: nextclick backtest clicks.csv.gz --limit 20000 --plots plots")
def backtest(  # noqa: PLR0917 - typer's options
    file: FileArgument,
    limit: Annotated[int | None, typer.Option(help="Take the file's first N rows only.", min=1)] = None,
    exclude_seen: Annotated[
        bool | None, typer.Option("--exclude-seen/--include-seen", help="Leave out what a user clicked before.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.", min=0)] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures there.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Save plots (PNG) in that folder.")] = None,
    diversity: Annotated[
        str | None, typer.Option(help="Also lists that are varied so much, from 0 to 1, as in 0,0.2,0.5.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Only these, comma-separated.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Parallel processes; by default one per core.", min=1)] = None,
    finetune_every: Annotated[int, typer.Option(help="Clicks between two fine-tunings; 0: none.", min=0)] = 0,
    items_file: Annotated[
        Path | None, typer.Option("--items", help="A file of items (as for items) that learners get to know.")
    ] = None,
    items_columns: Annotated[
        str | None, typer.Option("--items-columns", help="Of that file: as --columns of items.")
    ] = None,
    items_only: Annotated[str | None, typer.Option("--items-only", help="Of that file: as --only of items.")] = None,
    items_tag_separator: Annotated[
        str | None, typer.Option("--items-tag-separator", help="Of that file: as --tag-separator of items.")
    ] = None,
    users_file: Annotated[
        Path | None, typer.Option("--users", help="A file of users (as for users), known to learners beforehand.")
    ] = None,
    users_columns: Annotated[
        str | None, typer.Option("--users-columns", help="Of that file: as --columns of users.")
    ] = None,
    baskets: Annotated[
        str, typer.Option(help="Lines of one user at one time: score each, or the first of them.")
    ] = "each",
    split_column: Annotated[
        str | None,
        typer.Option(help="Learn from the rows whose cell there is train, predict those whose cell is test."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="With --split-column: p@K, hit@K, mrr@K or ndcg@K, comma-separated.")
    ] = None,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    timezone: TimezoneOption = None,
    bad_rows_max: BadRowsOption = BAD_ROWS_MAX,
    sort: SortOption = False,
) -> None:
    """Predict each click of a file before learning it, and compare with counting baselines.

    The first fifth of the clicks is not scored. Only the file is read, and only the outputs named here are written.
    --split-column scores as papers on sessions do: learn from one part of the file, predict the other.
    """
    require_extras("backtest", "backtest")
    if baskets not in {"each", "first"}:
        raise typer.BadParameter(f"--baskets: each or first, not {baskets!r}")
    if items_file is None and (items_columns, items_only, items_tag_separator) != (None, None, None):
        raise typer.BadParameter("--items-columns, --items-only and --items-tag-separator go with --items")
    if users_file is None and users_columns is not None:
        raise typer.BadParameter("--users-columns goes with --users")
    if split_column is None and metrics is not None:
        raise typer.BadParameter("--metrics goes with --split-column")
    others = (plots, diversity, items_file, users_file, finetune_every, baskets)
    if split_column is not None and others != (None, None, None, None, 0, "each"):
        raise typer.BadParameter(
            "--plots, --diversity, --items, --users, --finetune-every and --baskets do not go with --split-column"
        )
    share_max = bad_rows_share(bad_rows_max)
    events = open_file(file, columns, delimiter, encoding, timezone)
    of_items = None
    if items_file is not None:
        of_items = open_items(
            items_file, columns=items_columns, only=items_only, tag_separator=items_tag_separator, timezone=timezone,
            option="--items-columns",
        )  # fmt: skip
    of_users = None
    if users_file is not None:
        of_users = open_items(users_file, columns=users_columns, option="--users-columns", users=True)
    given = {"exclude_seen": exclude_seen, "seed": seed}
    settings = _settings(**{name: value for name, value in given.items() if value is not None})
    if split_column is not None:
        from online.metrics import parse_measures

        try:
            measures = parse_measures("p@20,mrr@20" if metrics is None else metrics)
        except ValueError as error:
            raise typer.BadParameter(f"--metrics: {error}") from None
        with _loading():
            from online.commands.split import run_split

        run_split(
            out,
            events,
            settings,
            column=split_column,
            measures=measures,
            bad_rows_max=share_max,
            sort=sort,
            limit=limit,
            methods=methods,
            jobs=jobs,
            json_out=json_out,
        )
        return
    with _loading():
        from online.commands.backtest import run_backtest

    run_backtest(
        out,
        events,
        settings,
        bad_rows_max=share_max,
        sort=sort,
        limit=limit,
        methods=methods,
        jobs=jobs,
        finetune_every=finetune_every,
        json_out=json_out,
        plots=plots,
        diversity=diversity,
        items=of_items,
        users=of_users,
        baskets=baskets,
    )


@app.command(epilog="Example: nextclick tune clicks.csv.gz --limit 50000 --timeout 3600")
def tune(  # noqa: PLR0917 - typer's options
    file: FileArgument,
    to: Annotated[Path, typer.Option("--out", help="Write the settings there.")] = Path("nextclick.env"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    share: Annotated[float, typer.Option(help="Of the clicks: the first ones, to search on.", min=0.1, max=0.9)] = 0.5,
    trials: Annotated[int, typer.Option(help="Settings tried.", min=1)] = 30,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which the search ends; the comparison takes extra time.", min=0)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take the file's first N rows only.", min=1)] = None,
    exclude_seen: Annotated[
        bool | None, typer.Option("--exclude-seen/--include-seen", help="Leave out what a user clicked before.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.", min=0)] = None,
    jobs: Annotated[int, typer.Option(help="Parallel processes; the result depends on their number.", min=1)] = 1,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    timezone: TimezoneOption = None,
    bad_rows_max: BadRowsOption = BAD_ROWS_MAX,
    sort: SortOption = False,
) -> None:
    """Search settings that suit a file, evaluate them on its later clicks, and write them as a settings file.

    The search sees the first part only; the later clicks compare what it found with the current settings.
    If they are not better, the file holds the current settings, and says so.

    Ctrl-C ends the search early and goes on with what it has.
    Learning rates, what is remembered and batches are searched; the network's shape is not.
    """
    require_extras("tune", "backtest")
    share_max = bad_rows_share(bad_rows_max)
    events = open_file(file, columns, delimiter, encoding, timezone)
    given = {"exclude_seen": exclude_seen, "seed": seed}
    settings = _settings(**{name: value for name, value in given.items() if value is not None})
    from online.commands.tune import run_tune

    stop = _stop_on_signals().is_set
    run_tune(
        out, events, settings, stop,
        bad_rows_max=share_max, sort=sort,
        to=to, force=force, limit=limit, share=share, trials=trials, jobs=jobs, timeout_s=timeout,
    )  # fmt: skip


@app.command("evaluate-policy", epilog="Example: nextclick evaluate-policy impressions.jsonl --policy uniform")
def evaluate_policy(  # noqa: PLR0917 - typer's options
    log: Annotated[
        Path | None,
        typer.Argument(help="CSV, JSON lines (also packed) or Parquet; - reads stdin. Else the topic of impressions."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="uniform, or a file with action,probability (position, context); else the log's column."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Names, as in action=item,reward=click,context=site+device.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; may be given several times.")
    ] = None,
    delimiter: DelimiterOption = None,
    topic: Annotated[
        bool, typer.Option("--topic", help="Read the topic of impressions, and join clicks; so too without LOG.")
    ] = False,
    attribution: Annotated[
        float | None,
        typer.Option(
            "--attribution-minutes", help="Of the topic: a click counts so long after a list; else 30.", min=0
        ),
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest weight of the clipped estimators; else the root of the rows.", min=1)
    ] = None,
    interval: Annotated[str, typer.Option(help="gamma, bootstrap or bernstein.")] = "gamma",
    level: Annotated[float, typer.Option(help="Of the intervals.", min=0.5, max=0.999)] = 0.95,
    seed: Annotated[int, typer.Option(help="Of folds and bootstrap.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Estimate from a log of one policy what another would have earned, with intervals.

    Columns: action (or item_id), reward (or click), propensity, position, context, request, probability.
    By inverse propensities (ips), self-normalised (snips), doubly robust (dr), each also with clipped weights. Of the
    topic, an item that its user clicked soon after the list was shown earns 1, any other 0.
    """
    require_extras("evaluate-policy", "backtest")
    from online.commands.evaluate_policy import ATTRIBUTION_S, run_evaluate_policy
    from online.evaluation.off_policy import INTERVALS, Options

    if log is not None and (topic or attribution is not None):
        raise typer.BadParameter("--topic and --attribution-minutes are for the topic of impressions: leave out LOG")
    if interval not in INTERVALS:
        raise typer.BadParameter(f"--interval: {', '.join(INTERVALS)}, not {interval!r}")
    options = Options(interval=interval, clip=clip, level=level, seed=seed)
    run_evaluate_policy(
        out, log, _folder_settings(data_dir, log_only=True) if log is None else None,
        policy=policy, columns=columns, where=where, delimiter=delimiter, options=options, as_json=as_json,
        attribution_s=ATTRIBUTION_S if attribution is None else 60 * attribution,
    )  # fmt: skip


@app.command(epilog="Example: nextclick top ada-1 --k 5")
def top(
    user: Annotated[str, typer.Argument(help="User id.")],
    k: Annotated[int, typer.Option("--k", "-k", help="Items wanted.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print a user's list; the popular one for a user without a list."""
    settings = _settings()
    from online.commands.views import list_view
    from online.worker.connections import open_lists
    from stream.events import id_problem

    if (problem := id_problem(user)) is not None:
        raise typer.BadParameter(problem)

    lists = open_lists(settings)
    standing = lists.standing_for(user)
    own, found = standing.own, standing.top
    if found is None:
        raise NothingThereError("nothing has been learned yet: start `nextclick worker` and publish clicks")
    if as_json:
        cut = found.model_dump() | {"items": found.items[:k], "scores": found.scores[:k]}
        age_ms = max(0, int(1_000 * time.time()) - found.written_at)
        _print_json({"user_id": user, "own": own is not None, "age_ms": age_ms, **cut})
    else:
        out.print(list_view(user, found, own=own is not None, k=k))


@app.command(epilog="Example: nextclick explain ada-1 i9")
def explain(
    user: Annotated[str, typer.Argument(help="User id.")],
    item_id: Annotated[str | None, typer.Argument(metavar="[ITEM]", help="Item id; else the whole list.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Items of the list.", min=1, max=100)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print why items stand in a user's list: reasons, or for one item what each feature adds.

    It asks the running worker, which ranks the list for this moment; where none answers, or --data-dir names a folder,
    it reads the newest checkpoint, and ranks the list for the moment of its latest click. Nothing is written.
    """
    settings = _folder_settings(data_dir, log_only=True)
    require_extras("explain", "worker")
    from stream.events import id_problem

    for given in (user, item_id):
        if given is not None and (problem := id_problem(given)) is not None:
            raise typer.BadParameter(problem)
    with _loading():
        from online.commands.explain import explain_from_checkpoint, explain_from_worker
        from online.commands.explain_views import explanation_view, explanations_view

    found = explain_from_worker(settings, user, item_id, k) if data_dir is None else None
    found = found or explain_from_checkpoint(settings, user, item_id, k)
    if as_json:
        _print_json(found)
    else:
        out.print(explanations_view(found) if item_id is None else explanation_view(found))


@app.command(epilog="Example: nextclick status --json")
def status(
    worker: Annotated[str | None, typer.Option(help="Only this worker of a group: a health check of its own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the status of the worker, or of all workers of a group, and how well it is.

    Exit status: 0 ready or degraded; 1 no worker reports, it has stopped or failed, or Redis does not answer;
    3 starting or waiting. With --worker it is that one's, however the others do.
    """
    settings = _settings()
    from online.commands.views import status_view
    from online.commands.worker_views import health_line, overview_view
    from online.worker.connections import open_lists
    from online.worker.health import health_of, health_of_worker
    from online.worker.totals import total

    if worker is not None:
        lists = open_lists(settings, worker=worker)
        if (report := lists.status()) is None:
            raise NothingThereError(
                f"no worker reports as {worker!r} in Redis at {lists.address}: see `nextclick status` for the others"
            )
        health, view = health_of_worker(report), status_view(report)
        found: Mapping[str, Any] = report
    else:
        overview = _overview(open_lists(settings))
        health, found = health_of(overview), overview.alone or {}
        view = overview_view(overview) if overview.many else status_view(found)
        if overview.many:
            found = {"workers": overview.rows(), "total": total(overview), "statuses": overview.statuses}
    if as_json:
        _print_json({**found, "health": health._asdict()})
    else:
        out.print(health_line(health), view)
    if not health.runs:
        raise typer.Exit(STARTING_OR_WAITING if health.state in {"starting", "waiting"} else 1)


@app.command(epilog="Example: nextclick versions --rollback 3")
def versions(
    rollback: Annotated[int | None, typer.Option(help="Make this version's weights serve again.", min=1)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the worker to do it.", min=1)] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the versions of the model: number, state, when, why, from which one; or go back to one of them.

    Works live: the worker goes on learning from that version's weights, as a new version with a number of its own.
    Histories, counts and offsets stay: no click is lost or learned twice.
    """
    settings = _settings()
    from online.commands.views import versions_view
    from online.worker.connections import open_lists
    from online.worker.rollback_request import ask_rollback

    lists = open_lists(settings)
    if rollback is not None:
        from online.worker.overview import read_overview

        overview = read_overview(lists)
        if overview.many and overview.leader is None:
            raise NothingThereError(
                "no worker leads the group, and only the leader goes back to a version: try again once "
                "`nextclick status` names one"
            )
        done = ask_rollback(lists, rollback, timeout, overview.leader)
        if as_json:
            _print_json(done)
        else:
            print(f"rolled back: version {done['version']} makes the lists now, with the weights of {rollback}")
        return
    report = _overview(lists).model() or {}
    if as_json:
        _print_json(report.get("versions", []))
    else:
        out.print(versions_view(report.get("versions", [])))


@app.command("dead-letters", epilog="Example: nextclick dead-letters --reason malformed-json --limit 3")
def dead_letters(  # noqa: PLR0917 - typer's options
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    topic: Annotated[str | None, typer.Option(help="Only messages of this topic.")] = None,
    since: Annotated[str | None, typer.Option(help="Only later ones: 30min, 2h, 3d, or ISO 8601.")] = None,
    limit: Annotated[int, typer.Option(help="How many of the latest to show.", min=0)] = 10,
    redrive: Annotated[
        bool, typer.Option("--redrive", help="Publish again the messages that can be read now.")
    ] = False,
    with_: Annotated[Path | None, typer.Option("--with", help="Repaired messages, JSON lines; only these.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be published.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also messages that were published again before and failed again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print which messages could not be read, and why; or publish them again.

    Each is published again once, and is marked then. A message that still cannot be read stays as it is.
    A line of the file given by --with: {"topic": "clicks", "partition": 0, "offset": 7, "value": {...}}
    """
    if not redrive and (with_ is not None or dry_run or again):
        raise typer.BadParameter("--with, --dry-run and --again go with --redrive")
    settings = _folder_settings(data_dir, log_only=True)
    from online.commands.dead_letters import run_dead_letters
    from online.commands.embedded_folder import say_folder

    say_folder(settings, "dead-letters")

    run_dead_letters(
        out, settings,
        reason=reason, topic=topic, since=since, limit=limit, as_json=as_json,
        send=redrive, repaired=with_, again=again, dry_run=dry_run,
    )  # fmt: skip


@app.command(epilog="Example: nextclick forget ada-1")
def forget(
    user: Annotated[str, typer.Argument(help="User id.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the worker to do it.", min=1)] = 120,
    count: Annotated[bool, typer.Option("--count/--no-count", help="Count the user's clicks in Kafka.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Forget a user: history, memories, list, dead letters, old checkpoints. Ends with a search of every store.

    Exit status 0 only where nothing is found any more. What the shared model has learned stays, as it says.
    """
    settings = _folder_settings(data_dir, log_only=True)
    from online.commands.embedded_folder import say_folder
    from online.commands.forget import forget as forget_user
    from online.commands.views import proof_view

    say_folder(settings, "forget")
    proof = forget_user(settings, user, timeout_s=timeout, count_clicks=count, on_wait=_say_wait)
    if as_json:
        _print_json(proof.as_dict())
    else:
        out.print(proof_view(proof.as_dict()))
    if not proof.complete:
        raise typer.Exit(1)


def _logs_json() -> bool:
    """Whether the log is one of JSON; its module is loaded once the settings are known."""
    logs = sys.modules.get("online.logs")
    return logs is not None and bool(logs.in_json())


@app.command(epilog="Example: nextclick doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Check settings, Kafka, Redis, the clock, topics, disk and checkpoint, and say how to mend what is wrong.

    It writes nothing anywhere. Exit status 0 if nothing is wrong (there may be warnings, and what could not be
    checked), 1 if something is.
    """
    from online.logs import set_up_logging

    set_up_logging("error", "text")
    from online.commands.doctor import run_doctor

    if not run_doctor(out, {} if data_dir is None else {"data_dir": data_dir}, as_json=as_json):
        raise typer.Exit(1)


def _say_wait(text: str) -> None:
    print(f"nextclick forget: {text}", file=sys.stderr)


def _look_up(settings: "Settings", kind: str, name: str, *, as_json: bool) -> None:
    """Prints what is known of a user or an item."""
    require_extras(kind, "worker")
    from stream.events import id_problem

    if (problem := id_problem(name)) is not None:
        raise typer.BadParameter(problem)
    with _loading():
        from online.commands.lookup import look_up_item, look_up_user
        from online.commands.lookup_views import item_view, user_view

    look_up, view = (look_up_user, user_view) if kind == "user" else (look_up_item, item_view)
    found = look_up(settings, name)
    if as_json:
        _print_json(found)
    else:
        out.print(view(found))


def _overview(lists: "Lists") -> "Overview":
    """What the workers report. Raises NothingThereError if none does."""
    from online.commands.views import ago
    from online.worker.overview import read_overview

    overview = read_overview(lists)
    if not overview.many and overview.alone is None:
        line = f"no worker reports in Redis at {lists.address}: start `nextclick worker`"
        if overview.gone:
            latest = max(overview.gone, key=lambda name: overview.gone[name])
            line += f"; the latest was {latest}, {ago(overview.now_ms - overview.gone[latest])} ago"
        raise NothingThereError(line)
    return overview


def _settings(**overrides: Any) -> "Settings":
    """Settings, and the log set up as they say."""
    from online.config.settings import load_settings
    from online.logs import set_up_logging

    settings = load_settings(**overrides)
    set_up_logging(settings.log_level, settings.log_format)
    return settings


def _folder_settings(data_dir: Path | None, *, log_only: bool = False, **overrides: Any) -> "Settings":
    """The same, of a command that uses the data folder; `log_only`: only where the log in it stands in for Kafka."""
    settings = _settings(**overrides, **({} if data_dir is None else {"data_dir": data_dir}))
    from online.worker.connections import named_broker

    if not log_only or named_broker(settings).log_path is not None:
        from online.worker.start import check_folder

        check_folder(settings)
    return settings


def _stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set; the second one ends the process as it would without us."""
    stop = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _is_expected(error: Exception) -> bool:
    if isinstance(error, (NothingThereError, MissingExtraError)):
        return True
    # A class can only have been raised if its module is loaded.
    loaded = [(sys.modules[module], names) for module, names in _EXPECTED.items() if module in sys.modules]
    return isinstance(error, tuple(getattr(module, name) for module, names in loaded for name in names))


if __name__ == "__main__":
    main()
