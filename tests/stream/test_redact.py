"""What is shown of a message shows nothing of what it says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.redact import field_name, is_name, redacted

SECRET = "QWKJZVéß012345678"  # of none of our own words, nor x and 9, which stand for letters and digits
secrets = st.text(SECRET + "-_.@ '\"\\{}[],:\n\0", max_size=40)
numbers = st.integers(-(10**30), 10**30).filter(lambda n: "9" not in str(n)) | st.floats(1, 8.5).map(lambda f: f * 1e5)
values = st.recursive(
    st.none() | st.booleans() | numbers | secrets,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["user", "a.b", "ts_ms"]), inner),
    max_leaves=12,
)


def runs(text):
    """Every three letters or digits in a row."""
    return {text[at : at + 3] for at in range(len(text) - 2) if text[at : at + 3].isalnum()}


def leaked(shown, said):
    return {run for run in runs(shown) & runs(said) if set(run) - set("x9")}


def said_by(value):
    if isinstance(value, dict):
        return " ".join(map(said_by, value.values()))
    if isinstance(value, list):
        return " ".join(map(said_by, value))
    return "" if value is None or isinstance(value, bool) else str(value)


@given(values)
def test_no_value_of_json_can_be_recognised(value):
    shown = redacted(json.dumps(value).encode())
    assert not leaked(shown, said_by(value)), shown
    assert "\n" not in shown
    assert not set("'\"") & set(shown)  # what stands in quotes in a notice is taken for an id
    assert len(shown) <= 400


@given(secrets, st.binary(max_size=20))
def test_no_text_that_is_no_json_can_be_recognised(text, other):
    shown = redacted(text.encode() + b"}" + other)
    assert not leaked(shown, text), shown
    assert shown.isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_will_do(value):
    assert redacted(value).isprintable()
    assert len(redacted(value)) <= 400


@given(st.dictionaries(secrets, st.integers(0, 8), min_size=1))
def test_a_name_that_does_not_look_like_one_is_redacted_too(message):
    for name in message:
        if any(character.isdigit() for character in name):
            assert not leaked(field_name(name), name)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "(no value)"),
        (b"", ""),
        (b'{"userId": "u17", "ok": true, "no": null}', "{userId: text x99, ok: true or false, no: null}"),
        (b'{"ts": 1732233600250, "w": -1.5}', "{ts: number 9999999999999, w: number -9.9}"),
        (b'{"payload": {"user.id": "ann@example.com"}}', "{payload: {user.id: text xxx@xxxxxxx.xxx}}"),
        (b'[{"a": "b"}, 2, 3]', "[{a: text x}, … 3 in all]"),
        (b'{"u17": 1, "alice@example.com": ""}', "{x99: number 9, xxxxx@xxxxxxx.xxx: empty text}"),
        (b"{'user_id': 'u1'}", "{`xxxx_xx`: `x9`}"),
        (b"u1,i9,17\xff", "x9,x9,99?"),
        (b"\xef\xbb\xbf{}", "an object"),
        (b'{"a": [], "b": NaN}', "{a: a list, b: a number that is not finite}"),
        (json.dumps({"text": "x" * 100}).encode(), "{text: text " + "x" * 24 + "…}"),
    ],
)  # fmt: skip
def test_the_structure_is_shown(value, shown):
    assert redacted(value) == shown


def test_what_looks_like_a_field_s_name():
    assert all(map(is_name, ["userId", "user_id", "payload.after.item", "@timestamp", "$ts", "event-time"]))
    assert not any(map(is_name, ["", "u17", "a b", "ann@example.com", "9", "é", "x" * 65]))
