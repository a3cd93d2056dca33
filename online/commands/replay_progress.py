"""How far a file has been published, remembered by what was published: so one that has grown goes on where it ended.

A progress file holds digests of the published rows. A file whose first rows are those goes on after them, whatever it
is called now and however it is packed; for a file in which one of them was changed, there is an error.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from stream.event_files import EventFile, Message

BLOCKS_MAX = 1_024  # digests kept of a file, however long; even, since they are joined two by two
_DIGEST_BYTES = 8


class ReplayError(Exception):
    """A replay that cannot begin or go on; one line for the operator."""


@dataclass
class RowDigests:
    """Digests of rows, a block of `spacing` rows each; the digest of a block is the sum of those of its rows.

    So two blocks become one by addition, and what is kept stays small. Equal rows have equal digests at any length.
    """

    rows: int = 0
    spacing: int = 1
    blocks: list[int] = field(default_factory=list)

    def add(self, message: Message) -> None:
        if self.rows == self.spacing * BLOCKS_MAX:
            self._join()
        if self.rows % self.spacing == 0:
            self.blocks.append(0)
        digest = blake2b(b"%d:" % message.row + message.value, digest_size=_DIGEST_BYTES).digest()
        self.blocks[-1] = (self.blocks[-1] + int.from_bytes(digest, "big")) % 2 ** (8 * _DIGEST_BYTES)
        self.rows += 1

    def copy(self) -> Self:
        return type(self)(self.rows, self.spacing, list(self.blocks))

    def differing(self, other: "RowDigests") -> tuple[int, int] | None:
        """The first rows (from, to) that are not the same in both; None where the shorter one begins the longer one."""
        mine, others = self.copy(), other.copy()
        while mine.spacing < others.spacing:
            mine._join()
        while others.spacing < mine.spacing:
            others._join()
        rows, spacing = min(mine.rows, others.rows), mine.spacing
        whole = len(mine.blocks) if mine.rows == others.rows else rows // spacing
        for at, (one, another) in enumerate(zip(mine.blocks[:whole], others.blocks[:whole], strict=False)):
            if one != another:
                return at * spacing + 1, min(rows, (at + 1) * spacing)
        return None

    def shares_a_block(self, other: "RowDigests") -> bool:
        """Whether any rows are the same in the same place."""
        return self.spacing == other.spacing and any(a == b for a, b in zip(self.blocks, other.blocks, strict=False))

    def _join(self) -> None:
        pairs = zip(self.blocks[::2], [*self.blocks[1::2], 0], strict=False)
        self.blocks = [sum(pair) % 2 ** (8 * _DIGEST_BYTES) for pair in pairs]
        self.spacing *= 2


@dataclass(frozen=True)
class _Saved:
    """A progress file's content."""

    path: Path
    digests: RowDigests
    bad: Counter[str]

    @classmethod
    def read(cls, path: Path) -> "_Saved | None":
        """None where nothing readable is there."""
        try:
            saved = json.loads(path.read_bytes())
            blocks = [int(block, 16) for block in saved["blocks"]]
            digests = RowDigests(int(saved["rows"]), int(saved["spacing"]), blocks)
            bad = Counter({str(reason): int(n) for reason, n in saved["bad"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        spacing = digests.spacing
        sound = digests.rows > 0 < spacing and len(blocks) == -(-digests.rows // spacing) <= BLOCKS_MAX
        return cls(path, digests, bad) if sound and spacing & (spacing - 1) == 0 else None


class Progress:
    """How many rows of a file have reached one topic, on disk in `folder`.

    `target` names the broker and topic: the same file may be published to several. `rows` are acknowledged; `bad`
    counts those of them that are no clicks; `remark` is a line for the operator, where there is something to say.
    """

    def __init__(self, folder: Path, file: EventFile, target: str) -> None:
        self.rows = 0
        self.bad: Counter[str] = Counter()
        self.remark: str | None = None
        self._folder, self._file, self._target = folder, file, target
        self._of_target, self._of_path = _short(target), _short(str(file.path.absolute()))
        self._digests = RowDigests()
        self._first: str | None = None  # of the first row: by it the progress files of a beginning are found
        # Versions before ours knew a file by its size and its ends, and did not say what was published.
        self._old = folder / f"{file.content_id}-{self._of_target}.json"

    def load(self) -> int:
        """Rows acknowledged, by comparing the file's first rows with those published; 0 where none are remembered.

        Raises ReplayError where they were changed since, and EventFileError.
        """
        if not any(self._folder.glob(f"*-{self._of_target}.json")):
            return 0
        with closing(self._file.messages()) as messages:
            for message in messages:
                saved, old_rows = self._saved(message), _old_rows(self._old)
                self._compare(chain([message], messages), saved, old_rows)
                break
        return self.rows

    def add(self, message: Message) -> None:
        """A row that was sent after those before it; it is acknowledged when that is saved."""
        if message.row == 1:
            self._digests, self._first = RowDigests(), _first_of(message)
        self._digests.add(message)

    def save(self, bad: Mapping[str, int]) -> None:
        """All rows that were added are acknowledged. Replaces what is on disk at once, never half.

        Raises ReplayError when the disk refuses.
        """
        self.rows, self.bad = self._digests.rows, Counter(bad)
        saved = {
            "file": str(self._file.path.absolute()),
            "target": self._target,
            "rows": self.rows,
            "bad": self.bad,
            "spacing": self._digests.spacing,
            "blocks": [f"{block:016x}" for block in self._digests.blocks],
        }
        path = self._folder / f"{self._first}-{self._of_path}-{self._of_target}.json"
        aside = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(saved))
            os.replace(aside, path)
            self._old.unlink(missing_ok=True)
        except OSError as error:
            raise self._not_kept(error) from error

    def refuse_unwritable(self) -> None:
        """Raises ReplayError where no progress can be kept: better before rows are published than after."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self._folder).close()
        except OSError as error:
            raise self._not_kept(error) from error

    def _not_kept(self, error: OSError) -> ReplayError:
        return ReplayError(
            f"the progress of the replay cannot be kept in {self._folder}: {error.strerror}; name a folder that can be "
            "written to with --data-dir or NEXTCLICK_DATA_DIR"
        )

    def _saved(self, first: Message) -> list[_Saved]:
        """What is remembered of files that begin like this one, and of files that were at this path."""
        self._first = _first_of(first)
        names = {
            path
            for pattern in (f"{self._first}-*-{self._of_target}.json", f"*-{self._of_path}-{self._of_target}.json")
            for path in self._folder.glob(pattern)
        }
        return [saved for path in sorted(names) if (saved := _Saved.read(path)) is not None]

    def _compare(self, messages: Iterable[Message], saved: Sequence[_Saved], old_rows: int) -> None:
        """Takes the longest of what is remembered that this file begins with."""
        lengths = {old_rows, *(one.digests.rows for one in saved)}
        at: dict[int, RowDigests] = {}
        digests = RowDigests()
        for message in messages:
            digests.add(message)
            if digests.rows in lengths:
                at[digests.rows] = digests.copy()
            if digests.rows >= max(lengths):
                break
        same = [one for one in saved if at.get(one.digests.rows) == one.digests]
        here = [one for one in saved if f"-{self._of_path}-" in one.path.name and one not in same]
        for one in here:
            if one.path.name.startswith(str(self._first)) or (not same and digests.shares_a_block(one.digests)):
                raise ReplayError(self._changed(digests, one.digests))
        if same:
            longest = max(same, key=lambda one: one.digests.rows)
            self.rows, self.bad, self._digests = longest.digests.rows, longest.bad.copy(), longest.digests.copy()
        elif old_rows in at:
            self.rows, self._digests = old_rows, at[old_rows]
        elif here:
            self.remark = (
                f"{self._file.name} is another file than the one published from there before: all rows are new"
            )
        elif old_rows:
            self.remark = f"{self._file.name} has fewer rows than were published of it: all rows are published again"

    def _changed(self, digests: RowDigests, published: RowDigests) -> str:
        differing = digests.differing(published)
        if differing is None:
            what = f"has {digests.rows:,} rows, and {published.rows:,} were published of it"
        elif differing[0] == differing[1]:
            what = f"has changed: row {differing[0]:,} differs from what was published"
        else:
            what = f"has changed: a row between {differing[0]:,} and {differing[1]:,} differs from what was published"
        return f"{self._file.name} {what}; --restart publishes all rows"


def _old_rows(path: Path) -> int:
    """Rows acknowledged, by a progress file of a version before; 0 where there is none that is readable."""
    try:
        return max(0, int(json.loads(path.read_bytes())["rows"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _first_of(message: Message) -> str:
    return blake2b(message.value, digest_size=_DIGEST_BYTES).hexdigest()


def _short(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
