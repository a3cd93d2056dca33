"""Test, then learn, over a stream of clicks: how well each is predicted, by the learner and by counting.

The measure. The first fifth of the events only trains; each later one is scored. A click's rank is the place (from 0)
of its item among all items that occurred earlier in the stream, less those this user has had already where seen items
are excluded; half of the ties count as ahead. An item that never occurred before is a miss, unless a method lists it
all the same; an excluded one is a miss. hit@10 and NDCG@10 follow from the rank, averaged over all scored events.

The order. Counting methods learn every single click before the next one. Learners get micro-batches (see
`micro_batches`), as a worker would that always finds clicks waiting. Counts are exact: each click is
predicted, and then counted, before the next. Weights lag by a step of some clicks, the Reformer's by a batch.
So no prediction uses the click itself or a later one. Time is stream time: the latest timestamp so far.

As served. The list in front of a user is the one written after their last click, or when it was last refreshed: when
its age passed a mark (`refresh_ages_s`). It is ranked at the moment at which it falls due, from the clicks that had
come by then. A user without a list, or with one older than `list_ttl_s`, is shown the popular one.

Letters: `n` events, `N` events of a micro-batch.
"""

import heapq
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.formula import P_CLICK
from online.config.settings import Settings
from online.evaluation import baselines
from online.evaluation.backtest_events import EACH, Facts, facts_of, micro_batches, next_clicks, stream_times
from online.evaluation.backtest_items import ItemSchedule, ReadItems
from online.evaluation.backtest_processes import go_together
from online.evaluation.backtest_tuning import Tuning
from online.evaluation.baselines import Baselines
from online.evaluation.calibration import FirstItems
from online.evaluation.feature_worth import FeatureTrial, FeatureWorth
from online.evaluation.worth import PredictedWorth, ReturnedItems
from online.learner.batches import BatchResult, Impression
from online.learner.learner import Learner
from online.learner.lookahead import UpcomingBatch
from online.learner.return_times import marks_passed
from online.learner.stream_time import ActiveClock
from online.metrics import hit_and_ndcg_at, ranks_in
from stream.events import Click
from stream.users import User

NEXTCLICK, AS_SERVED = "nextclick", "nextclick-as-served"
ONE_OBJECTIVE = "nextclick-one-objective"
#: The same learner with settings changed, run beside it to see what it loses.
ABLATIONS: dict[str, dict[str, Any]] = {
    "nextclick-without-state": {"deep_state": False},
    "nextclick-without-reformer": {"reformer": False},
    "nextclick-without-content": {"content": False},
    ONE_OBJECTIVE: {"event_weights": "", "value_as_worth": False, "objective": P_CLICK},
}
#: Likewise, where something is known of users.
USERS_ABLATIONS: dict[str, dict[str, Any]] = {"nextclick-without-users": {"users_topic": None}}
ALL_METHODS = (NEXTCLICK, AS_SERVED, *ABLATIONS, *baselines.METHODS)
ALL_METHODS_WITH_USERS = (NEXTCLICK, AS_SERVED, *ABLATIONS, *USERS_ABLATIONS, *baselines.METHODS)
METHODS = tuple(method for method in ALL_METHODS if method != ONE_OBJECTIVE)  # where no objective is set
COUNTING = "counting"  # the run that all counting methods share

_COUNTED_AT_ONCE = 500  # events between two reports of progress

Ranks = NDArray[np.float64]
#: Called with a run's name, the events it is through, and its NDCG@10 so far (of counting: the best one's).
OnProgress = Callable[[str, int, float], None]
#: Called with a micro-batch, and what a learner made of it.
OnLearned = Callable[[range, BatchResult], None]


class Plan(NamedTuple):
    """A micro-batch that is going to be learned."""

    batch: range
    clicks: Sequence[Click]
    due: list[tuple[int, float, float, int]]  # lists that fall due meanwhile: as `LearnerRun._due` holds them
    impressions: list[Impression] | None  # the same for the learner; None: no lists are ranked


