"""What averaging weights in rounds costs: bytes on the wire, and milliseconds of a worker.

    python -m benchmarks.rounds [--file FILE] [--limit 20000] [--every 2000] [--row-change-min 0.00012]
    python -m benchmarks.rounds --scale [--touched 2000]

A learner with the default settings learns the clicks of a file, or of a made-up town, without lists. Every so many
clicks it publishes a change, a leader makes a base of it, and it rebases. Told are medians over the rounds: bytes by
part, rows of items, and how far float16 and bfloat16 are from the same changes in float32 (the error's norm as a share
of the change's). `bytes a click` times clicks a second is the traffic of one worker's changes.

`--scale`: a worker with 1,000 to 100,000 items of which so many moved; the best of several runs, CPU time.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.profile import town
from model.vocabulary import Vocabulary
from online.config.settings import load_settings
from online.evaluation.backtest_events import micro_batches, read_clicks
from online.learner.learner import Learner
from online.learner.ranking_model import RankingModel
from online.rounds.change import NARROW, ROW_CHANGE_MIN
from online.rounds.encoding import decode, encode_base, encode_change
from online.rounds.merger import Merger
from online.rounds.parts import split
from online.rounds.replica import Replica
from online.rounds.weights import narrowed
from stream.event_files import EventFile
from stream.events import Click

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def followed(learner: Learner, replica: Replica) -> None:
    """The replica follows the learner's rows."""
    observe = learner.observe_items

    def observe_items(*given: Any) -> Any:
        clicked = observe(*given)
        replica.rows_changed(clicked.freed, clicked.taken)
        return clicked

    learner.observe_items = observe_items  # type: ignore[method-assign]


def rounding_errors(replica: Replica) -> dict[str, float]:
    """How far the present change is from float32, by type and part."""
    tensors, base = replica.live.weights.tensors(), replica.base
    rows = torch.tensor(list(replica._item_of), dtype=torch.int64)
    at = base.rows(list(replica._item_of.values()))
    parts: Mapping[str, list[Tensor]] = {
        "dense": [(tensors[name] - value).flatten() for name, value in base.dense.items()],
        "rows": [(tensors[name][rows] - table[at]).flatten() for name, table in base.tables.items()],
    }
    found = {}
    for part, changes in parts.items():
        change = torch.cat(changes)
        moved = change[change != 0].abs()
        found[f"{part}: median change"] = float(moved.median())
        found[f"{part}: 99th percentile"] = float(moved[torch.randperm(len(moved))[:100_000]].quantile(0.99))
        for name, dtype in TYPES.items():
            found[f"{part}: error of {name}"] = float((narrowed(change, dtype).float() - change).norm() / change.norm())
    return found


def sizes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def show_stream(clicks: Sequence[Click], every: int, row_change_min: float) -> None:
    settings = load_settings(device="cpu")
    learner = Learner(settings, lists=False)
    replica = Replica(learner, "a", "1", row_change_min=row_change_min)
    merger = Merger(replica.base, "a")
    followed(learner, replica)
    told: dict[str, list[float]] = defaultdict(list)
    since, done = 0, 0
    for batch in micro_batches(clicks, settings):
        learner.learn([clicks[at] for at in batch])
        since += len(batch)
        done += len(batch)
        if since < every:
            continue
        replica.trained(0, done - since, done, since)
        for name, error in rounding_errors(replica).items():
            told[name].append(error)
        began = time.process_time()
        change = replica.change()
        assert change is not None
        told["ms: change()"].append(1e3 * (time.process_time() - began))
        data = encode_change(change)
        merger.add(change)
        began = time.process_time()
        step = merger.next_base(1)
        assert step is not None
        told["ms: next_base()"].append(1e3 * (time.process_time() - began))
        began = time.process_time()
        replica.rebase(step)
        told["ms: rebase()"].append(1e3 * (time.process_time() - began))
        merger.settle(step)
        told["bytes: change"].append(len(data))
        told["bytes: of it dense"].append(sizes(change.weights.dense))
        told["bytes: of it rows"].append(sizes(change.weights.rows))
        told["bytes: step"].append(len(encode_base(step)))
        told["rows: items with a row"].append(len(learner.vocabulary))
        for group, items in change.weights.items.items():
            told[f"rows: moved in {group}"].append(len(items))
        told["bytes a click"].append(len(data) / since)
        since = 0
    for name, values in told.items():
        print(f"{name:<32} {statistics.median(values):>14,.6g}   last {values[-1]:,.6g}")
    snapshot = encode_base(merger.snapshot())
    print(f"{'bytes: snapshot':<32} {len(snapshot):>14,}   in {len(split(snapshot))} parts")


