"""Texts in quotes: in lines for operators an id stands in them."""

import re
from collections.abc import Iterable

_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def quoted_in(text: str) -> Iterable[str]:
    """What stands in quotes, as in the last line of a traceback."""
    return (one or other for one, other in _QUOTED.findall(text))
