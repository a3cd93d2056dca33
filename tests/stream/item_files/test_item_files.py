"""A file of items says what it holds: columns are guessed or said, bad rows are named, and nothing goes unsaid."""

import datetime
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.event_files import EventFileError
from stream.event_files.table import Table
from stream.item_files import (
    BadRow,
    ItemFile,
    ItemOptions,
    ItemRow,
    ItemTally,
    check_items,
    parse_item_columns,
    parse_only,
)  # fmt: skip
from stream.item_files.cells import CellError, is_absent, kind_of_texts, moment_of, number_in, tags_of
from stream.item_files.kinds import AVAILABLE, ID, ITEMS, PUBLISHED_AT, TAGS, TITLE, USERS
from stream.items import TEXT_BYTES_MAX

Open = Callable[..., ItemFile]
CSV = """sku,Name,genres,release_date,in_stock,price,brand,ean
i1,A kettle,tea|steel,2024-05-01,yes,12.50,Acme,0012
i2,"Cup, blue",tea,,no,,3M,0013
i3,Rose,,1999-12-31,,3,,0014
"""


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def opening(content: str | bytes, name: str = "items.csv", **given: Any) -> ItemFile:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ItemFile(path, ItemOptions(**given))

    return opening


def items(file: ItemFile) -> list[ItemRow]:
    rows = list(file.rows())
    assert all(isinstance(row, ItemRow) for row in rows), rows
    return [row for row in rows if isinstance(row, ItemRow)]


def seconds(year: int, month: int, day: int) -> float:
    return datetime.datetime(year, month, day, tzinfo=datetime.UTC).timestamp()


def test_a_csv_is_read_by_what_its_columns_are_called_and_hold(opened: Open) -> None:
    file = opened(CSV)
    assert file.columns.fields == {
        ID: "sku", TITLE: "Name", TAGS: "genres", PUBLISHED_AT: "release_date", AVAILABLE: "in_stock",
    }  # fmt: skip
    assert file.columns.separator == "|"
    assert file.columns.attributes == {"price": "number", "brand": "text", "ean": "text"}  # zeros in front are kept
    kettle, cup, rose = items(file)
    assert (kettle.line, kettle.key) == (2, b"i1")
    assert kettle.item.title == "A kettle"
    assert kettle.item.tags == ("tea", "steel")
    assert kettle.item.available
    assert kettle.item.attributes == {
        "price": 12.5, "brand": "Acme", "ean": "0012", "published_at": seconds(2024, 5, 1),
    }  # fmt: skip
    assert kettle.published_at == seconds(2024, 5, 1)
    assert (cup.item.title, cup.item.available, cup.published_at) == ("Cup, blue", False, None)
    assert cup.item.attributes == {"brand": "3M", "ean": "0013"}
    assert (rose.item.tags, rose.item.available) == ((), True)
    assert json.loads(rose.value) == {"price": 3, "ean": "0014", "title": "Rose", "published_at": seconds(1999, 12, 31)}


def test_a_packed_file_with_semicolons_has_decimal_commas(opened: Open) -> None:
    (one,) = items(opened(gzip.compress(b"id;title;price\n7;Tea;1,5\n"), "items.csv.gz"))
    assert (one.key, one.item.attributes) == (b"7", {"price": 1.5})


def test_what_is_said_goes_before_what_is_guessed(opened: Open) -> None:
    given = parse_item_columns("id=ean, title=brand,tags=")
    file = opened(CSV, columns=given, only=parse_only("price, genres"))
    assert file.columns.fields == {ID: "ean", TITLE: "brand", PUBLISHED_AT: "release_date", AVAILABLE: "in_stock"}
    assert file.columns.attributes == {"genres": "text", "price": "number"}
    assert [row.key for row in items(file)] == [b"0012", b"0013", b"0014"]
    assert opened(CSV, only=()).columns.attributes == {}


