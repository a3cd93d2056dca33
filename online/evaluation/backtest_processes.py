"""The runs of a backtest in processes of their own, beside each other."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from online.evaluation.backtest import OnProgress, Run, RunInput, RunResult

_PROGRESS_EACH_S = 0.25

#: Does one run; it must be one that another process can import.
Go = Callable[["Run", "RunInput", "OnProgress"], "RunResult"]


def go_together(
    go: Go, runs: "Sequence[Run]", run_input: "RunInput", jobs: int, on_progress: "OnProgress"
) -> "dict[str, RunResult]":
    """Does each run in a process of its own, at most `jobs` at a time. They tell how far they are through shared
    memory."""
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


def _go_remembered(go: Go, place: int, run: "Run") -> "RunResult":
    progress, run_input = _remembered

    def tell(_: str, events: int, ndcg: float) -> None:
        progress[2 * place], progress[2 * place + 1] = events, ndcg

    return go(run, run_input, tell)
