"""What is known of a user or an item, for a terminal."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from online.commands.views import ago
from stream.readable import plain

_LIST_SHOWN = 10


def user_view(found: Mapping[str, Any]) -> RenderableType:
    """A user: how many clicks, the latest of them, and the list."""
    whose, number = plain(found["user_id"]), found["checkpoint"]
    if not found["known"]:
        head = f"nothing is known of {whose} in checkpoint {number}"
    else:
        head = f"{whose}: {found['clicks']:,} clicks, of which {len(found['history'])} are shown; checkpoint {number}"
    flagged = found["flagged"]
    lines = [Text(head, style="bold")]
    if flagged:
        lines.append(Text(f"{flagged:,} of the clicks kept are flagged as abuse, and not learned from", style="red"))
    if found.get("hidden"):
        lines.append(Text(f"hidden items: {', '.join(map(plain, found['hidden']))}"))
    return Group(*lines, *_list(found), *_history(found))


def _list(found: Mapping[str, Any]) -> list[RenderableType]:
    top = found["list"]
    if top is None:
        return [Text(f"no list: {plain(found.get('list_unknown', 'Redis holds none, so the popular one is served'))}")]
    items = ", ".join(map(plain, top["items"][:_LIST_SHOWN])) + (" …" if len(top["items"]) > _LIST_SHOWN else "")
    about = f"{len(top['items'])} items, written {ago(top['age_ms'])} ago by version {top['version']}"
    return [Text(f"list: {about}: {items}")]


def _history(found: Mapping[str, Any]) -> list[RenderableType]:
    if not found["history"]:
        return []
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("clicked at (UTC)", "item", "event", ""):
        table.add_column(name)
    for click in found["history"]:
        at = datetime.fromtimestamp(click["timestamp"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        item = "(an item that is no longer known)" if click["item_id"] is None else _named(click)
        table.add_row(at, Text(item), Text(plain(click["event_type"])), "flagged" if click["flagged"] else "")
    return [table]


def item_view(found: Mapping[str, Any]) -> RenderableType:
    """An item: what its record says, its counts, and where it stands in lists."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim")
    table.add_column()

    def row(name: str, text: str) -> None:
        table.add_row(name, Text(plain(text)))

    available = "yes" if found["available"] else "no: published as such, or withdrawn"
    row("may be listed", "no: NEXTCLICK_LIST_FILTER excludes it" if found["excluded_by_rule"] else available)
    row("tags", ", ".join(found["tags"]) or "none")
    for name, value in found["attributes"].items():
        row(name, str(value))
    rank = found["popularity_rank"]
    row("clicks", f"{found['clicks']:,}" + ("" if rank is None else f"; the {rank:,}. by recent clicks"))
    followers = [f"{_named(one)} ({one['count']:g})" for one in found["followed_by"]]
    row("followed by", ", ".join(followers) or "nothing yet")
    row("lists", _lists_line(found))
    return Group(Text(f"{_named(found)}, checkpoint {found['checkpoint']}", style="bold"), table)


def _lists_line(found: Mapping[str, Any]) -> str:
    lists = found["lists"]
    if lists is None:
        return str(found["lists_unknown"])
    first = lists["by_place"].get("1", 0)
    popular = lists["popular_place"]
    also = "not in the popular one" if popular is None else f"at place {popular} of the popular one"
    return f"in {lists['with_it']:,} of {lists['of']:,}, at the top of {first:,}; {also}"


def _named(one: Mapping[str, Any]) -> str:
    title = one.get("title")
    return plain(one["item_id"]) if title is None else f"{plain(title)} ({plain(one['item_id'])})"
