"""The worker as a whole on embedded parts: in a thread, and as a process that is killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

import online
from online.api.metrics import Requests
from online.config.settings import PREFIX, settable
from online.learner.learner import Learner
from online.worker import main as worker_module
from online.worker.checkpoint import CheckpointError, Checkpoints
from online.worker.connections import open_lists, open_producer, open_reader
from online.worker.folders import worker_folder
from online.worker.main import run_worker, scheduled
from online.worker.rollback_request import RollbackError, ask_rollback
from online.worker.status import waiting_status
from stream import kafka_errors
from stream.events import Click, encode
from stream.lists import ListsError
from stream.log import LogProducer, LogSource
from stream.notices import notice
from stream.source import SourceError
from tests.online.conftest import NOW, worker_thread

WAIT_S = 60.0  # on a busy machine; nothing waits so long elsewhere


def wait_until(what, true, process=None):
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.fixture
def settings(small, tmp_path, free_port):
    return small(
        data_dir=tmp_path / "data",
        embedded_redis_port=free_port,
        checkpoint_interval_s=0.05,
        status_interval_s=0.0,
        poll_timeout_s=0.01,
    )


@pytest.fixture
def publish(settings, town_clicks):
    """Publishes some of the town's clicks, and broken messages."""

    def some(start, end, broken=0):
        producer = open_producer(settings)
        for click in town_clicks[start:end]:
            producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
        for _ in range(broken):
            producer.send(settings.clicks_topic, key=None, value=b"no json")
        producer.close()

    return some


def learned(lists):
    try:
        return (lists.status() or {}).get("learned", 0)
    except ListsError:
        return 0  # the embedded Redis answers from the worker's process, which may be busy for longer than is waited


def saved_progress(settings):
    _, _, state = Checkpoints(settings.checkpoints_dir, 3).load()
    return state["progress"]


def test_clicks_go_in_and_lists_come_out(settings, publish, town_clicks):
    publish(0, 150, broken=3)
    with worker_thread(settings) as lists:
        wait_until("150 clicks", lambda: learned(lists) == 150)
        users = {click.user_id for click in town_clicks[:150]}
        assert set(lists.users()) == users
        for user in users:
            top = lists.read(user)
            assert top.items
            assert top.offset.startswith("0:")
        assert lists.popular().items
        before = lists.read(town_clicks[150].user_id)
        publish(150, 151)
        wait_until("one click more", lambda: learned(lists) == 151)
        after = lists.read(town_clicks[150].user_id)
        assert after != before
        assert after.offset == "0:154"
        status = lists.status()
        assert (status["state"], status["lag"], status["redis"]) == ("running", 0, "ok")
        assert status["dead_letters"] == {"malformed-json": 3}
        assert status["positions"] == {"clicks:0": 154}
        assert status["scored"] == 151
        assert status["scores"].keys() == {"served", "popular", "followed"}
    assert saved_progress(settings)["learned"] == 151  # the last checkpoint
    assert saved_progress(settings)["next_offsets"] == [["clicks", 0, 154]]


def test_after_a_restart_it_goes_on_where_it_was_and_commits_say_so(settings, publish):
    publish(0, 50)
    with worker_thread(settings) as lists:
        wait_until("50 clicks", lambda: learned(lists) == 50)
    publish(50, 90)
    with worker_thread(settings) as lists:
        wait_until("90 clicks", lambda: learned(lists) == 90)
        assert lists.status()["scored"] == 90
    source = LogSource(settings.log_path, [settings.clicks_topic], settings.consumer_group)
    source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    assert list(source.committed().values()) == [90]
    source.close()


def test_stopped_before_anything_came_it_leaves_no_checkpoint(settings):
    with worker_thread(settings):
        pass
    assert Checkpoints(settings.checkpoints_dir, 3).load() is None


def test_the_scheduler_asks_for_fine_tuning_and_the_version_shows_in_lists(settings, publish, small):
    publish(0, 100)
    often = small(**{**settings.model_dump(), "finetune_interval_s": 0.1})
    with worker_thread(often) as lists:
        wait_until("a fine-tuning", lambda: (lists.status() or {}).get("version", 0) >= 2)
        publish(100, 120)
        wait_until("20 clicks more", lambda: learned(lists) == 120)
        assert lists.popular().version >= 2
        assert lists.status()["finetune"]["done"] >= 1


