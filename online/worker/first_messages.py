"""What is looked at in the first messages of a worker: whether they have the fields that a click needs.

A wrong name of a field turns every message into a dead letter. So it is reported at once, with the names that are
there, and with the setting that would mend it. Names are shown, never values.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from online.lifecycle.emit import Emit
from stream.click_fields import NEEDED, ClickFields, as_setting, at, paths_in, suggested
from stream.events import BadEvent, Click
from stream.redact import BOM, is_name
from stream.timestamps import span

FIRST = 100  # messages that are looked at
FEW = 20  # checked before that only where nothing was learned yet
_NAMES_MAX = 20
_EARLY_S = 20 * 365.25 * 86_400  # 1990: no click was made before
_KIND = "first_messages"


class FirstMessages:
    """Judges once, by the first `FIRST` messages or by what there is; nothing of it is in a checkpoint."""

    def __init__(self, names: ClickFields, emit: Emit) -> None:
        self._names, self._emit = names, emit
        self.done = False
        self._messages = 0
        self._clicks: list[float] = []  # their times
        self._paths: Counter[str] = Counter()
        self._present: Counter[str] = Counter()  # messages that have one of our fields, where it is read from

    def update(self, value: bytes | None, event: Click | BadEvent) -> None:
        """Takes a message, and what it was read as."""
        self._messages += 1
        if isinstance(event, Click):
            self._clicks.append(event.timestamp)
        if isinstance(fields := _json(value), dict):
            self._paths.update(paths_in(fields))
            paths = {field: self._names.paths.get(field, field) for field in self._fields}
            self._present.update(field for field, path in paths.items() if at(fields, path) is not None)
        if self._messages == FIRST:
            self._check()

    @property
    def _fields(self) -> list[str]:
        return list(dict.fromkeys((*NEEDED, *self._names.paths)))

    def nothing_more(self, *, learned: int) -> None:
        """To be called while no message comes. `learned`: clicks so far, also before this start."""
        if not self.done and self._messages and (self._messages >= FEW or not learned):
            self._check()

    def _check(self) -> None:
        self.done = True
        missing = [field for field in self._fields if not self._present[field]]
        if self._messages < FIRST:
            missing = [field for field in missing if field in NEEDED]
        mapped = [field for field in missing if field in self._names.paths]
        if mapped or (missing and not self._clicks):
            self._emit(_KIND, self._missing_text(missing, mapped), {"messages": self._messages, "missing": missing})
        elif self._clicks and max(self._clicks) < _EARLY_S:
            latest = span(max(self._clicks))
            text = (
                f"the first {len(self._clicks):,} clicks were made within {latest} of the beginning of 1970, by their "
                "timestamps: they are taken as seconds since then. Are they dates, days, or times of another unit? "
                "Then hours and ages will be wrong"
            )
            self._emit(_KIND, text, {"messages": self._messages, "latest": max(self._clicks)})

    def _missing_text(self, missing: list[str], mapped: list[str]) -> str:
        half = max(self._paths.values(), default=0) / 2
        there = [path for path, count in self._paths.most_common() if count >= half and is_name(path)]
        shown = ", ".join(there[:_NAMES_MAX] + ["…"] * (len(there) > _NAMES_MAX))
        sought = ", ".join(
            f"{self._names.paths[field]} ({field}, by NEXTCLICK_CLICK_FIELDS)" if field in mapped else field
            for field in missing
        )
        ours = {field: path for field, path in self._names.paths.items() if field not in missing}
        found = suggested(there, missing)
        advice = "If these are clicks, NEXTCLICK_CLICK_FIELDS says where their fields stand, as in user_id=user.id"
        if found:
            advice = f"If these are clicks, set {as_setting(ours | found)}"
        of = f"of the first {self._messages:,} messages" if self._messages > 1 else "(there is one message so far)"
        if not self._paths:
            return f"none {of} is a JSON object with fields, and a click is one: nextclick dead-letters shows them"
        return f"none {of} has {sought}; there is: {shown or 'nothing whose name could be shown'}. {advice}"


def _json(value: bytes | None) -> Mapping[str, Any] | None:
    try:
        found = from_json((value or b"").removeprefix(BOM))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
