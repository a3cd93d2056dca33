"""A backtest as pictures: NDCG@10 over the course of the stream, and by the length of users' histories.

Every line is named where it ends, in its own colour, so no legend is needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from online.evaluation.backtest import AS_SERVED, NEXTCLICK, Outcome
from online.evaluation.backtest_report import BUCKETS, report
from online.metrics import hit_and_ndcg_at

WINDOW_SHARE = 0.05  # of the scored events, which each point is the mean of
_WINDOW_MIN = 100
_POINTS_MAX = 600
_SIZE_INCHES = (10.0, 5.6)
DPI = 130
_ROOM_FOR_NAMES = 0.74  # of the width, that the axes take
_LINE_HEIGHT = 0.042  # of the axes' height, that a name takes

_INK, _GREY = "#1f2430", "#8a8f98"
_COLOURS = {
    NEXTCLICK: "#c2185b",
    AS_SERVED: "#e8759f",
    "nextclick-without-state": "#7b3fa0",
    "nextclick-without-reformer": "#b493cf",
    "nextclick-without-content": "#d3a8e0",
    "blend": "#1f2430",
    "own": "#00796b",
    "markov": "#1565c0",
    "knn": "#b26a00",
    "recent": "#6d7f3b",
    "popular": "#8a8f98",
}


def save_plots(folder: Path, outcome: Outcome, title: str) -> list[Path]:
    """Writes `course.png` and `history.png` -> their paths. Raises OSError where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "course.png", folder / "history.png"]
    for path, figure in zip(paths, (course(outcome, title), by_history(outcome, title)), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def course(outcome: Outcome, title: str) -> Figure:
    """NDCG@10 of each method, as the mean over a window that moves along the stream."""
    window = min(outcome.facts.scored, max(_WINDOW_MIN, int(WINDOW_SHARE * outcome.facts.scored)))
    figure, axes = axes_of(title, f"NDCG@10, mean of the latest {window:,} clicks (beside the names: of all)")
    places = np.flatnonzero(outcome.facts.counted)  # (N,) of the scored clicks in the stream
    ends, names = {}, {}
    for method in outcome.ranks:
        ndcg = hit_and_ndcg_at(outcome.scored(method))[1]
        means = rolling_means(ndcg, window)
        at = np.unique(np.linspace(0, len(means) - 1, _POINTS_MAX).astype(np.int64))
        axes.plot(places[window - 1 + at] + 1, means[at], **line_of(method))
        ends[method], names[method] = float(means[-1]), f"{method}  {ndcg.mean():.3f}"
    axes.set_xlabel("clicks since the beginning of the stream", color=_INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda clicks, _: f"{clicks:,.0f}"))
    axes.margins(x=0)
    name_lines(axes, ends, names)
    return figure


def by_history(outcome: Outcome, title: str) -> Figure:
    """NDCG@10 of each method by the number of a user's earlier clicks."""
    parts = report(outcome)["by_history"]
    filled = [(bucket, part) for bucket, part in zip(BUCKETS, parts, strict=True) if part["scored"]]
    figure, axes = axes_of(title, "NDCG@10")
    ends = {}
    for method in outcome.ranks:
        values = [part["methods"][method]["ndcg@10"] for _, part in filled]
        axes.plot(range(len(values)), values, **line_of(method), marker="o", markersize=3.5)
        ends[method] = values[-1]
    axes.set_xticks(range(len(filled)), [f"{bucket.label}\n({part['scored']:,})" for bucket, part in filled])
    axes.set_xlabel("a user's earlier clicks (below: clicks scored)", color=_INK)
    axes.margins(x=0.02)
    name_lines(axes, ends, {method: method for method in ends})
    return figure


def rolling_means(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """(n,) -> (n - window + 1,): of each `window` values in a row."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: NDArray[np.float64] = (sums[window:] - sums[:-window]) / window
    return means


def axes_of(title: str, measured: str) -> tuple[Figure, Axes]:
    """An empty picture with room for names on its right. `measured`: what the height of a line says."""
    figure = Figure(figsize=_SIZE_INCHES)
    axes = figure.add_axes((0.07, 0.13, _ROOM_FOR_NAMES - 0.07, 0.75))
    axes.set_title(title, loc="left", color=_INK, fontsize=13, pad=22)
    axes.text(0, 1.025, measured, transform=axes.transAxes, color=_GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_INK, length=3)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def line_of(method: str) -> dict[str, Any]:
    """How a method's line is drawn."""
    ours = method.startswith(NEXTCLICK)
    return {
        "color": _COLOURS.get(method, _GREY),
        "linewidth": 2.4 if method == NEXTCLICK else 1.5 if ours else 1.1,
        "linestyle": (0, (4, 1.5)) if method == AS_SERVED else "-",
        "zorder": 4 if method == NEXTCLICK else 3 if ours else 2,
    }


def name_lines(axes: Axes, ends: Mapping[str, float], names: Mapping[str, str]) -> None:
    """Each method's name beside the end of its line, moved up or down where names would overlap."""
    axes.set_ylim(bottom=0)
    top = axes.get_ylim()[1]
    methods = sorted(ends, key=lambda method: ends[method])
    places = spread([ends[method] / top for method in methods], _LINE_HEIGHT)
    for method, place in zip(methods, places, strict=True):
        colour = _COLOURS.get(method, _GREY)
        axes.plot((1.0, 1.025), (ends[method] / top, place), transform=axes.transAxes, color=colour, linewidth=0.7,
                  clip_on=False)  # fmt: skip
        axes.text(1.032, place, names[method], transform=axes.transAxes, color=colour, va="center", fontsize=9,
                  fontweight="bold" if method == NEXTCLICK else "normal")  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Rising places within 0 and 1, moved as little as it takes to be `gap` apart where there is room for that.

    Neighbours that come too close become a group around their mean, and groups that meet become one.
    """
    groups: list[list[float]] = []  # each: the places wanted
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], gap) < _start(groups[-2], gap) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_start(group, gap) + gap * number for group in groups for number in range(len(group))]


def _start(group: Sequence[float], gap: float) -> float:
    """Where the first of a group stands, so that its middle is the mean of the places wanted, but within 0 and 1."""
    length = gap * (len(group) - 1)
    return max(0.0, min(sum(group) / len(group) - length / 2, 1.0 - length))
