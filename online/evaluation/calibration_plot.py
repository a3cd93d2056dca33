"""The reliability curves of a backtest's learners as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from online.evaluation.backtest import NEXTCLICK
from online.evaluation.calibration import Reliability
from online.evaluation.plots import DPI, axes_of, line_of, name_lines

NAME = "calibration.png"


def save_plot(folder: Path, curves: Mapping[str, Reliability], title: str) -> Path:
    """Writes `calibration.png` -> its path. Raises OSError where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    reliability_plot(curves, title).savefig(path, dpi=DPI)
    return path


def reliability_plot(curves: Mapping[str, Reliability], title: str) -> Figure:
    """How often the first item of a list was clicked, by its share; a score that means what it says is on the diagonal.

    The bars are two standard errors of nextclick's, of clicks that were independent of each other.
    """
    figure, axes = axes_of(title, "how often the first item was clicked, in ten bins of its share")
    axes.plot((0, 1), (0, 1), color="#8a8f98", linewidth=0.9, linestyle=":")
    ends, names = {}, {}
    for method, curve in curves.items():
        filled = curve.clicks > 0
        shares, clicked = curve.shares[filled], curve.clicked[filled]
        axes.plot(shares, clicked, **line_of(method), marker="o", markersize=3.5)
        if method == NEXTCLICK:
            errors = 2 * np.sqrt(clicked * (1 - clicked) / curve.clicks[filled])
            axes.errorbar(shares, clicked, errors, fmt="none", ecolor=line_of(method)["color"], elinewidth=0.9)
            for share, height, clicks in zip(shares, clicked, curve.clicks[filled], strict=True):
                axes.annotate(f"{clicks:,}", (share, height), (4, -11), textcoords="offset points", fontsize=7)
        ends[method], names[method] = float(clicked[-1]), f"{method}  {curve.error:.3f}"
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("share of the list's first item (at the points: clicks; beside names: the error)")
    name_lines(axes, ends, names)
    return figure
