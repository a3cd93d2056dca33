"""The demo runs everything in one process, shows what a click changes, and leaves nothing behind."""

import gzip
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks._servers import free_port
from online.commands.demo import DemoError, Stream, run_demo
from online.commands.demo_views import Story, story_view
from online.evaluation.town import Town
from online.serve import ServeError
from stream.events import BadEvent, Click, parse
from stream.lists import Lists, RedisAwayError, TopList

ROOT = Path(__file__).parents[3]


def demo(stop: threading.Event | None = None, *, width: int = 100, seconds: float = 5, **options: object) -> str:
    """What a short demo prints."""
    shown = io.StringIO()
    console = Console(file=shown, width=width, highlight=False)
    run_demo(console, stop or threading.Event(), seconds=seconds, **options)  # type: ignore[arg-type]
    return shown.getvalue()


@pytest.fixture(autouse=True)
def _of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the demo leaves behind is left here; its ports are not those that another test may choose meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("NEXTCLICK_API_PORT", "NEXTCLICK_EMBEDDED_REDIS_PORT"):
        monkeypatch.setenv(name, str(free_port()))


def test_a_demo_shows_a_list_before_and_after_a_click_and_what_to_try_next(tmp_path: Path) -> None:
    shown = demo(seed=1)
    assert re.search(
        r"\d+ s +[\d,]+ clicks +[\d,]+/s +hit@10 +[\d.]+ % \(popularity +[\d.]+ %\) +list in [\d,]+ ms", shown
    )
    assert "fashion changes" in shown
    assert re.search(r"[a-z]+-\d+ clicked [a-z ]+, which (stood at rank \d+ of the list|was not on the list)", shown)
    assert re.search(r"the list before +\d+ ms after the click", shown)
    assert re.search(r"in this town .* mostly follows .*:\n +.* before, .* now", shown)
    assert re.search(r"hit@10: [\d.]+ % before fashion changed", shown)
    assert "Try next:" in shown
    assert list(tmp_path.glob("nextclick-*")) == []


def test_an_embedded_redis_that_is_late_does_not_end_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    for name in ("read", "status"):
        answers = getattr(Lists, name)

        def late(self: Lists, *arguments: str, answers: Callable[..., object] = answers) -> object:
            if next(numbers) % 2:
                raise RedisAwayError("it was busy")
            return answers(self, *arguments)

        monkeypatch.setattr(Lists, name, late)
    assert "Try next:" in demo(seconds=2)


def test_a_demo_of_a_file_ends_with_the_file_and_keeps_its_data_where_it_is_told(tmp_path: Path) -> None:
    rows = "".join(f"{click.user_id},{click.item_id},{click.timestamp}\n" for click in Town(users=20).clicks(300))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(("user,item,timestamp\n" + rows + ",broken,5\n").encode()))
    shown = demo(seconds=120, data=tmp_path / "a.csv.gz", data_dir=tmp_path / "kept")
    assert re.search(r" 300 clicks ", shown)
    assert "fashion" not in shown
    assert f"NEXTCLICK_DATA_DIR={tmp_path / 'kept'} nextclick worker" in shown
    assert (tmp_path / "kept" / "log.db").exists()
    assert list((tmp_path / "kept" / "checkpoints").iterdir())


def test_ports_that_are_taken_are_exchanged_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as api, socket.create_server(("127.0.0.1", 0)) as redis:
        ports = [str(taken.getsockname()[1]) for taken in (api, redis)]
        monkeypatch.setenv("NEXTCLICK_API_PORT", ports[0])
        monkeypatch.setenv("NEXTCLICK_EMBEDDED_REDIS_PORT", ports[1])
        shown = demo(seconds=1)
        assert re.search(rf"port {ports[0]} is taken, so the API listens on \d+", shown)
        assert re.search(rf"port {ports[1]} is taken, so Redis listens on \d+", shown)
        with pytest.raises(ServeError, match=f"port {ports[0]}"):
            demo(port=int(ports[0]))


def test_a_stop_ends_it_cleanly(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(4, stop.set).start()
    assert "Try next:" in demo(stop, seconds=600)
    assert list(tmp_path.glob("nextclick-*")) == []


def test_a_worker_that_fails_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DemoError("the worker has fallen")

    monkeypatch.setattr("online.commands.demo.run_worker", fail)
    with pytest.raises(DemoError, match="has fallen"):
        demo()


def test_ctrl_c_ends_the_command_without_a_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "online", "demo", "--port", "0", "--seconds", "600"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "clicks" in line and "hit@10" in line:
            break
    process.send_signal(signal.SIGINT)
    shown, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Try next:" in shown
    assert "Traceback" not in error
    assert list(tmp_path.glob("nextclick-*")) == []


def test_a_stream_of_a_town_changes_when_it_is_told_and_is_the_same_before() -> None:
    stream, same = Stream(seed=3, data=None), Town(seed=3)
    clicks = [sent.click for sent in stream.take(500)]
    assert clicks == list(same.clicks(500))
    stream.change_fashion()
    late = [sent.click for sent in stream.take(500)]
    assert stream.town is not None
    change = stream.town.fashion_change_at
    assert change in (500, 501)
    assert late == list(Town(seed=3, fashion_change_at=change).clicks(1_000))[500:]
    assert late != list(same.clicks(1_000))[500:]


def test_a_stream_of_a_file_passes_on_what_is_no_click(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,timestamp\nu,i,5\n,i,5\n")
    good, bad = Stream(seed=0, data=tmp_path / "a.csv").take(10)
    assert good.click is not None
    assert good.click.user_id == "u"
    assert bad.click is None
    assert isinstance(parse(bad.value), BadEvent)


def test_a_story_marks_what_has_changed() -> None:
    def top(items: list[str]) -> TopList:
        scores = [1.0] * len(items)
        return TopList(
            items=items, scores=scores, version=1, offset="0:1", clicked_at=1, written_at=1, source="personal"
        )

    click = Click(user_id="ada", item_id="tea", timestamp=1)
    story = Story(click, top(["tea", "cup", "rose"]), top(["cup", "pot", "tea", "rose"]), 12.3, "pot")
    shown = io.StringIO()
    Console(file=shown, width=100).print(story_view(story))
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    assert "ada clicked tea, which stood at rank 1 of the list" in lines
    assert "the list before 12 ms after the click" in lines
    assert "1 tea 1 cup up 1" in lines
    assert "2 cup 2 pot new" in lines
    assert "3 rose 3 tea down 2" in lines
    assert "4 rose down 1" in lines
    assert lines[-2:] == ["in this town pot mostly follows tea:", "not listed before, rank 2 now"]
