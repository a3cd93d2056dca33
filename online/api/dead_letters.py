"""The latest dead letters, to be looked at: `GET /dead-letters`. They are sent round again by the command alone."""

import threading
from collections import Counter
from contextlib import closing
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from online.api.problems import problem_responses
from online.api.versions import V1
from online.config.settings import Settings
from online.worker.connections import named_broker, open_reader
from stream.dead_letters import DeadLetter, letters_in
from stream.readable import first_bytes, plain
from stream.source import UnavailableError

LETTERS_MAX = 200  # of one answer
LOOKED_AT_MAX = 5_000  # latest records of each partition of the topic
REASON_CHARACTERS_MAX = 100
DETAIL_CHARACTERS_MAX = 500


class Letter(BaseModel):
    """A dead letter. `topic`, `partition` and `offset`: where the message stood; `at`: when it was put aside, in
    milliseconds since 1970; `begins_with`: the message's first characters; `redriven`: whether it was sent again."""

    topic: str
    partition: int
    offset: int
    at: int
    reason: str
    detail: str
    begins_with: str
    redriven: bool


class Letters(BaseModel):
    """Dead letters, of the latest ones alone.

    Attributes:
        looked_at: how many letters were looked at, of all reasons.
        reasons: how many of those there are, by reason.
        latest: those that were asked for, newest first.
    """

    looked_at: int
    reasons: dict[str, int]
    latest: list[Letter]


def dead_letters_router(settings: Settings) -> APIRouter:
    """Returns the route."""
    router = APIRouter(prefix=V1)
    one_at_a_time = threading.Lock()

    @router.get("/dead-letters", responses=problem_responses(422))
    def dead_letters(
        reason: Annotated[
            str | None, Query(min_length=1, max_length=REASON_CHARACTERS_MAX, description="only those put aside for it")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=LETTERS_MAX, description="letters wanted")] = 20,
    ) -> Letters:
        """The latest messages that were put aside, with the reason and how they begin. It asks the broker; `nextclick
        dead-letters` shows all of them, and sends them round again."""
        # Those that wait would hold the threads of other routes.
        if not one_at_a_time.acquire(blocking=False):
            raise UnavailableError("dead letters are being read for another request")
        try:
            return _found(settings, reason, limit)
        finally:
            one_at_a_time.release()

    return router


def _found(settings: Settings, reason: str | None, limit: int) -> Letters:
    """Reads the end of the topic. Raises SourceError."""
    log_path = named_broker(settings).log_path
    if log_path is not None and not log_path.exists():
        return Letters(looked_at=0, reasons={}, latest=[])  # opening the embedded log would make it
    with closing(open_reader(settings, settings.dead_letters_topic)) as reader:
        starts = {partition: max(0, end - LOOKED_AT_MAX) for partition, end in reader.ends().items()}
        letters, marked = letters_in(reader.read(starts))
    wanted = [letter for letter in letters if reason in (None, letter.reason)]
    wanted.sort(key=lambda letter: letter.record.timestamp_ms, reverse=True)
    return Letters(
        looked_at=len(letters),
        reasons=dict(Counter(letter.reason for letter in letters).most_common(LETTERS_MAX)),
        latest=[_shown(letter, redriven=letter.place in marked) for letter in wanted[:limit]],
    )


def _shown(letter: DeadLetter, *, redriven: bool) -> Letter:
    return Letter(
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        at=letter.record.timestamp_ms,
        reason=letter.reason,
        detail=plain(letter.detail)[:DETAIL_CHARACTERS_MAX],
        begins_with=first_bytes(letter.record.value),
        redriven=redriven,
    )
