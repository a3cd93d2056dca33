"""Fail points of real worker processes: killed, or hanging until they are killed, at the steps of a turn."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import online
from online.config.settings import PREFIX, fixed_values
from online.worker.checkpoint import Checkpoints
from online.worker.connections import open_lists, open_producer, open_reader, prepare_topics
from online.worker.dedup import SeenEvents
from online.worker.steps import STEPS
from stream.dead_letters import dead_letter
from stream.embedded_redis import EmbeddedRedis
from stream.events import encode
from stream.lists import ListsError

ROOT = Path(online.__file__).parent.parent
WAIT_S = 600.0  # on a busy machine; nothing waits so long elsewhere
BROKEN = 5
QUIET = {
    "refresh_ages_s": (), "finetune_interval_s": 0.0, "status_interval_s": 0.0, "checkpoint_interval_s": 0.0,
    "event_ids_held": 10_000, "drift_threshold": 1e9, "poll_timeout_s": 0.01,
}  # fmt: skip


class Workers:
    """Starts one worker after the other on the same data."""

    def __init__(self, settings, process):
        self.settings = settings
        self.process = process

    def fails(self, step, visit, how):
        """A worker that fails -> how it ended."""
        self._say(f"{step} {visit} {how} {self.settings.data_dir}")
        self._hear()
        return int(self._hear())

    def finish(self, messages):
        """A worker that takes in everything, so many messages, and stops -> its last checkpoint's arrays and state."""
        self._say(f"none 0 none {self.settings.data_dir}")
        pid = int(self._hear())
        deadline = time.monotonic() + WAIT_S
        while self._taken(pid) < messages:
            assert time.monotonic() < deadline, "the last worker stands still"
            time.sleep(0.05)
        os.kill(pid, signal.SIGTERM)
        assert int(self._hear()) == 0
        _, arrays, state = Checkpoints(self.settings.checkpoints_dir, 3).load()
        return arrays, state

    def _taken(self, pid):
        try:
            status = open_lists(self.settings).status() or {}
        except ListsError:
            return 0
        return sum(status.get("positions", {}).values()) if status.get("pid") == pid else 0

    def _say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _hear(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return line


@contextmanager
def workers(settings):
    """Of these settings, whatever their data folder."""
    settings.data_dir.mkdir()
    names = {name: getattr(settings, name) for name in settings.model_fields_set} | {"redis_url": None}
    values = {
        name: ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
        for name, value in names.items()
        if value is not None
    }
    if settings.redis_url is not None:
        values["redis_url"] = settings.redis_url.get_secret_value()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    in_code = {name: getattr(settings, name) for name in values.keys() & fixed_values().keys()}
    environment |= {PREFIX + name.upper(): value for name, value in values.items() if name not in in_code}
    log = settings.data_dir / "workers.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("failing_worker.py")), json.dumps(in_code)],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # so that its worker goes with it
        )
    process.stderr = log.open()
    try:
        yield Workers(settings, process)
    finally:
        process.stdin.close()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


def publish(settings, clicks):
    """Clicks with event ids, and broken messages among them -> how many messages."""
    clicks = [click.model_copy(update={"event_id": f"e{at}"}) for at, click in enumerate(clicks)]
    with closing(open_producer(settings)) as producer:
        for at, click in enumerate(clicks):
            producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
            if at % (len(clicks) // BROKEN) == 7:
                producer.send(settings.clicks_topic, key=click.user_id.encode(), value=b"no json")
    return len(clicks) + BROKEN


def dead_letters(settings):
    with closing(open_reader(settings, settings.dead_letters_topic)) as reader:
        return [(letter.partition, letter.offset, letter.reason) for letter in map(dead_letter, reader.read())]


def lists(settings):
    """Each user's, and the popular one, but for when they were written."""
    there = open_lists(settings)
    tops = [(user, there.read(user)) for user in sorted(there.users())] + [("", there.popular())]
    return [(user, top.model_dump(exclude={"written_at"})) for user, top in tops]


def of(arrays):
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def without_clocks(state):
    kept = {name: state[name] for name in ("learner", "progress", "supervisor")}
    return kept | {"stale": (state["lists"]["stale"], state["lists"]["popular_stale"])}


def test_processes_killed_or_hanging_at_steps_leave_what_an_undisturbed_one_leaves(
    small, tmp_path, free_port, town_clicks
):
    found = []
    faults = [("checkpoint_state", 1, "kill"), ("learn", 3, "hang"), ("checkpoint_rename", 2, "hang")]
    with EmbeddedRedis(free_port) as redis:
        quiet = small(**QUIET, data_dir=tmp_path / "quiet", redis_url=redis.url)
        faulty = quiet.model_copy(update={"data_dir": tmp_path / "faulty"})
        with workers(quiet) as them:
            for settings, these in ((quiet, []), (faulty, faults)):
                them.settings = settings
                prepare_topics(settings)
                messages = publish(settings, town_clicks[:150])
                assert [them.fails(*fault) for fault in these] == [-signal.SIGKILL] * len(these)
                arrays, state = them.finish(messages)
                found.append((of(arrays), without_clocks(state), dead_letters(settings), lists(settings)))
                redis.client.flushall()
    for one, other in zip(*found, strict=True):
        assert one == other


@pytest.mark.real
@pytest.mark.timeout(1_200)
def test_on_kafka_killed_at_every_step_each_event_is_accounted_for_once(
    small, tmp_path, kafka_broker, redis_server, town_clicks
):
    topic = f"clicks-{uuid.uuid4().hex[:8]}"
    settings = small(
        **QUIET,
        data_dir=tmp_path / "data",
        kafka_bootstrap_servers=kafka_broker.bootstrap_servers,
        redis_url=redis_server.url,
        clicks_topic=topic,
        dead_letters_topic=f"{topic}.dead",
        topic_partitions=3,
    )
    with workers(settings) as them:
        prepare_topics(settings)
        messages = publish(settings, town_clicks[:400])
        for at, step in enumerate(STEPS):
            assert them.fails(step, 1 + at % 2, ("kill", "hang")[at % 3 == 0]) == -signal.SIGKILL, step
        arrays, state = them.finish(messages)
    progress, learner = state["progress"], state["learner"]
    flagged = sum(learner["abuse_filter"]["total"].values())  # says nothing of how good lists are
    assert progress["learned"] == learner["scores"]["scored"] + flagged == 400
    assert (progress["duplicates"], progress["dead_letters"]) == (0, {"malformed-json": BROKEN})
    assert sum(offset for name, _, offset in progress["next_offsets"] if name == topic) == messages
    expected = SeenEvents(10_000)
    for at in range(400):
        assert expected.add(f"e{at}")
    assert sorted(arrays["seen"].tolist()) == sorted(expected.to_state().tolist())
    letters = dead_letters(settings)
    assert len(letters) == len(set(letters)) == BROKEN
