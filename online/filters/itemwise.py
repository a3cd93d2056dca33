"""Filters evaluated item by item on plain values, where there are few items and no columns: as docs/filters.md says it,
and as online/filters/evaluate.py does it on columns. It needs no other package.

A part of a filter is True, False or None (unknown) of an item.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from online.filters.expression import (
    TAGS,
    TITLE,
    And,
    Available,
    Compare,
    Contains,
    In,
    Missing,
    Node,
    Not,
    Or,
    Tags,
    kind_of,
)

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class KnownItem(Protocol):
    """What is known of an item."""

    @property
    def title(self) -> str | None: ...

    @property
    def tags(self) -> tuple[str, ...]: ...

    @property
    def attributes(self) -> dict[str, bool | float | str]: ...

    @property
    def available(self) -> bool: ...


def keeps(node: Node, item: KnownItem) -> bool:
    """Returns whether a filter keeps an item. `node`: the root of the filter (`parse(text).root`)."""
    return truth(node, item) is True


def truth(node: Node, item: KnownItem) -> bool | None:
    """Returns whether a part of a filter is true of an item; None: it is not known."""
    match node:
        case And(parts) | Or(parts):
            return _joined([truth(part, item) for part in parts], decisive=isinstance(node, Or))
        case Not(part):
            inner = truth(part, item)
            return None if inner is None else not inner
        case Available():
            return item.available
        case Tags(how, tags):
            had = set(item.tags) & set(tags)
            return {"any": bool(had), "all": had == set(tags), "none": not had}[how]
        case Missing(name):
            return not item.tags if name == TAGS else _value(item, name) is None
        case _:
            return _compared(node, _value(item, node.name))


def _joined(parts: Sequence[bool | None], *, decisive: bool) -> bool | None:
    """`decisive`: what decides all, wherever it stands: True in an `or`, False in an `and`."""
    if decisive in parts:
        return decisive
    return None if None in parts else not decisive


def _value(item: KnownItem, name: str) -> bool | float | str | None:
    return (item.title or None) if name == TITLE else item.attributes.get(name)


def _compared(node: Compare | In | Contains, value: bool | float | str | None) -> bool | None:
    if value is None:
        return None
    match node:
        case Contains(text=text):
            return text.casefold() in value.casefold() if isinstance(value, str) else None
        case In(values=values):
            alike = [one for one in values if kind_of(one) == kind_of(value)]
            return value in alike if alike else None
        case Compare(sign=sign, value=other):
            return _OPERATORS[sign](value, other) if kind_of(value) == kind_of(other) else None
