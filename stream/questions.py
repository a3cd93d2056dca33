"""Questions to a worker through Redis: what to rank now, and for whom. And their answers.

| key | value | lifetime |
| --- | --- | --- |
| `nextclick:questions` | list of `WireQuestion`, oldest first, to the only worker | a second after the latest |
| `nextclick:questions:{name}` | the same, to the worker of that name | likewise |
| `nextclick:answers:{asker}` | list of `WireAnswer` to one process that asks | a minute after the latest |

A question is one RPUSH, an answer is another one; every command has one key, so that a cluster takes it. The
process that asks waits for at most a set time, so a queue that no worker reads holds nothing that is still wanted.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stream.redis_values import RedisValues

QUESTIONS_KEY = "nextclick:questions"
ANSWERS_KEY = "nextclick:answers"
CANDIDATES_MAX = 1_000  # of one question
EXCLUDED_MAX = 1_000
RECENT_MAX = 256
_QUESTIONS_TTL_MS, _ANSWERS_TTL_MS = 1_000, 60_000
_MASK = 0xFFFFFFFF

Wire = TypeVar("Wire", bound=BaseModel)
Kind = Literal["rank", "popular", "trending", "latest", "similar", "user", "explain"]
By = Literal["follows", "near", "content", "all"]  # ways in which items are alike
Finite = Annotated[float, Field(allow_inf_nan=False)]
Ids = Annotated[list[str], Field(max_length=CANDIDATES_MAX)]


class WireQuestion(BaseModel):
    """A question as it is sent.

    Attributes:
        id: which of the asker's questions it is.
        asker: the process that waits for the answer.
        asked_at: seconds since 1970, by the asker's clock.
        timeout_ms: after so long the asker waits no more.
        kind: `rank`: a list for a user or a visitor; `popular`, `trending`, `latest`: lists that are the same for
            everybody; `similar`: items that are like `item_id`; `user`: what is held of a user; `explain`: why
            `item_id` stands in the user's list, or would; None: why the list's items do.
        by: of `similar`: in which way.
        recent: latest clicks, oldest first: item, and seconds since 1970 or None.
        at: the moment of viewing, in seconds since 1970; None: now.
        where: a filter (docs/filters.md).
        objective: a formula that the list is ranked by (docs/objectives.md); None: the one that is set.
        explore: expected share of the slots that are drawn.
        temperature: of the draw.
        The rest: as `POST /rank` takes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: int
    asker: str
    asked_at: Finite
    timeout_ms: Annotated[int, Field(gt=0)]
    kind: Kind = "rank"
    user_id: str | None = None
    item_id: str | None = None
    by: By = "all"
    recent: Annotated[list[tuple[str, Finite | None]], Field(max_length=RECENT_MAX)] = []
    candidates: Ids | None = None
    at: Finite | None = None
    k: Annotated[int, Field(ge=1, le=CANDIDATES_MAX)] = 10
    exclude: Annotated[list[str], Field(max_length=EXCLUDED_MAX)] = []
    where: str | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_per_tag: Annotated[int, Field(ge=1)] | None = None
    explain: bool = False
    objective: str | None = None
    explore: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    request_id: str | None = None

    def is_late(self, now: float) -> bool:
        """Returns whether the asker waits no more at `now`, in seconds since 1970."""
        return 1_000 * (now - self.asked_at) > self.timeout_ms