class LearnerRun:
    """One learner going through a stream, and the lists that a worker would have kept in Redis.

    A worker would write more lists than are ranked here: of those that no user views before the next one is written,
    only their number is kept.
    """

    def __init__(
        self,
        settings: Settings,
        clicks: Sequence[Click],
        *,
        lists: bool = True,
        finetune_every: int = 0,
        items: ReadItems | None = None,
        users: Sequence[User] = (),
        on_learned: OnLearned = lambda *_: None,
    ) -> None:
        """
        Args:
            settings: of the learner.
            clicks: the stream.
            lists: whether lists are wanted at all; without, every rank as served is inf, and nothing is refreshed.
            finetune_every: clicks between two fine-tunings, which go through the gate; 0: none.
            items: what is known of items. None: nothing, and the site's rule, which would exclude most, does not hold.
            users: what is known of users beforehand; used where the settings name a topic of users.
            on_learned: called with each micro-batch, and what the learner made of it.
        """
        self.settings = settings
        self.clicks = clicks
        self.lists = lists
        changes = {"list_filter": None} if items is None else {}
        self.learner = Learner(settings.model_copy(update=changes), lists=False)
        self.tuning = Tuning(settings, self.learner, finetune_every) if finetune_every else None
        self.times = stream_times(clicks)
        self._active = ActiveClock().update_all(click.timestamp for click in clicks)
        self._on_learned = on_learned
        self.excluded = np.zeros(len(clicks), bool)  # by the site's rule, when the click came
        self._items = None if items is None else ItemSchedule(items, self.times[0], self.times[-1])
        if self._items is not None:
            self.learner.put_items(self._items.before)
        if self.learner.groups is not None:
            for user in users:
                self.learner.groups.put(user)
        self.refreshes = 0  # as many as a worker's
        self._next = next_clicks(clicks)
        # A heap: clicks that have come, the active time, the moment, and the click that will look.
        self._due: list[tuple[int, float, float, int]] = []
        self._standing: dict[int, NDArray[np.int64]] = {}  # by the click that will look at it: a list's first rows

    def step(self, batch: range) -> tuple[Ranks, NDArray[np.int64], Ranks]:
        """One micro-batch: see `steps`."""
        return next(self.steps([batch]))

    def steps(self, batches: Iterable[range]) -> Iterator[tuple[Ranks, NDArray[np.int64], Ranks]]:
        """Micro-batches, as numbers of clicks: foresees each, writes the lists that fall due in between, learns it.

        Yields ranks on request, numbers of candidates, and ranks as served; (N,) each, as in `BatchResult`.
        """
        order = iter(batches)
        batch, planned = next(order, None), self._plan
        plan = None if batch is None else planned(batch)
        while plan is not None:
            after = next(order, None)
            following: list[Plan] = []

            def announce(after: range | None = after, following: list[Plan] = following) -> UpcomingBatch:
                assert after is not None
                following.append(planned(after))
                return UpcomingBatch(following[0].clicks, following[0].impressions)

            # Fine-tuning reads histories between two micro-batches: then they are learned in turn.
            ahead = announce if after is not None and self.tuning is None else None
            train = not self.learner.frozen
            learned = self.learner.learn(plan.clicks, plan.impressions, train=train, following=ahead)
            yield self._yielded(plan, learned)
            plan = following[0] if following else None if after is None else planned(after)

    def _yielded(self, plan: Plan, learned: BatchResult) -> tuple[Ranks, NDArray[np.int64], Ranks]:
        self._on_learned(plan.batch, learned)
        if self.tuning is not None:
            self.tuning.after(plan.clicks, learned)
        if learned.impressions is None:
            return learned.ranks, learned.candidates, learned.served_ranks
        *lists, anybodys = learned.impressions
        self._standing |= {look: rows for (*_, look), rows in zip(plan.due, lists, strict=True)}
        stood = np.stack([self._standing.pop(at, anybodys) for at in plan.batch])
        return learned.ranks, learned.candidates, ranks_in(stood, learned.targets)

    def _plan(self, batch: range) -> Plan:
        """What a micro-batch brings, and the lists that fall due while it comes in."""
        clicks = self.clicks[batch.start : batch.stop]
        self._put_items(batch)
        if not self.lists:
            return Plan(batch, clicks, [], None)
        for at in batch:
            self._schedule(at)
        due = []
        while self._due and self._due[0][0] <= batch.stop:
            due.append(heapq.heappop(self._due))
        impressions = [
            Impression(self.clicks[look].user_id, position - batch.start, written_at, active)
            for position, active, written_at, look in due
        ]
        return Plan(batch, clicks, due, impressions)

    def _put_items(self, batch: range) -> None:
        """Items published by a micro-batch's first click are known before it is gathered."""
        if self._items is None:
            return
        if published := self._items.take(self.times[batch.start]):
            self.learner.put_items(published)
        if self.learner.listable.rule is not None:
            excludes = self.learner.listable.excludes
            self.excluded[batch.start : batch.stop] = [excludes(self.clicks[at].item_id) for at in batch]

    def _schedule(self, at: int) -> None:
        """Counts the refreshes of the list that a click gives, until its owner's next click or the end; and notes when
        the one that is then looked at is written, if it still stands by then."""
        active, following = self._active, self._next[at]
        away_s = active[min(following, len(active) - 1)] - active[at]  # lists age in active time
        self.refreshes += int(marks_passed(self.learner.returns.marks(), away_s))
        if following < len(active):
            age_s = float(self.learner.returns.written(np.array([away_s]))[0])
            due = active[at] + age_s
            position = max(at + 1, bisect_right(active, due, at + 1, following))
            written_at = max(self.times[at], self.times[position - 1] + due - active[position - 1])
            if self.times[following] - written_at <= self.settings.list_ttl_s:
                heapq.heappush(self._due, (position, due, self.times[at] + age_s, following))


