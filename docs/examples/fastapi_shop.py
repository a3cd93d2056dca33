"""A shop with FastAPI: the shelf on its page is this visitor's list, and changes after a click.

    pip install 'nextclick[client]' fastapi uvicorn
    NEXTCLICK_API_READ_ONLY=false nextclick serve &
    uvicorn --app-dir docs/examples fastapi_shop:app --port 8080

`NEXTCLICK_URL` and `NEXTCLICK_KEY` name the API and its key, `NEXTCLICK_REDIS_URL` a Redis for when the API is away.
"""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from online.client import AsyncClient, Recommendations

ITEMS = {
    "kettle": ("🫖", "Copper kettle"), "tea": ("🍵", "Green tea"), "cup": ("☕", "Stoneware cup"),
    "honey": ("🍯", "Heather honey"), "bread": ("🍞", "Rye bread"), "knife": ("🔪", "Bread knife"),
    "lamp": ("💡", "Reading lamp"), "book": ("📖", "A long novel"), "plant": ("🪴", "Small fern"),
}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif }
main { max-width: 46rem; margin: 8vh auto; padding: 0 1.2rem }
h1 { font-weight: 600; letter-spacing: -.02em } small { opacity: .6 }
form { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem }
button { font: inherit; padding: 1.2rem .6rem; border: 1px solid #8884; border-radius: .9rem; background: #8881 }
button:hover { border-color: #d60; cursor: pointer } button span { display: block; font-size: 2.2rem }
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the whole life of the process: it keeps its connections."""
    async with AsyncClient(
        os.environ.get("NEXTCLICK_URL", "http://127.0.0.1:8000"),
        api_key=os.environ.get("NEXTCLICK_KEY"),
        redis_url=os.environ.get("NEXTCLICK_REDIS_URL"),
        default=ITEMS,
    ) as client:
        app.state.client = client
        yield


app = FastAPI(title="shop", lifespan=lifespan, docs_url=None, redoc_url=None)


@app.get("/")
async def shelf(request: Request) -> HTMLResponse:
    """The page. It needs no error handling: without the API there is still a list."""
    visitor = request.cookies.get("visitor") or uuid.uuid4().hex
    page = HTMLResponse(_page(await request.app.state.client.recommend(visitor, 6, fresh=True)))
    page.set_cookie("visitor", visitor, httponly=True, samesite="lax", max_age=365 * 86_400)
    return page


@app.post("/click/{item}")
async def click(request: Request, item: str) -> RedirectResponse:
    """A click on an item, then the page again."""
    if item not in ITEMS:
        raise HTTPException(404)
    if visitor := request.cookies.get("visitor"):
        await request.app.state.client.click(visitor, item)
    return RedirectResponse("/", status_code=303)


def _page(found: Recommendations) -> str:
    shown = [(item, *ITEMS[item]) for item in found.items if item in ITEMS]
    buttons = "".join(
        f'<button formaction="/click/{escape(item)}"><span>{picture}</span>{escape(title)}</button>'
        for item, picture, title in shown
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>The shop</title><style>{STYLE}</style><main><h1>For you</h1>"
        f'<form method="post">{buttons}</form><p><small>source: {escape(found.source)}</small></p></main></html>'
    )
