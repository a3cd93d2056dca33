"""What `Client` and `AsyncClient` share: everything but sending and waiting."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from online.client.answers import (
    POPULAR,
    STORED,
    ApiUnavailableError,
    ClickReceipt,
    FeedbackReceipt,
    ImpressionsReceipt,
    Item,
    Recommendations,
    Titles,
    User,
)
from online.client.calls import Call
from online.client.exchange import Api, Exchange
from online.client.fallback import Fallback
from online.client.limits import Limits

CONNECTIONS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=4.0)
_SOURCES = {"personal": STORED, "popular": POPULAR}  # of GET /recommend, whose lists say how they were made

Found = TypeVar("Found", Item, Titles, User)

log = logging.getLogger("online.client")


class Core:
    """One client's address, limits and fallbacks, and what it makes of answers."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        redis_url: str | None,
        redis_options: Mapping[str, Any] | None,
        default: Iterable[str],
        raise_unavailable: bool,
        limits: Limits | None,
    ) -> None:
        limits = limits or Limits()
        self.api = Api(_checked(url), limits)
        self.headers = {"Accept": "application/json", "Accept-Encoding": "identity"} | _key_header(api_key)
        self.fallback = Fallback(redis_url, redis_options or {}, default, limits)
        self._raise_unavailable = raise_unavailable

    def http_options(self) -> dict[str, Any]:
        """Options of httpx's clients. The environment's proxies and .netrc are left out: the API is one's own."""
        return {"base_url": self.api.url, "headers": self.headers, "limits": CONNECTIONS, "trust_env": False}

    def begin(self, call: Call) -> Exchange:
        """Returns the attempts of a call."""
        return Exchange(call, self.api)

    def answered(self, call: Call, exchange: Exchange) -> Recommendations | None:
        """Returns the API's list, or None: a fallback is needed. Raises ApiUnavailableError if that is asked for."""
        if exchange.answer is not None:
            try:
                found = Recommendations.model_validate(exchange.answer)
                return found.model_copy(update={"source": _SOURCES.get(found.source, found.source), "error": None})
            except ValidationError as error:
                self._misread(call, exchange, "no list", error)
        self._refuse(exchange)
        return None

    def fallen_back(
        self, call: Call, exchange: Exchange, stored: Recommendations | None, why: str = ""
    ) -> Recommendations:
        """Returns what was found in Redis, else the default; with what was wrong."""
        found = stored or self.fallback.default(call)
        return found.model_copy(update={"error": "; ".join(filter(None, (exchange.problem, why)))})

    def item(self, item_id: str, call: Call, exchange: Exchange) -> Item:
        """Returns what the API says of an item. Raises ApiUnavailableError if that is asked for."""
        if exchange.unknown:
            return Item(item_id=item_id, known=False)
        return self._looked_up(Item, call, exchange) or Item(item_id=item_id, known=False, error=exchange.problem)

    def titles(self, call: Call, exchange: Exchange) -> Titles:
        """Returns the API's titles. Raises ApiUnavailableError if that is asked for."""
        return self._looked_up(Titles, call, exchange) or Titles(error=exchange.problem)

    def user(self, call: Call, exchange: Exchange) -> User:
        """Returns what the API says of a user. Raises ApiUnavailableError if that is asked for."""
        return self._looked_up(User, call, exchange) or User(user_id=call.user_id or "", error=exchange.problem)

    def _looked_up(self, kind: type[Found], call: Call, exchange: Exchange) -> Found | None:
        if exchange.answer is not None:
            try:
                return kind.model_validate(exchange.answer).model_copy(update={"error": None})
            except ValidationError as error:
                self._misread(call, exchange, f"no {kind.__name__.lower()}", error)
        self._refuse(exchange)
        return None

    @staticmethod
    def _misread(call: Call, exchange: Exchange, what: str, error: ValidationError) -> None:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        exchange.unreadable(f"answers {call.method} /{call.path.split('/')[1]} with {what} ({where})")

    def receipt(self, call: Call, exchange: Exchange) -> ClickReceipt:
        """Returns what became of a click. Raises ApiUnavailableError if that is asked for."""
        assert isinstance(call.body, dict)
        if exchange.answer is None:
            self._refuse(exchange)
        return ClickReceipt(
            accepted=exchange.answer is not None,
            event_id=str(call.body["event_id"]),
            error=exchange.problem if exchange.answer is None else None,
        )

    def feedback_receipt(self, exchange: Exchange) -> FeedbackReceipt:
        """Returns what became of a user's word on an item. Raises ApiUnavailableError if that is asked for."""
        if exchange.answer is None:
            self._refuse(exchange)
            return FeedbackReceipt(accepted=False, error=exchange.problem)
        return FeedbackReceipt(accepted=True)

    def impressions_receipt(self, call: Call, exchange: Exchange) -> ImpressionsReceipt:
        """Returns what became of shown lists. Raises ApiUnavailableError if that is asked for."""
        assert isinstance(call.body, list)
        if exchange.answer is None:
            self._refuse(exchange)
        return ImpressionsReceipt(
            accepted=exchange.answer is not None,
            request_ids=tuple(str(one["request_id"]) for one in call.body),
            error=exchange.problem if exchange.answer is None else None,
        )

    def _refuse(self, exchange: Exchange) -> None:
        if self._raise_unavailable:
            raise ApiUnavailableError(exchange.problem)


def failure(error: Exception, call: Call, allowed_s: float) -> str:
    """Says how an attempt failed that httpx raised an error for, or that took longer than `allowed_s` seconds."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return f"did not answer within {allowed_s:.2g} s"
    return f"does not answer {call.method} /{call.path.split('/')[1]}: {str(error) or type(error).__name__}"


def _checked(url: str) -> str:
    """The API's URL without a slash at its end. Raises ValueError."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"url: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("url: it begins with http:// or https:// and names a host")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("url: no user, password, query or fragment belongs in it; a key is given as api_key")
    return str(parsed).rstrip("/")


def _key_header(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        raise ValueError("api_key: it is what `nextclick api-key NAME` has printed, without blanks")
    return {"Authorization": f"Bearer {api_key}"}
