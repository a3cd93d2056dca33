"""What attributes of users add for users with few clicks: learners with them and without, over the same clicks.

    python -m benchmarks.users [--users 6000] [--limit 20000] [--truth 0.8] [--seed 0]
    python -m benchmarks.users --clicks clicks.csv.xz --records users.csv [--limit 20000]
    python -m benchmarks.users --clicks clicks.csv.xz --by-hour [--exclude-seen] [--limit 20000]

With `--by-hour` it is what hours and days of the week add (NEXTCLICK_POPULARITY_BY_HOUR).
Without files the stream is a made-up town, in which a user's district tells the shelf that the user likes, with the
chance `--truth`. As in a backtest the first fifth of the clicks only trains. NDCG@10 and hit@10 are printed for all
clicks and for the first three of each user; errors are standard errors over users.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from online.commands.file_options import open_file, open_items
from online.config.settings import Settings, load_settings
from online.evaluation.backtest import LearnerRun, complete
from online.evaluation.backtest_events import Facts, facts_of, micro_batches, read_clicks
from online.evaluation.backtest_items import read_users
from online.evaluation.backtest_report import NEW
from online.evaluation.breakdown import clustered_error
from online.evaluation.town import Town
from online.metrics import hit_and_ndcg_at
from stream.events import Click
from stream.users import User


def main() -> None:
    """Prints one line for each learner."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--users", type=int, default=6_000)
    arguments.add_argument("--truth", type=float, default=0.8)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--clicks", type=Path)
    arguments.add_argument("--records", type=Path)
    arguments.add_argument("--limit", type=int, default=20_000)
    arguments.add_argument("--by-hour", action="store_true")
    arguments.add_argument("--exclude-seen", action="store_true")
    given = arguments.parse_args()
    settings = load_settings(exclude_seen=given.exclude_seen)
    if given.clicks is None:
        town = Town(users=given.users, seed=given.seed)
        clicks, users = list(town.clicks(given.limit)), town.user_records(given.truth)
    else:
        clicks = read_clicks(open_file(given.clicks, None, None, None, None), settings, given.limit).clicks
        users = [] if given.records is None else read_users(open_items(given.records, users=True))[0]
    facts = facts_of(clicks)
    for name in ("without", "with"):
        added = {"popularity_by_hour": True} if given.by_hour else {"users_topic": "users"}
        changed = settings.model_copy(update=added if name == "with" else {})
        print(f"{name:8s}{figures(facts, *run(changed, clicks, facts, users))}", flush=True)


def run(
    settings: Settings, clicks: Sequence[Click], facts: Facts, users: Sequence[User]
) -> tuple[NDArray[np.float64], float]:
    """Returns the ranks of clicks, (n,), and the CPU seconds that it took."""
    torch.set_num_threads(settings.threads)
    going = LearnerRun(settings, clicks, lists=False, users=users)
    ranks = np.full(len(clicks), np.inf)
    began = time.process_time()
    each = list(micro_batches(clicks, settings))
    for batch, (found, candidates, _) in zip(each, going.steps(each), strict=True):
        part = slice(batch.start, batch.stop)
        ranks[part] = complete(facts, part, found, candidates, exclude_seen=settings.exclude_seen)
    return ranks, time.process_time() - began


def figures(facts: Facts, ranks: NDArray[np.float64], seconds: float) -> str:
    """Returns the figures in one line."""
    scored, earlier = np.arange(len(ranks)) >= facts.first_scored, facts.earlier_of_user
    kinds = {"all": scored, "first": scored & (earlier == 0), f"first {NEW}": scored & (earlier < NEW)}
    parts = []
    for name, which in kinds.items():
        hit, ndcg = hit_and_ndcg_at(ranks[which])
        error = clustered_error(ndcg, facts.users[which])
        parts.append(f"{name}: ndcg {ndcg.mean():.4f} ± {error:.4f} hit {hit.mean():.4f} ({which.sum()})")
    return "; ".join(parts) + f"; {1000 * seconds / len(ranks):.2f} ms a click"


if __name__ == "__main__":
    main()
