"""What the gate lets through, and how soon a bad live model is taken back: python -m benchmarks.gate [--seeds 20]

In a town (online/evaluation/town.py) a learner takes in some clicks. Then, for each seed:

- three sabotaged copies of its weights ask to be published: none may be;
- a copy of it asks while the live model is handicapped, so that the copy is measured to be about 5 % better: it should;
- the live model is sabotaged right after it was published, and long after, when its predecessor is only kept: it must
  be rolled back, and how many clicks that takes is told.

A model that is sabotaged goes on learning, so it may have healed before the gate notices. Exits with 1 if a sabotaged
candidate is published, or a sabotaged live model neither rolled back nor healed within 5,000 clicks.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from online.config.settings import Settings
from online.evaluation.town import Town
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from online.learner.objectives import ListwiseRanking, TrainingBatch
from online.learner.ranking_model import RankingModel
from online.learner.scoring import ScoredCandidates
from online.lifecycle.reaction import Changes
from online.lifecycle.shadow import ShadowEvaluation
from online.lifecycle.supervisor import Supervisor
from online.lifecycle.versions import Versions
from online.worker.progress import Progress
from stream.events import Click

BATCH = 32
CLICKS_MAX = 5_000  # until a sabotaged live model has to be rolled back
LEVEL_CLICKS = 512  # whose mean loss is a level
SETTINGS: dict[str, Any] = {  # room for the town and no more
    "device": "cpu", "memory_users_held": 256, "recall_users_held": 256, "moments_held": 50_000,
    "world_buckets": 512, "replay_held": 2_048, "users_held": 1_000,
}  # fmt: skip


@torch.no_grad()
def shuffled(weights: RankingModel, learner: Learner, random: np.random.Generator) -> None:  # noqa: ARG001
    """The rows of every weight change places."""
    for tensor in weights.tensors().values():
        if tensor.dim():
            tensor.copy_(tensor[torch.from_numpy(random.permutation(len(tensor)))])


@torch.no_grad()
def scaled(weights: RankingModel, learner: Learner, random: np.random.Generator) -> None:  # noqa: ARG001
    """Every weight is ten times too large."""
    for name, tensor in weights.tensors().items():
        if tensor.is_floating_point() and not name.startswith(("ranker.mean", "ranker.variance")):
            tensor.mul_(10)


def reversed_labels(weights: RankingModel, learner: Learner, random: np.random.Generator) -> None:
    """The ranker has learned, for a while, that what was clicked is what was not."""
    adam = torch.optim.Adam(weights.ranker.parameters(), lr=0.01)
    for _ in range(100):
        found = learner.replay.sample(64, random)
        assert found is not None, "there are too few clicks to replay yet"
        batch = TrainingBatch(replayed=(weights.ranker.each(found.features), found.present))
        loss = ListwiseRanking().loss(weights, batch)
        assert loss is not None
        adam.zero_grad()
        (-loss.clamp(max=20.0)).backward()  # type: ignore[no-untyped-call]
        adam.step()
    weights.ranker.zero_grad(set_to_none=True)


SABOTAGES: dict[str, Callable[[RankingModel, Learner, np.random.Generator], None]] = {
    "shuffled rows": shuffled,
    "scaled weights": scaled,
    "reversed labels": reversed_labels,
}


def handicap(weights: RankingModel, deviation: float, seed: int) -> None:
    """Its scores are blurred by normal noise from now on, however much it learns."""
    score, random = weights.score, torch.Generator().manual_seed(seed)

    def blurred(*arguments: Any, **options: Any) -> ScoredCandidates:
        scored = score(*arguments, **options)
        return scored._replace(scores=scored.scores + deviation * torch.randn(scored.scores.shape, generator=random))

    weights.score = blurred  # type: ignore[method-assign]


class Stream:
    """A learner in a town, and the supervisor of its weights."""

    def __init__(self, seed: int, clicks: int, **settings: Any) -> None:
        self.settings = Settings(seed=seed, **{**SETTINGS, **settings})
        self.learner = Learner(self.settings)
        self.progress, self.told = Progress(), []
        self.supervisor = Supervisor(
            self.settings,
            learner=self.learner,
            totals=self.progress,
            versions=Versions(5, 20),
            changes=Changes(self.settings, self.learner),
            emit=lambda kind, text, figures: self.told.append((kind, self.progress.learned, text, figures)),
            read_checkpoint=None,
            clock=time.time,
        )
        self._clicks = Town(users=200, seed=seed).clicks(10_000_000)
        self.random = np.random.default_rng(seed)
        self.go_on(clicks)

    told: list[tuple[str, int, str, Any]]

    def another(self) -> "Stream":
        """The same, to go another way from here."""
        twin = Stream(self.settings.seed, 0, **self.settings.model_dump(exclude={"seed", *SETTINGS}))
        twin.learner.load_state(*self.learner.to_state())
        twin.supervisor.load_state(*self.supervisor.to_state())
        twin.progress.learned = self.progress.learned
        deque(islice(twin._clicks, self.progress.learned), maxlen=0)
        return twin

    def go_on(self, clicks: int, until: Callable[[], bool] = lambda: False) -> int:
        """-> the clicks it took."""
        for done in range(0, clicks, BATCH):
            if until():
                return done
            batch: list[Click] = list(islice(self._clicks, BATCH))
            learned = self.learner.learn(batch)
            self.learner.states.rebuild()
            self.progress.learned += BATCH
            self.supervisor.on_batch(batch, learned)
            self.watch(learned)
            self.supervisor.step()
        return clicks

    def watch(self, learned: BatchResult) -> None:
        """For others who look at the same clicks."""

    def kinds(self) -> set[str]:
        return {kind for kind, *_ in self.told}


def candidates(stream: Stream, noise: float) -> dict[str, dict[str, Any]]:
    """Sabotaged and honest candidates beside the same live model -> each one's decision and figures."""
    learner, limits = stream.learner, stream.settings.candidate_gate
    stream.supervisor.changes = None  # what is compared here must not react to the handicap
    trials = {}
    for name, sabotage in SABOTAGES.items():
        weights = learner.weights.copy()
        sabotage(weights, learner, stream.random)
        trials[name] = ShadowEvaluation(learner, weights, limits, facts={})
    going = dict(trials)

    def follow(learned: BatchResult) -> None:
        for name, trial in list(going.items()):
            trial.update(learned)
            if trial.decision != "go on":
                del going[name]

    stream.watch = follow  # type: ignore[method-assign]
    stream.go_on(limits.clicks_max + BATCH, until=lambda: not going)
    honest = going["honest"] = trials["honest"] = ShadowEvaluation(learner, learner.weights.copy(), limits, facts={})
    handicap(learner.weights, noise, stream.settings.seed)
    stream.go_on(limits.clicks_max + BATCH, until=lambda: not going)
    stream.watch = honest.follow  # type: ignore[method-assign]
    return {
        name: trial.figures() | {"decision": trial.decision, "fault": trial.fault} for name, trial in trials.items()
    }


