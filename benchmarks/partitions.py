"""Whether it matters over how many partitions a stream is spread: clicks not learned from, and lists as served.

    python -m benchmarks.partitions STREAM --kafka HOST:PORT [--redis URL] [--limit 5000] [--partitions 1 4 8]
        [--live] [--order file|partition] [--skew]

Replays the first rows of a file into a topic for each number of partitions, and has a real worker learn each. The first
number is what the others are compared with; exits with 1 where one differs by more than 2 % of the clicks, or of NDCG.
`--live`: the worker reads while they are published; otherwise it finds them. `--order partition`: one partition is
written whole before the next. `--skew`: three quarters of the users share one partition. Without --kafka, the merge
alone is measured: records a second.
"""

import argparse
import json
import sys
import tempfile
import time
import uuid
import zlib
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks._servers import free_port
from benchmarks.end_to_end import Worker
from online.commands.replay import Progress, replay
from online.config.settings import Settings, load_settings
from online.worker.connections import open_lists, open_producer, prepare_topics
from online.worker.event_time import event_time
from stream.event_files import EventFile
from stream.lists import ListsError
from stream.log import LogProducer, LogSource
from stream.log_file import Log
from stream.merge import MergedSource
from stream.source import Producer, Source

WITHIN = 0.02
STANDS_STILL_S = 120


class Arranged:
    """A `Producer` that chooses partitions, and in which order they are written."""

    def __init__(self, producer: Producer, partitions: int, *, by_partition: bool, skew: bool) -> None:
        self._producer = producer
        self._partitions = partitions
        self._by_partition = by_partition
        self._skew = skew
        self._later: dict[int, list[dict[str, Any]]] = {}

    def send(self, topic: str, *, key: bytes | None, value: bytes | None, **more: Any) -> None:
        user = zlib.crc32(key or b"")
        partition = user % self._partitions
        if self._skew and user // self._partitions % 4:
            partition = 0
        message = {"topic": topic, "key": key, "value": value, **more, "partition": partition}
        if self._by_partition:
            self._later.setdefault(partition, []).append(message)
        else:
            self._producer.send(**message)

    def flush(self) -> None:
        self._producer.flush()

    def close(self) -> None:
        for _, messages in sorted(self._later.items()):
            for message in messages:
                self._producer.send(**message)
            self._producer.flush()
        self._producer.close()


def learn(file: EventFile, partitions: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Publishes and learns -> what the worker says of itself in the end."""
    topic = f"clicks-{uuid.uuid4().hex[:8]}"
    given: dict[str, Any] = {"kafka_bootstrap_servers": options.kafka, "topic_partitions": partitions}
    given |= {"clicks_topic": topic, "dead_letters_topic": f"{topic}.dead", "events_topic": f"{topic}.events"}
    given |= {"items_topic": f"{topic}.items", "consumer_group": topic, "data_dir": folder}
    given |= {"redis_url": options.redis} if options.redis else {"embedded_redis_port": free_port()}
    settings = load_settings(**given)
    worker = Worker({f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}, folder / "worker.log")
    prepare_topics(settings)
    if options.live:
        worker.start()
        _taken(settings, worker, 0)
    arranged = Arranged(
        open_producer(settings), partitions, by_partition=options.order == "partition", skew=options.skew
    )
    with closing(arranged) as producer:
        progress = Progress(folder / "replay", file, topic)
        published = replay(file, producer, topic, progress, limit=options.limit).published
    if not options.live:
        worker.start()
    status = _taken(settings, worker, published)
    worker.end(15)
    assert status["learned"] == published, status
    return status


def _taken(settings: Settings, worker: Worker, count: int) -> dict[str, Any]:
    """What the worker says of itself once it has learned so many clicks. Raises TimeoutError."""
    assert worker.process is not None
    moved, learned = time.monotonic(), -1
    while time.monotonic() - moved < STANDS_STILL_S and worker.process.poll() is None:
        try:
            status = open_lists(settings).status() or {}
        except ListsError:
            status = {}  # the embedded Redis starts with the worker
        if status.get("pid") == worker.process.pid and "learned" in status:
            if status["learned"] >= count and not (status["lag"] or 0):
                return status
            if status["learned"] != learned:
                moved, learned = time.monotonic(), status["learned"]
        time.sleep(0.2)
    raise TimeoutError(f"the worker stands still at {learned} of {count} clicks: {worker.log.read_text()[-2_000:]}")


def compare(file: EventFile, options: argparse.Namespace) -> bool:
    """Prints a line for each number of partitions -> whether they agree."""
    print("partitions  learned  not learned from   hit@10  NDCG@10 as served  of the first  refreshes  by reason")
    first: tuple[int, float] | None = None
    agree = True
    for partitions in options.partitions:
        with tempfile.TemporaryDirectory() as folder:
            status = learn(file, partitions, Path(folder), options)
        flagged, served = sum(status["flagged"].values()), status["scores"]["served"]
        first = first or (flagged, served["ndcg@10"])
        ratio = served["ndcg@10"] / first[1]
        agree &= abs(ratio - 1) <= WITHIN and abs(flagged - first[0]) <= WITHIN * status["learned"]
        reasons = json.dumps(status["flagged"])
        print(
            f"{partitions:10} {status['learned']:8,} {flagged:17,} {served['hit@10']:8.4f} {served['ndcg@10']:18.4f} "
            f"{ratio:13.3f} {status['refreshes']:10,}  {reasons}",
            flush=True,
        )
    return agree


def overhead(file: EventFile, options: argparse.Namespace) -> None:
    """Records a second out of the embedded log, with and without the merge."""
    messages = [(message.key, message.value) for message in islice(file.messages(), options.limit)]
    for partitions in options.partitions:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "log.db"
            with closing(Log(path, partitions=partitions)) as log:
                log.ensure_topics({"clicks": partitions})
            with closing(LogProducer(path)) as producer:
                for key, value in messages:
                    producer.send("clicks", key=key, value=value)
            plain = _per_s(LogSource(path, ["clicks"], "plain"), len(messages))
            times = event_time(load_settings())
            merged = _per_s(MergedSource(LogSource(path, ["clicks"], "merged"), times, wait_s=1.0), len(messages))
        print(f"{partitions:3} partitions: {plain:9,.0f} records/s, merged {merged:9,.0f}, {plain / merged:.2f} times")


def _per_s(source: Source, count: int) -> float:
    with closing(source):
        source.start(on_assigned=lambda _: {}, on_revoked=lambda _: None)
        began, read = time.perf_counter(), 0
        while read < count:
            read += len(source.poll(max_records=512, timeout_s=1.0))
        return count / (time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--limit", type=int, default=5_000)
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--live", action="store_true", help="the worker reads while they are published")
    parser.add_argument("--order", choices=("file", "partition"), default="file", help="in which they are written")
    parser.add_argument("--skew", action="store_true", help="three quarters of the users share one partition")
    options = parser.parse_args(arguments)
    file = EventFile(options.stream)
    if options.kafka is None:
        overhead(file, options)
        return 0
    return 0 if compare(file, options) else 1


if __name__ == "__main__":
    sys.exit(main())