@pytest.mark.parametrize(
    ("cells", "separator"), [("a|b\nc", "|"), ("a;b\nc;d\ne|f", ";"), ('"a, b"\n"c,d"', ","), ("a\nb", "")]
)
def test_tags_are_separated_by_what_stands_in_most_cells(opened: Open, cells: str, separator: str) -> None:
    rows = "".join(f"{at},{cell}\n" for at, cell in enumerate(cells.split("\n")))
    assert opened(f"id,tags\n{rows}").columns.separator == separator
    assert opened(f"id,tags\n{rows}", tag_separator="/").columns.separator == "/"


def test_json_lines_keep_their_types_and_their_nested_fields(opened: Open) -> None:
    rows: list[dict[str, Any]] = [
        {"item": {"id": 7.0}, "title": None, "tags": ["a", "b", "a"], "price": 2, "new": True, "sizes": [1, 2]},
        {"item": {"id": "b"}, "published_at": 1_700_000_000_000, "vector": [0.5, 1], "available": False},
    ]
    file = opened("\n".join(map(json.dumps, rows)), "items.jsonl", columns={ID: "item.id"})
    first, second = items(file)
    assert (first.key, first.item.tags, first.item.attributes) == (b"7", ("a", "b"), {"price": 2.0, "new": True})
    assert second.published_at == 1_700_000_000.0
    assert (second.item.vector, second.item.available) == ((0.5, 1.0), False)
    assert file.remarks() == [
        "left out of items: 1 values of 'sizes', each of which is no single number, text or truth value",
    ]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    moment = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    columns = {
        "item_id": [1, 2], "title": ["Tea", None], "tags": [["a"], None], "published_at": [moment, None],
        "price": [1.5, float("nan")], "seen": [None, True],
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "items.parquet")
    first, second = items(ItemFile(tmp_path / "items.parquet"))
    assert (first.line, first.key, first.item.title, first.item.tags) == (1, b"1", "Tea", ("a",))
    assert first.published_at == moment.timestamp()
    assert (second.key, second.item.attributes) == (b"2", {"seen": True})


def test_bad_rows_are_named_and_the_others_are_taken(opened: Open) -> None:
    text = "id,title,published_at,available,price\n,Tea,,,1\ni2,Cup,soon,,2\ni3,Pot,,maybe,3\ni4,Jug\ni5,Rose,,,4\n"
    text += "i5,Fern,,,5\n"
    file = opened(text)
    tally = check_items(file)
    assert [(row.line, row.reason) for row in file.rows() if isinstance(row, BadRow)] == [
        (2, "invalid-id"), (3, "invalid-published_at"), (4, "invalid-available"), (5, "unreadable-row"),
    ]  # fmt: skip
    assert (tally.rows, tally.items, tally.repeated) == (6, 2, 1)
    lines = tally.lines()
    assert lines[0] == (
        "left out, not readable as items: 1 invalid-id, 1 invalid-published_at, 1 invalid-available, 1 unreadable-row"
    )
    assert lines[1] == "line 2: id is missing"
    assert lines[2].startswith("line 3: published_at is no ISO 8601 time")
    assert lines[3:] == [
        "line 4: available is neither true nor false: 'maybe'",
        "line 5: 2 cells under 5 columns",
        "1 rows are of an item that came before: of each item the last row counts",
    ]
    with pytest.raises(EventFileError, match=r"4 of 6 rows \(66.7%\) cannot be read as items: .* line 2: id is"):
        tally.refuse_if_bad("items.csv", 0.05)
    tally.refuse_if_bad("items.csv", 0.7)


