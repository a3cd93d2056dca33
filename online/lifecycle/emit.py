"""How what happens to the model reaches operators."""

from collections.abc import Mapping
from typing import Any, Protocol


class Emit(Protocol):
    """Emits an event: a line in the log, a record, a count."""

    def __call__(self, kind: str, text: str, figures: Mapping[str, Any], /) -> object:
        """`kind`: one of `KINDS` (online/worker/notices.py); `text`: one line; `figures`: what it rests on."""
