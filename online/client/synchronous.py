"""The client for sites that wait for answers: Django, Flask, functions of FastAPI without `async`."""

import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from online.client import calls
from online.client.answers import (
    ClickReceipt,
    FeedbackReceipt,
    ImpressionsReceipt,
    Item,
    RecentClick,
    Recommendations,
    ShownList,
    Titles,
    User,
)
from online.client.calls import Call
from online.client.core import Core, failure
from online.client.exchange import Exchange
from online.client.limits import Limits


class Client:
    """Asks the API of nextclick. Make one per process and keep it: it reuses connections, and threads may share it.

    A method that returns a list never raises because the API is away: it returns a list from Redis or the default, and
    says so (`Recommendations.source`, `.error`). RequestError is raised for a call that the API calls wrong.

    Args:
        url: of the API, as in "http://127.0.0.1:8000".
        api_key: where the API asks for keys.
        redis_url: of the Redis with the lists, where they may be read without the API; as NEXTCLICK_REDIS_URL.
        redis_options: redis-py's own (username, password, ssl_*).
        default: items to show where nothing else is at hand, best first.
        raise_unavailable: raise ApiUnavailableError instead of falling back.
        limits: times, retries, sizes.
        verify: of httpx: a TLS context for a certificate of one's own.
        transport: of httpx, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        redis_url: str | None = None,
        redis_options: Mapping[str, Any] | None = None,
        default: Iterable[str] = (),
        raise_unavailable: bool = False,
        limits: Limits | None = None,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._core = Core(
            url, api_key=api_key, redis_url=redis_url, redis_options=redis_options, default=default,
            raise_unavailable=raise_unavailable, limits=limits,
        )  # fmt: skip
        self._http = httpx.Client(verify=verify, transport=transport, **self._core.http_options())

    def recommend(
        self,
        user_id: str,
        k: int = 10,
        *,
        fresh: bool = False,
        where: str | None = None,
        exclude: Iterable[str] = (),
        diversity: float | None = None,
        objective: str | None = None,
        default: Iterable[str] | None = None,
    ) -> Recommendations:
        """Returns the list to show this user now.

        Args:
            user_id: whose list.
            k: items wanted.
            fresh: rank it for this request; else the list that stands is taken.
            where: a filter over the items' attributes (docs/filters.md).
            exclude: items to leave out.
            diversity: from 0 to 1.
            objective: a formula to rank by (docs/objectives.md); None: the API's setting.
            default: instead of the client's, for this call.
        """
        return self._list(
            calls.recommend_call(
                user_id,
                k,
                fresh=fresh,
                where=where,
                exclude=exclude,
                diversity=diversity,
                objective=objective,
                default=default,
            )
        )

    def rank(
        self,
        user_id: str | None = None,
        k: int = 10,
        *,
        recent: Sequence[str | RecentClick] = (),
        candidates: Iterable[str] | None = None,
        at: float | str | None = None,
        exclude: Iterable[str] = (),
        where: str | None = None,
        diversity: float | None = None,
        max_per_tag: int | None = None,
        explain: bool = False,
        explore: float | None = None,
        objective: str | None = None,
        request_id: str | None = None,
        default: Iterable[str] | None = None,
    ) -> Recommendations:
        """Ranks for this request: for a user, or for a visitor by the latest items alone.

        Without the API, `candidates` are ordered by the list in Redis, or stay in the order given.

        Args:
            user_id: for whom; None: a visitor.
            k: items wanted.
            recent: latest items, oldest first, that the API may not know of yet.
            candidates: the only items to rank; None: all.
            at: the time to rank for; None: now.
            exclude: items to leave out.
            where: a filter over the items' attributes (docs/filters.md).
            diversity: from 0 to 1.
            max_per_tag: most items that share a tag.
            explain: say why, in `explanations`.
            explore: share of the places that are drawn by the scores; None: the API's setting.
            objective: a formula to rank by (docs/objectives.md); None: the API's setting.
            request_id: identifies this request in logs, and seeds the draw.
            default: instead of the client's, for this call; also instead of the candidates.
        """
        return self._list(
            calls.rank_call(
                user_id,
                k,
                recent=recent,
                candidates=candidates,
                at=at,
                exclude=exclude,
                where=where,
                diversity=diversity,
                max_per_tag=max_per_tag,
                explain=explain,
                explore=explore,
                objective=objective,
                request_id=request_id,
                default=default,
            )
        )

    def similar(
        self,
        item_id: str,
        k: int = 10,
        *,
        by: str | None = None,
        where: str | None = None,
        default: Iterable[str] | None = None,
    ) -> Recommendations:
        """Returns items that are like this one, `by` what "follows" it, what is "near" it, its "content", or "all"
        three (None)."""
        return self._list(calls.similar_call(item_id, k, by=by, where=where, default=default))

    def popular(
        self, k: int = 10, *, where: str | None = None, default: Iterable[str] | None = None
    ) -> Recommendations:
        """Returns what is clicked most."""
        return self._list(calls.listing_call("popular", k, where=where, default=default))

    def trending(
        self, k: int = 10, *, where: str | None = None, default: Iterable[str] | None = None
    ) -> Recommendations:
        """Returns what is clicked more than before."""
        return self._list(calls.listing_call("trending", k, where=where, default=default))

    def latest(self, k: int = 10, *, where: str | None = None, default: Iterable[str] | None = None) -> Recommendations:
        """Returns the newest items."""
        return self._list(calls.listing_call("latest", k, where=where, default=default))

    def item(self, item_id: str) -> Item:
        """Returns what the items topic says of an item: title, tags, attributes, whether it is available."""
        call = calls.item_call(item_id)
        return self._core.item(item_id, call, self._ask(call))

    def titles(self, item_ids: Iterable[str]) -> Titles:
        """Returns titles of items, at most 500 at once, to show a list with."""
        call = calls.titles_call(item_ids)
        return self._core.titles(call, self._ask(call))

    def user(self, user_id: str) -> User:
        """Returns what is held of a user: the latest clicks."""
        call = calls.user_call(user_id)
        return self._core.user(call, self._ask(call))

    def click(
        self,
        user_id: str,
        item_id: str,
        *,
        timestamp: float | str | None = None,
        event_id: str | None = None,
        event_type: str | None = None,
        value: float | None = None,
    ) -> ClickReceipt:
        """Sends a click. It may be retried, because it has an `event_id` and so counts once.

        Args:
            user_id: who clicked.
            item_id: on what.
            timestamp: when, as docs/events.md has it; None: now.
            event_id: None: a new one.
            event_type: None: "click".
            value: as docs/events.md has it.

        Returns:
            Whether the broker has it. A click that is not accepted is not kept here.
        """
        call = calls.click_call(
            user_id, item_id, timestamp=timestamp, event_id=event_id, event_type=event_type, value=value
        )
        return self._core.receipt(call, self._ask(call))

    def hide(self, user_id: str, item_id: str, *, for_s: float | None = None) -> FeedbackReceipt:
        """Shows this user an item no more.

        Args:
            user_id: who does not want to see it.
            item_id: the item.
            for_s: seconds until it may be shown again; None: never.

        Returns:
            Whether the broker has it. It takes effect with the user's next list.
        """
        return self._feedback(calls.hide_call(user_id, item_id, for_s=for_s))

    def unhide(self, user_id: str, item_id: str) -> FeedbackReceipt:
        """Lets this user see an item again that was hidden or disliked."""
        return self._feedback(calls.unhide_call(user_id, item_id))

    def dislike(self, user_id: str, item_id: str) -> FeedbackReceipt:
        """Notes that this user dislikes an item: it is hidden for NEXTCLICK_DISLIKE_DAYS of the worker."""
        return self._feedback(calls.dislike_call(user_id, item_id))

    def impressions(self, shown: Iterable[ShownList]) -> ImpressionsReceipt:
        """Sends lists that were shown, at most 100: all are taken, or none.

        Args:
            shown: each with its items, and with `request_id` and propensities of the answer that it comes from.

        Returns:
            Whether the broker has them. Lists that are not accepted are not kept here.
        """
        call = calls.impressions_call(shown)
        return self._core.impressions_receipt(call, self._ask(call))

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()
        self._core.fallback.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _feedback(self, call: Call) -> FeedbackReceipt:
        return self._core.feedback_receipt(self._ask(call))

    def _list(self, call: Call) -> Recommendations:
        exchange = self._ask(call)
        if (found := self._core.answered(call, exchange)) is not None:
            return found
        stored, why = self._core.fallback.read(call) if self._core.fallback.may_read(call) else (None, "")
        return self._core.fallen_back(call, exchange, stored, why)

    def _ask(self, call: Call) -> Exchange:
        exchange = self._core.begin(call)
        target, content = call.target(), call.content()
        while (pause := exchange.pause_s()) is not None:
            if pause > 0:
                time.sleep(pause)
            allowed_s = exchange.left_s()
            try:
                status, headers, body = self._attempt(call.method, exchange.version + target, content, exchange)
            except (httpx.HTTPError, TimeoutError) as error:
                exchange.failed(failure(error, call, allowed_s))
            else:
                exchange.answered(status, headers, body)
        return exchange

    def _attempt(
        self, method: str, target: str, content: bytes | None, exchange: Exchange
    ) -> tuple[int, httpx.Headers, bytes]:
        extensions = {"timeout": _TimeLeft(exchange)}
        headers = {} if content is None else {"Content-Type": "application/json"}
        request = self._http.build_request(method, target, content=content, headers=headers, extensions=extensions)
        bytes_max, body = self._core.api.limits.answer_bytes_max, bytearray()
        response = self._http.send(request, stream=True)
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > bytes_max:
                    raise httpx.DecodingError(f"its answer has more than {bytes_max} bytes", request=request)
                if exchange.left_s() <= 0:
                    raise TimeoutError
        finally:
            response.close()
        return response.status_code, response.headers, bytes(body)


class _TimeLeft(dict[str, float]):
    """httpx's timeouts of a request: each step (connecting, sending, reading) gets what is left of the attempt."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def get(self, key: str, default: Any = None) -> float:  # noqa: ARG002
        return max(0.001, self._exchange.left_s())
