"""Lists that are ranked on request: `POST /rank`, `GET /recommend?fresh=true`, `/similar`, `/popular`, `/trending`,
`/latest`.

Where no worker answers in time, the list that stands in Redis is returned, filtered by the same rules
(online/api/stored.py).
"""

import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from online.api.asker import Asker, NotAnsweredError
from online.api.clicks import read_body
from online.api.errors import NothingLearnedError
from online.api.impressions import ImpressionLog, impression_of
from online.api.metrics import Requests
from online.api.problems import problem, problem_responses
from online.api.questions import (
    BODY_BYTES_MAX,
    FilterText,
    IdText,
    Ranked,
    WrongRequestError,
    checked_filter,
    checked_id,
    checked_ids,
    rank_request,
    rank_schema,
)
from online.api.stored import filtered_list
from online.api.stored_lists import NOTHING_LEARNED
from online.api.versions import V1
from online.config.settings import Settings
from stream.lists import Lists, Standing
from stream.questions import By, WireAnswer

WHERE = Query(description="which items may be listed, as a filter (docs/filters.md)")
EXCLUDE = Query(description="an item that must not be listed; may be given many times")


class Ranking:
    """Asks the workers, and falls back on the lists in Redis."""

    def __init__(
        self, settings: Settings, lists: Lists, requests: Requests, impressions: ImpressionLog | None = None
    ) -> None:
        """`impressions`: where lists are logged; None: nowhere."""
        self.settings, self.lists, self.requests, self.impressions = settings, lists, requests, impressions
        self.asker = Asker(settings, lists)

    async def ranked(self, fields: Mapping[str, Any]) -> Ranked:
        """Returns a list.

        Args:
            fields: of the question, as `WireQuestion` has them; an `explore` of None is the setting's.

        Raises:
            WrongRequestError: the question cannot be answered.
            NothingLearnedError: no worker answers, and no list is stored.
            ListsError: no worker answers, and Redis neither.
        """
        fields = self._completed(fields)
        try:
            answer = await self.asker.ask(**fields)
        except NotAnsweredError as error:
            self.requests.asked(error.reason)
            return await run_in_threadpool(self._stored, fields)
        self.requests.asked("asked")
        if answer.refused:
            raise WrongRequestError(str(answer.error))
        self._log(fields, answer)
        return _asked(fields, answer)

    def _completed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The question with how much it explores, and with an id where it is explored or logged."""
        found = {name: value for name, value in fields.items() if name != "explore"}
        if found.get("kind", "rank") != "rank":
            return found
        explore = fields.get("explore")
        if explore is None:  # a list that is to vary is not drawn: its probability would not be known
            varied = found.get("diversity") or found.get("max_per_tag") is not None
            explore = 0.0 if varied else self.settings.explore
        if explore > 0:
            found |= {"explore": explore, "temperature": self.settings.explore_temperature}
        if explore > 0 or self._is_logged(explored=False):
            found["request_id"] = found.get("request_id") or uuid.uuid4().hex
        return found

    def _is_logged(self, *, explored: bool) -> bool:
        return self.impressions is not None and self.impressions.wants(explored=explored)

    def _log(self, fields: Mapping[str, Any], answer: WireAnswer) -> None:
        ranked = fields.get("kind", "rank") == "rank"
        if not ranked or not answer.items or not self._is_logged(explored=answer.propensities is not None):
            return
        assert self.impressions is not None
        self.impressions.put(
            impression_of(
                request_id=fields["request_id"],
                user_id=fields.get("user_id"),
                version=answer.version,
                items=answer.items,
                explore=fields.get("explore", 0.0),
                temperature=fields.get("temperature", 1.0),
                propensities=answer.propensities,
                drawn=answer.drawn,
            )
        )

    def close(self) -> None:
        """Ends the threads, once what waits is logged."""
        self.asker.close()
        if self.impressions is not None:
            self.impressions.close()

    def _stored(self, fields: Mapping[str, Any]) -> Ranked:
        user = fields.get("user_id")
        if user is not None and fields.get("kind", "rank") == "rank":
            standing = self.lists.standing_for(user)
        else:
            standing = Standing(None, self.lists.popular())
        own, top = standing.own, standing.top
        if top is None:
            raise NothingLearnedError(NOTHING_LEARNED)
        left = filtered_list(self.lists, top, fields, self.settings.list_filter, standing.hidden)
        now = time.time()
        return Ranked(
            user_id=user,
            items=left.items,
            scores=left.scores,
            source="popular" if own is None else "stored",
            version=top.version,
            at=now if fields.get("at") is None else fields["at"],
            known=own is not None,
            widened=False,
            filtered=left.filtered,
            dropped=left.dropped,
            explanations=None,
            age_ms=max(0, int(1_000 * now) - top.written_at),
            request_id=fields.get("request_id"),
        )

    def router(self) -> APIRouter:
        """Returns the routes, but for `/recommend`."""
        router = APIRouter(prefix=V1)
        body = {"content": {"application/json": {"schema": rank_schema()}}, "required": True}
        settings, ranked = self.settings, self.ranked

        @router.get("/similar/{item:text}", responses=problem_responses(422))
        async def similar(
            item: IdText,
            by: Annotated[By, Query(description="in which way (docs/explanations.md)")] = "all",
            k: Annotated[int, Query(ge=1, le=settings.list_size, description="items wanted")] = 10,
            where: Annotated[FilterText | None, WHERE] = None,
            exclude: Annotated[list[IdText] | None, EXCLUDE] = None,
        ) -> Ranked:
            """Items like an item, for its page: by what is clicked after it, what is clicked near it, its content, or
            all three. Of an item of which nothing is known there are none, and `known` is false. Without a worker: the
            popular list in Redis."""
            fields: dict[str, Any] = {"kind": "similar", "item_id": checked_id("item", item), "by": by, "k": k}
            fields |= {"where": checked_filter(where), "exclude": checked_ids("exclude", exclude or ())}
            return await ranked(fields)

        @router.post(
            "/rank",
            openapi_extra={"requestBody": body},
            response_model=Ranked,
            responses=problem_responses(413, 415, 422),
        )
        async def rank(request: Request) -> Ranked | Response:
            """A list that is ranked now: for a user, or for a visitor by the latest items; of all items, or of given
            candidates. It changes nothing."""
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return problem(415, "send the question as Content-Type: application/json")
            content = await read_body(request, BODY_BYTES_MAX)
            if content is None:
                return problem(413, f"a question has at most {BODY_BYTES_MAX} bytes")
            return await ranked(rank_request(content, settings).wire())

        def common(kind: Literal["popular", "trending", "latest"], text: str) -> None:
            async def route(
                k: Annotated[int, Query(ge=1, le=settings.list_size, description="items wanted")] = 10,
                where: Annotated[FilterText | None, WHERE] = None,
                exclude: Annotated[list[IdText] | None, EXCLUDE] = None,
            ) -> Ranked:
                fields = {"kind": kind, "k": k, "where": checked_filter(where)}
                return await ranked(fields | {"exclude": checked_ids("exclude", exclude or ())})

            route.__name__ = kind
            router.get(f"/{kind}", description=text, responses=problem_responses(422))(route)

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
        explored=answer.propensities is not None,
        propensities=answer.propensities,
    )
