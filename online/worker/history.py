"""The course of a worker's figures over the last day, a row for each minute, for the dashboard's charts.

It stands in Redis alone: a worker that starts goes on with the rows that it finds there. It is in no checkpoint, so
nothing that is learned depends on it, and where Redis has lost it, it begins anew.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from online.worker.overview import number
from stream.lists import Lists

MINUTES_MAX = 1_440  # a day
TTL_S = 86_400  # of the value in Redis, after its latest row
MINUTE_S = 60

#: What a row holds: `at` is milliseconds since 1970. Of the minute: clicks learned per second, and messages that became
#: dead letters. At its end: the lag in messages, quantiles from click to list in ms, hit@10 of the latest 1,000 clicks
#: by method, the mean loss in nats, and the problems that were open.
FIELDS = (
    *("at", "clicks_per_s", "lag", "p50", "p99", "served", "followed", "popular", "loss"),
    *("dead_letters", "problems"),
)

Row = tuple[float | None, ...]


class History:
    """Rows of the latest minutes, at most MINUTES_MAX."""

    def __init__(self, lists: Lists, clock: Callable[[], float] = time.time) -> None:
        """`lists`: the link to Redis; `clock`: seconds since 1970."""
        self._lists, self._clock = lists, clock
        self._rows: deque[Row] = deque(maxlen=MINUTES_MAX)
        self._found = False  # whether the rows of before the start were looked for
        self._before: tuple[float, float, float] | None = (
            None  # time, clicks learned and dead letters at the latest row
        )

    def note(self, status: Mapping[str, Any]) -> None:
        """Adds a row where a minute has passed, and writes all of them. Raises ListsError; the rows are kept."""
        now = self._clock()
        learned, dead = number(status.get("learned")) or 0.0, _sum(status.get("dead_letters"))
        if self._before is None or now < self._before[0]:  # the first report, or a clock that was set back
            self._before = now, learned, dead
        passed = now - self._before[0]
        if passed < MINUTE_S:
            return
        rate, put_aside = max(0.0, learned - self._before[1]) / passed, max(0.0, dead - self._before[2])
        self._before = now, learned, dead
        self._rows.append(_row(status, int(1_000 * now), rate, put_aside))
        if not self._found:
            earlier = rows_of(self._lists.history())
            self._rows = deque([*(row for row in earlier if _is_before(row, now)), *self._rows], maxlen=MINUTES_MAX)
            self._found = True
        self._lists.write_history(
            {name: list(column) for name, column in zip(FIELDS, zip(*self._rows, strict=True), strict=True)}, TTL_S
        )


def rows_of(columns: Mapping[str, Any] | None) -> list[Row]:
    """Returns the rows of a value in Redis, at most MINUTES_MAX; none where it is not of this version's shape."""
    found = [(columns or {}).get(name) for name in FIELDS]
    lengths = {len(column) if isinstance(column, list) else -1 for column in found}
    if len(lengths) != 1 or -1 in lengths:
        return []
    rows = [tuple(number(value) for value in row) for row in zip(*found, strict=True)]
    return [row for row in rows if row[0] is not None][-MINUTES_MAX:]


def _is_before(row: Row, now_s: float) -> bool:
    return row[0] is not None and row[0] < 1_000 * (now_s - MINUTE_S / 2)


def _row(status: Mapping[str, Any], at_ms: int, clicks_per_s: float, dead_letters: float) -> Row:
    waits, recent = status.get("click_to_list_ms") or {}, status.get("recent") or {}
    hits = (number((recent.get(method) or {}).get("hit@10")) for method in ("served", "followed", "popular"))
    problems = status.get("problems")
    return (
        *(at_ms, round(clicks_per_s, 1), number(status.get("lag")), number(waits.get("p50")), number(waits.get("p99"))),
        *(None if hit is None else round(hit, 4) for hit in hits),
        _rounded(number(status.get("loss"))),
        *(dead_letters, len(problems) if isinstance(problems, list) else None),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _sum(counts: Any) -> float:
    return float(sum(counts.values())) if isinstance(counts, dict) else 0.0
