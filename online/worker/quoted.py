"""Finds texts in quotes, since lines for operators quote ids."""

import re
from collections.abc import Iterable

_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def quoted_in(text: str) -> Iterable[str]:
    """Returns the texts in quotes, as in the last line of a traceback."""
    return (one or other for one, other in _QUOTED.findall(text))
