"""Lists that are ranked on request: `POST /rank`, `GET /recommend?fresh=true`, `/popular`, `/trending`, `/latest`.

Where no worker answers in time, the list that stands in Redis is returned, filtered by the same rules as far as they
can be applied without the worker.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from online.api.asker import Asker, NotAnsweredError
from online.api.clicks import read_body
from online.api.errors import NothingLearnedError
from online.api.metrics import Requests
from online.api.middleware import answer as error_answer
from online.api.questions import (
    BODY_BYTES_MAX,
    Ranked,
    WrongRequestError,
    checked_filter,
    checked_ids,
    rank_request,
    rank_schema,
)
from online.api.stored_lists import NOTHING_LEARNED
from online.config.settings import Settings
from stream.lists import Lists, TopList
from stream.questions import WireAnswer

WHERE = Query(description="which items may be listed, as a filter (docs/filters.md)")
EXCLUDE = Query(description="an item that must not be listed; may be given many times")


class Ranking:
    """Asks the workers, and falls back on the lists in Redis."""

    def __init__(self, settings: Settings, lists: Lists, requests: Requests) -> None:
        self.settings, self.lists, self.requests = settings, lists, requests
        self.asker = Asker(settings, lists)

    async def ranked(self, fields: Mapping[str, Any]) -> Ranked:
        """Returns a list. `fields`: of the question, as `WireQuestion` has them.

        Raises:
            WrongRequestError: the question cannot be answered.
            NothingLearnedError: no worker answers, and no list is stored.
            ListsError: no worker answers, and Redis neither.
        """
        try:
            answer = await self.asker.ask(**fields)
        except NotAnsweredError as error:
            self.requests.asked(error.reason)
            return await run_in_threadpool(self._stored, fields)
        self.requests.asked("asked")
        if answer.refused:
            raise WrongRequestError(str(answer.error))
        return _asked(fields, answer)

    def _stored(self, fields: Mapping[str, Any]) -> Ranked:
        user = fields.get("user_id")
        own = self.lists.read(user) if user is not None and fields.get("kind", "rank") == "rank" else None
        top = own or self.lists.popular()
        if top is None:
            raise NothingLearnedError(NOTHING_LEARNED)
        items, scores, dropped, filtered = filtered_list(top, fields)
        now = time.time()
        return Ranked(
            user_id=user,
            items=items,
            scores=scores,
            source="popular" if own is None else "stored",
            version=top.version,
            at=now if fields.get("at") is None else fields["at"],
            known=own is not None,
            widened=False,
            filtered=filtered,
            dropped=dropped,
            explanations=None,
            age_ms=max(0, int(1_000 * now) - top.written_at),
            request_id=fields.get("request_id"),
        )

    def router(self) -> APIRouter:
        """Returns the routes, but for `/recommend`."""
        router = APIRouter()
        body = {"content": {"application/json": {"schema": rank_schema()}}, "required": True}
        settings, ranked = self.settings, self.ranked

        @router.post("/rank", openapi_extra={"requestBody": body}, response_model=Ranked)
        async def rank(request: Request) -> Ranked | JSONResponse:
            """A list that is ranked now: for a user, or for a visitor by the latest items; of all items, or of given
            candidates. It changes nothing."""
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return error_answer(415, "send the question as Content-Type: application/json", {})
            content = await read_body(request, BODY_BYTES_MAX)
            if content is None:
                return error_answer(413, f"a question has at most {BODY_BYTES_MAX} bytes", {})
            return await ranked(rank_request(content, settings).wire())

        def common(kind: Literal["popular", "trending", "latest"], text: str) -> None:
            async def route(
                k: Annotated[int, Query(ge=1, le=settings.list_size, description="items wanted")] = 10,
                where: Annotated[str | None, WHERE] = None,
                exclude: Annotated[list[str] | None, EXCLUDE] = None,
            ) -> Ranked:
                fields = {"kind": kind, "k": k, "where": checked_filter(where)}
                return await ranked(fields | {"exclude": checked_ids("exclude", exclude or ())})

            route.__name__ = kind
            router.get(f"/{kind}", description=text)(route)

        common("popular", "What has most clicks lately. Without a worker: the popular list in Redis.")
        common(
            "trending",
            "What has more clicks lately than its popularity of longer ago lets expect. Without a worker: the popular "
            "list in Redis.",
        )
        common(
            "latest", "What was clicked for the first time most lately. Without a worker: the popular list in Redis."
        )
        return router


def filtered_list(top: TopList, fields: Mapping[str, Any]) -> tuple[list[str], list[float], dict[str, int], bool]:
    """Applies what can be applied to a stored list without the worker.

    Given candidates come in the list's order, and after them those that it does not hold, as they were given, with
    score 0. A filter cannot be evaluated, so the list is empty then.

    Returns:
        Items, scores, how many items were left out by reason, and whether all rules could be applied.
    """
    if fields.get("where") is not None:
        return [], [], {}, False
    scores = dict(zip(top.items, top.scores, strict=False))
    candidates = fields.get("candidates")
    items = list(scores)
    if candidates is not None:
        given = dict.fromkeys(candidates)
        items = [*(item for item in items if item in given), *(item for item in given if item not in scores)]
    excluded = set(fields.get("exclude") or ())
    kept = [item for item in items if item not in excluded]
    dropped = {"excluded": len(items) - len(kept)} if len(kept) < len(items) else {}
    kept = kept[: fields["k"]]
    filtered = not fields.get("diversity") and fields.get("max_per_tag") is None
    return kept, [scores.get(item, 0.0) for item in kept], dropped, filtered


def _asked(fields: Mapping[str, Any], answer: WireAnswer) -> Ranked:
    return Ranked(
        user_id=fields.get("user_id"),
        items=answer.items,
        scores=answer.scores,
        source="asked",
        version=answer.version,
        at=answer.at,
        known=answer.known,
        widened=answer.widened,
        filtered=True,
        dropped=answer.dropped,
        explanations=answer.explanations,
        age_ms=0,
        request_id=fields.get("request_id"),
    )
