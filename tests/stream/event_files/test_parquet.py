"""A column of a Parquet file is taken rightly or refused by its name, before the first row."""

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import pytest

from stream.event_files import EventFile, EventFileError

from .conftest import Read, are_clicks, triple

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

MOMENT = datetime.datetime(2026, 11, 28, 10, 3, tzinfo=datetime.UTC)
SECONDS = MOMENT.timestamp()
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def table(tmp_path: Path, **columns: Any) -> Path:
    columns = {"user": ["u"], "item": ["i"], "timestamp": [5], **columns}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array(["007"]), "007"),
        (pa.array(["007"], pa.large_string()), "007"),
        (pa.array(["007"], pa.string_view()), "007"),
        (pa.array(["007"]).dictionary_encode(), "007"),
        (pa.array([b"007"]), "007"),
        (pa.array(["ñ".encode()], pa.large_binary()), "ñ"),
        (pa.array([7], pa.int8()), 7),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([7]).dictionary_encode(), 7),
        (pa.array([7.0]), 7),
        (pa.array([7.0], pa.float32()), 7),
        (pa.array([decimal.Decimal("7")], pa.decimal128(38, 0)), 7),
        (pa.array([decimal.Decimal("7.00")], pa.decimal128(10, 2)), 7),
        (pa.array([decimal.Decimal("9" * 60)], pa.decimal256(70, 0)), int("9" * 60)),
        (pa.array([UUID.bytes], pa.uuid()), str(UUID)),
        (pa.array([UUID.bytes], pa.binary(16)), str(UUID)),
    ],
    ids=str,
)
def test_ids_are_taken_rightly(tmp_path: Path, read: Read, column: Any, wanted: object) -> None:
    (found,) = read(table(tmp_path, user=column, item=column))
    assert (found["user_id"], found["item_id"]) == (wanted, wanted)
    assert are_clicks([found])


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([["a"]]), r"list<.*string>"),
        (pa.array([{"id": 1}]), r"struct<id: int64>"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), r"map<string, int64"),
        (pa.array([True]), r"bool"),
        (pa.array([MOMENT], pa.timestamp("us", "UTC")), r"timestamp\[us, tz=UTC\]"),
        (pa.array([MOMENT.date()]), r"date32"),
        (pa.array([None], pa.null()), r"null"),
        (pa.array([datetime.timedelta(1)]), r"duration"),
        (pa.array([b"12345678"], pa.binary(8)), r"fixed_size_binary\[8\]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("field", ["user", "item"])
def test_a_type_that_is_no_id_is_refused_by_its_column(tmp_path: Path, column: Any, kind: str, field: str) -> None:
    path = table(tmp_path, **{field: column})
    with pytest.raises(EventFileError, match=rf"column '{field}' is of the type {kind}.* needs text, a whole number"):
        next(EventFile(path).messages())


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([MOMENT], pa.timestamp("s", "UTC")), SECONDS),
        (pa.array([MOMENT], pa.timestamp("ms", "Europe/Berlin")), SECONDS),
        (pa.array([MOMENT], pa.timestamp("us", "UTC")), SECONDS),
        (pa.array([MOMENT], pa.timestamp("ns")), SECONDS),
        (pa.array([MOMENT.date()]), SECONDS // 86_400 * 86_400),
        (pa.array([MOMENT.date()], pa.date64()), SECONDS // 86_400 * 86_400),
        (pa.array([int(SECONDS)]), SECONDS),
        (pa.array([1_000 * int(SECONDS)]), 1_000 * SECONDS),  # the unit is told by the reader of clicks
        (pa.array([SECONDS + 0.25]), SECONDS + 0.25),
        (pa.array([decimal.Decimal("1795860180.25")]), 1795860180.25),
        (pa.array([MOMENT.isoformat()]), MOMENT.isoformat()),
        (pa.array(["1795860180"]), SECONDS),
    ],
    ids=str,
)
def test_times_are_taken_rightly(tmp_path: Path, read: Read, column: Any, wanted: object) -> None:
    assert read(table(tmp_path, timestamp=column))[0]["timestamp"] == wanted


