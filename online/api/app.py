"""The app: routes, errors, and what stands before them."""

import time
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

from online.api.body_schemas import click_schema, impressions_schema
from online.api.clicks import Accepted, Clicks
from online.api.dead_letters import dead_letters_router
from online.api.description import TITLE, add_description
from online.api.errors import ERRORS, ErrorAnswers, NothingLearnedError
from online.api.feedback import FeedbackRoutes
from online.api.history import history_router
from online.api.impressions import AcceptedImpressions, ImpressionLog, PostedImpressions
from online.api.items import items_router
from online.api.late_producer import LateProducer
from online.api.latest_clicks import latest_clicks_router
from online.api.metrics import Requests
from online.api.middleware import AuthMiddleware, MetricsMiddleware
from online.api.problems import problem, problem_responses
from online.api.questions import (
    FilterText,
    IdText,
    ObjectiveText,
    Ranked,
    WrongRequestError,
    check_explore,
    checked_filter,
    checked_id,
    checked_ids,
    checked_objective,
    problem_of,
)
from online.api.ranking import EXCLUDE, WHERE, Ranking
from online.api.request_figures import requests_router
from online.api.static_pages import add_pages
from online.api.stored_lists import NOTHING_LEARNED, PATTERN, K, Recommendation, ShortCut, StoredLists
from online.api.users import users_router
from online.api.versions import V1, UnversionedPaths
from online.config.settings import Settings
from online.worker.health import health_of
from online.worker.overview import read_overview
from online.worker.totals import total
from stream.lists import Lists, ListsError
from stream.source import Producer, UnavailableError


class _Text(Convertor[str]):
    """All of the rest of a path. Starlette's own `path` stops at a line break, and ids may have any character."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _Text())


class Exposition(Response):
    """Metrics in Prometheus' text format."""

    media_type = CONTENT_TYPE_LATEST


class Alive(BaseModel):
    """This process answers."""

    status: Literal["ok"]


class OpenProblem(BaseModel):
    """A problem that lasts. `since`: milliseconds since 1970. `text` is left out where keys are set, and `worker` where
    there is one."""

    model_config = ConfigDict(extra="allow")

    kind: str
    since: int | float | None


class Ready(BaseModel):
    """Lists can be served. `worker` is its state."""

    status: Literal["ready", "degraded"]
    worker: str
    problems: list[OpenProblem]


class Status(BaseModel):
    """What the worker reports. `now`: this machine's time, in milliseconds since 1970; `redis`: `ok`, or what is wrong;
    `worker`: null where it is silent; `workers`: each of several, left out for one."""

    now: int
    redis: str
    worker: dict[str, Any] | None
    workers: list[dict[str, Any]] = []


def create_app(settings: Settings, lists: Lists, producer: Producer | None = None) -> FastAPI:
    """The API over `lists`; where it may write, clicks and feedback go to `producer`."""
    # FastAPI's own pages would load scripts from elsewhere; static_pages.py has one for /docs.
    app = FastAPI(title=TITLE, docs_url=None, redoc_url=None, redirect_slashes=False)
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
    for router in (
        history_router(lists), requests_router(requests), dead_letters_router(settings), latest_clicks_router(lists),
    ):  # fmt: skip
        app.include_router(router)
    _add_health(app, settings, lists, producer)
    _add_status(app, lists)

    @app.get("/metrics", response_class=Exposition)
    def metrics() -> Response:
        """For Prometheus."""
        return Exposition(requests.exposition())

    add_pages(app)
    if producer is not None and writes:
        app.include_router(_writing(settings, producer, requests))
    add_description(app, settings)
    app.add_middleware(ShortCut, stored=stored, errors=errors)
    app.add_middleware(AuthMiddleware, settings=settings)
    app.add_middleware(MetricsMiddleware, requests=requests)
    app.add_middleware(UnversionedPaths)
    return app


def _add_health(app: FastAPI, settings: Settings, lists: Lists, producer: Producer | None) -> None:
    """Adds what machines ask that look after this process."""

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def alive() -> Alive:
        """This process answers, whatever Redis does."""
        return Alive(status="ok")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    def ready() -> Ready:
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
        listed = [OpenProblem.model_validate({name: one.get(name) for name in shown}) for one in health.reasons]
        status: Literal["ready", "degraded"] = "ready" if health.state == "ready" else "degraded"
        return Ready(status=status, worker=health.state, problems=listed)


