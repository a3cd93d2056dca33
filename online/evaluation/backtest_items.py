"""Items and users of files in a backtest: which there are, and when the learner comes to know of items."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from stream.event_files.tally import BAD_ROWS_MAX
from stream.item_files import BadRow, ItemFile, ItemTally
from stream.items import Item
from stream.users import User


@dataclass
class ReadItems:
    """What a file of items held."""

    items: list[Item] = field(default_factory=list)  # in order of the file
    published_at: list[float | None] = field(default_factory=list)  # of each, seconds since 1970; None: not known
    tally: ItemTally = field(default_factory=ItemTally)

    @property
    def unavailable(self) -> int:
        """How many the file says are not available."""
        return sum(not item.available for item in self.items)


def read_items(file: ItemFile, *, bad_rows_max: float = BAD_ROWS_MAX) -> ReadItems:
    """Reads a file of items. Raises EventFileError, also where a larger share than `bad_rows_max` are no items."""
    read = ReadItems()
    for row in file.rows():
        read.tally.add(row)
        if not isinstance(row, BadRow) and isinstance(row.item, Item):
            read.items.append(row.item)
            read.published_at.append(row.published_at)
    read.tally.refuse_if_bad(file.name, bad_rows_max)
    return read


def read_users(file: ItemFile, *, bad_rows_max: float = BAD_ROWS_MAX) -> tuple[list[User], ItemTally]:
    """Reads a file of users. Raises as `read_items`."""
    users, tally = [], ItemTally(file.kind)
    for row in file.rows():
        tally.add(row)
        if not isinstance(row, BadRow) and isinstance(row.item, User):
            users.append(row.item)
    tally.refuse_if_bad(file.name, bad_rows_max)
    return users, tally


class ItemSchedule:
    """Items in the order in which a learner gets to know them.

    Those that were published within the stream's time come then; all others come before the stream.
    """

    def __init__(self, read: ReadItems, first_s: float, last_s: float) -> None:
        """`first_s`, `last_s`: when the stream begins and ends, in seconds since 1970."""
        pairs = zip(read.published_at, read.items, strict=True)
        self.before: list[Item] = []
        later: list[tuple[float, Item]] = []
        for at, item in pairs:
            if at is None or not first_s < at <= last_s:
                self.before.append(item)
            else:
                later.append((at, item))
        later.sort(key=lambda one: one[0])
        self._times = [at for at, _ in later]
        self._later = [item for _, item in later]
        self._taken = 0

    @property
    def within(self) -> int:
        """How many come within the stream."""
        return len(self._later)

    def take(self, now_s: float) -> Sequence[Item]:
        """Returns the items published by now, in seconds since 1970, that were not taken before."""
        start, self._taken = self._taken, max(self._taken, bisect_right(self._times, now_s))
        return self._later[start : self._taken]