def test_a_time_without_a_zone_counts_as_utc_and_says_so_or_is_given_one(tmp_path: Path, read: Read) -> None:
    path = table(tmp_path, timestamp=pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ms")))
    file = EventFile(path)
    list(file.messages())
    assert list(file.remarks()) == [
        "the times in 'timestamp' have no time zone: they are taken as UTC (--timezone says another)"
    ]
    assert read(path)[0]["timestamp"] == SECONDS
    assert read(path, timezone="Europe/Berlin")[0]["timestamp"] == SECONDS - 3_600


@pytest.mark.parametrize(
    "column", [pa.array([True]), pa.array([[5]]), pa.array([datetime.time(5)]), pa.array([{"t": 5}])], ids=str
)
def test_a_type_that_is_no_time_is_refused_by_its_column(tmp_path: Path, column: Any) -> None:
    with pytest.raises(EventFileError, match=r"column 'timestamp' is of the type .* needs a time, a date, a number"):
        next(EventFile(table(tmp_path, timestamp=column)).messages())


def test_an_optional_column_of_a_wrong_type_can_be_left_out(tmp_path: Path, read: Read) -> None:
    path = table(tmp_path, value=pa.array([{"raw": 5}]))
    with pytest.raises(EventFileError, match=r"column 'value' is of the type struct.*--columns value= leaves it out"):
        read(path)
    assert triple(read(path, columns="value=")[0]) == ("u", "i", 5)
    assert read(path, columns="value=value.raw")[0]["value"] == 5


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_floats_that_are_not_exact_are_no_ids(tmp_path: Path, read: Read, kind: Any) -> None:
    path = table(tmp_path, user=pa.array([float(2**60)], kind))
    with pytest.raises(EventFileError, match=rf"column 'user' is of the type {kind}, which is not exact for ids from"):
        read(path)


def test_what_is_missing_is_missing_and_a_fraction_is_no_id(tmp_path: Path, read: Read) -> None:
    columns = {
        "user": pa.array([1.0, float("nan"), None, 1.5]),
        "item": ["i"] * 4,
        "timestamp": [5.0] * 4,
        "rating": pa.array([float("nan"), None, 2.5, 1.0]),
    }
    found = read(table(tmp_path, **columns))
    assert [row.get("user_id") for row in found] == [1, None, None, 1.5]
    assert [row.get("value") for row in found] == [None, None, 2.5, 1.0]
    assert [are_clicks([row]) for row in found] == [True, False, False, False]


def test_nested_columns_are_paths(tmp_path: Path, read: Read) -> None:
    who = pa.array([{"id": "u", "more": {"item": 7}}])
    path = table(tmp_path, who=who)
    assert triple(read(path, columns="user=who.id,item=who.more.item")[0]) == ("u", 7, 5)


def test_two_columns_of_one_name_are_refused_where_they_are_needed(tmp_path: Path, read: Read) -> None:
    def write(*names: str) -> Path:
        columns = [pa.array([name]) if name != "timestamp" else pa.array([5]) for name in names]
        parquet.write_table(pa.Table.from_arrays(columns, names=list(names)), tmp_path / "b.parquet")
        return tmp_path / "b.parquet"

    with pytest.raises(EventFileError, match=r"has 2 columns of one name, 'user' .*: say which, as in rename one"):
        read(write("user", "user", "item", "timestamp"))
    path = write("user", "User", "item", "timestamp")
    with pytest.raises(EventFileError, match=r"say which, as in --columns user=user"):
        read(path)
    assert triple(read(path, columns="user=User")[0]) == ("User", "item", 5)
    assert triple(read(write("x", "user", "x", "item", "timestamp"))[0]) == ("user", "item", 5)


def test_text_that_is_no_utf_8_is_a_broken_row(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    path = table(tmp_path, user=bad)
    (message,) = EventFile(path).messages()
    assert b"\xff\xfe" in message.value


def test_a_file_is_parquet_whatever_it_is_called_and_a_damaged_one_is_one_line(tmp_path: Path, read: Read) -> None:
    path = table(tmp_path)
    data = path.read_bytes()
    for name in ("a.csv", "a", "a.gz"):
        assert triple(read(data, name)[0]) == ("u", "i", 5)
    for cut in (5, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(EventFileError, match="is no readable Parquet file") as error:
            read(data[:cut])
        assert "\n" not in str(error.value)


def test_a_file_can_be_read_twice(tmp_path: Path) -> None:
    file = EventFile(table(tmp_path))
    assert list(file.messages()) == list(file.messages())
