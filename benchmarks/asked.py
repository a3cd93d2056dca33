"""How well a question is answered just before each click: python -m benchmarks.asked FILE [--limit N] [--every 10]

The stream is tested and then learned as a backtest does it. Every so many scored clicks the micro-batch ends before the
click, and the learner is asked at that moment:

- `asked`: the user's list, against the rank that the backtest gives the same clicks on request;
- `reranked`: 100 given candidates, the clicked item and 99 drawn by their clicks so far, against the counting methods
  that rank the same ones;
- `recent`: the list of a visitor who has no history here and sends the user's latest items with their times, and
  `recent without times`, against `asked`.

Told is NDCG@10 of each, over the same clicks, and the ratios with their standard errors (a click is a pair). The
largest difference between an item's score and the sum of what explains it is told with --explain.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from online.commands.file_options import open_file
from online.config.settings import Settings, load_settings
from online.evaluation import baselines
from online.evaluation.backtest import LearnerRun, complete
from online.evaluation.backtest_events import Facts, facts_of, micro_batches, read_clicks
from online.evaluation.baselines import Baselines
from online.learner.asking import Question, RecentClick
from online.metrics import hit_and_ndcg_at
from stream.events import Click

CANDIDATES = 100
SENT_MAX = 50  # latest items that a visitor sends
Ranks = NDArray[np.float64]


@dataclass
class Found:
    """Ranks of the clicked items, by name; and of reranking by each counting method (6,)."""

    ranks: dict[str, list[float]] = field(default_factory=dict)
    counted: list[Ranks] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)

    def add(self, name: str, rank: float) -> None:
        self.ranks.setdefault(name, []).append(rank)


class Candidates:
    """Draws candidates: the clicked item, and others by their clicks so far, in an order that tells nothing."""

    def __init__(self, counting: Baselines, facts: Facts) -> None:
        self.counting, self.facts, self.random = counting, facts, np.random.default_rng(0)

    def draw(self, at: int, had: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns numbers of items (C,). `had`: what cannot be listed."""
        weights = self.counting.clicks().copy()
        item = int(self.facts.items[at])
        weights[had] = 0
        if item < len(weights):
            weights[item] = 0
        count = min(CANDIDATES - 1, int((weights > 0).sum()))
        others = self.random.choice(len(weights), count, replace=False, p=weights / weights.sum())
        return self.random.permutation(np.append(others, item))


def rank_of(items: Sequence[str], item: str) -> float:
    """The place of an item, from 0; inf where it is not listed."""
    return float(items.index(item)) if item in items else math.inf


def split(batches: Sequence[range], asked: set[int]) -> list[range]:
    """Ends micro-batches before the clicks that are asked about."""
    found = []
    for batch in batches:
        cuts = [batch.start, *sorted(asked & set(batch[1:])), batch.stop]
        found += [range(start, stop) for start, stop in pairwise(cuts)]
    return found


