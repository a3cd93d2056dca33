"""A CSV file is read whatever separates its columns, and a quote that is left open never swallows a row."""

import codecs
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.event_files import EventFile, EventFileError, csv_rows, parse_columns
from stream.event_files.csv_rows import QUOTED_CHARACTERS_MAX, QUOTED_LINES_MAX
from stream.event_files.delimiter import parse_delimiter

from .conftest import Read, triple

HEADER = "user,item,timestamp\n"


def rows(n: int, start: int = 0) -> str:
    return "".join(f"u{i % 7},i{i % 11},{1_700_000_000 + i}\n" for i in range(start, start + n))


@pytest.mark.parametrize(
    ("lone", "said"),
    [
        ('u1,"i1,1700000000\n', r"line 1,001: the quote that opens here"),
        ('"u1,i1,1700000000\n', r"line 1,001: the quote that opens here"),
        ('u1,i1,"1700000000\n', r"line 1,001: the quote that opens here"),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 5, 300, 19_000])
def test_a_quote_that_is_never_closed_is_refused_with_its_line(read: Read, lone: str, said: str, after: int) -> None:
    with pytest.raises(EventFileError, match=said) as error:
        read(HEADER + rows(999) + lone + rows(after))
    assert "close it, or double it" in str(error.value)


@pytest.mark.parametrize("apart", [1, 2, 10, QUOTED_LINES_MAX - 2, QUOTED_LINES_MAX + 1, 5_000])
@pytest.mark.parametrize("first", ['u1,"i1,1700000000\n', '"u1,i1,1700000000\n', 'u1,i1,"1700000000\n'])
@pytest.mark.parametrize("second", ['u2,"i2,1700000000\n', 'u2,i2",1700000000\n', 'u2",i2,1700000000\n', 'u2,i2,17"\n'])
def test_a_quote_closed_by_the_quote_of_another_row_is_refused(read: Read, first: str, second: str, apart: int) -> None:
    with pytest.raises(EventFileError, match=r"line 12: the quote that opens here"):
        read(HEADER + rows(10) + first + rows(apart - 1) + second + rows(50))


@pytest.mark.parametrize("lines", [2, 3, 50, QUOTED_LINES_MAX])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_of_several_lines_is_one_cell_wherever_its_column_is(read: Read, lines: int, end: str) -> None:
    text = end.join(["It's good, he said", *['and ""so"", I think, at 10:30'] * (lines - 2), "good bye"])
    for header, row in (
        ("text,user,item,timestamp", f'"{text}",u,i,5'),
        ("user,text,item,timestamp", f'u,"{text}",i,5'),
        ("user,item,timestamp,text", f'u,i,5,"{text}"'),
        ("title,user,item,timestamp,text", f'"{text}",u,i,5,"{text}"'),
    ):
        if lines * row.count('"' + text) > QUOTED_LINES_MAX:
            continue
        found = read(end.join([header, row, row, ""]))
        assert [triple(one) for one in found] == [("u", "i", 5)] * 2


def test_a_quoted_field_beyond_the_bounds_is_refused_where_it_opens(read: Read) -> None:
    for text in ("x\n" * (QUOTED_LINES_MAX + 1), "x" * 40_000 + "\n" + "x" * (QUOTED_CHARACTERS_MAX - 40_000) + "\n"):
        with pytest.raises(EventFileError, match=r"line 3: the quote that opens here is not closed within 200 lines"):
            read("user,item,timestamp,text\nu,i,5,\nu,i,5," + f'"{text}"\n')


def test_quotes_inside_quotes_are_read_as_far_as_they_go_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('title,user,item,timestamp\n"John "Johnny" Smith",u,i,5\n"a" ,"u" ,"i" ,5\n')
    file = EventFile(path)
    assert [message.key for message in file.messages()] == [b"u", b"u"]
    assert list(file.remarks()) == ["2 rows have a quote inside a quoted cell: they are read as far as they go"]


def test_a_quote_in_the_middle_of_a_cell_is_a_letter(read: Read) -> None:
    assert triple(read(HEADER + 'u"1,5"" pan,7\n')[0]) == ('u"1', '5"" pan', 7)


def test_spaces_around_cells_are_no_part_of_them_unless_quoted(read: Read) -> None:
    found = read('user, item , timestamp\nu, i,5\n u , i , 5 \n" u ", " i ", 5\nu\xa0,\ti\t,5\n')
    assert [triple(row) for row in found] == [("u", "i", 5), ("u", "i", 5), (" u ", " i ", 5), ("u", "i", 5)]


def test_blank_lines_are_no_rows_wherever_they_are(read: Read) -> None:
    assert len(read("\n \n\r\n" + HEADER + "\nu,i,5\n   \nu,i,5\n\n")) == 2


