"""What the client's methods return and raise."""

from typing import Any, NamedTuple, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field

ASKED = "asked"
STORED = "stored"
POPULAR = "popular"
REDIS = "redis"
DEFAULT = "default"


class ClientError(Exception):
    """Any error of the client; one line."""


class RequestError(ClientError, ValueError):
    """The API says that this call is wrong (an id, `k`, a filter): asking again would not help.

    `status` is the HTTP status; None where the call was not sent.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ApiUnavailableError(ClientError):
    """The API gave no usable answer. Raised only with `raise_unavailable=True`."""


class RecentClick(NamedTuple):
    """A click to rank by that the API may not know of yet."""

    item_id: str
    timestamp: float | str | None = None


class ShownItem(TypedDict):
    """An item of a list that was shown, at a position from 1; `propensity` as the list's answer had it."""

    item_id: str
    position: int
    propensity: NotRequired[float | None]


class ShownList(TypedDict):
    """A list that was shown. What is left out is not known; a missing `timestamp` is now."""

    items: list[ShownItem]
    user_id: NotRequired[str | None]
    request_id: NotRequired[str | None]
    timestamp: NotRequired[float | str | None]
    policy: NotRequired[str | None]
    version: NotRequired[int | None]
    explored: NotRequired[bool | None]


class Recommendations(BaseModel):
    """A list of items, best first. Fields that this version does not know are ignored.

    `source` says where the list comes from:

    - "asked": ranked by the API for this request
    - "stored": the list that the API had in store for the user
    - "popular": the list of the API for users that it does not know
    - "redis": read from Redis by the client, because the API gave no answer; `error` says why
    - "default": the list that was given to the client, or the candidates in the order given, for the same reason

    `scores` holds a score for each item, or nothing. `known` is false where nothing is known of the user, None where
    that is not known. `age_ms` is the age of a stored list, `dropped` counts by reason the items that were left out.
    `propensities` holds the probability of each item at its place, None where the list was not `explored`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    items: tuple[str, ...]
    scores: tuple[float, ...] = ()
    source: str = ASKED
    user_id: str | None = None
    version: int | None = None
    at: float | str | None = None
    age_ms: int | None = None
    known: bool | None = None
    widened: bool | None = None
    dropped: dict[str, int] | None = Field(default_factory=dict)
    explanations: list[Any] | None = None
    request_id: str | None = None
    explored: bool = False
    propensities: tuple[float, ...] | None = None
    error: str | None = None

    @property
    def is_fallback(self) -> bool:
        """Whether the API gave no usable answer, so that the list comes from elsewhere."""
        return self.source in (REDIS, DEFAULT)


class FeedbackReceipt(BaseModel):
    """What became of a user's word on an item. `accepted`: the broker has it. Otherwise `error` says why not."""

    model_config = ConfigDict(frozen=True)

    accepted: bool
    error: str | None = None


class ClickReceipt(BaseModel):
    """What became of a click. `accepted`: the broker has it. Otherwise `error` says why not.

    `event_id` identifies the click: one that is sent again with it counts once.
    """

    model_config = ConfigDict(frozen=True)

    accepted: bool
    event_id: str
    error: str | None = None


class Item(BaseModel):
    """What the items topic says of an item. Fields that this version does not know are ignored.

    `known` is false where it says nothing, or where the API gave no usable answer: then `error` says why.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    item_id: str
    known: bool = True
    title: str | None = None
    tags: tuple[str, ...] = ()
    attributes: dict[str, bool | float | str] = Field(default_factory=dict)
    available: bool = True
    error: str | None = None


class Titles(BaseModel):
    """Titles by item, of those that have one. `error`: why there are none, where the API gave no usable answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    titles: dict[str, str] = Field(default_factory=dict)
    error: str | None = None


class PastClick(BaseModel):
    """A click of a user. `timestamp` is in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    item_id: str
    timestamp: float
    event_type: str


class HiddenItem(BaseModel):
    """An item that a user wants to see no more, `until` a time in seconds since 1970; None: for ever."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    item_id: str
    until: float | None = None


class User(BaseModel):
    """What is held of a user: how many `clicks`, and in `history` the latest of them, newest first.

    `known` is None where the API gave no usable answer: then `error` says why.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    user_id: str
    known: bool | None = None
    clicks: int = 0
    history: tuple[PastClick, ...] = ()
    hidden: tuple[HiddenItem, ...] = ()
    error: str | None = None


class ImpressionsReceipt(BaseModel):
    """What became of lists that were shown. `accepted`: the broker has all of them. Otherwise `error` says why not.

    `request_ids` identify the lists: one that is sent again with its id is evaluated once.
    """

    model_config = ConfigDict(frozen=True)

    accepted: bool
    request_ids: tuple[str, ...]
    error: str | None = None
