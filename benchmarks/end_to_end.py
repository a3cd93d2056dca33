"""A stream through the real product: published, learned by a worker that is killed on the way, served from Redis.

    python -m benchmarks.end_to_end [STREAM.csv[.gz|.xz]] [--kafka HOST:PORT] [--redis URL] [--broken 0.01] [--kills 3]
    python -m benchmarks.end_to_end STREAM.csv.xz --kafka HOST:PORT --redis URL --limit 40000 --rate 500

Without --kafka and --redis the embedded parts are used, without a stream 20,000 clicks of the simulated town. All waits
on the topic when the worker starts, so it is as fast as it can be. With --rate, further clicks then come at a constant
rate, each made when it is sent (--limit 0: only these); of them the first --warm-up seconds do not count.

Prints what was published, learned, put aside and listed, from which offsets each restart went on, how fast it was
(clicks a second and CPU time a click from the first click on; the start has a figure of its own), and how good the
lists were.
Exits with 1 if anything does not add up. --checkout measures the worker of another version of the code.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks._constant_rate import endless
from online.config.settings import Settings, load_settings
from online.evaluation.town import Town
from online.worker.checkpoint import Checkpoints
from online.worker.connections import open_lists, open_producer, open_reader, prepare_topics
from stream.dead_letters import dead_letter
from stream.event_files import EventFile
from stream.events import Click, parse
from stream.lists import ListsError

#: Messages that no worker can learn from, with the reason each has to get.
BROKEN = [
    ("malformed-json", b'{"user_id": "u1", "item_id":'),
    ("missing-user_id", b'{"item_id": "i1", "timestamp": 1732233600}'),
    ("invalid-item_id", b'{"user_id": "u1", "item_id": "", "timestamp": 1732233600}'),
    ("invalid-user_id", b'{"user_id": "' + b"u" * 300 + b'", "item_id": "i1", "timestamp": 1732233600}'),
    ("invalid-timestamp", b'{"user_id": "u1", "item_id": "i1", "timestamp": NaN}'),
    ("invalid-timestamp", b'{"user_id": "u1", "item_id": "i1", "timestamp": -5}'),
    ("future-timestamp", b'{"user_id": "u1", "item_id": "i1", "timestamp": 4000000000}'),
    ("invalid-utf8", b'{"user_id": "\xff\xfe", "item_id": "i1", "timestamp": 1732233600}'),
    ("not-an-object", b'["u1", "i1", 1732233600]'),
]
LARGE = ("too-large", b'{"user_id": "u1", "padding": "' + b"x" * 1_000_000 + b'"}')

LATENCIES_HELD = 10_000  # latest ones of which a worker of an earlier version says the median and p99
_STATUS_S = 0.2  # between two reports of the worker: how exactly its rate is known
# The stream's users make in seconds what they made in months: none of them is to count as a bot.
_NO_ABUSE = {"abuse_clicks_at_once": 10**9, "abuse_clicks_per_minute": 1e9, "abuse_repeats_at_once": 10**9}
_STANDS_STILL_S_MAX = 600  # a busy machine makes it slow, not wrong


class Worker:
    """`nextclick worker` as a process that can be killed and started again."""

    def __init__(
        self,
        environment: dict[str, str],
        log: Path,
        arguments: Sequence[str] = (),
        module: str = "online",
        checkout: Path | None = None,
    ) -> None:
        """`module`: what stands in for `nextclick`. `checkout`: where another version of the code stands."""
        self.module, self.arguments, self.checkout = module, arguments, checkout
        self.environment = {**os.environ, **environment}
        if checkout is not None:
            self.environment["PYTHONPATH"] = str(checkout)
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "worker", *self.arguments],
                env=self.environment,
                stderr=log,
                cwd=self.checkout,
            )

    def cpu_s(self) -> float:
        """CPU time of its process so far, all threads, in seconds."""
        assert self.process is not None
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=120)

    def memory_mb(self) -> float:
        """What its process holds now (resident)."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)

    def restarts(self) -> list[str]:
        """What each start that found a checkpoint said about where it goes on."""
        return re.findall(r"(\d+ clicks learned; goes on at .*)", self.log.read_text())


def published(file: EventFile, limit: int | None, broken: float) -> Iterator[tuple[bytes | None, bytes, str | None]]:
    """Key, value and reason (None: a click) of every message: the file's events, and broken ones evenly among them."""
    owed, kinds = 0.0, 0
    for index, event in enumerate(islice(file.messages(), limit)):
        yield event.key, event.value, None
        owed += broken
        while owed >= 1.0:
            owed -= 1.0
            reason, value = LARGE if index and kinds % 200 == 199 else BROKEN[kinds % len(BROKEN)]
            kinds += 1
            yield b"u1", value, reason