@pytest.mark.parametrize("between", [",", ";", "\t", "|", "::", " "])
def test_the_delimiter_is_found(read: Read, between: str) -> None:
    text = HEADER.replace(",", between) + rows(20).replace(",", between)
    assert [triple(row) for row in read(text)] == [triple(row) for row in read(HEADER + rows(20))]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("user;item;timestamp;value\nu;i;1700000000,5;3,25\n", ("u", "i", 1_700_000_000.5)),
        ("user\titem\ttimestamp\ttitle\nu\ti\t5\tHello, world; a | b\n", ("u", "i", 5)),
        ('user,item,timestamp,title\nu,i,5,"a;b;c;d;e;f"\n', ("u", "i", 5)),
        ("user,item,timestamp\nu;1,i|2|3,2026-11-28T10:00:00+00:00\n", ("u;1", "i|2|3", "2026-11-28T10:00:00+00:00")),
        ('user;item;timestamp\nu;i;"28,11,2026"\n', ("u", "i", "28,11,2026")),
        ("sep=;\nuser;item;timestamp\nu;i;5\n", ("u", "i", 5)),
        ("user   item  timestamp\nu      i     5\n", ("u", "i", 5)),
    ],
)
def test_the_columns_names_tell_the_delimiter_from_other_signs(read: Read, text: str, row: object) -> None:
    assert triple(read(text)[0]) == row


def test_a_decimal_comma_is_read_where_commas_separate_nothing(read: Read) -> None:
    assert read("user;item;timestamp;value\nu;i;5;3,25\n")[0]["value"] == 3.25


