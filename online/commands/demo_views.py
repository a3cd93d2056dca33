"""What the demo prints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from online.commands.views import plain
from online.evaluation.town import Town
from online.settings import Settings
from stream.events import Click
from stream.lists import TopList

_SHOWN = 8  # items of a list in the story

FASHION_CHANGES = Text(
    "  fashion changes: tastes turn to other shelves, what followed no longer does", style="bold magenta"
)


@dataclass(frozen=True)
class Story:
    """What one click changed: the list before, the click, the list after, and the time between.

    `best_next` is what most often follows the clicked item; None where nobody knows.
    """

    click: Click
    before: TopList
    after: TopList
    milliseconds: float
    best_next: str | None


def welcome(settings: Settings, api_url: str, data: object, town: Town | None) -> RenderableType:
    """What runs, and how to look at it meanwhile."""
    who = f"a town of {town.users} shoppers (simulated)" if town is not None else f"the events in {data}"
    user = town.user_ids[0] if town is not None else "USER"
    redis = f"redis://127.0.0.1:{settings.embedded_redis_port}/0"
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("clicks of", Text(who))
    table.add_row("list in", "median time from a click to its new list in Redis")
    table.add_row("hit@10", "how often the next click was in the top ten served (last 1,000)")
    table.add_row("dashboard", Text(f"{api_url}/"))
    table.add_row("a list", Text(f"curl {api_url}/recommend/{user}"))
    table.add_row("", Text(f"redis-cli -u {redis} GET nextclick:top:{user}"))
    return Group(Text(), table, Text())


def live_line(elapsed_s: float, status: Mapping[str, Any]) -> Text:
    """One line: how many clicks, how good the lists are beside popularity, how fast they come."""
    hits = {method: status["recent"][method]["hit@10"] for method in ("served", "popular")}
    took_ms = status["click_to_list_ms"]["p50"]
    line = Text(f"{elapsed_s:4.0f} s {status['learned']:>7,} clicks {status['events_per_s']:>5,.0f}/s  hit@10 ")
    line.append(f"{100 * hits['served']:4.1f} %", style="bold green")
    line.append(f" (popularity {100 * hits['popular']:4.1f} %)")
    line.append("" if took_ms is None else f"  list in {took_ms:,.0f} ms")
    return line


def story_view(story: Story | None) -> RenderableType:
    """The list before a click, the click, and the list after, with what has changed."""
    if story is None:
        return Text("nobody with a list clicked in the end, so there is no list to compare", style="dim")
    before, after = story.before.items, story.after.items
    item = story.click.item_id
    table = Table(box=None, padding=(0, 3, 0, 2), header_style="dim")
    table.add_column("the list before")
    table.add_column(f"{story.milliseconds:.0f} ms after the click")
    table.add_column("")
    for rank in range(min(_SHOWN, len(after))):
        was = before.index(after[rank]) if after[rank] in before else None
        changed = "bold green" if was is None or was > rank else ""
        old = before[rank] if rank < len(before) else ""
        table.add_row(_place(rank, old), Text.assemble(_place(rank, after[rank]), style=changed), _move(was, rank))
    lines: list[RenderableType] = [
        Text.assemble(
            "  ", (plain(story.click.user_id), "bold"), " clicked ", (plain(item), "bold"), _stood(before, item)
        ),
        Padding(table, (1, 0)),
    ]
    if story.best_next is not None:
        lines.append(Text(f"  in this town {plain(story.best_next)} mostly follows {plain(item)}:"))
        lines.append(Text(f"  {_rank(before, story.best_next)} before, {_rank(after, story.best_next)} now"))
    return Group(Text(), *lines)


def course_line(before: float, lowest: float, latest: float) -> Text:
    """How the lists as served came through the change of fashion."""
    return Text(
        f"  hit@10: {100 * before:.0f} % before fashion changed,"
        f" {100 * lowest:.0f} % at worst, {100 * latest:.0f} % at the end"
    )


def next_steps(data_dir: Path | None) -> RenderableType:
    """Commands that work now that the demo has ended."""
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    table.add_column()
    table.add_column(style="dim")
    table.add_row("nextclick demo --data FILE.csv", "with your own clicks")
    table.add_row("nextclick worker", "learn, and keep it in ./data")
    table.add_row("nextclick replay FILE.csv --rate 200", "publish clicks, in another terminal")
    table.add_row("nextclick serve", "API and dashboard, in a third")
    lines: list[RenderableType] = [Text("\nTry next:"), table]
    if data_dir is not None:
        # In one piece however narrow the terminal is, so that it can be copied.
        command = f"  NEXTCLICK_DATA_DIR={data_dir} nextclick worker"
        lines.append(Text.assemble(command, ("  goes on from here", "dim"), no_wrap=True, overflow="ignore"))
    return Group(*lines)


def _place(rank: int, item: str) -> Text:
    return Text(f"{rank + 1:>2}  {plain(item)}" if item else "")


def _move(was: int | None, rank: int) -> Text:
    if was is None:
        return Text("new", style="green")
    if was == rank:
        return Text()
    return Text(f"up {was - rank}", style="green") if was > rank else Text(f"down {rank - was}", style="dim")


def _stood(items: list[str], item: str) -> str:
    return f", which stood at {_rank(items, item)} of the list" if item in items else ", which was not on the list"


def _rank(items: list[str], item: str) -> str:
    return f"rank {items.index(item) + 1}" if item in items else "not listed"
