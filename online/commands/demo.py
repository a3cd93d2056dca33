"""The demo: log, Redis, worker and API in one process, a town of shoppers clicking, and what one click changes.

The publisher waits for the lists of what it sent before it sends more. So the rate is what this computer can do, and
the time from click to list is not that of a queue.
"""

import contextlib
import logging
import math
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.live import Live
from rich.text import Text

from online.commands.demo_views import FASHION_CHANGES, Story, course_line, live_line, next_steps, story_view, welcome
from online.edges import open_lists, open_producer
from online.evaluation.town import Town
from online.event_files import EventFile
from online.serve import Api
from online.settings import Settings, load_settings
from online.worker import run_worker
from stream.events import BadEvent, Click, encode, parse_click
from stream.lists import Lists, RedisAwayError, TopList
from stream.source import Producer

T = TypeVar("T")

_BURST = 32  # clicks sent together
_TOWN_CLICKS_MAX = 100_000_000
_CHANGE_AT = 0.5  # share of the time after which fashion changes
_STORY_SEARCH_MAX = 500  # clicks looked through for one whose owner has a list already
_LIST_S_MAX = 5.0  # a list that has not come within this time is not waited for
_POLL_EVERY_S = 0.002
_REFRESH_EVERY_S = 0.5
_PLAIN_LINE_EVERY_S = 5.0
_START_S_MAX = 60.0
_REPORT_S_MAX = 5.0  # the worker reports about every second
_GOODBYE_S_MAX = 30.0


class DemoError(Exception):
    """The demo cannot go on; one line for people."""


class Sent(NamedTuple):
    """A message for the clicks topic, and the click in it where there is one."""

    key: bytes | None
    value: bytes
    click: Click | None


class Stream:
    """The messages of the demo: a town's, or a file's."""

    def __init__(self, *, seed: int, data: EventFile | Path | None) -> None:
        self.town = None if data is not None else Town(seed=seed)
        self.taken = 0
        self._fashion_is_due = False
        file = EventFile(data) if isinstance(data, Path) else data
        self._messages = self._of_town() if file is None else self._of_file(file)

    def take(self, n: int) -> list[Sent]:
        """The next `n`, or what is left of them."""
        messages = list(islice(self._messages, n))
        self.taken += len(messages)
        return messages

    def change_fashion(self) -> None:
        """In a town, fashion changes with what is taken next."""
        self._fashion_is_due = True

    def best_next(self, item_id: str) -> str | None:
        """What most often follows; None where nobody knows."""
        return None if self.town is None else self.town.best_next(item_id, self.taken)

    def _of_town(self) -> Iterator[Sent]:
        assert self.town is not None
        clicks, number = self.town.clicks(_TOWN_CLICKS_MAX), 0
        while (click := next(clicks, None)) is not None:
            yield Sent(click.user_id.encode(), encode(click), click)
            number += 1
            if self._fashion_is_due:
                # The clicks so far are the same in a town whose fashion changes now.
                self._fashion_is_due = False
                self.town = replace(self.town, fashion_change_at=number)
                clicks = islice(self.town.clicks(_TOWN_CLICKS_MAX), number, None)

    def _of_file(self, file: EventFile) -> Iterator[Sent]:
        for message in file.messages():
            click = parse_click(message.value)
            yield Sent(message.key, message.value, None if isinstance(click, BadEvent) else click)


