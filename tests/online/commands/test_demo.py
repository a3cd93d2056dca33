"""The demo runs everything in one process, shows what a click changes, and leaves nothing behind."""

import contextlib
import gzip
import io
import itertools
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks._servers import free_port
from online.api.server import ServeError
from online.commands.demo import DemoError, run_demo
from online.commands.demo_stream import Stream
from online.commands.demo_terminal import shown_command, shown_program, stays
from online.commands.demo_views import ClickEffect, effect_view, next_steps
from online.config.settings import Settings
from online.evaluation.town import Town
from stream.events import BadEvent, Click, parse
from stream.lists import Lists, RedisUnavailableError, TopList

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
    shown = demo(seed=1, seconds=7)
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
    # The effect is shown while clicks go on, and another one only where it is better.
    assert shown.index("ms after the click") < shown.rindex("list in ")
    assert shown.count("ms after the click") == 1 + shown.count("The click that has changed most since")


def test_an_embedded_redis_that_is_late_does_not_end_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    for name in ("read", "status"):
        answers = getattr(Lists, name)

        def late(self: Lists, *arguments: str, answers: Callable[..., object] = answers) -> object:
            if next(numbers) % 2:
                raise RedisUnavailableError("it was busy")
            return answers(self, *arguments)

        monkeypatch.setattr(Lists, name, late)
    assert "Try next:" in demo(seconds=2)


def town_file(path: Path, clicks: int, more: str = "") -> Path:
    rows = "".join(f"{click.user_id},{click.item_id},{click.timestamp}\n" for click in Town(users=20).clicks(clicks))
    path.write_bytes(gzip.compress(("user,item,timestamp\n" + rows + more).encode()))
    return path


def test_a_demo_of_a_file_ends_with_the_file_and_keeps_its_data_in_the_folder(tmp_path: Path) -> None:
    data = town_file(tmp_path / "a.csv.gz", 300, ",broken,5\n")
    shown = demo(seconds=120, data=data, data_dir=tmp_path / "kept it")
    assert re.search(r" 300 clicks ", shown)
    assert "fashion" not in shown
    assert "the list before" in shown
    assert "the whole file was read: 301 rows" in shown
    assert re.search(r"rows that are no clicks: 1 \(1 \S+\) of 301; the first is row 301: ", shown)
    (line,) = [line for line in shown.splitlines() if "goes on from here" in line]
    assert f"NEXTCLICK_DATA_DIR='{tmp_path / 'kept it'}' " in line
    assert (tmp_path / "kept it" / "log.db").exists()
    assert list((tmp_path / "kept it" / "checkpoints").iterdir())


@pytest.mark.parametrize("counted_in_time", [True, False])
def test_a_demo_that_stops_in_the_middle_of_a_file_says_where_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted_in_time: bool
) -> None:
    monkeypatch.setattr("online.commands.demo_stream._COUNT_S_MAX", 1e9 if counted_in_time else 0.0)
    data = town_file(tmp_path / "two words.csv.gz", 20_000)
    shown = demo(seconds=2, data=data)
    (line,) = [line for line in shown.splitlines() if line.startswith("stopped after 2 s at row ")]
    assert f" of {data}; to its end: " in line
    assert line.endswith(f" demo --data '{data}' --seconds 0")
    assert "whole file" not in shown
    row = int(line.split()[6].replace(",", ""))
    assert 0 < row < 20_000
    if counted_in_time:
        assert f"row {row:,} of 20,000 ({row / 20_000:.0%}) of" in line
    else:
        assert re.search(rf"row {row:,} \(about \d+%\) of", line)


