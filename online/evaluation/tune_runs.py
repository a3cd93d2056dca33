"""The same clicks gone through with different settings, in turn or beside each other, each stopped when it is told to.

What is measured is the backtest's method `nextclick`. Letters: `n` clicks.
"""

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.evaluation.backtest import NEXTCLICK, RunResult, backtest
from stream.events import Click

STEPS = 10  # a run notes its NDCG@10 so far each time it is through another tenth of the clicks
_LOOK_EACH_S = 0.1


class TuneError(Exception):
    """A search that cannot be made. One line that says what is needed."""


class Notes:
    """How far a run is, in numbers that the process that runs and the one that watches share."""

    NUMBERS = 2 + STEPS - 1  # at the last step all is known

    def __init__(self, numbers: NDArray[np.float64]) -> None:
        """`numbers` (NUMBERS,): whether to stop, events it is through, and the curve; nan: not that far yet."""
        self._numbers = numbers

    def clear(self) -> None:
        self._numbers[:2], self._numbers[2:] = 0, np.nan

    @property
    def stop(self) -> bool:
        """Set by who watches: the run ends at its next batch."""
        return bool(self._numbers[0])

    @stop.setter
    def stop(self, wanted: bool) -> None:
        self._numbers[0] = wanted

    @property
    def events(self) -> int:
        return int(self._numbers[1])

    @property
    def curve(self) -> list[float]:
        """NDCG@10 so far, at the first step, the second, ... as far as it is through."""
        return list(takewhile(lambda ndcg: not math.isnan(ndcg), self._numbers[2:].tolist()))

    def write(self, events: int, n: int, ndcg: float) -> None:
        so_far = self._numbers[2 : 2 + events * STEPS // n]
        so_far[np.isnan(so_far)] = ndcg
        self._numbers[1] = events


#: Called now and then with what each run that goes on has noted; it may set `stop`.
Watch = Callable[[Sequence[Notes]], None]


class Runs:
    """Goes through `clicks` as often as it is asked to. Processes, where there are several, know no others."""

    def __init__(self, clicks: Sequence[Click], jobs: int, pool: ProcessPoolExecutor | None, numbers: Any) -> None:
        self.clicks, self.jobs = clicks, jobs
        self._pool = pool
        self._numbers: NDArray[np.float64] = np.frombuffer(numbers).reshape(jobs, Notes.NUMBERS)

    @classmethod
    @contextmanager
    def over(cls, clicks: Sequence[Click], jobs: int) -> Iterator["Runs"]:
        spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        numbers = spawn.Array("d", jobs * Notes.NUMBERS, lock=False)
        if jobs == 1:
            yield cls(clicks, 1, None, numbers)
            return
        with ProcessPoolExecutor(jobs, spawn, _remember, (clicks, numbers)) as pool:
            runs = cls(clicks, jobs, pool, numbers)
            try:
                yield runs
            finally:
                runs._numbers[:, 0] = 1  # asks runs that still go on to stop

    def go(self, each: Sequence[Settings], watch: Watch, features_from: int | None = None) -> list[RunResult | None]:
        """At most `jobs` runs -> what each gave, None where it was stopped. `watch` sees the last of their notes, too.
        `features_from`: the click from which on it is measured what features add; None: it is not.

        Raises BacktestError for too few clicks, and TuneError where a process was killed.
        """
        notes = [Notes(self._numbers[place]) for place in range(len(each))]
        for one in notes:
            one.clear()
        if self._pool is None:
            return [_go(self.clicks, settings, notes[0], lambda: watch(notes), features_from) for settings in each]
        submit = self._pool.submit
        futures = [submit(_go_remembered, place, settings, features_from) for place, settings in enumerate(each)]
        going: set[Future[RunResult | None]] = set(futures)
        try:
            while going:
                _, going = wait(going, timeout=_LOOK_EACH_S)
                watch(notes)
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise TuneError("a process of the search was killed (out of memory?): try fewer --jobs") from None


class _StoppedError(Exception):
    """Ends a backtest from within its report of progress."""


def _go(
    clicks: Sequence[Click],
    settings: Settings,
    notes: Notes,
    after_batch: Callable[[], None],
    features_from: int | None,
) -> RunResult | None:
    def on_progress(_: str, events: int, ndcg: float) -> None:
        notes.write(events, len(clicks), ndcg)
        after_batch()
        if notes.stop:
            raise _StoppedError

    try:
        outcome = backtest(clicks, settings, methods=[NEXTCLICK], features_from=features_from, on_progress=on_progress)
        return outcome.results[NEXTCLICK]
    except _StoppedError:
        return None


_remembered: list[Any] = []  # in a process of its own: what all its runs share


def _remember(*shared: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that watches, which then says stop
    _remembered[:] = shared


def _go_remembered(place: int, settings: Settings, features_from: int | None) -> RunResult | None:
    clicks, numbers = _remembered
    shared: NDArray[np.float64] = np.frombuffer(numbers).reshape(-1, Notes.NUMBERS)
    return _go(clicks, settings, Notes(shared[place]), lambda: None, features_from)
