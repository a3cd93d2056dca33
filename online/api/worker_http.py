"""The worker's own HTTP endpoints: /metrics, /healthz and /readyz, in a thread of their own.

They show what the loop's thread has published (online/worker/monitor.py) and touch nothing else, so they answer
whatever Redis and Kafka do, and end with the process.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from online.api.group_metrics import metrics_of_members, of_owned
from online.api.middleware import HEADERS
from online.api.problems import problem
from online.api.process_metrics import of_this_process
from online.api.server import HttpServer, ServeError, listen
from online.api.worker_metrics import status_metrics, up_metric
from online.config.settings import PREFIX, Settings
from online.worker.health import health_of_worker
from online.worker.monitor import Monitor
from online.worker.overview import Overview, of_group

# A scraper, a probe and an operator need a handful; each request takes a few milliseconds of the loop's interpreter.
CONNECTIONS_MAX = 32
REQUEST_S_MAX = 5.0
HEADER_BYTES_MAX = 8_192

log = logging.getLogger(__name__)


class MonitoredWorker(Collector):
    """The metrics of a worker, from what its monitor holds."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def describe(self) -> list[Metric]:
        """Returns nothing: which metrics there are depends on the status."""
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._monitor.status()
        yield up_metric(status)
        yield from status_metrics(of_owned(status))
        if name := of_group(status).get("worker"):
            yield from metrics_of_members(Overview(int(1_000 * time.time()), statuses={str(name): status}))


def create_worker_app(settings: Settings, monitor: Monitor) -> ASGIApp:
    """Returns the app over a worker's monitor."""
    registry = of_this_process()
    registry.register(MonitoredWorker(monitor))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def alive(_: Request) -> Response:
        """200 while the loop turns, or does not have to; 503 where it is stuck."""
        stuck_s = monitor.stuck_s()
        if stuck_s is not None:
            return problem(503, f"the loop has not turned for {stuck_s:.0f} s")
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        """200 if the worker runs, with `ready` or `degraded`; else 503. Reasons have no texts where keys are set, since
        this needs none."""
        health = health_of_worker(monitor.status(), monitor.stuck_s())
        shown = ("kind", "since") if settings.api_keys else ("kind", "since", "text")
        listed = [{name: reason.get(name) for name in shown} for reason in health.reasons]
        return JSONResponse({"status": health.state, "problems": listed}, status_code=200 if health.runs else 503)

    routes = [Route("/metrics", metrics), Route("/healthz", alive), Route("/readyz", ready)]
    return _with_headers(Starlette(routes=routes, exception_handlers={HTTPException: _nothing_here}))


@contextmanager
def worker_http(settings: Settings) -> Iterator[Monitor]:
    """Serves the monitor of a worker until the block ends.

    Raises:
        ServeError: `worker_port` was set, and cannot be listened on. Where the default one cannot, as where a second
            worker runs on the machine, that is a warning, and nothing is served.
    """
    monitor = Monitor()
    try:
        server = _open(settings, monitor)
    except ServeError as error:
        if "worker_port" in settings.model_fields_set:
            raise
        log.warning("%s; this worker has no /metrics, /healthz and /readyz", error)
        server = None
    if server is None:
        yield monitor
        return
    with closing(server.start()):
        log.info("metrics and health of this worker at %s (/metrics, /healthz, /readyz)", server.url)
        yield monitor


def _open(settings: Settings, monitor: Monitor) -> HttpServer | None:
    if not settings.worker_port:
        return None
    advice = f"stop what listens there, or choose another with {PREFIX}WORKER_PORT; 0: none"
    listener = listen(settings.worker_host, settings.worker_port, "the worker", advice)
    return HttpServer(
        "worker-http",
        create_worker_app(settings, monitor),
        listener,
        connections_max=CONNECTIONS_MAX,
        request_s_max=REQUEST_S_MAX,
        header_bytes_max=HEADER_BYTES_MAX,
    )


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Gives each answer the security headers of the API."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS.items()]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return served


async def _nothing_here(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    missing = "there is nothing at this path: /metrics, /healthz and /readyz are here"
    text = missing if error.status_code == 404 else error.detail
    return problem(error.status_code, text, error.headers)
