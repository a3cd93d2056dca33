"""The dashboard's pages can be used by everyone: what axe-core finds in them, and where the Tab key leads."""

import json
from collections.abc import Iterator

import fakeredis
import pytest

from online.api.serve import Api
from online.config.settings import Settings
from stream.lists import Lists
from tests.online.api.axe import violations
from tests.online.api.chromium import Page, browser
from tests.online.api.stub_api import minutes, status, stub_api

pytestmark = pytest.mark.real

CONTROLS = "a[href], button, input, select, summary, [tabindex]"
STEPS_MAX = 200  # of the Tab key


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/#ada", "#list .title"),
        ("/user.html?id=ada", ".heat button"),
        ("/item.html?id=i9", "#follows .title"),
    ],
)
def test_axe_finds_nothing_in_a_page(page: Page, path: str, there: str, *, dark: bool) -> None:
    problem = {"kind": "checkpoint_failed", "since": 1, "text": "the disk is full"}
    versions = [{"number": 2, "state": "live", "at_ms": 1, "learned": 9, "why": "fine-tuned", "parent": 1}]
    worker = status(problems=[problem], versions=versions, dead_letters={"wrong-type": 1})
    with stub_api(worker=worker, history=[{"worker": None, "minutes": minutes(30)}]) as stub:
        page.open(stub.url + path, dark=dark)
        page.until(f"!!document.querySelector({there!r})", True)
        if path.startswith("/#"):
            page.press("#letters-again")
            page.until("!!document.querySelector('#letters code') && !!document.querySelector('#requests th')", True)
        assert violations(page) == []
        page.ask("Page.navigate", url="about:blank")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_in_the_page_of_the_api(page: Page, *, dark: bool) -> None:
    api = Api(Settings(api_port=0), Lists(fakeredis.FakeRedis(), ttl_s=60)).start()
    try:
        page.open(api.url + "/docs", dark=dark)
        page.until("!!document.querySelector('.opblock')", True)
        page.until("document.getElementById('health').className", "bad")
        assert violations(page) == []
        page.ask("Page.navigate", url="about:blank")
    finally:
        api.close()


@pytest.mark.parametrize("path", ["/#ada", "/user.html?id=ada", "/item.html?id=i9"])
def test_the_tab_key_reaches_all_controls(page: Page, path: str) -> None:
    with stub_api() as stub:
        page.open(stub.url + path)
        page.until("!!document.querySelector('a.item .title')", True)
        page.run(
            f"""globalThis.reached = new Set();
            document.addEventListener('focusin', (event) => reached.add(event.target), true);
            globalThis.left = () => [...document.querySelectorAll({json.dumps(CONTROLS)})]
                .filter((one) => one.tabIndex >= 0 && one.checkVisibility() && !reached.has(one))
                .map((one) => one.outerHTML)"""
        )
        for _ in range(STEPS_MAX):
            if page.run("left()") == []:
                break
            for type_ in ("rawKeyDown", "keyUp"):
                page.ask("Input.dispatchKeyEvent", type=type_, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        assert page.run("left()") == []
        page.ask("Page.navigate", url="about:blank")
