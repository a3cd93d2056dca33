"""The language of filters: what a text says, as a tree. It needs no other package, so that each process can check one.

filter     = conjunction { "or" conjunction }
conjunction = term { "and" term }
term       = "not" term | "(" filter ")" | "missing" "(" attribute ")" | "available"
           | "tags" ( "any" | "all" | "none" ) "(" text { "," text } ")"
           | attribute [ comparison ]                      (alone: the attribute is true)
comparison = ( "==" | "=" | "!=" ) value | ( "<" | "<=" | ">" | ">=" ) ( number | text )
           | [ "not" ] "in" "(" value { "," value } ")" | "contains" text
value      = number | text | "true" | "false"
attribute  = a name, or anything between backquotes
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from online.filters.tokens import FilterError, Token, Value, tokens_of

DEPTH_MAX = 32  # parentheses and negations within one another
LITERALS_MAX = 256  # values and tags of a filter, all together
TITLE = "title"
TAGS = "tags"
NUMBER, TEXT, BOOLEAN = "number", "text", "boolean"  # kinds of values
_NEAR_NAMES_MAX = 3
_SIGNS = {"=": "==", "==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_TERM = "an attribute, 'tags', 'available', 'missing', 'not' or '('"
_PLURAL = {NUMBER: "numbers", TEXT: "text", BOOLEAN: "true or false"}


@dataclass(frozen=True, slots=True)
class And:
    """All of `parts`."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of `parts`."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of `part`."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class Compare:
    """An attribute beside one value; `sign` is one of == != < <= > >=."""

    name: str
    sign: str
    value: Value
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class In:
    """An attribute that has one of several values."""

    name: str
    values: tuple[Value, ...]
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Contains:
    """A text attribute that contains a text, whatever the case of letters."""

    name: str
    text: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Missing:
    """An attribute that the item does not have."""

    name: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Available:
    """The item is available."""


@dataclass(frozen=True, slots=True)
class Tags:
    """`how` is any, all or none."""

    how: str
    tags: tuple[str, ...]


