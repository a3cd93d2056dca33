"""How many requests this API has answered, how fast, and with which errors: `GET /requests.json`."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter
from prometheus_client.core import Metric
from pydantic import BaseModel

from online.api.metrics import REQUEST_SECONDS, REQUESTS, Requests
from online.api.versions import V1


class RouteFigures(BaseModel):
    """Requests of a route, since the API has started.

    Attributes:
        route: its pattern; `none`: what no route takes.
        requests: how many were answered.
        refused: of those, with a status from 400 to 499.
        failed: of those, with a status from 500.
        counts: of answers that took no longer than each of `seconds`, and longer than the one before; the last: longer.
    """

    route: str
    requests: int = 0
    refused: int = 0
    failed: int = 0
    counts: list[int]


class RequestFigures(BaseModel):
    """`now`: this machine's time, in milliseconds since 1970; `seconds`: the bounds of `counts`."""

    now: int
    seconds: list[float]
    routes: list[RouteFigures]


def requests_router(requests: Requests) -> APIRouter:
    """Returns the route."""
    router = APIRouter(prefix=V1)

    @router.get("/requests.json")
    def figures() -> RequestFigures:
        """Requests by route since this API has started, of all its processes: rates and quantiles are in the
        differences of two answers."""
        return figures_of(requests.families(), lambda: int(1_000 * time.time()))

    return router


def figures_of(families: Iterable[Metric], now_ms: Callable[[], int]) -> RequestFigures:
    """Returns the figures that metrics have."""
    routes: dict[str, dict[str, Any]] = {}
    bounds: set[float] = set()
    for family in families:
        for sample in family.samples:
            route = routes.setdefault(
                sample.labels.get("route", ""), {"below": {}, "requests": 0, "refused": 0, "failed": 0}
            )
            if family.name == REQUEST_SECONDS and sample.name.endswith("_bucket"):
                bound = float(sample.labels["le"])
                bounds.add(bound)
                route["below"][bound] = int(sample.value)
            elif family.name == REQUESTS and sample.name.endswith("_total"):
                status = int(sample.labels["status"])
                route["requests"] += int(sample.value)
                route["refused"] += int(sample.value) if 400 <= status < 500 else 0
                route["failed"] += int(sample.value) if status >= 500 else 0
    ordered = sorted(bounds)
    listed = [
        RouteFigures(route=name, counts=_apart(found.pop("below"), ordered), **found)
        for name, found in sorted(routes.items())
        if name
    ]
    return RequestFigures(now=now_ms(), seconds=[bound for bound in ordered if bound != float("inf")], routes=listed)


def _apart(below: dict[float, int], bounds: list[float]) -> list[int]:
    """Counts up to each bound -> counts between the bounds."""
    up_to = [below.get(bound, 0) for bound in bounds]
    return [count - before for count, before in zip(up_to, [0, *up_to], strict=False)]
