"""Several processes answer at one address; one that dies is replaced, and their metrics are added up."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from online.api.processes import SOON_ENDED_MAX, Processes
from online.api.server import API, ServeError, listen
from online.config.settings import Settings
from stream.embedded_redis import EmbeddedRedis
from stream.lists import Lists, TopList

SECONDS = 90.0  # on a busy machine


def until(what: str, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if true():
                return
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def free_address() -> int:
    with contextlib.closing(listen("127.0.0.1", 0, *API)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def redis_port() -> Iterator[int]:
    port = free_address()
    with EmbeddedRedis(port) as server:
        fields = {"version": 1, "offset": "0:1", "clicked_at": 1, "written_at": 2, "source": "personal"}
        Lists(server.client, ttl_s=60).write({}, TopList(items=["i"], scores=[0.5], **fields))
        yield port


@pytest.mark.skipif(sys.platform != "linux", reason="it looks processes up in /proc")
def test_two_processes_answer_and_one_that_is_killed_is_replaced(redis_port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_address())}"
    environment = os.environ | {"NEXTCLICK_EMBEDDED_REDIS_PORT": str(redis_port)}
    command = [sys.executable, "-m", "online", "serve", "--port", str(port), "--workers", "2"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, env=environment, stderr=log) as serving:
        try:
            until("it answers", lambda: httpx.get(f"{url}/healthz").status_code == 200)
            until("both have started", lambda: (tmp_path / "log").read_text().count("API at") == 2)
            for _ in range(20):  # connections of their own, so both processes have some
                assert httpx.get(f"{url}/recommend/ada").json()["items"] == ["i"]
            counted = re.findall(
                r'requests_total\{route="/v1/recommend/.*?"200"\} (\S+)', httpx.get(f"{url}/metrics").text
            )
            assert counted == ["20.0"]
            before = children(serving.pid)
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            assert httpx.get(f"{url}/healthz").status_code == 200
            until("another one has started", lambda: (tmp_path / "log").read_text().count("API at") == 3)
            assert before[1] in children(serving.pid)
            assert httpx.get(f"{url}/recommend/ada").json()["items"] == ["i"]
        finally:
            serving.terminate()
        assert serving.wait(SECONDS) == 0
    assert not any(Path(f"/proc/{process}").exists() for process in before)


def test_processes_that_end_as_soon_as_they_begin_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("online.api.processes.AGAIN_S", 0.0)
    monkeypatch.setattr("online.api.processes.sys.executable", "false")
    with contextlib.closing(listen("127.0.0.1", 0, *API)) as listener:
        processes = Processes(Settings(api_workers=1), tmp_path, listener)
        processes.start()

        def look_on() -> None:
            for _ in range(100 * SOON_ENDED_MAX):
                processes.look()
                time.sleep(0.05)

        with contextlib.closing(processes), pytest.raises(ServeError, match="again and again"):
            look_on()
