"""The trade of diversity as a picture: what lists lose in NDCG@10, by how alike they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_INK, _GREY, _OURS = "#1f2430", "#8a8f98", "#c2185b"
_DPI = 130


def save_plot(folder: Path, figures: Sequence[Mapping[str, Any]], title: str) -> Path:
    """Writes `diversity.png` -> its path. Raises OSError where the folder cannot be written."""
    path = folder / "diversity.png"
    curve(figures, title).savefig(path, dpi=_DPI)
    return path


def curve(figures: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """One point for each diversity, named beside it; both axes relative to lists that are not varied."""
    first = figures[0]
    ordered = sorted(figures, key=lambda one: one["diversity"])
    similarity = [one["intra_list_similarity"] / (first["intra_list_similarity"] or 1) for one in ordered]
    ndcg = [one["ndcg@10"] / (first["ndcg@10"] or 1) for one in ordered]
    figure = Figure(figsize=(7.5, 5.0))
    axes = figure.add_axes((0.11, 0.13, 0.83, 0.74))
    axes.plot(similarity, ndcg, color=_OURS, linewidth=2.0, marker="o", markersize=5)
    for one, x, y in zip(ordered, similarity, ndcg, strict=True):
        axes.annotate(f"{one['diversity']:g}", (x, y), (6, 6), textcoords="offset points", color=_INK)
    axes.set_title(title, loc="left", color=_INK, fontsize=13, pad=22)
    axes.text(0, 1.025, "beside the points: diversity", transform=axes.transAxes, color=_GREY)
    axes.set_xlabel("similarity within a list, by that of lists that are not varied", color=_INK)
    axes.set_ylabel("NDCG@10, likewise", color=_INK)
    axes.invert_xaxis()
    axes.margins(0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_INK, length=3)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure
