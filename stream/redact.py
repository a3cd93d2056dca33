"""How a value is shown: by its kind, cut short, or redacted so that nothing of it can be recognised.

What is redacted may stand in logs, notices and on pages that more users see than may see clicks: letters become x,
digits 9, what is long is cut. Of an object the names of fields stay, where they look like names: a name with digits in
it, or any other character that programmers do not use, may be a user's id.
"""

import math
import re
from typing import Any

from pydantic_core import from_json

BOM = b"\xef\xbb\xbf"
_CHARACTERS_MAX = 24  # shown of a text
_FIELDS_MAX = 12  # shown of an object
_DEPTH_MAX = 4
_LENGTH_MAX = 400  # of the whole
_NAME = re.compile(r"[A-Za-z_@$][A-Za-z_.$-]{0,63}")
_KEPT = frozenset(" !#$%&()*+,-./:;<=>?@[]^_`{|}~")


def kind(value: Any) -> str:
    """A JSON value's usual name."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    names = {type(None): "null", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names[type(value)]


def short(value: Any) -> str:
    """A value as Python writes it, cut."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of hundreds of digits"
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."


def redacted(value: bytes | None) -> str:
    """The structure of a message without what it says. Never raises."""
    if value is None:
        return "(no value)"
    try:
        text = _structure(from_json(value.removeprefix(BOM)), 0)
    except ValueError:
        cut = value[: 4 * _CHARACTERS_MAX]
        text = _masked(cut.decode("utf-8", "replace"), 2 * _CHARACTERS_MAX, len(value) > len(cut))
    return text if len(text) <= _LENGTH_MAX else text[: _LENGTH_MAX - 1] + "…"


def is_name(name: str) -> bool:
    """Whether it looks like a field's name, or several joined by dots: it may be shown."""
    return _NAME.fullmatch(name) is not None


def field_name(name: str) -> str:
    """A field's name, redacted where it does not look like one."""
    return name if is_name(name) else _masked(name, _CHARACTERS_MAX)


def _structure(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return f"text {_masked(value, _CHARACTERS_MAX)}" if value else "empty text"
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(_float(value)):
        return f"number {_masked(short(value), _CHARACTERS_MAX)}"
    if depth >= _DEPTH_MAX or not value or not isinstance(value, dict | list):
        return kind(value)
    if isinstance(value, list):
        more = f", … {len(value):,} in all" if len(value) > 1 else ""
        return f"[{_structure(value[0], depth + 1)}{more}]"
    shown = [f"{field_name(name)}: {_structure(value[name], depth + 1)}" for name in list(value)[:_FIELDS_MAX]]
    return "{" + ", ".join([*shown, "…"] if len(value) > len(shown) else shown) + "}"


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return 0.0  # an integer of hundreds of digits is a number all the same


def _masked(text: str, characters_max: int, cut: bool = False) -> str:
    """Letters as x, digits as 9, quotes as `: what stands in quotes in a notice is taken for an id."""
    masked = "".join(map(_mask, text[:characters_max]))
    return f"{masked}…" if cut or len(text) > characters_max else masked


def _mask(character: str) -> str:
    if character.isalpha():
        return "x"
    if character.isnumeric():
        return "9"
    if character in "'\"":
        return "`"
    return character if character in _KEPT else "?"
