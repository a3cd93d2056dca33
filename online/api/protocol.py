"""HTTP/1.1 as uvicorn speaks it with httptools, with limits on how long a client may take, on how much it may send
ahead of a body, and on how many hold a connection.

uvicorn has a limit for idle connections between two requests, and none for a first request, its headers, a body or an
answer that is not read: some hundred silent sockets would shut all other clients out.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from online.api.middleware import HEADERS
from online.api.problems import MEDIA_TYPE, problem, problem_content

REPORT_EVERY_S = 30.0  # that connections were closed
BUSY = "too many connections: ask again later"
SLOW = "the request did not come in time"
LONG = "the first line and the headers are too long"

log = logging.getLogger(__name__)


def bounded_protocol(
    *,
    connections_max: int,
    request_s_max: float,
    header_bytes_max: int,
    refused: Callable[[int], None] = lambda _: None,
) -> type[HttpToolsProtocol]:
    """The protocol of one server.

    Args:
        connections_max: With more, the connection that has been silent for longest makes room; where all are being
            answered, a new one gets 503.
        request_s_max: Seconds in which a request has to come, from its first byte (of a new connection: from its
            beginning) to the end of its body, and in which an answer has to be read.
        header_bytes_max: Of a request's first line and headers; what came with them in one piece is read all the same.
        refused: Called with the status of an answer that no request was handled for.
    """
    # In the order in which they fell silent: those that never sent a whole request, and those between two requests.
    newcomers: dict[HttpToolsProtocol, None] = {}
    idle: dict[HttpToolsProtocol, None] = {}
    closed_report = _ClosedReport()

    class Bounded(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _receiving = _in_head = False  # a request has begun; its headers are not complete
        _head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > connections_max:
                silent = next(iter(newcomers), None) or next(iter(idle), None)
                if isinstance(silent, Bounded):
                    silent._refuse(HTTPStatus.SERVICE_UNAVAILABLE, BUSY)
                else:
                    self.app = _busy
            newcomers[self] = None
            self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_timers()
            newcomers.pop(self, None)
            idle.pop(self, None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if not self._receiving:
                self._expect_request()
            elif self._in_head:
                self._head_bytes += len(data)
            super().data_received(data)
            if self._in_head and self._head_bytes > header_bytes_max and not self.transport.is_closing():
                self._refuse(HTTPStatus.BAD_REQUEST, LONG)
            elif not self._receiving:
                self._has_come()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._receiving = self._in_head = True
            self._head_bytes = 0

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            self._head_bytes = max(self._head_bytes, len(self.url))

        def on_headers_complete(self) -> None:
            self._in_head = False
            length = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if length > header_bytes_max:
                self._refuse(HTTPStatus.BAD_REQUEST, LONG)
            if not self.transport.is_closing():
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self.transport.is_closing():
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._receiving = False
            if not self.transport.is_closing():
                super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and not self._receiving and not self.pipeline:
                idle[self] = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self._unread or self.loop.call_later(request_s_max, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None and not self.transport.is_closing():
                self._unread.cancel()
                self._unread = None

        def send_400_response(self, msg: str) -> None:
            self._refuse(HTTPStatus.BAD_REQUEST, f"{msg[:1].lower()}{msg[1:].rstrip('.')}")

        def _unsupported_upgrade_warning(self) -> None:
            """Says nothing: the request is answered as any other, and a client may ask for what it wants."""

        def _expect_request(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(request_s_max, self._too_slow)

        def _has_come(self) -> None:
            """The whole request is there."""
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            newcomers.pop(self, None)
            if self.cycle is None or not self.cycle.response_complete or self.pipeline:
                idle.pop(self, None)

        def _too_slow(self) -> None:
            self._deadline = None
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, SLOW)

        def _refuse(self, status: HTTPStatus, error: str) -> None:
            """Answers, unless an answer has begun, and closes."""
            newcomers.pop(self, None)
            idle.pop(self, None)
            if self.transport.is_closing():
                return
            refused(status)
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                closed_report.closed()
            cycle = self.cycle
            answering = cycle is not None and cycle.response_started and not cycle.response_complete
            if not answering and not self.pipeline:
                body = problem_content(status, error)
                headers = {b"content-type": MEDIA_TYPE.encode(), b"content-length": str(len(body)).encode()}
                headers |= HEADERS | {b"connection": b"close"}
                lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
                lines += [name + b": " + value for name, value in headers.items()]
                self.transport.write(b"\r\n".join([*lines, b"", body]))
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True  # what it would still say is not for this client
                cycle.message_event.set()
            self.transport.close()  # once what was written is read, for which there is a limit too
            self._unread = self._unread or self.loop.call_later(request_s_max, self.transport.abort)

        def _forget_timers(self) -> None:
            for timer in (self._deadline, self._unread):
                if timer is not None:
                    timer.cancel()
            self._deadline = self._unread = None

    return Bounded


class _ClosedReport:
    """Says now and then how many connections had to make room."""

    def __init__(self) -> None:
        self._count = 0
        self._next_at = 0.0

    def closed(self) -> None:
        self._count += 1
        if (now := time.monotonic()) >= self._next_at:
            log.warning("too many connections: %d idle ones were closed to make room for others", self._count)
            self._count, self._next_at = 0, now + REPORT_EVERY_S


async def _busy(scope: Scope, receive: Receive, send: Send) -> Any:
    """Instead of the API, for a connection too many."""
    response = problem(503, BUSY, {"Connection": "close", "Retry-After": "1"})
    response.raw_headers += HEADERS.items()
    await response(scope, receive, send)
