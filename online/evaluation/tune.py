"""Finds settings that suit a stream: Optuna on its first part, judged on the rest.

The search goes through the first part of the clicks, again and again with other settings, and looks for the best
NDCG@10 (on request, as in a backtest: the first fifth of the part only trains). It is given no other click. Then the
settings found, and those that stood before, each go through all clicks once, test, then learn; scored are only the
events after the searched part. The settings found are kept where that says that they are better.

The first trial is the settings as they stand. So what is found is never worse than they are on the searched part.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from pydantic import ValidationError
from scipy.special import stdtrit

from online.config.settings import Settings
from online.evaluation.backtest import NEXTCLICK, RunResult
from online.evaluation.backtest_events import facts_of
from online.evaluation.feature_worth import FeatureWorth
from online.evaluation.tune_runs import Notes, Runs, TuneError
from online.metrics import hit_and_ndcg_at
from stream.events import Click

CONFIDENCE = 0.95  # of the interval that a gain has to lie in, above 0
CLICKS_MIN = 20  # fewer leave nothing to search on, or nothing to judge by
SEARCH, LATER = "search", "later clicks"

# A group of features can be left out where it adds less than so much of NDCG@10, and its interval ends below IDLE_MOST.
IDLE, IDLE_MOST = 0.002, 0.01

_DIGITS = 3  # of a value that is tried
_UNPRUNED_TRIALS = 5  # the first ones to reach the end, which the others are measured against
_UNPRUNED_STEPS = 4  # of `tune_runs.STEPS`; in the first two nothing is scored


class Parameter(NamedTuple):
    """One setting that is searched."""

    name: str
    kind: Literal["log-float", "int", "categorical"]  # int: on a log scale too
    values: tuple[Any, ...]  # lowest and highest; of a categorical one: all
    why: str

    def distribution(self, stands: Any) -> BaseDistribution:
        """Where it is looked for; the value that stands is always in it."""
        if self.kind == "categorical":
            return CategoricalDistribution(tuple(dict.fromkeys((*self.values, stands))))
        low, high = min(*self.values, stands), max(*self.values, stands)
        return IntDistribution(low, high, log=True) if self.kind == "int" else FloatDistribution(low, high, log=True)


#: What is searched: settings that move the quality of lists, and with which a worker's checkpoint can go on.
SPACE = (
    Parameter("learning_rate", "log-float", (1e-4, 1e-2), "how fast the network follows; too fast forgets"),
    Parameter("item_learning_rate", "log-float", (5e-3, 0.5), "the same of item vectors; sparse items want more"),
    Parameter("ranker_learning_rate", "log-float", (3e-4, 0.03), "how fast the weights of counts and recall adapt"),
    Parameter("recall_learning_rate", "log-float", (1e-3, 0.1), "the same of recall's gains"),
    Parameter("ranker_hidden", "categorical", (32, 64, 128), "more of them see more, and want more clicks"),
    Parameter("micro_batch_max", "categorical", (16, 32, 64, 128), "small: every list is fresher; large: cheaper"),
    Parameter("history_max", "int", (32, 512), "how long an old taste counts; memory follows it"),
)


class SearchProgress(NamedTuple):
    """How far `tune` is."""

    stage: str  # SEARCH, then LATER
    share: float  # of the stage, from 0 to 1
    trials: int  # that are over
    best: float  # NDCG@10 on the searched part so far; 0: none yet


OnProgress = Callable[[SearchProgress], None]


@dataclass(frozen=True)
class Found:
    """What the search gave. NDCG@10 is over the scored events of the searched part."""

    stood: dict[str, Any]  # the searched settings as they stand
    best: dict[str, Any]  # those of the best trial
    stood_ndcg: float
    best_ndcg: float
    trials: int  # without those that the end of the search cut off
    pruned: int  # trials that were given up early, being worse than most at that point
    seconds: float


class GroupWorth(NamedTuple):
    """What a group of features adds to the lists, by online/evaluation/feature_worth.py."""

    group: str
    added: float  # mean, as a share of NDCG@10
    wide: float  # half the width of its interval at `CONFIDENCE`; inf: one user only

    @property
    def idle(self) -> bool:
        """Whether it adds hardly anything, and it is known well enough that it does not add much."""
        return self.added < min(self.wide, IDLE) and self.added + self.wide < IDLE_MOST


class Figures(NamedTuple):
    """Means over the events after the searched part, and the speed of the whole run."""

    ndcg: float
    hit: float
    events_per_s: float


@dataclass(frozen=True)
class Tuned:
    """What was found, and what it is worth on the clicks after the searched part."""

    events: int
    searched: int  # the first ones of them
    found: Found
    stood: Figures
    best: Figures
    gain: float  # in NDCG@10, of the settings found over those that stand
    gain_error: float  # its standard error, clicks of one user taken together; inf if there is only one user
    users: int  # who made these clicks
    judging_s: float  # how long it took to go through all clicks, after the search
    features: tuple[GroupWorth, ...] = ()  # with the settings that are kept, what adds most first
    features_clicks: int = 0  # by which they were measured

    @property
    def interval(self) -> tuple[float, float]:
        """Where the gain lies, at `CONFIDENCE`: Student's t, because users may be few."""
        if math.isinf(self.gain_error):
            return -math.inf, math.inf
        wide = _wide(self.users) * self.gain_error
        return self.gain - wide, self.gain + wide

    @property
    def better(self) -> bool:
        """Whether the gain can be told from chance."""
        return self.interval[0] > 0

    @property
    def worse(self) -> bool:
        return self.interval[1] < 0

    @property
    def kept(self) -> dict[str, Any]:
        """The settings to go on with: those found where they are better on later clicks, else as they stand."""
        return self.found.best if self.better else self.found.stood