def _add_status(app: FastAPI, lists: Lists) -> None:
    """Adds the route of the worker's status."""

    @app.get(f"{V1}/status.json", response_model_exclude_unset=True)
    def status() -> Status:
        """What the worker says about itself (null where it is silent), and whether Redis answers. Of a group, what
        all of its workers say as if they were one, and each of them in `workers`."""
        try:
            overview = read_overview(lists)
            status: dict[str, Any] = {"now": _now_ms(), "redis": "ok", "worker": total(overview)}
            return Status(**status | ({"workers": overview.rows()} if overview.many else {}))
        except ListsError as error:
            return Status(now=_now_ms(), redis=str(error), worker=None)


def _writing(settings: Settings, producer: Producer, requests: Requests) -> APIRouter:
    """Returns the routes that publish."""
    router = FeedbackRoutes(settings, producer).router()
    clicks, posted = Clicks(settings, producer), PostedImpressions(settings, producer, requests.impressions)
    routes: tuple[tuple[str, Any, type[BaseModel], dict[str, Any]], ...] = (
        ("/click", clicks.accept, Accepted, click_schema()),
        ("/impressions", posted.accept, AcceptedImpressions, impressions_schema()),
    )
    for path, accept, accepted, schema in routes:
        body = {"content": {"application/json": {"schema": schema}}, "required": True}
        router.post(
            path,
            status_code=202,
            response_model=accepted,
            responses=problem_responses(413, 415, 422),
            openapi_extra={"requestBody": body},
        )(accept)
    return router


def _add_recommend(app: FastAPI, settings: Settings, stored: StoredLists, ranking: Ranking) -> None:
    """Adds the route of users' lists."""

    @app.get(PATTERN, response_model=Recommendation | Ranked, responses=problem_responses(422))
    async def recommend(
        user: IdText,
        *,
        k: Annotated[int, Query(ge=1, le=settings.list_size, description="items wanted")] = K,
        fresh: Annotated[bool, Query(description="whether it is ranked now; the other parameters imply it")] = False,
        where: Annotated[FilterText | None, WHERE] = None,
        exclude: Annotated[list[IdText] | None, EXCLUDE] = None,
        diversity: Annotated[float, Query(ge=0, le=1, description="how much the list is to vary")] = 0.0,
        max_per_tag: Annotated[int | None, Query(ge=1, description="items with the same tag at most")] = None,
        explore: Annotated[float | None, Query(ge=0, le=1, description="share of the slots that are drawn")] = None,
        objective: Annotated[
            ObjectiveText | None, Query(description="what the list is ranked by, as a formula (docs/objectives.md)")
        ] = None,
    ) -> Response | Ranked:
        """The list to show this user now; the popular list for an unknown user. With `fresh`, `where`, `exclude`,
        `diversity`, `max_per_tag`, `explore` or `objective` it is ranked now, and has the shape that `POST /rank`
        answers."""
        checked_id("user", user)
        ruled = where is not None or exclude or diversity or max_per_tag is not None or objective is not None
        if not (fresh or ruled or explore is not None):
            return await stored.answer(user, k)
        rules: dict[str, Any] = {"where": checked_filter(where), "exclude": checked_ids("exclude", exclude or ())}
        rules |= {"diversity": diversity, "max_per_tag": max_per_tag, "explore": explore}
        rules |= {"objective": checked_objective(objective, settings)}
        try:
            check_explore(explore, diversity, max_per_tag)
        except ValueError as error:
            raise WrongRequestError(str(error)) from None
        return await ranking.ranked({"user_id": user, "k": k, **rules})


def _now_ms() -> int:
    return int(time.time() * 1_000)


async def _answered(errors: ErrorAnswers, _: Request, error: Exception) -> Response:
    found = errors.of(error)
    assert found is not None
    return found


async def _not_here(request: Request, error: Exception) -> Response:
    """Of what no route takes; Starlette's own answers have another shape."""
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = "there is nothing at this path: /openapi.json lists what there is"
    elif error.status_code == 405:
        message = f"{request.method} is not for this path: {(error.headers or {}).get('Allow', 'others')} is"
    return problem(error.status_code, message, error.headers)


async def _wrong_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Where it stands (the body, the query) goes without saying.
    return problem(422, problem_of([{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]))
