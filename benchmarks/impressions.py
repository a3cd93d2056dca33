"""What learning from impressions adds: learners with them and without, on a made-up site whose right answers are known.

    python -m benchmarks.impressions [--visits 12000] [--drawn 0.1] [--seed 0]

The site shows lists of ten; positions are examined less and less, and some items are promoted whatever they attract.
Printed for each learner: hit@10 and NDCG@10 of the next click (the first fifth only trains); the clicks that its own
lists would get, beside those of the best lists and of the site's; the estimate of examination; CPU time of a click.
With `--closed` the learner's own lists are shown instead of the site's, and the clicks of a list in the second half
are printed.
"""

import argparse
import time

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.settings import Settings, load_settings
from online.evaluation.shown_world import ShownWorld, Visit
from online.learner.asking import Question
from online.learner.learner import Learner
from online.learner.shown.click_model import STARTS
from online.metrics import hit_and_ndcg_at

BATCH = 32  # clicks


def main() -> None:
    """Prints some lines for each learner."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--visits", type=int, default=12_000)
    arguments.add_argument("--drawn", type=float, default=0.0)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--closed", action="store_true")
    given = arguments.parse_args()
    world = ShownWorld(drawn_share=given.drawn, seed=given.seed)
    settings = load_settings()
    torch.set_num_threads(settings.threads)
    for name in ("without", "with"):
        changed = settings.model_copy(update={"learn_impressions": name == "with"})
        print(f"{name:8s}{(closed if given.closed else logged)(changed, world, given.visits)}", flush=True)


class Reader:
    """A learner that is given visits, as a worker would."""

    def __init__(self, settings: Settings) -> None:
        self.learner = Learner(settings, lists=False)
        self.waiting: list[Visit] = []
        self.ranks: list[NDArray[np.float64]] = []
        self.seconds = 0.0

    def read(self, visit: Visit) -> None:
        """Takes a visit in; learns once there are enough clicks."""
        self.waiting.append(visit)
        clicks = [click for one in self.waiting for click in one.clicks]
        if len(clicks) < BATCH:
            return
        began = time.process_time()
        if self.learner.shown is not None:
            for one in self.waiting:
                self.learner.shown.put(one.shown)
        self.ranks.append(self.learner.learn(clicks).ranks)
        self.seconds += time.process_time() - began
        self.waiting = []

    def list_of(self, user: int, at: float) -> list[str]:
        """Returns a user's list."""
        return self.learner.answerer.answer([Question(user_id=f"u{user}", at=at, k=10)])[0].items


def logged(settings: Settings, world: ShownWorld, visits: int) -> str:
    """Returns the figures of a learner that reads what the site has shown."""
    reader, last = Reader(settings), 0.0
    for visit in world.visits(visits):
        reader.read(visit)
        last = visit.shown.timestamp
    ranks = np.concatenate(reader.ranks)
    hit, ndcg = hit_and_ndcg_at(ranks[len(ranks) // 5 :])
    users = range(world.users)
    own = np.mean([world.expected_clicks(user, reader.list_of(user, last)) for user in users])
    best = np.mean([(np.sort(-world.attraction[user])[:10] * -world.examination).sum() for user in users])
    policy = world.own_lists(np.random.default_rng(9))
    site = np.mean([world.expected_clicks(user, [f"i{item}" for item in policy(user, 0.0)]) for user in users])
    text = (
        f"hit@10 {hit.mean():.4f} ± {hit.std() / len(hit) ** 0.5:.4f}, NDCG@10 {ndcg.mean():.4f} ± "
        f"{ndcg.std() / len(ndcg) ** 0.5:.4f}; clicks of a list {own:.3f} (the best {best:.3f}, "
        f"the site's {site:.3f}); {1000 * reader.seconds / len(ranks):.2f} ms a click"
    )
    if reader.learner.shown is None:
        return text
    bands = [start for start in STARTS if start <= world.positions]
    found = reader.learner.shown.model.examination[: len(bands)]
    ends = [*bands[1:], world.positions + 1]
    truth = [world.examination[start - 1 : end - 1].mean() for start, end in zip(bands, ends, strict=True)]
    return f"{text}; examination {np.round(found, 3).tolist()}, in truth {np.round(truth, 3).tolist()}"


def closed(settings: Settings, world: ShownWorld, visits: int) -> str:
    """Returns the clicks of a list where the learner's own lists are shown, filled with random items at first."""
    reader, random = Reader(settings), np.random.default_rng(7)

    def policy(user: int, at: float) -> NDArray[np.int64]:
        own = [int(item[1:]) for item in reader.list_of(user, at)] if reader.ranks else []
        others = [item for item in random.permutation(world.items).tolist() if item not in own]
        return np.array([*own, *others][: world.positions])

    counts = []
    for visit in world.visits(visits, policy):
        counts.append(len(visit.clicks))
        reader.read(visit)
    late = np.array(counts[visits // 2 :], float)
    return f"clicks of a list {late.mean():.3f} ± {late.std() / len(late) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
