"""The worker's start: what it says first, and what it does where the folder does not fit the stream."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

import online
from online.config.data_folder import WITHOUT_HOME, default_data_dir
from online.config.settings import Settings, load_settings
from online.worker import main as worker_module
from online.worker.backoff import Backoff
from online.worker.checkpoint import Checkpoints, DiskFullError
from online.worker.connections import open_producer
from online.worker.main import run_worker
from online.worker.start import StartError, announce, check_folder, redis_place
from stream.events import encode
from stream.origin import Origin
from stream.source import Partition
from tests.online.conftest import worker_thread
from tests.online.worker.test_main import learned, wait_until

ROOT = Path(online.__file__).parent.parent


@pytest.fixture
def settings(small, tmp_path, free_port):
    return small(
        data_dir=tmp_path / "state", embedded_redis_port=free_port, checkpoint_interval_s=0.05, status_interval_s=0.0,
        poll_timeout_s=0.01,
    )  # fmt: skip


@pytest.fixture
def publish(settings, town_clicks):
    def some(start, end):
        producer = open_producer(settings)
        for click in town_clicks[start:end]:
            producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
        producer.close()

    return some


def start_and_stop(settings, *, from_beginning=False):
    stop = threading.Event()
    stop.set()
    run_worker(settings, stop, from_beginning=from_beginning)


def learn(settings, count, *, from_beginning=False):
    with worker_thread(settings, from_beginning=from_beginning) as lists:
        wait_until(f"{count} clicks", lambda: learned(lists) == count)


# --- the folder --------------------------------------------------------------------------------------------------


def test_the_default_folder_is_the_users_own_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    places = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        places.add(load_settings().data_dir)
    assert places == {tmp_path / "home" / "nextclick"}


def test_a_named_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings(data_dir="here").data_dir == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NEXTCLICK_DATA_DIR", "~/there")
    assert load_settings().data_dir == tmp_path / "there"


def test_a_user_without_a_home_has_a_folder_too(monkeypatch):
    monkeypatch.setattr("online.config.data_folder.user_data_path", lambda *_, **__: Path("~/.local/share/nextclick"))
    assert default_data_dir() == WITHOUT_HOME


def test_state_in_the_folder_data_of_before_is_pointed_at(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    check_folder(Settings())
    assert caplog.text == ""
    (tmp_path / "data" / "checkpoints").mkdir(parents=True)
    check_folder(Settings())
    assert "--data-dir data" in caplog.text
    assert str(Settings().data_dir) in caplog.text
    caplog.clear()
    check_folder(Settings(data_dir=tmp_path / "data"))  # that is the one
    check_folder(Settings(data_dir=tmp_path / "other"))  # named: that one is meant
    assert caplog.text == ""


# --- what is said first ------------------------------------------------------------------------------------------


def test_the_first_line_says_everything_and_no_password(caplog):
    caplog.set_level("INFO")
    url = "redis://shop:hush@[::1]:7000/3"
    announce(Settings(kafka_bootstrap_servers="k1:9092,k2:9092", redis_url=url, consumer_group="ours"))
    (line,) = caplog.messages
    for text in (
        "nextclick ", f"state in {Settings().data_dir};", "Kafka at k1:9092,k2:9092", "clicks", "items", "clicks.dead",
        "group ours", "redis://[::1]:7000/3", "device auto",
    ):  # fmt: skip
        assert text in line
    assert "hush" not in line
    assert "shop" not in line


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h", "Redis at redis://h"),
        ("rediss://u:p@h:1/2?ssl_ca_certs=/x", "Redis at rediss://h:1/2"),
        ("redis://u:12/hush@h", "the Redis of NEXTCLICK_REDIS_URL"),
        ("redis://:hush#1@h", "the Redis of NEXTCLICK_REDIS_URL"),
        ("redis://:hush?1@h:3/4", "the Redis of NEXTCLICK_REDIS_URL"),
    ],
)
def test_of_a_redis_url_only_what_is_no_secret_is_shown(url, shown):
    assert redis_place(Settings.model_construct(redis_url=SecretStr(url))) == shown


def test_the_first_line_comes_before_what_takes_long_is_loaded():
    """Ten seconds of silence, on a busy machine: torch and numba."""
    code = (
        "import logging, sys; logging.basicConfig(level='INFO');"
        "from online import cli; from online.config.settings import load_settings; import online.worker.start;"
        "online.worker.start.announce(load_settings());"
        "print([name for name in ('torch', 'kafka', 'river', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "nextclick" in done.stderr.splitlines()[0]


def test_once_it_reads_it_says_partitions_positions_and_device(settings, publish, caplog):
    caplog.set_level("INFO")
    publish(0, 20)
    learn(settings, 20)
    assert "learns on cpu, with 1 thread" in caplog.text
    assert "reads topic clicks, partition 0 from its earliest record" in caplog.text
    learn(settings, 20)
    assert "reads topic clicks, partition 0 from 20" in caplog.text


# --- whether the folder fits the stream ------------------------------------------------------------------------------


def test_a_group_that_has_read_without_a_checkpoint_is_no_beginning(settings, publish, caplog):
    caplog.set_level("INFO")
    publish(0, 40)
    learn(settings, 40)
    shutil.rmtree(settings.checkpoints_dir)
    with pytest.raises(StartError) as error:
        start_and_stop(settings)
    line = str(error.value)
    assert "\n" not in line
    for text in (str(settings.data_dir), "group nextclick", "clicks:0 up to 40", "--data-dir", "--from-beginning"):
        assert text in line
    assert Checkpoints(settings.checkpoints_dir, 3).numbers() == []
    learn(settings, 40, from_beginning=True)
    assert "starting with the earliest click, although group nextclick has read clicks:0 up to 40" in caplog.text


def test_from_beginning_goes_on_where_there_is_a_checkpoint_and_says_so(settings, publish, caplog):
    """A supervisor that starts the worker again with the same words must not throw away what was learned."""
    publish(0, 30)
    learn(settings, 30, from_beginning=True)
    publish(30, 40)
    learn(settings, 40, from_beginning=True)
    assert "--from-beginning has no effect" in caplog.text


def test_a_checkpoint_of_another_topic_is_not_gone_on_from_unless_that_is_asked_for(settings, publish, small):
    publish(0, 30)
    learn(settings, 30)
    other = small(**{**settings.model_dump(), "clicks_topic": "visits"})
    with pytest.raises(StartError, match=r"checkpoint \d+ in .* has read topic clicks, not visits: .*--from-beginning"):
        start_and_stop(other)
    producer = open_producer(other)
    producer.send("visits", key=b"u", value=b'{"user_id": "u", "item_id": "i", "timestamp": 1730000000}')
    producer.close()
    learn(other, 31, from_beginning=True)  # what was learned stays


def test_a_checkpoint_of_the_embedded_log_is_none_of_kafkas(settings, publish, monkeypatch):
    """Tried without a broker first, and then with one: its positions are others."""
    publish(0, 30)
    learn(settings, 30)
    monkeypatch.setattr(worker_module, "stream_origin", lambda _: Origin("XyZ", {}))
    with pytest.raises(StartError, match=r"has read the embedded log, not Kafka cluster XyZ"):
        start_and_stop(settings)


@pytest.mark.parametrize(("committed", "said"), [(130, "older copy"), (30, ""), (31, ""), (20, "")])
def test_a_folder_behind_its_group_is_reported_in_one_line(  # noqa: PLR0917
    settings, publish, monkeypatch, caplog, committed, said
):
    publish(0, 30)
    learn(settings, 30)
    monkeypatch.setattr(
        worker_module, "stream_origin", lambda _: Origin("embedded log", {Partition("clicks", 0): committed})
    )
    monkeypatch.setattr("online.worker.start.BEHIND_REPORTED", 90)
    caplog.clear()
    start_and_stop(settings)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(said)
    assert said in "".join(warnings)


def test_a_folder_far_ahead_of_its_group_is_reported(settings, publish, monkeypatch, caplog):
    publish(0, 30)
    learn(settings, 30)
    monkeypatch.setattr("online.worker.start.AHEAD_REPORTED", 10)
    monkeypatch.setattr(worker_module, "stream_origin", lambda _: Origin("embedded log", {Partition("clicks", 0): 5}))
    start_and_stop(settings)
    assert "the checkpoint decides" in caplog.text


# --- a full disk -------------------------------------------------------------------------------------------------


def full_until(free: threading.Event, real):
    def fails(*arguments, **options):
        if not free.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    return fails


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_folder_without_permission_are_distinguished(tmp_path, monkeypatch, number):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(DiskFullError):
        Checkpoints(tmp_path / "x", 3)


def test_a_full_disk_at_the_start_is_waited_for(settings, monkeypatch, caplog):
    free = threading.Event()
    monkeypatch.setattr(Path, "mkdir", full_until(free, Path.mkdir))
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run_worker, args=(settings, stop), kwargs={"ready": ready})
    thread.start()
    wait_until("word of it", lambda: "No space left on device" in caplog.text)
    assert thread.is_alive()
    assert not ready.is_set()
    free.set()
    assert ready.wait(60)
    stop.set()
    thread.join(60)
    assert caplog.text.count("No space left on device") == 1


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of a megabyte that is full to the last byte."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=16", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a tiny disk here")
    with (folder / "filler").open("wb", buffering=0) as filler:
        filler.write(b"x" * 2 * 2**20)  # as much as there is room for
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["bytes", "files"])
def test_a_worker_on_a_disk_that_is_really_full_waits_and_goes_on(
    settings, small, tiny_disk, caplog, *, monkeypatch, what
):
    """Out of room for bytes, or for files."""
    others = []
    if what == "files":
        (tiny_disk / "filler").write_bytes(b"")
        (tiny_disk / "checkpoints").mkdir()
        (tiny_disk / "worker.lock").touch()
        with contextlib.suppress(OSError):
            for number in range(100):
                others.append(tiny_disk / f"other-{number}")
                others[-1].touch()
    full = small(**{**settings.model_dump(), "data_dir": tiny_disk, "checkpoint_interval_s": 3_600.0})
    attempts, failed = [], Backoff.failed
    monkeypatch.setattr(Backoff, "failed", lambda *given: attempts.append(given) or failed(*given))
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run_worker, args=(full, stop), kwargs={"ready": ready})
    thread.start()
    wait_until("word of it", lambda: "waiting for" in caplog.text)
    wait_until("more attempts", lambda: len(attempts) >= 3)
    assert thread.is_alive()
    assert not ready.is_set()
    for other in [tiny_disk / "filler", *others]:
        other.unlink(missing_ok=True)
    assert ready.wait(60)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