def run(
    path: Path,
    *,
    kafka: str | None = None,
    redis: str | None = None,
    partitions: int = 4,
    broken: float = 0.0,
    kills: int = 0,
    rate: float | None = None,
    seconds: float = 20.0,
    warm_up: float = 10.0,
    limit: int | None = None,
    seed: int = 0,
    finetune_interval_s: float | None = None,
    checkpoint_interval_s: float = 5.0,
    checkout: Path | None = None,
    module: str = "online",
    folder: Path,
) -> dict[str, Any]:
    """Runs it all and returns what happened, as one JSON object."""
    folder.mkdir(parents=True, exist_ok=True)
    topic = f"clicks-{uuid.uuid4().hex[:8]}"
    given = {"kafka_bootstrap_servers": kafka, "redis_url": redis, "topic_partitions": partitions}
    given |= {"clicks_topic": topic, "dead_letters_topic": f"{topic}.dead", "consumer_group": topic, "data_dir": folder}
    given |= {"checkpoint_interval_s": checkpoint_interval_s, "finetune_interval_s": finetune_interval_s}
    given |= {"status_interval_s": _STATUS_S} | ({} if rate is None else _NO_ABUSE)
    if checkout is None:  # so that the latencies of the warm-up have left the window
        given["metrics_window_s"] = seconds
    given = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(**given)
    environment = {f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}
    worker = Worker(environment, folder / "worker.log", module=module, checkout=checkout)
    messages = list(published(EventFile(path), limit, broken))
    expected = Counter(reason for _, _, reason in messages if reason)
    clicks = len(messages) - expected.total()
    parsed = (parse(value) for _, value, reason in messages if reason is None)
    users = {click.user_id for click in parsed if isinstance(click, Click)}
    prepare_topics(settings)
    with closing(open_producer(settings)) as producer:
        for key, value, _ in messages:
            producer.send(topic, key=key, value=value)
    began = time.monotonic()
    worker.start()
    chance = random.Random(seed)
    for mark in sorted(chance.uniform(0.1, 0.9) for _ in range(kills)):
        wait_until_taken(settings, int(mark * len(messages)), worker)
        worker.end(signal.SIGKILL)
        worker.start()
    first = wait_until_taken(settings, min(1, len(messages)), worker)
    ready_s, cpu_s = time.monotonic() - began, worker.cpu_s()
    status = wait_until_taken(settings, len(messages), worker)
    cpu_s = worker.cpu_s() - cpu_s
    wall_s, learned = (status["written_at"] - first["written_at"]) / 1000, status["learned"] - first["learned"]
    report = {
        "ready_s": round(ready_s, 2),
        "events_per_s": round(learned / wall_s, 1) if wall_s else None,
        "cpu_us_per_click": round(1e6 * cpu_s / learned, 1) if learned else None,
        "memory_mb": worker.memory_mb(),
    }
    if rate is not None:
        if checkout is not None:
            seconds = max(seconds, LATENCIES_HELD / rate)  # so that the latencies of the warm-up are not among them
        pace = ConstantRate(path, rate, warm_up=warm_up, seconds=seconds, skip=clicks)
        report["constant_rate"] = pace.run(worker, settings, environment)
        status = wait_until_taken(settings, len(messages) + pace.count, worker)
        report["constant_rate"]["click_to_list_ms"] = status["click_to_list_ms"]
        users |= pace.users()
        clicks += pace.count
    with closing(open_reader(settings, settings.dead_letters_topic)) as reader:
        letters = [dead_letter(record) for record in reader.read()]
    lists = open_lists(settings)
    listed = sum(lists.read(user) is not None for user in users)
    exit_status = worker.end(signal.SIGTERM)
    return report | {
        "published": clicks + expected.total(),
        "clicks": clicks,
        "learned": status["learned"],
        "duplicates": status["duplicates"],
        "positions": status["positions"],
        "dead_letters": dict(Counter(letter.reason for letter in letters)),
        "dead_letters_expected": dict(expected),
        "dead_letters_twice": len(letters) - len({(x.topic, x.partition, x.offset) for x in letters}),
        "users": len(users),
        "users_with_a_list": listed,
        "kills": kills,
        "restarts": worker.restarts(),
        "memory_mb_max": status["memory_mb_max"],
        "checkpoint": status["checkpoint"],
        "fine_tunings": status["finetune"]["done"],
        "alarms": status["alarms"],
        "scores": status["scores"],
        "scores_without_the_first_fifth": _later_scores(settings),
        "worker_exit_status": exit_status,
    }


