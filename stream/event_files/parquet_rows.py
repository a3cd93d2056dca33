"""The rows of a Parquet file. A column of a type that no field has is refused before the first row."""

import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stream.click_fields import NEEDED
from stream.event_files.columns import ReadOptions, columns_option, find_columns
from stream.event_files.errors import EventFileError, shown
from stream.event_files.messages import Message, message, number_of

_BATCH_ROWS = 4_096
_UUID_BYTES = 16
_NEEDED_TYPE = {
    "timestamp": "a time, a date, a number or text",
    "value": "a number",
    "event_type": "text or a whole number",
}
_ID_TYPE = "text, a whole number or a UUID"


class ParquetRows:
    """The rows of one file. What is found out about it is known from the first message on."""

    def __init__(self, name: str, path: Path, options: ReadOptions) -> None:
        self._name, self._path, self._options = name, path, options
        self.rows: int | None = None
        self.rows_read = 0
        self.names: dict[str, str] = {}  # of the column that each field is read from
        self.time_without_zone = False

    def messages(self, skip: int) -> Iterator[Message]:
        """The rows after the first `skip`. Raises EventFileError for wrong columns and types, and for damaged data."""
        try:
            import pyarrow as pa  # noqa: PLC0415 - takes longer to import than most commands to run
            from pyarrow import parquet  # noqa: PLC0415
        except ImportError:
            raise EventFileError(
                f'{self._name} is a Parquet file, which needs the packages of the extra "backtest": '
                "pip install 'nextclick[backtest]'"
            ) from None

        self.rows_read = 0
        try:
            # Read through a buffer, not a whole column of a row group at a time, however large its writer made them.
            with parquet.ParquetFile(self._path, buffer_size=1 << 20, pre_buffer=False) as file:
                self.rows = file.metadata.num_rows
                if self.rows == 0:
                    raise EventFileError(f"{self._name} has no rows")
                columns = self._columns(file.schema_arrow)
                wanted = [".".join(path) for path in columns.values()]
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                    first = self.rows_read
                    self.rows_read += batch.num_rows
                    if self.rows_read <= skip:
                        continue
                    values = {field: self._values(field, _column(batch, path)) for field, path in columns.items()}
                    for place in range(max(0, skip - first), batch.num_rows):
                        fields = {field: column[place] for field, column in values.items()}
                        yield message(first + place + 1, fields, self._options.timezone)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            why = shown((str(error).splitlines() or ["its data is damaged"])[0])
            raise EventFileError(f"{self._name} is no readable Parquet file: {why}") from None
        if self.rows_read != self.rows:
            raise EventFileError(
                f"{self._name} is no readable Parquet file: it says {self.rows:,} rows and holds {self.rows_read:,}"
            )

    def _columns(self, schema: Any) -> dict[str, list[str]]:
        """The path of each field's column. Raises EventFileError for a type that the field cannot have."""
        paths = list(_paths(schema))
        names = [".".join(path) for path, _ in paths]
        found = find_columns(names, self._options, self._name)
        self.names = {field: shown(names[place]) for field, place in found.items()}
        for field, place in found.items():
            if not _fits(field, paths[place][1]):
                fits = _NEEDED_TYPE.get(field, _ID_TYPE)
                without = "" if field in NEEDED else f"; {columns_option({field: ''})} leaves it out"
                raise EventFileError(
                    f"{self._name}: column {shown(names[place])!r} is of the type {shown(paths[place][1])}, and "
                    f"{field} needs {fits}{without}"
                )
        kind = _stored(paths[found["timestamp"]][1])
        self.time_without_zone = getattr(kind, "tz", "") is None and self._options.timezone is None
        return {field: paths[place][0] for field, place in found.items()}

    def _values(self, field: str, column: Any) -> list[Any]:
        """A column as values that JSON has."""
        import pyarrow as pa  # noqa: PLC0415

        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = column.type
        if pa.types.is_date(kind):
            column = column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type):
            return self._seconds(column)
        if kind in _texts():
            # Through bytes: text in a file need not be the UTF-8 that it should be.
            column = column.cast(pa.large_binary())
        values = column.to_pylist()
        if pa.types.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES:
            return [None if value is None else str(uuid.UUID(bytes=value)) for value in values]
        if pa.types.is_floating(kind):
            self._check_exact(field, kind, values)
            return [None if value is None or math.isnan(value) else value for value in values]
        values = [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]
        if pa.types.is_decimal(kind):
            return [None if v is None else int(v) if v == v.to_integral_value() else float(v) for v in values]
        if field in ("timestamp", "value"):
            return [number_of(value) if isinstance(value, str) else value for value in values]
        return values

    def _check_exact(self, field: str, kind: Any, values: Sequence[Any]) -> None:
        """Above a bound a float has not all whole numbers: two ids may have become one."""
        bound = 2 ** {16: 11, 32: 24}.get(kind.bit_width, 53)
        if field not in ("timestamp", "value") and any(v is not None and abs(v) >= bound for v in values):
            raise EventFileError(
                f"{self._name}: column {self.names[field]!r} is of the type {kind}, which is not exact for ids from "
                f"{bound:,} on, and there are some: write them as text or whole numbers"
            )

    def _seconds(self, column: Any) -> list[Any]:
        """Times as seconds since 1970. One without a zone is taken in the zone that is given, else in UTC."""
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import compute  # noqa: PLC0415

        if column.type.tz is None and self._options.timezone is not None:
            column = compute.assume_timezone(
                column, self._options.timezone.key, ambiguous="earliest", nonexistent="earliest"
            )
        per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
        return [None if ticks is None else ticks / per_second for ticks in column.cast(pa.int64()).to_pylist()]


def _paths(fields: Any, above: tuple[str, ...] = (), depth: int = 4) -> Iterator[tuple[list[str], Any]]:
    """Each column's path and type, those of structs too."""
    import pyarrow as pa  # noqa: PLC0415

    for field in fields:
        path = (*above, field.name)
        yield list(path), field.type
        if pa.types.is_struct(field.type) and depth > 1:
            yield from _paths([field.type.field(at) for at in range(field.type.num_fields)], path, depth - 1)


def _column(batch: Any, path: Sequence[str]) -> Any:
    from pyarrow import compute  # noqa: PLC0415

    column = batch.column(batch.schema.names.index(path[0]))
    return compute.struct_field(column, list(path[1:])) if len(path) > 1 else column


def _stored(kind: Any) -> Any:
    """The type of the values themselves."""
    import pyarrow as pa  # noqa: PLC0415

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _texts() -> tuple[Any, ...]:
    import pyarrow as pa  # noqa: PLC0415

    return (pa.string(), pa.large_string(), pa.string_view())


def _fits(field: str, kind: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415

    kind, types = _stored(kind), pa.types
    text = kind in _texts() or types.is_binary(kind) or types.is_large_binary(kind) or kind == pa.binary_view()
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if field == "timestamp":
        return text or number or types.is_timestamp(kind) or types.is_date(kind)
    if field in ("value", "event_type"):
        return text or number
    return text or number or (types.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES)
