"""What items' content adds: one learner with it and one without, over the same clicks, all items known beforehand.

    python -m benchmarks.content clicks.csv.xz items.csv.xz --limit 20000 [--exclude-seen] [--only with]

The file of items has the columns `item` and `title`, and further ones; `genres` (separated by |) are its tags. As in a
backtest the first fifth of the clicks only trains. NDCG@10 and hit@10 are printed for all clicks, for an item's first
10 clicks (its very first left out, as in a backtest), and for first clicks of items: listed by rank, else a miss.

    --cost    instead, CPU time of a click: as the settings say, objectives too, and without content and objectives.
              Both learners take turns, one micro-batch each, so that other work on the machine meets both alike. Told
              are the sums' ratio, and in brackets the quartiles of the micro-batches' ratios, without the first fifth.
    --lists   with `--cost`: lists are ranked, too, as in a worker
"""

import argparse
import csv
import gzip
import lzma
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from online.commands.file_options import open_file
from online.config.settings import Settings, load_settings
from online.evaluation.backtest import ABLATIONS, ONE_OBJECTIVE, LearnerRun, complete
from online.evaluation.backtest_events import Facts, facts_of, micro_batches, read_clicks
from online.learner.learner import Learner
from online.metrics import hit_and_ndcg_at
from stream.events import Click
from stream.items import Item

FEW = 10


def main() -> None:
    """Prints one line for each learner."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("clicks", type=Path)
    arguments.add_argument("items", type=Path)
    arguments.add_argument("--limit", type=int, default=20_000)
    arguments.add_argument("--exclude-seen", action="store_true")
    arguments.add_argument("--only", choices=("with", "without"))
    arguments.add_argument("--cost", action="store_true")
    arguments.add_argument("--lists", action="store_true")
    given = arguments.parse_args()
    settings = load_settings().model_copy(update={"exclude_seen": given.exclude_seen})
    clicks = read_clicks(open_file(given.clicks, None, None, None, None), settings, given.limit).clicks
    items, facts = read_items(given.items), facts_of(clicks)
    if given.cost:
        print(cost(settings, clicks, items, lists=given.lists))
        return
    for name in ("without", "with"):
        if given.only in {None, name}:
            changed = settings.model_copy(update={"content": name == "with"})
            print(f"{name:8s}{figures(facts, *run(changed, clicks, facts, items))}", flush=True)


def read_items(path: Path) -> list[Item]:
    """Reads items from a file of comma-separated values."""
    openers: dict[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open}
    with openers.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        return [item_of(row) for row in csv.DictReader(file)]


def item_of(row: dict[str, str]) -> Item:
    """Returns an item of a row; values that are numbers become numbers."""
    others = {name: value for name, value in row.items() if name not in {"item", "title", "genres"} and value}
    attributes = {name: _number(value) for name, value in others.items()}
    tags = tuple(tag for tag in row.get("genres", "").split("|") if tag)
    return Item(item_id=row["item"], title=row.get("title"), tags=tags, attributes=attributes)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def run(
    settings: Settings, clicks: Sequence[Click], facts: Facts, items: Sequence[Item]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Returns the ranks of clicks, (n,), as a backtest counts them; the same with first clicks by their rank among the
    candidates; and the CPU seconds that it took."""
    torch.set_num_threads(settings.threads)
    going = LearnerRun(settings, clicks, lists=False)
    going.learner.put_items(items)
    ranks, told = np.full((2, len(clicks)), np.inf)
    began = time.process_time()
    each = list(micro_batches(clicks, settings))
    for batch, (found, candidates, _) in zip(each, going.steps(each), strict=True):
        part = slice(batch.start, batch.stop)
        ranks[part] = complete(facts, part, found, candidates, exclude_seen=settings.exclude_seen)
        told[part] = np.where(facts.earlier_of_item[part] == 0, found, ranks[part])
    return ranks, told, time.process_time() - began


def cost(settings: Settings, clicks: Sequence[Click], items: Sequence[Item], *, lists: bool) -> str:
    """Returns in one line what a click takes with these settings, and without content and objectives."""
    torch.set_num_threads(1)
    plain = settings.model_copy(update=ABLATIONS["nextclick-without-content"] | ABLATIONS[ONE_OBJECTIVE])
    learners = [Learner(changed, lists=lists) for changed in (plain, settings)]
    for learner in learners:
        learner.put_items(items)
    taken: list[list[float]] = [[], []]
    for batch in micro_batches(clicks, settings):
        part = clicks[batch.start : batch.stop]
        for learner, seconds in zip(learners, taken, strict=True):
            began = time.process_time()
            learner.learn(part)
            learner.states.rebuild()
            seconds.append((time.process_time() - began) / len(part))
    without, with_all = (np.array(seconds[len(seconds) // 5 :]) for seconds in taken)
    low, high = np.quantile(with_all / without, [0.25, 0.75])
    times = f"{with_all.mean() / without.mean():.3f} times ({low:.3f}, {high:.3f})"
    return (
        f"{1000 * without.mean():.3f} ms of CPU time a click without content and objectives, "
        f"{1000 * with_all.mean():.3f} as set: {times}"
    )


def figures(facts: Facts, ranks: NDArray[np.float64], told: NDArray[np.float64], seconds: float) -> str:
    """Returns the figures in one line."""
    scored = np.arange(len(ranks)) >= facts.first_scored
    earlier = facts.earlier_of_item
    kinds = {
        "all": (ranks, scored),
        "all, first by rank": (told, scored),
        f"first {FEW}": (ranks, scored & (earlier > 0) & (earlier < FEW)),
        "first": (told, scored & (earlier == 0)),
    }
    parts = []
    for name, (of, which) in kinds.items():
        hit, ndcg = hit_and_ndcg_at(of[which])
        parts.append(f"{name}: ndcg {ndcg.mean():.4f} hit {hit.mean():.4f} ({which.sum()})")
    return "; ".join(parts) + f"; {1000 * seconds / len(ranks):.2f} ms a click"


if __name__ == "__main__":
    main()