def test_the_scheduler_asks_for_lists_that_have_aged(settings, publish, small):
    publish(0, 100)
    often = small(**{**settings.model_dump(), "refresh_ages_s": (0.2,), "refresh_interval_s": 0.05})
    with worker_thread(often) as lists:
        wait_until("100 clicks", lambda: learned(lists) == 100)
        users = len(set(lists.users()))
        wait_until("every user's list is refreshed", lambda: lists.status()["refreshes"] >= users)
    assert saved_progress(settings)["refreshes"] >= users > 10


def test_a_rollback_works_live_and_survives_a_restart(settings, publish, small):
    publish(0, 100)
    often = small(**{**settings.model_dump(), "finetune_interval_s": 0.1, "gate": False})
    with worker_thread(often) as lists:
        wait_until("a fine-tuning", lambda: (lists.status() or {}).get("version", 0) >= 2)
    with worker_thread(settings) as lists:
        wait_until("a report", lambda: learned(lists) == 100)
        before = lists.status()["version"]
        with pytest.raises(RollbackError, match=f"version {before} makes the lists already; kept are "):
            ask_rollback(lists, before, WAIT_S)
        assert ask_rollback(lists, before - 1, WAIT_S) == {"version": before + 1, "parent": before - 1}
        publish(100, 120)
        wait_until("20 clicks more", lambda: learned(lists) == 120)
        wait_until("new lists for all", lambda: all(lists.read(u).version == before + 1 for u in lists.users()))
        versions = lists.status()["versions"]
        assert [version["state"] for version in versions][-3:] == ["kept", "rolled back", "live"]
        told = lists.status()["notices"][-1]
        assert (told["kind"], told["version"]) == ("rolled_back", before + 1)
    with worker_thread(settings) as lists:
        wait_until("a report", lambda: learned(lists) == 120)
        assert (lists.status()["version"], lists.status()["versions"]) == (before + 1, versions)
        assert lists.status()["notices"][-1] == told
    with closing(open_reader(settings, settings.events_topic)) as reader:
        on_topic = {one.id: one for one in map(notice, (record.value for record in reader.read()))}
    assert on_topic[told["id"]].as_dict() == told


def test_a_bug_on_one_event_does_not_stop_the_worker(settings, publish, town_clicks, monkeypatch, caplog):
    odd, learn = town_clicks[20], Learner.learn

    def failing(self, clicks, **more):
        if odd in clicks:
            raise RuntimeError("this one")
        return learn(self, clicks, **more)

    monkeypatch.setattr(Learner, "learn", failing)
    publish(0, 60)
    with worker_thread(settings) as lists:
        wait_until("the others", lambda: learned(lists) == 59)
        status = lists.status()
        assert status["dead_letters"] == {"internal-error": 1}
        (text,) = [notice["text"] for notice in status["notices"] if notice["kind"] == "internal_error"]
        assert text == "clicks partition 0 offset 20 is put aside: RuntimeError: this one"
        publish(60, 70)
        wait_until("ten more", lambda: learned(lists) == 69)
    assert "internal error on 1 click(s), the first of them at clicks partition 0 offset 20" in caplog.text
    assert saved_progress(settings)["next_offsets"] == [["clicks", 0, 70]]


def test_without_writable_checkpoints_lists_are_written_and_the_status_shows_it(settings, publish):
    publish(0, 50)
    away = settings.data_dir / "away"
    with worker_thread(settings) as lists:
        wait_until("50 clicks", lambda: learned(lists) == 50)
        wait_until("a checkpoint", lambda: settings.checkpoints_dir.exists() and lists.status()["checkpoint"])
        settings.checkpoints_dir.rename(away)
        publish(50, 90)
        wait_until("90 clicks", lambda: learned(lists) == 90)
        wait_until("word of it", lambda: lists.status()["unsaved_since"])
        assert [notice["kind"] for notice in lists.status()["notices"]] == ["checkpoint_failed"]
        text = generate_latest_text(lists)
        assert float(re.search(r"^nextclick_checkpoint_failing_seconds (.*)$", text, re.MULTILINE)[1]) > 0
        away.rename(settings.checkpoints_dir)
        wait_until("a checkpoint again", lambda: lists.status()["unsaved_since"] is None)
        assert "nextclick_checkpoint_failing_seconds 0.0" in generate_latest_text(lists)
    assert saved_progress(settings)["learned"] == 90


