"""The fault matrix: what becomes of clicks and lists when Apache Kafka, redis-server, the network or the worker fails.

    python -m benchmarks.faults --kafka-start PATH [--redis-server PATH] [--cluster] [--only NAME,NAME] [--json OUT]

PATH runs one node of Apache Kafka: `PATH DIR PORT [name=value ...]`, in the foreground, with `ready PORT SECONDS`
beside it. The same clicks come at the same rate in each row; the fault begins when a third of them are out. Lists are
fresh again from when, after the fault, each shows all that its owner clicked until two seconds ago, and goes on to. At
the end Redis is emptied once more, and every user's list is compared with the undisturbed run's.

Clicks are learned one by one (micro-batches and polls of 1), and no time passes in the stream between two of them, so
that nothing depends on when a poll returned or a list was written: lists have to be equal in items and scores, bit for
bit. Where there are several partitions the order between them is not promised; there the shared share of the best ten
items is printed.
Exits with 1 if any click is lost or learned twice by the same weights, or lists that should be equal are not.

With --scrape, /metrics, /healthz and /readyz of the workers and of an API are asked each second meanwhile, and what
they do not answer (gaps) or say wrongly is told: ready while a fault has lasted for 12 seconds, or a problem when
lists were fresh again, or before anything was wrong. Faults that have to be noticed last longer then. It exits with 1
for either.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis
from kafka import KafkaAdminClient, KafkaProducer

from benchmarks._redis_cluster import SLOTS, RedisCluster, running
from benchmarks._scrapes import NOTICED_S, TOLD_MAX, Process, Scrapes
from benchmarks._servers import Server, free_port, kafka_server, redis_server
from benchmarks.end_to_end import Worker
from benchmarks.proxy import Proxy
from online.config.settings import Settings, load_settings
from online.evaluation.town import Town
from online.worker.checkpoint import Checkpoints
from online.worker.connections import open_reader, prepare_topics
from stream.events import Click, encode
from stream.lists import Lists, ListsError, TopList, connect

SMALL: dict[str, Any] = {
    **{"layers": "lsh", "width": 16, "heads": 2, "rounds": 1, "buckets": 4, "window": 8, "ranker_hidden": 16},
    **{"ranker_networks": 1, "users_held": 500, "items_held": 500, "moments_held": 5_000, "replay_held": 500},
    **{"replay_batch": 16, "list_size": 20, "abuse_filter": False, "reaction_clicks": 0, "finetune_interval_s": 0},
    **{"event_ids_held": 1_000, "refresh_ages_s": "none"},
    **{"micro_batch_max": 1, "poll_records_max": 1, "checkpoint_interval_s": 2, "future_s_max": 1e9},
}
SLACK_S = 2.0  # a click that is older and not in its owner's list makes lists not fresh
STEADY_S = 10.0  # for so long lists have to stay fresh
WAIT_S_MAX = 300.0


class Stage:
    """The servers, the proxies before them, and one row's worker and clicks."""

    def __init__(
        self,
        folder: Path,
        kafka: Server,
        redis_there: Server,
        proxies: tuple[Proxy, Proxy],
        cluster: RedisCluster | None = None,
    ) -> None:
        """`cluster`: where lists stand instead, without a proxy."""
        self.folder = folder
        self.kafka, self.redis_there = kafka, redis_there
        self.kafka_proxy, self.redis_proxy = proxies
        self.cluster = cluster
        self.admin = redis.Redis(port=redis_there.port)
        direct, proxied = (f"redis://127.0.0.1:{port}/0" for port in (redis_there.port, self.redis_proxy.port))
        self.redis_url = cluster.url if cluster else proxied
        self.lists = Lists(connect(cluster.url if cluster else direct), ttl_s=3_600)
        self.workers: list[Worker] = []
        self.settings: list[Settings] = []
        self.topic = ""
        self.scrapes: Scrapes | None = None  # of this row

    def begin(self, name: str, **others: Any) -> None:
        """A new topic, an empty Redis, no worker yet."""
        self.topic = f"clicks-{name.replace(' ', '-')}-{free_port()}"
        self.workers, self.settings = [], []
        self.others = others
        self.empty_redis()

    def empty_redis(self) -> None:
        if self.cluster:
            self.cluster.flush()
        else:
            self.admin.flushall()

    @property
    def nodes(self) -> RedisCluster:
        """The cluster, in a fault of one."""
        assert self.cluster is not None
        return self.cluster

    def direct(self) -> str:
        return f"127.0.0.1:{self.kafka.port}"

    def add_worker(self) -> Worker:
        """Starts a worker with a data folder of its own, in the same group."""
        number = len(self.workers)
        data = self.folder / f"{self.topic}-{number}"
        data.mkdir()
        given = {**SMALL, **self.others, "data_dir": data, "clicks_topic": self.topic, "consumer_group": self.topic}
        given |= {"items_topic": f"{self.topic}.items", "dead_letters_topic": f"{self.topic}.dead"}
        given |= {"kafka_bootstrap_servers": f"127.0.0.1:{self.kafka_proxy.port}"}
        given |= {"redis_url": self.redis_url, "worker_port": free_port()}
        # A second one finds what the first has committed, and has nothing of its own yet.
        anew = ["--from-beginning"] if self.workers else []
        environment = {f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}
        worker = Worker(environment, data / "worker.log", anew, module="benchmarks._still_worker")
        worker.start()
        self.workers.append(worker)
        self.settings.append(load_settings(**given))
        self._scrape(f"worker {number}", given["worker_port"], lambda: worker.process)
        return worker

    def _scrape(self, name: str, port: int, process: Callable[[], "subprocess.Popen[bytes] | None"]) -> None:
        def pid() -> int | None:
            found = process()
            return found.pid if found is not None and found.poll() is None else None

        if self.scrapes is not None:
            self.scrapes.add(Process(name, f"http://127.0.0.1:{port}", pid))

    @contextmanager
    def scraped(self) -> Iterator[Scrapes]:
        """Asks workers, and an API on the same servers, as long as it lasts."""
        port = free_port()
        variables = {"REDIS_URL": self.redis_url, "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.kafka_proxy.port}"}
        environment = os.environ | {f"NEXTCLICK_{name}": value for name, value in variables.items()}
        command = [sys.executable, "-m", "online", "serve", "--port", str(port)]
        with (self.folder / f"{self.topic}-serve.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stderr=log)
        self.scrapes = Scrapes()
        self._scrape("serve", port, lambda: process)
        try:
            yield self.scrapes
        finally:
            self.scrapes.close()
            self.scrapes = None
            process.terminate()
            process.wait(timeout=60)

    def mark(self, name: str) -> None:
        if self.scrapes is not None:
            self.scrapes.mark(name)

    def kill_workers(self) -> None:
        """Those that still run, where a row was given up."""
        for worker in self.workers:
            if worker.process and worker.process.poll() is None:
                worker.end(signal.SIGKILL)

    def make_topics(self, partitions: int) -> None:
        names = {"clicks_topic": self.topic, "items_topic": f"{self.topic}.items"}
        prepare_topics(
            load_settings(
                kafka_bootstrap_servers=self.direct(),
                topic_partitions=partitions,
                dead_letters_topic=f"{self.topic}.dead",
                **names,
            )
        )

    def learned(self) -> int:
        """As the worker that reported last says."""
        try:
            return int((self.lists.status() or {}).get("learned", -1))
        except ListsError:
            return -1

    def memory_mb(self) -> float:
        """Of the first worker, now."""
        process = self.workers[0].process
        try:
            status = Path(f"/proc/{process.pid if process else 0}/status").read_text()
        except OSError:
            return 0.0
        return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


Act = Callable[[Stage], Any]


@dataclass
class Fault:
    """`during` holds the fault for `seconds`. `says`: the kind of problem that the worker has to report meanwhile;
    `unreadable`: whether the API has no lists to read then."""

    name: str
    during: Callable[[Stage], Any] | None = None
    seconds: float = 0.0
    partitions: int = 1
    ordered: bool = True  # whether all clicks are learned in one order
    settings: dict[str, Any] = field(default_factory=dict)
    topic_later_s: float = 0.0
    says: str | None = None
    unreadable: bool = False


@contextmanager
def broker_killed(stage: Stage) -> Iterator[None]:
    stage.kafka.kill()
    yield
    stage.kafka.start()


@contextmanager
def broker_slow(stage: Stage) -> Iterator[None]:
    stage.kafka_proxy.delay_s = 0.3
    yield
    stage.kafka_proxy.delay_s = 0.0


@contextmanager
def cut_from_kafka(stage: Stage) -> Iterator[None]:
    stage.kafka_proxy.cut(on=True)
    yield
    stage.kafka_proxy.cut(on=False)


@contextmanager
def partition_added(stage: Stage) -> Iterator[None]:
    with closing(KafkaAdminClient(bootstrap_servers=stage.direct())) as admin:
        admin.create_partitions({stage.topic: 3})
    yield


@contextmanager
def second_worker(stage: Stage) -> Iterator[None]:
    second = stage.add_worker()
    number = second.process.pid if second.process else None
    until("the second worker reports", lambda: (stage.lists.status() or {}).get("pid") == number, stage)
    yield
    second.end(signal.SIGTERM)


@contextmanager
def redis_killed(stage: Stage) -> Iterator[None]:
    stage.redis_there.kill()
    yield
    stage.redis_there.start()


@contextmanager
def redis_emptied(stage: Stage) -> Iterator[None]:
    stage.admin.flushall()
    yield


@contextmanager
def redis_full(stage: Stage) -> Iterator[None]:
    stage.admin.config_set("maxmemory", 1)
    yield
    stage.admin.config_set("maxmemory", 0)


@contextmanager
def redis_slow(stage: Stage) -> Iterator[None]:
    stage.redis_proxy.delay_s = 0.3
    yield
    stage.redis_proxy.delay_s = 0.0


@contextmanager
def redis_read_only(stage: Stage) -> Iterator[None]:
    stage.admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    yield
    stage.admin.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def cut_from_redis(stage: Stage) -> Iterator[None]:
    stage.redis_proxy.cut(on=True)
    yield
    stage.redis_proxy.cut(on=False)


@contextmanager
def worker_killed(stage: Stage) -> Iterator[None]:
    stage.workers[0].end(signal.SIGKILL)
    yield
    stage.workers[0].start()


@contextmanager
def node_killed(stage: Stage) -> Iterator[None]:
    stage.nodes.nodes[1].kill()
    yield
    stage.nodes.nodes[1].start()
    stage.nodes.wait()


@contextmanager
def node_paused(stage: Stage) -> Iterator[None]:
    stage.nodes.pause(1)
    yield
    stage.nodes.resume(1)
    stage.nodes.wait()


@contextmanager
def node_emptied(stage: Stage) -> Iterator[None]:
    stage.nodes.admin(1).flushall()
    yield


@contextmanager
def node_full(stage: Stage) -> Iterator[None]:
    stage.nodes.admin(1).config_set("maxmemory", 1)
    yield
    stage.nodes.admin(1).config_set("maxmemory", 0)


@contextmanager
def slots_moved(stage: Stage) -> Iterator[None]:
    """Half of a node's slots that hold keys go to another, while a third is emptied; and back."""
    held = [slot for slot in range(SLOTS) if stage.nodes.admin(0).execute_command("CLUSTER COUNTKEYSINSLOT", slot)][::2]
    for slot in held:
        stage.nodes.move(slot, 2)
    stage.nodes.admin(1).flushall()
    yield
    for slot in held:
        stage.nodes.move(slot, 0)


UNDISTURBED = Fault("undisturbed")
FAULTS = [
    Fault("worker killed", worker_killed),
    Fault("broker killed", broker_killed, 5, says="waiting"),
    Fault("broker slow", broker_slow, 15),
    Fault("topic later", settings={"create_topics": False}, topic_later_s=6, says="waiting", unreadable=True),
    Fault("partition added", partition_added, 1, ordered=False),
    Fault("second worker", second_worker, 15, partitions=2, ordered=False),
    Fault("cut from kafka", cut_from_kafka, 30, says="waiting"),
    Fault("redis killed", redis_killed, 5, says="redis", unreadable=True),
    Fault("redis emptied", redis_emptied),
    Fault("redis full", redis_full, 10, says="redis"),
    Fault("redis slow", redis_slow, 15),
    Fault("redis read-only", redis_read_only, 10, says="redis"),
    Fault("cut from redis", cut_from_redis, 30, says="redis", unreadable=True),
]

#: With `--cluster`.
CLUSTER_FAULTS = [
    Fault("node killed", node_killed, 5, says="redis", unreadable=True),
    Fault("node paused", node_paused, 8, says="redis", unreadable=True),
    Fault("node emptied", node_emptied),
    Fault("node full", node_full, 10, says="redis"),
    Fault("slots moved", slots_moved, 3),
    Fault("worker killed", worker_killed),
]


class Publisher:
    """Publishes clicks at a rate, past the proxy, whatever the broker does; knows what lists should show by now."""

    def __init__(self, stage: Stage, clicks: list[Click], rate: float) -> None:
        self.clicks, self.rate = clicks, rate
        self.sent = 0
        self._at: list[float] = []
        self._stage = stage
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def wait_for(self, sent: int) -> None:
        while self.sent < sent:
            time.sleep(0.02)

    def _run(self) -> None:
        patient = {"delivery_timeout_ms": 600_000, "max_block_ms": 60_000, "metadata_max_age_ms": 1_000}
        servers = self._stage.direct()
        with closing(KafkaProducer(bootstrap_servers=servers, enable_idempotence=True, **patient)) as producer:
            began = time.monotonic()
            for number, click in enumerate(self.clicks):
                time.sleep(max(0.0, number / self.rate - (time.monotonic() - began)))
                # It arrives when it was made, ahead of the clock: the worker believes no click that is ahead of that.
                key, at_ms = click.user_id.encode(), int(1_000 * click.timestamp)
                producer.send(self._stage.topic, key=key, value=encode(click), timestamp_ms=at_ms)
                self._at.append(time.monotonic())
                self.sent = number + 1
            producer.flush()

    def fresh(self, slack_s: float) -> bool:
        """Whether every user's list shows all that was published until `slack_s` seconds ago."""
        until = time.monotonic() - slack_s
        wanted: dict[str, int] = {}
        for click, at in zip(self.clicks, list(self._at), strict=False):
            if at <= until:
                wanted[click.user_id] = int(1_000 * click.timestamp)
        try:
            shown = standing(self._stage.lists)
        except ListsError:
            return False
        return all(user in shown and shown[user].clicked_at >= at for user, at in wanted.items())


def standing(lists: Lists) -> dict[str, TopList]:
    """All lists in Redis."""
    cursor, found = lists.page()
    while cursor:
        cursor, more = lists.page(cursor)
        found |= more
    return found


def until(what: str, true: Callable[[], bool], stage: Stage) -> float:
    """Waits -> seconds it took. Raises TimeoutError."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > WAIT_S_MAX:
            log = (stage.folder / f"{stage.topic}-0" / "worker.log").read_text()[-3_000:]
            raise TimeoutError(f"{stage.topic}: waited in vain until {what}: {log}")
        time.sleep(0.1)
    return time.monotonic() - began


def fresh_again(publisher: Publisher, stage: Stage) -> float:
    """Waits until lists have been fresh for STEADY_S without a break -> seconds until that began."""
    began = since = time.monotonic()

    def steady() -> bool:
        nonlocal since
        if not publisher.fresh(SLACK_S):
            since = time.monotonic()
        return time.monotonic() - since >= STEADY_S

    until("lists stay fresh", steady, stage)
    return since - began


SCRAPED_S_MIN = NOTICED_S + 10.0  # a fault lasts so long where it has to be said


def run(stage: Stage, fault: Fault, clicks: list[Click], rate: float, *, scrape: bool = False) -> dict[str, Any]:
    """One row."""
    stage.begin(fault.name, **fault.settings)
    if not scrape:
        return _run(stage, fault, clicks, rate)
    if fault.says:
        later_s = fault.topic_later_s and max(fault.topic_later_s, SCRAPED_S_MIN)
        fault = replace(fault, seconds=max(fault.seconds, SCRAPED_S_MIN), topic_later_s=later_s)
    with stage.scraped() as scrapes:
        row = _run(stage, fault, clicks, rate)
        gaps = scrapes.gaps()
    row |= {"gaps": gaps, "wrong": scrapes.wrong(fault.says, unreadable=fault.unreadable)}
    return row | {"scrapes": len(scrapes.answers), "slowest_s": round(scrapes.slowest_s(), 2)}


def _run(stage: Stage, fault: Fault, clicks: list[Click], rate: float) -> dict[str, Any]:
    if not fault.topic_later_s:
        stage.make_topics(fault.partitions)
    worker = stage.add_worker()
    if fault.topic_later_s:
        until("it waits", lambda: bool((stage.lists.status() or {}).get("waits_for")), stage)
        stage.mark("began")
        time.sleep(fault.topic_later_s)
        stage.mark("ended")
        stage.make_topics(fault.partitions)
    until("it runs", lambda: (stage.lists.status() or {}).get("state") == "running", stage)
    publisher = Publisher(stage, clicks, rate)
    publisher.start()
    publisher.wait_for(len(clicks) // 3)
    memory = [stage.memory_mb()]
    recovered_s, peak = None, [0.0]
    if fault.during is not None:
        stage.mark("began")
        with fault.during(stage), watching(stage, peak):
            time.sleep(fault.seconds)
            stage.mark("ended")
        recovered_s = fresh_again(publisher, stage)
    stage.mark("fresh")
    publisher.join()
    until("every list shows its owner's last click", lambda: publisher.fresh(0.0), stage)
    memory += [peak[0], stage.memory_mb()]
    if stage.scrapes is not None:
        stage.scrapes.close()
    stage.empty_redis()
    refilled_s = until("the emptied Redis is full again", lambda: publisher.fresh(0.0), stage)
    until("the popular list is there", lambda: stage.lists.popular() is not None, stage)
    lists = {user: (top.items, top.scores) for user, top in standing(stage.lists).items()}
    ends = [one.end(signal.SIGTERM) for one in stage.workers if one.process and one.process.poll() is None]
    with closing(open_reader(load_settings(kafka_bootstrap_servers=stage.direct()), stage.topic)) as reader:
        sent = Counter(_place(record.value or b"") for record in reader.read())
    knows = [_learned(settings) for settings in stage.settings]
    return {
        "fault": fault.name,
        "events": sent.total(),
        "learned": sum(known.total() for known in knows),
        "twice": sum((known - sent).total() for known in knows),
        "lost": sum((sent - sum(knows, Counter())).values()),
        "lists": lists,
        "ordered": fault.ordered,
        "fresh_after_s": recovered_s,
        "refilled_after_s": refilled_s,
        "memory_mb": [round(value) for value in memory],
        "ended_well": not any(ends) and worker.process is not None,
    }


@contextmanager
def watching(stage: Stage, peak: list[float]) -> Iterator[None]:
    """Notes the most memory seen meanwhile."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            peak[0] = max(peak[0], stage.memory_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _place(value: bytes) -> tuple[str, float]:
    click = json.loads(value)
    return click["user_id"], float(click["timestamp"])


def _learned(settings: Settings) -> "Counter[tuple[str, float]]":
    """What the last checkpoint's histories hold; as many as its progress says, or the histories are not the measure."""
    found = Checkpoints(settings.checkpoints_dir, settings.checkpoints_kept).load()
    if found is None:
        return Counter()
    _, arrays, state = found
    ends = arrays["history.lengths"].cumsum()
    times = arrays["history.times"].tolist()
    known: Counter[tuple[str, float]] = Counter()
    for user, end, length in zip(state["learner"]["history"], ends, arrays["history.lengths"], strict=True):
        known.update((user, at) for at in times[end - length : end])
    assert known.total() == state["progress"]["learned"], (known.total(), state["progress"]["learned"])
    return known


def compare(row: dict[str, Any], quiet: dict[str, Any]) -> str:
    """A row's lists beside the undisturbed run's; they leave the row."""
    mine, theirs = row.pop("lists"), quiet["lists"]
    equal = sum(mine.get(user) == top for user, top in theirs.items())
    if row["ordered"]:
        return "all" if mine == theirs else f"{equal} of {len(theirs)}"
    shared = [len(set(mine[user][0][:10]) & set(items[:10])) / 10 for user, (items, _) in theirs.items()]
    return f"{sum(shared) / len(shared):.0%} of ten"


COLUMNS = (
    "fault            | events | learned | twice | lost | lists equal   | fresh after s | MB before, during, after"
)


def line(row: dict[str, Any]) -> str:
    fresh = "-" if row["fresh_after_s"] is None else f"{row['fresh_after_s']:.1f}"
    return (
        f"{row['fault']:16} | {row['events']:6} | {row['learned']:7} | {row['twice']:5} | {row['lost']:4} | "
        f"{row['lists_equal']:13} | {fresh:>13} | {', '.join(map(str, row['memory_mb']))}"
    )


def scraped_line(row: dict[str, Any]) -> str:
    said = [f"  {text}" for text in [*row["gaps"], *row["wrong"]][:TOLD_MAX]]
    about = f"{row['scrapes']} answers, the slowest after {row['slowest_s']} s; {len(row['gaps'])} gaps"
    return "\n".join([f"  {about}, {len(row['wrong'])} wrong states", *said])


def holds(row: dict[str, Any]) -> bool:
    """Whether a row is as promised."""
    if row.get("gaps") or row.get("wrong"):
        return False
    listed = not row["ordered"] or row["lists_equal"] == "all"
    return bool(not row["lost"] and not row["twice"] and listed and row["ended_well"])


def matrix(
    kafka_start: Path,
    redis_program: str,
    faults: list[Fault],
    *,
    clicks: int,
    rate: float,
    say: Callable[[str], None],
    cluster: bool = False,
    scrape: bool = False,
) -> list[dict[str, Any]]:
    """The rows, the undisturbed one first; each is said as it is done. `cluster`: lists stand in a Redis Cluster."""
    start = 1_000.0 * (time.time() // 1_000) + 86_400  # ahead of the clock: no record is late
    town = list(Town(users=60, items=96, seed=3, start=start).clicks(clicks))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        inner = free_port()
        proxies = stack.enter_context(Proxy(inner)), stack.enter_context(Proxy(0))
        kafka = stack.enter_context(kafka_server(kafka_start, folder / "kafka", inner=inner, outer=proxies[0].port))
        there = stack.enter_context(redis_server(redis_program, folder / "redis"))
        proxies[1].target = there.port
        nodes = stack.enter_context(running(RedisCluster(redis_program, folder / "cluster"))) if cluster else None
        stage = Stage(folder, kafka, there, proxies, nodes)
        say(COLUMNS)
        rows = []
        stack.callback(stage.kill_workers)
        for fault in [UNDISTURBED, *faults]:
            row = run(stage, fault, town, rate, scrape=scrape)
            if not rows:
                quiet = dict(row)
            row["lists_equal"] = compare(row, quiet)
            rows.append(row)
            say(line(row))
            if scrape:
                say(scraped_line(row))
        return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka-start", type=Path, default=os.environ.get("KAFKA_START"), metavar="PATH")
    parser.add_argument("--redis-server", default=os.environ.get("REDIS_SERVER") or shutil.which("redis-server"))
    parser.add_argument("--cluster", action="store_true", help="lists stand in a Redis Cluster of three nodes")
    parser.add_argument("--scrape", action="store_true", help="asks workers and an API each second how they are")
    parser.add_argument("--only", help="faults by name, with commas between")
    parser.add_argument("--clicks", type=int, default=320)
    parser.add_argument("--rate", type=float, default=4.0, help="clicks per second")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if not arguments.kafka_start or not arguments.redis_server:
        parser.error("name the servers: --kafka-start PATH --redis-server PATH")
    faults = CLUSTER_FAULTS if arguments.cluster else FAULTS
    names = [name.strip() for name in arguments.only.split(",")] if arguments.only else [one.name for one in faults]
    if unknown := set(names) - {one.name for one in faults}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(one.name for one in faults)}")
    logging.getLogger("stream").setLevel(logging.ERROR)  # what this process itself meets is no news here
    chosen = [fault for fault in faults if fault.name in names]
    try:
        rows = matrix(
            arguments.kafka_start,
            arguments.redis_server,
            chosen,
            clicks=arguments.clicks,
            rate=arguments.rate,
            cluster=arguments.cluster,
            scrape=arguments.scrape,
            say=lambda text: print(text, flush=True),
        )
    except (TimeoutError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    broken = [row["fault"] for row in rows if not holds(row)]
    print(f"NOT AS PROMISED: {', '.join(broken)}" if broken else "nothing lost, nothing twice")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
