"""A group of real workers on Apache Kafka and Redis, of which some are killed and added.

    python -m benchmarks.group --kafka HOST:PORT --redis URL [--workers 3] [--rate 150] [--kills 20]
    python -m benchmarks.group --kafka HOST:PORT --redis URL --counting

A made-up town clicks at a steady rate. After a while a worker is killed (SIGKILL), then started again; then one more
joins; then workers are killed at random moments, the leader among them. Told are the seconds until lists are fresh
again, what was learned again, CPU time of a click in each worker, bytes of the weights topic; and at the end, whether
any click was lost, counted twice or merged twice, and whether any list went back in time. Exits with 1 if one was.

With `--counting`, two workers read a topic of one partition, which one of them owns: told is the CPU time of a click
in the one that only counts it, by that in the one that learns from it, through Kafka and Redis, all threads included.
"""

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import Worker
from online.config.settings import Settings, load_settings
from online.evaluation.town import Town
from online.learner.learner import Learner
from online.rounds.base import Base, Outcome
from online.rounds.change import Change
from online.rounds.encoding import decode
from online.worker.connections import open_lists, open_producer, open_reader, prepare_topics
from online.worker.weights_topic import WEIGHTS, Message, WeightsTopic
from stream.events import encode
from stream.lists import ListsError

FRESH_S = 1.0  # a list that follows its user's click within so long is fresh
WAIT_S_MAX = 300.0
WARM_UP, MEASURED = 5_000, 40_000  # clicks


