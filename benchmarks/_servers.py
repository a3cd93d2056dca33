"""Servers of one's own for a benchmark: Apache Kafka behind a proxy, and redis-server."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_READY_S_MAX = 300


def free_port(*, pair: bool = False) -> int:
    """A port of 127.0.0.1 that no process listens on; with `pair`, the next one is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if not pair:
                return port
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


class Server:
    """A server process on `port` that can be killed and started again."""

    def __init__(
        self, command: list[str], port: int, ready: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """`ready` succeeds once it answers. `environment` is added to this process's."""
        self.port = port
        self._command, self._ready, self._log = command, ready, log
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. Raises TimeoutError."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        deadline = time.monotonic() + _READY_S_MAX
        while subprocess.run(self._ready, capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self._command[0]} did not come up: {self._log.read_text()[-2_000:]}")
            time.sleep(0.1)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As kill -9 does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def kafka_server(start: Path, folder: Path, *, inner: int, outer: int) -> Iterator[Server]:
    """A node whose `port` is for those who are not to be disturbed. A proxy at `outer` leads to `inner`; who comes by
    it is told of no other way."""
    port = free_port(pair=True)
    folder.mkdir()
    options = [
        f"listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{inner},CONTROLLER://127.0.0.1:{port + 1}",
        f"advertised.listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{outer}",
        "listener.security.protocol.map=DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name=DIRECT",
        "auto.create.topics.enable=false",
        f"log.message.timestamp.after.max.ms={2**63 - 1}",
    ]
    command = [str(start), str(folder), str(port), *options]
    ready = [str(start.parent / "ready"), str(port), "120"]
    with _running(Server(command, port, ready, folder / "output.log")) as server:
        yield server


@contextmanager
def redis_server(program: str, folder: Path) -> Iterator[Server]:
    """A redis-server that keeps nothing on disk."""
    port = free_port()
    folder.mkdir()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    ready = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
    with _running(Server(command, port, ready, folder / "output.log")) as server:
        yield server
