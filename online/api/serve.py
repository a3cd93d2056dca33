"""The HTTP API: lists from Redis, health, metrics, and a page that shows what is going on.

It only reads Redis, so any number of these may run beside the worker. Where it may write (`api_read_only` is false), it
publishes clicks too; a Redis user with read access is enough all the same.
"""

import base64
import contextlib
import hashlib
import logging
import re
import resource
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

from online.api.clicks import Clicks
from online.api.late_producer import LateProducer
from online.api.metrics import Requests
from online.api.middleware import AuthMiddleware, MetricsMiddleware, answer
from online.api.questions import Ranked, WrongRequestError, checked_filter, checked_ids, problem_of
from online.api.ranking import EXCLUDE, NOTHING_LEARNED, WHERE, NothingLearnedError, Ranking
from online.api.server import ACCEPTED_AT_ONCE, HttpServer, ServeError, listen
from online.config.settings import Settings
from online.worker.connections import open_lists
from online.worker.health import health_of
from online.worker.overview import read_overview
from online.worker.totals import total
from stream.events import Click, id_problem
from stream.lists import Lists, ListsError, RedisUnavailableError
from stream.source import Producer, SourceError, UnavailableError

_PAGE = Path(__file__).parent / "dashboard.html"
_OTHER_FILES = 4 * ACCEPTED_AT_ONCE  # open beside the connections

log = logging.getLogger(__name__)


class _Text(Convertor[str]):
    """All of the rest of a path. Starlette's own `path` stops at a line break, and ids may have any character."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _Text())


class Recommendation(BaseModel):
    """A list as it stands in Redis, cut to `k`. Times are milliseconds since 1970; `age_ms` is since it was written."""

    user_id: str
    items: list[str]
    scores: list[float]
    version: int
    offset: str
    clicked_at: int
    written_at: int
    source: str
    age_ms: int


def create_app(settings: Settings, lists: Lists, producer: Producer | None = None) -> FastAPI:
    """The API over `lists`; where it may write, clicks go to `producer`."""
    # The interactive documentation would load scripts from elsewhere; /openapi.json describes the same.
    app = FastAPI(title="nextclick", docs_url=None, redoc_url=None, redirect_slashes=False)
    requests = Requests(lists)
    page = _PAGE.read_text()
    page_policy = _content_security_policy(page)
    app.state.requests = requests
    for error, code, headers in _ERRORS:
        app.add_exception_handler(error, _answered(code, headers))
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(HTTPException, _not_here)

    ranking = app.state.ranking = Ranking(settings, lists, requests)
    _add_recommend(app, settings, lists, ranking)
    app.include_router(ranking.router())

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
        health = health_of(overview)
        if not health.runs and lists.popular() is None:
            raise NothingLearnedError(NOTHING_LEARNED)
        texts = ("text", "worker") if overview.many else ("text",)
        shown = ("kind", "since") if settings.api_keys else ("kind", "since", *texts)
        listed = [{name: one.get(name) for name in shown} for one in health.reasons]
        status = "ready" if health.state == "ready" else "degraded"
        return {"status": status, "worker": health.state, "problems": listed}

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

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def dashboard() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": page_policy})

    if producer is not None and not settings.api_read_only:
        shape = {"content": {"application/json": {"schema": Click.model_json_schema()}}, "required": True}
        clicks = Clicks(settings, producer)
        app.post("/click", status_code=202, openapi_extra={"requestBody": shape})(clicks.accept)
    app.add_middleware(AuthMiddleware, settings=settings)
    app.add_middleware(MetricsMiddleware, requests=requests)
    return app


def _add_recommend(app: FastAPI, settings: Settings, lists: Lists, ranking: Ranking) -> None:
    """Adds the route of users' lists."""

    @app.get("/recommend/{user:text}")
    async def recommend(
        user: str,
        *,
        k: Annotated[int, Query(ge=1, le=settings.list_size, description="items wanted")] = 10,
        fresh: Annotated[bool, Query(description="whether it is ranked now; the other parameters imply it")] = False,
        where: Annotated[str | None, WHERE] = None,
        exclude: Annotated[list[str] | None, EXCLUDE] = None,
        diversity: Annotated[float, Query(ge=0, le=1, description="how much the list is to vary")] = 0.0,
        max_per_tag: Annotated[int | None, Query(ge=1, description="items with the same tag at most")] = None,
    ) -> Recommendation | Ranked:
        """The list to show this user now; the popular list for an unknown user. With `fresh`, `where`, `exclude`,
        `diversity` or `max_per_tag` it is ranked now, and has the shape that `POST /rank` answers."""
        if (problem := id_problem(user)) is not None:
            raise _BadUserError(f"user: {problem}")
        if not (fresh or where is not None or exclude or diversity or max_per_tag is not None):
            return await run_in_threadpool(stored, user, k)
        rules: dict[str, Any] = {"where": checked_filter(where), "exclude": checked_ids("exclude", exclude or ())}
        rules |= {"diversity": diversity, "max_per_tag": max_per_tag}
        return await ranking.ranked({"user_id": user, "k": k, **rules})

    def stored(user: str, k: int) -> Recommendation:
        own = lists.read(user)
        top = own or lists.popular()
        if top is None:
            raise NothingLearnedError(NOTHING_LEARNED)
        app.state.requests.served(own=own is not None)
        fields = top.model_dump() | {"items": top.items[:k], "scores": top.scores[:k]}
        return Recommendation(user_id=user, age_ms=max(0, _now_ms() - top.written_at), **fields)


class Api(HttpServer):
    """The API in a thread of its own, listening from the moment it is made.

    Raises ServeError where the address cannot be listened on.
    """

    def __init__(self, settings: Settings, lists: Lists, producer: Producer | None = None) -> None:
        advice = "stop what listens there, or choose another with NEXTCLICK_API_PORT or --port"
        listener = listen(settings.api_host, settings.api_port, "the API", advice)
        app = create_app(settings, lists, producer)
        self._asker = app.state.ranking.asker
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
        self._asker.close()


def serve(settings: Settings, stop: threading.Event) -> None:
    """The command: serves until `stop` is set, whether or not Redis and the broker are there yet.

    Raises ServeError; ListsError and SourceError where one of them refuses, which waiting does not mend.
    """
    settings = _with_room(settings)
    try:
        lists = open_lists(settings)
    except RedisUnavailableError as error:
        log.warning("%s; until then /readyz and lists are answered with 503", error)
        lists = open_lists(settings, there=False)
    if settings.api_read_only:
        run_api(settings, lists, stop)
        return
    with contextlib.closing(LateProducer(settings)) as producer:
        run_api(settings, lists, stop, producer)


def run_api(settings: Settings, lists: Lists, stop: threading.Event, producer: Producer | None = None) -> None:
    """Serve until `stop` is set. Raises ServeError."""
    api = Api(settings, lists, producer)
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


class _BadUserError(Exception):
    pass


#: What is raised, the status it is answered with, and headers.
_ERRORS: tuple[tuple[type[Exception], int, dict[str, str]], ...] = (
    (NothingLearnedError, 503, {"Retry-After": "5"}),
    (ListsError, 503, {"Retry-After": "1"}),
    (SourceError, 503, {"Retry-After": "1"}),
    (_BadUserError, 422, {}),
    (WrongRequestError, 422, {}),
)


def _answered(status: int, headers: dict[str, str]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(_: Request, error: Exception) -> JSONResponse:
        return answer(status, str(error), headers)

    return handler


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


def _content_security_policy(page: str) -> str:
    """Nothing may run or style but what the page itself contains, and it may talk to this server only."""

    def hashes(tag: str) -> str:
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
