"""The HTTP API: lists from Redis, health, metrics, and pages that show what is going on.

It only reads Redis, so any number of these may run beside the worker. Where it may write (`api_read_only` is false), it
publishes clicks and feedback too; a Redis user with read access is enough all the same.
"""

import contextlib
import logging
import resource
import socket
import threading
import time
from functools import partial
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

from online.api.clicks import Clicks
from online.api.errors import ERRORS, ErrorAnswers, NothingLearnedError
from online.api.feedback import FeedbackRoutes
from online.api.impressions import ImpressionLog, PostedImpressions, posted_schema
from online.api.items import items_router
from online.api.late_producer import LateProducer
from online.api.listening import ServeError, listen
from online.api.metrics import Requests
from online.api.middleware import AuthMiddleware, MetricsMiddleware, answer
from online.api.processes import serve_by_processes
from online.api.protocol import bounded_protocol
from online.api.questions import (
    Ranked,
    WrongRequestError,
    check_explore,
    checked_filter,
    checked_id,
    checked_ids,
    problem_of,
)
from online.api.ranking import EXCLUDE, WHERE, Ranking
from online.api.static_pages import add_pages
from online.api.stored_lists import NOTHING_LEARNED, PATTERN, K, Recommendation, ShortCut, StoredLists
from online.api.users import users_router
from online.config.sections.api import is_here
from online.config.settings import Settings
from online.worker.connections import open_lists
from online.worker.overview import read_overview
from online.worker.totals import total
from stream.events import Click
from stream.lists import Lists, ListsError, RedisUnavailableError
from stream.source import Producer, UnavailableError

NO_WORKER = {"kind": "worker", "since": None, "text": "no worker reports: start `nextclick worker`"}
_START_S_MAX = 10.0
_ACCEPTED_AT_ONCE = 128  # connections, before those too many are closed
_OTHER_FILES = 4 * _ACCEPTED_AT_ONCE  # open beside the connections
_GOODBYE_S_MAX = 5  # for answers under way when the API is stopped

log = logging.getLogger(__name__)


