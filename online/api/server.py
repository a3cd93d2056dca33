"""An HTTP server in a thread of its own, with limits on how long a client may take and on how many there may be."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp

from online.api.protocol import bounded_protocol

ACCEPTED_AT_ONCE = 128  # connections, before those too many are closed
_START_S_MAX = 10.0
_GOODBYE_S_MAX = 5  # for answers under way when the server is stopped


#: What listens, and what to do where it cannot.
API = ("the API", "stop what listens there, or choose another with NEXTCLICK_API_PORT or --port")


class ServeError(Exception):
    """A server cannot listen; one line that says where and what to do."""


class HttpServer:
    """Serves an app on a socket that listens already. Call `start`, and `close` at the end."""

    def __init__(
        self,
        name: str,
        app: ASGIApp,
        listener: socket.socket,
        *,
        connections_max: int,
        request_s_max: float,
        header_bytes_max: int,
        refused: Callable[[int], None] = lambda _: None,
        **options: Any,
    ) -> None:
        """Creates a server.

        Args:
            name: of its thread, and in errors.
            app: what it serves.
            listener: see `listen`; closed by `close`.
            connections_max, request_s_max, header_bytes_max, refused: as for `bounded_protocol`.
            options: further ones of uvicorn.
        """
        self._name, self._socket = name, listener
        host, port = listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        protocol = bounded_protocol(
            connections_max=connections_max,
            request_s_max=request_s_max,
            header_bytes_max=header_bytes_max,
            refused=refused,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            backlog=ACCEPTED_AT_ONCE,
            server_header=False,
            lifespan="off",
            http=protocol,
            ws="none",
            timeout_graceful_shutdown=_GOODBYE_S_MAX,
            **options,
        )
        self._server = uvicorn.Server(config)
        # Signals are the main thread's: it decides when everything ends.
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def start(self) -> Self:
        """Starts the thread, and returns once it answers. Raises ServeError."""
        self._thread.start()
        deadline = time.monotonic() + _START_S_MAX
        while self.alive and not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self._server.started:
            raise ServeError(f"the {self._name} at {self.url} did not start: see the log")
        return self

    def close(self) -> None:
        """Answers what was asked, then ends. Does no harm the second time."""
        self._server.should_exit = True
        if self.alive:
            self._thread.join(_GOODBYE_S_MAX + 1)
        self._socket.close()


def listen(host: str, port: int, what: str, advice: str) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        ServeError: the address cannot be listened on; it says which, as `what`, and the `advice`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1_024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ServeError(f"{what} cannot listen on {host} port {port} ({error.strerror or error}): {advice}") from None
    return listener
