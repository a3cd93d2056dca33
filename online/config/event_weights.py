"""What an event is worth by its type: `click=1,purchase=5,return=-5`, and how formulas name the chance of each."""

import math
import re
from collections.abc import Iterable, Mapping

from online.config.formula import P_CLICK, VALUE, WORTH

TYPES_MAX = 12
WEIGHT_MAX = 1_000.0
TYPE_BYTES_MAX = 64  # as of a click's event type
_NO_NAME = re.compile(r"[^a-z0-9_]")


def weights_in(text: str) -> dict[str, float]:
    """`TYPE=WEIGHT,TYPE=WEIGHT` -> the weight of each event type, in that order.

    Raises:
        ValueError: one line, for a pair that is none, a weight that is no number, or a type that is given twice.
    """
    found: dict[str, float] = {}
    for pair in text.split(",") if text.strip() else ():
        name, equals, number = (part.strip() for part in pair.rpartition("="))
        if not equals or not name:
            raise ValueError(f"{pair.strip()!r} is no pair of an event type and its weight, as in purchase=5")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not abs(weight) <= WEIGHT_MAX:
            raise ValueError(f"{name}: {number!r} is no number from -{WEIGHT_MAX:g} to {WEIGHT_MAX:g}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        if len(name.encode()) > TYPE_BYTES_MAX:
            raise ValueError(f"{name[:20]}…: an event type has at most {TYPE_BYTES_MAX} bytes")
        found[name] = weight
    if len(found) > TYPES_MAX:
        raise ValueError(f"at most {TYPES_MAX} event types, not {len(found)}")
    names_of(found)
    return found


def names_of(types: Iterable[str]) -> dict[str, str]:
    """Returns what formulas call the chance of each event type: `p_purchase`; of the type `click`, `p_type_click`,
    since `p_click` is the chance that an item is next at all.

    Raises:
        ValueError: two types have the same name.
    """
    found: dict[str, str] = {}
    for one in types:
        name = "p_" + _NO_NAME.sub("_", one.lower())
        name = "p_type_click" if name == P_CLICK else name
        other = next((before for before, taken in found.items() if taken == name), None)
        if other is not None:
            raise ValueError(f"{other} and {one} would both be called {name} in formulas")
        found[one] = name
    return found


def known_names(weights: Mapping[str, float], *, built: bool) -> tuple[str, ...]:
    """Returns the names that a formula may hold. `built`: whether more than clicks is predicted."""
    return (P_CLICK, *names_of(weights).values(), VALUE, WORTH) if built else (P_CLICK,)