def go(clicks: Sequence[Click], settings: Settings, every: int, *, explain: bool) -> Found:
    """Goes through the stream."""
    facts, found = facts_of(clicks), Found()
    run = LearnerRun(settings, clicks, lists=False)
    counting = Baselines(exclude_seen=settings.exclude_seen)
    candidates = Candidates(counting, facts)
    names = list(dict.fromkeys(click.item_id for click in clicks))
    latest: dict[str, list[RecentClick]] = {}
    had: dict[str, set[int]] = {}
    asked = set(range(facts.first_scored, len(clicks), every))
    if settings.exclude_seen:
        asked -= set(np.flatnonzero(facts.repeated).tolist())  # a miss by definition
    for batch in split(list(micro_batches(clicks, settings)), asked):
        start = batch.start
        if start in asked:
            click, missed = clicks[start], facts.earlier_of_item[start] == 0
            own = had.get(click.user_id, set()) if settings.exclude_seen else set()
            given = candidates.draw(start, np.array(sorted(own), np.int64))
            sent, at = latest.get(click.user_id, [])[-SENT_MAX:], float(run.times[start])
            seen = tuple(names[item] for item in own)
            questions = [
                Question(click.user_id, at=at, k=settings.list_size, explain=explain),
                Question(click.user_id, at=at, k=CANDIDATES, candidates=[names[item] for item in given]),
                Question(None, sent, at, settings.list_size, exclude=seen),
                Question(None, [RecentClick(one.item_id) for one in sent], at, settings.list_size, exclude=seen),
            ]
            answers = run.learner.answerer.answer(questions)
            kinds = ("asked", "reranked", "recent", "recent without times")
            for kind, answer in zip(kinds, answers, strict=True):
                found.add(kind, math.inf if missed else rank_of(answer.items, click.item_id))
            for one in answers[0].explanations or ():
                found.residuals.append(abs(sum(one["contributions"].values()) - one["difference"]))
            scores = counting.scores(int(facts.users[start]))
            found.counted.append(_counted(scores, given, int(facts.items[start])))
        ranks, among, _ = run.step(batch)
        if start in asked:
            whole = complete(facts, slice(start, batch.stop), ranks, among, exclude_seen=settings.exclude_seen)
            found.add("backtest", float(whole[0]))
        for at_ in batch:
            click = clicks[at_]
            counting.learn(int(facts.users[at_]), int(facts.items[at_]))
            latest.setdefault(click.user_id, []).append(RecentClick(click.item_id, float(run.times[at_])))
            had.setdefault(click.user_id, set()).add(int(facts.items[at_]))
    return found


def _counted(scores: NDArray[np.float64], given: NDArray[np.int64], item: int) -> Ranks:
    """Ranks of the clicked item among the candidates by each method, half of the ties ahead; a new one is a miss."""
    if item >= scores.shape[1]:
        return np.full(len(scores), np.inf)
    own, others = scores[:, [item]], scores[:, given[given != item]]
    return (others > own).sum(1) + (others == own).sum(1) / 2


def ratio(ranks: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """NDCG@10 of both, their ratio, and its standard error (delta method over pairs)."""
    mine, theirs = (hit_and_ndcg_at(np.array(one))[1] for one in (ranks, others))
    quotient = mine.mean() / theirs.mean()
    error = (mine - quotient * theirs).std() / math.sqrt(len(mine)) / theirs.mean()
    return {
        "ndcg": round(float(mine.mean()), 4), "of": round(float(theirs.mean()), 4),
        "ratio": round(float(quotient), 4), "standard_error": round(float(error), 4),
    }  # fmt: skip


def report(found: Found) -> dict[str, object]:
    """All figures."""
    counted = np.array(found.counted)  # (n, 6)
    best = int(hit_and_ndcg_at(counted)[1].mean(0).argmax())
    ranks = found.ranks
    lines: dict[str, object] = {
        "clicks": len(ranks["asked"]),
        "asked / backtest": ratio(ranks["asked"], ranks["backtest"]),
        f"reranked / {baselines.METHODS[best]}": ratio(ranks["reranked"], counted[:, best].tolist()),
        "recent / asked": ratio(ranks["recent"], ranks["asked"]),
        "recent without times / asked": ratio(ranks["recent without times"], ranks["asked"]),
    }
    if found.residuals:
        lines["explained items"], lines["largest residual"] = len(found.residuals), max(found.residuals)
    return lines


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--every", type=int, default=10, help="scored clicks between two that are asked about")
    parser.add_argument("--exclude-seen", action="store_true")
    parser.add_argument("--explain", action="store_true", help="explain the lists too, and sum up")
    given = parser.parse_args()
    settings = load_settings(exclude_seen=given.exclude_seen)
    clicks = read_clicks(open_file(given.file, None, None, None, None), settings, given.limit).clicks
    print(json.dumps(report(go(clicks, settings, given.every, explain=given.explain)), indent=2))


if __name__ == "__main__":
    main()
