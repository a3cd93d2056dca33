"""One long run in which the worker is killed (SIGKILL) at random moments, again and again.

    python -m benchmarks.kills [--kills 200] [--clicks 30000] [--kafka HOST:PORT] [--redis URL] [--seed 0]

All clicks of the simulated town wait on the topic. Each life of the worker ends at a random moment, some of them before
it has come to anything. Prints whether every click was learned once, and how long it takes from the start of a process
to the first fresh list (one written by it). On the embedded parts, where each poll is full, the last checkpoint is
compared with that of a run that was never killed: weights, counts and histories bit for bit. Exits with 1 if anything
does not add up.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.end_to_end import Worker
from online.config.settings import Settings, load_settings
from online.evaluation.town import Town
from online.worker.checkpoint import Checkpoints
from online.worker.connections import open_lists, open_producer, prepare_topics
from stream.embedded_redis import EmbeddedRedis
from stream.events import encode
from stream.lists import TopList

STANDS_STILL_S = 600.0  # also while a busy machine starts the worker
#: What follows the computer's clock is left out, so that two runs can be compared.
QUIET = {"refresh_ages_s": "none", "finetune_interval_s": 0.0, "drift_threshold": 1e9, "drift_delta": 1e-9}


class Run:
    """One topic full of clicks, and the worker that learns them."""

    def __init__(self, folder: Path, clicks: int, kafka: str | None, redis: str) -> None:
        topic = f"clicks-{uuid.uuid4().hex[:8]}"
        given: dict[str, Any] = {"kafka_bootstrap_servers": kafka, "redis_url": redis, "data_dir": folder, **QUIET}
        given |= {"clicks_topic": topic, "dead_letters_topic": f"{topic}.dead", "consumer_group": topic}
        given |= {"checkpoint_interval_s": 2.0}
        given = {name: value for name, value in given.items() if value is not None}
        folder.mkdir(parents=True, exist_ok=True)
        self.settings: Settings = load_settings(**given)
        self.clicks = clicks
        self.worker = Worker({f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}, folder / "log")
        prepare_topics(self.settings)
        with closing(open_producer(self.settings)) as producer:
            for click in Town().clicks(clicks):
                producer.send(topic, key=click.user_id.encode(), value=encode(click))

    def life(self, seconds: float) -> float | None:
        """Starts a worker and kills it after so long -> when its first list stood there, in seconds; None: it did not
        come to that."""
        self.worker.start()
        began, wall, fresh = time.monotonic(), 1_000 * time.time(), None
        while (age := time.monotonic() - began) < seconds:
            popular = self._popular() if fresh is None else None
            if popular is not None and popular.written_at >= wall:
                fresh = age
            time.sleep(0.01)
        self.worker.end(signal.SIGKILL)
        return fresh

    def to_the_end(self) -> dict[str, Any]:
        """Starts a worker, stops it when everything is learned -> the progress of its last checkpoint."""
        self.worker.start()
        lately, progress = time.monotonic(), -1
        while (taken := self._taken()) < self.clicks:
            if taken != progress:
                lately, progress = time.monotonic(), taken
            assert self.worker.process is not None
            if self.worker.process.poll() is not None or time.monotonic() - lately > STANDS_STILL_S:
                self.worker.end(signal.SIGKILL)
                raise TimeoutError(f"the worker stands still at {taken}: {self.worker.log.read_text()[-2_000:]}")
            time.sleep(0.1)
        exit_status = self.worker.end(signal.SIGTERM)
        _, state = self.saved()
        progress: dict[str, Any] = state["progress"]
        learner = state["learner"]
        scored = learner["scores"]["scored"] + sum(learner["abuse_filter"]["total"].values())  # flagged clicks are not
        return progress | {"exit_status": exit_status, "scored": scored}

    def saved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The last checkpoint's arrays and state."""
        found = Checkpoints(self.settings.checkpoints_dir, self.settings.checkpoints_kept).load()
        assert found is not None
        return found[1:]

    def _popular(self) -> TopList | None:
        return open_lists(self.settings).popular()

    def _taken(self) -> int:
        """As the worker that runs now says."""
        status = open_lists(self.settings).status() or {}
        assert self.worker.process is not None
        return sum(status.get("positions", {}).values()) if status.get("pid") == self.worker.process.pid else 0


def different(one: Run, other: Run) -> list[str]:
    """What of the last checkpoints is not the same, bit for bit."""
    (arrays, state), (others, as_well) = one.saved(), other.saved()
    names = [name for name in arrays.keys() | others.keys() if not _same(arrays.get(name), others.get(name))]
    ledgers = [
        {**s["progress"], "next_offsets": [at for *_, at in s["progress"]["next_offsets"]]} for s in (state, as_well)
    ]
    names += ["progress"] if ledgers[0] != ledgers[1] else []
    return sorted(names + [part for part in ("learner", "supervisor") if state[part] != as_well[part]])


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def run(
    folder: Path, *, kills: int, clicks: int, life_s_max: float, kafka: str | None, redis: str, seed: int
) -> dict[str, Any]:
    """Runs it all and returns what happened, as one JSON object."""
    killed = Run(folder / "killed", clicks, kafka, redis)
    chance = random.Random(seed)
    times = [killed.life(chance.uniform(0.2, 1.0) * life_s_max) for _ in range(kills)]
    fresh = [seconds for seconds in times if seconds is not None]
    progress = killed.to_the_end()
    differs = None
    if kafka is None:
        quiet = Run(folder / "quiet", clicks, None, redis)
        quiet.to_the_end()
        differs = different(killed, quiet)
    quantiles = np.quantile(fresh, (0.5, 0.95)).round(2).tolist() if fresh else [None, None]
    return {
        "kills": kills,
        "killed_before_a_list": kills - len(fresh),
        "clicks": clicks,
        "learned": progress["learned"],
        "scored_or_flagged": progress["scored"],
        "duplicates": progress["duplicates"],
        "dead_letters": progress["dead_letters"],
        "offsets": sum(offset for *_, offset in progress["next_offsets"]),
        "differs_from_a_run_without_kills": differs,
        "start_to_first_fresh_list_s": {"p50": quantiles[0], "p95": quantiles[1]},
        "exit_status": progress["exit_status"],
    }


def adds_up(report: dict[str, Any]) -> bool:
    """Whether every click was learned once, by the weights that survived."""
    counts = {report[name] for name in ("clicks", "learned", "scored_or_flagged", "offsets")}
    return (
        len(counts) == 1
        and not (report["duplicates"] or report["dead_letters"] or report["exit_status"])
        and not report["differs_from_a_run_without_kills"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clicks", type=int, default=30_000)
    parser.add_argument("--life-s-max", type=float, default=12.0, help="longest life of a worker that is killed")
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis() as redis:  # which outlives the worker
        report = run(Path(folder), **options | {"redis": options["redis"] or redis.url})
    print(json.dumps(report, indent=1))
    print("everything adds up" if adds_up(report) else "SOMETHING DOES NOT ADD UP")
    return 0 if adds_up(report) else 1


if __name__ == "__main__":
    sys.exit(main())
