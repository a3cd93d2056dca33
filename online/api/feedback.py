"""`POST /hide`, `/unhide` and `/dislike`: what a user says of an item, published to the feedback topic."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from online.api.clicks import Accepted, read_body
from online.api.problems import problem, problem_responses
from online.api.questions import Id, WrongRequestError, problem_of
from online.api.versions import V1
from online.config.settings import Settings
from stream.feedback import Feedback, Kind, encode
from stream.source import Producer

BODY_BYTES_MAX = 8_192
FOR_S_MAX = 1e10  # 317 years; more is for good

Body = TypeVar("Body", bound="AboutItem")


class AboutItem(BaseModel):
    """Which user speaks of which item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id = Field(description="who says so")
    item_id: Id = Field(description="of which item; it need not be known yet")


class HideRequest(AboutItem):
    """The body of `POST /hide`."""

    for_s: float | None = Field(
        None,
        gt=0,
        le=FOR_S_MAX,
        allow_inf_nan=False,
        description="seconds until the item may be shown again; null: never",
    )


class FeedbackRoutes:
    """Publishes feedback through `producer`, which several threads use."""

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self._topic = settings.feedback_topic
        self._producer = producer

    def router(self) -> APIRouter:
        """Returns the routes."""
        router = APIRouter(prefix=V1)
        self._add(router, "hide", HideRequest, "Shows a user an item no more, for good or for some time.")
        self._add(router, "unhide", AboutItem, "Lets a user see an item again that was hidden or disliked.")
        self._add(router, "dislike", AboutItem, "Notes that a user dislikes an item: it is hidden for some months.")
        return router

    def _add(self, router: APIRouter, kind: Kind, body: type[AboutItem], text: str) -> None:
        shape = {"content": {"application/json": {"schema": body.model_json_schema()}}, "required": True}
        effect = "202 once the broker has it; it takes effect with the user's next list."
        router.post(
            f"/{kind}",
            status_code=202,
            name=kind,
            description=f"{text} {effect}",
            response_model=Accepted,
            responses=problem_responses(413, 415, 422),
            openapi_extra={"requestBody": shape},
        )(self._route(kind, body))

    def _route(self, kind: Kind, shape: type[AboutItem]) -> Callable[[Request], Awaitable[Response]]:
        async def accept(request: Request) -> Response:
            # A page of another site can send anything but this type without being allowed to.
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return problem(415, "send the feedback as Content-Type: application/json")
            content = await read_body(request, BODY_BYTES_MAX)
            if content is None:
                return problem(413, f"feedback has at most {BODY_BYTES_MAX} bytes")
            await run_in_threadpool(self._publish, _record(kind, _read(content, shape)))
            return JSONResponse({"status": "accepted"}, status_code=202)

        return accept

    def _publish(self, feedback: Feedback) -> None:
        """Raises SourceError."""
        self._producer.send(self._topic, key=feedback.user_id.encode(), value=encode(feedback))
        self._producer.flush()


def _read(content: bytes, shape: type[Body]) -> Body:
    """Reads a body. Raises WrongRequestError."""
    try:
        return shape.model_validate_json(content)
    except ValidationError as error:
        raise WrongRequestError(problem_of(error.errors())) from None


def _record(kind: Kind, body: AboutItem) -> Feedback:
    now = time.time()
    fields: dict[str, Any] = {"user_id": body.user_id, "item_id": body.item_id, "kind": kind, "timestamp": now}
    if isinstance(body, HideRequest) and body.for_s is not None:
        fields["until"] = now + body.for_s
    return Feedback(**fields)
