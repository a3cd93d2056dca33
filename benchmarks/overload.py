"""Twice as many clicks as can be learned: the lag over time, with everything learned and with training left out.

    python -m benchmarks.overload [--seconds 60] [--kafka HOST:PORT] [--redis URL] [--only lag cost]

`lag`: a real worker that learns while clicks always wait, to know what it can take; then in each mode (`overload` =
fall-behind, shed-training) a fresh one that gets twice that for `--seconds`, and after that half of it until it has
caught up. `cost`: in one process, the CPU time per click with and without training, and NDCG@10 on request of a learner
that left out training for the middle third of `--clicks` clicks, beside one that did not.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._live import Live, live
from online.config.settings import load_settings
from online.evaluation.town import Town
from online.learner.learner import Learner
from online.metrics import hit_and_ndcg_at

MODES = ("fall-behind", "shed-training")
SHED = {"shed_lag_s": 5.0, "lag_told_s": 5.0, "lag_over_s": 2.0}
CATCH_UP = 6  # times as long as the overload, that it may take at most


def lag_over_time(worker: Live, capacity: float, seconds: float) -> None:
    """Prints a line each few seconds, then what became of it."""
    worker.rate = 2 * capacity
    began, said_at, worst, caught_up = time.monotonic(), -10.0, 0.0, None
    while (now := time.monotonic() - began) < (1 + CATCH_UP) * seconds:
        if now > seconds:
            worker.rate = capacity / 2
        status = worker.status() or {}
        lag_s = status.get("lag_s") or 0.0
        worst = max(worst, lag_s)
        if now - said_at >= seconds / 8:
            said_at = now
            print(f"  {now:5.0f} s: {status.get('lag') or 0:7,} wait, {lag_s:5.1f} s; {_state(status)}", flush=True)
        if now > seconds + 5 and (status.get("lag") or 0) <= worker.settings.poll_records_max:
            caught_up = now - seconds
            break
        time.sleep(0.5)
    status = worker.status() or {}
    quantiles = status.get("click_to_list_ms") or {}
    print(
        f"  most {worst:.1f} s behind; caught up {'not at all' if caught_up is None else f'after {caught_up:.0f} s'}; "
        f"click to list p50 {quantiles.get('p50')} ms, p99 {quantiles.get('p99')} ms; "
        f"{status.get('learned'):,} taken in, {status.get('untrained'):,} of them without training; "
        f"notices {status.get('notice_counts')}"
    )


def _state(status: dict[str, Any]) -> str:
    return f"{status.get('events_per_s') or 0:,.0f} a second, training {'off' if status.get('shedding') else 'on'}"


def cost(clicks: int) -> None:
    torch.set_num_threads(1)
    stream = list(Town(users=1_000, items=1_000, seed=2).clicks(clicks))
    thirds = (clicks // 3, 2 * clicks // 3)
    found: dict[str, list[tuple[float, float]]] = {}
    for mode in MODES:
        learner = Learner(load_settings())
        size = learner.settings.micro_batch_max
        parts: list[list[float]] = [[], [], []]
        seconds = [0.0, 0.0, 0.0]
        for number, start in enumerate(range(0, clicks, size)):
            part = int(start >= thirds[0]) + int(start >= thirds[1])
            began = time.process_time()
            learned = learner.learn(stream[start : start + size], train=mode == MODES[0] or part != 1)
            seconds[part] += time.process_time() - began
            parts[part] += hit_and_ndcg_at(learned.ranks)[1].tolist()
            if number % 16 == 15:
                learner.states.rebuild()
        found[mode] = [(float(np.mean(part)), 1000 * s / len(part)) for part, s in zip(parts, seconds, strict=True)]
    print(f"{'':16} {'before':>18} {'middle third':>18} {'after':>18}   NDCG@10 on request, CPU ms per click")
    for mode, figures in found.items():
        print(f"{mode:16} " + " ".join(f"{ndcg:9.4f} {ms:8.2f}" for ndcg, ms in figures))
    print(f"without training it takes clicks in {found[MODES[0]][1][1] / found[MODES[1]][1][1]:.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clicks", type=int, default=9_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--only", nargs="+", choices=("lag", "cost"), default=("lag", "cost"))
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="URL")
    options = parser.parse_args()
    if "cost" in options.only:
        cost(options.clicks)
    if "lag" not in options.only:
        return
    edges = {"kafka": options.kafka, "redis": options.redis, "users": options.users}
    with tempfile.TemporaryDirectory() as folder, live(Path(folder), **edges) as worker:
        capacity = worker.capacity(options.seconds / 2, options.seconds / 6)
    print(f"it can take {capacity:,.0f} clicks a second")
    for mode in MODES:
        print(f"{mode}: {2 * capacity:,.0f} a second for {options.seconds:.0f} s, then {capacity / 2:,.0f}")
        with tempfile.TemporaryDirectory() as folder, live(Path(folder), **edges, overload=mode, **SHED) as worker:
            worker.wait_for(0)
            lag_over_time(worker, capacity, options.seconds)


if __name__ == "__main__":
    main()
