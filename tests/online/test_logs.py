"""The log: lines to read as ever, or one JSON object a line with the same fields."""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from online.logs import EXTRA, in_json, name_log_lines, set_up_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_each_line_is_an_object_with_the_same_fields(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    assert in_json()
    name_log_lines(component="worker", worker="w-1")
    logging.getLogger("online.worker.loop").info(
        "read %d\nclicks", 3, extra={"partition": 0, "offset": 42, "secret": 1}
    )
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("it failed")
    logging.getLogger("uvicorn.error").info("too chatty")
    first, second = lines(capsys)
    assert list(first) == ["timestamp", "level", "logger", "component", "message", "partition", "offset", "worker"]
    assert (first["level"], first["logger"], first["component"]) == ("INFO", "online.worker.loop", "worker")
    assert (first["message"], first["partition"], first["offset"], first["worker"]) == ("read 3\nclicks", 0, 42, "w-1")
    assert "secret" not in first
    when = datetime.fromisoformat(str(first["timestamp"]))
    assert when.utcoffset() is not None
    assert when.utcoffset().total_seconds() == 0
    assert "ValueError: broken" in str(second["exception"])
    assert set(EXTRA) >= {"partition", "offset", "version", "duration_s", "worker"}


def test_text_is_one_line_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    assert not in_json()
    logging.getLogger("online.worker.loop").warning("read %d", 3, extra={"partition": 0})
    when, _, rest = capsys.readouterr().err.partition(" ")
    assert rest == "WARNING online.worker.loop: read 3\n"
    assert datetime.fromisoformat(when).utcoffset() is not None


def test_the_error_that_ends_a_command_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTCLICK_LOG_FORMAT", "json")
    monkeypatch.setenv("NEXTCLICK_REDIS_URL", "redis://:hush@127.0.0.1:1/0")
    done = subprocess.run([sys.executable, "-m", "online", "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["level"], line["component"]) == ("CRITICAL", "command")
    assert "no Redis answers" in line["message"]
    assert "hush" not in done.stderr


def test_a_taken_port_ends_the_worker_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("NEXTCLICK_WORKER_PORT", str(taken.getsockname()[1]))
        command = [sys.executable, "-m", "online", "worker", "--data-dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("nextclick: the worker cannot listen on 127.0.0.1 port ")
