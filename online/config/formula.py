"""The language of objectives: what lists are ranked by, as a small formula. It needs no other package of ours, so that
each process can check one.

formula = number | name | "(" formula ")" | "-" formula | formula ( "+" | "-" | "*" | "/" | "**" ) formula
        | ( "log" | "exp" | "sqrt" ) "(" formula ")" | ( "min" | "max" ) "(" formula "," formula { "," formula } ")"

Precedence is Python's, and so is the parser (`ast`, in its mode for expressions); nothing is ever run by Python.
"""

import ast
import math
from collections.abc import Collection
from dataclasses import dataclass

LENGTH_MAX = 500  # characters
DEPTH_MAX = 32  # operations within one another
P_CLICK, VALUE, WORTH = "p_click", "value", "worth"
FUNCTIONS = {"log": 1, "exp": 1, "sqrt": 1, "min": 2, "max": 2}  # arguments; of min and max at least
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_OPERAND = "a number, a name, '-', '(' or one of log, exp, sqrt, min, max"


class FormulaError(ValueError):
    """A formula that cannot be used: one line.

    Attributes:
        position: of the character at which it goes wrong, counted from 1; None: of the formula as a whole.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message if position is None else f"at character {position}: {message}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Name:
    """A figure of a candidate."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation on formulas; `sign` is an operator or a function, `neg` for the unary minus."""

    sign: str
    parts: tuple["Node", ...]


Node = float | Name | Apply


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that was read."""

    text: str
    root: Node
    names: frozenset[str]


def parse(text: str, known: Collection[str]) -> Formula:
    """Reads a formula.

    Args:
        text: the formula.
        known: names that may stand in it.

    Raises:
        FormulaError: and nothing else, whatever the text is.
    """
    if len(text) > LENGTH_MAX:
        raise FormulaError(f"it has {len(text)} characters; at most {LENGTH_MAX} are read")
    lead = len(text) - len(text.lstrip())
    line = "".join(" " if character.isspace() else character for character in text.strip())
    if not line:
        raise FormulaError(f"it is empty; expected {_OPERAND}")
    reader = _Reader(line, lead, known)
    try:
        tree = ast.parse(line, mode="eval")
    except SyntaxError as error:
        at = min(error.offset or len(line) + 1, len(line) + 1)  # without a place: at its end
        found = f"'{line[at - 1]}'" if at <= len(line) else "the end"
        raise FormulaError(
            f"expected {_OPERAND}, or an operator between two of them, near {found}", lead + at
        ) from None
    except (ValueError, MemoryError, RecursionError):
        raise FormulaError("it cannot be read: a character that is no text, or too many parentheses") from None
    root = reader.node(tree.body, 1)
    return Formula(text, root, frozenset(reader.names))


class _Reader:
    """Takes over what is allowed of Python's tree."""

    def __init__(self, line: str, lead: int, known: Collection[str]) -> None:
        self.bytes, self.lead, self.known = line.encode(), lead, known
        self.names: set[str] = set()

    def node(self, node: ast.expr, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise FormulaError(f"more than {DEPTH_MAX} operations within one another", self._position(node))
        match node:
            case ast.Constant(value=bool() | str() | bytes() | complex() | None):
                pass
            case ast.Constant(value=int() | float() as value):
                return self._number(node, value)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return Apply("neg", (self.node(part, depth + 1),))
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
                return Apply(_OPERATORS[type(op)], (self.node(left, depth + 1), self.node(right, depth + 1)))
            case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
                least, more = FUNCTIONS[name], name in {"min", "max"}
                if len(parts) < least or (len(parts) > least and not more):
                    wanted = f"{least} formulas or more" if more else "one formula"
                    raise FormulaError(f"{name} takes {wanted}, not {len(parts)}", self._position(node))
                return Apply(name, tuple(self.node(part, depth + 1) for part in parts))
            case ast.Call(func=ast.Name(id=name)):
                raise FormulaError(
                    f"there is no function {name!r}; there are {', '.join(FUNCTIONS)}", self._position(node)
                )
        raise FormulaError(
            f"expected {_OPERAND}, found {self.bytes[node.col_offset : node.end_col_offset].decode()[:30]!r}",
            self._position(node),
        )

    def _number(self, node: ast.expr, value: float) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise FormulaError("the number is too large", self._position(node))
        return number

    def _name(self, node: ast.expr, name: str) -> Name:
        if name not in self.known:
            raise FormulaError(f"nothing is called {name!r}; there are {', '.join(self.known)}", self._position(node))
        self.names.add(name)
        return Name(name)

    def _position(self, node: ast.expr) -> int:
        return self.lead + len(self.bytes[: node.col_offset].decode()) + 1
