"""A real browser without a window: its page as text, or driven by Chrome's DevTools protocol over two pipes."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 60


def command(folder: Path) -> list[str]:
    """How the browser is started; a test is skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here: the dashboard is not looked at in a browser")
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    return [chromium, "--headless", "--no-sandbox", "--disable-gpu", *quiet.split(), f"--user-data-dir={folder}"]


def dumped(folder: Path, url: str) -> str:
    """A page as it stands after three seconds."""
    options = ["--virtual-time-budget=3000", "--dump-dom", url]
    return subprocess.run(
        [*command(folder), *options], capture_output=True, text=True, timeout=60, check=True
    ).stdout  # fmt: skip


class Page:
    """A page in a headless browser, driven by Chrome's DevTools protocol over two pipes."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, os.fdopen(from_browser, "rb", buffering=0)
        self._number, self._rest, self._session = 0, b"", ""
        self.wrong: list[str] = []  # exceptions, and what the page's policy forbade

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
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.wrong.append(json.dumps(event["params"]["exceptionDetails"])[:1_000])
        if event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error" and entry["source"] != "network":
                self.wrong.append(entry["text"])

    def open(self, url: str, width: int = 1_280, *, dark: bool = False) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Runtime.enable")
        self.ask("Log.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a script; None where it fails, or the page is just being loaded."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return found.get("result", {}).get("value")

    def until(self, script: str, wanted: Any) -> None:
        deadline, found = time.monotonic() + WAIT_S, None
        while (found := self.run(script)) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText") or "")

    def press(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    start = command(folder)
    (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *start, "--remote-debugging-pipe"],
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
