"""Verdicts of checks."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "wrong", "not checked"]

#: From harmless to grave.
STATES: tuple[State, ...] = ("ok", "not checked", "warning", "wrong")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check found.

    `area`: settings, broker, redis, clock or folder; `check`: what was looked at; `text`: what was found, or why
    nothing could be; `way_out`: what to do, one sentence, empty where nothing is to be done.
    """

    area: str
    check: str
    state: State
    text: str
    way_out: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def any_wrong(verdicts: Collection[Verdict]) -> bool:
    """Whether something does not work, or will lose data."""
    return any(verdict.state == "wrong" for verdict in verdicts)


def size(count: float) -> str:
    """Bytes in a short form."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def span(seconds: float) -> str:
    """A duration in a short form."""
    for unit, of in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * of:
            return f"{seconds / of:,.1f} {unit}".replace(".0 ", " ")
    return f"{seconds:,.1f} s"
