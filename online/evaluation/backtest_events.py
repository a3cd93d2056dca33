"""What a backtest goes through: the clicks of a file, what is known of each without any method, and their batches.

Letters: `n` events.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.worker.dedup import SeenEvents
from stream.event_files import EventFile, RowTally
from stream.event_files.tally import BAD_ROWS_MAX
from stream.events import BadEvent, Click, parse_click

EACH, FIRST_LINE = "each", "first"
BASKETS = (EACH, FIRST_LINE)  # which lines are scored of those that have one user and one timestamp
TEACHES_ONLY = 0.2  # of the events: the first ones, which are not scored


class BacktestError(Exception):
    """A backtest that cannot be made. One line that says what is needed."""


@dataclass
class Read:
    """What a file held."""

    clicks: list[Click] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # of the file, from 1, that each click stood in
    duplicates: int = 0  # by event id
    tally: RowTally = field(default_factory=RowTally)
    sorted: bool = False

    @property
    def unreadable(self) -> Counter[str]:
        """By reason: a worker's dead letters."""
        return self.tally.bad


def read_clicks(
    file: EventFile,
    settings: Settings,
    limit: int | None = None,
    *,
    bad_rows_max: float = BAD_ROWS_MAX,
    sort: bool = False,
) -> Read:
    """The clicks of a file's first `limit` rows, judged as a worker judges them; by time, stably, where `sort` says so.

    Raises EventFileError, also where a larger share than `bad_rows_max` of the rows are no clicks.
    """
    read = Read()
    seen = SeenEvents(settings.event_ids_held)
    limits = settings.limits
    now = time.time()
    for message in islice(file.messages(), limit):
        click = parse_click(message.value, now=now, limits=limits)
        read.tally.add(message, click)
        if isinstance(click, BadEvent):
            continue
        if click.event_id is not None and not seen.add(click.event_id):
            read.duplicates += 1
        else:
            read.clicks.append(click)
            read.rows.append(message.row)
    read.tally.refuse_if_bad(file, bad_rows_max)
    if sort and read.tally.backward:
        order = sorted(range(len(read.clicks)), key=lambda at: read.clicks[at].timestamp)
        read.clicks, read.rows = [read.clicks[at] for at in order], [read.rows[at] for at in order]
        read.sorted = True
    return read


@dataclass(frozen=True)
class Facts:
    """What is known of each event without any method: (n,) each, but for the last two."""

    users: NDArray[np.int64]  # numbers in order of first appearance, as those of items
    items: NDArray[np.int64]
    earlier_of_user: NDArray[np.int64]  # this user's clicks before it
    earlier_of_item: NDArray[np.int64]  # clicks on its item before it, by any user
    known: NDArray[np.int64]  # items that occurred before it
    had: NDArray[np.int64]  # items that this user had before it
    repeated: NDArray[np.bool_]  # whether its item is one of them
    types: NDArray[np.int64]  # event types, as numbers of `type_names`
    values: NDArray[np.float64]  # NaN where it has none
    further: NDArray[np.bool_]  # whether an earlier one has the same user and timestamp
    counted: NDArray[np.bool_]  # whether it is scored
    first_scored: int
    type_names: tuple[str, ...]

    @property
    def scored(self) -> int:
        return int(self.counted.sum())

    def scored_by(self, n: int) -> int:
        """How many of the first `n` are scored."""
        return int(self.counted[:n].sum())


def facts_of(clicks: Sequence[Click], baskets: str = EACH) -> Facts:
    """What is known of each click. `baskets`: of BASKETS.

    Raises BacktestError where there are too few clicks to score any.
    """
    first_scored = math.ceil(TEACHES_ONLY * len(clicks))
    if first_scored == len(clicks):
        raise BacktestError(
            f"a backtest needs at least 2 clicks, the file has {len(clicks)}: the first fifth only trains"
        )
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    types: dict[str, int] = {}
    of_user: Counter[int] = Counter()
    of_item: Counter[int] = Counter()
    had: dict[int, set[int]] = {}
    moments: set[tuple[int, float]] = set()
    rows = []
    for click in clicks:
        user, item = users.setdefault(click.user_id, len(users)), items.setdefault(click.item_id, len(items))
        kind = types.setdefault(click.event_type, len(types))
        owned = had.setdefault(user, set())
        further = (user, click.timestamp) in moments
        moments.add((user, click.timestamp))
        rows.append((user, item, of_user[user], of_item[item], len(of_item), len(owned), item in owned, kind, further))
        of_user[user] += 1
        of_item[item] += 1
        owned.add(item)
    user_of, item_of, earlier_of_user, earlier_of_item, known, had_before, repeated, kinds, later = np.array(
        rows, np.int64
    ).T
    values = np.array([math.nan if click.value is None else click.value for click in clicks])
    is_further = later.astype(bool)
    counted = np.arange(len(clicks)) >= first_scored
    if baskets == FIRST_LINE:
        counted &= ~is_further
    if not counted.any():
        raise BacktestError("no click is left to score: all have the user and time of an earlier one (--baskets)")
    return Facts(
        user_of, item_of, earlier_of_user, earlier_of_item, known, had_before, repeated.astype(bool),
        kinds, values, is_further, counted, first_scored, tuple(types),
    )  # fmt: skip


def stream_times(clicks: Sequence[Click]) -> list[float]:
    """What a clock would have said at each click: it never goes back, whatever late clicks say."""
    return list(accumulate((click.timestamp for click in clicks), max))


def next_clicks(clicks: Sequence[Click]) -> list[int]:
    """The number of the same user's next click, for each click; the number of clicks where there is none."""
    found = [len(clicks)] * len(clicks)
    before: dict[str, int] = {}
    for at, click in enumerate(clicks):
        if click.user_id in before:
            found[before[click.user_id]] = at
        before[click.user_id] = at
    return found


def micro_batches(clicks: Sequence[Click], settings: Settings) -> Iterator[range]:
    """Consecutive clicks that are learned in one step, as numbers: what a worker takes that finds clicks waiting.

    A batch is as long as `micro_batch_max`, and as the worker's bound for one user, let it.
    """
    start = 0
    of_user: Counter[str] = Counter()
    for at, click in enumerate(clicks):
        if at - start == settings.micro_batch_max or of_user[click.user_id] == settings.history_max // 2:
            yield range(start, at)
            start = at
            of_user = Counter()
        of_user[click.user_id] += 1
    if start < len(clicks):
        yield range(start, len(clicks))
