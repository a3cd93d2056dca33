"""Versions of the API: each route is at `/v1/…`, and the paths of before there were versions lead there.

A path is rewritten before anything else looks at it, so keys, limits, read-only mode, metrics and the router see one
path for each route, whichever was asked for.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

V1 = "/v1"
#: First parts of the paths that were there before versions. Routes that are added later are at `/v1` alone.
UNVERSIONED = frozenset(
    (
        *("recommend", "rank", "similar", "popular", "trending", "latest", "items", "titles", "users", "status.json"),
        *("click", "hide", "unhide", "dislike", "impressions"),
    )
)


class UnversionedPaths:
    """Passes on requests for `/rank` as if they were for `/v1/rank`, and so on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _first_part(scope["path"]) in UNVERSIONED:
            raw = scope.get("raw_path")
            scope = {**scope, "path": V1 + scope["path"]} | ({"raw_path": V1.encode() + raw} if raw else {})
        await self._app(scope, receive, send)


def _first_part(path: str) -> str:
    return path[1:].partition("/")[0] if path.startswith("/") else ""
