"""JSON lines are read by our names or by paths; a file that is no JSON lines says what it is."""

import json
from pathlib import Path

import pytest

from stream.event_files import EventFile, EventFileError

from .conftest import Read, are_clicks, triple

LINE = '{"user": "u", "item": "i", "timestamp": 5}\n'


def test_nested_names_are_paths(read: Read) -> None:
    line = json.dumps({"user": {"id": "u"}, "payload": {"after": {"item": "i"}}, "ts": 5, "a.b": "x"}) + "\n"
    found = read(line, columns="user=user.id,item=payload.after.item,timestamp=ts,event_type=a.b")
    assert found == [{"user_id": "u", "item_id": "i", "timestamp": 5, "event_type": "x"}]


def test_names_of_others_are_offered_with_their_paths(read: Read) -> None:
    line = json.dumps({"visitor": {"id": 7}, "product": {"sku": "i"}, "meta": {"eventTime": 5}}) + "\n"
    with pytest.raises(EventFileError, match="did you mean") as error:
        read(line)
    assert "--columns user=visitor.id,item=product.sku,timestamp=meta.eventTime ?" in str(error.value)


def test_a_line_that_lacks_a_named_path_lacks_the_field(read: Read) -> None:
    found = read(
        '{"u": {"id": 1}, "item": 2, "timestamp": 3}\n{"u": 5, "item": 2, "timestamp": 3}\n', columns="user=u.id"
    )
    assert [triple(row) for row in found] == [(1, 2, 3), (None, 2, 3)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"user": "u"}, {"user": "v"}]', "holds one JSON array"),
        ('[\n  {\n    "user": "u",\n    "item": "i"\n  }\n]\n', "holds one JSON array"),
        ('{\n  "user": "u",\n  "item": "i"\n}\n', "holds no JSON object in its first lines"),
        ('{"user": "u", "item": "i"\n' * 3, "holds no JSON object in its first lines"),
        ('["u", "i", 5]\n["u", "i", 6]\n', "holds no JSON object in its first lines"),
    ],
)
def test_json_that_is_no_lines_says_so_with_the_way_on(read: Read, text: str, said: str) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        with pytest.raises(EventFileError, match=said) as error:
            read(text, name)
        assert "jq -c" in str(error.value)


def test_json_lines_are_known_by_their_content(read: Read) -> None:
    for name in ("a.csv", "a.txt", "a", "a.parquet"):
        assert triple(read(LINE, name)[0]) == ("u", "i", 5)


def test_a_broken_first_line_does_not_make_it_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("oops\n" + LINE * 3)
    assert [message.key for message in EventFile(tmp_path / "a").messages()] == [None, b"u", b"u", b"u"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_other_encodings_are_read(read: Read, encoding: str) -> None:
    assert triple(read(LINE.replace("u", "ñ").replace("ñser", "user").encode(encoding))[0])[0] == "ñ"


def test_whole_floats_are_whole_numbers_and_codes_of_types_are_text(read: Read) -> None:
    (found,) = read('{"user": 12.0, "item": 1e3, "timestamp": 5, "event_type": 2}\n')
    assert found == {"user_id": 12, "item_id": 1000, "timestamp": 5, "event_type": "2"}
    assert are_clicks([found])
    for odd in ("12.5", "1e300", "true", "[1]", "{}"):
        (found,) = read(LINE.replace('"u"', odd))
        assert not are_clicks([found])


def test_two_names_that_differ_by_case_are_refused_unless_one_is_chosen(read: Read) -> None:
    text = '{"user": "a", "User": "b", "item": 1, "timestamp": 5}\n'
    with pytest.raises(EventFileError, match=r"has 2 columns of one name, 'user' .* and 'User' .*--columns user=user"):
        read(text)
    assert read(text, columns="user=User")[0]["user_id"] == "b"


def test_a_time_without_a_zone_is_given_one(read: Read) -> None:
    assert (
        read('{"user": 1, "item": 1, "timestamp": "2026-11-28T10:03:00"}\n', timezone="UTC")[0]["timestamp"]
        == 1795860180
    )
