"""Filters evaluated item by item on plain values: slow, and as docs/filters.md says it. None stands for unknown."""

from typing import Any

from online.filters.expression import And, Available, Compare, Contains, In, Missing, Node, Not, Or, Tags, kind_of
from stream.items import Item


def keeps(node: Node, item: Item) -> bool:
    return truth(node, item) is True


def truth(node: Node, item: Item) -> bool | None:
    if isinstance(node, And | Or):
        return joined([truth(part, item) for part in node.parts], least=isinstance(node, And))
    if isinstance(node, Not):
        inner = truth(node.part, item)
        return None if inner is None else not inner
    if isinstance(node, Available):
        return item.available
    if isinstance(node, Tags):
        had = set(item.tags) & set(node.tags)
        return {"any": bool(had), "all": had == set(node.tags), "none": not had}[node.how]
    if isinstance(node, Missing):
        return not item.tags if node.name == "tags" else value_of(item, node.name) is None
    return compared(node, value_of(item, node.name))


def joined(parts: list[bool | None], *, least: bool) -> bool | None:
    if (not least) in parts:
        return not least
    return None if None in parts else least


def value_of(item: Item, name: str) -> Any:
    return (item.title or None) if name == "title" else item.attributes.get(name)


def compared(node: Node, value: Any) -> bool | None:
    if value is None:
        return None
    if isinstance(node, Contains):
        return node.text.casefold() in value.casefold() if isinstance(value, str) else None
    if isinstance(node, In):
        return value in node.values if kind_of(value) in set(map(kind_of, node.values)) else None
    assert isinstance(node, Compare)
    if kind_of(value) != kind_of(node.value):
        return None
    return {
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }[node.sign](value, node.value)
