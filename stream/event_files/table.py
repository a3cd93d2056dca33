"""The rows of a table of any columns: CSV (also packed), JSON lines or Parquet, by what the content is.

Events have columns of their own (stream/event_files/columns.py); this reads what else a command takes, such as a log of
impressions. Cells of a CSV stay the text they are; the other formats have types.
"""

import csv
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from stream.event_files.delimiter import KNOWN
from stream.event_files.errors import EventFileError, shown
from stream.event_files.opening import Opened
from stream.event_files.text import LINE_BYTES_MAX, encoding_of, lines_of

_BATCH_ROWS = 4_096

Row = dict[str, Any]


def table_rows(path: Path, delimiter: str | None = None) -> Generator[Row]:
    """Each row as {column: value}. Raises EventFileError, which names the line, for what cannot be read."""
    opened = Opened(path)
    if opened.sample.startswith(b"PAR1"):
        yield from _parquet(opened)
        return
    with closing(lines_of(opened, encoding_of(opened.sample, opened.name))) as lines:
        if opened.sample.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
            yield from _json_lines(opened.name, lines)
        else:
            yield from _csv(opened.name, lines, delimiter)


def _json_lines(name: str, lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise EventFileError(f"{name}, line {number:,}: it is no JSON; an object on each line is needed") from None
        if not isinstance(row, dict):
            raise EventFileError(f"{name}, line {number:,}: an object on each line is needed")
        yield row


def _csv(name: str, lines: Iterator[str], delimiter: str | None) -> Iterator[Row]:
    csv.field_size_limit(LINE_BYTES_MAX)
    header = next((line for line in lines if line.strip()), "")
    reader = csv.reader(lines, delimiter=_delimiter(name, header, delimiter), strict=True, skipinitialspace=True)
    names = [one.strip() for one in next(csv.reader([header], reader.dialect))]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise EventFileError(f"{name} has two columns of the name {shown(twice)!r}: rename one of them")
    try:
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(names):
                line = reader.line_num + 1
                raise EventFileError(f"{name}, line {line:,}: {len(cells)} cells under {len(names)} columns")
            yield dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise EventFileError(f"{name}, line {reader.line_num + 1:,}: {error}") from None


def _delimiter(name: str, header: str, given: str | None) -> str:
    delimiter = given or max((one for one in KNOWN if len(one) == 1), key=header.count)
    if len(delimiter) != 1:
        raise EventFileError(f"{name}: a delimiter of one character is needed here, not {delimiter!r}")
    return delimiter


def _parquet(opened: Opened) -> Iterator[Row]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - takes longer to import than most commands to run
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise EventFileError(
            f'{opened.name} is a Parquet file, which needs the packages of the extra "backtest": '
            "pip install 'nextclick[backtest]'"
        ) from None
    try:
        with parquet.ParquetFile(opened.path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        why = shown((str(error).splitlines() or ["its data is damaged"])[0])
        raise EventFileError(f"{opened.name} is no readable Parquet file: {why}") from None