def generate_latest_text(lists):
    return Requests(lists).exposition().decode()


@pytest.mark.parametrize("offset_out_of_range", ["earliest", "stop"])
def test_messages_that_are_gone_are_counted_or_stop_the_worker(settings, publish, small, offset_out_of_range):
    few = small(**{**settings.model_dump(), "offset_out_of_range": offset_out_of_range})
    publish(0, 20)
    with worker_thread(few) as lists:
        wait_until("20 clicks", lambda: learned(lists) == 20)
    with closing(LogProducer(few.log_path, records_max=30)) as producer:
        for number in range(70):
            click = Click(user_id="u", item_id="i", timestamp=NOW + number)
            producer.send(few.clicks_topic, key=b"u", value=encode(click))
    if offset_out_of_range == "stop":
        stops = r"offset 20 is no longer retained, 40 records.*NEXTCLICK_OFFSET_OUT_OF_RANGE"
        with pytest.raises(SourceError, match=stops):
            run_worker(few, threading.Event())
        assert saved_progress(few)["lost"] == 0
        return
    with worker_thread(few) as lists:
        wait_until("what is left", lambda: learned(lists) == 50)
        assert lists.status()["lost"] == 40
        assert "nextclick_lost_total 40.0" in generate_latest_text(lists)
        (told,) = [notice["figures"] for notice in lists.status()["notices"] if notice["kind"] == "messages_lost"]
        assert (told["records"], told["earliest"]) == (40, 60)
    assert saved_progress(few)["lost"] == 40


