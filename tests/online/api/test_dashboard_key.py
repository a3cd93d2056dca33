"""The dashboard where the API asks for a key: it asks for it, keeps it for the tab, and shows the rest then."""

from pathlib import Path

import fakeredis
import pytest

from online.api.keys import make_key
from online.api.serve import Api
from online.config.settings import Settings
from stream.lists import Lists, TopList
from tests.online.api.chromium import Page, browser

TOP = TopList(items=["a kettle"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=1, source="popular")


@pytest.mark.real
def test_the_page_asks_for_the_key_and_shows_the_rest_with_it(tmp_path: Path) -> None:
    key, entry = make_key("operator")
    lists = Lists(fakeredis.FakeRedis(), ttl_s=60)
    lists.write({"ada": TOP})
    lists.write_status({"state": "running", "version": 3, "started_at": 1, "learned": 12_345}, 60)
    api = Api(Settings(api_port=0, api_keys=(entry,)), lists).start()
    state, hidden = "document.getElementById('state').textContent", "document.getElementById('login').hidden"

    def enter(page: Page, text: str) -> None:
        page.run(f"document.getElementById('key').value = {text!r}; document.querySelector('#login button').click()")

    try:
        with browser(tmp_path) as page:
            page.open(f"{api.url}/#ada")
            page.until(state, "an API key is needed")
            assert page.run(hidden) is False
            assert page.run("getComputedStyle(document.getElementById('login')).display") == "flex"
            enter(page, "nck_guessed")
            page.until(state, "this API key is not valid")
            enter(page, f" {key} ")
            page.until(state, "learning")
            page.until("getComputedStyle(document.getElementById('login')).display", "none")
            assert page.run("document.getElementById('learned').textContent") == "12,345"
            page.until("document.querySelector('#list li')?.firstChild.textContent", "a kettle")
            assert page.run("location.href") == f"{api.url}/#ada"
            assert page.run("sessionStorage.getItem('key')") == key
            assert page.run("localStorage.length + document.cookie.length") == 0
            page.run("location.reload()")
            page.until(f"document.readyState + {state}", "completelearning")
    finally:
        api.close()