def test_a_file_of_bad_rows_alone_is_refused(opened: Open) -> None:
    tally = check_items(opened("id,title\n,Tea\n,Cup\n"))
    with pytest.raises(EventFileError, match=r"2 of 2 rows .*--columns says which column is which"):
        tally.refuse_if_bad("items.csv", 0.999)


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("what,price\na,1\n", {}, "no column that is known to hold the items' ids: there are 'what, price'"),
        ("id,price\na,1\n", {"columns": {TITLE: "name"}}, "no column 'name' (--columns): there are 'id, price'"),
        ("id,price\na,1\n", {"only": ("brand",)}, "no column 'brand' (--only): there are 'id, price'"),
        ("id,price\n", {}, "has no row that can be read"),
        ("", {}, "is empty"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(opened: Open, text: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(EventFileError) as raised:
        opened(text, **given)
    assert words in str(raised.value)


def test_a_quote_left_open_is_named_with_its_lines(opened: Open, tmp_path: Path) -> None:
    rows = list(opened('id,title\na,"Tea\nb,Cup\nc,"Pot"\nd,Jug\n').rows())
    assert next(row.line for row in rows if isinstance(row, BadRow)) == 2
    (tmp_path / "long.csv").write_text('id,title\na,"Tea\n' + "b,Cup\n" * 300)
    with pytest.raises(EventFileError, match="line 2: a quote that opens here is not closed within 200 lines"):
        list(Table(tmp_path / "long.csv").rows())


def test_values_that_cannot_be_kept_are_counted(opened: Open) -> None:
    rows = "".join(f"i{at},{at}\n" for at in range(1_001))
    file = opened(f"id,price,text\n{rows.replace(chr(10), ',x' + chr(10))}last,dear,{'y' * (TEXT_BYTES_MAX + 1)}\n")
    last = items(file)[-1]
    assert last.item.attributes == {}
    assert file.remarks() == [
        "left out of items: 1 values of 'price', each of which is no number",
        f"left out of items: 1 values of 'text', each of which is longer than {TEXT_BYTES_MAX} bytes",
    ]


def test_columns_beyond_the_limit_are_said(opened: Open) -> None:
    names = [f"a{at}" for at in range(66)]
    file = opened(",".join(["id", *names]) + "\n" + ",".join("1" * 67) + "\n")
    assert file.columns.lines()[-1] == "not read: a64, a65 (an item has 64 attributes)"


def test_bytes_that_are_no_utf_8_are_a_bad_row(opened: Open) -> None:
    content = "id,title\na,Tee\nb,Käse\n".encode("cp1252")
    assert [row.reason for row in opened(content).rows() if isinstance(row, BadRow)] == ["invalid-utf8"]
    assert items(opened(content, encoding="cp1252"))[1].item.title == "Käse"


def test_times_without_a_zone_are_in_the_one_that_is_given(opened: Open) -> None:
    text = "id,published_at\na,2024-05-01T00:00:00\nb,2024-05-01\nc,1995\nd,1714521600\n"
    assert [row.published_at for row in items(opened(text))] == [
        seconds(2024, 5, 1), seconds(2024, 5, 1), seconds(1995, 1, 1), 1_714_521_600.0,
    ]  # fmt: skip
    berlin = [row.published_at for row in items(opened(text, timezone=ZoneInfo("Europe/Berlin")))]
    assert berlin[:2] == [seconds(2024, 5, 1) - 7_200] * 2


def test_cells() -> None:
    assert [number_in(text) for text in ("1", "-1.5e3", "007", "", "1,5", "nan", ".5")] == [
        1.0, -1500.0, None, None, None, None, 0.5,
    ]  # fmt: skip
    assert number_in("1,5", decimal_comma=True) == 1.5
    assert kind_of_texts(["1", "N/A", "2"]) == "number"
    assert kind_of_texts(["true", "No", ""]) == "yes or no"
    assert kind_of_texts(["", None]) == "text"
    assert tags_of('["a", "b"]', "|") == ["a", "b"]
    assert tags_of("a| b |", "|") == ["a", "b"]
    assert is_absent(" NULL ")
    with pytest.raises(CellError):
        tags_of([{"name": "a"}], "|")
    with pytest.raises(CellError):
        moment_of("20240501", datetime.UTC)


@pytest.mark.parametrize("text", ["name", "price=a", "id=", "id=a,id=b"])
def test_columns_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"none of|twice|names no column"):
        parse_item_columns(text)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-items"
    path.write_bytes(b"id,title\n" + content)
    tally = ItemTally()
    try:
        for row in ItemFile(path).rows():
            tally.add(row)
    except EventFileError:
        return
    assert tally.rows >= 1


@pytest.mark.parametrize("kind", [ITEMS, USERS], ids=["items", "users"])
def test_a_kind_of_file_can_be_sent_to_another_process(kind):
    """A backtest's methods run in processes of their own, which are told where items come from."""
    assert pickle.loads(pickle.dumps(kind)) == kind  # noqa: S301 - made here
