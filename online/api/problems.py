"""Errors in the one shape that all HTTP answers have: problem details (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
#: Names of RFC 9110 that older versions of Python do not have yet.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}

#: What each status means, for the description of the API.
MEANINGS = {
    400: "The path is not UTF-8, or what came is no HTTP request, or its headers are too long.",
    401: "An API key is missing, or not valid.",
    404: "Nothing is known of what was asked for.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    415: "The body is not `application/json`.",
    422: "A parameter, a field or a filter is not valid: `detail` names it.",
    429: "Too many requests: `Retry-After` has the seconds to wait.",
    500: "An internal error: the API's log has it.",
    503: "It cannot be answered now: nothing has been learned yet, Redis, the broker or the worker does not answer, or "
    "there are too many connections. `Retry-After`, if there, has the seconds to wait.",
}


class Problem(BaseModel):
    """What is wrong, as problem details (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: Literal["about:blank"] = Field(description="it says no more than the status does")
    title: str = Field(description="the name of the status")
    status: int = Field(ge=400, le=599, description="the status of the answer")
    detail: str = Field(description="one line that says what is wrong, by the name of the field")
    error: str = Field(description="the same as `detail`, for clients of version 0.2", deprecated=True)
    reason: str | None = Field(
        None, description="of a click or an impression that is not valid: why, one of a fixed set"
    )


def problem_content(status: int, detail: str, **members: Any) -> bytes:
    """Returns the body of an error.

    Args:
        status: of the answer.
        detail: one line that says what is wrong.
        members: further members ("extension members").
    """
    title = _TITLES.get(status) or HTTPStatus(status).phrase
    found = {"type": "about:blank", "title": title, "status": status, "detail": detail, "error": detail}
    return json.dumps(found | members, ensure_ascii=False).encode("utf-8", "replace")


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> Response:
    """Returns the answer for an error; all errors of the API and of the worker's endpoints come from here."""
    return Response(problem_content(status, detail, **members), status, headers, media_type=MEDIA_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns how the description of the API shows errors of these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": MEANINGS[status], "content": content} for status in statuses}
