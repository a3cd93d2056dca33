"""A file in which too many rows are no clicks is refused with a way on, and time that goes back is told."""

import json
from pathlib import Path

import pytest

from stream.event_files import EventFile, EventFileError, ReadOptions, RowTally, check_rows, parse_columns, parse_share
from stream.event_files import tally as module
from stream.events import parse_click

HEADER = "user,item,ts\n"
COLUMNS = ReadOptions(columns=parse_columns("timestamp=ts"))


def checked(tmp_path: Path, content: str | bytes, share: float = 0.05, **given: int) -> RowTally:
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    file = EventFile(path, COLUMNS)
    tally = check_rows(file, **given)
    tally.refuse_if_bad(file, share)
    return tally


@pytest.mark.parametrize(
    ("time", "way_on"),
    [
        ("2026-11-28 10:03:00", "--timezone UTC"),
        ("11/28/2026 10:03", "ISO 8601 as in 2026-11-28T10:03:00+00:00"),
        ("28.11.2026", "ISO 8601 as in 2026-11-28T10:03:00+00:00"),
        ("yesterday", "ISO 8601 as in 2026-11-28T10:03:00+00:00"),
    ],
)
def test_unreadable_times_are_reported_once_with_column_example_and_remedy(
    tmp_path: Path, time: str, way_on: str
) -> None:
    with pytest.raises(EventFileError) as error:
        checked(tmp_path, HEADER + f"u,i,{time}\n" * 100)
    said = str(error.value)
    assert "100 of 100 rows (100%) cannot be read as clicks: 100 invalid-timestamp; column 'ts', row 1: " in said
    assert time in said
    assert way_on in said
    assert "\n" not in said


def test_a_share_above_the_limit_is_refused_and_one_below_is_not(tmp_path: Path) -> None:
    text = HEADER + "u,i,5\n" * 94 + ",i,5\n" * 6
    with pytest.raises(
        EventFileError, match=r"6 of 100 rows \(6%\).* 6 invalid-user_id; column 'user', row 95:"
    ) as error:
        checked(tmp_path, text)
    assert "--bad-rows-max 6%" in str(error.value)
    assert checked(tmp_path, text, 0.06).bad.total() == 6
    assert checked(tmp_path, HEADER + "u,i,5\n" * 95 + ",i,5\n" * 5).bad.total() == 5
    with pytest.raises(EventFileError, match="1 of 1 rows"):
        checked(tmp_path, HEADER + ",i,5\n", 0.99)
    assert checked(tmp_path, HEADER + ",i,5\n", 1.0).rows == 1


def test_text_that_is_no_utf_8_is_refused_with_what_it_may_be(tmp_path: Path) -> None:
    text = HEADER + "".join(f"José Peña {at},café crème brûlée,{at}\n" for at in range(60))
    with pytest.raises(EventFileError, match=r"60 invalid-utf8; .*it may be (\w+): --encoding \1 reads it so"):
        checked(tmp_path, text.encode("cp1252"))


def test_only_what_would_be_published_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEADER + "u,i,5\n" * 10 + ",i,5\n" * 10
    assert checked(tmp_path, text, limit=10).rows == 10
    assert checked(tmp_path, text, 1, skip=10).bad.total() == 10
    monkeypatch.setattr(module, "CHECKED_ROWS_MAX", 7)
    assert checked(tmp_path, text).rows == 7


def test_time_that_goes_back_is_counted(tmp_path: Path) -> None:
    tally = checked(tmp_path, HEADER + "".join(f"u,i,{time}\n" for time in (100_000, 50, 100_001, 90_000, 100_001)))
    assert (tally.backward, tally.backward_s_max) == (2, 99_950)
    assert tally.order_line() == (
        "not in order of time: 2 of 5 clicks (40%) are earlier than one before them, by up to 27.8 hours"
    )
    assert checked(tmp_path, HEADER + "u,i,5\nu,i,5\nu,i,6\n").order_line() is None


def test_shares_are_read_as_percent_or_fraction() -> None:
    assert [parse_share(text) for text in ("5%", "0.05", "0", "100%", " 1 ")] == [0.05, 0.05, 0, 1, 1]
    for text in ("5", "-1%", "101%", "x", "", "nan"):
        with pytest.raises(ValueError, match="is no share"):
            parse_share(text)


def test_an_error_shows_the_option_that_takes_the_rest(tmp_path: Path) -> None:
    lines = [json.dumps({"user": "u" if at % 3 else None, "item": "i", "ts": at}) for at in range(1, 901)]
    with pytest.raises(EventFileError) as error:
        checked(tmp_path, "\n".join(lines))
    option = str(error.value).split("--bad-rows-max ")[1].split(" ")[0]
    assert checked(tmp_path, "\n".join(lines), parse_share(option)).bad.total() == 300


def test_a_tally_is_of_what_a_worker_would_say(tmp_path: Path) -> None:
    tally = checked(tmp_path, HEADER + "u,i,5\n,i,5\nu,,5\n", 1)
    messages = EventFile(tmp_path / "a.csv", COLUMNS).messages()
    reasons = [getattr(parse_click(message.value), "reason", None) for message in messages]
    assert dict(tally.bad) == {reason: 1 for reason in reasons if reason}
