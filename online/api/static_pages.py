"""The dashboard's pages: plain HTML, CSS and JavaScript, which show nothing by themselves and ask the API for the rest.

Their policy lets a browser run and style with these files alone, and talk to this server alone. No other answer of the
API has a media type that a browser would take for either (`X-Content-Type-Options: nosniff`).
"""

import hashlib
from pathlib import Path

from fastapi import FastAPI, Request, Response

_FOLDER = Path(__file__).parent / "pages"
_PREFIX = "/pages/"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # Starlette adds the charset

PAGES = {"/": "dashboard.html", "/user.html": "user.html", "/item.html": "item.html"}
PARTS = (
    *("style.css", "panels.css", "common.js", "titles.js", "header.js", "health.js", "charts.js"),
    *("dashboard.js", "model.js", "user.js", "heatmap.js", "item.js"),
)
#: Paths that need no key.
PATHS = frozenset((*PAGES, *(_PREFIX + name for name in PARTS)))

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)


def add_pages(app: FastAPI) -> None:
    """Adds a route for each page, and for each file that pages load."""
    for path, name in PAGES.items():
        _add(app, path, name, {"Content-Security-Policy": POLICY})
    for name in PARTS:
        # They are asked for again each time, and sent again only when they have changed.
        _add(app, _PREFIX + name, name, {"Cache-Control": "no-cache"})


def _add(app: FastAPI, path: str, name: str, headers: dict[str, str]) -> None:
    file = _FOLDER / name
    content, media_type = file.read_bytes(), _MEDIA_TYPES[file.suffix]
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def page(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers | {"ETag": tag})
        return Response(content, headers=headers | {"ETag": tag}, media_type=media_type)

    app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
