"""`POST /click`: one click as JSON, judged as the worker would judge it, published to the topic of clicks."""

from typing import Literal

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from online.api.problems import problem
from online.config.settings import Settings
from stream.events import BadEvent, Click, encode, parse_click
from stream.source import Producer


class Accepted(BaseModel):
    """The broker has it."""

    status: Literal["accepted"]


class Clicks:
    """Publishes through `producer`, which several threads use."""

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self._topic = settings.clicks_topic
        self._limits = settings.limits
        self._producer = producer

    async def accept(self, request: Request) -> Response:
        """202 once the broker has it; otherwise what is wrong with it, or that the broker is away."""
        # A page of another site can send anything but this type without being allowed to.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return problem(415, "send the click as Content-Type: application/json")
        body = await read_body(request, self._limits.message_bytes_max)
        if body is None:
            return problem(413, f"a click has at most {self._limits.message_bytes_max} bytes")
        click = parse_click(body, limits=self._limits)  # a request to forget a user is not accepted here
        if isinstance(click, BadEvent):
            return problem(422, click.detail, reason=click.reason)
        await run_in_threadpool(self._publish, click)
        return JSONResponse({"status": "accepted"}, status_code=202)

    def _publish(self, click: Click) -> None:
        """Raises SourceError."""
        self._producer.send(self._topic, key=click.user_id.encode(), value=encode(click))
        self._producer.flush()


async def read_body(request: Request, bytes_max: int) -> bytes | None:
    """The body; None where it is longer, of which no more is read than that."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > bytes_max:
        return None
    body = bytearray()
    async for piece in request.stream():
        if len(body) + len(piece) > bytes_max:
            return None
        body += piece
    return bytes(body)
