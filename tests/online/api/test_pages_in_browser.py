"""The dashboard's pages in a real browser, against an API that answers as it is told."""

import json
import time
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest

from online.api.keys import make_key
from online.api.serve import Api
from online.config.settings import Settings
from stream.lists import Lists, TopList
from tests.online.api.chromium import Page, browser
from tests.online.api.stub_api import EVIL, Stub, status, stub_api

pytestmark = pytest.mark.real

HEALTH = "document.getElementById('health').className"
USER, ITEM = "/user.html?id=ada", "/item.html?id=i9"


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
        assert page.run("document.title") != "owned"
        page.ask("Page.navigate", url="about:blank")  # or its connections would keep the server
        page.until("location.href", "about:blank")


def shows(page: Page, selector: str, *texts: str) -> str:
    for text in texts:
        page.until(f"document.querySelector({selector!r})?.innerText.includes({text!r})", True)
    return page.text(selector)


def problem(kind: str, text: str) -> dict[str, Any]:
    return {"kind": kind, "since": 1, "text": text}


@pytest.mark.parametrize(
    ("answers", "kind", "words"),
    [
        ({}, "good", ""),
        ({"worker": status(abuse_share=0.8)}, "bad", "most of the latest clicks are flagged"),
        ({"worker": status(unreadable_share_of={"clicks": 0.9})}, "bad", "dead letters (about 90 %)"),
        ({"worker": status(problems=[problem("outage", "no clicks come")])}, "bad", "no clicks come"),
        ({"worker": status(problems=[problem("checkpoint_failed", "disk full")])}, "bad", "fail: disk full"),
        ({"worker": status(unsaved_since=1)}, "bad", "checkpoints fail"),
        ({"worker": status(redis="waiting")}, "bad", "Redis does not take the lists"),
        ({"worker": status(waits_for=["no Kafka answers"])}, "bad", "waiting: no Kafka answers"),
        ({"reported_s_ago": 95}, "bad", "has not reported for 2 min"),
        ({"redis": "no Redis answers"}, "bad", "no Redis answers"),
        ({"worker": None}, "bad", "no worker reports"),
        ({"ready": (503, {"detail": "nothing has been learned yet"})}, "bad", "nothing has been learned yet"),
        ({"fails": {"status.json": 401}}, "bad", "there is no status.json for you"),
        ({"worker": status(behind=True)}, "degraded", "clicks wait longer"),
        ({"worker": status(state="starting")}, "degraded", "starting"),
        ({"worker": status(problems=[problem("evicting", "Redis is full")])}, "degraded", "Redis is full"),
        ({"ready": (200, {"status": "degraded", "problems": [problem("worker", "slow")]})}, "degraded", "slow"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_health_says_what_is_wrong(page: Page, answers: dict[str, Any], kind: str, words: str) -> None:
    with stub_api(**answers) as stub:
        page.open(stub.url)
        page.until(HEALTH, kind)
        assert words in page.text("#health")
        assert page.run("document.getElementById('health').getAttribute('role')") == "status"
        page.ask("Page.navigate", url="about:blank")


def test_counters_that_rise_turn_health_red(page: Page, stub: Stub) -> None:
    page.open(stub.url)
    page.until(HEALTH, "good")
    stub.worker = status(learned=12_400, dead_letters={"malformed-json": 500})
    shows(page, "#why", "most of the latest messages are dead letters")
    assert page.run(HEALTH) == "bad"
    stub.worker = status(learned=13_400, dead_letters={"malformed-json": 500}, flagged={"rate": 900})
    shows(page, "#why", "flagged or dead letters")


@pytest.mark.parametrize(
    ("lags", "kind"),
    [
        ([(0, 0), (9_000, 10), (18_000, 20)], "bad"),
        ([(500, 8), (510, 14), (520, 20)], "bad"),
        ([(500, 8), (500, 8), (500, 8)], "degraded"),
        ([(18_000, 20), (9_000, 10), (900, 1)], "degraded"),
        ([(0, 0), (31, 0.3), (32, 0.2)], "degraded"),
    ],
    ids=["messages", "seconds", "stays", "shrinks", "of one burst"],
)
def test_a_lag_that_grows_is_worse_than_one_that_does_not(
    page: Page, stub: Stub, lags: list[tuple[int, float]], kind: str
) -> None:
    page.open(stub.url)
    page.until(HEALTH, "good")
    statuses = [
        {"now": 10_000 * n, "redis": "ok", "worker": status(behind=True, lag=lag, lag_s=seconds)}
        for n, (lag, seconds) in enumerate(lags)
    ]
    script = f"""import('./pages/health.js?{kind}{lags}').then(({{ judge }}) => {json.dumps(statuses)}
        .map((data) => judge({{ ok: true, data }}, {{ ok: true, data: {{ status: 'ready' }} }}).kind))"""
    assert page.run(script) == ["degraded", "degraded", kind]


def test_charts_have_axes_with_units_and_a_legend(page: Page, stub: Stub) -> None:
    page.open(stub.url)
    page.until("document.querySelectorAll('#latency-chart polyline').length", 4)  # two lines, and two in the legend
    chart = page.run("document.getElementById('latency-chart').textContent")
    assert all(text in chart for text in ("milliseconds", "100", "now", "s ago", " p50 22 ms", " p99 88 ms"))
    assert (
        page.run("document.getElementById('latency-chart').getAttribute('aria-label')")
        == "latest: p50 22 ms, p99 88 ms"
    )
    for name, unit in (("rate-chart", "clicks per second"), ("lag-chart", "messages"), ("course", "% of clicks")):
        assert unit in page.run(f"document.getElementById('{name}').textContent")
    assert "what followed last time 50.0" in page.run("document.getElementById('course').textContent")


def test_one_question_brings_the_titles_of_all_items(page: Page, stub: Stub) -> None:
    page.open(f"{stub.url}/#ada")
    found = shows(page, "#list", "a kettle (i9)", "<b>tea</b> (i7)", EVIL)
    assert "50.0" in found
    time.sleep(1.5)  # the page has asked for the list again
    assert len([path for path in stub.asked if path.startswith("/titles")]) == 1
    assert page.run("document.querySelector('#list a').getAttribute('href')") == "item.html?id=i9"
    assert page.run("document.querySelector('#about a').getAttribute('href')") == "user.html?id=ada"


def test_the_search_opens_the_pages_of_users_and_items(page: Page, stub: Stub) -> None:
    page.open(stub.url)
    page.until("document.readyState", "complete")
    for kind, id_, address in (("item", "i/9?", "/item.html?id=i%2F9%3F"), ("user", "a b", "/user.html?id=a%20b")):
        page.run(f"document.getElementById('kind').value = {kind!r}; document.getElementById('sought').value = {id_!r}")
        page.press("#search button")
        page.until("location.pathname + location.search", address)
        page.until("document.getElementById('sought').value + document.getElementById('kind').value", id_ + kind)


def test_a_user_s_page_shows_list_reasons_history_and_weights(page: Page, stub: Stub) -> None:
    page.open(stub.url + USER)
    shows(page, "#list", "a kettle (i9)", "50.0", "often after “tea”", f"suits {EVIL}", "nothing stands out")
    shows(page, "#history", "a kettle (i9) click", "1 h ago", EVIL)
    assert page.text("#known") == "40 clicks in all; the latest 4 are shown."
    assert page.text("#hidden") == "Nothing is hidden."
    page.until("document.querySelectorAll('.heat tbody tr').length", 3)
    cells = """[...document.querySelectorAll('.heat tbody tr')].map((row) => [...row.cells].slice(1)
        .map((cell) => Number(cell.querySelector('i')?.style.opacity ?? 0) > 0))"""
    no = False
    # The oldest click first: the user's own moment at the newest, another's at the latest click on what it came after.
    assert page.run(cells) == [[no, True, no, True, no], [no, no, no, no, True], [no] * 5]
    page.run("document.querySelector('.heat tbody tr').cells[4].querySelector('button').focus()")
    read = page.text("#reading")
    assert all(
        text in read
        for text in ("a kettle (i9) ← click 4: a kettle (i9)", "weight 0.8", "1 of this user", "0.4 to the score")
    )
    assert "0.8" in page.text(".scale")


def test_an_item_is_hidden_and_shown_again(page: Page, stub: Stub) -> None:
    page.open(stub.url + USER)
    shows(page, "#list", "a kettle")
    stub.fails["hide"] = 401
    page.press("#list button")
    shows(page, "#asked", "is not hidden: there is no hide for you (401)", "Enter the key above")
    page.until("document.getElementById('login').hidden", False)
    del stub.fails["hide"]
    page.press("#list button")
    shows(page, "#asked", "a kettle (i9) was hidden. The list was ranked again without it.")
    assert "a kettle" not in page.text("#list")
    shows(page, "#hidden", "a kettle (i9) for good")
    page.press("#hidden button")
    shows(page, "#asked", "a kettle (i9) may be listed again.")
    shows(page, "#list", "a kettle")


def test_an_item_s_page_shows_what_it_is_like_and_where_it_stands(page: Page, stub: Stub) -> None:
    page.open(stub.url + ITEM)
    shows(page, "h1", "Item a kettle (i9)")
    shows(page, "#facts-of-item", "kitchen", EVIL, "not available: no list shows it", "price", "12.5")
    shows(page, "#lists", "In 31 of 2,000 lists", "ada rank 2", f"{EVIL} rank 4")
    shows(page, "#follows", "<b>tea</b> (i7)", "0.3")
    assert page.text("#near") == "Nothing is clicked near it yet."
    assert page.text("#content") == "No worker answered in time, so similar items are not known."


@pytest.mark.parametrize("code", [401, 404, 503])
def test_a_route_that_does_not_answer_leaves_a_word_in_its_panel(page: Page, stub: Stub, code: int) -> None:
    stub.fails = dict.fromkeys(("users", "items", "similar", "titles"), code)
    page.open(stub.url + USER)
    for selector in ("#known", "#hidden", "#map"):
        shows(page, selector, f"there is no users for you ({code})")
    shows(page, "#list", "i9", "often after “tea”")
    page.open(stub.url + ITEM)
    for selector, first in (("#facts-of-item", "items"), ("#lists", "items"), ("#near", "similar")):
        shows(page, selector, f"there is no {first} for you ({code})")
    stub.fails = {"rank": code}
    page.open(stub.url + USER)
    shows(page, "#asked", f"There is no list: there is no rank for you ({code})")
    shows(page, "#map", "There are no weights")


def test_a_list_that_no_worker_explained_says_so(page: Page, stub: Stub) -> None:
    stub.explained = False
    page.open(stub.url + USER)
    shows(page, "#asked", "this is the stored list, without reasons", "Ask again in a moment.")
    assert page.text("#map") == "There are no weights: no worker has explained the list."
    stub.explained = True
    page.press("#again")
    shows(page, "#list", "often after “tea”")


def test_the_real_api_without_a_worker_shows_the_stored_list(page: Page) -> None:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    top = TopList(items=[EVIL], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=1, source="personal")
    lists.write({"ada": top})
    api = Api(Settings(api_port=0, ask_timeout_ms=10), lists).start()
    try:
        page.open(api.url + USER)
        shows(page, "#list", EVIL, "50.0")
        shows(page, "#asked", "this is the stored list, without reasons")
        shows(page, "#state", "no worker reports")
        page.press("#list button")
        shows(page, "#asked", "is not hidden: ")
        assert page.wrong == []
        page.ask("Page.navigate", url="about:blank")
    finally:
        api.close()


def test_the_page_of_the_api_shows_its_routes_with_a_key_and_asks_them(page: Page) -> None:
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write(
        {}, TopList(items=["i1"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=1, source="popular")
    )
    key, entry = make_key("shop")
    api = Api(Settings(api_port=0, api_keys=(entry,)), lists).start()
    try:
        page.open(api.url + "/docs")
        shows(page, "#asked", "an API key is needed")
        page.until("document.getElementById('login').hidden", False)
        page.run(f"document.getElementById('key').value = {key!r}")
        page.press("#login button")
        shows(page, "#routes", "/v1/recommend/{user}", "/v1/rank", "/healthz", "Authorize")
        page.press("#operations-default-popular_v1_popular_get .opblock-summary-control")
        page.until("!!document.querySelector('.try-out button')", True)
        page.press(".try-out button")
        page.until("!!document.querySelector('button.execute')", True)
        page.press("button.execute")
        shows(page, ".live-responses-table", "200", "i1")
        assert page.wrong == []
        page.ask("Page.navigate", url="about:blank")
    finally:
        api.close()


@pytest.mark.parametrize("path", ["/user.html", "/item.html"])
def test_a_page_without_an_id_says_what_to_do(page: Page, stub: Stub, path: str) -> None:
    page.open(stub.url + path)
    shows(page, "main", "with the form above")
    assert not any(asked.startswith(("/users", "/items", "/rank")) for asked in stub.asked)


@pytest.mark.parametrize("path", ["/#ada", USER, ITEM, f"/user.html?id={'x' * 256}"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(page: Page, stub: Stub, path: str, dark: bool) -> None:
    stub.titles["i9"] = "a" * 200
    stub.worker = status(problems=[problem("checkpoint_failed", "x" * 300)])
    page.open(stub.url + path, 360, dark=dark)
    page.until("!!document.querySelector('a.item .title')", True)
    page.until("document.fonts.status", "loaded")
    assert page.run("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    assert page.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 21, 23)" if dark else "rgb(246, 245, 241)"
    )


def test_controls_have_names_and_focus_can_be_seen(page: Page, stub: Stub) -> None:
    for path in ("/", USER, ITEM):
        page.open(stub.url + path)
        page.until(HEALTH, "good")
        nameless = """[...document.querySelectorAll('input, select, button, figure, table.heat')].filter((one) =>
            !(one.labels?.length || one.ariaLabel || one.getAttribute('aria-labelledby') || one.textContent.trim()))
            .map((one) => one.id)"""
        assert page.run(nameless) == []
        levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map((one) => one.tagName)")
        assert levels[0] == "H1"
        assert set(levels[1:]) == {"H2"}
        for type_ in ("rawKeyDown", "keyUp"):
            page.ask("Input.dispatchKeyEvent", type=type_, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        assert page.run("document.activeElement.className") == "skip"
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
