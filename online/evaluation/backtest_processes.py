"""The runs of a backtest in processes of their own, beside each other."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    """A run."""

    @property
    def name(self) -> str: ...


_PROGRESS_EACH_S = 0.25

R = TypeVar("R", bound=Named)  # a run
Input = TypeVar("Input")  # what it goes through
T = TypeVar("T")  # what it gives

#: Called with a run's name, the events it is through, and a figure so far.
Tell = Callable[[str, int, float], None]


def go_together(
    go: Callable[[R, Input, Tell], T], runs: Sequence[R], run_input: Input, jobs: int, on_progress: Tell
) -> dict[str, T]:
    """Does each run in a process of its own, at most `jobs` at a time. They tell how far they are through shared
    memory.

    Args:
        go: does one run; another process must be able to import it.
        runs: to be done.
        run_input: what all of them go through.
        jobs: processes.
        on_progress: called now and then for each run.

    Returns:
        What each run gave, by its name.
    """
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    progress = spawn.Array("d", 2 * len(runs), lock=False)
    with ProcessPoolExecutor(jobs, spawn, _remember, (progress, run_input)) as pool:
        waiting = {pool.submit(_go_remembered, go, place, run): run.name for place, run in enumerate(runs)}
        going = set(waiting)
        while going:
            _, going = wait(going, timeout=_PROGRESS_EACH_S)
            for place, run in enumerate(runs):
                on_progress(run.name, int(progress[2 * place]), progress[2 * place + 1])
        return {name: future.result() for future, name in waiting.items()}


_remembered: list[Any] = []  # in a process of `go_together`: what all its runs share


def _remember(*shared: Any) -> None:
    _remembered[:] = shared


def _go_remembered(go: Callable[..., Any], place: int, run: Named) -> Any:
    progress, run_input = _remembered

    def tell(_: str, events: int, ndcg: float) -> None:
        progress[2 * place], progress[2 * place + 1] = events, ndcg

    return go(run, run_input, tell)