class RunInput(NamedTuple):
    """What every run goes through."""

    clicks: Sequence[Click]
    facts: Facts
    settings: Settings
    finetune_every: int = 0  # clicks between two fine-tunings of a learner; 0: none
    items: ReadItems | None = None  # what learners get to know of items
    users: Sequence[User] = ()  # and of users
    features_from: int | None = None  # the click from which on it is measured what features add; None: it is not


class Run(NamedTuple):
    """Methods that come from going through the stream once, and the settings to change for it."""

    name: str
    methods: list[str]
    overrides: dict[str, Any]


class RunResult(NamedTuple):
    """What one run gave."""

    ranks: dict[str, Ranks]  # of each method: (n,); inf: a miss, or not scored
    among_candidates: NDArray[np.bool_] | None  # (n,) whether a learner had the clicked item among its candidates
    batches: int
    refreshes: int
    seconds: float
    first_items: FirstItems | None = None  # of a learner's lists on request
    predicted: PredictedWorth | None = None  # of a learner that predicts what clicks are worth
    returned: ReturnedItems | None = None  # where event types have a negative weight
    feature_worth: FeatureWorth | None = None  # of a learner, where it was wanted


@dataclass(frozen=True)
class Outcome:
    """What all runs gave."""

    facts: Facts
    exclude_seen: bool
    results: dict[str, RunResult]  # by run
    seconds: float  # for everything, runs beside each other counted once
    ranks: dict[str, Ranks] = field(default_factory=dict)  # of each method: (n,)
    baskets: str = EACH  # which lines of a basket are scored

    def scored(self, method: str) -> Ranks:
        """Ranks (scored,) of the events that count."""
        return self.ranks[method][self.facts.counted]


def usual_methods(settings: Settings, every: Sequence[str] = ALL_METHODS) -> tuple[str, ...]:
    """Those of the methods that are run where none are named: the ablation of objectives only where some are set."""
    return tuple(method for method in every if settings.predicts_worth or method != ONE_OBJECTIVE)


def runs_of(methods: Sequence[str]) -> list[Run]:
    """The runs that the methods take, longest first: what differs in nothing is run once."""
    runs: list[Run] = []
    for method in methods:
        if method not in baselines.METHODS:
            overrides = (ABLATIONS | USERS_ABLATIONS).get(method, {})
            same = next((run for run in runs if run.overrides == overrides), None)
            if same is None:
                runs.append(Run(method, [method], overrides))
            else:
                same.methods.append(method)
    counted = [method for method in methods if method in baselines.METHODS]
    return runs + ([Run(COUNTING, counted, {})] if counted else [])


