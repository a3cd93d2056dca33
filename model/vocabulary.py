"""Which row of the item table belongs to which item, on a stream where items come and go.

Rows are handed out one by one, so no two items share one, and they are used again after their item has gone. Row 0
belongs to no item: it stands for padding and for every item without a row.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

DOUBLED_MAX = 65_536  # rows beyond which a table grows by a quarter at a time


def grown(rows_needed: int, rows: int) -> int:
    """The number of rows that a table of `rows` should have to hold `rows_needed`: doubled as often as it takes, and by
    a quarter once it is large, where half of it in no use would be much.

    So each row is copied a bounded number of times however the table grows: once, or four times, on average.
    """
    if rows < 1:
        raise ValueError(f"rows: {rows}, a table to be grown needs at least one")
    while rows < rows_needed:
        rows = 2 * rows if rows < DOUBLED_MAX else rows + rows // 4
    return rows


class _Waiting(NamedTuple):
    clicks: int
    clicked_at: float


class Vocabulary:
    """Items and their rows. An item gets one at its `min_count`-th click, keeps it while it is clicked, and loses it
    to `expire`, or to a newcomer when all `capacity_max` rows are in use and it is the one clicked longest ago.

    Items that wait for admission are counted too, at most `waiting_max` of them (the one seen longest ago is
    forgotten), so that memory is bounded whatever ids arrive. The clock never runs backwards: a click that comes late
    counts as one at the latest time seen, and the order of clicks is the order in which they were observed.

    ValueError: a `min_count`, `capacity_max` or `waiting_max` below 1.
    """

    def __init__(self, *, min_count: int = 1, capacity_max: int = 1_000_000, waiting_max: int = 1_000_000) -> None:
        for name, value in (("min_count", min_count), ("capacity_max", capacity_max), ("waiting_max", waiting_max)):
            if value < 1:
                raise ValueError(f"{name}: {value}, has to be at least 1")
        self.min_count = min_count
        self.capacity_max = capacity_max
        self.waiting_max = waiting_max
        # Both stand in the order of each item's latest click: the first is the one to forget.
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._items: list[str | None] = [None]  # by row
        self._clicked_at = array(
            "d", [0.0]
        )  # by row: in an array a number takes 8 bytes, and in an object of its own 96
        self._free: list[int] = []
        self._to_reset: dict[int, None] = {}  # an ordered set
        self._clock = float("-inf")

    def __len__(self) -> int:
        """Items that have a row."""
        return len(self._rows)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._rows

    @property
    def rows(self) -> int:
        """The rows that a table needs to hold every row handed out so far, row 0 included."""
        return len(self._items)

    def row_of(self, item_id: str) -> int:
        """The item's row, 0 where it has none. No click is counted."""
        return self._rows.get(item_id, 0)

    def item_of(self, row: int) -> str | None:
        """The item that has this row now; None for row 0, and for rows without an item."""
        return self._items[row] if 0 <= row < len(self._items) else None

    def items_of(self, rows: Sequence[int]) -> list[str | None]:
        """`item_of` for each of these rows, which are in use."""
        return [self._items[row] for row in rows]

    def observe(self, item_id: str, now: float) -> int:
        """Counts a click at `now` (seconds since 1970) -> the item's row, 0 while it has none.

        A row that had another item before is in `take_reset()` until the caller has asked for it.
        """
        self._clock = now = max(now, self._clock)
        row = self._rows.pop(item_id, 0)
        if not row:
            clicks = self._waiting.pop(item_id, _Waiting(0, now)).clicks + 1
            if clicks < self.min_count:
                if len(self._waiting) >= self.waiting_max:
                    self._waiting.popitem(last=False)
                self._waiting[item_id] = _Waiting(clicks, now)
                return 0
            row = self._hand_out(item_id)
        self._rows[item_id], self._clicked_at[row] = row, now
        return row

    def admit(self, item_id: str, now: float) -> int:
        """Gives an item a row before its first click, as if it had been clicked at `now`, but for the clock -> the row,
        0 where there is no room or the item has one."""
        if item_id in self._rows or len(self._rows) >= self.capacity_max:
            return 0
        row = self._hand_out(item_id)
        self._rows[item_id], self._clicked_at[row] = row, now
        return row

    def release(self, item_ids: Iterable[str]) -> list[int]:
        """Takes the rows from these items, as far as they have any -> the freed rows. They are in `take_reset()` as
        well."""
        freed = []
        for item_id in item_ids:
            row = self._rows.pop(item_id, 0)
            if row:
                freed.append(self._freed(row))
        return freed

    def expire(self, before: float) -> list[int]:
        """Takes the row from every item whose latest click was earlier than `before` (seconds since 1970), and forgets
        the counts of those that wait -> the freed rows. They are in `take_reset()` as well."""
        freed = []
        while self._rows and self._clicked_at[next(iter(self._rows.values()))] < before:
            freed.append(self._free_oldest())
        while self._waiting and next(iter(self._waiting.values())).clicked_at < before:
            self._waiting.popitem(last=False)
        return freed

    def free_oldest(self, count: int) -> list[int]:
        """Takes the row from the `count` items clicked longest ago (or from all there are) -> the freed rows. They are
        in `take_reset()` as well. Clearing many at once often costs a caller no more than clearing one."""
        return [self._free_oldest() for _ in range(min(count, len(self._rows)))]

    def take_reset(self) -> list[int]:
        """The rows that lost their item since the last call, each once. Whatever is kept by row (vectors, optimizer
        state, counts, rows in histories) still belongs to the old item, and has to be cleared before use."""
        rows, self._to_reset = list(self._to_reset), {}
        return rows

    def to_state(self) -> dict[str, Any]:
        """Everything, as numbers, strings and lists (JSON can hold it), in the order that matters."""
        return {
            "items": list(self._rows),
            "rows": list(self._rows.values()),
            "clicked_at": [self._clicked_at[row] for row in self._rows.values()],
            "waiting_items": list(self._waiting),
            "waiting_clicks": [waiting.clicks for waiting in self._waiting.values()],
            "waiting_clicked_at": [waiting.clicked_at for waiting in self._waiting.values()],
            "free": list(self._free),
            "to_reset": list(self._to_reset),
            "row_count": len(self._items),
            "clock": None if self._clock == float("-inf") else self._clock,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], **settings: int) -> Self:
        """The vocabulary that `to_state` described. `settings` as for the constructor; with a `capacity_max` below the
        items held, rows stay with them until they expire, and newcomers take from them.

        ValueError: the state contradicts itself.
        """
        vocabulary = cls(**settings)
        items, rows = state["items"], state["rows"]
        owned = [0, *rows, *state["free"]]
        if len(set(items)) != len(items) or sorted(owned) != list(range(state["row_count"])):
            raise ValueError("vocabulary state: every row must belong to one item, or to none")
        waiting = map(_Waiting, state["waiting_clicks"], state["waiting_clicked_at"])
        vocabulary._rows = OrderedDict(zip(items, rows, strict=True))
        vocabulary._waiting = OrderedDict(zip(state["waiting_items"], waiting, strict=True))
        vocabulary._items = [None] * state["row_count"]
        vocabulary._clicked_at = array("d", bytes(8 * state["row_count"]))
        for item_id, row, clicked_at in zip(items, rows, state["clicked_at"], strict=True):
            vocabulary._items[row], vocabulary._clicked_at[row] = item_id, clicked_at
        vocabulary._free = list(state["free"])
        vocabulary._to_reset = dict.fromkeys(state["to_reset"])
        vocabulary._clock = float("-inf") if state["clock"] is None else state["clock"]
        return vocabulary

    def _hand_out(self, item_id: str) -> int:
        if len(self._rows) >= self.capacity_max:
            self._free_oldest()
        if self._free:
            row = self._free.pop()
            self._items[row] = item_id
        else:
            row = len(self._items)
            self._items.append(item_id)
            self._clicked_at.append(0.0)
        return row

    def _free_oldest(self) -> int:
        _, row = self._rows.popitem(last=False)
        return self._freed(row)

    def _freed(self, row: int) -> int:
        self._items[row] = None
        self._free.append(row)
        self._to_reset[row] = None
        return row
