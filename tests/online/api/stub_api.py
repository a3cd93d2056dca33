"""A small API that answers the dashboard's pages as the real one does, with answers that a test may change."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from benchmarks._servers import free_port
from online.api.problems import problem
from online.api.static_pages import add_pages
from online.api.versions import V1

EVIL = "<img src=x onerror=\"document.title='owned'\">"  # as an id, it must stay text
NOW = time.time()
HISTORY = [("i9", 30), (EVIL, 90), ("i7", 3_600), ("i9", 86_400)]  # item, seconds ago


LETTERS = [
    {
        "topic": "clicks", "partition": 0, "offset": offset, "at": 1e3 * (NOW - 60), "reason": reason,
        "detail": f"it is {EVIL}", "begins_with": "{" + EVIL, "redriven": False,
    }
    for offset, reason in ((8, "malformed-json"), (5, "wrong-type"))
]  # fmt: skip


CLICKS = [
    {"at": int(1e3 * (NOW - ago)), "user_id": user, "item_id": item, "event_type": kind, "rank": rank}
    for ago, user, item, kind, rank in (
        (1, "ada", "i9", "click", 3), (2, EVIL, EVIL, EVIL, 0), (90_000, "b" * 256, "i7", "play", None),
    )
]  # fmt: skip


def minutes(number: int) -> list[dict[str, Any]]:
    """A worker's figures of the latest minutes."""
    figures = {"clicks_per_s": 400.0, "lag": 2, "p50": 20.0, "p99": 90.0, "served": 0.5, "followed": 0.4}
    figures |= {"popular": 0.1, "loss": 3.0, "dead_letters": 0, "problems": 0}
    now = time.time()  # not that of the import: a run of all tests takes minutes
    return [{"at": 1e3 * (now - 60 * n), **figures} for n in range(number, 0, -1)]


def status(**changed: Any) -> dict[str, Any]:
    """Of a worker that does well."""
    hits = {name: {"hit@10": share} for name, share in (("served", 0.6), ("followed", 0.5), ("popular", 0.1))}
    return {
        "state": "running", "started_at": 1e3 * (NOW - 90), "version": 3, "learned": 12_345, "users": 300,
        "items": 320, "lag": 0, "lag_s": 0.0, "behind": False, "shedding": False, "events_per_s": 432.1,
        "click_to_list_ms": {"p50": 21.5, "p99": 88.0}, "scored": 900, "scores": hits, "recent": hits, "loss": 3.2,
        "alarms": 0, "improvements": 0, "finetune": {"state": "idle", "done": 2}, "checkpoint": None,
        "unsaved_since": None, "flagged": {}, "dead_letters": {}, "unreadable_share_of": {"clicks": 0.0},
        "abuse_share": 0.0, "refreshes": 7, "redis": "ok", "waits_for": [], "problems": [], "versions": [],
        "notices": [], "memory_mb_max": 321.0,
    } | changed  # fmt: skip


def explanation(item: str, moments: list[dict[str, Any]], *reasons: str) -> dict[str, Any]:
    return {
        "item_id": item, "title": None, "moments": moments,
        "reasons": [{"group": "followed", "contribution": 1.0, "text": text} for text in reasons],
    }  # fmt: skip


def pointing(whose: str, ago_s: float, after: str, weight: float) -> dict[str, Any]:
    return {"whose": whose, "at": NOW - ago_s, "after": after, "weight": weight, "contribution": weight / 2}


