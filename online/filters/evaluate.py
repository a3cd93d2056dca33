"""Filters compiled to functions over columns: a mask of many items at once.

Letters: `S` slots of the columns, `N` items that are asked about.

A part of a filter is true, false or unknown of an item (Kleene's three-valued logic). A comparison with an attribute
that the item does not have, or has with a value of another kind, is unknown, and so is its negation. An `and` is false
where a part is false, else unknown where a part is unknown; an `or` is true where a part is true, else unknown where a
part is unknown. An item is kept where the whole filter is true. `missing`, `available` and `tags` are never unknown.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from online.filters.expression import (
    BOOLEAN,
    NUMBER,
    TAGS,
    TEXT,
    And,
    Available,
    Compare,
    Contains,
    Filter,
    In,
    Missing,
    Node,
    Not,
    Or,
    Tags,
    kind_of,
    parse,
)
from online.filters.tokens import Value

COMPILED_HELD = 256  # filters that stay compiled, by their text
Mask = NDArray[np.bool_]


class Texts(Protocol):
    """A column of texts, each of which has a number."""

    codes: NDArray[np.int32]  # (S,) 0: missing

    def code_of(self, text: str) -> int:
        """The number of a text; −1 where no item has it."""

    def text_of(self, code: int) -> str:
        """The text with a number in use."""


class Columns(Protocol):
    """What is known of items, by slot. Slot 0 belongs to no item and has nothing."""

    def numbers(self, name: str) -> NDArray[np.float64] | None:
        """(S,) NaN: missing. None: no item has such a value."""

    def booleans(self, name: str) -> NDArray[np.int8] | None:
        """(S,) 1: true, 0: false, −1: missing. None: no item has such a value."""

    def texts(self, name: str) -> Texts | None:
        """None: no item has such a value."""

    def tagged(self, tag: str) -> NDArray[np.uint32]:
        """The slots of the items that have a tag."""

    def tag_counts(self) -> NDArray[np.uint8]:
        """(S,) how many tags each item has."""


class Rows(NamedTuple):
    """The items that a filter is asked about."""

    columns: Columns
    slots: NDArray[np.int64]  # (N,) 0 where nothing is known of the item
    available: Mask  # (N,)


class Truth(NamedTuple):
    """Of which items something is true (N,), and of which it is false (N,); it is unknown of the others."""

    yes: Mask
    no: Mask


_Evaluate = Callable[[Rows], Truth]
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A filter as a function."""

    filter: Filter
    evaluate: _Evaluate

    def mask(self, rows: Rows) -> Mask:
        """Which of the items (N,) the filter keeps."""
        return self.evaluate(rows).yes


@lru_cache(COMPILED_HELD)
def compiled(text: str) -> CompiledFilter:
    """Reads and compiles a filter, once. Raises FilterError."""
    read = parse(text)
    return CompiledFilter(read, _compile(read.root))


def _compile(node: Node) -> _Evaluate:
    match node:
        case And(parts):
            return _and([_compile(part) for part in parts])
        case Or(parts):
            return _or([_compile(part) for part in parts])
        case Not(part):
            return _not(_compile(part))
        case Compare() | In() | Contains():
            return _comparison(node)
        case _:
            return lambda rows: _certain(_fact(rows, node))


def _comparison(node: Compare | In | Contains) -> _Evaluate:
    """What is unknown where the value is missing."""
    match node:
        case Compare(name, sign, value):
            return _compare(name, sign, value)
        case In(name, values):
            return _in(name, values)
        case Contains(name, text):
            folded = text.casefold()
            return lambda rows: _texts_that(rows, name, lambda had: folded in had.casefold())


def _fact(rows: Rows, node: Missing | Available | Tags) -> Mask:
    """What is known of every item."""
    match node:
        case Missing(name):
            return _is_missing(rows, name)
        case Available():
            return rows.available
        case Tags(how, tags):
            return _tags(rows, how, tags)


def _and(parts: list[_Evaluate]) -> _Evaluate:
    def evaluate(rows: Rows) -> Truth:
        each = [part(rows) for part in parts]
        return Truth(np.logical_and.reduce([one.yes for one in each]), np.logical_or.reduce([one.no for one in each]))

    return evaluate


def _or(parts: list[_Evaluate]) -> _Evaluate:
    def evaluate(rows: Rows) -> Truth:
        each = [part(rows) for part in parts]
        return Truth(np.logical_or.reduce([one.yes for one in each]), np.logical_and.reduce([one.no for one in each]))

    return evaluate


def _not(part: _Evaluate) -> _Evaluate:
    def evaluate(rows: Rows) -> Truth:
        yes, no = part(rows)
        return Truth(no, yes)

    return evaluate


