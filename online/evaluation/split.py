"""Train and test as papers split them: learn from one part of a file, then predict the other.

A click of the test part is scored if its user clicked before: so each prefix of a session predicts its next item, as in
the code of SR-GNN (Wu et al. 2019) and those that followed it. It is scored twice:

- frozen: after the train part nothing is counted and nothing is learned. Test clicks only enter their users' histories.
- learning on: each test click is predicted first, and then counted and learned, as a worker does.

A click's rank is the place (from 0) of its item among all items that occurred: frozen in the train part, learning on
before the click. Half of the ties count as ahead; an item that never occurred there is a miss.

Letters: `n` clicks of both parts, `N` clicks of a micro-batch.
"""

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.settings import Settings
from online.evaluation import baselines
from online.evaluation.backtest import COUNTING, NEXTCLICK, LearnerRun, OnProgress, Ranks, Run, complete, runs_of
from online.evaluation.backtest_events import BacktestError, Facts, Read, facts_of, micro_batches
from online.evaluation.backtest_processes import go_together
from online.evaluation.baselines import Baselines
from online.learner.learner import Learner
from online.metrics import Measure
from stream.event_files import EventFile
from stream.event_files.errors import EventFileError
from stream.events import Click

TRAIN, TEST = "train", "test"  # values of the column
FROZEN, LEARNING_ON = "frozen", "learning_on"
METHODS = (NEXTCLICK, *baselines.METHODS)  # that are run where none are named
_TOLD_EACH = 500  # clicks between two reports of progress


class Split(NamedTuple):
    """The clicks of both parts, each in the order of the file."""

    clicks: Sequence[Click]  # those of the train part, then those of the test part
    train: int
    others: Counter[str]  # values of the column that name neither part, with how many clicks they leave out


class SplitInput(NamedTuple):
    """What every run goes through."""

    split: Split
    facts: Facts
    settings: Settings
    depth: int  # ranks from it on are inf


class SplitResult(NamedTuple):
    """The ranks of one run's methods, (n - train,) each: of all test clicks, by how they were predicted."""

    ranks: dict[str, dict[str, Ranks]]


def read_split(file: EventFile, read: Read, column: str) -> Split:
    """Splits clicks by a column of their file.

    Args:
        file: the clicks' file.
        read: its clicks.
        column: of the file, whose cells are `train` or `test`; rows with others are left out.

    Raises:
        EventFileError: there is no such column.
        BacktestError: no click is of one of the parts, or no test click has an earlier one of its user.
    """
    try:
        cells = [_cell(message.value) for message in file.with_columns({"event_type": column}).messages()]
    except EventFileError as error:
        raise EventFileError(str(error).replace("(--columns)", "(--split-column)")) from None
    parts: dict[str, list[Click]] = {TRAIN: [], TEST: []}
    others: Counter[str] = Counter()
    for click, row in zip(read.clicks, read.rows, strict=True):
        cell = cells[row - 1]
        if cell in parts:
            parts[cell].append(click)
        else:
            others[cell] += 1
    for name, clicks in parts.items():
        if not clicks:
            found = ", ".join(repr(one) for one, _ in others.most_common(5)) or repr(TRAIN if name == TEST else TEST)
            raise BacktestError(
                f"--split-column {column}: no click of the {len(read.clicks):,} is of {name!r} (there is {found})"
            )
    return Split(parts[TRAIN] + parts[TEST], len(parts[TRAIN]), others)


def _cell(value: bytes) -> str:
    """What stands in the column that is read in place of the event type."""
    try:
        fields = json.loads(value)
    except ValueError:
        return ""
    return str(fields.get("event_type", "")).strip().lower() if isinstance(fields, dict) else ""


def evaluate(
    split: Split,
    settings: Settings,
    measures: Sequence[Measure],
    *,
    methods: Sequence[str] = METHODS,
    jobs: int = 1,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, Any]:
    """Learns from the train part, and predicts the test part: frozen, and learning on.

    Args:
        split: the clicks.
        settings: of the learners.
        measures: what is computed of the ranks.
        methods: of METHODS, and the ablations of a backtest.
        jobs: runs beside each other at most; the figures do not depend on it.
        on_progress: called now and then with a run's name, and the clicks that it is through.

    Returns:
        The figures, for JSON: means over the scored test clicks, rounded to five digits.

    Raises:
        BacktestError: no test click has an earlier one of its user.
    """
    began = time.perf_counter()
    facts = facts_of(split.clicks)
    scored = facts.earlier_of_user[split.train :] > 0
    if not scored.any():
        raise BacktestError("no test click has an earlier one of its user: there is nothing to predict it from")
    runs = runs_of(methods)
    run_input = SplitInput(split, facts, settings, max(measure.k for measure in measures))
    if jobs == 1 or len(runs) == 1:
        results = {run.name: _go(run, run_input, on_progress) for run in runs}
    else:
        results = go_together(_go, runs, run_input, min(jobs, len(runs)), on_progress)
    ranks = {method: found for result in results.values() for method, found in result.ranks.items()}
    return {
        "train": split.train,
        "test": len(split.clicks) - split.train,
        "scored": int(scored.sum()),
        "left_out": dict(split.others),
        "users": int(facts.users.max()) + 1,
        "items": int(facts.items.max()) + 1,
        "methods": {
            method: {
                how: {one.name: round(float(one.of(found[scored]).mean()), 5) for one in measures}
                for how, found in ranks[method].items()
            }
            for method in methods
        },
        "seconds": round(time.perf_counter() - began, 1),
    }