def tune(
    clicks: Sequence[Click],
    settings: Settings,
    *,
    share: float = 0.5,
    trials: int = 30,
    jobs: int = 1,
    timeout_s: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = lambda _: None,
) -> Tuned:
    """Searches on the first `share` (0.1 to 0.9) of the clicks and judges by the rest.

    The same clicks, settings (with their seed), trials and jobs give the same result, unless time runs out. After
    `timeout_s`, or when `stop` says so, the search ends with what it has; time never ends its first trial.

    Raises TuneError for too few clicks, and where `stop` comes before the end of the first trial or after the search.
    """
    if len(clicks) < CLICKS_MIN:
        raise TuneError(f"tune needs at least {CLICKS_MIN} clicks, the file has {len(clicks)}")
    searched = round(share * len(clicks))
    deadline = time.monotonic() + timeout_s
    search = _Search(clicks[:searched], settings, trials=trials, deadline=deadline, stop=stop, on_progress=on_progress)
    found = search.run(jobs)
    judging = time.monotonic()
    each = [settings] if found.best == found.stood else [settings, changed(settings, found.best)]
    ended_search = stop()  # then it says no more
    results = _through_all(
        clicks,
        each,
        jobs,
        searched=searched,
        stop=lambda: stop() and not ended_search,
        on_progress=lambda done: on_progress(SearchProgress(LATER, done, found.trials, found.best_ndcg)),
    )
    ranks = [one.ranks[NEXTCLICK][searched:] for one in results]
    (_, stood), (_, best) = hit_and_ndcg_at(ranks[0]), hit_and_ndcg_at(ranks[-1])
    users = facts_of(clicks).users[searched:]
    gain, error = _gain(best - stood, users)
    figures = [_figures(one, searched) for one in results]
    took_s = time.monotonic() - judging
    tuned = Tuned(len(clicks), searched, found, figures[0], figures[-1], gain, error, len(np.unique(users)), took_s)
    worth = results[-1 if tuned.better else 0].feature_worth
    assert worth is not None
    return replace(tuned, features=_groups(worth, users[worth.clicks - searched]), features_clicks=len(worth.clicks))


def changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Raises ValidationError where they do not fit together."""
    return Settings(**{**settings.model_dump(), **changes})


class _Search:
    """An Optuna study. Trials are asked for `jobs` at a time and told of in order: so timing decides nothing."""

    def __init__(
        self,
        clicks: Sequence[Click],
        settings: Settings,
        *,
        trials: int,
        deadline: float,
        stop: Callable[[], bool],
        on_progress: OnProgress,
    ) -> None:
        self.clicks, self.settings, self.trials = clicks, settings, trials
        self._first_scored = facts_of(clicks).first_scored
        self._deadline, self._stop, self._on_progress = deadline, stop, on_progress
        self._stood = {parameter.name: getattr(settings, parameter.name) for parameter in SPACE}
        self._space = {one.name: one.distribution(self._stood[one.name]) for one in SPACE}
        self._over = 0  # trials that ended, in any way
        self._best = 0.0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=settings.seed),
            pruner=optuna.pruners.MedianPruner(_UNPRUNED_TRIALS, _UNPRUNED_STEPS),
        )
        self._study.enqueue_trial(self._stood)

    def run(self, jobs: int) -> Found:
        began = time.monotonic()
        with Runs.over(self.clicks, jobs) as runs:
            while self._over < self.trials and not self._ends(self._over):
                asked_trials = [self._study.ask(self._space) for _ in range(min(jobs, self.trials - self._over))]
                self._go(runs, asked_trials)
        trials = self._study.trials
        if not trials or trials[0].state != TrialState.COMPLETE:
            raise TuneError("stopped before the present settings were measured: there is nothing to compare with")
        best = self._study.best_trial
        return Found(
            stood=self._stood,
            best=self._values(best.params),
            stood_ndcg=trials[0].values[0],
            best_ndcg=best.values[0],
            trials=sum(trial.state != TrialState.FAIL for trial in trials),
            pruned=sum(trial.state == TrialState.PRUNED for trial in trials),
            seconds=time.monotonic() - began,
        )

    def _go(self, runs: Runs, asked_trials: Sequence[optuna.Trial]) -> None:
        trials, each = [], []
        for trial in asked_trials:
            try:
                each.append(changed(self.settings, self._values(trial.params)))
                trials.append(trial)
            except ValidationError:  # settings that do not fit together
                self._study.tell(trial, state=TrialState.PRUNED)
        reported, pruned = dict.fromkeys(range(len(trials)), 0), set()

        def watch(notes: Sequence[Notes]) -> None:
            for place, (trial, so_far) in enumerate(zip(trials, notes, strict=True)):
                for ndcg in so_far.curve[reported[place] :]:
                    if place not in pruned:
                        reported[place] += 1
                        trial.report(ndcg, reported[place])
                        if trial.should_prune():
                            pruned.add(place)
                so_far.stop = place in pruned or self._ends(trial.number)
            done = sum(so_far.events for so_far in notes) / len(self.clicks)
            self._on_progress(SearchProgress(SEARCH, (self._over + done) / self.trials, self._over, self._best))

        for place, (trial, result) in enumerate(zip(trials, runs.go(each, watch), strict=True)):
            if place in pruned:
                self._study.tell(trial, state=TrialState.PRUNED)
            elif result is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                ndcg = float(hit_and_ndcg_at(result.ranks[NEXTCLICK][self._first_scored :])[1].mean())
                self._study.tell(trial, ndcg)
                self._best = max(self._best, ndcg)
        self._over += len(asked_trials)

    def _ends(self, trial: int) -> bool:
        return self._stop() or (trial > 0 and time.monotonic() > self._deadline)

    def _values(self, params: dict[str, Any]) -> dict[str, Any]:
        """What a trial sets: rounded, so that it is easy to read; what stands stays what it is."""
        return {
            name: value if value == self._stood[name] or not isinstance(value, float) else _rounded(value)
            for name, value in params.items()
        }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _through_all(
    clicks: Sequence[Click],
    each: Sequence[Settings],
    jobs: int,
    *,
    searched: int,
    stop: Callable[[], bool],
    on_progress: Callable[[float], None],
) -> list[RunResult]:
    """Each settings' run over all clicks, at most `jobs` beside each other. `on_progress` gets the share done."""
    results: list[RunResult] = []

    def watch(notes: Sequence[Notes]) -> None:
        for so_far in notes:
            so_far.stop = stop()
        done = sum(so_far.events for so_far in notes) / len(clicks)
        on_progress((len(results) + done) / len(each))

    together = min(jobs, len(each))
    with Runs.over(clicks, together) as runs:
        for start in range(0, len(each), together):
            ended = runs.go(each[start : start + together], watch, searched)
            results += [one for one in ended if one is not None]
            if None in ended:
                raise TuneError("stopped before the settings found were evaluated on later clicks")
    return results


def _figures(result: RunResult, searched: int) -> Figures:
    ranks = result.ranks[NEXTCLICK]
    hit, ndcg = hit_and_ndcg_at(ranks[searched:])
    return Figures(float(ndcg.mean()), float(hit.mean()), len(ranks) / result.seconds)


def _groups(worth: FeatureWorth, users: NDArray[np.int64]) -> tuple[GroupWorth, ...]:
    """What each group adds; `users` (n,) of the clicks by which it was measured."""
    ndcg = float(worth.ndcg.mean()) if len(worth.ndcg) else 0.0
    if not ndcg:
        return ()
    found = []
    for group, differences in zip(worth.groups, worth.added.T, strict=True):
        mean, error = _gain(differences, users)
        found.append(GroupWorth(group, mean / ndcg, _wide(len(np.unique(users))) * error / ndcg))
    return tuple(sorted(found, key=lambda one: -one.added))


def _wide(users: int) -> float:
    """Half of an interval's width at `CONFIDENCE`, in standard errors."""
    return float(stdtrit(max(1, users - 1), 0.5 + CONFIDENCE / 2))


def _gain(differences: NDArray[np.float64], users: NDArray[np.int64]) -> tuple[float, float]:
    """Mean of the differences (n,), and its standard error where each of the users (n,) is drawn as a whole."""
    mean = float(differences.mean())
    _, numbers = np.unique(users, return_inverse=True)
    sums = np.bincount(numbers, differences - mean)
    n_users = len(sums)
    if n_users == 1:
        return mean, math.inf
    return mean, math.sqrt(float((sums**2).sum()) * n_users / (n_users - 1)) / len(differences)