def rolled_back(stream: Stream, sabotage: str, after: int) -> tuple[str, int]:
    """A copy of the live model is published; `after` clicks later it is sabotaged -> "rolled back", and the clicks
    until its predecessor has taken its place; "healed", and the clicks after which its loss was that of before, by
    learning; or "neither" within 5,000 clicks."""
    learner, supervisor = stream.learner, stream.supervisor
    supervisor.examine(learner.weights.copy(), "a copy", {})
    assert supervisor.candidate is not None
    supervisor.candidate.live_fault = "published without asking, for the benchmark"
    supervisor.step()
    losses: deque[float] = deque(maxlen=LEVEL_CLICKS)
    stream.watch = lambda learned: losses.extend(learned.losses)  # type: ignore[method-assign]
    stream.go_on(max(after, LEVEL_CLICKS) if after else 0)
    level = np.mean(losses) if after else 0.0
    losses.clear()
    SABOTAGES[sabotage](learner.weights, learner, stream.random)
    healed: list[int] = []
    took = 0
    while took < CLICKS_MAX and "rolled_back" not in stream.kinds():
        took += stream.go_on(BATCH)
        if len(losses) == LEVEL_CLICKS and np.mean(losses) < 1.05 * level:
            healed.append(took)
    if "rolled_back" in stream.kinds():
        return "rolled back", took
    return ("healed", healed[0]) if healed else ("neither", took)


def run(seed: int, before: int, noise: float, after: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    which = list(SABOTAGES)[seed % len(SABOTAGES)]
    stream = Stream(seed, before)
    return {
        "sabotage": which,
        "at once": rolled_back(stream.another(), which, 0),
        "later": rolled_back(stream.another(), which, after),
        "candidates": candidates(stream, noise),
    }


def lines(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    tried = [(seed, name, one["candidates"][name]) for seed, one in enumerate(found) for name in SABOTAGES]
    let_through = [one for one in tried if one[2]["decision"] == "publish"]
    yield f"sabotaged candidates published: {len(let_through)} of {len(tried)}"
    for name in SABOTAGES:
        took = [one["clicks"] for _, which, one in tried if which == name]
        yield f"  {name}: rejected after {np.median(took):.0f} clicks (median), {max(took)} at most"
    honest = [one["candidates"]["honest"] for one in found]
    better = [100 * (one["candidate"] / one["live"] - 1) for one in honest]
    published = sum(one["decision"] == "publish" for one in honest)
    yield (
        f"honest candidates published: {published} of {len(honest)}, better by {np.mean(better):.1f} % in the mean "
        f"({min(better):.1f} to {max(better):.1f}), after {np.median([one['clicks'] for one in honest]):.0f} clicks"
    )
    for when in ("at once", "later"):
        for what in ("rolled back", "healed", "neither"):
            took = [clicks for how, clicks in (one[when] for one in found) if how == what]
            if took:
                yield (
                    f"live models sabotaged {when}, {what}: {len(took)} of {len(found)}, "
                    f"after {np.median(took):.0f} clicks (median), {max(took)} at most"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--before", type=int, default=3_000, help="clicks learned before anything happens")
    parser.add_argument("--after", type=int, default=6_000, help="clicks after publication, of what comes later")
    parser.add_argument(
        "--noise", type=float, default=0.85, help="deviation of the noise in a handicapped model's scores"
    )
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        going = [pool.submit(run, seed, given.before, given.noise, given.after) for seed in range(given.seeds)]
        found = []
        for one in going:
            found.append(one.result())
            print(found[-1], file=sys.stderr, flush=True)
    for line in lines(found):
        print(line)
    tried = [one["candidates"][name]["decision"] for one in found for name in SABOTAGES]
    ended = [one[when][0] for one in found for when in ("at once", "later")]
    sys.exit("publish" in tried or "neither" in ended)


if __name__ == "__main__":
    main()
