"""What the demo prints."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from online.commands.demo_terminal import shown_command, shown_program
from online.commands.views import reasons_line
from online.config.settings import PREFIX, Settings
from online.worker.connections import named_broker
from stream.events import Click
from stream.lists import TopList
from stream.readable import plain

_SHOWN = 8  # items of a list that are shown

FASHION_CHANGES = Text(
    "  fashion changes: tastes turn to other shelves, what followed no longer does", style="bold magenta"
)


@dataclass(frozen=True)
class ClickEffect:
    """What one click changed: the list before, the click, the list after, and the time between.

    `best_next` is what most often follows the clicked item; None where it is not known.
    """

    click: Click
    before: TopList
    after: TopList
    milliseconds: float
    best_next: str | None

    @property
    def change(self) -> float:
        """How much it shows, at most 1: how far up what follows has come, or the share of places with another item."""
        before, after = self.before.items, self.after.items
        if self.best_next is not None:
            return _reciprocal_rank(after, self.best_next) - _reciprocal_rank(before, self.best_next)
        shown = after[:_SHOWN]
        same = sum(one == other for one, other in zip(shown, before, strict=False))
        return 1.0 - same / max(1, len(shown))


class Running(NamedTuple):
    """A demo that runs: its settings, those that commands outside of it have, and an example of a user."""

    url: str
    settings: Settings
    outside: Settings
    user_id: str | None

    def command(self, *arguments: str) -> str:
        """A `nextclick` command that asks this demo."""
        port = self.settings.embedded_redis_port
        if self.outside.redis_url is not None:
            variables = {f"{PREFIX}REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        elif self.outside.embedded_redis_port != port:
            variables = {f"{PREFIX}EMBEDDED_REDIS_PORT": str(port)}
        else:
            variables = {}
        return shown_command(*arguments, variables=variables)

    def list_commands(self) -> list[str]:
        """Commands that show a list, as far as their programs are installed."""
        if self.user_id is None:
            return []
        redis = f"redis://127.0.0.1:{self.settings.embedded_redis_port}/0"
        found = [
            None
            if self.outside.api_keys
            else shown_program("curl", f"{self.url}/v1/recommend/{quote(self.user_id, '')}"),
            shown_program("redis-cli", "-u", redis, "GET", f"nextclick:top:{self.user_id}"),
        ]
        return [command for command in found if command is not None] or [self.command("top", self.user_id)]


def welcome(running: Running, who: str) -> RenderableType:
    """What runs, and how to look at it meanwhile."""
    lines = [
        ("clicks of", who),
        ("list in", "median time from a click to its new list in Redis"),
        ("hit@10", "how often the next click was in the top ten served (last 1,000)"),
        ("dashboard", f"{running.url}/"),
    ]
    lines += [("a list" if not number else "", line) for number, line in enumerate(running.list_commands())]
    return Group(Text(), *(Text.assemble((f"  {name:<11}", "dim"), line) for name, line in lines), Text())


def live_line(elapsed_s: float, status: Mapping[str, Any]) -> Text:
    """One line: how many clicks, how good the lists are beside popularity, how fast they come."""
    hits = {method: status["recent"][method]["hit@10"] for method in ("served", "popular")}
    took_ms = status["click_to_list_ms"]["p50"]
    line = Text(f"{elapsed_s:4.0f} s {status['learned']:>7,} clicks {status['events_per_s']:>5,.0f}/s  hit@10 ")
    line.append(f"{100 * hits['served']:4.1f} %", style="bold green")
    line.append(f" (popularity {100 * hits['popular']:4.1f} %)")
    line.append("" if took_ms is None else f"  list in {took_ms:,.0f} ms")
    return line


def effect_view(effect: ClickEffect) -> RenderableType:
    """The list before a click, the click, and the list after, with what has changed."""
    before, after = effect.before.items, effect.after.items
    item = effect.click.item_id
    table = Table(box=None, padding=(0, 3, 0, 2), header_style="dim")
    table.add_column("the list before")
    table.add_column(f"{effect.milliseconds:.0f} ms after the click")
    table.add_column("")
    for rank in range(min(_SHOWN, len(after))):
        was = before.index(after[rank]) if after[rank] in before else None
        changed = "bold green" if was is None or was > rank else ""
        old = before[rank] if rank < len(before) else ""
        table.add_row(_place(rank, old), Text.assemble(_place(rank, after[rank]), style=changed), _move(was, rank))
    lines: list[RenderableType] = [
        Text.assemble(
            "  ", (plain(effect.click.user_id), "bold"), " clicked ", (plain(item), "bold"), _stood(before, item)
        ),
        Padding(table, (1, 0)),
    ]
    if effect.best_next is not None:
        lines.append(Text(f"  in this town {plain(effect.best_next)} mostly follows {plain(item)}:"))
        lines.append(Text(f"  {_rank(before, effect.best_next)} before, {_rank(after, effect.best_next)} now"))
    return Group(Text(), *lines)


def course_line(before: float, lowest: float, latest: float) -> Text:
    """How the lists as served came through the change of fashion."""
    return Text(
        f"  hit@10: {100 * before:.0f} % before fashion changed,"
        f" {100 * lowest:.0f} % at worst, {100 * latest:.0f} % at the end"
    )


def bad_rows_line(bad: Counter[str], rows: int, first: str) -> Text:
    """How many rows were no clicks, why, and which was the first."""
    text = f"rows that are no clicks: {reasons_line(bad)} of {rows:,}; the first is {plain(first)}"
    return Text(text, style="yellow")


def stopped_line(data: Path, seconds: float | None, row: int, rows: int | None, fraction: float) -> Text:
    """Where in a file the demo stopped (`seconds`: because its time was up), and how to go on."""
    after = "" if seconds is None else f" after {seconds:g} s"
    where = f"{row:,} (about {fraction:.0%})" if rows is None else f"{row:,} of {rows:,} ({row / max(1, rows):.0%})"
    command = shown_command("demo", "--data", str(data), "--seconds", "0")
    return Text(f"stopped{after} at row {where} of {plain(str(data))}; to its end: {command}", style="yellow")


def dashboard_stays(running: Running) -> RenderableType:
    """What can be done with a demo whose clicks have ended."""
    commands = [(command, "a list, as JSON") for command in running.list_commands()[:1]]
    if running.user_id is not None:
        commands += [(running.command("top", running.user_id), "the same, as a table")]
    commands += [(running.command("status"), "what the worker does")]
    says = f"No more clicks come. The dashboard stays at {running.url}/ until Ctrl-C. Meanwhile, in another terminal:"
    return Group(Text(), Text(says, style="bold"), *_commands(commands))


def next_steps(outside: Settings, data_dir: Path | None) -> RenderableType:
    """Commands that work now that the demo has ended."""
    broker = named_broker(outside)
    embedded = broker.log_path is not None
    source = "" if embedded else f" from {broker.name}"
    commands = [
        (shown_command("demo", "--data", "FILE.csv"), "with your own clicks"),
        (shown_command("worker"), f"learn{source}, and keep it in {outside.data_dir}"),
        (shown_command("replay", "FILE.csv", "--rate", "200"), "publish clicks, in another terminal"),
        (shown_command("serve"), "API and dashboard, in a third"),
    ]
    if data_dir is not None:
        # Where a server is named, this log is not read.
        without = ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "ENV_FILE", "SECRETS_DIR") if not embedded else ()
        variables = {f"{PREFIX}DATA_DIR": str(data_dir.absolute())}
        command = shown_command("worker", variables=variables, without=[PREFIX + name for name in without])
        commands += [(command, "goes on from here")]
    return Group(Text("\nTry next:"), *_commands(commands))


def _commands(commands: Sequence[tuple[str, str]]) -> list[Text]:
    """Each on one line, which can be copied as a whole."""
    width = max(len(command) for command, _ in commands)
    return [Text.assemble(f"  {command:<{width}}  ", (f"# {about}", "dim")) for command, about in commands]


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


def _reciprocal_rank(items: list[str], item: str) -> float:
    return 1.0 / (1 + items.index(item)) if item in items else 0.0
