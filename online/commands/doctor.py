"""The command `nextclick doctor`: a table of verdicts, with the way out of what is not right."""

import json
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from online.config.settings import SettingsError, load_settings
from online.doctor.examination import examine
from online.doctor.settings_checks import unusable
from online.doctor.verdict import STATES, Verdict, any_wrong
from stream.readable import plain

_STYLES = {"ok": "green", "not checked": "dim", "warning": "yellow", "wrong": "bold red"}


def run_doctor(out: Console, overrides: dict[str, object], *, as_json: bool) -> bool:
    """Examines everything, and prints what was found. Returns whether nothing is wrong."""
    try:
        verdicts = examine(load_settings(**overrides))
    except SettingsError as error:
        verdicts = unusable(error)
        text = "settings cannot be used, so nothing else was looked at"
        verdicts.append(Verdict("broker", "all other checks", "not checked", text, "Correct the settings first."))
    wrong = any_wrong(verdicts)
    if as_json:
        print(json.dumps({"ok": not wrong, "checks": [verdict.as_dict() for verdict in verdicts]}, indent=2))
    else:
        out.print(doctor_view(verdicts))
    return not wrong


def doctor_view(verdicts: Sequence[Verdict]) -> RenderableType:
    """A table of all verdicts, and how many there are of each kind."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("", "check", "verdict"):
        table.add_column(name, no_wrap=True)
    table.add_column("found", ratio=1)
    area = ""
    for verdict in verdicts:
        found = Text(plain(verdict.text))
        if verdict.way_out and verdict.state != "ok":
            found.append(f"\n→ {plain(verdict.way_out)}", style=_STYLES[verdict.state])
        shown = Text(verdict.state, style=_STYLES[verdict.state])
        table.add_row(verdict.area if verdict.area != area else "", verdict.check, shown, found)
        area = verdict.area
    counts = Counter(verdict.state for verdict in verdicts)
    summary = ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])
    return Group(table, Text(summary, style="bold"))
