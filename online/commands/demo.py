"""The demo: log, Redis, worker and API in one process, a town of shoppers clicking, and what one click changes."""

import contextlib
import logging
import math
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from online.api.serve import Api
from online.commands.demo_stream import Publisher, Stream, unless_unavailable
from online.commands.demo_views import (
    FASHION_CHANGES,
    ClickEffect,
    Running,
    bad_rows_line,
    course_line,
    dashboard_stays,
    effect_view,
    live_line,
    next_steps,
    stopped_line,
    welcome,
)
from online.config.settings import Settings, load_settings
from online.learner.facts.warm import warm_if_cold
from online.worker.connections import open_lists, open_producer, open_reader
from online.worker.main import run_worker
from stream.event_files import EventFile
from stream.lists import Lists
from stream.source import Partition

_CHANGE_AT = 0.5  # share of the time after which fashion changes
_CHANGE_AFTER_S = 60.0  # where the time is not limited
_FIRST_EFFECT_AFTER_S = 4.0
_BAD_ROWS_TOLD = 10  # so many are said at once
_REFRESH_EVERY_S = 0.5
_PLAIN_LINE_EVERY_S = 5.0
_START_S_MAX = 60.0
_REPORT_S_MAX = 5.0  # the worker reports about every second
_LAST_BURST_S_MAX = 30.0  # it waits for nothing once it is to stop
_GOODBYE_S_MAX = 30.0


class DemoError(Exception):
    """The demo cannot go on; one line for the operator."""


