"""The main page's panels in a real browser: history, versions, requests of the API, dead letters."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.online.api.chromium import Page, browser
from tests.online.api.stub_api import EVIL, Stub, minutes, status, stub_api
from tests.online.api.test_pages_in_browser import shows

pytestmark = pytest.mark.real

GATE = {
    "clicks": 1_250, "live": 0.31, "candidate": 0.33, "difference": 0.02, "interval": [-0.01, 0.05],
    "decision": "publish",
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def stub(page: Page) -> Iterator[Stub]:
    """The API; at the end of each test nothing was thrown, and no data has become markup."""
    with stub_api() as stub:
        yield stub
        assert page.wrong == []
        assert page.run("document.querySelectorAll('img').length") == 0
        page.ask("Page.navigate", url="about:blank")
        page.until("location.href", "about:blank")


def test_charts_begin_with_the_worker_s_history_and_mark_versions(page: Page, stub: Stub) -> None:
    stub.history = [{"worker": None, "minutes": minutes(90)}]
    at = 1e3 * (time.time() - 1_800)
    versions = [
        {"number": 1, "state": "kept", "at_ms": 1, "learned": 0, "why": "the beginning", "parent": None},
        {"number": 2, "state": "live", "at_ms": at, "learned": 9_000, "why": EVIL, "parent": 1, "figures": GATE},
    ]
    stub.worker = status(versions=versions, gate=GATE | {"decision": "go on", "clicks": 40})
    page.open(stub.url)
    page.until("document.querySelectorAll('#rate-chart .published, #course .published').length", 2)
    chart = page.run("document.getElementById('rate-chart').textContent")
    assert "v2" in chart
    assert "30 min ago" in chart
    assert "minute by minute" in page.text("#course-about")
    found = shows(
        page, "#versions", EVIL, "0.3300 against 0.3100, difference +0.0200 (-0.0100 to +0.0500), 1,250 clicks"
    )
    assert "50.0 % → 50." in found.replace("\xa0", " ")
    shows(page, "#gate", "40 clicks: go on")
    for minutes_, begins in (("1440", "90 min ago"), ("5", "2 min ago")):
        page.run(f"""document.getElementById('minutes').value = '{minutes_}';
            document.getElementById('minutes').dispatchEvent(new Event('change'))""")
        assert begins in page.run("document.getElementById('rate-chart').textContent")


def test_without_a_history_the_page_says_so_and_asks_again_once_it_may(page: Page, stub: Stub) -> None:
    stub.fails["history.json"] = 503
    page.open(stub.url)
    shows(page, "#course-about", "there is no history.json for you (503)")
    del stub.fails["history.json"]
    shows(page, "#course-about", "no figures of before")


def test_requests_of_the_api_are_shown_without_the_dashboard_s_own(page: Page, stub: Stub) -> None:
    page.open(stub.url)
    page.until("document.querySelectorAll('#requests tbody tr').length", 1)
    assert "/v1/rank" in page.text("#requests")
    page.until("/requests [1-9]/.test(document.getElementById('requests-chart').textContent)", True)
    assert "p50 15 ms" in page.run("document.getElementById('answers-chart').textContent")
    assert "failed (5xx) 0" in page.run("document.getElementById('errors-chart').textContent")
    script = "import('./pages/requests.js').then(({ quantile }) => [quantile([0, 4, 0], [0.01, 0.02], 0.5),"
    assert page.run(f"{script} quantile([0, 0, 9], [0.01, 0.02], 0.99), quantile([0, 0, 0], [1, 2], 0.5)])") == [
        15, 20, None,
    ]  # fmt: skip
    stub.fails["requests.json"] = 401
    shows(page, "#requests-about", "there is no requests.json for you (401)")


def test_dead_letters_are_browsed_by_reason(page: Page, stub: Stub) -> None:
    stub.worker = status(dead_letters={"malformed-json": 40, "wrong-type": 2})
    page.open(stub.url)
    shows(page, "#letters-about", "42 counted by the worker")
    assert page.run("[...document.getElementById('reason').options].map((one) => one.textContent)") == [
        "all", "malformed-json (40)", "wrong-type (2)",
    ]  # fmt: skip
    page.run("document.getElementById('reason').value = 'wrong-type'")
    page.press("#letters-again")
    found = shows(page, "#letters", "clicks, partition 0, offset 5", f"it is {EVIL}", "{" + EVIL)
    assert "offset 8" not in found
    assert "/dead-letters?limit=20&reason=wrong-type" in stub.asked
    assert "nextclick dead-letters --redrive" in page.text("main")
    stub.fails["dead-letters"] = 503
    page.press("#letters-again")
    shows(page, "#letters-about", "They cannot be shown: there is no dead-letters for you (503)")


def clicked(user: str, rank: int | None = 0) -> dict[str, Any]:
    return {"at": int(1e3 * time.time()), "user_id": user, "item_id": "i9", "event_type": "click", "rank": rank}


def test_the_latest_clicks_come_with_the_place_that_each_item_had(page: Page, stub: Stub) -> None:
    page.open(stub.url)
    found = shows(page, "#clicks", "a kettle (i9)", "place 3", "not in its first 10", "not looked up", EVIL)
    assert page.run("document.querySelectorAll('#clicks tbody tr').length") == 3
    assert "in the list before" in found
    hrefs = page.run(
        "[...document.querySelectorAll('#clicks tr:first-child a')].map((one) => one.getAttribute('href'))"
    )
    assert hrefs == ["user.html?id=ada", "item.html?id=i9"]
    stub.clicks = [clicked("bob", 1), *stub.clicks]
    shows(page, "#clicks tbody tr", "bob", "place 1")
    assert "the latest 4" in page.text("#clicks-about")
    stub.fails["clicks"] = 401
    shows(page, "#clicks-about", "there is no clicks for you (401)")


@pytest.mark.parametrize("how", ["button", "pointer", "focus"])
def test_the_latest_clicks_stand_still_while_they_are_looked_at(page: Page, stub: Stub, how: str) -> None:
    page.open(stub.url)
    shows(page, "#clicks", "place 3")
    starts = {
        "button": lambda: page.press("#clicks-pause"),
        "pointer": lambda: page.run("document.getElementById('clicks-area').scrollIntoView()"),
        "focus": lambda: page.run("document.querySelector('#clicks a').focus()"),
    }
    starts[how]()
    if how == "pointer":
        place = page.run("(({x, y}) => [x + 5, y + 5])(document.getElementById('clicks-area').getBoundingClientRect())")
        page.ask("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    shows(page, "#clicks-about", "They stand still.")
    stub.clicks = [clicked("bob"), *stub.clicks]
    time.sleep(2.5)
    assert "bob" not in page.text("#clicks")
    assert (
        page.run("document.getElementById('clicks-pause').getAttribute('aria-pressed')") == str(how == "button").lower()
    )
    if how == "button":
        page.press("#clicks-pause")
    elif how == "pointer":
        page.ask("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    else:
        page.run("document.activeElement.blur()")
    shows(page, "#clicks", "bob")


def test_a_worker_that_tells_no_clicks_is_said(page: Page, stub: Stub) -> None:
    stub.tells_clicks, stub.clicks = False, []
    page.open(stub.url)
    shows(page, "#clicks-about", "NEXTCLICK_CLICKS_SHOWN is 0")