def show_scale(touched: int) -> None:
    print(f"CPU ms, {touched:,} rows moved of both tables, two workers merged")
    print(f"{'items':>8} {'change':>8} {'merge':>8} {'rebase':>8} {'encode':>8} {'decode':>8} {'snapshot':>9}")
    for items in (1_000, 10_000, 100_000):
        best: dict[str, float] = {}
        torch.manual_seed(0)
        workers = [_worker(f"w{n}", items) for n in range(2)]
        for round_ in range(6):
            _one_round(workers, round_, min(touched, items), best)
        names = ("change", "merge", "rebase", "encode", "decode", "snapshot")
        print(f"{items:>8,} " + " ".join(f"{best[name]:>8.1f}" for name in names))


def _worker(name: str, items: int) -> Any:
    vocabulary = Vocabulary()
    for item in range(items):
        vocabulary.observe(f"item-{item}", 0.0)
    live = SimpleNamespace(weights=RankingModel(load_settings(device="cpu")), vocabulary=vocabulary)
    live.weights.grow(vocabulary.rows)
    replica = Replica(live, name, "1")
    replica.rows_changed([], range(1, vocabulary.rows))
    return SimpleNamespace(replica=replica, merger=Merger(replica.base, name), tensors=live.weights.tensors())


def _one_round(workers: list[Any], round_: int, touched: int, best: dict[str, float]) -> None:
    def timed(name: str, function: Any, *given: Any) -> Any:
        began = time.process_time()
        result = function(*given)
        best[name] = min(best.get(name, float("inf")), 1e3 * (time.process_time() - began))
        return result

    for n, worker in enumerate(workers):
        rows = torch.randperm(len(worker.replica._index) - 1)[:touched] + 1
        for name, tensor in worker.tensors.items():
            if name.endswith(("items.vectors", "vectors.vectors", "items.biases")):
                tensor[rows] += 0.01 * torch.randn(len(rows), tensor.shape[1])
            elif tensor.is_floating_point() and name in worker.replica.base.dense:
                tensor.add_(torch.randn_like(tensor), alpha=0.001)
        worker.replica.trained(n, 10 * round_, 10 * round_ + 10, 10)
        data = timed("encode", encode_change, timed("change", worker.replica.change))
        change = timed("decode", decode, data, worker.replica.base.shape)
        for each in workers:
            each.merger.add(change)
    step = timed("merge", workers[0].merger.next_base, 1)
    for worker in workers:
        timed("rebase", worker.replica.rebase, step)
        worker.merger.settle(step)
    timed("snapshot", lambda: encode_base(workers[0].merger.snapshot()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="clicks, as `nextclick backtest` reads them; none: a made-up town")
    parser.add_argument("--limit", type=int, default=20_000, help="clicks")
    parser.add_argument("--every", type=int, default=2_000, help="clicks of a round")
    parser.add_argument("--row-change-min", type=float, default=ROW_CHANGE_MIN, help="rows that moved less wait")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--touched", type=int, default=2_000, help="rows that moved (with --scale)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"changes in {NARROW}")
    if options.scale:
        show_scale(options.touched)
        return
    clicks = town(options.limit)
    if options.file is not None:
        clicks = read_clicks(EventFile(options.file), load_settings(device="cpu"), options.limit).clicks
    show_stream(clicks, options.every, options.row_change_min)


if __name__ == "__main__":
    main()
