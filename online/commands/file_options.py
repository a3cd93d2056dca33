"""The options of every command that reads a file of events, and what they say together."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stream.event_files import EventFile, ReadOptions
    from stream.item_files import ItemFile

FileArgument = Annotated[
    Path, typer.Argument(help="CSV, JSON lines (also packed) or Parquet with user, item, timestamp; - reads stdin.")
]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="Names of others, as in user=uid,item=sku or by number.")
]
DelimiterOption = Annotated[
    str | None, typer.Option("--delimiter", help="Of a CSV: , ; | :: tab space. Else it is found in the file.")
]
EncodingOption = Annotated[str | None, typer.Option("--encoding", help="Of text: utf-8, utf-16, cp1252, …")]
TimezoneOption = Annotated[
    str | None, typer.Option("--timezone", help="Of times that have none: UTC, Europe/Berlin, …")
]
BadRowsOption = Annotated[
    str, typer.Option("--bad-rows-max", help="Refuse a file with a larger share of rows that are no clicks.")
]
SortOption = Annotated[bool, typer.Option("--sort", help="Sort the clicks by time first, in memory; equal times stay.")]
ItemColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", help="Names of others, as in id=sku,title=name; else guessed. tags= reads none."),
]
UserColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="Names of others, as in id=customer; else guessed. tags= reads none.")
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", help="Columns that become attributes, comma-separated; else all others.")
]
TagSeparatorOption = Annotated[
    str | None, typer.Option("--tag-separator", help="Of tags in one cell; else | ; or , whichever there is.")
]
BAD_ROWS_MAX = "5%"


def read_options(
    columns: str | None, delimiter: str | None, encoding: str | None, timezone: str | None
) -> "ReadOptions":
    """Raises BadParameter for what cannot be meant."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - not needed to show the help

    from stream.event_files import ReadOptions, parse_columns  # noqa: PLC0415
    from stream.event_files.delimiter import parse_delimiter  # noqa: PLC0415
    from stream.event_files.text import known_encoding  # noqa: PLC0415

    option = "--columns"
    try:
        named = parse_columns(columns) if columns is not None else {}
        option = "--delimiter"
        between = None if delimiter is None else parse_delimiter(delimiter)
        option = "--encoding"
        written = None if encoding is None else known_encoding(encoding)
        option = "--timezone"
        zone = None if timezone is None else ZoneInfo(timezone)
    except (ValueError, OSError, LookupError) as error:
        why = f"there is no time zone {timezone!r}; UTC and Europe/Berlin are two" if option == "--timezone" else error
        raise typer.BadParameter(f"{option}: {why}") from None
    return ReadOptions(columns=named, delimiter=between, encoding=written, timezone=zone)


def bad_rows_share(text: str) -> float:
    """Raises BadParameter for what is no share."""
    from stream.event_files import parse_share  # noqa: PLC0415

    try:
        return parse_share(text)
    except ValueError as error:
        raise typer.BadParameter(f"--bad-rows-max: {error}") from None


def open_file(
    file: Path, columns: str | None, delimiter: str | None, encoding: str | None, timezone: str | None
) -> "EventFile":
    """Raises BadParameter, and EventFileError for what cannot be opened."""
    options = read_options(columns, delimiter, encoding, timezone)
    from stream.event_files import EventFile  # noqa: PLC0415

    return EventFile(file, options)


def open_items(
    file: Path,
    *,
    columns: str | None = None,
    only: str | None = None,
    tag_separator: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    timezone: str | None = None,
    option: str = "--columns",
    users: bool = False,
) -> "ItemFile":
    """Opens a file of items, or of `users`.

    Raises:
        BadParameter: an option cannot be meant; `option`: the name of the one that maps columns.
        EventFileError: the file cannot be opened.
    """
    from stream.item_files import ITEMS, USERS, ItemFile, ItemOptions, parse_item_columns, parse_only  # noqa: PLC0415

    kind = USERS if users else ITEMS
    try:
        named = {} if columns is None else parse_item_columns(columns, kind)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None
    read = read_options(None, delimiter, encoding, timezone)
    return ItemFile(
        file,
        ItemOptions(
            columns=named,
            only=None if only is None else parse_only(only),
            tag_separator=tag_separator,
            delimiter=read.delimiter,
            encoding=read.encoding,
            timezone=read.timezone,
        ),
        kind=kind,
    )
