"""The dashboard's pages: plain HTML, CSS and JavaScript, which show nothing by themselves and ask the API for the rest.

Their policy lets a browser run and style with these files alone, and talk to this server alone. No other answer of the
API has a media type that a browser would take for either (`X-Content-Type-Options: nosniff`).
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request, Response

SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")  # that Swagger UI consists of, in the package that brings it
_FOLDER = Path(__file__).parent / "pages"
_PREFIX = "/pages/"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # Starlette adds the charset

PAGES = {"/": "dashboard.html", "/user.html": "user.html", "/item.html": "item.html", "/docs": "docs.html"}
PARTS = (
    *("style.css", "panels.css", "common.js", "titles.js", "header.js", "health.js", "charts.js"),
    *(
        "dashboard.js",
        "clicks.js",
        "model.js",
        "requests.js",
        "letters.js",
        "versions.js",
        "user.js",
        "heatmap.js",
        "item.js",
        "docs.js",
        "docs.css",
        *SWAGGER,
    ),
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
    file = (_swagger_folder() if name in SWAGGER else _FOLDER) / name
    content, media_type = file.read_bytes(), _MEDIA_TYPES[file.suffix]
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def page(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers | {"ETag": tag})
        return Response(content, headers=headers | {"ETag": tag}, media_type=media_type)

    app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)


def _swagger_folder() -> Path:
    """Where fastapi-offline has Swagger UI's files; nothing else of that package is used, so it is not imported."""
    found = find_spec("fastapi_offline")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "static"