class _Text(Convertor[str]):
    """All of the rest of a path. Starlette's own `path` stops at a line break, and ids may have any character."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _Text())


def create_app(settings: Settings, lists: Lists, producer: Producer | None = None) -> FastAPI:
    """The API over `lists`; where it may write, clicks and feedback go to `producer`."""
    # The interactive documentation would load scripts from elsewhere; /openapi.json describes the same.
    app = FastAPI(title="nextclick", docs_url=None, redoc_url=None, redirect_slashes=False)
    requests = Requests(lists)
    app.state.requests = requests
    errors = ErrorAnswers()
    for error, *_ in ERRORS:
        app.add_exception_handler(error, partial(_answered, errors))
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(HTTPException, _not_here)

    writes = producer is not None and not settings.api_read_only
    logged = ImpressionLog(settings, producer, requests.impressions) if producer is not None and writes else None
    ranking = app.state.ranking = Ranking(settings, lists, requests, logged)
    stored = StoredLists(lists, requests, settings.list_size)
    _add_recommend(app, settings, stored, ranking)
    for router in (ranking.router(), items_router(lists), users_router(ranking.asker, requests)):
        app.include_router(router)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """This process answers, whatever Redis does."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    def ready() -> dict[str, Any]:
        """Redis lets us read lists, there is something to serve, and clicks can be taken where they may be. `degraded`,
        still with status 200: something is wrong with the worker. It is listed, without its texts where keys are needed
        elsewhere: this needs none."""
        lists.check()
        if isinstance(producer, LateProducer) and producer.waits_for is not None:
            raise UnavailableError(producer.waits_for)
        overview = read_overview(lists)
        status = overview.model()
        if status is None and lists.popular() is None:
            raise NothingLearnedError(NOTHING_LEARNED)
        problems = [NO_WORKER] if status is None else overview.problems()
        texts = ("text", "worker") if overview.many else ("text",)
        shown = ("kind", "since") if settings.api_keys else ("kind", "since", *texts)
        listed = [{name: one.get(name) for name in shown} for one in problems]
        return {"status": "degraded" if listed else "ready", "problems": listed}

    @app.get("/metrics")
    def metrics() -> Response:
        """For Prometheus."""
        return Response(requests.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/status.json")
    def status() -> dict[str, Any]:
        """What the worker says about itself (null where it is silent), and whether Redis answers. Of a group, what
        all of its workers say as if they were one, and each of them in `workers`."""
        try:
            overview = read_overview(lists)
            status = {"now": _now_ms(), "redis": "ok", "worker": total(overview)}
            return status | ({"workers": overview.rows()} if overview.many else {})
        except ListsError as error:
            return {"now": _now_ms(), "redis": str(error), "worker": None}

    add_pages(app)
    if producer is not None and writes:
        shape = {"content": {"application/json": {"schema": Click.model_json_schema()}}, "required": True}
        clicks = Clicks(settings, producer)
        app.post("/click", status_code=202, openapi_extra={"requestBody": shape})(clicks.accept)
        app.include_router(FeedbackRoutes(settings, producer).router())
        shape = {"content": {"application/json": {"schema": posted_schema()}}, "required": True}
        posted = PostedImpressions(settings, producer, requests.impressions)
        app.post("/impressions", status_code=202, openapi_extra={"requestBody": shape})(posted.accept)
    app.add_middleware(ShortCut, stored=stored, errors=errors)
    app.add_middleware(AuthMiddleware, settings=settings)
    app.add_middleware(MetricsMiddleware, requests=requests)
    return app


def _add_recommend(app: FastAPI, settings: Settings, stored: StoredLists, ranking: Ranking) -> None:
    """Adds the route of users' lists."""

    @app.get(PATTERN, response_model=Recommendation | Ranked)
    async def recommend(
        user: str,
        *,
        k: Annotated[int, Query(ge=1, le=settings.list_size, description="items wanted")] = K,
        fresh: Annotated[bool, Query(description="whether it is ranked now; the other parameters imply it")] = False,
        where: Annotated[str | None, WHERE] = None,
        exclude: Annotated[list[str] | None, EXCLUDE] = None,
        diversity: Annotated[float, Query(ge=0, le=1, description="how much the list is to vary")] = 0.0,
        max_per_tag: Annotated[int | None, Query(ge=1, description="items with the same tag at most")] = None,
        explore: Annotated[float | None, Query(ge=0, le=1, description="share of the slots that are drawn")] = None,
    ) -> Response | Ranked:
        """The list to show this user now; the popular list for an unknown user. With `fresh`, `where`, `exclude`,
        `diversity`, `max_per_tag` or `explore` it is ranked now, and has the shape that `POST /rank` answers."""
        checked_id("user", user)
        ruled = where is not None or exclude or diversity or max_per_tag is not None
        if not (fresh or ruled or explore is not None):
            return await stored.answer(user, k)
        rules: dict[str, Any] = {"where": checked_filter(where), "exclude": checked_ids("exclude", exclude or ())}
        rules |= {"diversity": diversity, "max_per_tag": max_per_tag, "explore": explore}
        try:
            check_explore(explore, diversity, max_per_tag)
        except ValueError as error:
            raise WrongRequestError(str(error)) from None
        return await ranking.ranked({"user_id": user, "k": k, **rules})


class Api:
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
        self._socket = listen(settings.api_host, settings.api_port) if listener is None else listener
        host, port = self._socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        app = create_app(settings, lists, producer)
        self._ranking = app.state.ranking
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            backlog=_ACCEPTED_AT_ONCE,
            server_header=False,
            lifespan="off",
            http=bounded_protocol(
                connections_max=settings.api_connections_max,
                request_s_max=settings.api_request_s_max,
                header_bytes_max=settings.api_header_bytes_max,
                refused=lambda status: app.state.requests.answered("none", status, 0.0),
            ),
            ws="none",
            proxy_headers=settings.api_trusted_proxies is not None,
            forwarded_allow_ips=settings.api_trusted_proxies,
            timeout_graceful_shutdown=_GOODBYE_S_MAX,
        )
        self._server = uvicorn.Server(config)
        # Signals are the main thread's: it decides when everything ends.
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="api", daemon=True
        )

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> "Api":
        self._thread.start()
        deadline = time.monotonic() + _START_S_MAX
        while self.alive and not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self._server.started:
            raise ServeError(f"the API at {self.url} did not start: see the log")
        return self

    def close(self) -> None:
        """Answer what was asked, then end. Does no harm the second time."""
        self._server.should_exit = True
        if self.alive:
            self._thread.join(_GOODBYE_S_MAX + 1)
        self._ranking.close()
        self._socket.close()


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
            "the API listens on %s, and needs no key: whoever reaches it reads everybody's lists; set "
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
        log.info("API at %s (dashboard at /, lists at /recommend/USER)", api.url)
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


def _now_ms() -> int:
    return int(time.time() * 1_000)


async def _answered(errors: ErrorAnswers, _: Request, error: Exception) -> Response:
    found = errors.of(error)
    assert found is not None
    return found


async def _not_here(request: Request, error: Exception) -> JSONResponse:
    """Of what no route takes; Starlette's own answers have another shape."""
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = "there is nothing at this path: /openapi.json lists what there is"
    elif error.status_code == 405:
        message = f"{request.method} is not for this path: {(error.headers or {}).get('Allow', 'others')} is"
    return answer(error.status_code, message, error.headers or {})


async def _wrong_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Where it stands (the body, the query) goes without saying.
    return answer(422, problem_of([{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]), {})
