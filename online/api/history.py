"""The course of the workers' figures over the last day: `GET /history.json`."""

import time

from fastapi import APIRouter
from pydantic import BaseModel

from online.api.versions import V1
from online.worker.history import FIELDS, rows_of
from stream.lists import Lists, ListsError, RedisUnavailableError

WORKERS_MAX = 64  # whose rows one answer has


class Minute(BaseModel):
    """Figures of a worker in a minute; null where they were not known.

    Attributes:
        at: its end, in milliseconds since 1970.
        clicks_per_s: clicks learned per second.
        lag: messages that waited on the topic.
        p50, p99: quantiles from click to list, in milliseconds.
        served, followed, popular: hit@10 of the latest 1,000 clicks.
        loss: the mean loss lately, in nats.
        dead_letters: messages that became dead letters in it.
        problems: how many problems were open.
    """

    at: float
    clicks_per_s: float | None
    lag: float | None
    p50: float | None
    p99: float | None
    served: float | None
    followed: float | None
    popular: float | None
    loss: float | None
    dead_letters: float | None
    problems: float | None


class WorkerHistory(BaseModel):
    """The minutes of a worker, oldest first, at most a day. `worker`: its name; null: it is the only one."""

    worker: str | None
    minutes: list[Minute]


class WorkerHistories(BaseModel):
    """`now`: this machine's time, in milliseconds since 1970."""

    now: int
    workers: list[WorkerHistory]


def history_router(lists: Lists) -> APIRouter:
    """Returns the route."""
    router = APIRouter(prefix=V1)

    @router.get("/history.json")
    def history() -> WorkerHistories:
        """Figures of the workers minute by minute, over the last day. It needs no worker."""
        found = {name: rows_of(lists.history(name)) for name in [None, *worker_names(lists)[:WORKERS_MAX]]}
        workers = [
            WorkerHistory(
                worker=name, minutes=[Minute.model_validate(dict(zip(FIELDS, row, strict=True))) for row in rows]
            )
            for name, rows in found.items()
            if rows
        ]
        return WorkerHistories(now=int(1_000 * time.time()), workers=workers)

    return router


def worker_names(lists: Lists) -> list[str]:
    """Returns the workers' names; none for a user of Redis who may read only the values that a worker alone writes."""
    try:
        return list(lists.read_names())
    except RedisUnavailableError:
        raise
    except ListsError:
        return []
