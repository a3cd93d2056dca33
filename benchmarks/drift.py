"""How soon a change is noticed, how often one is where there was none, and what the reaction is worth.

    python -m benchmarks.drift [--seeds 20] [--before 50000] [--after 3000] [--jobs 2] [--long 200000]

For each seed one learner (all settings at their defaults) lives through a quiet world: every alarm there is a false
one. Then taste changes from one click to the next, and two of it go on from the same state: with the reaction, and
without. A third learner begins at the change, so it only ever sees the new world. Told is, by the hits of lists as
served,

- the delay: clicks from the change to the first alarm;
- recovery: clicks from the change until the running mean (over 500 clicks, those since the change) is back for good at
  90 % of the third learner's at the same click;
- how many hits the third learner had in its clicks that the others had not.

--long adds a quiet world of so many clicks. With the defaults, 1.2 million clicks are learned: half an hour on two idle
cores.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.settings import Settings, load_settings
from online.evaluation import worlds
from online.evaluation.town import Town
from online.evaluation.worlds import World
from online.learner.learner import Learner
from online.lifecycle.drift import Alarm
from online.lifecycle.reaction import Changes
from online.metrics import K
from stream.events import Click

RUNNING = 500  # clicks of the running mean
FIRST = 100  # clicks after the change before it means anything
BACK_AT = 0.9  # of the running mean of who only ever saw the new world


class Life:
    """A learner and what watches it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.learner = Learner(settings)
        self.changes = Changes(settings, self.learner)
        self.alarms: list[Alarm] = []  # for the worse
        self.hits: list[bool] = []  # of each click: whether its item was among the ten that were served

    def live(self, clicks: Iterable[Click]) -> "Life":
        for batch in batches(iter(clicks), self.settings.micro_batch_max):
            learned = self.learner.learn(batch)
            self.hits += (learned.served_ranks < K).tolist()
            found = self.changes.update(batch, learned)
            self.alarms += [notice for notice in found if isinstance(notice, Alarm) and notice.worse]
        return self

    def another(self, settings: Settings) -> "Life":
        """The same, to go on with other settings."""
        twin = Life(settings)
        twin.learner.load_state(*self.learner.to_state())
        twin.changes.load_state(self.changes.to_state())
        return twin


def batches(clicks: Iterator[Click], size: int) -> Iterator[list[Click]]:
    while batch := list(islice(clicks, size)):
        yield batch


def running(hits: list[bool]) -> NDArray[np.float64]:
    """Means over the RUNNING clicks that end at each click; over as many as there are, at the beginning."""
    sums = np.concatenate([np.zeros(RUNNING), np.cumsum(hits)])
    means: NDArray[np.float64] = (sums[RUNNING:] - sums[:-RUNNING]) / np.minimum(np.arange(1, len(hits) + 1), RUNNING)
    return means


def recovery(hits: list[bool], newcomer: list[bool]) -> int:
    """Clicks after which the running mean is no more below BACK_AT of the newcomer's; at least FIRST."""
    below = np.flatnonzero(running(hits) < BACK_AT * running(newcomer)) + 1
    return max(FIRST, int(below.max(initial=0)))


@dataclass(frozen=True)
class Outcome:
    """What one seed gave."""

    seed: int
    quiet: int  # clicks before the change
    false_alarms: int  # in them
    delay: float
    without: int  # clicks until recovery
    reacting: int
    lost_without: int  # hits, against who only ever saw the new world
    lost_reacting: int


def go(world: World, after: int, settings: Settings) -> Outcome:
    torch.set_num_threads(settings.threads)
    before = world.change_at or 0
    old = Life(settings).live(world.clicks(before))
    new_world = list(world.after(after))
    reacting = old.another(settings).live(new_world)
    without = old.another(settings.model_copy(update={"reaction_clicks": 0})).live(new_world)
    newcomer = Life(settings).live(new_world)
    alarms = [alarm.at - old.changes.drift.watched for alarm in reacting.alarms]
    recovered = [recovery(life.hits, newcomer.hits) for life in (without, reacting)]
    lost = [sum(newcomer.hits) - sum(life.hits) for life in (without, reacting)]
    return Outcome(world.town.seed, before, len(old.alarms), min(alarms, default=np.inf), *recovered, *lost)


def go_quiet(seed: int, clicks: int, town: Town, settings: Settings) -> int:
    torch.set_num_threads(settings.threads)
    return len(Life(settings).live(worlds.quiet(seed, town=town).clicks(clicks)).alarms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--before", type=int, default=50_000, help="clicks before the change")
    parser.add_argument("--after", type=int, default=3_000, help="clicks after it")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--items", type=int, default=160)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--long", type=int, default=0, help="clicks of one more quiet world")
    options = parser.parse_args()
    settings, town, began = load_settings(device="cpu"), Town(users=options.users, items=options.items), time.time()
    print("seed  quiet clicks  false alarms  alarm after  recovered: without  reacting  hits lost: without  reacting")
    outcomes = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        made = [worlds.sudden(seed, change_at=options.before, town=town) for seed in range(options.seeds)]
        futures = [pool.submit(go, world, options.after, settings) for world in made]
        long = pool.submit(go_quiet, 0, options.long, town, settings) if options.long else None
        for future in futures:
            one = future.result()
            outcomes.append(one)
            print(
                f"{one.seed:>4}  {one.quiet:>12,}  {one.false_alarms:>12}  {one.delay:>11.0f}  {one.without:>18.0f}  "
                f"{one.reacting:>8.0f}  {one.lost_without:>18.0f}  {one.lost_reacting:>8.0f}",
                flush=True,
            )
        if long is not None:
            print(f"one quiet world of {options.long:,} clicks: {long.result()} false alarms")
    delays = sorted(one.delay for one in outcomes)
    print(f"alarm after: median {np.median(delays):.0f}, at most {delays[-1]:.0f} clicks")
    print(f"false alarms: {sum(one.false_alarms for one in outcomes)} in {sum(one.quiet for one in outcomes):,} clicks")
    without, reacting = sum(one.without for one in outcomes), sum(one.reacting for one in outcomes)
    means = f"{without / len(outcomes):.0f} / {reacting / len(outcomes):.0f} clicks in the mean"
    print(f"recovery without / with reaction: {means}, {without / reacting:.2f}")
    lost, still_lost = sum(one.lost_without for one in outcomes), sum(one.lost_reacting for one in outcomes)
    print(f"hits lost in {options.after:,} clicks: {lost / len(outcomes):.0f} / {still_lost / len(outcomes):.0f}")
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
