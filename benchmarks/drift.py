"""How soon a change is noticed, how often one is where there was none, and what the reaction is worth.

    python -m benchmarks.drift [--seeds 20] [--before 20000] [--after 3000] [--jobs 2] [--long 200000]

For each seed one learner (all settings at their defaults) lives through a quiet world: every alarm there is a false
one. Then taste changes from one click to the next, and two of it go on from the same state: with the reaction, and
without. A third learner begins at the change, so it only ever sees the new world. Told is, by the hits of lists as
served,

- the delay: clicks from the change to the first alarm;
- recovery: clicks from the change until the running mean over 300 clicks is back at 90 % of the level that the third
  learner has reached in the last third of its clicks.

--long adds a quiet world of so many clicks. With the defaults, some 600,000 clicks are learned: a quarter of an hour on
two idle cores.
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

from online import worlds
from online.drift import Alarm
from online.learner import Learner
from online.metrics import K
from online.reaction import Changes
from online.settings import Settings, load_settings
from online.town import Town
from online.worlds import World
from stream.events import Click

RUNNING = 300  # clicks of the running mean
BACK_AT = 0.9  # of the level of who only ever saw the new world


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
    return (sums[RUNNING:] - sums[:-RUNNING]) / np.minimum(np.arange(1, len(hits) + 1), RUNNING)


def recovery(hits: list[bool], level: float) -> float:
    """Clicks until the running mean is there, at least RUNNING; inf: never."""
    there = np.flatnonzero(running(hits)[RUNNING - 1 :] >= BACK_AT * level)
    return float(there[0] + RUNNING) if len(there) else np.inf


@dataclass(frozen=True)
class Outcome:
    """What one seed gave."""

    seed: int
    quiet: int  # clicks before the change
    false_alarms: int  # in them
    delay: float
    without: float  # clicks until recovery
    reacting: float
    newcomer: float  # the same, of who only ever saw the new world
    level: float


def go(world: World, after: int, settings: Settings) -> Outcome:
    torch.set_num_threads(settings.threads)
    before = world.change_at or 0
    old = Life(settings).live(world.clicks(before))
    new_world = list(world.after(after))
    reacting = old.another(settings).live(new_world)
    without = old.another(settings.model_copy(update={"reaction_clicks": 0})).live(new_world)
    newcomer = Life(settings).live(new_world)
    level = float(np.mean(newcomer.hits[-after // 3 :]))
    alarms = [alarm.at - before for alarm in reacting.alarms]
    found = [recovery(life.hits, level) for life in (without, reacting, newcomer)]
    return Outcome(
        world.town.seed, before, len(old.alarms), min(alarms, default=np.inf), found[0], found[1], found[2], level
    )


def go_quiet(seed: int, clicks: int, town: Town, settings: Settings) -> int:
    torch.set_num_threads(settings.threads)
    return len(Life(settings).live(worlds.quiet(seed, town=town).clicks(clicks)).alarms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--before", type=int, default=20_000, help="clicks before the change")
    parser.add_argument("--after", type=int, default=3_000, help="clicks after it")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--items", type=int, default=160)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--long", type=int, default=0, help="clicks of one more quiet world")
    options = parser.parse_args()
    settings, town, began = load_settings(device="cpu"), Town(users=options.users, items=options.items), time.time()
    print("seed  quiet clicks  false alarms  alarm after  recovered: without  reacting  newcomer  (level)")
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
                f"{one.reacting:>8.0f}  {one.newcomer:>8.0f}  ({one.level:.3f})",
                flush=True,
            )
        if long is not None:
            print(f"one quiet world of {options.long:,} clicks: {long.result()} false alarms")
    delays = sorted(one.delay for one in outcomes)
    print(f"alarm after: median {np.median(delays):.0f}, at most {delays[-1]:.0f} clicks")
    print(f"false alarms: {sum(one.false_alarms for one in outcomes)} in {sum(one.quiet for one in outcomes):,} clicks")
    without, reacting, newcomer = (
        np.array([getattr(one, name) for one in outcomes]) for name in ("without", "reacting", "newcomer")
    )
    ratios = without / reacting
    print(f"recovery without / with reaction: median {np.median(ratios):.2f}, {ratios.min():.2f} to {ratios.max():.2f}")
    print(f"means: {without.mean():.0f} / {reacting.mean():.0f} clicks; newcomer {newcomer.mean():.0f}")
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
