"""What may be asked, and how it is answered: the shapes of `POST /rank` and of the lists that are ranked on request."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from online.config.formula import FormulaError
from online.config.settings import Settings
from online.filters.expression import parse
from online.filters.tokens import FilterError
from stream.events import Limits, id_problem
from stream.questions import CANDIDATES_MAX, EXCLUDED_MAX, RECENT_MAX
from stream.timestamps import UNITS, TimestampError, seconds_of

BODY_BYTES_MAX = 1024 * 1024
REQUEST_ID_CHARACTERS_MAX = 200
REQUEST_ID_BYTES_MAX = 256  # as an impression's
ID_BYTES_MAX = Limits().id_bytes_max
PROBLEMS_MAX = 3  # that one answer names
AHEAD_S_MAX = 366 * 86_400.0  # of the moment of viewing
MOMENT_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0, "exclusiveMaximum": UNITS[-1][0]},
        {"type": "string", "format": "moment"},
    ],
    "description": "seconds, milliseconds, microseconds or nanoseconds since 1970, or ISO 8601 with an offset",
}


class WrongRequestError(Exception):
    """One line that says what is wrong with a request, by the name of the field."""


def _id(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("an id is text")
    if (problem := id_problem(value)) is not None:
        raise ValueError(problem)
    return value


def _moment(value: Any) -> float:
    try:
        return seconds_of(value, now=time.time(), ahead_s_max=AHEAD_S_MAX)
    except TimestampError as error:
        raise ValueError(str(error).removeprefix("timestamp ")) from None


def _whole(value: Any) -> Any:
    """An integer that is written as 5.0, as JSON Schema has it, and JavaScript; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _filter(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a filter is text")
    try:
        parse(value)
    except FilterError as error:
        raise ValueError(str(error)) from None
    return value


def _recent(value: Any) -> Any:
    return {"item_id": value} if isinstance(value, str) else value


def _request_id(value: str) -> str:
    if (length := len(value.encode())) > REQUEST_ID_BYTES_MAX:
        raise ValueError(f"it has at most {REQUEST_ID_BYTES_MAX} bytes, this one has {length}")
    return value


def check_explore(explore: float | None, diversity: float, max_per_tag: int | None) -> None:
    """Raises ValueError where a list is to be drawn and varied: the probability of a varied list is not known."""
    if explore and (diversity or max_per_tag is not None):
        raise ValueError("explore: it does not go with diversity or max_per_tag")


ID_SCHEMA = {"type": "string", "minLength": 1, "maxLength": ID_BYTES_MAX, "format": "id"}
Count = Annotated[int, Field(ge=1, le=CANDIDATES_MAX), BeforeValidator(_whole)]
Id = Annotated[str, BeforeValidator(_id), WithJsonSchema(ID_SCHEMA)]
IdText = Annotated[str, WithJsonSchema(ID_SCHEMA)]  # of a path or a query: what checks it is `checked_id`
RequestId = Annotated[str, Field(max_length=REQUEST_ID_CHARACTERS_MAX), AfterValidator(_request_id)]
Moment = Annotated[float, BeforeValidator(_moment), WithJsonSchema(MOMENT_SCHEMA)]
FILTER_SCHEMA = {"type": "string", "minLength": 1, "format": "filter"}
Where = Annotated[str, BeforeValidator(_filter), WithJsonSchema(FILTER_SCHEMA)]
FilterText = Annotated[str, WithJsonSchema(FILTER_SCHEMA)]  # of a query: what checks it is `checked_filter`


ObjectiveText = Annotated[  # what checks it is `checked_objective`: which names there are depends on the settings
    str, WithJsonSchema({"type": "string", "minLength": 1, "format": "objective"})
]


class RecentItem(BaseModel):
    """A click that may not be in the user's history yet; without a time it was just now."""

    model_config = ConfigDict(extra="forbid")

    item_id: Id
    timestamp: Moment | None = None


Recent = Annotated[
    RecentItem,
    BeforeValidator(_recent),
    WithJsonSchema(
        {
            "anyOf": [
                ID_SCHEMA,
                {
                    "type": "object",
                    "properties": {"item_id": ID_SCHEMA, "timestamp": {"anyOf": [MOMENT_SCHEMA, {"type": "null"}]}},
                    "required": ["item_id"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class RankRequest(BaseModel):
    """The body of `POST /rank`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id | None = Field(None, description="whose list; null or left out: a visitor without a history")
    recent: list[Recent] = Field([], max_length=RECENT_MAX, description="latest items, oldest first")
    candidates: list[Id] | None = Field(
        None,
        max_length=CANDIDATES_MAX,
        description="items to be ranked; null: all",
        json_schema_extra={"minItems": 1},  # what checks it is below, with a line of its own
    )
    at: Moment | None = Field(None, description="the moment of viewing; null: now")
    k: Count = Field(10, description="items wanted")
    exclude: list[Id] = Field([], max_length=EXCLUDED_MAX, description="items that must not be listed")
    where: Where | None = Field(None, description="which items may be listed (docs/filters.md)")
    diversity: float = Field(0.0, ge=0, le=1, description="how much the list is to vary, at the cost of scores")
    max_per_tag: Count | None = Field(None, description="items with the same tag at most")
    explain: bool = Field(False, description="whether reasons are wanted")
    objective: ObjectiveText | None = Field(
        None, description="what the list is ranked by, as a formula (docs/objectives.md); null: NEXTCLICK_OBJECTIVE"
    )
    explore: float | None = Field(
        None, ge=0, le=1, description="share of the slots that are drawn by the scores; null: NEXTCLICK_EXPLORE"
    )
    request_id: RequestId | None = Field(None, description="by which it is known later; it seeds the draw")

    @model_validator(mode="after")
    def _is_about_someone(self) -> "RankRequest":
        if self.candidates is not None and not self.candidates:
            raise ValueError("candidates: name at least one item, or leave them out")
        check_explore(self.explore, self.diversity, self.max_per_tag)
        return self

    def wire(self) -> dict[str, Any]:
        """Returns the fields as a worker takes them."""
        fields = self.model_dump()
        return fields | {"recent": [(one.item_id, one.timestamp) for one in self.recent]}


class Ranked(BaseModel):
    """A list that was asked for.

    Attributes:
        user_id: whose it is; null: a visitor's, or everybody's.
        scores: shares from 0 to 1, or values of the objective; of `/similar` shares, cosines or ranks, as `by` says; of
            `/trending` standard deviations, of `/latest` seconds since 1970.
        source: `asked`: the worker has ranked it just now; `stored`: it did not answer in time, and this is the user's
            list in Redis; `popular`: likewise, and there is no such list.
        at: the moment of viewing that it is for, in seconds since 1970.
        known: whether anything is known of the user, the visitor, or the item that others are like.
        widened: whether more candidates than usual were looked at, since few passed the filter.
        filtered: whether all that was asked for was applied. It is not where only the worker can do it (`diversity`,
            `objective`), or Redis does not hold what is known of the items: with a filter the list is empty then,
            rather than wrong.
        dropped: how many items were left out, by reason.
        explanations: why each item is in the list; null where that was not asked for.
        age_ms: since the list was ranked.
        request_id: that of the question; of an explored or logged list without one, a new one.
        explored: whether slots could be drawn by the scores.
        propensities: probability of each item at its slot, given those above it; null where nothing was explored.
    """

    user_id: str | None
    items: list[str]
    scores: list[float]
    source: Literal["asked", "stored", "popular"]
    version: int
    at: float
    known: bool
    widened: bool
    filtered: bool
    dropped: dict[str, int]
    explanations: list[Any] | None
    age_ms: int
    request_id: str | None
    explored: bool = False
    propensities: list[float] | None = None


def rank_request(body: bytes, settings: Settings) -> RankRequest:
    """Reads the body of `POST /rank`. Raises WrongRequestError."""
    try:
        request = RankRequest.model_validate_json(body)
    except ValidationError as error:
        raise WrongRequestError(problem_of(error.errors())) from None
    check_k(request.k, settings, given=request.candidates is not None)
    checked_objective(request.objective, settings)
    return request


def check_k(k: int, settings: Settings, *, given: bool = False) -> None:
    """Raises WrongRequestError where more items are wanted than a list has. `given`: whether candidates are."""
    if not given and k > settings.list_size:
        raise WrongRequestError(f"k: at most {settings.list_size} without candidates (NEXTCLICK_LIST_SIZE)")


def checked_ids(field: str, ids: Iterable[str], most: int = EXCLUDED_MAX) -> list[str]:
    """Returns ids of a query parameter, at most `most`. Raises WrongRequestError."""
    found = list(ids)
    if len(found) > most:
        raise WrongRequestError(f"{field}: at most {most} items")
    return [checked_id(field, one) for one in found]


def checked_id(field: str, one: str) -> str:
    """Returns an id of a path or a parameter. Raises WrongRequestError."""
    if (problem := id_problem(one)) is not None:
        raise WrongRequestError(f"{field}: {problem}")
    return one


def checked_filter(where: str | None) -> str | None:
    """Returns a filter of a query parameter. Raises WrongRequestError."""
    try:
        return None if where is None else _filter(where)
    except ValueError as error:
        raise WrongRequestError(f"where: {error}") from None


def checked_objective(objective: str | None, settings: Settings) -> str | None:
    """Returns an objective that lists can be ranked by. Raises WrongRequestError."""
    try:
        if objective is not None:
            settings.formula(objective)
    except FormulaError as error:
        unset = "" if settings.predicts_worth else " (NEXTCLICK_EVENT_WEIGHTS gives more)"
        raise WrongRequestError(f"objective: {error}{unset}") from None
    return objective


def problem_of(errors: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line for what pydantic has found, without the values."""
    lines = list(dict.fromkeys(map(_line, errors)))
    more = f"; and {len(lines) - PROBLEMS_MAX} more" if len(lines) > PROBLEMS_MAX else ""
    return "; ".join(lines[:PROBLEMS_MAX]) + more


def _line(error: Mapping[str, Any]) -> str:
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        return f"{_short(name)}: there is no such field"
    if error["type"] == "json_invalid":
        return f"the body is no JSON: {error['ctx']['error']}"
    if error["type"] == "model_type" and not name:
        return "the body is no JSON object"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _short(name: str) -> str:
    return name if len(name) <= 60 else name[:60] + "…"


def rank_schema() -> dict[str, Any]:
    """Returns the JSON schema of the body of `POST /rank`."""
    schema = RankRequest.model_json_schema()
    drawn = {"required": ["explore"], "properties": {"explore": {"type": "number", "exclusiveMinimum": 0}}}
    unvaried = {"properties": {"diversity": {"const": 0}, "max_per_tag": {"type": "null"}}}
    return schema | {"if": drawn, "then": unvaried}  # as `check_explore` has it
