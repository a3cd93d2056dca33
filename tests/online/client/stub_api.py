"""An API whose answers a test decides, down to bytes that never come; and one face for both clients."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from online.client import AsyncClient, Client, Limits

Behaviour = Callable[["Handler"], None]
#: Retries at once, and time enough that only what never comes is late.
PATIENT = Limits(backoff_s=0.0, deadline_s=20.0, attempt_s=10.0, click_deadline_s=20.0, click_attempt_s=10.0)
#: What never comes is late soon.
HASTY = Limits(backoff_s=0.0, deadline_s=0.4, attempt_s=0.1, click_deadline_s=0.4, click_attempt_s=0.1)


@dataclass
class Seen:
    """A request that came."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any
    connection: int


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Stub"

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1
            self.connection_number = self.server.connections

    def handle_any(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        body = json.loads(self.rfile.read(length)) if length else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.server.seen.append(Seen(self.command, self.path, headers, body, self.connection_number))
            behaviours = self.server.behaviours
            behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        behaviour(self)

    do_GET = do_POST = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Stub(ThreadingHTTPServer):
    """Each request gets the next behaviour; the last one goes on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.behaviours: list[Behaviour] = [answer(503, {"detail": "no behaviour is set"})]
        self.seen: list[Seen] = []
        self.connections = 0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def will(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)

    def handle_error(self, *_: object) -> None:
        pass  # clients that have gone are what is tested


@contextmanager
def running_stub() -> Iterator[Stub]:
    stub = Stub()
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.over.set()
        stub.shutdown()
        thread.join()
        stub.server_close()


def answer(status: int, body: Any, **headers: str) -> Behaviour:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def behave(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def a_list(*items: str, **fields: Any) -> Behaviour:
    return answer(200, {"items": items, "scores": [0.5] * len(items), "source": "asked", "version": 3, **fields})


def hang(handler: Handler) -> None:
    """Never answers."""
    handler.server.over.wait(60)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """Answers a byte at a time, for as long as the client listens."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def cut(handler: Handler) -> None:
    """Dies in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"items": ["i1", ')
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    """Ends the connection without an answer."""
    handler.close_connection = True


class Awaited:
    """An AsyncClient with the methods of a Client: each call runs in an event loop of its own thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = AsyncClient(*arguments, **options)
        self._core = self._client._core

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self.run(method(*arguments, **options))

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        self.run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


KINDS = {"sync": Client, "async": Awaited}