class Publisher:
    """Sends the stream's messages in bursts, and waits for what they change."""

    def __init__(self, stream: Stream, producer: Producer, lists: Lists, topic: str) -> None:
        self._stream = stream
        self._producer = producer
        self._lists = lists
        self._topic = topic

    def run(self, stop: threading.Event) -> None:
        """Burst after burst, until `stop` is set or the stream ends."""
        while not stop.is_set():
            burst = self._stream.take(_BURST)
            if not burst:
                return
            self._send(burst, stop)

    def story(self, stop: threading.Event) -> Story | None:
        """Send one click at a time until somebody clicks who has a list; None where nobody does."""
        for _ in range(_STORY_SEARCH_MAX):
            one = self._stream.take(1)
            if not one or stop.is_set():
                return None
            click = one[0].click
            before = None if click is None else _in_time(self._lists.read, click.user_id)
            started = time.perf_counter()
            after = self._send(one, stop)
            if click is not None and before is not None and after is not None:
                milliseconds = 1_000 * (time.perf_counter() - started)
                return Story(click, before, after, milliseconds, self._stream.best_next(click.item_id))
        return None

    def _send(self, messages: list[Sent], stop: threading.Event) -> TopList | None:
        """Publish; return the list that follows from the last click as soon as it stands in Redis."""
        sent_at_ms = int(1_000 * time.time())
        for sent in messages:
            self._producer.send(self._topic, key=sent.key, value=sent.value)
        self._producer.flush()
        click = next((sent.click for sent in reversed(messages) if sent.click is not None), None)
        deadline = time.monotonic() + _LIST_S_MAX
        while click is not None and not stop.is_set() and time.monotonic() < deadline:
            top = _in_time(self._lists.read, click.user_id)
            if top is not None and top.written_at >= sent_at_ms and top.clicked_at == int(1_000 * click.timestamp):
                return top
            time.sleep(_POLL_EVERY_S)
        return None


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
) -> None:
    """Run for `seconds`, or until `stop` is set or the file `data` ends; show what happens; clean up.

    Raises EventFileError, ServeError, SourceError, ListsError, SettingsError or DemoError.
    """
    stream = Stream(seed=seed, data=data)
    with contextlib.ExitStack() as cleanup:
        folder = data_dir or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nextclick-demo-")))
        settings = _settings(console, folder, seed, port)
        console.print("starting the log, Redis, the worker and the API …", style="dim")
        worker = _start_worker(settings, stop, cleanup)
        lists = open_lists(settings)
        api = cleanup.enter_context(contextlib.closing(Api(settings, lists).start()))
        producer = cleanup.enter_context(contextlib.closing(open_producer(settings)))
        screen = Screen(console, stop, lists, stream)
        publisher = Publisher(stream, producer, lists, settings.clicks_topic)
        console.print(welcome(settings, api.url, data, stream.town))
        screen.show(worker, publisher, seconds)
        if not stop.is_set():
            console.print(story_view(publisher.story(stop)))
            console.print(screen.course())
    worker.check()  # its last checkpoint too
    console.print(next_steps(data_dir), crop=False)


def _settings(console: Console, folder: Path, seed: int, port: int | None) -> Settings:
    """Embedded parts in `folder`, on free ports; fine-tuning often enough to be seen."""
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
    return wanted.model_copy(update={"embedded_redis_port": redis_port, "api_port": api_port})


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

    def __init__(self, console: Console, stop: threading.Event, lists: Lists, stream: Stream) -> None:
        self._console = console
        self._stop = stop
        self._lists = lists
        self._stream = stream
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._said_at = self._started = time.monotonic()
        # Hit rates of the lists as served: now, before fashion changed, and the lowest since.
        self._hit = math.nan
        self._hit_before: float | None = None
        self._hit_lowest = math.inf

    def show(self, worker: Background, publisher: Publisher, seconds: float) -> None:
        """Publish for `seconds`, or until the stream ends or `stop` is set."""
        enough = threading.Event()
        publishing = Background("publisher", partial(publisher.run, enough))
        publishing.start()
        with self._live or contextlib.nullcontext():
            while publishing.is_alive() and not self._stop.wait(_REFRESH_EVERY_S):
                worker.check()
                elapsed_s = time.monotonic() - self._started
                if elapsed_s >= seconds:
                    break
                if self._hit_before is None and elapsed_s >= _CHANGE_AT * seconds and self._stream.town is not None:
                    self._stream.change_fashion()
                    self._hit_before = self._hit
                    self._console.print(FASHION_CHANGES)
                self._say(elapsed_s)
            enough.set()
            publishing.join(_LIST_S_MAX + 1)
        publishing.check()
        elapsed_s, ended_ms = time.monotonic() - self._started, 1_000 * time.time()
        deadline = time.monotonic() + _REPORT_S_MAX
        while time.monotonic() < deadline and not self._stop.is_set():
            status = _in_time(self._lists.status)
            if status is not None and status["written_at"] >= ended_ms:
                break
            self._stop.wait(0.1)
        self._say(elapsed_s, last=True)

    def course(self) -> Text:
        """How the lists came through the change of fashion; nothing where there was none."""
        if self._hit_before is None:
            return Text()
        return course_line(self._hit_before, self._hit_lowest, self._hit)

    def _say(self, elapsed_s: float, *, last: bool = False) -> None:
        status = _in_time(self._lists.status)
        if status is None:
            return
        self._hit = status["recent"]["served"]["hit@10"]
        if self._hit_before is not None:
            self._hit_lowest = min(self._hit_lowest, self._hit)
        line = live_line(elapsed_s, status)
        if self._live is not None and not last:
            self._live.update(line, refresh=True)
        elif last or time.monotonic() - self._said_at >= _PLAIN_LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._console.print(line)


class ConsoleLog(logging.Handler):
    """Shows log records above the live line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(f"  {record.getMessage()}", style="yellow"))


def _in_time(ask: Callable[..., T], *arguments: str) -> T | None:
    """What the embedded Redis answers. None where it does not in time: on a busy machine that thread may wait long."""
    try:
        return ask(*arguments)
    except RedisAwayError:
        return None


def _free_port(wanted: int) -> int:
    """`wanted` where nothing listens there, else one that is free."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as listener:
            return int(listener.getsockname()[1])
    return 0
