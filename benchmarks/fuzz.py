"""Messages made up to break things, through `parse` and through a live worker.

    python -m benchmarks.fuzz [--parse 10000000] [--live 1000000] [--seed 0]

Messages are made by a grammar (right and wrong values of every field, deep nesting, huge numbers, doubled keys, broken
UTF-8, half surrogate pairs) and then mutated: cut, bits flipped, bytes put in or left out, two spliced together. Prints
how many of them each reason met, how fast it went, what raised, and how much memory the process held after a tenth and
at the end. The worker runs as a process on the embedded parts with a small network, so that the parts at the edges are
what is busy. Exits with 1 if anything raised, died, or was not accounted for.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._servers import free_port
from benchmarks.end_to_end import Worker
from online.config.settings import Settings, load_settings
from online.worker.connections import open_lists, open_producer, prepare_topics
from stream.events import BadEvent, parse
from stream.lists import ListsError

POOL = 20_000  # messages of the grammar that mutations begin from
BLOCK = 10_000
BEHIND_MAX = 20_000  # messages that wait for the worker
STANDS_STILL_S = 600.0  # also while a busy machine starts the worker
GROWTH_MAX = 1.1  # of memory between a tenth of the run and its end
NOW = 1_732_233_600.0
SMALL: dict[str, Any] = {
    **{"layers": "lsh", "width": 8, "rounds": 1, "buckets": 2, "window": 4, "online_history": 6, "history_max": 128},
    **{"users_held": 512, "items_held": 512, "successors_held": 8, "popularity_half_lives": "30,300"},
    **{"moments_held": 2_000, "recall_latest": 4, "recall_users_held": 64},
    **{"ranker_hidden": 8, "ranker_networks": 1, "replay_held": 64},
    **{"replay_batch": 4, "negatives": 8, "micro_batch_max": 64, "list_size": 10},
    **{"memory_users_held": 64, "event_ids_held": 5_000, "poll_records_max": 2_048, "log_records_max": 50_000},
    **{"checkpoint_interval_s": 10.0, "abuse_keys_held": 4_096, "finetune_interval_s": 0.0},
}


class Grammar:
    """Messages that are clicks, or nearly."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def message(self) -> bytes:
        choice = self.random
        if choice.random() < 0.05:
            return self._no_object()
        fields = [("user_id", self._id("u")), ("item_id", self._id("i")), ("timestamp", self._time())]
        fields += [
            (name, value())
            for name, value in (("event_type", self._text), ("event_id", lambda: self._id("e")), ("value", self._any))
            if choice.random() < 0.3
        ]
        if choice.random() < 0.05:  # a field twice, or missing
            fields.append(choice.choice(fields))
        if choice.random() < 0.05:
            fields.pop(choice.randrange(len(fields)))
        choice.shuffle(fields)
        return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields) + "}").encode("utf-8", "surrogatepass")

    def _no_object(self) -> bytes:
        depth = self.random.randrange(1, 3_000)
        odd = [
            b"",
            b"null",
            b"[]",
            b"[" * depth,
            b'{"a":' * depth + b"1" + b"}" * depth,
            b"1e999",
            b"\xff\xfe",
            b'"\\ud800"',
            b"{'user_id': 'u1'}",
            b'\xef\xbb\xbf{"user_id": 17.0}',
            b"\0\0\0\0\x07{}",
        ]
        return self.random.choice(odd)

    def _id(self, letter: str) -> str:
        if self.random.random() < 0.85:
            return f'"{letter}{self.random.randrange(2_000)}"'
        return self._any()

    def _time(self) -> str:
        offset = self.random.choice(["Z", "+14:00", "-12:00", "", "+25:00"])
        odd = [
            str(self.random.uniform(0, 2e9)),
            str(10 ** self.random.randrange(400)),
            f'"2024-12-31T23:59:60{offset}"',
            f"{NOW * 1_000:.0f}",
            f'"{NOW * 1_000:.0f}"',
            f"{NOW:.0f}250000000",
            "20261128",
        ]
        odd += [f'"2024-11-2{self.random.randrange(10)}T10:00:00.{self.random.randrange(10**9)}{offset}"', "-1", "0"]
        return str(NOW + self.random.randrange(10**6)) if self.random.random() < 0.85 else self.random.choice(odd)

    def _text(self) -> str:
        letters = [
            "click",
            "é" * self.random.randrange(200),
            "x" * self.random.randrange(400),
            "\\u0000",
            "\\ud83d",
            "\ud800",
        ]
        return f'"{self.random.choice(letters)}"'

    def _any(self) -> str:
        simple = ["null", "true", "[]", "{}", "NaN", "-Infinity", "1e308", "1e999", "-0.0", '""', self._text()]
        simple += [
            str(self.random.randrange(-(10**6), 10**6)),
            str(self.random.random()),
            "9" * self.random.randrange(1, 5_000),
        ]
        return self.random.choice(simple)


def messages(count: int, seed: int) -> Iterator[bytes]:
    """The same ones for the same seed; a third of them as the grammar made them."""
    grammar, draws = Grammar(seed), np.random.default_rng(seed)
    pool = [grammar.message() for _ in range(POOL)]
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        bases, others, ways, bits = (draws.integers(0, top, size).tolist() for top in (POOL, POOL, 9, 8))
        for base, other, way, bit, share in zip(bases, others, ways, bits, draws.random(size).tolist(), strict=True):
            whole = pool[base]
            yield whole if way < 3 else _mutated(whole, pool[other], way, bit, int(share * len(whole)))


