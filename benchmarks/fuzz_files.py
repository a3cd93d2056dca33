"""Random and mutated files of events: each is read, with every row accounted for, or refused in one line.

    python -m benchmarks.fuzz_files --files 100000

A file is a table written as CSV, JSON lines or Parquet, in some dialect, encoding and packing. Two thirds of them are
then mutated: cut, spliced, bits turned, bytes put in. What is read is held to a slow count of rows that knows nothing
of the readers: of the table where the file is as it was written, else of its lines (text in UTF-8 that is not packed).
Exit status 1 where anything but EventFileError is raised, an error has more than one line, a count differs, or memory
grows.
"""

import argparse
import bz2
import gzip
import io
import json
import lzma
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import zstandard
from pyarrow import parquet

from benchmarks.fuzz import rss_mb
from stream.event_files import EventFile, EventFileError, ReadOptions
from stream.events import BadEvent, Click, parse_click

POOL = 2_000
ERROR_CHARACTERS_MAX = 4_000
GROWTH_MAX = 1.5  # of the memory held after a tenth of the files
PACKS = {
    "": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "zstd": zstandard.ZstdCompressor(level=1).compress,
}
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")
NAMES = (("user", "item", "timestamp"), ("user_id", "item_id", "timestamp"), ("visitorid", "itemid", "ts"))
OPTIONS = (
    ReadOptions(),
    ReadOptions(),
    ReadOptions(),
    ReadOptions(columns=MappingProxyType({"user_id": "visitorid", "item_id": "itemid", "timestamp": "ts"})),
    ReadOptions(columns=MappingProxyType({"user_id": "1", "item_id": "2", "timestamp": "3"})),
    ReadOptions(columns=MappingProxyType({"user_id": "a.b", "value": ""})),
    ReadOptions(delimiter=";"),
    ReadOptions(delimiter="::"),
    ReadOptions(encoding="cp1252"),
    ReadOptions(timezone=ZoneInfo("Europe/Berlin")),
)


@dataclass(frozen=True)
class Written:
    """A file as it was written. `rows`: what it must be read as; None: it may be refused."""

    kind: str
    data: bytes
    rows: int | None
    packed: bool = False


