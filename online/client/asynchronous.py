"""The client for asyncio: FastAPI, Starlette, aiohttp."""

import asyncio
import ssl
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

_REDIS_STEPS = 4  # waits for connections and answers that a read may consist of, until it is given up


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. Make one per event loop and keep it: it reuses connections.

    A call can be cancelled at any moment. Redis is read in a thread, so that the loop never waits for it.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._core = Core(
            url, api_key=api_key, redis_url=redis_url, redis_options=redis_options, default=default,
            raise_unavailable=raise_unavailable, limits=limits,
        )  # fmt: skip
        self._http = httpx.AsyncClient(
            verify=verify,
            transport=transport,
            timeout=None,
            **self._core.http_options(),
        )

    async def recommend(
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
        """`Client.recommend`, awaited."""
        return await self._list(
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

    async def rank(
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
        """`Client.rank`, awaited."""
        return await self._list(
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

    async def similar(
        self,
        item_id: str,
        k: int = 10,
        *,
        by: str | None = None,
        where: str | None = None,
        default: Iterable[str] | None = None,
    ) -> Recommendations:
        """`Client.similar`, awaited."""
        return await self._list(calls.similar_call(item_id, k, by=by, where=where, default=default))

    async def popular(
        self, k: int = 10, *, where: str | None = None, default: Iterable[str] | None = None
    ) -> Recommendations:
        """`Client.popular`, awaited."""
        return await self._list(calls.listing_call("popular", k, where=where, default=default))

    async def trending(
        self, k: int = 10, *, where: str | None = None, default: Iterable[str] | None = None
    ) -> Recommendations:
        """`Client.trending`, awaited."""
        return await self._list(calls.listing_call("trending", k, where=where, default=default))

    async def latest(
        self, k: int = 10, *, where: str | None = None, default: Iterable[str] | None = None
    ) -> Recommendations:
        """`Client.latest`, awaited."""
        return await self._list(calls.listing_call("latest", k, where=where, default=default))

    async def item(self, item_id: str) -> Item:
        """`Client.item`, awaited."""
        call = calls.item_call(item_id)
        return self._core.item(item_id, call, await self._ask(call))

    async def titles(self, item_ids: Iterable[str]) -> Titles:
        """`Client.titles`, awaited."""
        call = calls.titles_call(item_ids)
        return self._core.titles(call, await self._ask(call))

    async def user(self, user_id: str) -> User:
        """`Client.user`, awaited."""
        call = calls.user_call(user_id)
        return self._core.user(call, await self._ask(call))

    async def click(
        self,
        user_id: str,
        item_id: str,
        *,
        timestamp: float | str | None = None,
        event_id: str | None = None,
        event_type: str | None = None,
        value: float | None = None,
    ) -> ClickReceipt:
        """`Client.click`, awaited."""
        call = calls.click_call(
            user_id, item_id, timestamp=timestamp, event_id=event_id, event_type=event_type, value=value
        )
        return self._core.receipt(call, await self._ask(call))

    async def hide(self, user_id: str, item_id: str, *, for_s: float | None = None) -> FeedbackReceipt:
        """`Client.hide`, awaited."""
        return await self._feedback(calls.hide_call(user_id, item_id, for_s=for_s))

    async def unhide(self, user_id: str, item_id: str) -> FeedbackReceipt:
        """`Client.unhide`, awaited."""
        return await self._feedback(calls.unhide_call(user_id, item_id))

    async def dislike(self, user_id: str, item_id: str) -> FeedbackReceipt:
        """`Client.dislike`, awaited."""
        return await self._feedback(calls.dislike_call(user_id, item_id))

    async def impressions(self, shown: Iterable[ShownList]) -> ImpressionsReceipt:
        """`Client.impressions`, awaited."""
        call = calls.impressions_call(shown)
        return self._core.impressions_receipt(call, await self._ask(call))

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()
        self._core.fallback.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _feedback(self, call: Call) -> FeedbackReceipt:
        return self._core.feedback_receipt(await self._ask(call))

    async def _list(self, call: Call) -> Recommendations:
        exchange = await self._ask(call)
        if (found := self._core.answered(call, exchange)) is not None:
            return found
        stored, why = await self._read_redis(call) if self._core.fallback.may_read(call) else (None, "")
        return self._core.fallen_back(call, exchange, stored, why)

    async def _read_redis(self, call: Call) -> tuple[Recommendations | None, str]:
        waits_s = _REDIS_STEPS * self._core.api.limits.redis_s
        try:
            async with asyncio.timeout(waits_s):
                return await asyncio.to_thread(self._core.fallback.read, call)
        except TimeoutError:
            self._core.fallback.failed()
            return None, f"Redis did not answer within {waits_s:g} s"

    async def _ask(self, call: Call) -> Exchange:
        exchange = self._core.begin(call)
        target, content = call.target(), call.content()
        while (pause := exchange.pause_s()) is not None:
            if pause > 0:
                await asyncio.sleep(pause)
            allowed_s = exchange.left_s()
            try:
                async with asyncio.timeout(allowed_s):
                    status, headers, body = await self._attempt(call.method, exchange.version + target, content)
            except (httpx.HTTPError, TimeoutError) as error:
                exchange.failed(failure(error, call, allowed_s))
            else:
                exchange.answered(status, headers, body)
        return exchange

    async def _attempt(self, method: str, target: str, content: bytes | None) -> tuple[int, httpx.Headers, bytes]:
        headers = {} if content is None else {"Content-Type": "application/json"}
        request = self._http.build_request(method, target, content=content, headers=headers)
        bytes_max, body = self._core.api.limits.answer_bytes_max, bytearray()
        response = await self._http.send(request, stream=True)
        try:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > bytes_max:
                    raise httpx.DecodingError(f"its answer has more than {bytes_max} bytes", request=request)
        finally:
            await response.aclose()
        return response.status_code, response.headers, bytes(body)
