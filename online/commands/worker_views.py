"""What `nextclick status` prints of a group of workers: a table of them, and what there is of all together."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from online.commands.views import ago, status_view
from online.worker.health import Health
from online.worker.overview import Overview
from online.worker.totals import total
from stream.readable import plain

_COLUMNS = (
    *(("worker", False), ("state", False), ("leads", False), ("owns", False), ("lag", True), ("counted", True)),
    *(("learned from", True), ("base", True), ("its age", True), ("version", True)),
)


def health_line(health: Health) -> Text:
    """Returns how well a worker or a group is, and for what kinds of reasons."""
    kinds = ", ".join(dict.fromkeys(plain(str(reason.get("kind"))) for reason in health.reasons))
    text = f"{health.state}: {kinds}" if kinds else health.state
    return Text(text, style="bold" if health.state == "ready" else "bold red")


def overview_view(overview: Overview) -> RenderableType:
    """Returns the workers of a group one by one, then all of them as if they were one."""
    return Group(workers_table(overview.rows(), overview.now_ms), status_view(total(overview) or {}))


def workers_table(rows: Sequence[Mapping[str, Any]], now_ms: float | None = None) -> Table:
    """Returns a table with a row for each worker (`Overview.rows`)."""
    now = 1_000 * time.time() if now_ms is None else now_ms
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, right in _COLUMNS:
        table.add_column(name, justify="right" if right else "left", no_wrap=name not in {"worker", "owns", "state"})
    for row in rows:
        if row.get("state") == "gone":
            seen = f"gone, reported {ago(now - row.get('written_at', now))} ago"
            table.add_row(Text(plain(str(row["name"]))), Text(seen, style="red"))
            continue
        age_s = row.get("round_age_s")
        table.add_row(
            Text(plain(str(row["name"]))),
            Text(plain(str(row.get("state")))),
            "yes" if row.get("leads") else "",
            partitions_line(row.get("owned") or ()),
            _lag(row),
            *(_whole(row.get(name)) for name in ("learned", "learned_from", "base")),
            "?" if age_s is None else ago(1_000 * age_s),
            _whole(row.get("version")),
            style="bold" if row.get("leads") else None,
        )
    return table


def partitions_line(partitions: Sequence[int]) -> str:
    """Returns numbers in a line, with ranges: `0-3, 7`."""
    parts: list[tuple[int, int]] = []
    for partition in sorted(partitions):
        if parts and partition == parts[-1][1] + 1:
            parts[-1] = parts[-1][0], partition
        else:
            parts.append((partition, partition))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts) or "none"


def _lag(row: Mapping[str, Any]) -> str:
    lag, oldest_s = row.get("lag"), row.get("lag_s")
    if lag is None:
        return "?"
    return f"{lag:,} ({ago(1_000 * oldest_s)})" if lag and oldest_s else f"{lag:,}"


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"