@dataclass
class Stub:
    """What the API answers; `fails` has statuses of paths' first parts."""

    url: str = ""
    worker: dict[str, Any] | None = field(default_factory=status)
    reported_s_ago: float = 0.0  # how old the worker's status is
    redis: str = "ok"
    ready: tuple[int, dict[str, Any]] = (200, {"status": "ready", "problems": []})
    fails: dict[str, int] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=lambda: {"i9": "a kettle", "i7": "<b>tea</b>"})
    explained: bool = True
    hidden: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)  # of workers
    tells_clicks: bool = True
    clicks: list[dict[str, Any]] = field(default_factory=lambda: list(CLICKS))
    answers: int = 0
    asked: list[str] = field(default_factory=list)  # paths with their queries

    def listed(self) -> list[str]:
        return [item for item in ("i9", "i7", EVIL) if item not in self.hidden]

    def ranked(self, user: str | None) -> dict[str, Any]:
        explanations = [
            explanation("i9", [pointing("own", 30, "i7", 0.8), pointing("world", 9e6, "i7", 0.2)], "often after “tea”"),
            explanation("i7", [pointing("world", 9e6, "gone", 0.4)], f"suits {EVIL}"),
            explanation(EVIL, []),
        ]  # fmt: skip
        items = self.listed()
        return {
            "user_id": user, "items": items, "scores": [0.5, 0.3, 0.1][: len(items)], "version": 3, "at": NOW,
            "source": "asked" if self.explained else "stored", "known": True, "age_ms": 0,
            "explanations": [one for one in explanations if one["item_id"] in items] if self.explained else None,
        }  # fmt: skip

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def fail(request: Request, go_on: Any) -> Any:
            self.asked.append(str(request.url).removeprefix(self.url).removeprefix(V1))
            first = request.url.path.removeprefix(V1).split("/")[1]
            if (code := self.fails.get(first)) is not None:
                return problem(code, f"there is no {first} for you")
            return await go_on(request)

        @app.get(f"{V1}/status.json")
        def _() -> Any:
            written_at = 1e3 * (time.time() - self.reported_s_ago)
            worker = None if self.worker is None else {"written_at": written_at, **self.worker}
            return {"now": 1e3 * time.time(), "redis": self.redis, "worker": worker}

        @app.get(f"{V1}/history.json")
        def _() -> Any:
            return {"now": 1e3 * time.time(), "workers": self.history}

        @app.get(f"{V1}/requests.json")
        def _() -> Any:
            self.answers += 10
            routes = [
                {
                    "route": "/v1/rank",
                    "requests": self.answers,
                    "refused": 3,
                    "failed": 1,
                    "counts": [0, self.answers, 0],
                },
                {"route": "/v1/status.json", "requests": 9_999, "refused": 0, "failed": 0, "counts": [9_999, 0, 0]},
            ]
            return {"now": 1e3 * time.time(), "seconds": [0.01, 0.02], "routes": routes}

        @app.get(f"{V1}/dead-letters")
        def _(limit: int, reason: str | None = None) -> Any:
            letters = [letter for letter in LETTERS if reason in (None, letter["reason"])]
            return {"looked_at": 2, "reasons": {"malformed-json": 1, "wrong-type": 1}, "latest": letters[:limit]}

        @app.get(f"{V1}/clicks/latest")
        def _() -> Any:
            return {"now": 1e3 * time.time(), "shown": self.tells_clicks, "ranks": 10, "clicks": self.clicks}

        @app.get("/readyz")
        def _() -> Any:
            return JSONResponse(self.ready[1], self.ready[0])

        @app.get(f"{V1}/recommend/{{user}}")
        def _(user: str) -> Any:
            return self.ranked(user) | {"source": "personal", "written_at": 5, "age_ms": 40}

        @app.post(f"{V1}/rank")
        async def _(request: Request) -> Any:
            body = await request.json()
            assert body["explain"] is True
            return self.ranked(body["user_id"])

        @app.get(f"{V1}/users/{{user:path}}")
        def _(user: str) -> Any:
            history = [{"item_id": i, "timestamp": NOW - ago, "event_type": "click"} for i, ago in HISTORY]
            hidden = [{"item_id": item, "until": None} for item in self.hidden]
            return {"user_id": user, "known": True, "clicks": 40, "history": history, "hidden": hidden}

        @app.get(f"{V1}/titles")
        def _(request: Request) -> Any:
            asked = request.query_params.getlist("id")
            return {"titles": {one: self.titles[one] for one in asked if one in self.titles}}

        @app.get(f"{V1}/similar/{{item:path}}")
        def _(item: str, by: str) -> Any:
            if by == "near":
                return {**self.ranked(item), "items": [], "scores": []}
            return self.ranked(None) | {"source": "popular" if by == "content" else "asked"}

        @app.get(f"{V1}/items/{{item:path}}/lists")
        def _(item: str) -> Any:
            users = [{"user_id": "ada", "rank": 2}, {"user_id": EVIL, "rank": 4}]
            return {"item_id": item, "looked_at": 2_000, "lists": 31, "users": users}

        @app.get(f"{V1}/items/{{item:path}}")
        def _(item: str) -> Any:
            attributes = {"price": 12.5, "brand": EVIL, "new": True}
            title = self.titles.get(item)
            return {
                "item_id": item, "title": title, "tags": ["kitchen", EVIL], "attributes": attributes, "available": False
            }  # fmt: skip

        @app.post(f"{V1}/hide", status_code=202)
        async def _(request: Request) -> Any:
            body = await request.json()
            assert body == {"user_id": "ada", "item_id": body["item_id"], "for_s": None}
            self.hidden.append(body["item_id"])
            return {"accepted": 1}

        @app.post(f"{V1}/unhide", status_code=202)
        async def _(request: Request) -> Any:
            self.hidden.remove((await request.json())["item_id"])
            return {"accepted": 1}

        add_pages(app)
        return app


@contextmanager
def stub_api(**answers: Any) -> Iterator[Stub]:
    port = free_port()
    stub = Stub(url=f"http://127.0.0.1:{port}", **answers)
    server = uvicorn.Server(uvicorn.Config(stub.app(), port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield stub
    finally:
        server.should_exit = True
        thread.join()
