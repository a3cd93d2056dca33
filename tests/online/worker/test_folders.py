"""Each worker of a group has a folder of its own, and gets the same one again."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from online.config.settings import Settings, load_settings
from online.worker.folders import worker_folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        data_dir=tmp_path, workers="many", kafka_bootstrap_servers="k:9092", redis_url="redis://r:6379/0"
    )


def taken(stack: ExitStack, settings: Settings, machine: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    return stack.enter_context(worker_folder(settings)).data_dir.name


def test_each_worker_takes_the_first_folder_that_is_free(settings, monkeypatch):
    with ExitStack() as running:
        assert [taken(running, settings, "a", monkeypatch) for _ in range(3)] == ["worker-1", "worker-2", "worker-3"]


def test_workers_that_are_restarted_together_get_what_they_had_in_any_order(settings, monkeypatch):
    with ExitStack() as running:
        assert [taken(running, settings, name, monkeypatch) for name in "abc"] == ["worker-1", "worker-2", "worker-3"]
    with ExitStack() as running:
        assert [taken(running, settings, name, monkeypatch) for name in "cab"] == ["worker-3", "worker-1", "worker-2"]


def test_a_new_machine_takes_over_what_another_one_left(settings, monkeypatch):
    with ExitStack() as running:
        assert [taken(running, settings, name, monkeypatch) for name in "ab"] == ["worker-1", "worker-2"]
    with ExitStack() as running:
        assert [taken(running, settings, name, monkeypatch) for name in "bcd"] == ["worker-2", "worker-1", "worker-3"]


def test_a_worker_that_finds_a_folder_in_use_leaves_its_owner_s_name_there(settings, monkeypatch):
    with ExitStack() as first, ExitStack() as second:
        taken(first, settings, "a", monkeypatch)
        assert taken(second, settings, "b", monkeypatch) == "worker-2"
        assert (settings.data_dir / "worker-1/worker.lock").read_text() == "a"