def backtest(
    clicks: Sequence[Click],
    settings: Settings,
    *,
    methods: Sequence[str] = METHODS,
    jobs: int = 1,
    finetune_every: int = 0,
    items: ReadItems | None = None,
    users: Sequence[User] = (),
    baskets: str = EACH,
    features_from: int | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Outcome:
    """Runs the methods over the clicks, at most `jobs` processes beside each other; the figures do not depend on it.

    `items`: what learners get to know of items; `users`: of users, beforehand. `baskets`: which lines of a basket are
    scored (`BASKETS`). `features_from`: the click from which on it is measured what features add; None: it is not.

    Raises BacktestError for too few clicks.
    """
    began = time.perf_counter()
    facts, runs = facts_of(clicks, baskets), runs_of(methods)
    run_input = RunInput(clicks, facts, settings, finetune_every, items, users, features_from)
    if jobs == 1 or len(runs) == 1:
        results = {run.name: _go(run, run_input, on_progress) for run in runs}
    else:
        results = go_together(_go, runs, run_input, min(jobs, len(runs)), on_progress)
    ranks = {method: by_method for one in results.values() for method, by_method in one.ranks.items()}
    seconds = time.perf_counter() - began
    by_method = {method: ranks[method] for method in methods}
    return Outcome(facts, settings.exclude_seen, results, seconds, by_method, baskets)


def _go(run: Run, run_input: RunInput, on_progress: OnProgress) -> RunResult:
    return (_count if run.name == COUNTING else _learn)(run, run_input, on_progress)


def _count(run: Run, run_input: RunInput, on_progress: OnProgress) -> RunResult:
    began = time.perf_counter()
    facts, n = run_input.facts, len(run_input.clicks)
    counting = Baselines(exclude_seen=run_input.settings.exclude_seen)
    ranks = np.full((n, len(baselines.METHODS)), np.inf)
    gained = np.zeros(len(baselines.METHODS))
    for start in range(0, n, _COUNTED_AT_ONCE):
        part = slice(start, min(start + _COUNTED_AT_ONCE, n))
        both = zip(facts.users[part].tolist(), facts.items[part].tolist(), strict=True)
        for at, (user, item) in enumerate(both, start):
            if at >= facts.first_scored:
                ranks[at] = counting.ranks(user, item)
            counting.learn(user, item)
        gained += hit_and_ndcg_at(ranks[part][facts.counted[part]])[1].sum(0)
        on_progress(run.name, part.stop, float(gained.max()) / max(1, facts.scored_by(part.stop)))
    found = {method: ranks[:, baselines.METHODS.index(method)] for method in run.methods}
    return RunResult(found, None, n, 0, time.perf_counter() - began)


def _learn(run: Run, run_input: RunInput, on_progress: OnProgress) -> RunResult:
    began = time.perf_counter()
    clicks, facts = run_input.clicks, run_input.facts
    settings = Settings(**{**run_input.settings.model_dump(), **run.overrides})
    torch.set_num_threads(settings.threads)
    lists = AS_SERVED in run.methods
    first_items = FirstItems(len(clicks))
    predicted = PredictedWorth(len(clicks), settings) if settings.predicts_worth else None
    returned = ReturnedItems(clicks, run_input.settings, facts.first_scored)

    def on_learned(batch: range, learned: BatchResult) -> None:
        first_items.add(batch, learned)
        if predicted is not None:
            predicted.add(batch, learned)
        returned.after(batch, going.learner)
        if features is not None:
            features.after(batch, learned)

    going = LearnerRun(
        settings, clicks, lists=lists, finetune_every=run_input.finetune_every, items=run_input.items,
        users=run_input.users, on_learned=on_learned,
    )  # fmt: skip
    since = run_input.features_from
    features = None if since is None else FeatureTrial(going.learner, since)
    ranks, served = np.full((2, len(clicks)), np.inf)
    among = np.zeros(len(clicks), bool)
    batches, gained = 0, 0.0
    each = list(micro_batches(clicks, settings))
    for batch, (candidate_ranks, candidates, served_ranks) in zip(each, going.steps(each), strict=True):
        part = slice(batch.start, batch.stop)
        served[part] = served_ranks
        ranks[part] = complete(facts, part, candidate_ranks, candidates, exclude_seen=settings.exclude_seen)
        ranks[part][going.excluded[part]] = np.inf  # no list may hold it
        among[part] = np.isfinite(candidate_ranks)
        batches += 1
        gained += float(hit_and_ndcg_at(ranks[part][facts.counted[part]])[1].sum())
        on_progress(run.name, part.stop, gained / max(1, facts.scored_by(part.stop)))
    if settings.exclude_seen:
        served[facts.repeated] = np.inf
    found = {method: served if method == AS_SERVED else ranks for method in run.methods}
    worth = None if features is None else features.result()
    return RunResult(
        found, among, batches, going.refreshes, time.perf_counter() - began, first_items, predicted, returned, worth
    )


def complete(facts: Facts, part: slice, ranks: Ranks, candidates: NDArray[np.int64], *, exclude_seen: bool) -> Ranks:
    """Ranks (N,) among candidates -> among all items that occurred: the others stand tied behind the candidates."""
    possible = facts.known[part] - (facts.had[part] if exclude_seen else 0)
    others = np.maximum(possible - candidates, 1)  # the clicked item at least
    missed = (facts.earlier_of_item[part] == 0) & np.isinf(ranks)  # unless it was a candidate without any click
    ranks = np.where(np.isfinite(ranks), ranks, candidates + (others - 1) / 2)
    if exclude_seen:
        missed = missed | facts.repeated[part]
    return np.where(missed, np.inf, ranks)