def test_the_scheduler_asks_once_at_a_time_however_late(new_harness, monkeypatch):
    jobs = {}

    class Scheduler:
        def __init__(self, **_):
            pass

        def add_job(self, ask, trigger, **options):
            jobs[options.pop("id")] = (ask, trigger, options)

        def start(self):
            pass

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(worker_module, "SteadyScheduler", Scheduler)
    loop = new_harness().loop(finetune_interval_s=300, finetune_cron="30 3 * * *", finetune_jitter_s=20)
    with scheduled(loop):
        assert jobs.keys() == {"finetune-interval", "finetune-cron", "refresh"}
    for _, _, options in jobs.values():
        assert options == {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
    assert [jobs[name][1].jitter for name in ("finetune-interval", "finetune-cron", "refresh")] == [20, 20, None]
    assert jobs["finetune-interval"][1].interval.total_seconds() == 300
    for name in ("finetune-interval", "finetune-cron"):
        loop = new_harness().loop(finetune_interval_s=300, finetune_cron="30 3 * * *")
        with scheduled(loop):
            assert loop.supervisor.state == "idle"
            jobs[name][0]()
            assert loop.supervisor.state == "asked"
    jobs.clear()
    with scheduled(new_harness().loop(finetune_interval_s=0, refresh_ages_s=())):
        assert not jobs


def test_a_second_worker_on_the_same_folder_says_so_in_one_line(settings):
    with worker_folder(settings), pytest.raises(CheckpointError) as error:
        run_worker(settings, threading.Event())
    assert str(error.value) == (
        f"another worker uses {settings.data_dir}: stop it, or set NEXTCLICK_DATA_DIR to another folder"
    )
    with worker_folder(settings):  # and it is free again afterwards
        pass


def test_a_folder_that_cannot_be_made_is_named_in_one_line(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write to .*file/data .*NEXTCLICK_DATA_DIR") as error:
        run_worker(small(data_dir=tmp_path / "file" / "data"), threading.Event())
    assert "\n" not in str(error.value)


def test_an_error_while_working_is_not_taken_for_one_of_the_folder(settings):
    with pytest.raises(PermissionError, match="something else"), worker_folder(settings):
        raise PermissionError("something else")


def test_a_port_that_is_taken_is_named(settings, small):
    with worker_thread(settings):
        other = small(**{**settings.model_dump(), "data_dir": settings.data_dir.parent / "other"})
        with pytest.raises(ListsError, match=str(settings.embedded_redis_port)):
            run_worker(other, threading.Event())


# --- as a process ------------------------------------------------------------------------------------------------


def start(settings, **variables):
    names = {name: getattr(settings, name) for name in settings.model_fields_set & settable().keys()}
    names["status_interval_s"] = 0.0
    values = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in names.items()
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {PREFIX + name.upper(): value for name, value in {**values, **variables}.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "online", "worker"],
        cwd=Path(online.__file__).parent.parent,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lists_of(settings, process):
    def there():
        try:
            return open_lists(settings)
        except ListsError:
            return None

    wait_until("the embedded Redis", there, process)
    return there()


def test_after_kill_and_restart_each_click_is_learned_once_and_a_signal_stops_it(settings, publish, town_clicks):
    publish(0, 200, broken=2)
    first = start(settings)
    lists = lists_of(settings, first)
    wait_until("something learned", lambda: learned(lists) > 0, first)
    publish(200, 250)
    first.kill()  # somewhere in the middle
    first.communicate()
    before = saved_progress(settings)["learned"] if Checkpoints(settings.checkpoints_dir, 3).load() else 0

    second = start(settings)
    lists = lists_of(settings, second)
    publish(250, 300)
    wait_until("300 clicks", lambda: learned(lists) == 300, second)
    status = lists.status()
    assert status["scored"] == 300  # by the weights that survived
    assert status["dead_letters"] == {"malformed-json": 2}
    assert status["positions"] == {"clicks:0": 302}
    last_of = {click.user_id: place for place, click in enumerate(town_clicks[:300])}
    for user, place in last_of.items():
        if place >= max(before, 250):
            assert lists.read(user).items
    second.send_signal(signal.SIGTERM)
    out, err = second.communicate(timeout=WAIT_S)
    assert second.returncode == 0, err
    assert "Traceback" not in out + err
    assert saved_progress(settings)["learned"] == 300
    dead = LogSource(settings.log_path, [settings.dead_letters_topic], "test")
    dead.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
    assert len(dead.poll(max_records=10, timeout_s=0)) == 2
    dead.close()


def test_without_the_redis_that_was_named_it_learns_all_the_same_and_says_so_once(settings, publish):
    publish(0, 50)
    closed = settings.embedded_redis_port  # nothing listens there: the embedded Redis is not asked for
    process = start(settings, redis_url=f"redis://127.0.0.1:{closed}/0")
    manifests = [settings.checkpoints_dir / f"{number:08d}" / "manifest.json" for number in range(1, 50)]
    wait_until("a checkpoint", lambda: any(manifest.exists() for manifest in manifests), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    assert 0 < saved_progress(settings)["learned"] <= 50
    (line,) = [line for line in (out + err).splitlines() if "no Redis answers" in line]
    assert f"127.0.0.1:{closed}" in line
    assert "learning goes on" in line
    assert "Traceback" not in out + err


def test_a_redis_that_refuses_the_user_ends_it_with_one_line(settings, monkeypatch):
    def refuses(*_, **__):
        raise ListsError("Redis refuses: wrong password")

    monkeypatch.setattr(worker_module, "open_lists", refuses)
    named = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    with pytest.raises(ListsError, match="wrong password"):
        run_worker(named, threading.Event())


def test_while_no_broker_answers_it_waits_and_says_so_until_it_is_stopped(settings, small, free_port, monkeypatch):
    monkeypatch.setitem(kafka_errors._COMMON, "bootstrap_timeout_ms", 100)
    closed = f"127.0.0.1:{free_port}"
    fields = {**settings.model_dump(), "kafka_bootstrap_servers": closed, "embedded_redis_port": 0}
    served = []
    monkeypatch.setattr(worker_module, "waiting_status", lambda line: served.append(line) or waiting_status(line))
    stop, ended = threading.Event(), []
    thread = threading.Thread(target=lambda: (run_worker(small(**fields), stop), ended.append(True)))
    thread.start()
    wait_until("three attempts", lambda: len(served) >= 3)
    stop.set()
    thread.join(WAIT_S)
    assert ended == [True]
    assert served[0].startswith(f"no Kafka answers at {closed}: start it")
    assert waiting_status(served[0])["waits_for"] == [served[0]]