Node = And | Or | Not | Compare | In | Contains | Missing | Available | Tags


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that was read."""

    text: str
    root: Node

    def check(self, kinds: Mapping[str, Collection[str]]) -> None:
        """Raises FilterError where the filter names an attribute that no item has, or compares one with values of a
        kind that it has in no item.

        Args:
            kinds: NUMBER, TEXT, BOOLEAN of each attribute's values. Title and tags need not be among them.
        """
        for node in leaves(self.root):
            if isinstance(node, Compare | In | Contains | Missing) and node.name != TAGS:
                _check_leaf(node, {**kinds, TITLE: {TEXT}})


def parse(text: str) -> Filter:
    """Reads a filter. Raises FilterError, and nothing else, whatever the text is."""
    return Filter(text, _Parser(text).whole())


def leaves(node: Node) -> Iterator[Node]:
    """The parts of a tree that have no parts, from left to right."""
    if isinstance(node, And | Or):
        for part in node.parts:
            yield from leaves(part)
    elif isinstance(node, Not):
        yield from leaves(node.part)
    else:
        yield node


def kind_of(value: Value) -> str:
    """NUMBER, TEXT or BOOLEAN."""
    if isinstance(value, bool):
        return BOOLEAN
    return TEXT if isinstance(value, str) else NUMBER


def _check_leaf(node: Compare | In | Contains | Missing, kinds: Mapping[str, Collection[str]]) -> None:
    had = kinds.get(node.name)
    if not had:
        near = difflib.get_close_matches(node.name, [*kinds, TAGS], _NEAR_NAMES_MAX)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise FilterError(f"no item has an attribute {node.name!r}{hint}", node.position)
    if isinstance(node, Missing):
        return
    asked = {TEXT} if isinstance(node, Contains) else {kind_of(node.value)} if isinstance(node, Compare) else set()
    asked |= {kind_of(value) for value in node.values} if isinstance(node, In) else set()
    if not asked & set(had):
        wrong, right = (
            " and ".join(plural for kind, plural in _PLURAL.items() if kind in some) for some in (asked, had)
        )
        raise FilterError(f"{node.name!r} has {right} in every item, not {wrong}", node.position)


def _check_name(token: Token) -> None:
    if token.value in {TAGS, "available"}:
        raise FilterError(f"{token.value} is no attribute: write it without backquotes", token.position, "an attribute")


class _Parser:
    """Recursive descent, one function for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.tokens = tokens_of(text)
        self.at = 0
        self.depth = 0
        self.literals = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def whole(self) -> Node:
        if self.next.kind == "end":
            raise FilterError(f"the filter is empty; expected {_TERM}", 1, _TERM)
        root = self.disjunction()
        if self.next.kind != "end":
            raise self.wrong("'and', 'or' or the end")
        return root

    def disjunction(self) -> Node:
        parts = [self.conjunction()]
        while self.took("or"):
            parts.append(self.conjunction())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def conjunction(self) -> Node:
        parts = [self.term()]
        while self.took("and"):
            parts.append(self.term())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def term(self) -> Node:
        token = self.next
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise FilterError(f"more than {DEPTH_MAX} parentheses and negations within one another", token.position)
        node = self._term()
        self.depth -= 1
        return node

    def _term(self) -> Node:
        if self.took("not"):
            return Not(self.term())
        if self.took("("):
            node = self.disjunction()
            self.expect(")", "'and', 'or' or ')'")
            return node
        if self.took("missing"):
            return self.missing()
        if self.took("available"):
            return Available()
        if self.took(TAGS):
            return self.tags()
        if self.next.kind in {"name", "quoted"}:
            return self.attribute(self.take())
        raise self.wrong(_TERM)

    def missing(self) -> Node:
        self.expect("(")
        if self.next.kind not in {"name", "quoted"} and self.next.text != TAGS:
            raise self.wrong("an attribute")
        token = self.take()
        if token.kind == "quoted":
            _check_name(token)
        self.expect(")")
        return Missing(str(token.value), token.position)

    def tags(self) -> Node:
        if self.next.text not in {"any", "all", "none"}:
            raise self.wrong("'any', 'all' or 'none'")
        how = self.take().text
        return Tags(how, tuple(dict.fromkeys(str(value) for value in self.values(texts_only=True))))

    def attribute(self, token: Token) -> Node:
        name, position = str(token.value), token.position
        _check_name(token)
        if self.next.kind == "sign" and self.next.text in _SIGNS:
            sign = _SIGNS[self.take().text]
            value = self.value("a number, a text, 'true' or 'false'")
            if isinstance(value, bool) and sign not in {"==", "!="}:
                self.at -= 1
                raise self.wrong("a number or a text")
            return Compare(name, sign, value, position)
        if self.took("not"):
            if self.next.text != "in":
                raise self.wrong("'in'")
            self.at += 1
            return Not(In(name, self.values(), position))
        if self.took("in"):
            return In(name, self.values(), position)
        if self.took("contains"):
            if self.next.kind != "text":
                raise self.wrong("a text in quotes")
            return Contains(name, str(self.value("")), position)
        if self.next.kind == "end" or self.next.text in {"and", "or", ")"}:
            return Compare(name, "==", True, position)
        raise self.wrong("a comparison (== != < <= > >= in contains), 'and', 'or' or the end")

    def values(self, *, texts_only: bool = False) -> tuple[Value, ...]:
        """Values in parentheses, at least one."""
        self.expect("(")
        what = "a text in quotes" if texts_only else "a number, a text, 'true' or 'false'"
        values: list[Value] = []
        while not values or self.took(","):
            if texts_only and self.next.kind != "text":
                raise self.wrong(what)
            values.append(self.value(what))
        self.expect(")", "',' or ')'")
        return tuple(values)

    def value(self, what: str) -> Value:
        token = self.next
        self.literals += 1
        if self.literals > LITERALS_MAX:
            raise FilterError(f"the filter has more than {LITERALS_MAX} values", token.position)
        if token.kind in {"number", "text"}:
            return self.take().value
        if token.kind == "keyword" and token.text in {"true", "false"}:
            return self.take().text == "true"
        raise self.wrong(what)

    def take(self) -> Token:
        token = self.next
        self.at += 1
        return token

    def took(self, text: str) -> bool:
        """Takes the next token if it is this keyword or sign."""
        if self.next.kind in {"keyword", "sign"} and self.next.text == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str, what: str = "") -> None:
        if not self.took(text):
            raise self.wrong(what or f"'{text}'")

    def wrong(self, expected: str) -> FilterError:
        return FilterError(f"expected {expected}, found {self.next.shown}", self.next.position, expected)
