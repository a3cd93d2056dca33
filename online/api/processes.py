"""`nextclick serve --workers N`: N processes that answer at one address, each on a core of its own.

This process holds the socket and starts the others, which accept from it. One that ends is started again. Their metrics
are added up by prometheus_client through files in a folder of this run.
"""

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from online.api.metrics import METRICS_FOLDER
from online.api.server import API, ServeError, listen
from online.config.settings import Settings

AGAIN_S = 1.0  # after one has ended
SOON_S = 10.0  # one that ends before that has not served
SOON_ENDED_MAX = 3  # one after the other, then it is given up
GOODBYE_S_MAX = 10.0
LOOK_S = 0.2

log = logging.getLogger(__name__)


class Processes:
    """The processes of one `serve`."""

    def __init__(self, settings: Settings, folder: Path, listener: socket.socket) -> None:
        """`folder`: for metrics."""
        self._count = settings.api_workers
        self._folder, self._listener = folder, listener
        self._running: list[tuple[subprocess.Popen[bytes], float]] = []
        self._soon_ended = 0

    def start(self) -> None:
        self._running = [self._start_one() for _ in range(self._count)]

    def _start_one(self) -> tuple[subprocess.Popen[bytes], float]:
        # Options that were given go the same way; `--socket` wins over the number of processes.
        command = [sys.executable, "-m", "online", *sys.argv[1:], "--socket", str(self._listener.fileno())]
        environment = os.environ | {METRICS_FOLDER: str(self._folder)}
        return subprocess.Popen(command, env=environment, pass_fds=[self._listener.fileno()]), time.monotonic()

    def look(self) -> None:
        """Starts those again that have ended. Raises ServeError where they end as soon as they begin."""
        for place, (process, began) in enumerate(self._running):
            if (code := process.poll()) is None:
                continue
            self._soon_ended = self._soon_ended + 1 if time.monotonic() - began < SOON_S else 0
            if self._soon_ended >= SOON_ENDED_MAX:
                raise ServeError(f"a process of the API ended with {code} again and again: see the log above")
            log.warning("process %d of the API ended with %d, and is started again", process.pid, code)
            time.sleep(AGAIN_S)
            self._running[place] = self._start_one()

    def close(self) -> None:
        """Lets all of them answer what was asked, and end."""
        for process, _ in self._running:
            process.terminate()
        until = time.monotonic() + GOODBYE_S_MAX
        for process, _ in self._running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve_by_processes(settings: Settings, stop: threading.Event) -> None:
    """Serves until `stop` is set. Raises ServeError."""
    with _folder() as folder, contextlib.closing(listen(settings.api_host, settings.api_port, *API)) as listener:
        processes = Processes(settings, folder, listener)
        with contextlib.closing(processes):
            processes.start()
            log.info("%d processes of the API answer on port %d", settings.api_workers, listener.getsockname()[1])
            while not stop.wait(LOOK_S):
                processes.look()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nextclick-metrics-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
