"""The latest clicks, and where each item stood in its user's list before: `GET /clicks/latest`."""

import time

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError

from online.api.history import WORKERS_MAX, worker_names
from online.api.versions import V1
from stream.lists import Lists


class LatestClick(BaseModel):
    """A click that a worker has learned from.

    Attributes:
        at: when it was made, in milliseconds since 1970.
        user_id: who clicked.
        item_id: on what.
        event_type: as the click has it.
        rank: the item's place in the list that stood before the click, 1 for the first; 0: not among its first
            `ranks`; null: not looked up, as while training is shed.
    """

    at: int
    user_id: str
    item_id: str
    event_type: str
    rank: int | None


class WorkerClicks(BaseModel):
    """What one worker writes."""

    ranks: int
    clicks: list[LatestClick]


class LatestClicks(BaseModel):
    """Clicks of all workers, newest first.

    Attributes:
        now: this machine's time, in milliseconds since 1970.
        shown: whether a worker tells its clicks: none does where none runs, or `NEXTCLICK_CLICKS_SHOWN` is 0.
        ranks: so many first places of each list were looked at.
        clicks: at most as many as one worker tells.
    """

    now: int
    shown: bool
    ranks: int
    clicks: list[LatestClick]


def latest_clicks_router(lists: Lists) -> APIRouter:
    """Returns the route."""
    router = APIRouter(prefix=V1)

    @router.get("/clicks/latest")
    def latest() -> LatestClicks:
        """The latest clicks that were learned from, and how well each was foreseen. It needs the worker's leave
        (`NEXTCLICK_CLICKS_SHOWN`)."""
        found = [one for name in [None, *worker_names(lists)[:WORKERS_MAX]] if (one := _of_worker(lists, name))]
        most = max((len(one.clicks) for one in found), default=0)
        clicks = sorted((click for one in found for click in one.clicks), key=lambda click: click.at, reverse=True)
        ranks = min((one.ranks for one in found), default=0)
        return LatestClicks(now=int(1_000 * time.time()), shown=bool(found), ranks=ranks, clicks=clicks[:most])

    return router


def _of_worker(lists: Lists, name: str | None) -> WorkerClicks | None:
    """None where it tells nothing, or is of another version."""
    try:
        return WorkerClicks.model_validate(lists.clicks(name))
    except ValidationError:
        return None
