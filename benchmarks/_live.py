"""A real worker as a process, and an endless town that publishes to it at any rate: for soak.py and overload.py."""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks._servers import free_port
from benchmarks.end_to_end import Worker
from online.config.settings import Settings, load_settings
from online.evaluation.town import Town
from online.worker.connections import open_lists, open_producer, prepare_topics
from stream.events import encode
from stream.lists import Lists, ListsError

SLICE_S = 0.05  # what falls due in it is sent together
AHEAD = 1_500  # messages kept waiting while the rate is None


class Live:
    """A worker and its stream. `rate`: clicks a second that are published; None: some always wait."""

    def __init__(self, settings: Settings, worker: Worker, town: Town) -> None:
        self.settings, self.worker, self.town = settings, worker, town
        self.rate: float | None = 0.0
        self.published = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self._lists: Lists | None = None  # the embedded Redis comes with the worker
        self.failed: BaseException | None = None

    @property
    def pid(self) -> int:
        assert self.worker.process is not None
        return self.worker.process.pid

    def status(self) -> dict[str, Any] | None:
        """What the worker says of itself; None while it is not there yet."""
        try:
            self._lists = self._lists or open_lists(self.settings)
            status = self._lists.status()
        except ListsError:
            return None
        return status if status is not None and status.get("pid") == self.pid else None

    def wait_for(self, learned: int, timeout_s: float = 600.0) -> dict[str, Any]:
        """Until so many clicks were learned. Raises TimeoutError."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and not self.worker.process.poll():  # type: ignore[union-attr]
            status = self.status()
            if status is not None and status.get("learned", -1) >= learned:
                return status
            time.sleep(0.2)
        raise TimeoutError(f"the worker did not learn {learned} clicks: {self.worker.log.read_text()[-2_000:]}")

    def capacity(self, seconds: float, warm_up_s: float) -> float:
        """Clicks a second that are learned while some always wait."""
        self.rate = None
        self.wait_for(1)
        time.sleep(warm_up_s)
        first = self.wait_for(1)
        last = first
        while last["written_at"] - first["written_at"] < 1000 * seconds:
            time.sleep(0.5)
            last = self.wait_for(1)
        return 1000 * float(last["learned"] - first["learned"]) / (last["written_at"] - first["written_at"])

    def resources(self) -> dict[str, float]:
        """Of the worker's process, and of its folder."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        folder = self.settings.data_dir
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        return {
            "rss_mb": int(facts["VmRSS"].split()[0]) / 1024,
            "threads": int(facts["Threads"]),
            "files": len(os.listdir(f"/proc/{self.pid}/fd")),
            "disk_mb": sum(sizes.values()) / 1e6,
            "log_mb": sum(size for path, size in sizes.items() if path.name.startswith("log.db")) / 1e6,
        }

    def start(self) -> None:
        self._thread.start()

    def close(self) -> int:
        """Ends the publisher, then the worker gracefully -> its exit status."""
        self._closing.set()
        self._thread.join()
        return self.worker.end(15)

    def _publish(self) -> None:
        with closing(open_producer(self.settings)) as producer:
            owed, then = 0.0, time.monotonic()
            for click in self.town.clicks(10**12):
                while owed < 1 and not self._closing.is_set():
                    producer.flush()
                    self._closing.wait(SLICE_S)
                    now = time.monotonic()
                    owed, then = owed + self._due(now - then), now
                if self._closing.is_set():
                    break
                producer.send(self.settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
                self.published += 1
                owed -= 1
            producer.flush()

    def _due(self, passed_s: float) -> float:
        if self.rate is not None:
            return self.rate * passed_s
        status = self.status()
        taken = sum(status.get("positions", {}).values()) if status else 0
        return max(0.0, AHEAD + taken - self.published)


@contextmanager
def live(
    folder: Path, *, kafka: str | None, redis: str | None, users: int, items: int = 2_000, **settings: Any
) -> Iterator[Live]:
    """A worker on topics of its own that has just started, and a publisher that waits for its rate."""
    topic = f"clicks-{uuid.uuid4().hex[:8]}"
    given = {"kafka_bootstrap_servers": kafka, "redis_url": redis, "data_dir": folder, "clicks_topic": topic}
    given |= {
        "dead_letters_topic": f"{topic}.dead",
        "events_topic": f"{topic}.events",
        "items_topic": f"{topic}.items",
        "consumer_group": topic,
    }
    if redis is None:
        given["embedded_redis_port"] = free_port()
    given = {name: value for name, value in (given | settings).items() if value is not None}
    worker = Worker({f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}, folder / "worker.log")
    loaded = load_settings(**given)
    prepare_topics(loaded)
    running = Live(loaded, worker, Town(users=users, items=items, seed=11))
    worker.start()
    try:
        running.start()
        yield running
    finally:
        running.close()
