"""Asks workers and the API how they are, each second while faults go on, and judges what they say: for faults.py."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

EVERY_S = 1.0
ANSWER_S_MAX = 3.0  # a later answer is none: so long do the health checks of our deployments wait
NOTICED_S = 12.0  # a fault that has lasted so long has to be said: two questions to a broker of 5 s, and a report
SETTLED_S = 5.0  # after lists were fresh again, until all that was wrong has to be over
ENDING_S_MAX = 10.0  # that a process that ends in order may take after its last answer
TOLD_MAX = 20  # lines of a row
PATHS = ("/metrics", "/healthz", "/readyz")


class Answer(NamedTuple):
    """What one question got. `status`: None: no answer in time."""

    at: float
    process: str
    path: str
    status: int | None
    seconds: float
    text: str


class Process(NamedTuple):
    """Who is asked. `pid`: None while it does not live."""

    name: str
    url: str
    pid: Callable[[], int | None]


class Scrapes:
    """Answers of the processes that are added, until `close`."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._silences: list[tuple[int, Answer]] = []  # pids, and what they did not answer though they lived
        self.marks: dict[str, float] = {}  # began, ended, fresh: when, by the monotonic clock
        self._processes: list[Process] = []
        self._answered: set[tuple[str, int, str]] = set()  # names, pids and paths that have answered
        self._last: dict[int, float] = {}  # by pid: when its latest question that it answered was asked
        self._living: set[int] = set()  # pids, when it was closed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, process: Process) -> None:
        self._processes.append(process)

    def mark(self, name: str) -> None:
        self.marks[name] = time.monotonic()

    def close(self) -> None:
        """Ends it; what happens to the processes afterwards is not judged."""
        if not self._stop.is_set():
            self._living = self._lives()
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            while not self._stop.wait(EVERY_S):
                for process in list(self._processes):
                    for path in PATHS:
                        pool.submit(self._ask, process, path)

    def _ask(self, process: Process, path: str) -> None:
        """A question without an answer is a gap if the process lived before and after it, and had answered before."""
        pid, at = process.pid(), time.monotonic()
        if pid is None:
            return
        status, text = _get(process.url + path)
        answer = Answer(at, process.name, path, status, time.monotonic() - at, text)
        self.answers.append(answer)
        if status is not None:
            self._answered.add((process.name, pid, path))
            self._last[pid] = max(at, self._last.get(pid, at))
        elif (process.name, pid, path) in self._answered and process.pid() == pid and not self._stop.is_set():
            self._silences.append((pid, answer))

    def _lives(self) -> set[int]:
        return {pid for process in self._processes if (pid := process.pid()) is not None}

    def gaps(self) -> list[str]:
        """Returns what was not answered, but for the last moments of processes that have ended."""
        living = self._living if self._stop.is_set() else self._lives()
        return [
            f"{one.process}{one.path}: no answer within {one.seconds:.1f} s"
            for pid, one in self._silences
            if pid in living or not 0 <= one.at - self._last[pid] <= ENDING_S_MAX
        ]

    def slowest_s(self) -> float:
        return max((one.seconds for one in self.answers if one.status is not None), default=0.0)

    def wrong(self, says: str | None, *, unreadable: bool) -> list[str]:
        """Returns what was said that was not so, or not said that was.

        Args:
            says: the kind of problem that workers have to report while the fault lasts; None: none.
            unreadable: whether the API has no lists to read meanwhile.
        """
        began = self.marks.get("began", float("inf"))
        ended = self.marks.get("ended", float("inf"))
        fresh = self.marks.get("fresh", float("inf")) + SETTLED_S
        ran: set[str] = set()  # processes that were ready once
        found = []
        for one in sorted(self.answers):
            where = f"{one.process}{one.path} at {one.at - began:+.0f} s (ended at {ended - began:.0f})"
            during, quiet = began + NOTICED_S < one.at < ended - ANSWER_S_MAX, one.at < began or one.at > fresh
            is_api = one.process == "serve"
            if one.path != "/readyz" and one.status not in (200, None):
                found.append(f"{where}: status {one.status}")
            if one.status is None or one.path == "/healthz" or (is_api and one.path == "/metrics"):
                continue
            kinds = _kinds(one.text) if one.path == "/readyz" else _kinds_of_metrics(one.text)
            if one.path == "/readyz" and _is_ready(one):
                ran.add(one.process)
            if quiet and one.process in ran and (kinds or one.status != 200):
                found.append(f"{where}: status {one.status}, {kinds} is said: {one.text[-200:]}")
            if during and is_api and one.status != (503 if unreadable else 200):
                found.append(f"{where}: status {one.status}: {one.text[:200]}")
            if during and not is_api and says is not None and says not in kinds:
                found.append(f"{where}: {says} is not said, but {kinds}")
        return found


def _get(url: str) -> tuple[int | None, str]:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S_MAX) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError:
        return None, ""


def _is_ready(answer: Answer) -> bool:
    return answer.status == 200 and json.loads(answer.text)["status"] == "ready"


def _kinds(text: str) -> list[str]:
    """Kinds of problems in an answer of /readyz."""
    try:
        return [str(one["kind"]) for one in json.loads(text).get("problems", ())]
    except ValueError:
        return []


def _kinds_of_metrics(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith("nextclick_problem{") and line.endswith(" 1.0")]
    return [line.partition('kind="')[2].partition('"')[0] for line in lines]