class ConstantRate:
    """Clicks at a constant rate, by a process of their own."""

    def __init__(self, path: Path, rate: float, *, warm_up: float, seconds: float, skip: int) -> None:
        self.path, self.rate, self.skip = path, rate, skip
        self.warm_up, self.seconds = warm_up, seconds
        self.count = int(rate * (warm_up + seconds))

    def users(self) -> set[str]:
        """Of its clicks."""
        events = islice(endless(self.path, self.skip), self.count)
        clicks = (parse(json.dumps(fields).encode()) for _, fields in events)
        return {click.user_id for click in clicks if isinstance(click, Click)}

    def run(self, worker: Worker, settings: Settings, environment: Mapping[str, str]) -> dict[str, Any]:
        """Sends them all -> how that went, and what it cost the worker after the warm-up."""
        command = [sys.executable, "-m", "benchmarks._constant_rate", str(self.path), settings.clicks_topic]
        command += ["--rate", str(self.rate), "--seconds", str(self.warm_up + self.seconds), "--skip", str(self.skip)]
        if settings.kafka_bootstrap_servers:
            command += ["--kafka", settings.kafka_bootstrap_servers]
        before = sum((_status(settings) or {"positions": {}})["positions"].values())
        sender = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment})
        learned = wait_until_taken(settings, before + int(self.rate * self.warm_up), worker)["learned"]
        cpu_s = worker.cpu_s()
        said, _ = sender.communicate()
        cpu_s, status = worker.cpu_s() - cpu_s, _status(settings) or {"learned": learned}
        clicks = max(1, status["learned"] - learned)
        return json.loads(said) | {"cpu_us_per_click": round(1e6 * cpu_s / clicks, 1)}


def town(path: Path, clicks: int) -> Path:
    """A file with the first clicks of the simulated town."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "timestamp"])
        rows.writerows((click.user_id, click.item_id, click.timestamp) for click in Town().clicks(clicks))
    return path


def adds_up(report: dict[str, Any]) -> bool:
    """Whether every message is accounted for exactly once, and every user has a list."""
    return bool(
        report["learned"] == report["clicks"]
        and report["duplicates"] == 0
        and sum(report["positions"].values()) == report["published"]
        and report["dead_letters"] == report["dead_letters_expected"]
        and report["dead_letters_twice"] == 0
        and report["users_with_a_list"] == report["users"]
        and report["worker_exit_status"] == 0
    )


def _status(settings: Settings) -> dict[str, Any] | None:
    try:
        return open_lists(settings).status()
    except ListsError:
        return None  # the embedded Redis starts with the worker


def wait_until_taken(settings: Settings, messages: int, worker: Worker) -> dict[str, Any]:
    """Waits until the worker has taken in so many messages -> what it says of itself then."""
    lately, progress = time.monotonic(), -1
    while True:
        status = _status(settings)
        assert worker.process is not None
        if status is not None and status.get("pid") != worker.process.pid:
            status = None  # what a killed worker said last stays in Redis for a while
        taken = sum(status.get("positions", {}).values()) if status else 0
        if status and taken >= messages:
            return status
        if taken != progress:
            lately, progress = time.monotonic(), taken
        if time.monotonic() - lately > _STANDS_STILL_S_MAX or worker.process.poll() is not None:
            said = worker.log.read_text()[-2_000:]
            worker.process.kill()  # its answer is not needed any more
            raise TimeoutError(f"the worker stands still at {taken} of {messages} messages: {said}")
        time.sleep(0.05)


def _later_scores(settings: Settings) -> dict[str, dict[str, float]]:
    """hit@10 and NDCG@10 after about the first fifth of the stream, from the last checkpoint."""
    checkpoints = Checkpoints.existing(settings.checkpoints_dir)
    with checkpoints.opened(checkpoints.numbers()[-1], lambda _: False) as (state, _):
        scores = state["learner"]["scores"]
    curve = [(0, [[0.0, 0.0]] * len(scores["sums"])), *scores["curve"]]
    began, before = min(curve, key=lambda point: abs(point[0] - scores["scored"] / 5))
    count = max(1, scores["scored"] - began)
    return {
        name: {"hit@10": round((now[0] - then[0]) / count, 4), "ndcg@10": round((now[1] - then[1]) / count, 4)}
        for name, now, then in zip(("served", "popular", "followed"), scores["sums"], before, strict=True)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path, nargs="?")
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--broken", type=float, default=0.0, help="broken messages for each event")
    parser.add_argument("--kills", type=int, default=0, help="how often the worker is killed with SIGKILL on the way")
    parser.add_argument("--limit", type=int, help="events of the stream that wait on the topic")
    parser.add_argument("--rate", type=float, help="further clicks per second, once those that wait are learned")
    parser.add_argument("--seconds", type=float, default=20.0, help="that these come for, after the warm-up; at least")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--finetune-interval-s", type=float, help="instead of the default")
    parser.add_argument("--checkpoint-interval-s", type=float, default=5.0)
    parser.add_argument("--checkout", type=Path, help="folder of another version of the code, whose worker is measured")
    arguments = vars(parser.parse_args())
    stream = arguments.pop("stream")
    with tempfile.TemporaryDirectory() as folder:
        report = run(stream or town(Path(folder) / "town.csv", 20_000), folder=Path(folder), **arguments)
    print(json.dumps(report, indent=1))
    print("everything adds up" if adds_up(report) else "SOMETHING DOES NOT ADD UP")
    return 0 if adds_up(report) else 1


if __name__ == "__main__":
    sys.exit(main())
