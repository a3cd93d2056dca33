"""The dashboard where the API asks for a key: it asks for it, keeps it for the tab, and shows the rest then."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from online.api.keys import make_key
from online.api.serve import Api
from online.config.settings import Settings
from stream.lists import Lists, TopList

WAIT_S = 60
TOP = TopList(items=["a kettle"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=1, source="popular")


class Page:
    """A page in a headless browser, driven by Chrome's DevTools protocol over two pipes."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, os.fdopen(from_browser, "rb", buffering=0)
        self._number, self._rest, self._session = 0, b"", ""

    def ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = self._from.read(65_536)
                assert piece, "the browser has ended"
                self._rest += piece
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                return answer.get("result", {})

    def open(self, url: str) -> None:
        target = self.ask("Target.createTarget", url=url)["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def run(self, script: str) -> Any:
        """The value of a script; None where it fails, or the page is just being loaded."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True).get("result", {}).get("value")

    def until(self, script: str, wanted: Any) -> None:
        deadline, found = time.monotonic() + WAIT_S, None
        while (found := self.run(script)) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here: the dashboard is not looked at in a browser")
    (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", *quiet.split(), f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *command, "--remote-debugging-pipe"],
        pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read)
    os.close(write)
    try:
        yield Page(to_browser, from_browser)
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)


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
            page.until("document.querySelector('#list li')?.firstChild.textContent", "a kettle ")
            assert page.run("location.href") == f"{api.url}/#ada"
            assert page.run("sessionStorage.getItem('key')") == key
            assert page.run("localStorage.length + document.cookie.length") == 0
            page.run("location.reload()")
            page.until(f"document.readyState + {state}", "completelearning")
    finally:
        api.close()
