"""What stands before the API: counting and security headers for every answer, keys, limits of rate, read-only mode."""

import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from online.api.keys import ApiKeys
from online.api.metrics import Requests
from online.api.problems import problem
from online.api.static_pages import PATHS
from online.api.versions import V1
from online.config.settings import Settings

HEALTH = ("/healthz", "/readyz")  # asked by machines that must learn it whatever else happens
CLIENT_GONE = 499  # nginx's word for it: only counted
_READING = ("GET", "HEAD", "OPTIONS")
QUESTIONS = (f"{V1}/rank",)  # they are posted, and write nothing
WRITES = frozenset(f"{V1}/{name}" for name in ("click", "hide", "unhide", "dislike", "impressions"))

#: Of every answer that does not set them itself. Strict-Transport-Security is missing on purpose: TLS ends at the proxy
#: in front, which has to set it.
HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-embedder-policy": b"require-corp",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}

_HEADERS = tuple(HEADERS.items())

log = logging.getLogger(__name__)


class TokenBuckets:
    """A bucket of `at_once` tokens for each of at most `held` clients, which fills by `per_s`.

    The client that has been silent longest makes room. Buckets are filled lazily: what was left is kept, with its time.
    """

    def __init__(self, per_s: float, at_once: int, held: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._held = held
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, at

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, client: str) -> float:
        """Take one token -> 0.0; where there is none, the seconds until there will be."""
        now = self._clock()
        tokens, at = self._buckets.pop(client, (float(self._at_once), now))
        tokens = min(float(self._at_once), tokens + (now - at) * self._per_s)
        wait = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._per_s
        self._buckets[client] = (tokens - 1.0 if wait == 0.0 else tokens, now)
        if len(self._buckets) > self._held:
            self._buckets.popitem(last=False)
        return wait


class AuthMiddleware:
    """Passes on the requests that are allowed, within their limits, and answers the others itself."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._keys = ApiKeys(settings.api_keys)
        self._read_only = settings.api_read_only
        self._limited = settings.api_requests_per_s is not None
        limits = settings.api_requests_per_s or 1.0, settings.api_requests_at_once
        # Apart, so that no crowd of addresses makes a key's bucket full again.
        self._of_keys = TokenBuckets(*limits, held=max(1, len(self._keys)))
        self._of_addresses = TokenBuckets(*limits, held=settings.api_addresses_held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _wait_s(self, scope: Scope, name: str | None) -> float:
        return self._of_addresses.wait_s(_address(scope)) if name is None else self._of_keys.wait_s(name)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["path"] in HEALTH and scope["method"] in _READING:
            return None
        key = _key(dict(scope["headers"])) if len(self._keys) else None
        name = None if key is None else self._keys.name_of(key)
        if self._limited and (wait := self._wait_s(scope, name)) > 0:
            return problem(429, "too many requests: ask again later", {"Retry-After": str(math.ceil(wait))})
        # The dashboard's pages show nothing by themselves: what they fetch needs the key.
        free = scope["path"] in PATHS and scope["method"] in _READING
        if len(self._keys) and name is None and not free:
            what = "an API key is needed" if key is None else "this API key is not valid"
            how = "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            return problem(401, f"{what}: {how}", {"WWW-Authenticate": "Bearer"})
        if self._read_only and scope["method"] not in _READING and scope["path"] not in QUESTIONS:
            return _not_written(scope)
        return None if _is_text(scope) else problem(400, "the path is not UTF-8 text, percent-encoded")


class MetricsMiddleware:
    """Counts and times every request, and gives every answer the security headers that it does not set itself."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"]]
                present = {name for name, _ in headers}  # in lower case, as ASGI wants them
                headers += [header for header in _HEADERS if header[0] not in present]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or CLIENT_GONE  # the client is gone
        except Exception:
            # Starlette's own answer would come from outside of this, without the headers.
            log.exception("%s of the API failed", scope["method"])
            if status:
                raise
            await problem(500, "internal error: see the API's log")(scope, receive, send_with_headers)
        finally:
            # The route's pattern, not the path: a label for each user would drown Prometheus.
            route = getattr(scope.get("route"), "path", "none")
            self._requests.answered(route, status or 500, time.perf_counter() - started)


def _not_written(scope: Scope) -> Response:
    """The answer for a method that may write, of an API that only reads."""
    if scope["path"] in WRITES:
        return problem(403, "this API only reads: NEXTCLICK_API_READ_ONLY=false lets it write")
    what = f"{scope['method']} is not for this path: this API only reads (NEXTCLICK_API_READ_ONLY)"
    return problem(405, what, {"Allow": "GET"})


def _is_text(scope: Scope) -> bool:
    """Whether the path is text: what decoded it has put U+FFFD for what is not, and would name another user."""
    if "\ufffd" not in scope["path"]:
        return True
    try:
        unquote_to_bytes(scope.get("raw_path") or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request shows."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key")


def _address(scope: Scope) -> str:
    """The client, as far as it is known without a key. One customer has a whole /64 of IPv6 addresses."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