class Group:
    """Topics of its own, workers as processes, and a publisher."""

    def __init__(self, folder: Path, kafka: str, redis: str, rate: float, **settings: Any) -> None:
        topic = f"clicks-{uuid.uuid4().hex[:8]}"
        given: dict[str, Any] = {"kafka_bootstrap_servers": kafka, "redis_url": redis, "data_dir": folder}
        given |= {"clicks_topic": topic, "dead_letters_topic": f"{topic}.dead", "events_topic": f"{topic}.events"}
        given |= {"weights_topic": f"{topic}.weights", "control_topic": f"{topic}.control", "consumer_group": topic}
        given |= {"items_topic": f"{topic}.items", "workers": "many", "topic_partitions": 12, **settings}
        given |= {"abuse_filter": False}
        self.given, self.folder, self.rate = given, folder, rate
        self.settings: Settings = load_settings(**given)
        prepare_topics(self.settings)
        self.workers: dict[str, Worker] = {}
        self.lists = open_lists(self.settings)
        self.latest: dict[str, float] = {}  # by user: when the latest click was made
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def begin(self, name: str) -> None:
        """Starts a worker, on the folder that it had before."""
        variables = {f"NEXTCLICK_{n.upper()}": str(v) for n, v in (self.given | {"worker_name": name}).items()}
        worker = Worker(variables, self.folder / f"{name}.log")
        worker.start()
        self.workers[name] = worker

    def kill(self, name: str) -> None:
        worker = self.workers.pop(name)
        assert worker.process is not None
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _publish(self) -> None:
        with closing(open_producer(self.settings)) as producer:
            began = time.monotonic()
            for click in Town(users=400, items=2_000, seed=11).clicks(10**9):
                if self._stop.is_set():
                    break
                if (wait := began + self.sent / self.rate - time.monotonic()) > 0:
                    producer.flush()
                    self._stop.wait(wait)
                user = f"{self.settings.clicks_topic}-{click.user_id}"  # lists of earlier runs are other users'
                now = click.model_copy(update={"timestamp": time.time(), "user_id": user})
                producer.send(self.settings.clicks_topic, key=user.encode(), value=encode(now))
                self.latest[user] = now.timestamp
                self.sent += 1
            producer.flush()

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Those of running workers."""
        try:
            found = self.lists.read_statuses()
        except ListsError:
            return {}
        pids = {worker.process.pid for worker in self.workers.values() if worker.process is not None}
        return {name: status for name, status in found.items() if status.get("pid") in pids}

    def fresh_share(self) -> float:
        """Share of users whose latest click is older than FRESH_S and younger than a minute, and whose list has it."""
        now, fresh, there = time.time(), 0, 0
        for user, at in list(self.latest.items()):
            if FRESH_S < now - at < 60.0:
                top = self.lists.read(user)
                there += 1
                fresh += top is not None and top.clicked_at >= int(1000 * at) - 1
        return fresh / max(1, there)

    def wait(self, what: Callable[[], bool], name: str) -> float:
        """Seconds until it is so. Raises TimeoutError."""
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > WAIT_S_MAX:
                raise TimeoutError(f"{name}: not within {WAIT_S_MAX:.0f} s; {json.dumps(self.summary())}")
            time.sleep(0.1)
        return time.monotonic() - began

    def summary(self) -> dict[str, Any]:
        return {name: status.get("group") for name, status in self.statuses().items()}

    def owned(self) -> list[int]:
        return sorted(p for status in self.statuses().values() for p in (status.get("group") or {}).get("owned", []))

    def balanced(self) -> bool:
        """Whether each partition has one owner, and each worker its share."""
        counts = [len((status.get("group") or {}).get("owned", [])) for status in self.statuses().values()]
        whole = self.owned() == list(range(self.settings.topic_partitions))
        return whole and len(counts) == len(self.workers) and max(counts) - min(counts) <= 1

    def caught_up(self) -> bool:
        found = self.statuses()
        return len(found) == len(self.workers) and all(status.get("learned") == self.sent for status in found.values())


class Watch:
    """Reads lists again and again, and notes those whose offset went back."""

    def __init__(self, group: Group) -> None:
        self.group, self.back, self.read = group, 0, 0
        self._offsets: dict[str, tuple[str, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            for user in list(self.group.latest):
                top = self.group.lists.read(user)
                if top is None or not top.offset:
                    continue
                partition, offset = top.offset.split(":")
                before = self._offsets.get(user)
                self.back += before is not None and before[0] == partition and int(offset) < before[1]
                self._offsets[user] = partition, int(offset)
                self.read += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def merged_twice(group: Group) -> tuple[int, int, int]:
    """Reads the weights topic as a worker does -> bases, clicks merged, and offsets that were merged twice."""
    base = Base(Learner(group.settings).weights.tensors(), group.settings.seed)
    topic = WeightsTopic(lambda _: None, None, "")  # type: ignore[arg-type, return-value]
    changes: dict[Any, Change] = {}
    ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    bases = clicks = 0
    with closing(open_reader(group.settings, group.settings.weights_topic)) as reader:
        for record in reader.read():
            message: Message | None = topic.message(record) if record.key == WEIGHTS else None
            if message is None or message.weights is None:
                continue
            found = decode(message.weights, base.shape)
            if isinstance(found, Change):
                changes[found.tag] = found
            elif base.apply(found) == Outcome.APPLIED:
                bases, clicks = bases + 1, clicks + found.clicks
                for tag in found.taken:
                    for partition, bounds in changes[tag].ranges.items():
                        ranges[partition].append(bounds)
    twice = 0
    for bounds in ranges.values():
        bounds.sort()
        twice += sum(max(0, stop - start) for (_, stop), (start, _) in pairwise(bounds))
    return bases, clicks, twice


def run(options: argparse.Namespace, folder: Path) -> bool:
    group = Group(folder, options.kafka, options.redis, options.rate, round_s=options.round_s)
    names = [f"w{number}" for number in range(1, options.workers + 1)]
    for name in names:
        group.begin(name)
    owned_s = group.wait(group.balanced, "ownership")
    print(f"{options.workers} workers own their share after {owned_s:.1f} s", flush=True)
    group.start()
    time.sleep(20)
    watch = Watch(group)
    group.wait(lambda: group.fresh_share() > 0.99, "fresh lists")
    before = group.statuses()
    group.kill(names[-1])
    print(f"killed {names[-1]}: lists are stale for {refreshed(group):.1f} s", flush=True)
    learned = before[next(n for n in before if n.endswith(names[-1]))]["learned"]
    saved = group.sent - learned
    group.begin(names[-1])
    print(f"it is back: owns its share after {group.wait(group.balanced, 'ownership'):.1f} s, lists are fresh after "
          f"{refreshed(group):.1f} s more; about {saved} clicks came meanwhile", flush=True)  # fmt: skip
    group.begin("added")
    joined = group.wait(group.balanced, "ownership")
    fresh_s = refreshed(group)
    print(f"one more: owns its share after {joined:.1f} s, lists are fresh after {fresh_s:.1f} s more", flush=True)
    dice = random.Random(options.seed)
    for kill in range(options.kills):
        time.sleep(dice.uniform(0.5, 8.0))
        leaders = [name for name, status in group.statuses().items() if (status.get("group") or {}).get("leads")]
        running = list(group.workers)
        name = leaders[0] if kill % 3 == 0 and leaders and leaders[0] in running else dice.choice(running)
        group.kill(name)
        time.sleep(dice.uniform(0.0, 6.0))
        group.begin(name)
    group.wait(group.balanced, "ownership")
    group.wait(lambda: group.fresh_share() > 0.99, "fresh lists")
    group.stop()
    group.wait(group.caught_up, "all clicks")
    time.sleep(2 * options.round_s)
    watch.stop()
    for name, status in sorted(group.statuses().items()):
        shared = status["group"]
        print(f"{name}: counted {status['learned']:,} of {group.sent:,} clicks, owns {shared['owned']}, "
              f"base {shared['base']}, {shared['changes']}, lists rejected {status.get('lists_fenced')}")  # fmt: skip
    bases, clicks, twice = merged_twice(group)
    counts = {status["learned"] for status in group.statuses().values()}
    print(f"{group.sent:,} clicks, {options.kills} kills: {bases} bases, {clicks:,} clicks merged, {twice} offsets "
          f"merged twice; {watch.read:,} lists read, {watch.back} went back in time; counted: {counts}")  # fmt: skip
    for worker in group.workers.values():
        worker.end(15)
    return counts == {group.sent} and not twice and not watch.back


def counting(options: argparse.Namespace, folder: Path) -> bool:
    settings = {"topic_partitions": 1, "group_warm_up_clicks": 0, "checkpoint_interval_s": 15.0}
    group = Group(folder, options.kafka, options.redis, 1e9, **settings)
    for name in ("a", "b"):
        group.begin(name)
    group.wait(lambda: group.owned() == [0] and len(group.statuses()) == 2, "ownership")
    clicks = Town(users=400, items=2_000, seed=11).clicks(10**9)
    taken: dict[str, float] = {}
    for count in (WARM_UP, MEASURED):
        before = {name: seconds_of(worker) for name, worker in group.workers.items()}
        with closing(open_producer(group.settings)) as producer:
            for click in itertools.islice(clicks, count):
                producer.send(group.settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
            producer.flush()
        group.sent += count
        taken = {}
        while len(taken) < 2:  # each until it has come to the end: while it waits for the other it counts nothing
            for name, status in group.statuses().items():
                if status.get("learned") == group.sent and name not in taken:
                    taken[name] = 1e6 * (seconds_of(group.workers[name]) - before[name]) / count
            time.sleep(0.1)
    owners = [name for name, status in group.statuses().items() if status["group"]["owned"]]
    (owner,), (other,) = owners, group.workers.keys() - set(owners)
    print(f"{MEASURED:,} clicks after {WARM_UP:,}: {taken[owner]:.0f} us of CPU a click that is learned from, "
          f"{taken[other]:.0f} us one that is only counted: f = {taken[other] / taken[owner]:.3f}")  # fmt: skip
    f = taken[other] / taken[owner]
    print("times the clicks/s of one worker: " + ", ".join(f"{n}: {1 / (f + (1 - f) / n):.2f}" for n in (2, 4, 8)))
    for worker in group.workers.values():
        worker.end(15)
    return True


def seconds_of(worker: Worker) -> float:
    """CPU seconds that a worker's process has taken, user and system."""
    assert worker.process is not None
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refreshed(group: Group) -> float:
    """Seconds until nearly all lists are fresh. It waits until they are seen to be stale first, or for two seconds."""
    began = time.monotonic()
    while time.monotonic() - began < 2.0 and group.fresh_share() > 0.99:
        time.sleep(0.1)
    group.wait(lambda: group.fresh_share() > 0.99, "fresh lists")
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=150.0, help="clicks a second, of all users together")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--round-s", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--counting", action="store_true", help="measure what counting costs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not (counting if options.counting else run)(options, Path(folder)):
            sys.exit(1)


if __name__ == "__main__":
    main()