class WireAnswer(BaseModel):
    """An answer as it is sent; one with an `error` has no list.

    Attributes:
        id: of the question.
        error: one line that says why there is no list.
        refused: whether the question is to blame, and not the worker.
        at: the moment of viewing that the list is for, in seconds since 1970.
        user: what is held of a user, where that was asked for.
        propensities: probability of each item at its slot, given those above; None: no slot could be drawn.
        drawn: which of the items were drawn.
        The rest: as `POST /rank` answers it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    error: str | None = None
    refused: bool = False
    items: list[str] = []
    scores: list[float] = []
    version: int = 0
    at: float = 0.0
    known: bool = False
    widened: bool = False
    dropped: dict[str, int] = {}
    explanations: list[Any] | None = None
    user: dict[str, Any] | None = None
    propensities: list[float] | None = None
    drawn: list[bool] | None = None


class QuestionQueue(RedisValues):
    """Both ends of the queues. All methods raise ListsError when Redis does not answer or refuses."""

    def __init__(self, client: redis.Redis, worker: str | None = None) -> None:
        """`worker`: whose questions are taken; None: the only worker's."""
        super().__init__(client)
        self.worker = worker

    # The asker

    def put(self, questions: Sequence[tuple[str | None, WireQuestion]], waiting_max: int) -> list[bool]:
        """Puts questions to workers (None: the only one), all in one round trip.

        Returns:
            Of each whether it waits; those that found `waiting_max` others in their queue are removed again.
        """
        keys = [questions_key(worker) for worker, _ in questions]
        values = [question.model_dump_json(exclude_defaults=True).encode() for _, question in questions]
        with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
            for key, value in zip(keys, values, strict=True):
                pipeline.rpush(key, value)
            used = list(dict.fromkeys(keys))
            for key in used:
                pipeline.pexpire(key, _QUESTIONS_TTL_MS)
            lengths = pipeline.execute()[: len(keys)]
        waits = [int(length) <= waiting_max for length in lengths]
        if not all(waits):
            with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
                for key, value, taken in zip(keys, values, waits, strict=True):
                    if not taken:
                        pipeline.lrem(key, -1, value)  # type: ignore[arg-type]
                pipeline.execute()
        return waits

    def answers(self, asker: str, wait_s: float) -> list[WireAnswer]:
        """Waits for answers to an asker, at most `wait_s` seconds. What is no answer is left out."""
        found = self._take(f"{ANSWERS_KEY}:{asker}", wait_s)
        return [answer for value in found if (answer := _read(WireAnswer, value)) is not None]

    # The worker

    def take(self, wait_s: float) -> list[WireQuestion | None]:
        """Waits for questions to this worker, at most `wait_s` seconds -> all that wait; None for what is none."""
        return [_read(WireQuestion, value) for value in self._take(questions_key(self.worker), wait_s)]

    def answer(self, answers: Sequence[tuple[str, WireAnswer]]) -> None:
        """Sends answers to their askers, all in one round trip."""
        with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
            for asker, answer in answers:
                pipeline.rpush(f"{ANSWERS_KEY}:{asker}", answer.model_dump_json(exclude_defaults=True))
            for asker in dict.fromkeys(asker for asker, _ in answers):
                pipeline.pexpire(f"{ANSWERS_KEY}:{asker}", _ANSWERS_TTL_MS)
            pipeline.execute()

    def _take(self, key: str, wait_s: float) -> list[bytes]:
        with self._clear_errors():
            first: Any = self._client.blpop([key], wait_s)
            if first is None:
                return []
            more: Any = self._client.lpop(key, CANDIDATES_MAX)
        return [first[1], *(more or ())]


def questions_key(worker: str | None) -> str:
    """Returns the key of a worker's queue; None: of the only worker."""
    return QUESTIONS_KEY if worker is None else f"{QUESTIONS_KEY}:{worker}"


def is_question_key(key: str) -> bool:
    """Returns whether a key is a queue of questions or of answers, which holds users' ids for a moment."""
    return key.partition(":")[0] == "nextclick" and key.split(":")[1] in ("questions", "answers")


class Routes:
    """Which worker answers for which user. `owners`: the name of each partition's owner, None where it has none; empty
    where there is only one worker."""

    def __init__(self, owners: Mapping[int, str | None]) -> None:
        self.owners = owners
        self._workers = sorted({name for name in owners.values() if name is not None})
        self._turn = 0

    def worker_for(self, user_id: str | None) -> str | None:
        """Returns the name of the worker to ask; None: the only one. Raises LookupError where none answers for the
        user."""
        if not self.owners:
            return None
        if user_id is None:
            if not self._workers:
                raise LookupError("no worker owns a partition")
            self._turn = (self._turn + 1) % len(self._workers)
            return self._workers[self._turn]
        name = self.owners.get(partition_of_key(user_id.encode(), len(self.owners)))
        if name is None:
            raise LookupError("no worker owns the user's partition")
        return name


def partition_of_key(key: bytes, partitions: int) -> int:
    """Returns the partition to which Kafka's clients send messages with a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(key: bytes) -> int:
    """Returns the 32 bits of MurmurHash2 by which Kafka's clients choose partitions (Java's Utils.murmur2)."""
    m = 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & _MASK
        h = (h * m & _MASK) ^ ((k ^ k >> 24) * m & _MASK)
    if len(key) > whole:
        h = (h ^ int.from_bytes(key[whole:], "little")) * m & _MASK
    h = (h ^ h >> 13) * m & _MASK
    return h ^ h >> 15


def _read(model: type[Wire], value: bytes) -> Wire | None:
    try:
        return model.model_validate_json(value)
    except ValidationError:
        return None
