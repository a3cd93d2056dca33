"""The demo's clicks: a town's or a file's, sent in bursts, and what one of them changes.

The publisher waits for the lists of what it sent before it sends more. So the rate is what this computer can do, and
the time from click to list is not that of a queue.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from online.commands.demo_views import ClickEffect
from online.evaluation.town import Town
from stream.event_files import EventFile
from stream.events import BadEvent, Click, encode, parse_click
from stream.lists import Lists, RedisUnavailableError, TopList
from stream.source import Producer

T = TypeVar("T")

_BURST = 32  # clicks sent together
_TOWN_CLICKS_MAX = 100_000_000
_EFFECT_EVERY_S = 1.0  # it costs a wait of its own
_EFFECT_USERS_MAX = 8  # users of a burst who are looked up for a list
_LIST_S_MAX = 5.0  # a list that has not come within this time is not waited for
_POLL_EVERY_S = 0.002
_POSITION_EVERY_S = 0.25
_COUNT_S_MAX = 3.0  # for counting the rows of a file that was not read to its end


class Sent(NamedTuple):
    """A message for the clicks topic, and the click in it where there is one."""

    key: bytes | None
    value: bytes
    click: Click | None


class Stream:
    """The messages of the demo: a town's, or a file's.

    Of a file, `bad` counts the rows that are no clicks by reason, and `first_bad` says which was the first, and why.
    `user_id` is the user of the first click.
    """

    def __init__(self, *, seed: int, data: EventFile | Path | None) -> None:
        self.town = None if data is not None else Town(seed=seed)
        self.file = EventFile(data) if isinstance(data, Path) else data
        self.taken = 0
        self.ended = False
        self.bad: Counter[str] = Counter()
        self.first_bad = ""
        self._fashion_is_due = False
        self._messages: Iterator[Sent] = self._of_town() if self.file is None else self._of_file(self.file)
        # A file that cannot be read is refused before anything is started.
        first = next(self._messages, None)
        self.user_id = None if first is None or first.click is None else first.click.user_id
        if first is not None:
            self._messages = chain([first], self._messages)

    def take(self, n: int) -> list[Sent]:
        """The next `n`, or what is left of them."""
        messages = list(islice(self._messages, n))
        self.taken += len(messages)
        self.ended = len(messages) < n
        return messages

    def change_fashion(self) -> None:
        """In a town, fashion changes with what is taken next."""
        self._fashion_is_due = True

    def best_next(self, item_id: str) -> str | None:
        """What most often follows; None where it is not known."""
        return None if self.town is None else self.town.best_next(item_id, self.taken)

    @property
    def who(self) -> str:
        """Whose clicks these are."""
        if self.file is not None:
            return f"the events in {self.file.path}"
        assert self.town is not None
        return f"a town of {self.town.users} shoppers (simulated)"

    @property
    def fraction(self) -> float:
        """How much of a file has been read, about."""
        return 0.0 if self.file is None else self.file.fraction

    def rows(self) -> int | None:
        """How many rows the file has; None where counting them would take long. Nothing can be taken afterwards."""
        if self.file is not None and self.file.rows is not None:
            return self.file.rows
        count, deadline = self.taken, time.monotonic() + _COUNT_S_MAX
        for _ in self._messages:
            count += 1
            if time.monotonic() > deadline:
                return None
        return count

    def _of_town(self) -> Iterator[Sent]:
        assert self.town is not None
        clicks, number = self.town.clicks(_TOWN_CLICKS_MAX), 0
        while (click := next(clicks, None)) is not None:
            yield Sent(click.user_id.encode(), encode(click), click)
            number += 1
            if self._fashion_is_due:
                # The clicks so far are the same in a town whose fashion changes now.
                self._fashion_is_due = False
                self.town = replace(self.town, fashion_change_at=number)
                clicks = islice(self.town.clicks(_TOWN_CLICKS_MAX), number, None)

    def _of_file(self, file: EventFile) -> Iterator[Sent]:
        for message in file.messages():
            parsed = parse_click(message.value)
            if isinstance(parsed, BadEvent):
                self.bad[parsed.reason] += 1
                self.first_bad = self.first_bad or f"row {message.row:,}: {parsed.detail}"
            yield Sent(message.key, message.value, None if isinstance(parsed, BadEvent) else parsed)


class Publisher:
    """Sends the stream's messages in bursts, and waits for what they change."""

    def __init__(self, stream: Stream, producer: Producer, lists: Lists, topic: str, *, end: int) -> None:
        """`end` is the offset that the next message gets, in the only partition of the topic."""
        self._stream = stream
        self._producer = producer
        self._lists = lists
        self._topic = topic
        self._end = end
        self._best: ClickEffect | None = None
        self._effect_at = 0.0  # when one is looked for again

    def run(self, stop: threading.Event) -> None:
        """Burst after burst, until `stop` is set or the stream ends."""
        while not stop.is_set():
            burst = self._stream.take(_BURST)
            if not burst:
                return
            at = self._with_list(burst) if time.monotonic() >= self._effect_at else None
            if at is None:
                self._send(burst, stop)
            else:
                self._send(burst[:at], stop)
                self._send_for_effect(burst[at], stop)
                self._send(burst[at + 1 :], stop)

    @property
    def best_effect(self) -> ClickEffect | None:
        """The click that has changed most so far; None where no user with a list has clicked."""
        return self._best

    def _send_for_effect(self, sent: Sent, stop: threading.Event) -> None:
        """Send one click by itself, and keep what it changed where that is more than by any before."""
        assert sent.click is not None
        before = unless_unavailable(self._lists.read, sent.click.user_id)
        started = time.perf_counter()
        after = self._send([sent], stop)
        milliseconds = 1_000 * (time.perf_counter() - started)
        best_next = self._stream.best_next(sent.click.item_id)
        if before is None or after is None:
            return
        effect = ClickEffect(sent.click, before, after, milliseconds, best_next)
        if self._best is None or effect.change > self._best.change:
            self._best = effect
        self._effect_at = time.monotonic() + _EFFECT_EVERY_S

    def _with_list(self, burst: list[Sent]) -> int | None:
        """The place of the last click whose user has a list already."""
        users: set[str] = set()
        for at, sent in reversed(list(enumerate(burst))):
            if sent.click is None or sent.click.user_id in users:
                continue
            if len(users) == _EFFECT_USERS_MAX:
                break
            users.add(sent.click.user_id)
            if unless_unavailable(self._lists.read, sent.click.user_id) is not None:
                return at
        return None

    def _send(self, messages: list[Sent], stop: threading.Event) -> TopList | None:
        """Publish; return the list that follows from the last click as soon as it stands in Redis."""
        user, end = None, 0
        for sent in messages:
            self._producer.send(self._topic, key=sent.key, value=sent.value)
            self._end += 1
            if sent.click is not None:
                user, end = sent.click.user_id, self._end
        self._producer.flush()
        if user is None:
            return None
        ask_at = time.monotonic() + _POSITION_EVERY_S
        deadline = time.monotonic() + _LIST_S_MAX
        while not stop.is_set() and time.monotonic() < deadline:
            top = unless_unavailable(self._lists.read, user)
            if top is not None and _offset(top) >= end:
                return top
            if time.monotonic() >= ask_at:
                # A click that was learned before, or that leaves nothing to show, makes no list.
                if _position(unless_unavailable(self._lists.status), self._topic) >= end:
                    return None
                ask_at = time.monotonic() + _POSITION_EVERY_S
            time.sleep(_POLL_EVERY_S)
        return None


def unless_unavailable(ask: Callable[..., T], *arguments: str) -> T | None:
    """What the embedded Redis answers. None where it does not in time: on a busy machine that thread may wait long."""
    try:
        return ask(*arguments)
    except RedisUnavailableError:
        return None


def _offset(top: TopList) -> int:
    """The offset after the click that a list reflects."""
    return int(top.offset.rpartition(":")[2])


def _position(status: Mapping[str, Any] | None, topic: str) -> int:
    """How far the worker has come on a topic of one partition, as it last said."""
    return int((status or {}).get("positions", {}).get(f"{topic}:0", 0))