def _mutated(whole: bytes, other: bytes, way: int, bit: int, at: int) -> bytes:
    if way == 3:
        return whole[:at]
    if way == 4:
        return whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] if whole else b"\x00"
    if way == 5:
        return whole[:at] + b'"}],: \xff\\'[bit : bit + 1] + whole[at:]
    if way == 6:
        return whole[:at] + whole[at + 1 :]
    if way == 7:
        return whole[:at] + other[at:]
    return whole + other


def rss_mb(pid: int | str = "self") -> float:
    """What a process holds now, resident."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def through_parse(count: int, seed: int) -> dict[str, Any]:
    """Every message through `parse` here."""
    reasons: Counter[str] = Counter()
    raised: Counter[str] = Counter()
    memory, spent, began = [rss_mb()], 0.0, time.perf_counter()
    source = messages(count, seed)
    for tenth in range(10):
        for value in islice(source, (tenth + 1) * count // 10 - tenth * count // 10):
            try:
                event = parse(value, now=NOW + 10**6)
            except Exception as error:
                raised[type(error).__name__] += 1
                continue
            reasons[event.reason if isinstance(event, BadEvent) else "a click"] += 1
        memory.append(rss_mb())
    spent = time.perf_counter() - began
    return {
        "messages": count,
        "messages_per_s": round(count / spent),
        "raised": dict(raised),
        "reasons": dict(reasons.most_common()),
        "rss_mb": {"after_a_tenth": memory[1], "at_the_end": memory[-1]},
        "adds_up": not raised and reasons.total() == count and memory[-1] <= GROWTH_MAX * memory[1],
    }


def through_worker(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Every message through a worker process on the embedded parts."""
    given = {**SMALL, "data_dir": folder, "embedded_redis_port": free_port()}
    worker = Worker({f"NEXTCLICK_{name.upper()}": str(value) for name, value in given.items()}, folder / "worker.log")
    settings = load_settings(**given)
    prepare_topics(settings)
    worker.start()
    assert worker.process is not None
    memory, began = [], time.perf_counter()
    source = messages(count, seed)
    try:
        with closing(open_producer(settings)) as producer:
            for tenth in range(10):
                end = (tenth + 1) * count // 10
                for number, value in enumerate(islice(source, end - tenth * count // 10), tenth * count // 10 + 1):
                    producer.send(settings.clicks_topic, key=None, value=value)
                    if number % 1_000 == 0:
                        producer.flush()
                        _wait_until_taken(settings, number - BEHIND_MAX, worker)
                producer.flush()
                status = _wait_until_taken(settings, end, worker)
                memory.append(rss_mb(worker.process.pid))
    except BaseException:
        worker.end(signal.SIGKILL)
        raise
    spent = time.perf_counter() - began
    exit_status = worker.end(signal.SIGTERM)
    accounted = status["learned"] + status["duplicates"] + sum(status["dead_letters"].values())
    tracebacks = worker.log.read_text(errors="replace").count("Traceback")
    return {
        "messages": count,
        "messages_per_s": round(count / spent),
        "learned": status["learned"],
        "duplicates": status["duplicates"],
        "dead_letters": status["dead_letters"],
        "internal_errors": status["dead_letters"].get("internal-error", 0),
        "tracebacks": tracebacks,
        "exit_status": exit_status,
        "rss_mb": {"after_a_tenth": memory[0], "at_the_end": memory[-1]},
        "adds_up": accounted == count
        and not (tracebacks or exit_status)
        and memory[-1] <= GROWTH_MAX * memory[0]
        and "internal-error" not in status["dead_letters"],
    }


def _wait_until_taken(settings: Settings, wanted: int, worker: Worker) -> dict[str, Any]:
    lately, progress = time.monotonic(), -1
    while True:
        try:
            status = open_lists(settings).status() or {}
        except ListsError:
            status = {}  # the embedded Redis starts with the worker
        taken = sum(offset for where, offset in status.get("positions", {}).items() if where.startswith("clicks:"))
        if taken >= wanted:
            return status
        if taken != progress:
            lately, progress = time.monotonic(), taken
        assert worker.process is not None
        if worker.process.poll() is not None or time.monotonic() - lately > STANDS_STILL_S:
            raise TimeoutError(f"the worker stands still at {taken}: {worker.log.read_text()[-2_000:]}")
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parse", type=int, default=10_000_000, help="messages through parse")
    parser.add_argument("--live", type=int, default=1_000_000, help="messages through a live worker")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    reports = {}
    if options.parse:
        reports["parse"] = through_parse(options.parse, options.seed)
        print(json.dumps({"parse": reports["parse"]}, indent=1), flush=True)
    if options.live:
        with tempfile.TemporaryDirectory() as folder:
            reports["worker"] = through_worker(options.live, options.seed + 1, Path(folder))
        print(json.dumps({"worker": reports["worker"]}, indent=1))
    fine = all(report["adds_up"] for report in reports.values())
    print("nothing raised, everything is accounted for" if fine else "SOMETHING DOES NOT ADD UP")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
