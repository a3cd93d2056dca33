"""How `benchmarks.faults --scrape` judges what workers and the API say."""

import http.server
import json
import threading
import time
from typing import Any

import pytest

from benchmarks import _scrapes
from benchmarks._scrapes import Answer, Process, Scrapes

BEGAN, ENDED, FRESH = 100.0, 130.0, 133.0


@pytest.fixture
def scrapes() -> Scrapes:
    found = Scrapes()
    found.close()
    found.marks = {"began": BEGAN, "ended": ENDED, "fresh": FRESH}
    found.answers = [ready(50.0), ready(50.0, process="serve")]
    return found


def ready(at: float, *kinds: str, process: str = "worker 0", status: int = 200) -> Answer:
    problems = [{"kind": kind} for kind in kinds]
    text = json.dumps({"status": "degraded" if kinds else "ready", "problems": problems})
    return Answer(at, process, "/readyz", status, 0.01, text)


def metrics(at: float, *kinds: str, status: int = 200) -> Answer:
    text = "".join(f'nextclick_problem{{kind="{kind}"}} 1.0\n' for kind in kinds)
    return Answer(at, "worker 0", "/metrics", status, 0.01, "nextclick_up 1.0\n" + text)


@pytest.mark.parametrize(
    ("answer", "is_wrong"),
    [
        (ready(BEGAN + 5), False),  # not noticed yet
        (ready(BEGAN + 15), True),
        (metrics(BEGAN + 15), True),
        (ready(BEGAN + 15, "redis"), False),
        (metrics(BEGAN + 15, "redis", "lagging"), False),
        (ready(BEGAN + 15, "lagging"), True),
        (ready(ENDED + 2, "redis"), False),  # not over yet
        (ready(FRESH + 2, "redis"), False),
        (ready(FRESH + 9, "redis"), True),
        (metrics(FRESH + 9, "redis"), True),
        (ready(FRESH + 9, status=503), True),
        (ready(BEGAN - 5, "redis"), True),
        (metrics(BEGAN + 15, "redis", status=500), True),
        (ready(BEGAN + 15, process="serve"), True),
        (ready(BEGAN + 15, process="serve", status=503), False),
        (ready(FRESH + 9, process="serve", status=503), True),
        (ready(FRESH + 9, "waiting", process="worker 1", status=503), False),  # it has only just been started
    ],
)
def test_what_is_said_too_late_too_long_or_without_cause_is_wrong(
    scrapes: Scrapes, answer: Answer, *, is_wrong: bool
) -> None:
    scrapes.answers.append(answer)
    assert bool(scrapes.wrong("redis", unreadable=True)) == is_wrong


class _Answers(http.server.BaseHTTPRequestHandler):
    slow = False

    def do_GET(self) -> None:
        if _Answers.slow:
            time.sleep(1.0)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_no_answer_in_time_is_a_gap_while_the_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scrapes, "ANSWER_S_MAX", 0.2)
    monkeypatch.setattr(_scrapes, "EVERY_S", 0.05)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    scrapes = Scrapes()
    lives = [1]
    scrapes.add(Process("w", f"http://127.0.0.1:{server.server_port}", lambda: lives[0] if lives else None))
    scrapes.add(Process("never there", "http://127.0.0.1:1", lambda: 2))
    deadline = time.monotonic() + 30
    while len(scrapes.answers) < 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert scrapes.gaps() == []
    _Answers.slow = True
    try:
        while not scrapes.gaps():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert scrapes.gaps()[0].startswith("w/")
        lives.clear()  # it has ended: these were its last moments
    finally:
        scrapes.close()
        server.shutdown()
        server.server_close()
        _Answers.slow = False
    assert scrapes.gaps() == []
