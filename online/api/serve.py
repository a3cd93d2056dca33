"""The HTTP API: lists from Redis, health, metrics, and pages that show what is going on.

It only reads Redis, so any number of these may run beside the worker. Where it may write (`api_read_only` is false), it
publishes clicks and feedback too; a Redis user with read access is enough all the same.
"""

import contextlib
import logging
import resource
import socket
import threading

from online.api.app import create_app
from online.api.late_producer import LateProducer
from online.api.processes import serve_by_processes
from online.api.server import ACCEPTED_AT_ONCE, API, HttpServer, ServeError, listen
from online.config.sections.api import is_here
from online.config.settings import Settings
from online.worker.connections import open_lists
from stream.lists import Lists, RedisUnavailableError
from stream.source import Producer

_OTHER_FILES = 4 * ACCEPTED_AT_ONCE  # open beside the connections

log = logging.getLogger(__name__)


class Api(HttpServer):
    """The API in a thread of its own, listening from the moment it is made.

    Raises ServeError where the address cannot be listened on.
    """

    def __init__(
        self,
        settings: Settings,
        lists: Lists,
        producer: Producer | None = None,
        *,
        listener: socket.socket | None = None,
    ) -> None:
        """`listener`: that it accepts from; None: one of its own."""
        if listener is None:
            listener = listen(settings.api_host, settings.api_port, *API)
        app = create_app(settings, lists, producer)
        self._ranking = app.state.ranking
        super().__init__(
            "API",
            app,
            listener,
            connections_max=settings.api_connections_max,
            request_s_max=settings.api_request_s_max,
            header_bytes_max=settings.api_header_bytes_max,
            refused=lambda status: app.state.requests.answered("none", status, 0.0),
            proxy_headers=settings.api_trusted_proxies is not None,
            forwarded_allow_ips=settings.api_trusted_proxies,
        )

    def close(self) -> None:
        super().close()
        self._ranking.close()


def serve(settings: Settings, stop: threading.Event, *, descriptor: int | None = None) -> None:
    """The command: serves until `stop` is set, whether or not Redis and the broker are there yet.

    Args:
        settings: all settings.
        stop: ends it.
        descriptor: of the socket that another process holds for this one; None: there is none.

    Raises ServeError; ListsError and SourceError where one of them refuses, which waiting does not mend.
    """
    settings = _with_room(settings)
    listener = None if descriptor is None else socket.socket(fileno=descriptor)
    if listener is None and not settings.api_keys and not is_here(settings.api_host):
        log.warning(
            "the API listens on %s, and needs no key: any client can read every user's list; set "
            "NEXTCLICK_API_KEYS (`nextclick api-key NAME` makes a key)",
            settings.api_host,
        )
    if listener is None and settings.api_workers > 1:
        serve_by_processes(settings, stop)
        return
    try:
        lists = open_lists(settings)
    except RedisUnavailableError as error:
        log.warning("%s; until then /readyz and lists are answered with 503", error)
        lists = open_lists(settings, there=False)
    if settings.api_read_only:
        if settings.explore > 0 and settings.log_impressions != "none":
            log.warning("lists are explored and not logged: NEXTCLICK_API_READ_ONLY=false lets the API log them")
        run_api(settings, lists, stop, listener=listener)
        return
    with contextlib.closing(LateProducer(settings)) as producer:
        run_api(settings, lists, stop, producer, listener=listener)


def run_api(
    settings: Settings,
    lists: Lists,
    stop: threading.Event,
    producer: Producer | None = None,
    *,
    listener: socket.socket | None = None,
) -> None:
    """Serve until `stop` is set. Raises ServeError."""
    api = Api(settings, lists, producer, listener=listener)
    with contextlib.closing(api):
        api.start()
        log.info("API at %s (dashboard at /, lists at /v1/recommend/USER, routes at /docs)", api.url)
        while not stop.wait(0.5):
            if isinstance(producer, LateProducer) and producer.refusal is not None:
                raise producer.refusal
            if not api.alive:
                raise ServeError(f"the API at {api.url} stopped unexpectedly: see the log")
    log.info("API stopped")


def _with_room(settings: Settings) -> Settings:
    """Each connection is an open file to the system, which allows 1,024 in many places unless it is asked for more.
    Where it does not allow as many as are set, there are fewer connections."""
    wanted = settings.api_connections_max + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed >= wanted:
        return settings
    most = max(1, allowed - _OTHER_FILES)
    log.warning("the system allows %d open files (ulimit -n): so %d connections at most", allowed, most)
    return settings.model_copy(update={"api_connections_max": most})