class Writer:
    """Makes files; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def file(self) -> Written:
        kind = self.random.choice(("csv", "csv", "jsonl", "parquet"))
        table = [self._row() for _ in range(self.random.choice((1, 2, 3, 10, 40)))]
        return {"csv": self._csv, "jsonl": self._json_lines, "parquet": self._parquet}[kind](table)

    def mutated(self, written: Written, other: Written) -> Written:
        data, draw = bytearray(written.data), self.random.randrange
        for _ in range(self.random.choice((1, 1, 1, 3, 20))):
            at, way = draw(len(data) + 1), draw(8)
            if way == 0:
                del data[at:]
            elif way == 1 and at < len(data):
                data[at] ^= 1 << draw(8)
            elif way == 2:
                data[at:at] = self.random.choice(
                    (b'"', b"\r", b"\n", b"\0", b",", b"\xff\xfe", b"\xe9", b"{", b"'", b";")
                )
            elif way == 3:
                del data[at : at + draw(1, 40)]
            elif way == 4:
                data[at:] = other.data[draw(len(other.data) + 1) :]
            elif way == 5:
                data[at:at] = data[at : at + draw(200)]
            elif way == 6:
                data[at : at + 8] = bytes(draw(256) for _ in range(8))
            elif way == 7 and not draw(20):
                data[at:at] = self.random.choice((b"x", b'"\n', b"\0", b",")) * draw(3_000)
        return Written(written.kind, bytes(data), None, written.packed)

    def _row(self) -> tuple[str, str, Any]:
        def text() -> str:
            odd = (
                "",
                " ",
                'a"b',
                "x,y",
                "a;b",
                "é",
                "🫖",
                "\u200b",
                "7.0",
                "null",
                "x" * 300,
                "a\tb",
                "l\nm",
                "::",
                "'",
            )
            return self.random.choice(odd) if self.random.random() < 0.15 else f"u{self.random.randrange(50)}"

        times = (1_700_000_000, 1.5, "2026-11-28T10:03:00Z", "2026-11-28 10:03:00", "nan", "", "28.11.2026", "9" * 30)
        return text(), text(), self.random.choice(times) if self.random.random() < 0.2 else self.random.randrange(10**9)

    def _csv(self, table: list[tuple[str, str, Any]]) -> Written:
        between = self.random.choice((",", ",", ",", ";", "\t", "|", "::", " "))
        end = self.random.choice(("\n", "\n", "\r\n", "\r"))
        names = self.random.choice(NAMES)
        quotes = between not in ("::", " ") and self.random.random() < 0.5
        held = [[re.sub(r'["\r\n,;|:\t\s]', "_", str(cell)) or "_" for cell in row] for row in table]
        if quotes:
            held = [['"' + str(cell).replace('"', '""') + '"' for cell in row] for row in table]
        lines = [between.join(names), *(between.join(row) for row in held)]
        encoding = self.random.choice(ENCODINGS)
        data = (end.join(lines) + self.random.choice((end, "", end * 3))).encode(encoding, "replace")
        certain = names != NAMES[2] and encoding != "cp1252"
        return self._packed("csv", data, len(table) if certain else None)

    def _json_lines(self, table: list[tuple[str, str, Any]]) -> Written:
        names = self.random.choice(NAMES)
        lines = [
            json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=self.random.random() < 0.5) for row in table
        ]
        encoding = self.random.choice(ENCODINGS[:6])
        certain = names != NAMES[2]
        return self._packed("jsonl", ("\n".join(lines) + "\n").encode(encoding), len(table) if certain else None)

    def _parquet(self, table: list[tuple[str, str, Any]]) -> Written:
        names = self.random.choice(NAMES)
        n = len(table)
        certain = names != NAMES[2]
        ids = (
            pa.array([row[0] for row in table]), pa.array([row[0] for row in table]).dictionary_encode(),
            pa.array(range(n)), pa.array([float(at) for at in range(n)]), pa.array([b"\xff%d" % at for at in range(n)]),
            pa.array([at.to_bytes(16, "big") for at in range(n)], pa.uuid()), pa.array([[at] for at in range(n)]),
            pa.array([{"id": at} for at in range(n)]), pa.array([at % 2 == 0 for at in range(n)]),
        )  # fmt: skip
        times = (
            pa.array(range(n)), pa.array(range(n), pa.timestamp("ms")), pa.array(range(n), pa.timestamp("ns", "UTC")),
            pa.array(range(n), pa.date32()), pa.array([str(row[2]) for row in table]),
            pa.array([at / 2 for at in range(n)]),
        )  # fmt: skip
        one, two, when = (self.random.randrange(len(kinds)) for kinds in (ids, ids, times))
        held = io.BytesIO()
        parquet.write_table(
            pa.Table.from_arrays([ids[one], ids[two], times[when]], names=list(names)), held,
            compression=self.random.choice(("none", "snappy", "zstd")), row_group_size=self.random.choice((2, 100)),
        )  # fmt: skip
        return Written("parquet", held.getvalue(), n if certain and max(one, two) < 6 else None)

    def _packed(self, kind: str, data: bytes, rows: int | None) -> Written:
        packing = self.random.choice(("", "", "", *PACKS))
        return Written(kind, PACKS[packing](data), rows, bool(packing))


def slow_rows(kind: str, data: bytes, delimiter: str) -> int | None:
    """How many rows text has, letter by letter; None where that is not known without a reader."""
    try:
        text = data.decode("utf-8-sig", "surrogateescape")
    except UnicodeError:
        return None
    if kind == "jsonl":
        return sum(bool(line.strip(" \t")) for line in re.split(r"\r\n|\r|\n", text))
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
    if len(delimiter) > 1 or delimiter == " ":
        return sum(bool(line.strip()) for line in lines)
    rows, at = 0, 0
    while at < len(lines):
        first, (inside, odd) = at, _ends_inside(lines[at], delimiter, False)
        at += 1
        while inside and not odd and at < len(lines):
            inside, odd = _ends_inside(lines[at], delimiter, True)
            at += 1
        rows += any(line.strip() for line in lines[first:at])
    return rows


def _ends_inside(line: str, delimiter: str, inside: bool) -> tuple[bool, bool]:
    """Whether a line ends inside quotes, and whether a quote stands where none belongs."""
    begins, at, line = not inside, 0, line.rstrip("\r\n")
    while at < len(line):
        letter = line[at]
        if inside and letter == '"':
            if line[at + 1 : at + 2] == '"':
                at += 1
            elif line[at + 1 : at + 2] in ("", delimiter):
                inside = False
            else:
                return False, True
        elif not inside and begins and letter == '"':
            inside, begins = True, False
        elif not inside:
            begins = letter == delimiter or (begins and letter == " ")
        at += 1
    return inside, False


def through_reader(written: Written, folder: Path, options: ReadOptions) -> tuple[str, str | None]:
    """What happened to a file, and what is wrong with that, if anything."""
    path = folder / "file"
    path.write_bytes(written.data)
    try:
        file = EventFile(path, options)
        numbers = []
        for message in file.messages():
            numbers.append(message.row)
            assert isinstance(parse_click(message.value, now=1.8e9), BadEvent | Click)
        list(file.remarks())
    except EventFileError as error:
        said, fault = str(error), None
        if not said.isprintable() or len(said) > ERROR_CHARACTERS_MAX or not said.startswith(str(path)):
            fault = f"an error that is not one line: {said[:200]!r}"
        elif written.rows is not None and options == ReadOptions():
            fault = f"a file that is as it was written: {said[:200]}"
        return "refused", fault
    except Exception as error:
        return "raised", f"{type(error).__name__}: {error}"[:300]
    return "read", _fault_of_count(file, written, numbers, options)


def _fault_of_count(file: EventFile, written: Written, numbers: list[int], options: ReadOptions) -> str | None:
    """How the rows read differ from those that are there."""
    wanted = written.rows if options == ReadOptions() else None
    reader = file._csv or file._json
    if wanted is None and reader is not None and not written.packed and file._encoding == "utf-8-sig":
        header = int(file._csv is not None and file._csv.has_header)
        skipped = int(re.match(rb'(\xef\xbb\xbf)?\s*"?sep=', written.data) is not None)
        counted = slow_rows("csv" if file._csv else "jsonl", written.data, file._csv.delimiter if file._csv else "")
        wanted = None if counted is None or skipped else counted - header
    if numbers != list(range(1, len(numbers) + 1)):
        return f"rows are numbered {numbers[:10]}, ..."
    return None if wanted is None or wanted == len(numbers) else f"{len(numbers)} rows are read, {wanted} are there"


def run(files: int, seed: int, folder: Path, keep: Path | None = None) -> dict[str, Any]:
    writer = Writer(seed)
    pool = [writer.file() for _ in range(min(POOL, max(10, files // 10)))]
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    memory = [rss_mb()]
    began = time.perf_counter()
    for number in range(files):
        if number % 20 == 0:  # new ones come in, so that the pool is not all there is
            pool[writer.random.randrange(len(pool))] = writer.file()
        written = writer.random.choice(pool)
        if number % 3:
            written = writer.mutated(written, writer.random.choice(pool))
        outcome, fault = through_reader(written, folder, writer.random.choice(OPTIONS))
        outcomes[f"{written.kind} {outcome}"] += 1
        if fault is not None:
            wrong.append(f"file {number}, {written.kind}: {fault}")
            if keep is not None:
                (keep / f"{number}.{written.kind}").write_bytes(written.data)
        if (number + 1) % max(1, files // 10) == 0:
            memory.append(rss_mb())
    seconds = time.perf_counter() - began
    return {
        "files": files,
        "files_per_s": round(files / seconds),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": len(wrong),
        "first_wrong": wrong[:20],
        "rss_mb": {
            "after_a_tenth": memory[1], "at_the_end": memory[-1],
            "most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024, 1),
        },
        "adds_up": not wrong and outcomes.total() == files and memory[-1] <= GROWTH_MAX * memory[1],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep what goes wrong in that folder")
    options = parser.parse_args()
    in_memory = Path("/dev/shm")
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
        report = run(options.files, options.seed, Path(folder), options.keep)
    print(json.dumps(report, indent=1))
    print("nothing raised, every row is accounted for" if report["adds_up"] else "SOMETHING DOES NOT ADD UP")
    return 0 if report["adds_up"] else 1


if __name__ == "__main__":
    sys.exit(main())
