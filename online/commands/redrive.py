"""Dead letters: which there are, and how those that can be read by now, or were repaired, are sent round again, once.

A letter is sent first and marked then. So a crash in between sends it a second time, once: an `event_id` makes that
harmless, and without one it is learned twice.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream import feedback, items, users
from stream.click_fields import ClickFields
from stream.dead_letters import UNDECODABLE_BATCH, DeadLetter, Place, mark_redriven, send_again
from stream.events import BadEvent, Click, Forget, Limits, parse
from stream.source import Producer

SENT_AT_ONCE = 500  # before they are marked: so many a crash may send twice
SENT_ALREADY = "sent again already"

Found = BadEvent | Click | Forget | feedback.Feedback | items.Item | users.User | None


class RedriveError(Exception):
    """The file of repaired messages cannot be used; one line that names it and what is wrong."""


@dataclass
class Wanted:
    """Which letters: `reason`, `topic` of the message, put there since `since_ms` (milliseconds since 1970)."""

    reason: str | None = None
    topic: str | None = None
    since_ms: int | None = None

    def __call__(self, letter: DeadLetter) -> bool:
        return (
            self.reason in (None, letter.reason)
            and self.topic in (None, letter.topic)
            and letter.record.timestamp_ms >= (self.since_ms or 0)
        )


@dataclass
class Redriven:
    """What came of it: how many were sent, or would be; what of the others, by reason: they stay."""

    sent: int = 0
    stay: Counter[str] = field(default_factory=Counter)
    missing: list[Place] = field(default_factory=list)  # places that were named, where no letter came from

    def as_dict(self) -> dict[str, Any]:
        return {"sent": self.sent, "stay": dict(self.stay)}


def redrive(
    letters: Iterable[DeadLetter],
    marked: set[Place],
    producer: Producer,
    topic: str,
    *,
    check: Callable[[str, bytes | None, bytes | None], Found],
    repaired: Mapping[Place, bytes] | None = None,
    again: bool = False,
    dry_run: bool = False,
) -> Redriven:
    """Sends what can be read to the topics it came from, and marks it on `topic`, where the letters are.

    check: reads a message (topic, key, value); None: of no topic of ours. repaired: new values; with them, only theirs
    are sent. again: also what came back after it had been sent. Raises SourceError.
    """
    done, waiting = Redriven(), list[DeadLetter]()
    for letter in letters:
        if repaired is not None and letter.place not in repaired:
            continue
        value = letter.record.value if repaired is None else repaired[letter.place]
        found = check(letter.topic, letter.record.key, value)
        why_not = _why_not(letter, found, marked, again=again, whole=repaired is not None)
        if why_not is not None:
            done.stay[why_not] += 1
            continue
        done.sent += 1
        if dry_run:
            continue
        # A repaired record may have another user, or have one at last: its order is theirs.
        key = (
            found.user_id.encode()
            if repaired is not None and isinstance(found, Click | feedback.Feedback)
            else letter.record.key
        )
        # What every partition has must not be in one of them twice.
        send_again(producer, letter, value, key, letter.partition if isinstance(found, Forget) else None)
        waiting.append(letter)
        if len(waiting) == SENT_AT_ONCE:
            _mark(producer, waiting, topic)
    _mark(producer, waiting, topic)
    done.missing = sorted((repaired or {}).keys() - {letter.place for letter in letters})
    if done.missing:
        done.stay["there is no such letter"] += len(done.missing)
    return done


def _why_not(letter: DeadLetter, found: Found, marked: set[Place], *, again: bool, whole: bool) -> str | None:
    if letter.place in marked:
        return SENT_ALREADY
    if letter.came_back and not again:
        return "came back (--again)"
    if letter.reason == UNDECODABLE_BATCH and not whole:
        return "stands for a batch that cannot be decoded"
    if letter.truncated is not None and not whole:
        return "its end is cut off"
    if found is None:
        return "of no topic that is read"
    return found.reason if isinstance(found, BadEvent) else None


def _mark(producer: Producer, letters: list[DeadLetter], topic: str) -> None:
    """Once they are there; and then the marks are."""
    producer.flush()
    for letter in letters:
        mark_redriven(producer, letter, topic)
    producer.flush()
    letters.clear()


def reader_of(
    clicks_topic: str,
    items_topic: str,
    limits: Limits,
    names: ClickFields | None = None,
    feedback_topic: str | None = None,
    *,
    users_topic: str | None = None,
) -> Callable[[str, bytes | None, bytes | None], Found]:
    """Reads a message as the worker does. `names`: where fields of clicks stand that are called otherwise."""
    names = names or ClickFields({})

    def check(topic: str, key: bytes | None, value: bytes | None) -> Found:
        if topic == clicks_topic:
            return parse(value, limits=limits, names=names)
        if topic == feedback_topic:
            return feedback.parse(value, limits=limits)
        if users_topic is not None and topic == users_topic:
            return users.parse(key, value, limits=limits)
        return items.parse(key, value, limits=limits) if topic == items_topic else None

    return check


def read_repaired(path: Path) -> dict[Place, bytes]:
    """JSON lines with `topic`, `partition`, `offset` as `dead-letters --json` shows them, and `value`: the message as
    it should have been, an object, or text. Raises RedriveError."""
    try:
        return dict(_lines(path))
    except OSError as error:
        raise RedriveError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RedriveError(f"{path} is no UTF-8 text ({error.reason})") from error


def _lines(path: Path) -> Iterator[tuple[Place, bytes]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                place = (str(fields["topic"]), int(fields["partition"]), int(fields["offset"]))
                value = fields["value"]
            except (ValueError, TypeError, KeyError) as error:
                wrong = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
                raise RedriveError(
                    f"{path} line {number}: {wrong}; needed are topic, partition, offset and value"
                ) from None
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield place, text.encode()