class Background(threading.Thread):
    """A thread whose failure is not lost: `check` raises it."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def run_demo(
    console: Console,
    stop: threading.Event,
    *,
    seconds: float = 45.0,
    seed: int = 0,
    data: EventFile | Path | None = None,
    data_dir: Path | None = None,
    port: int | None = None,
    stay: bool = False,
) -> None:
    """Run for `seconds` (0: no limit), or until `stop` is set or the file `data` ends; show what happens; clean up.

    With `stay` the dashboard is served on until `stop` is set.

    Raises EventFileError, ServeError, SourceError, ListsError, SettingsError or DemoError.
    """
    stream = Stream(seed=seed, data=data)
    with contextlib.ExitStack() as cleanup:
        folder = data_dir or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nextclick-demo-")))
        settings, outside = _settings(console, folder, seed, port)
        warm_if_cold(partial(console.print, style="dim", markup=False))
        console.print("starting the log, Redis, the worker and the API …", style="dim")
        worker = _start_worker(settings, stop, cleanup)
        lists = open_lists(settings)
        api = cleanup.enter_context(contextlib.closing(Api(settings, lists).start()))
        producer = cleanup.enter_context(contextlib.closing(open_producer(settings)))
        topic = settings.clicks_topic
        publisher = Publisher(stream, producer, lists, topic, end=_end(settings))
        screen = Screen(console, stop, lists, stream, publisher)
        running = Running(api.url, settings, outside, stream.user_id)
        console.print(welcome(running, stream.who), soft_wrap=True)
        screen.show(worker, seconds)
        if stream.file is not None:
            _say_how_far(console, stream, stream.file.path, None if stop.is_set() else seconds)
        if not stop.is_set():
            screen.show_last_effect()
            console.print(screen.course())
        if stay and not stop.is_set():
            console.print(dashboard_stays(running), soft_wrap=True)
            _stay(worker, api, stop)
    worker.check()  # its last checkpoint too
    console.print(next_steps(outside, data_dir), soft_wrap=True)


def _stay(worker: Background, api: Api, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        worker.check()
        if not api.alive:
            raise DemoError(f"the API at {api.url} stopped unexpectedly")


def _say_how_far(console: Console, stream: Stream, data: Path, seconds: float | None) -> None:
    """Where in the file it stopped, and how many of its rows were no clicks. Raises DemoError where all were."""
    taken, bad = stream.taken, stream.bad.total()
    if bad and bad == taken:
        raise DemoError(f"{data}: none of the {bad:,} rows read is a click; {stream.first_bad}")
    if bad:
        console.print(bad_rows_line(stream.bad, taken, stream.first_bad), soft_wrap=True)
    fraction = stream.fraction  # before the rest of the rows is counted
    if stream.ended or (rows := stream.rows()) == taken:
        console.print(f"the whole file was read: {taken:,} rows")
    else:
        console.print(stopped_line(data, seconds, taken, rows, fraction), soft_wrap=True)


def _settings(console: Console, folder: Path, seed: int, port: int | None) -> tuple[Settings, Settings]:
    """Embedded parts in `folder`, on free ports, fine-tuning often enough to be seen; and the settings outside."""
    outside = load_settings()
    wanted = load_settings(
        kafka_bootstrap_servers=None, redis_url=None, data_dir=folder, seed=seed, finetune_interval_s=15.0
    )
    redis_port = _free_port(wanted.embedded_redis_port)
    # A port that was asked for is not exchanged for another: the API says that it is taken.
    api_port = port if port is not None else _free_port(wanted.api_port)
    for name, default, free in (
        ("Redis", wanted.embedded_redis_port, redis_port),
        ("the API", wanted.api_port, api_port),
    ):
        if port is None and default not in (0, free):
            console.print(f"port {default} is taken, so {name} listens on {free}", style="dim")
    return wanted.model_copy(update={"embedded_redis_port": redis_port, "api_port": api_port}), outside


def _end(settings: Settings) -> int:
    """The offset that the next click gets."""
    with contextlib.closing(open_reader(settings, settings.clicks_topic)) as reader:
        return reader.ends().get(Partition(settings.clicks_topic, 0), 0)


def _start_worker(settings: Settings, stop: threading.Event, cleanup: contextlib.ExitStack) -> Background:
    """Start the worker; it ends, with a last checkpoint, when `cleanup` does."""
    end, ready = threading.Event(), threading.Event()
    worker = Background("worker", partial(run_worker, settings, end, ready=ready))
    worker.start()

    def finish() -> None:
        end.set()
        worker.join(_GOODBYE_S_MAX)

    cleanup.callback(finish)
    deadline = time.monotonic() + _START_S_MAX
    while not ready.wait(0.05) and not stop.is_set():
        worker.check()
        if not worker.is_alive() or time.monotonic() > deadline:
            raise DemoError("the worker did not start")
    return worker


class Screen:
    """Says how it goes: a line that stays up to date, or plain lines now and then where there is no terminal."""

    def __init__(
        self, console: Console, stop: threading.Event, lists: Lists, stream: Stream, publisher: Publisher
    ) -> None:
        self._console = console
        self._stop = stop
        self._lists = lists
        self._stream = stream
        self._publisher = publisher
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._reported_at = self._started = time.monotonic()
        self._shown_effect: ClickEffect | None = None
        self._bad_told = False
        # Hit rates of the lists as served: now, before fashion changed, and the lowest since.
        self._hit = math.nan
        self._hit_before: float | None = None
        self._hit_lowest = math.inf

    def show(self, worker: Background, seconds: float) -> None:
        """Publish for `seconds` (0: no limit), or until the stream ends or `stop` is set."""
        enough = threading.Event()
        publishing = Background("publisher", partial(self._publisher.run, enough))
        publishing.start()
        change_at = _CHANGE_AT * seconds if seconds else _CHANGE_AFTER_S
        with self._live or contextlib.nullcontext():
            while publishing.is_alive() and not self._stop.wait(_REFRESH_EVERY_S):
                worker.check()
                elapsed_s = time.monotonic() - self._started
                if seconds and elapsed_s >= seconds:
                    break
                if self._hit_before is None and elapsed_s >= change_at and self._stream.town is not None:
                    self._stream.change_fashion()
                    self._hit_before = self._hit
                    self._console.print(FASHION_CHANGES)
                if self._shown_effect is None and elapsed_s >= _FIRST_EFFECT_AFTER_S:
                    self._show_effect()
                self._tell_bad_rows()
                self._say(elapsed_s)
            enough.set()
            publishing.join(_LAST_BURST_S_MAX)
        publishing.check()
        elapsed_s, ended_ms = time.monotonic() - self._started, 1_000 * time.time()
        deadline = time.monotonic() + _REPORT_S_MAX
        while time.monotonic() < deadline and not self._stop.is_set():
            status = unless_unavailable(self._lists.status)
            if status is not None and status["written_at"] >= ended_ms:
                break
            self._stop.wait(0.1)
        self._say(elapsed_s, last=True)

    def show_last_effect(self) -> None:
        """The click that changed most, unless that is told already; a line where there is none."""
        self._show_effect()
        if self._shown_effect is None:
            self._console.print("no user with a list has clicked, so there are no lists to compare", style="dim")

    def _show_effect(self) -> None:
        effect = self._publisher.best_effect
        if effect is not None and effect is not self._shown_effect:
            if self._shown_effect is not None:
                self._console.print("\n  The click that has changed most since:", style="dim")
            self._shown_effect = effect
            self._console.print(effect_view(effect), Text())

    def _tell_bad_rows(self) -> None:
        bad = self._stream.bad
        if not self._bad_told and bad.total() >= _BAD_ROWS_TOLD:
            self._bad_told = True
            self._console.print(bad_rows_line(bad, self._stream.taken, self._stream.first_bad), soft_wrap=True)

    def course(self) -> Text:
        """How the lists came through the change of fashion; nothing where there was none."""
        if self._hit_before is None:
            return Text()
        return course_line(self._hit_before, self._hit_lowest, self._hit)

    def _say(self, elapsed_s: float, *, last: bool = False) -> None:
        status = unless_unavailable(self._lists.status)
        if status is None or status.get("state") == "starting":
            return
        self._hit = status["recent"]["served"]["hit@10"]
        if self._hit_before is not None:
            self._hit_lowest = min(self._hit_lowest, self._hit)
        line = live_line(elapsed_s, status)
        if self._live is not None and not last:
            self._live.update(line, refresh=True)
        elif last or time.monotonic() - self._reported_at >= _PLAIN_LINE_EVERY_S:
            self._reported_at = time.monotonic()
            self._console.print(line)


class ConsoleLog(logging.Handler):
    """Shows log records above the live line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(f"  {record.getMessage()}", style="yellow"))


def _free_port(wanted: int) -> int:
    """`wanted` where nothing listens there, else one that is free."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as listener:
            return int(listener.getsockname()[1])
    return 0
