"""The main page's panels in a real browser: history, versions, requests of the API, dead letters."""

import time
from collections.abc import Iterator

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
