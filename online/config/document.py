"""Writes docs/settings.md: `python -m online.config.document > docs/settings.md`."""

from typing import Any

from pydantic.fields import FieldInfo

from online.config.sections.fields import advice_on, is_fixed
from online.config.settings import ENV_FILE, PREFIX, SECRETS_DIR, SECTIONS

_HEAD = f"""# Settings

Every setting has a default that runs. Set one by an environment variable, by a line `{PREFIX}NAME=value` of the file
that `{ENV_FILE}` names, or by a file of that name in the folder that `{SECRETS_DIR}` names. The first of
them that has it wins. An empty value means the default. Every process checks all settings when it starts and names each
one that cannot be used.

This page is made from the code: `python -m online.config.document > docs/settings.md`.
"""

#: The unit that a part of a name stands for.
_UNITS = {
    "s": "seconds",
    "ms": "milliseconds",
    "bytes": "bytes",
    "clicks": "clicks",
    "steps": "steps",
    "messages": "messages",
    "records": "messages",
    "histories": "histories",
    "users": "users",
    "items": "items",
    "share": "share, 0 to 1",
}
_RATES = {"requests_per_s": "requests per second", "clicks_per_minute": "clicks per minute"}


def page() -> str:
    """The whole page, in Markdown."""
    lines = [_HEAD]
    for section in SECTIONS:
        title, _, remark = (section.__doc__ or "").partition(". ")
        lines += [f"## {title.rstrip('.')}", ""]
        lines += [remark, ""] if remark else []
        lines += ["| setting | default | unit | what it does |", "| --- | --- | --- | --- |"]
        lines += [_row(name, field) for name, field in section.model_fields.items() if not is_fixed(field)]
        lines += [""]
    return "\n".join(lines)


def _unit(name: str) -> str:
    """The unit of a setting, as its name says it; empty where it has none."""
    for rate, unit in _RATES.items():
        if name.endswith(rate):
            return unit
    return next((unit for part, unit in _UNITS.items() if part in name.split("_")), "")


def _row(name: str, field: FieldInfo) -> str:
    what = " ".join(filter(None, (field.description, advice_on(field))))
    number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
    is_number = number or (isinstance(field.default, tuple) and all(isinstance(one, float) for one in field.default))
    unit = _unit(name) if is_number and field.default != () else ""
    return f"| `{PREFIX}{name.upper()}` | {_default(field)} | {unit} | {what.replace('|', chr(92) + '|')} |"


def _default(field: FieldInfo) -> str:
    return f"`{text}`" if (text := _text(field.default)) and field.default_factory is None else ""


def _text(value: Any) -> str:
    """A value as a variable has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}" if value < 1e5 else f"{value:.0f}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    print(page(), end="")
