"""The dashboard's files: what is served, with which headers, and what they must not contain."""

import re
import tomllib
from pathlib import Path

import fakeredis
import pytest
from fastapi.testclient import TestClient

from online.api import static_pages
from online.api.app import create_app
from online.api.keys import make_key
from online.api.static_pages import PAGES, PARTS, PATHS, POLICY, SWAGGER, _swagger_folder
from online.config.settings import Settings
from stream.lists import Lists

FOLDER = Path(static_pages.__file__).parent / "pages"
TEXTS = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
LINES_MAX = 300
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\(.on"


@pytest.fixture
def api() -> TestClient:
    _, entry = make_key("shop")
    return TestClient(create_app(Settings(api_keys=(entry,)), Lists(fakeredis.FakeRedis(), ttl_s=60)))


def test_every_file_is_served_without_a_key_as_what_it_is(api: TestClient) -> None:
    assert {*PAGES.values(), *PARTS} == {*TEXTS, *SWAGGER}
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    for path in PATHS:
        answer = api.get(path)
        name = PAGES.get(path) or path.rpartition("/")[2]
        assert (answer.status_code, answer.text) == (200, TEXTS.get(name) or (_swagger_folder() / name).read_text())
        assert answer.headers["content-type"] == types[name.rpartition(".")[2]] + "; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert api.head(path).status_code == 200
    assert api.get("/pages/none.js").status_code == 401
    assert api.post("/user.html").status_code == 401


def test_the_wheel_has_the_files() -> None:
    project = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text())
    assert "pages/*" in project["tool"]["setuptools"]["package-data"]["online.api"]


def test_parts_are_sent_again_only_when_they_have_changed(api: TestClient) -> None:
    first = api.get("/pages/common.js")
    assert first.headers["cache-control"] == "no-cache"
    again = api.get("/pages/common.js", headers={"If-None-Match": f"W/{first.headers['etag']}"})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert api.get("/pages/common.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert api.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_only_our_files_and_its_policy_allows_only_those(api: TestClient, path: str) -> None:
    answer = api.get(path)
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert not re.search(r"https?:", POLICY)
    page = answer.text
    assert not re.search(r"(src|href)=.(https?:|//)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL) == [""] * (2 if path == "/docs" else 1)
    loaded = re.findall(r'(?:src|href)="(pages/[^"]+)"', page)
    assert len(loaded) == (5 if path == "/docs" else 3)
    assert {"/" + one for one in loaded} <= PATHS


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".js")])
def test_scripts_are_small_and_make_no_markup_of_data(name: str) -> None:
    assert len(TEXTS[name].splitlines()) <= LINES_MAX
    assert not re.search(MARKUP, TEXTS[name])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", TEXTS[name])
    for module in re.findall(r'^import .* from "(.*)";$', TEXTS[name], flags=re.MULTILINE):
        assert module.removeprefix("./") in TEXTS


def test_the_header_is_the_same_on_every_page() -> None:
    headers = {re.search(r"<header>.*?</header>", TEXTS[name], re.DOTALL).group() for name in PAGES.values()}  # type: ignore[union-attr]
    assert len(headers) == 1
    for name in PAGES.values():
        assert TEXTS[name].count("<h1") == 1
        assert 'lang="en"' in TEXTS[name]


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_edges_stand_out_as_wcag_aa_wants(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", TEXTS["style.css"], flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for ground in ("ground", "card"):
        for text in ("ink", "soft", "served", "good", "warn", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for shape in ("edge", "followed", "popular"):
            assert contrast(colours[shape], colours[ground]) >= 3, (shape, ground)
    assert contrast(colours["card"], colours["served"]) >= 4.5  # of buttons