def _certain(yes: Mask) -> Truth:
    return Truth(yes, ~yes)


def _unknown(rows: Rows) -> Truth:
    return Truth(np.zeros(len(rows.slots), np.bool_), np.zeros(len(rows.slots), np.bool_))


def _known(yes: Mask, present: Mask) -> Truth:
    """Where a value is present it is true or false; elsewhere unknown."""
    return Truth(yes & present, ~yes & present)


def _compare(name: str, sign: str, value: Value) -> _Evaluate:
    holds = _OPERATORS[sign]
    if isinstance(value, str):
        if sign in {"==", "!="}:
            equal = _in(name, (value,))
            return equal if sign == "==" else _not(equal)
        return lambda rows: _texts_that(rows, name, lambda had: holds(had, value))
    if isinstance(value, bool):
        return lambda rows: _booleans_that(rows, name, lambda had: holds(had, int(value)))
    return lambda rows: _numbers_that(rows, name, lambda had: holds(had, value))


def _in(name: str, values: tuple[Value, ...]) -> _Evaluate:
    """One of several values. It is unknown of an item whose value is of a kind that none of them has."""
    parts: list[_Evaluate] = []
    by_kind = {kind: [value for value in values if kind_of(value) == kind] for kind in (NUMBER, TEXT, BOOLEAN)}
    if numbers := by_kind[NUMBER]:
        parts.append(lambda rows: _numbers_that(rows, name, lambda had: _among(had, numbers)))
    if booleans := by_kind[BOOLEAN]:
        parts.append(lambda rows: _booleans_that(rows, name, lambda had: _among(had, [int(one) for one in booleans])))
    if texts := by_kind[TEXT]:
        parts.append(lambda rows: _texts_in(rows, name, [str(one) for one in texts]))

    def evaluate(rows: Rows) -> Truth:  # of an item at most one kind is known
        each = [part(rows) for part in parts]
        return Truth(np.logical_or.reduce([one.yes for one in each]), np.logical_or.reduce([one.no for one in each]))

    return evaluate


def _among(had: NDArray[Any], values: list[Any]) -> Mask:
    if len(values) == 1:
        return np.asarray(had == values[0])
    return np.isin(had, values)


def _numbers_that(rows: Rows, name: str, holds: Callable[[NDArray[Any]], Mask]) -> Truth:
    column = rows.columns.numbers(name)
    if column is None:
        return _unknown(rows)
    had = column[rows.slots]
    return _known(holds(had), ~np.isnan(had))


def _booleans_that(rows: Rows, name: str, holds: Callable[[NDArray[Any]], Mask]) -> Truth:
    column = rows.columns.booleans(name)
    if column is None:
        return _unknown(rows)
    had = column[rows.slots]
    return _known(holds(had), had >= 0)


def _texts_in(rows: Rows, name: str, texts: list[str]) -> Truth:
    column = rows.columns.texts(name)
    if column is None:
        return _unknown(rows)
    had = column.codes[rows.slots]
    return _known(_among(had, [column.code_of(text) for text in texts]), had > 0)


def _texts_that(rows: Rows, name: str, holds: Callable[[str], bool]) -> Truth:
    """Each text is looked at once, however many items have it."""
    column = rows.columns.texts(name)
    if column is None:
        return _unknown(rows)
    had = column.codes[rows.slots]
    codes, each = np.unique(had, return_inverse=True)
    true = np.array([code > 0 and holds(column.text_of(code)) for code in codes.tolist()], np.bool_)
    return _known(true[each], had > 0)


def _is_missing(rows: Rows, name: str) -> Mask:
    if name == TAGS:
        return np.asarray(rows.columns.tag_counts()[rows.slots] == 0)
    present = np.zeros(len(rows.slots), np.bool_)
    if (numbers := rows.columns.numbers(name)) is not None:
        present |= ~np.isnan(numbers[rows.slots])
    if (booleans := rows.columns.booleans(name)) is not None:
        present |= booleans[rows.slots] >= 0
    if (texts := rows.columns.texts(name)) is not None:
        present |= texts.codes[rows.slots] > 0
    return ~present


def _tags(rows: Rows, how: str, tags: tuple[str, ...]) -> Mask:
    counts = np.zeros(len(rows.columns.tag_counts()), np.uint16)  # (S,) of these tags; at most LITERALS_MAX
    for tag in tags:
        counts[rows.columns.tagged(tag)] += 1  # a slot stands there once
    had = counts[rows.slots]
    return np.asarray({"any": had > 0, "all": had == len(tags), "none": had == 0}[how])