def frozen_facts(facts: Facts, train: int) -> Facts:
    """Returns what is known of each click where items occur in the train part alone. Items are numbered in order of
    their first click."""
    known = int(facts.items[:train].max()) + 1
    occurred = (facts.items < known).astype(np.int64)
    return replace(facts, known=np.full(len(facts.items), known), earlier_of_item=occurred)


def _go(run: Run, run_input: SplitInput, on_progress: OnProgress) -> SplitResult:
    return (_count if run.name == COUNTING else _learn)(run, run_input, on_progress)


def _count(run: Run, run_input: SplitInput, on_progress: OnProgress) -> SplitResult:
    split, facts = run_input.split, run_input.facts
    counting = Baselines(exclude_seen=run_input.settings.exclude_seen, depth=run_input.depth)
    users, items = facts.users.tolist(), facts.items.tolist()
    for at in range(split.train):
        counting.learn(users[at], items[at])
        if at % _TOLD_EACH == 0:
            on_progress(run.name, at, 0.0)
    found = {}
    frozen = counting.frozen()  # first: counts that go on would be its own
    for how, method, goes_on in ((FROZEN, frozen, frozen.visit), (LEARNING_ON, counting, counting.learn)):
        ranks = []
        for at in range(split.train, len(users)):
            ranks.append(method.ranks(users[at], items[at]))
            goes_on(users[at], items[at])
            if at % _TOLD_EACH == 0:
                on_progress(run.name, at, 0.0)
        found[how] = np.stack(ranks)
    columns = {method: baselines.METHODS.index(method) for method in run.methods}
    return SplitResult(
        {method: {how: ranks[:, column] for how, ranks in found.items()} for method, column in columns.items()}
    )


def _learn(run: Run, run_input: SplitInput, on_progress: OnProgress) -> SplitResult:
    split, facts = run_input.split, run_input.facts
    settings = Settings(**{**run_input.settings.model_dump(), **run.overrides})
    torch.set_num_threads(settings.threads)
    going = LearnerRun(settings, split.clicks, lists=False)

    def tell(done: int) -> None:
        on_progress(run.name, done, 0.0)

    for batch, *_ in _steps(going, 0, split.train):
        tell(batch.stop)
    arrays, state = going.learner.to_state()
    arrays, state = {name: array.copy() for name, array in arrays.items()}, copy.deepcopy(state)
    going.learner.frozen = True
    ranks = {FROZEN: _ranks(going, split.train, frozen_facts(facts, split.train), tell)}
    going.learner = Learner(going.learner.settings, lists=False)
    going.learner.load_state(arrays, state)
    ranks[LEARNING_ON] = _ranks(going, split.train, facts, tell)
    return SplitResult(dict.fromkeys(run.methods, ranks))


def _ranks(going: LearnerRun, start: int, facts: Facts, tell: Callable[[int], None]) -> Ranks:
    """Goes through the clicks from `start` on. Returns their ranks."""
    ranks = np.full(len(going.clicks), np.inf)
    for batch, among_candidates, candidates in _steps(going, start, len(going.clicks)):
        part = slice(batch.start, batch.stop)
        found = complete(facts, part, among_candidates, candidates, exclude_seen=going.settings.exclude_seen)
        ranks[part] = np.where(facts.earlier_of_item[part] == 0, np.inf, found)
        tell(batch.stop)
    return ranks[start:]


def _steps(going: LearnerRun, start: int, stop: int) -> Iterator[tuple[range, Ranks, NDArray[np.int64]]]:
    """Yields micro-batches of the clicks from `start` up to `stop`, with the ranks among the candidates and the numbers
    of these, (N,) each."""
    batches = [
        range(start + batch.start, start + batch.stop)
        for batch in micro_batches(going.clicks[start:stop], going.settings)
    ]
    for batch, (ranks, candidates, _) in zip(batches, going.steps(batches), strict=True):
        yield batch, ranks, candidates