def test_a_demo_of_a_file_that_is_stopped_says_where(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(4, stop.set).start()
    data = town_file(tmp_path / "a.csv.gz", 20_000)
    assert re.search(r"^stopped at row [\d,]+ ", demo(stop, seconds=0, data=data), re.MULTILINE)


def test_many_rows_that_are_no_clicks_are_reported_and_a_file_of_them_is_an_error(tmp_path: Path) -> None:
    bad = ",broken,5\n" * 40
    data = town_file(tmp_path / "a.csv.gz", 40_000, bad)  # more than is learned before a list is shown
    data.write_bytes(gzip.compress(("user,item,timestamp\n" + bad).encode() + gzip.decompress(data.read_bytes())[20:]))
    shown = demo(seconds=7, data=data)
    said, ended = (place.start() for place in itertools.islice(re.finditer("rows that are no clicks: ", shown), 2))
    assert said < shown.index("the list before") < ended
    only = tmp_path / "only.csv"
    only.write_text("user,item,timestamp\n" + bad)
    with pytest.raises(DemoError, match=r"only.csv: none of the 40 rows read is a click; row 1: "):
        demo(data=only)


def test_what_was_learned_before_does_not_hold_a_file_up(tmp_path: Path) -> None:
    data = town_file(tmp_path / "a.csv.gz", 200)
    demo(seconds=60, data=data, data_dir=tmp_path / "kept")
    began = time.monotonic()
    assert "the whole file was read: 200 rows" in demo(seconds=1_000, data=data, data_dir=tmp_path / "kept")
    assert time.monotonic() - began < 200  # not until its time is up


def until(true: Callable[[], bool], thread: threading.Thread) -> None:
    while not true():
        assert thread.is_alive()
        time.sleep(0.1)


def printed_commands(text: str) -> list[str]:
    return [line.partition("  # ")[0].strip() for line in text.splitlines() if "  # " in line]


def run_as_printed(command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert done.returncode == 0, (command, done)
    assert done.stdout, command
    return done.stdout.decode()


def test_the_dashboard_stays_until_it_is_stopped_and_printed_commands_can_be_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, stop = io.StringIO(), threading.Event()
    console = Console(file=shown, width=60, highlight=False)  # narrower than the commands
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no nextclick there
    monkeypatch.chdir(ROOT)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that commands need a variable
        monkeypatch.setenv("NEXTCLICK_EMBEDDED_REDIS_PORT", str(taken.getsockname()[1]))
        thread = threading.Thread(target=lambda: run_demo(console, stop, seconds=1, stay=True))
        thread.start()
        try:
            until(lambda: "what the worker does" in shown.getvalue(), thread)
            commands = printed_commands(shown.getvalue().partition("until Ctrl-C")[2])
            assert [name for name in ("top", "status") if any(f"nextclick {name}" in each for each in commands)] == [
                "top",
                "status",
            ]
            for command in commands:
                run_as_printed(command)
            assert thread.is_alive()
        finally:
            stop.set()
            thread.join(60)
    assert not thread.is_alive()
    assert "Try next:" in shown.getvalue()


def test_ports_in_use_are_replaced_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_stream_of_a_town_changes_at_the_given_click_and_is_the_same_before() -> None:
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


def test_commands_are_printed_as_they_have_to_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    script = folder / "nextclick"
    script.write_text('#!/bin/sh\necho $NEXTCLICK_DATA_DIR$NEXTCLICK_ENV_FILE "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    monkeypatch.setenv("NEXTCLICK_ENV_FILE", "not-this")
    command = shown_command("top", "it's me", variables={"NEXTCLICK_DATA_DIR": "a b"}, without=["NEXTCLICK_ENV_FILE"])
    assert run_as_printed(command) == "a b top it's me\n"
    assert f"'{script}' top" in command
    monkeypatch.chdir(tmp_path)
    assert shown_command("top").startswith("'a folder/nextclick' ")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    assert shown_command("top") == "nextclick top"
    monkeypatch.setattr(sys, "argv", ["online/__main__.py"])  # another one is on PATH
    assert shown_command("top") != "nextclick top"
    assert shown_program("no-such-program", "x") is None


def test_commands_after_a_demo_leave_out_a_kafka_that_the_demo_did_not_use() -> None:
    shown = io.StringIO()
    outside = Settings(kafka_bootstrap_servers="broker:9092")
    Console(file=shown, width=40).print(next_steps(outside, Path("kept")), soft_wrap=True)
    *_, line = shown.getvalue().splitlines()
    assert "env -u NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS " in line
    assert f"NEXTCLICK_DATA_DIR={Path('kept').absolute()} " in line
    assert "learn from Kafka at broker:9092" in shown.getvalue()


def test_the_dashboard_stays_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert not stays(Console(file=io.StringIO()))
    script = (
        "import os, signal, sys\n"
        "from rich.console import Console\n"
        "from online.commands.demo_terminal import stays\n"
        "print('stays', stays(Console()), flush=True)\n"
    )
    for redirected, expected in (("", True), ("</dev/null", False), ("| cat", False)):
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} {redirected}"
        assert f"stays {expected}" in in_a_terminal(command), redirected


def in_a_terminal(command: str) -> str:
    """What a shell prints that has a terminal."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execve("/bin/bash", ["bash", "-c", command], {**os.environ, "PYTHONPATH": str(ROOT)})
    said = b""
    with contextlib.suppress(OSError):  # it ends
        while more := os.read(terminal, 4_096):
            said += more
    os.waitpid(process, 0)
    os.close(terminal)
    return said.decode()


def test_an_effect_marks_what_has_changed() -> None:
    def top(items: list[str]) -> TopList:
        scores = [1.0] * len(items)
        return TopList(
            items=items, scores=scores, version=1, offset="0:1", clicked_at=1, written_at=1, source="personal"
        )

    click = Click(user_id="ada", item_id="tea", timestamp=1)
    effect = ClickEffect(click, top(["tea", "cup", "rose"]), top(["cup", "pot", "tea", "rose"]), 12.3, "pot")
    shown = io.StringIO()
    Console(file=shown, width=100).print(effect_view(effect))
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    assert "ada clicked tea, which stood at rank 1 of the list" in lines
    assert "the list before 12 ms after the click" in lines
    assert "1 tea 1 cup up 1" in lines
    assert "2 cup 2 pot new" in lines
    assert "3 rose 3 tea down 2" in lines
    assert "4 rose down 1" in lines
    assert lines[-2:] == ["in this town pot mostly follows tea:", "not listed before, rank 2 now"]
