"""Impressions: `POST /impressions` takes what a site has shown, and explored lists are logged in the background.

Logging never holds up a request: a list waits in a queue of limited length for a thread that publishes what waits, many
at once. What finds no room there, or is left when the API ends, is not logged, but counted and told in the log.
"""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from online.api.body_schemas import RECORDS_MAX
from online.api.clicks import Accepted, read_body
from online.api.problems import problem
from online.api.questions import BODY_BYTES_MAX
from online.config.settings import Settings
from stream.events import BadEvent, json_object
from stream.impressions import Impression, ShownItem, encode, parse_fields
from stream.source import Producer, UnavailableError

BATCH_MAX = 500  # records that the thread publishes at once
RETRY_S = 1.0  # between attempts while the broker is unavailable
CLOSE_S_MAX = 5.0
TOLD_EVERY_S = 60.0  # of lists that found no room, in the log

Result = Literal["logged", "dropped", "accepted"]

log = logging.getLogger(__name__)


class AcceptedImpressions(Accepted):
    """The broker has all of them: how many."""

    accepted: int


class PostedImpressions:
    """Publishes what sites have shown through `producer`, which several threads use."""

    def __init__(self, settings: Settings, producer: Producer, count: Callable[[Result, int], None]) -> None:
        self._topic, self._limits = settings.impressions_topic, settings.limits
        self._producer, self._count = producer, count

    async def accept(self, request: Request) -> Response:
        """Takes a record of what was shown, or a list of them: 202 once the broker has all, otherwise none is
        published."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return problem(415, "send impressions as Content-Type: application/json")
        body = await read_body(request, BODY_BYTES_MAX)
        if body is None:
            return problem(413, f"impressions have at most {BODY_BYTES_MAX} bytes")
        found = await run_in_threadpool(self._read, body)
        if isinstance(found, BadEvent):
            return problem(422, found.detail, reason=found.reason)
        await run_in_threadpool(self._publish, found)
        self._count("accepted", len(found))
        return JSONResponse({"status": "accepted", "accepted": len(found)}, status_code=202)

    def _read(self, body: bytes) -> list[Impression] | BadEvent:
        try:
            given = from_json(body)
        except ValueError:
            given = None
        if not isinstance(given, list):
            given = json_object(body, BODY_BYTES_MAX)
            return given if isinstance(given, BadEvent) else self._all([given], named=False)
        if not 1 <= len(given) <= RECORDS_MAX:
            return BadEvent("too-many", f"a list of 1 to {RECORDS_MAX} impressions is taken, this one has {len(given)}")
        return self._all(given, named=True)

    def _all(self, given: list[Any], *, named: bool) -> list[Impression] | BadEvent:
        found = []
        for number, one in enumerate(given):
            if isinstance(one, dict):
                impression = parse_fields(_completed(one), now=time.time(), limits=self._limits)
            else:
                impression = BadEvent("not-an-object", "an impression is a JSON object")
            if isinstance(impression, BadEvent):
                return BadEvent(impression.reason, f"[{number}].{impression.detail}") if named else impression
            found.append(impression)
        return found

    def _publish(self, impressions: list[Impression]) -> None:
        """Raises SourceError."""
        for one in impressions:
            self._producer.send(self._topic, key=key_of(one), value=encode(one))
        self._producer.flush()


class ImpressionLog:
    """Logs lists that were ranked on request, from a thread that starts with the first one."""

    def __init__(self, settings: Settings, producer: Producer, count: Callable[[Result, int], None]) -> None:
        """`count`: is told how many lists were logged, and how many were not."""
        self._settings, self._producer, self._count = settings, producer, count
        self._waiting: queue.Queue[Impression] = queue.Queue(settings.impressions_waiting_max)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._told_at = float("-inf")

    def wants(self, *, explored: bool) -> bool:
        """Returns whether such a list is to be logged."""
        return self._settings.log_impressions == "all" or (explored and self._settings.log_impressions == "explored")

    def put(self, impression: Impression) -> None:
        """Logs a list later; returns at once."""
        self._start()
        try:
            self._waiting.put_nowait(impression)
        except queue.Full:
            self._dropped(1, f"{self._settings.impressions_waiting_max:,} wait for the broker already")

    def close(self) -> None:
        """Publishes what waits, if the broker takes it within a few seconds. Does no harm the second time."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S_MAX)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        batch: list[Impression] = []
        away = False
        while batch or not (self._closing.is_set() and self._waiting.empty()):
            batch = batch or self._next()
            if not batch:
                continue
            try:
                for one in batch:
                    self._producer.send(self._settings.impressions_topic, key=key_of(one), value=encode(one))
                self._producer.flush()
            except UnavailableError as error:
                if not away:
                    log.warning("impressions cannot be logged yet, and wait: %s", error)
                away = True
                if self._closing.wait(RETRY_S):
                    self._dropped(len(batch) + self._waiting.qsize(), "the API ends while the broker is away")
                    return
            except Exception as error:  # waiting does not mend it, and this thread must not end unseen
                log.debug("impressions were refused", exc_info=True)
                self._dropped(len(batch), str(error))
                batch = []
            else:
                self._count("logged", len(batch))
                batch, away = [], False

    def _next(self) -> list[Impression]:
        found: list[Impression] = []
        try:
            found.append(self._waiting.get(timeout=0.2))
            while len(found) < BATCH_MAX:
                found.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        return found

    def _dropped(self, number: int, why: str) -> None:
        self._count("dropped", number)
        now = time.monotonic()
        if now - self._told_at > TOLD_EVERY_S:
            self._told_at = now
            log.warning("impressions are lost, see nextclick_impressions_total: %s", why)


def impression_of(
    *,
    request_id: str,
    user_id: str | None,
    version: int,
    items: list[str],
    explore: float,
    temperature: float,
    propensities: list[float] | None,
    drawn: list[bool] | None,
) -> Impression:
    """Returns the record of a list that was just ranked. A list that is not drawn is certain: each propensity is 1."""
    certain = propensities is None
    probabilities = [1.0] * len(items) if propensities is None else propensities
    by_draw = [False] * len(items) if drawn is None else drawn
    return Impression(
        request_id=request_id,
        user_id=user_id,
        timestamp=time.time(),
        policy="explore=0" if certain else policy_name(explore, temperature),
        version=version,
        explored=not certain,
        items=tuple(
            ShownItem(item_id=item, position=position, propensity=probability, explored=was_drawn)
            for position, (item, probability, was_drawn) in enumerate(
                zip(items, probabilities, by_draw, strict=True), start=1
            )
        ),
    )


def policy_name(explore: float, temperature: float) -> str:
    """Returns the name under which lists are logged, such as `explore=0.1,temperature=1`."""
    return f"explore={explore:g},temperature={temperature:g}"


def key_of(impression: Impression) -> bytes | None:
    """Returns the key on the topic: the user's id, as of clicks; None of a visitor without one."""
    return None if impression.user_id is None else impression.user_id.encode()


def _completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """A site's record with what it need not know: who ranked the list, and how likely it was."""
    unknown = {"request_id": uuid.uuid4().hex, "policy": "unknown", "version": 0, "explored": False}
    return unknown | {name: value for name, value in given.items() if value is not None}