def test_a_delimiter_can_be_given(read: Read) -> None:
    assert triple(read("user^item^timestamp\nu^i^5\n", delimiter="^")[0]) == ("u", "i", 5)
    assert [parse_delimiter(text) for text in ("tab", "\\t", ";", "space", "::")] == ["\t", "\t", ";", " ", "::"]
    for text in ("", '"', "\n", "abc", "x"):
        with pytest.raises(ValueError, match="separates no columns"):
            parse_delimiter(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_that_show_themselves_and_all_line_ends_are_read(read: Read, encoding: str, end: str) -> None:
    text = (HEADER + "ñu,🫖,5\nb,\u4e2d,6\n" + rows(50)).replace("\n", end)
    found = read(text.encode(encoding))
    assert len(found) == 52
    assert [triple(row) for row in found[:2]] == [("ñu", "🫖", 5), ("b", "\u4e2d", 6)]


def test_utf_16_with_its_mark_is_read_either_way_round(read: Read) -> None:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        assert triple(read(mark + (HEADER + "ñ,i,5\n").encode(encoding))[0]) == ("ñ", "i", 5)


def test_an_encoding_can_be_given_and_what_it_does_not_have_is_refused(read: Read) -> None:
    data = (HEADER + "ñ,€,5\n").encode("cp1252")
    assert triple(read(data, encoding="cp1252")[0]) == ("ñ", "€", 5)
    with pytest.raises(EventFileError, match=r"after line \d it is no ascii .*--encoding says another"):
        read(data, encoding="ascii")


def test_columns_are_named_by_their_header_whatever_the_case(read: Read) -> None:
    text = "When,VisitorID,Item Id,price\n5,u,i,2.5\n"
    found = read(text, columns="user=visitorid,item=Item Id,timestamp=when,value=price")
    assert found == [{"user_id": "u", "item_id": "i", "timestamp": 5, "value": 2.5}]


def test_columns_that_are_not_named_go_by_our_names(read: Read) -> None:
    assert triple(read("visitor,item,timestamp,value\nu,i,5,x\n", columns="user=visitor,value=")[0]) == ("u", "i", 5)


@pytest.mark.parametrize(
    ("header", "option"),
    [
        ("visitorid,itemid,ts", "--columns user=visitorid,item=itemid,timestamp=ts"),
        ("userId,movieId,rating,unixReviewTime", "--columns user=userId,item=movieId,timestamp=unixReviewTime"),
        ("customer_id,product_id,created_at", "--columns user=customer_id,item=product_id,timestamp=created_at"),
        ("session_id,sku,event_time,uid", "--columns user=uid,item=sku,timestamp=event_time"),
        ("Customer ID,StockCode,InvoiceDate", "--columns 'user=Customer ID,item=StockCode,timestamp=InvoiceDate'"),
        ("user,track_id,datetime", "--columns item=track_id,timestamp=datetime"),
    ],
)
def test_names_of_others_are_offered_ready_to_be_pasted(read: Read, header: str, option: str) -> None:
    with pytest.raises(EventFileError, match=r"did you mean") as error:
        read(header + "\n" + "1," * header.count(",") + "1\n")
    assert f"did you mean {option} ?" in str(error.value)


def test_a_file_without_a_header_says_so_and_is_read_by_numbers(read: Read) -> None:
    text = "1::1193::5::978300760\n1::661::3::978302109\n"
    with pytest.raises(EventFileError, match=r"has no header: .*--columns user=1,item=2,timestamp=4"):
        read(text)
    assert [triple(row) for row in read(text, columns="user=1,item=2,timestamp=4,value=3")] == [
        ("1", "1193", 978300760), ("1", "661", 978302109),
    ]  # fmt: skip
    with pytest.raises(EventFileError, match="has no column 9: it has 4"):
        read(text, columns="user=1,item=9,timestamp=4")


def test_numbers_name_columns_under_a_header_too(read: Read) -> None:
    assert triple(read("who,what,when\nu,i,5\n", columns="user=1,item=2,timestamp=3")[0]) == ("u", "i", 5)
    assert triple(read("0,1,2\nu,i,5\n", columns="user=0,item=1,timestamp=2")[0]) == ("u", "i", 5)


@pytest.mark.parametrize(
    "header", ["user,user,item,timestamp", "user,User,item,timestamp", "user, user ,item,timestamp"]
)
def test_two_columns_of_one_name_are_refused(read: Read, header: str) -> None:
    with pytest.raises(EventFileError, match=r"has 2 columns of one name, .*\(column 1\) and .*\(column 2\)"):
        read(header + "\na,b,i,5\n")
    assert triple(read(header + "\na,b,i,5\n", columns="user=2")[0]) == ("b", "i", 5)
    assert triple(read("user,User,item,timestamp\na,b,i,5\n", columns="user=User")[0]) == ("b", "i", 5)


def test_what_cannot_be_seen_around_a_name_is_no_part_of_it(read: Read) -> None:
    assert triple(read("\u200buser\u200b , item\ufeff,\xa0timestamp\nu\u200d,i,5\n")[0]) == ("u\u200d", "i", 5)


def test_a_name_that_is_not_known_is_left_open_in_the_option(read: Read) -> None:
    with pytest.raises(EventFileError, match=r"say which they are: --columns user=uid,timestamp=COLUMN$"):
        read("uid,item,wann\nu,i,5\n")


def test_other_columns_may_have_one_name(read: Read) -> None:
    assert triple(read("x,user,x,item,timestamp,,\na,u,c,i,5,,\n")[0]) == ("u", "i", 5)


def test_a_column_that_is_missing_is_refused(read: Read) -> None:
    with pytest.raises(EventFileError, match=r"has no column 'whom' \(--columns\): there are 'user, item, timestamp'"):
        read(HEADER + "u,i,5\n", columns="user=whom")


@pytest.mark.parametrize("text", ["user", "user=", "whom=x", "user=a,user_id=b", "=a", ""])
def test_columns_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is none of|given twice|names no column"):
        parse_columns(text)


def test_longer_rows_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "u,i,5,\nu,i,5,more\n")
    file = EventFile(path)
    assert len(list(file.messages())) == 2
    assert list(file.remarks()) == ["1 rows have more cells than the header: what is beyond it is not read"]


def test_a_time_without_a_zone_is_given_one(read: Read) -> None:
    text = HEADER + "u,i,2026-11-28 10:03:00\nu,i,2026-07-28T10:03:00+00:00\nu,i,2026-11-28\nu,i,5\nu,i,20261128\n"
    found = [row["timestamp"] for row in read(text, timezone="Europe/Berlin")]
    assert found == [1795856580.0, "2026-07-28T10:03:00+00:00", 1795820400.0, 5, 20261128]
    assert read(HEADER + "u,i,2019-10-01 00:00:00 UTC\n")[0]["timestamp"] == "2019-10-01 00:00:00+00:00"


cell = st.text(st.characters(codec="utf-8", exclude_characters='\0\r\n",;|\t:'), min_size=1, max_size=8).filter(
    lambda text: text.strip() == text and text.strip(csv_rows.HIDDEN) == text
)


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.tuples(cell, cell, st.integers(0, 2_000_000_000)), min_size=1, max_size=20),
    between=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
)
def test_any_table_is_read_back_whatever_separates_it(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[tuple[str, str, int]],
    between: str,
    end: str,
    encoding: str,
) -> None:
    path = tmp_path_factory.mktemp("t") / "a"
    lines = [between.join(("user", "item", "timestamp")), *(between.join(map(str, row)) for row in table), ""]
    path.write_bytes(end.join(lines).encode(encoding))
    found = [triple(json.loads(message.value)) for message in EventFile(path).messages()]
    assert found == table
