"""What several workers make of a stream, against one: python -m benchmarks.many_workers FILE [--workers 2,4,8]

N learners in one process go through the clicks of a file. Each counts all of them, learns from those of its own users
(by a hash of the id, as Kafka's partitions are), and shares its weights in rounds, through the same records as workers
do. So the figures are those of N workers that are equally fast, on one machine, without waiting for any of them.

Told are NDCG@10 on request, against one learner; CPU time of a click that is only counted and of one that is learned
from; the clicks a second that N workers would take, which is what the busiest of them takes, warm-up aside; and bytes
of the topic.
"""

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from online.config.settings import Settings, load_settings
from online.evaluation.backtest_events import read_clicks
from online.learner.facts.warm import warm_if_cold
from online.learner.learner import Learner
from online.metrics import hit_and_ndcg_at
from online.rounds.change import Change
from online.rounds.encoding import decode, encode_base, encode_change
from online.rounds.merger import Merger
from online.rounds.replica import Replica
from stream.event_files import EventFile
from stream.events import Click


class Worker:
    """One learner of a group, and the CPU seconds that it has taken."""

    def __init__(self, settings: Settings, number: int, gain: float) -> None:
        self.learner = Learner(settings, lists=False)
        self.replica = Replica(self.learner, f"worker {number}", "1")
        self.merger = Merger(self.replica.base, f"worker {number}", gain=gain)
        self.learner.on_rows_changed = self.replica.rows_changed
        self.seconds = self.shared_seconds = 0.0
        self.clicks = 0

    def learn(self, clicks: Sequence[Click], owned: np.ndarray, at: int, number: int) -> np.ndarray:
        """Learns a micro-batch that begins at click `at` -> ranks of its own clicks."""
        began = time.process_time()
        result = self.learner.learn(clicks, owned=owned)
        self.learner.states.rebuild()
        self.seconds += time.process_time() - began
        self.clicks += int(owned.sum())
        self.replica.trained(number, at, at + len(clicks), int(result.trainable.sum()))
        return result.ranks

    def take(self, data: bytes) -> None:
        began = time.process_time()
        record = decode(data, self.replica.base.shape)
        if isinstance(record, Change):
            self.merger.add(record)
        else:
            self.replica.rebase(record)
            self.merger.settle(record)
        self.shared_seconds += time.process_time() - began


@dataclass
class Run:
    """What came of one run."""

    ranks: list[np.ndarray] = field(default_factory=list)
    before: list[float] = field(default_factory=list)  # CPU seconds of each worker in the warm-up
    seconds: list[float] = field(default_factory=list)  # after it
    clicks: list[int] = field(default_factory=list)  # that each has learned from
    shared_seconds: float = 0.0  # of the worker that leads
    bytes: int = 0
    rounds: int = 0

    @property
    def ndcg(self) -> float:
        return float(hit_and_ndcg_at(np.concatenate(self.ranks))[1].mean())


def owner_of(user: str, workers: int) -> int:
    return int.from_bytes(hashlib.blake2b(user.encode(), digest_size=4).digest()) % workers


def run(clicks: Sequence[Click], settings: Settings, workers: int, round_clicks: int, gain: float) -> Run:
    """Goes through the stream. `round_clicks`: clicks that each worker learns from between two rounds."""
    found = Run()
    group = [Worker(settings, number, gain) for number in range(workers)]
    owners = np.array([owner_of(click.user_id, workers) for click in clicks])
    owners[: settings.group_warm_up_clicks] = 0  # all of them learn from these, and the leader's weights count
    size, since = settings.micro_batch_max * workers, 0
    for start in range(0, len(clicks), size):
        batch = clicks[start : start + size]
        for number, worker in enumerate(group):
            found.ranks.append(worker.learn(batch, owners[start : start + size] == number, start, number))
        since += len(batch)
        if start < settings.group_warm_up_clicks <= start + len(batch):
            found.before = [worker.seconds + worker.shared_seconds for worker in group]
        if workers > 1 and (since >= round_clicks * workers or start < settings.group_warm_up_clicks):
            since = 0
            share(group, found)
    taken = [worker.seconds + worker.shared_seconds for worker in group]
    found.seconds = [now - before for now, before in zip(taken, found.before, strict=True)]
    found.clicks = [worker.clicks for worker in group]
    found.shared_seconds = group[0].shared_seconds
    return found


def share(group: Sequence[Worker], found: Run) -> None:
    """One round: all changes, then the base of the first worker."""
    records = []
    for worker in group:
        began = time.process_time()
        change = worker.replica.change()
        if change is not None:
            records.append(encode_change(change))
        worker.shared_seconds += time.process_time() - began
    for data in records:
        for worker in group:
            worker.take(data)
    began = time.process_time()
    record = group[0].merger.next_base(1)
    assert record is not None
    records.append(encode_base(record))
    group[0].shared_seconds += time.process_time() - began
    for worker in group:
        worker.take(records[-1])
    found.bytes += sum(map(len, records))
    found.rounds += 1


def counted_seconds(clicks: Sequence[Click], settings: Settings) -> float:
    """CPU seconds of a click that is only counted."""
    learner, taken = Learner(settings, lists=False), 0.0
    size = 4 * settings.micro_batch_max
    for start in range(0, len(clicks), size):
        batch = clicks[start : start + size]
        began = time.process_time()
        learner.learn(batch, owned=np.zeros(len(batch), np.bool_))
        taken += time.process_time() - began
    return taken / len(clicks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--workers", default="2,4,8")
    parser.add_argument("--limit", type=int, default=200_000)
    parser.add_argument("--round-clicks", type=int, default=500, help="clicks of each worker between two rounds")
    parser.add_argument("--gain", type=float, default=0.0, help="0: changes are averaged; 1: they are added up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_if_cold(print)
    settings = load_settings(device="cpu")
    clicks = read_clicks(EventFile(options.file), settings, options.limit).clicks
    alone = run(clicks, settings, 1, options.round_clicks, options.gain)
    per_click = alone.seconds[0] / (len(clicks) - settings.group_warm_up_clicks)
    counted = counted_seconds(clicks, settings)
    print(f"{len(clicks):,} clicks; one worker: NDCG@10 {alone.ndcg:.4f}, {1e6 * per_click:.0f} us a click")
    print(f"only counted: {1e6 * counted:.1f} us a click, f = {counted / per_click:.3f}")
    for workers in map(int, options.workers.split(",")):
        found = run(clicks, settings, workers, options.round_clicks, options.gain)
        f = counted / per_click
        print(
            f"{workers} workers: NDCG@10 {found.ndcg:.4f}, ratio {found.ndcg / alone.ndcg:.4f}; "
            f"{alone.seconds[0] / max(found.seconds):.2f} times the clicks/s "
            f"(formula {1 / (f + (1 - f) / workers):.2f}); sharing {found.shared_seconds / max(found.seconds):.1%} of "
            f"the leader's time; {found.rounds} rounds, {found.bytes / max(1, found.rounds) / 1e6:.2f} MB each, "
            f"{found.bytes / max(1, len(clicks)):,.0f} bytes a click",
            flush=True,
        )


if __name__ == "__main__":
    main()
