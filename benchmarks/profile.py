"""Where a click's time goes, by stage: python -m benchmarks.profile [--file FILE] [--limit 20000]

A learner with the default settings learns the clicks of a file, or of a made-up town, as a backtest does, in
micro-batches and with lists. The first `--warm-up` clicks are not counted: tables and memories fill. Told is CPU time
(`time.process_time`, so other work on the machine does not count) in microseconds a click.

    --facts-only   facts alone, without weights: each click is asked for and then counted; clicks a second
    --scale        the time of a click with 10 times as many users and items, and as much history for each of them, as a
                   ratio; facts alone, and all of it
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import online.learner.ranking_model
from online.config.settings import Settings, load_settings
from online.evaluation.backtest_events import micro_batches, read_clicks
from online.evaluation.town import Town
from online.learner.facts.store import FeatureStore
from online.learner.facts.warm import warm_if_cold
from online.learner.learner import Learner
from online.learner.lists import ListRanker
from online.learner.objectives import NextItem, Objective
from online.learner.ranking_model import RankingModel
from online.learner.user_states import UserStates
from stream.event_files import EventFile
from stream.events import Click

AROUND = "Python around it"
FACTS = "facts: candidates, features, counting"
STATES = "the Reformer's states"
RECALL = "recall: soft counts"
SCORE = "first score, pruning"
RANKER = "ranker: inputs, forward"
RANKER_STEP = "ranker and recall: loss, backward, step"
NETWORK_STEP = "the Reformer: loss, backward, step"
LISTS = "lists: scores, views joined, names"
STAGES = (AROUND, FACTS, STATES, RECALL, SCORE, RANKER, RANKER_STEP, NETWORK_STEP, LISTS)


class Stages:
    """CPU seconds by stage. One that begins within another interrupts it, except within LISTS, which is told whole."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._going = [AROUND]
        self._since = 0.0

    def begin(self) -> None:
        """What came before does not count."""
        self._since = time.process_time()
        self.seconds.clear()

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Counts what happens inside, in this thread."""
        self.begin()
        with ExitStack() as patches:
            for owner, name, stage in (
                (FeatureStore, "advance", FACTS),
                (UserStates, "read", STATES),
                (UserStates, "rebuild", STATES),
                (online.learner.ranking_model, "soft_counts", RECALL),
                (RankingModel, "score", SCORE),
                (RankingModel, "inputs", RANKER),
                (ListRanker, "best_rows", LISTS),
                (ListRanker, "write", LISTS),
                (ListRanker, "test_served", LISTS),
            ):
                patches.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), stage)))
            patches.enter_context(patch.object(RankingModel, "train", self._timed_train(RankingModel.train)))
            yield
        self._book()

    def _timed(self, method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._within(stage):
                return method(*args, **kwargs)

        return timed

    def _timed_train(self, train: Callable[..., Any]) -> Callable[..., Any]:
        def timed(model: RankingModel, batch: Any, objectives: Sequence[Objective]) -> Any:
            guesses = any(isinstance(objective, NextItem) for objective in objectives)
            with self._within(NETWORK_STEP if guesses else RANKER_STEP):
                return train(model, batch, objectives)

        return timed

    @contextmanager
    def _within(self, stage: str) -> Iterator[None]:
        self._book()
        self._going.append(LISTS if self._going[-1] == LISTS else stage)
        try:
            yield
        finally:
            self._book()
            self._going.pop()

    def _book(self) -> None:
        now = time.process_time()
        self.seconds[self._going[-1]] += now - self._since
        self._since = now


def town(limit: int, times: int = 1) -> list[Click]:
    """`limit` clicks of a town; `times` as many users and items. Even in the smallest there are far more items than a
    list has candidates: else a larger one would only have more of these."""
    return list(Town(users=1_000 * times, items=4_000 * times, seed=0).clicks(limit))


def facts_seconds(clicks: Sequence[Click], settings: Settings, warm_up: int, *, lists: bool) -> float:
    """CPU seconds a click that facts alone take; with or without what lists are asked for."""
    learner = Learner(settings, lists=lists)
    taken, counted = 0.0, 0
    for batch in micro_batches(clicks, settings):
        begun = learner.preparer.begin([clicks[at] for at in batch], None)
        began = time.process_time()
        found = learner.preparer.gather(begun)
        if batch.start >= warm_up:
            taken, counted = taken + time.process_time() - began, counted + len(batch)
        learner.preparer.complete(begun, found)
    return taken / counted


def by_stage(clicks: Sequence[Click], settings: Settings, warm_up: int) -> dict[str, float]:
    """CPU seconds a click of each stage."""
    learner = Learner(settings)
    stages, counted = Stages(), 0
    with stages.measured():
        for batch in micro_batches(clicks, settings):
            if counted == 0:
                stages.begin()
            learner.learn([clicks[at] for at in batch])
            learner.states.rebuild()
            counted += len(batch) if batch.start >= warm_up else 0
    return {stage: stages.seconds[stage] / counted for stage in STAGES}


def show(found: dict[str, float]) -> None:
    """A line for each stage."""
    total = sum(found.values())
    for stage, seconds in found.items():
        print(f"{stage:<42} {1e6 * seconds:>8,.0f} {seconds / total:>7.1%}")
    print(f"{'all of it':<42} {1e6 * total:>8,.0f} us a click, {1 / total:,.0f} clicks/s on one core")


def show_facts(clicks: Sequence[Click], settings: Settings, warm_up: int) -> None:
    """Facts alone."""
    for what, lists in (("clicks alone", False), ("with what lists ask", True)):
        seconds = facts_seconds(clicks, settings, warm_up, lists=lists)
        print(f"facts, {what:<25} {1e6 * seconds:>8,.0f} us a click, {1 / seconds:,.0f} clicks/s on one core")


def show_scale(settings: Settings, limit: int) -> None:
    """Ten times as many users and items, each with as much history: so ten times as many clicks come first. The last
    tenth of the small town's clicks are measured, and as many of the large one's."""
    small, large = town(limit), town(10 * limit, 10)
    measured = limit // 10
    facts = [facts_seconds(clicks, settings, len(clicks) - measured, lists=True) for clicks in (small, large)]
    all_of_it = [sum(by_stage(clicks, settings, len(clicks) - measured).values()) for clicks in (small, large)]
    for what, (one, ten) in (("facts", facts), ("all of it", all_of_it)):
        print(f"{what:<12} {1e6 * one:>8,.0f} us a click, {1e6 * ten:>8,.0f} in ten times the town: {ten / one:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="clicks, as `nextclick backtest` reads them; none: a made-up town")
    parser.add_argument("--limit", type=int, default=20_000, help="clicks (with --scale, of the small town)")
    parser.add_argument("--warm-up", type=int, help="clicks that are not counted; a quarter of them by default")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--facts-only", action="store_true")
    kind.add_argument("--scale", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_if_cold(lambda line: print(line, file=sys.stderr))
    settings = load_settings(device="cpu")
    if options.scale:
        show_scale(settings, options.limit)
        return
    clicks = town(options.limit)
    if options.file is not None:
        clicks = read_clicks(EventFile(options.file), settings, options.limit).clicks
    warm_up = len(clicks) // 4 if options.warm_up is None else options.warm_up
    print(f"{len(clicks):,} clicks, the first {warm_up:,} of them not counted")
    if options.facts_only:
        show_facts(clicks, settings, warm_up)
    else:
        show(by_stage(clicks, settings, warm_up))


if __name__ == "__main__":
    main()
