"""What is reported of many rows of a file of items, or of users: how many are none, and how many came before."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

from stream.event_files.errors import EventFileError, shown
from stream.event_files.tally import CHECKED_ROWS_MAX, percent
from stream.item_files.item_file import BadRow, ItemFile, ItemRow
from stream.item_files.kinds import ITEMS, Kind

#: Ids that are remembered, to tell rows of one item; beyond, rows are not told.
IDS_REMEMBERED_MAX = 1_000_000
_EXAMPLES_MAX = 5  # bad rows that are named
_EXAMPLE_CHARACTERS_MAX = 160


@dataclass
class ItemTally:
    """Of the rows so far, in order."""

    kind: Kind = ITEMS  # what the rows are
    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # by reason
    examples: list[str] = field(default_factory=list)  # the first bad rows
    repeated: int = 0  # rows of an item that an earlier row was of
    _ids: set[int] = field(default_factory=set)

    @property
    def items(self) -> int:
        """Rows that are items."""
        return self.rows - self.bad.total()

    def add(self, row: ItemRow | BadRow) -> None:
        self.rows += 1
        if isinstance(row, BadRow):
            self.bad[row.reason] += 1
            if len(self.examples) < _EXAMPLES_MAX:
                self.examples.append(f"line {row.line:,}: {shown(row.detail)}"[:_EXAMPLE_CHARACTERS_MAX])
            return
        digest = hash(row.key)
        if digest in self._ids:
            self.repeated += 1
        elif len(self._ids) < IDS_REMEMBERED_MAX:
            self._ids.add(digest)

    def lines(self) -> list[str]:
        """What was left out, a line each."""
        found = []
        if self.bad:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.bad.most_common())
            found.append(f"left out, not readable as {self.kind.words}: {reasons}")
            found += self.examples
            if self.bad.total() > len(self.examples):
                found.append(f"and {self.bad.total() - len(self.examples):,} more rows")
        if self.repeated:
            found.append(
                f"{self.repeated:,} rows are of {self.kind.one} that came before: of each {self.kind.word} the last "
                "row counts"
            )
        return found

    def refuse_if_bad(self, name: str, share_max: float, consequence: str = "") -> None:
        """Raises EventFileError where a larger share of the rows are no items, or all of them."""
        bad = self.bad.total()
        share = bad / max(1, self.rows)
        if not bad or (share <= share_max and bad < self.rows) or share_max == 1:
            return
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.bad.most_common())
        way_on = (
            f"--bad-rows-max {percent(min(1.0, share + 0.005), 0)} takes the others all the same"
            if bad < self.rows
            else "--columns says which column is which"
        )
        raise EventFileError(
            f"{name}: {bad:,} of {self.rows:,} rows ({percent(share)}) cannot be read as {self.kind.words}"
            f"{consequence}: {reasons}; {'; '.join(self.examples)}; {way_on}"
        )


def check_items(file: ItemFile, limit: int | None = None) -> ItemTally:
    """Judges the first rows, no more than CHECKED_ROWS_MAX, so that a file is refused before the first is published.

    Raises EventFileError for what cannot be read.
    """
    tally = ItemTally(file.kind)
    for row in islice(file.rows(), min(CHECKED_ROWS_MAX, limit or CHECKED_ROWS_MAX)):
        tally.add(row)
    return tally
