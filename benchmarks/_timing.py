"""Timing that a busy machine disturbs least: everything compared takes turns, and the best times are compared."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def milliseconds(
    steps: Mapping[str, Callable[[], object]], *, runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Each step once to warm up, then `runs` times in turn. The clock time.process_time counts all threads."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            start = clock()
            step()
            taken[name].append(1e3 * (clock() - start))
    return taken


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Ratio of the best times, and in brackets least, median and most of the runs' own ratios."""
    each = sorted(a / b for a, b in zip(above, below, strict=True))
    return f"{min(above) / min(below):.2f} ({each[0]:.2f}, {statistics.median(each):.2f}, {each[-1]:.2f})"
