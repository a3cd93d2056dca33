"""Explanations as tables for a terminal."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream.readable import plain

_BAR = 12  # characters of the longest bar


def explanations_view(found: Mapping[str, Any]) -> RenderableType:
    """A list with up to three reasons for each item."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("item")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("because", ratio=1)
    for rank, one in enumerate(found["explanations"], start=1):
        reasons = [f"{reason['contribution']:+.2f}  {plain(reason['text'])}" for reason in one["reasons"]]
        table.add_row(str(rank), Text(_name(one)), f"{one['difference']:+.2f}", Text("\n".join(reasons)))
    return Group(Text(_about(found)), table, Text("score: above the list's average candidate", style="dim"))


def explanation_view(found: Mapping[str, Any]) -> RenderableType:
    """One item: what each feature adds, and the moments that point at it."""
    (one,) = found["explanations"]
    by = {"ranker": "the ranker", "first": "the linear score alone (the ranker did not see it)"}
    lines = [
        Text(_about(found)),
        Text.assemble(
            (_name(one), "bold"),
            f": {one['difference']:+.3f} above the average candidate, by {by.get(one['scored_by'], 'nothing')}",
        ),
        *(Text(f"  {reason['contribution']:+.2f}  {plain(reason['text'])}") for reason in one["reasons"]),
    ]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name, right in (("feature", False), ("adds", True), ("", False)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    adds = sorted(one["contributions"].items(), key=lambda pair: -abs(pair[1]))
    most = max((abs(value) for _, value in adds), default=0.0)
    for name, value in adds:
        if abs(value) >= 5e-4:
            bar = "█" * round(_BAR * abs(value) / most)
            table.add_row(name, f"{value:+.3f}", Text(bar, style="green" if value > 0 else "red"))
    table.add_row("sum", f"{sum(value for _, value in adds):+.3f}", "", style="bold")
    return Group(*lines, table, *_moments(one))


def _moments(one: Mapping[str, Any]) -> list[RenderableType]:
    count = sum(one["moments_found"].values())
    if not count:
        return [Text("no remembered moment points at it", style="dim")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name, right in (("moment (UTC)", False), ("whose", False), ("after", False), ("alike", True), ("adds", True)):
        table.add_column(name, justify="right" if right else "left")
    for moment in one["moments"]:
        at = datetime.fromtimestamp(moment["at"], UTC).strftime("%a %Y-%m-%d %H:%M")
        whose = "the user's" if moment["whose"] == "own" else "any user's"
        after = plain(moment["after_title"] or moment["after"] or "-")
        table.add_row(at, whose, Text(after), f"{moment['weight']:.3f}", f"{moment['contribution']:+.3f}")
    return [Text(f"{count:,} remembered moments point at it, the strongest first"), table]


def _name(one: Mapping[str, Any]) -> str:
    title = one["title"]
    return plain(one["item_id"]) if title is None else f"{plain(title)} ({plain(one['item_id'])})"


def _about(found: Mapping[str, Any]) -> str:
    whose = plain(found["user_id"])
    known = "" if found["known"] else f"; nothing is known of {whose}, so it is a visitor's list"
    source = "the running worker" if found["checkpoint"] is None else f"checkpoint {found['checkpoint']}"
    return f"{whose}, version {found['version']}, from {source}{known}"
