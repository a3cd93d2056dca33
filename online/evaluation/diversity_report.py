"""The trade of diversity as a table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table


def table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the figures of `diversity_curve` as a table; in brackets: relative to the first line."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    view.add_column("diversity", no_wrap=True)
    for name in ("NDCG@10", "", "similarity", "", "by state", "coverage", "Gini"):
        view.add_column(name, justify="right", no_wrap=True)
    first = figures[0]
    for one in figures:
        named = (
            f"{one['diversity']:g}" if one["method"] == first["method"] else f"{one['diversity']:g}  {one['method']}"
        )
        view.add_row(
            named,
            f"{one['ndcg@10']:.4f}",
            _relative(one, first, "ndcg@10"),
            f"{one['intra_list_similarity']:.4f}",
            _relative(one, first, "intra_list_similarity"),
            _relative(one, first, "similarity_by_state"),
            f"{one['coverage']:.3f}",
            f"{one['gini']:.3f}",
        )
    return view


def remarks() -> list[str]:
    """Returns the lines that go below the table."""
    return [
        "similarity: mean cosine of a list's pairs, by the vectors it is chosen by",
        "by state: the same by the Reformer's item vectors, relative to the first line",
        "coverage: items that any list had; Gini of how often each was: 0 all alike",
    ]


def _relative(one: Mapping[str, Any], first: Mapping[str, Any], name: str) -> str:
    return f"{one[name] / first[name]:.3f}" if first[name] else "-"
