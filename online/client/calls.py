"""The calls of the API: what is sent for each, and what a list may fall back on."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode

from online.client.answers import RecentClick, RequestError, ShownList

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, ready to be sent, with what a fallback has to know of it.

    All may be sent twice: reading changes nothing, feedback only says the same again, and of what is written ("click")
    a click has an `event_id` and a shown list a `request_id`, so each counts once.
    """

    kind: Literal["list", "click", "feedback"]  # "list": all that reads
    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: Body | list[Body] | None = None
    user_id: str | None = None
    k: int = 10
    exclude: frozenset[str] = frozenset()
    where: str | None = None
    candidates: tuple[str, ...] | None = None
    default: tuple[str, ...] | None = None

    def target(self) -> str:
        """Returns the path and the query, percent-encoded. Raises RequestError for text that is not Unicode."""
        try:
            return f"{self.path}?{urlencode(self.params)}" if self.params else self.path
        except UnicodeEncodeError:
            raise RequestError("a parameter is not valid Unicode") from None

    def content(self) -> bytes | None:
        """Returns the body as JSON. Raises RequestError for what JSON cannot hold."""
        if self.body is None:
            return None
        try:
            return json.dumps(self.body, allow_nan=False).encode()
        except (ValueError, TypeError) as error:
            raise RequestError(f"this cannot be sent as JSON: {error}") from None


def recommend_call(
    user_id: str,
    k: int,
    *,
    fresh: bool,
    where: str | None,
    exclude: Iterable[str],
    diversity: float | None,
    objective: str | None,
    default: Iterable[str] | None,
) -> Call:
    """GET /recommend/{user}."""
    left_out = tuple(exclude)
    params = [("k", str(k)), *(("exclude", item) for item in left_out)]
    if fresh:
        params.append(("fresh", "true"))
    if where is not None:
        params.append(("where", where))
    if diversity is not None:
        params.append(("diversity", repr(diversity)))
    if objective is not None:
        params.append(("objective", objective))
    return Call(
        kind="list", method="GET", path="/recommend/" + _segment("user", user_id), params=tuple(params),
        user_id=user_id, k=k, exclude=frozenset(left_out), where=where, default=_tuple(default),
    )  # fmt: skip


def rank_call(
    user_id: str | None,
    k: int,
    *,
    recent: Sequence[str | RecentClick],
    candidates: Iterable[str] | None,
    at: float | str | None,
    exclude: Iterable[str],
    where: str | None,
    diversity: float | None,
    max_per_tag: int | None,
    explain: bool,
    explore: float | None,
    objective: str | None,
    request_id: str | None,
    default: Iterable[str] | None,
) -> Call:
    """POST /rank. What is not given is not sent, so that the API's own defaults hold."""
    left_out, given = tuple(exclude), _tuple(candidates)
    body: Body = {"k": k}
    optional = {
        "user_id": user_id, "at": at, "where": where, "diversity": diversity, "max_per_tag": max_per_tag,
        "request_id": request_id, "candidates": None if given is None else list(given),
        "recent": [_recent(one) for one in recent] or None, "exclude": list(left_out) or None,
        "explain": explain or None, "explore": explore, "objective": objective,
    }  # fmt: skip
    body |= {name: value for name, value in optional.items() if value is not None}
    return Call(
        kind="list", method="POST", path="/rank", body=body, user_id=user_id, k=k, exclude=frozenset(left_out),
        where=where, candidates=given, default=_tuple(default),
    )  # fmt: skip


def similar_call(item_id: str, k: int, *, by: str | None, where: str | None, default: Iterable[str] | None) -> Call:
    """GET /similar/{item}. No fallback lists the item itself."""
    params = [("k", str(k))]
    if by is not None:
        params.append(("by", by))
    if where is not None:
        params.append(("where", where))
    return Call(
        kind="list", method="GET", path="/similar/" + _segment("item", item_id), params=tuple(params), k=k,
        exclude=frozenset({item_id}), where=where, default=_tuple(default),
    )  # fmt: skip


def listing_call(name: str, k: int, *, where: str | None, default: Iterable[str] | None) -> Call:
    """GET /popular, /trending or /latest."""
    params = [("k", str(k))] + ([("where", where)] if where is not None else [])
    return Call(
        kind="list", method="GET", path=f"/{name}", params=tuple(params), k=k, where=where, default=_tuple(default)
    )


def item_call(item_id: str) -> Call:
    """GET /items/{item}."""
    return Call(kind="list", method="GET", path="/items/" + _segment("item", item_id))


def titles_call(item_ids: Iterable[str]) -> Call:
    """GET /titles."""
    return Call(kind="list", method="GET", path="/titles", params=tuple(("id", item_id) for item_id in item_ids))


def user_call(user_id: str) -> Call:
    """GET /users/{user}."""
    return Call(kind="list", method="GET", path="/users/" + _segment("user", user_id), user_id=user_id)


def click_call(
    user_id: str,
    item_id: str,
    *,
    timestamp: float | str | None,
    event_id: str | None,
    event_type: str | None,
    value: float | None,
) -> Call:
    """POST /click, with the time of now and an `event_id` of its own where none is given."""
    body: Body = {
        "user_id": user_id,
        "item_id": item_id,
        "timestamp": time.time() if timestamp is None else timestamp,
        "event_id": uuid.uuid4().hex if event_id is None else event_id,
    }
    if event_type is not None:
        body["event_type"] = event_type
    if value is not None:
        body["value"] = value
    return Call(kind="click", method="POST", path="/click", body=body)


def hide_call(user_id: str, item_id: str, *, for_s: float | None) -> Call:
    """POST /hide."""
    return _feedback_call("hide", user_id, item_id, {} if for_s is None else {"for_s": for_s})


def unhide_call(user_id: str, item_id: str) -> Call:
    """POST /unhide."""
    return _feedback_call("unhide", user_id, item_id)


def dislike_call(user_id: str, item_id: str) -> Call:
    """POST /dislike."""
    return _feedback_call("dislike", user_id, item_id)


def _feedback_call(name: str, user_id: str, item_id: str, more: Body | None = None) -> Call:
    body: Body = {"user_id": user_id, "item_id": item_id} | (more or {})
    return Call(kind="feedback", method="POST", path=f"/{name}", body=body)


def impressions_call(shown: Iterable[ShownList]) -> Call:
    """POST /impressions, each list with the time of now and a `request_id` of its own where none is given."""
    return Call(kind="click", method="POST", path="/impressions", body=[_shown(one) for one in shown])


def _shown(one: ShownList) -> Body:
    if not isinstance(one, Mapping):
        raise RequestError("a shown list is a mapping with items")
    given = {name: value for name, value in one.items() if value is not None}
    return {"request_id": uuid.uuid4().hex, "timestamp": time.time(), **given}


def _segment(name: str, id_: str) -> str:
    """An id as one segment of a path."""
    if id_ in (".", ".."):  # each program on the way takes these for folders
        raise RequestError(f"{name}: {id_!r} cannot be asked for in a path")
    try:
        return quote(id_, safe="")
    except UnicodeEncodeError:
        raise RequestError(f"{name}: the id is not valid Unicode") from None


def _recent(one: str | RecentClick) -> str | Body:
    if isinstance(one, str):
        return one
    return {"item_id": one.item_id} | ({} if one.timestamp is None else {"timestamp": one.timestamp})


def _tuple(items: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if items is None else tuple(items)
