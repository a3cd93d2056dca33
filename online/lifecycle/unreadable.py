"""Notices that a large share of a topic's messages cannot be read: as that begins, and when it is over."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from online.lifecycle.emit import Emit
from stream.events import BadEvent
from stream.redact import redacted

UNREADABLE_MIN = 20  # unreadable messages at least, so that one of two is no alarm
UNREADABLE, OVER = "unreadable", "unreadable_over"


class Example(NamedTuple):
    """The first message of a reason, redacted, and the hint that came with it."""

    message: str
    hint: str


class UnreadableWatch:
    """Counts what can and what cannot be read of a topic; part of each checkpoint.

    It looks at the latest messages: at least half of `messages`, at most all of them. It begins where a `share` of them
    cannot be read, `UNREADABLE_MIN` at least, and is over where less than half of that share cannot. Nothing that it
    holds or tells names a user or quotes a message.
    """

    def __init__(self, topic: str, *, share: float, messages: int, emit: Emit) -> None:
        """`share`: 0: no notice is ever emitted."""
        self._topic, self._share, self._half, self._emit = topic, share, max(1, messages // 2), emit
        self.began = False  # and is not over
        self._meanwhile = 0  # unreadable messages since it began
        self._counted = [0, 0]  # messages of the half before this one, and of this one
        self._reasons: list[Counter[str]] = [Counter(), Counter()]  # of those that cannot be read, likewise
        self._examples: dict[str, Example] = {}

    def update(self, bad: BadEvent | None, value: bytes | None) -> None:
        """Takes one message: why it cannot be read (None: it can), and what it holds."""
        if self._counted[1] >= self._half:
            self._counted = [self._counted[1], 0]
            self._reasons = [self._reasons[1], Counter()]
            self._examples = {reason: one for reason, one in self._examples.items() if self._reasons[0][reason]}
        self._counted[1] += 1
        if bad is not None:
            self._reasons[1][bad.reason] += 1
            self._meanwhile += 1
            if bad.reason not in self._examples:
                self._examples[bad.reason] = Example(redacted(value), bad.hint)
            if not self.began and self._is_large():
                self.began, self._meanwhile = True, self._unreadable
                self._emit(UNREADABLE, self.text, self.figures)
        elif self.began and self._unreadable < self._share / 2 * sum(self._counted):
            self.began = False
            text = f"messages on {self._topic} can be read again; {self._meanwhile:,} became dead letters meanwhile"
            self._emit(OVER, text, self.figures | {"dead_letters": self._meanwhile})

    def _is_large(self) -> bool:
        unreadable = self._unreadable
        return bool(self._share) and unreadable >= max(UNREADABLE_MIN, self._share * sum(self._counted))

    @property
    def _unreadable(self) -> int:
        return self._reasons[0].total() + self._reasons[1].total()

    @property
    def text(self) -> str:
        """How it stands, in a line."""
        reason, count = self._commonest
        example = self._examples.get(reason, Example("", ""))
        unreadable, counted = self._unreadable, sum(self._counted)
        hint = f"; {example.hint}" if example.hint else ""
        return (
            f"{100 * unreadable / max(1, counted):.0f} % of the latest {counted:,} messages on {self._topic} cannot be "
            f"read and are dead letters, {count:,} of them because of {reason}{hint}. Such a message, redacted: "
            f"{example.message}"
        )

    @property
    def figures(self) -> dict[str, Any]:
        reasons = self._reasons[0] + self._reasons[1]
        share = self._unreadable / max(1, sum(self._counted))
        return {
            "topic": self._topic,
            "share": round(share, 4),
            "messages": sum(self._counted),
            "reasons": dict(reasons.most_common()),
        }

    @property
    def _commonest(self) -> tuple[str, int]:
        reasons = self._reasons[0] + self._reasons[1]
        return max(reasons.items(), key=lambda one: (one[1], one[0]), default=("", 0))

    def to_state(self) -> dict[str, Any]:
        return {
            "began": self.began,
            "meanwhile": self._meanwhile,
            "counted": list(self._counted),
            "reasons": [dict(one) for one in self._reasons],
            "examples": {reason: list(one) for reason, one in self._examples.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self.began, self._meanwhile = state["began"], state["meanwhile"]
        self._counted = list(state["counted"])
        self._reasons = [Counter(one) for one in state["reasons"]]
        self._examples = {reason: Example(*one) for reason, one in state["examples"].items()}
