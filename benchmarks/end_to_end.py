"""A stream through the real product: published, learned by a worker that is killed on the way, served from Redis.

    python -m benchmarks.end_to_end [STREAM.csv[.gz|.xz]] [--kafka HOST:PORT] [--redis URL] [--broken 0.01] [--kills 3]

Without --kafka and --redis the embedded parts are used, without a stream 20,000 clicks of the simulated town. Prints
what was published, learned, put aside and listed, from which offsets each restart went on, how fast it was, and how
good the lists were. Exits with 1 if anything does not add up.
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
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from online.edges import open_lists, open_producer, open_reader, prepare_topics
from online.evaluation.town import Town
from online.event_files import EventFile
from online.settings import Settings, load_settings
from stream.dead_letters import dead_letter
from stream.events import BadEvent, parse
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

_STANDS_STILL_S_MAX = 600  # a busy machine makes it slow, not wrong


class Worker:
    """`nextclick worker` as a process that can be killed and started again."""

    def __init__(
        self, environment: dict[str, str], log: Path, arguments: Sequence[str] = (), module: str = "online"
    ) -> None:
        """`module`: what stands in for `nextclick`."""
        self.module, self.arguments = module, arguments
        self.environment = {**os.environ, **environment}
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "worker", *self.arguments], env=self.environment, stderr=log
            )

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=120)

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
    limit: int | None = None,
    seed: int = 0,
    finetune_interval_s: float | None = None,
    folder: Path,
) -> dict[str, Any]:
    """Runs it all and returns what happened, as one JSON object."""
    folder.mkdir(parents=True, exist_ok=True)
    topic = f"clicks-{uuid.uuid4().hex[:8]}"
    given = {"kafka_bootstrap_servers": kafka, "redis_url": redis, "topic_partitions": partitions}
    given |= {"clicks_topic": topic, "dead_letters_topic": f"{topic}.dead", "consumer_group": topic, "data_dir": folder}
    given |= {"checkpoint_interval_s": 5.0, "finetune_interval_s": finetune_interval_s}
    given = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(**given)
    worker = Worker({f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}, folder / "worker.log")
    file = EventFile(path)
    messages = list(published(file, limit, broken))
    expected = Counter(reason for _, _, reason in messages if reason)
    clicks = len(messages) - expected.total()
    users = {parsed.user_id for parsed in (parse(value) for _, value, r in messages if r is None) if not _bad(parsed)}
    prepare_topics(settings)

    def publish() -> None:
        began = time.monotonic()
        with closing(open_producer(settings)) as producer:
            for number, (key, value, _) in enumerate(messages):
                if rate is not None:
                    ahead = number / rate - (time.monotonic() - began)
                    if ahead > 0:
                        producer.flush()
                        time.sleep(ahead)
                producer.send(topic, key=key, value=value)
            producer.flush()

    publisher = threading.Thread(target=publish)
    if rate is None:
        publisher.run()  # everything waits on the topic: the worker is as fast as it can be
    worker.start()
    if rate is not None:
        _wait_for_status(settings)
        publisher.start()
    chance = random.Random(seed)
    for mark in sorted(chance.uniform(0.1, 0.9) for _ in range(kills)):
        _wait_until_taken(settings, int(mark * len(messages)), worker)
        worker.end(signal.SIGKILL)
        worker.start()
    began = time.monotonic()
    status = _wait_until_taken(settings, len(messages), worker)
    seconds = time.monotonic() - began
    with closing(open_reader(settings, settings.dead_letters_topic)) as reader:
        letters = [dead_letter(record) for record in reader.read()]
    lists = open_lists(settings)
    listed = sum(lists.read(user) is not None for user in users)
    exit_status = worker.end(signal.SIGTERM)
    return {
        "published": len(messages),
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
        "seconds": round(seconds, 1),
        "events_per_s": round(clicks / seconds, 1) if not kills else None,
        "click_to_list_ms": status["click_to_list_ms"],
        "memory_mb_max": status["memory_mb_max"],
        "fine_tunings": status["finetune"]["done"],
        "alarms": status["alarms"],
        "scores": status["scores"],
        "scores_without_the_first_fifth": _later_scores(settings),
        "worker_exit_status": exit_status,
    }


def town(path: Path, clicks: int) -> Path:
    """A file with the first clicks of the simulated town."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "timestamp"])
        rows.writerows((click.user_id, click.item_id, click.timestamp) for click in Town().clicks(clicks))
    return path


def adds_up(report: dict[str, Any]) -> bool:
    """Whether every message is accounted for exactly once, and everybody has a list."""
    return bool(
        report["learned"] == report["clicks"]
        and report["duplicates"] == 0
        and sum(report["positions"].values()) == report["published"]
        and report["dead_letters"] == report["dead_letters_expected"]
        and report["dead_letters_twice"] == 0
        and report["users_with_a_list"] == report["users"]
        and report["worker_exit_status"] == 0
    )


def _bad(parsed: object) -> bool:
    return isinstance(parsed, BadEvent)


def _status(settings: Settings) -> dict[str, Any] | None:
    try:
        return open_lists(settings).status()
    except ListsError:
        return None  # the embedded Redis starts with the worker


def _wait_for_status(settings: Settings) -> None:
    while "pid" not in (_status(settings) or {}):  # a worker that still waits for a part says less
        time.sleep(0.1)


def _wait_until_taken(settings: Settings, messages: int, worker: Worker) -> dict[str, Any]:
    """Waits until the worker has taken in so many messages -> what it says of itself then."""
    lately, progress = time.monotonic(), -1
    while True:
        status = _status(settings)
        assert worker.process is not None
        if status is not None and status.get("pid") != worker.process.pid:
            status = None  # what a killed worker said last stays in Redis for a while
        taken = sum(status["positions"].values()) if status else 0
        if status and taken >= messages:
            return status
        if taken != progress:
            lately, progress = time.monotonic(), taken
        if time.monotonic() - lately > _STANDS_STILL_S_MAX or worker.process.poll() is not None:
            said = worker.log.read_text()[-2_000:]
            worker.process.kill()  # nobody waits for it any more
            raise TimeoutError(f"the worker stands still at {taken} of {messages} messages: {said}")
        time.sleep(0.05)


def _later_scores(settings: Settings) -> dict[str, dict[str, float]]:
    """hit@10 and NDCG@10 after about the first fifth of the stream, from the last checkpoint."""
    latest = max(path for path in settings.checkpoints_dir.iterdir() if path.name.isdigit())
    scores = json.loads((latest / "state.json").read_text())["learner"]["scores"]
    curve = [(0, [[0.0, 0.0]] * len(scores["sums"])), *scores["curve"]]
    began, before = min(curve, key=lambda point: abs(point[0] - scores["scored"] / 5))
    count = scores["scored"] - began
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
    parser.add_argument("--rate", type=float, help="events per second; otherwise everything waits on the topic")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--finetune-interval-s", type=float, help="instead of the default")
    arguments = vars(parser.parse_args())
    stream = arguments.pop("stream")
    with tempfile.TemporaryDirectory() as folder:
        report = run(stream or town(Path(folder) / "town.csv", 20_000), folder=Path(folder), **arguments)
    print(json.dumps(report, indent=1))
    print("everything adds up" if adds_up(report) else "SOMETHING DOES NOT ADD UP")
    return 0 if adds_up(report) else 1


if __name__ == "__main__":
    sys.exit(main())
