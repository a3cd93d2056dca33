"""A filter's text as tokens, and the one error that a filter can cause."""

import math
import re
from typing import NamedTuple

LENGTH_MAX = 4_000  # characters of a filter
KEYWORDS = frozenset(
    {
        *("and", "or", "not", "in", "any", "all", "none", "contains", "missing", "true", "false"),
        *("available", "tags"),
    }
)
_TOKEN = re.compile(
    r"""
    (?P<number>-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![\w.])
  | (?P<name>[^\W\d]\w*)
  | (?P<quoted>`[^`]+`)
  | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<sign>==|!=|<=|>=|=|<|>|\(|\)|,)
    """,
    re.VERBOSE | re.DOTALL,
)
_BLANK = re.compile(r"\s*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SHOWN_MAX = 30  # characters of a token in an error

Value = float | str | bool


class FilterError(ValueError):
    """A filter that cannot be used.

    Attributes:
        position: of the character at which it goes wrong, counted from 1; None: of the filter as a whole.
        expected: what was expected there; empty where the text is right and something else is wrong.
    """

    def __init__(self, message: str, position: int | None = None, expected: str = "") -> None:
        super().__init__(message if position is None else f"at character {position}: {message}")
        self.position = position
        self.expected = expected


class Token(NamedTuple):
    """One word of a filter."""

    kind: str  # number, name, quoted, text, sign, keyword; end
    text: str  # as it stands in the filter
    position: int  # of its first character, counted from 1
    value: Value = ""  # of a number or a text; the name of an attribute

    @property
    def shown(self) -> str:
        """The token in an error."""
        if self.kind == "end":
            return "the end"
        text = self.text if len(self.text) <= _SHOWN_MAX else self.text[:_SHOWN_MAX] + "…"
        return text if self.kind in {"text", "quoted"} else f"'{text}'"


def tokens_of(text: str) -> list[Token]:
    """The tokens of a filter, the end last. Raises FilterError."""
    if len(text) > LENGTH_MAX:
        raise FilterError(f"the filter has {len(text)} characters; at most {LENGTH_MAX} are read")
    tokens, at = [], _end_of_blank(text, 0)
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _unreadable(text, at)
        tokens.append(_token(match, at + 1))
        at = _end_of_blank(text, match.end())
    return [*tokens, Token("end", "", len(text) + 1)]


def _end_of_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return at if blank is None else blank.end()


def _token(match: re.Match[str], position: int) -> Token:
    kind, text = str(match.lastgroup), match.group()
    if kind == "number":
        value = float(text)
        if not math.isfinite(value):
            raise FilterError("the number is too large", position, "a smaller number")
        return Token(kind, text, position, value)
    if kind == "text":
        return Token(kind, text, position, _ESCAPE.sub(r"\1", text[1:-1]))
    if kind == "quoted":
        return Token(kind, text, position, text[1:-1])
    if kind == "name":
        return Token("keyword" if text in KEYWORDS else kind, text, position, text)
    return Token(kind, text, position)


def _unreadable(text: str, at: int) -> FilterError:
    character = text[at]
    if character in "\"'`":
        what = "name" if character == "`" else "text"
        return FilterError(f"expected a closing {character}: the {what} has no end", at + 1, f"a closing {character}")
    if character.isdigit() or (character in "-." and text[at + 1 : at + 2].isdigit()):
        return FilterError("expected a number, such as 20 or 0.5", at + 1, "a number")
    return FilterError(f"{character!a} cannot stand here", at + 1, "a name, a value, an operator or a parenthesis")
