"""What privacy costs: NDCG@10 with a privacy budget, as a curve: python -m benchmarks.privacy FILE [--limit N]

The stream is tested and then learned as a backtest does it, on request, once for each setting and seed of the noise:

- `off`: as by default;
- `untrained`: no weight ever moves, which is what a budget of 0 would leave;
- `epsilon inf`: what is trained under a budget, clipped, with practically no noise;
- `epsilon 16` and less: with the budget;
- `users 2` and more: all is learned as by default, but pairs of items are counted once so many users made them.

Told are NDCG@10 (the mean over seeds, with the lowest and the highest), the ratio to `off` of the first seed with its
standard error over clicks, and how many private steps moved weights.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.asked import ratio
from online.commands.file_options import open_file
from online.config.settings import load_settings
from online.evaluation.backtest import LearnerRun, complete
from online.evaluation.backtest_events import facts_of, micro_batches, read_clicks
from online.learner.privacy.training import PrivateTraining
from online.metrics import hit_and_ndcg_at
from stream.events import Click

EPSILONS = (16.0, 8.0, 4.0, 2.0, 1.0)
WITHOUT_NOISE = 1e9  # as epsilon
USERS = (2, 5)  # of a pair
UNMOVED = 1e-12  # as learning rate


def ranks_of(clicks: Sequence[Click], **changed: Any) -> tuple[NDArray[np.float64], PrivateTraining | None]:
    """Goes through the stream. Returns the ranks of the scored clicks, and the private training."""
    settings = load_settings(**changed)
    facts = facts_of(clicks)
    run = LearnerRun(settings, clicks, lists=False)
    ranks = np.full(len(clicks), np.inf)
    batches = list(micro_batches(clicks, settings))
    for batch, (found, candidates, _) in zip(batches, run.steps(batches), strict=True):
        part = slice(batch.start, batch.stop)
        ranks[part] = complete(facts, part, found, candidates, exclude_seen=settings.exclude_seen)
    return ranks[facts.counted], run.learner.privacy


def private_row(
    clicks: Sequence[Click], off: NDArray[np.float64], seeds: int, epsilon: float, **changed: Any
) -> dict[str, Any]:
    """Returns the figures of one budget."""
    found = [ranks_of(clicks, privacy_epsilon=epsilon, privacy_seed=seed, **changed) for seed in range(seeds)]
    means = [float(hit_and_ndcg_at(ranks)[1].mean()) for ranks, _ in found]
    privacy = found[0][1]
    assert privacy is not None
    compared = ratio(found[0][0], off)
    return {
        "ndcg": round(float(np.mean(means)), 4),
        "lowest": round(min(means), 4),
        "highest": round(max(means), 4),
        "ratio": round(float(np.mean(means)) / compared["of"], 4),
        "first_seed": compared,
        **{name: privacy.describe()[name] for name in ("spent", "noise_multiplier", "steps", "moved", "left_out")},
    }


def main() -> None:
    """Prints one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="of the noise")
    parser.add_argument("--exclude-seen", action="store_true")
    parser.add_argument("--threshold-only", action="store_true", help="without budgets")
    given = parser.parse_args()
    settings = load_settings()
    torch.set_num_threads(settings.threads)
    clicks = read_clicks(open_file(given.file, None, None, None, None), settings, given.limit).clicks
    others = {"exclude_seen": given.exclude_seen}
    off, _ = ranks_of(clicks, **others)
    tell("off", {"clicks": len(off), "ndcg": round(float(hit_and_ndcg_at(off)[1].mean()), 4)})
    for users in USERS:
        ranks, _ = ranks_of(clicks, pair_users_min=users, **others)
        tell(f"users {users}", ratio(ranks, off))
    if given.threshold_only:
        return
    untrained = {"privacy_learning_rate": UNMOVED, **others}
    tell("untrained", private_row(clicks, off, 1, WITHOUT_NOISE, **untrained))
    tell("epsilon inf", private_row(clicks, off, 1, WITHOUT_NOISE, **others))
    for epsilon in EPSILONS:
        tell(f"epsilon {epsilon:g}", private_row(clicks, off, given.seeds, epsilon, **others))


def tell(name: str, figures: dict[str, Any]) -> None:
    """Prints a line."""
    print(json.dumps({"run": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
