import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.click_fields import ClickFields
from stream.events import (
    FORGET,
    REASONS,
    BadEvent,
    Click,
    Forget,
    Limits,
    encode,
    encode_forget,
    parse,
    parse_click,
)
from stream.user_ids import digest_of

NOW = 1_732_233_600.0
GOOD = {"user_id": "u1", "item_id": "i9", "timestamp": NOW}

text_of_an_id = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
clicks = st.builds(
    Click,
    user_id=text_of_an_id,
    item_id=text_of_an_id,
    timestamp=st.floats(0, NOW),
    event_type=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16),
    event_id=st.none() | text_of_an_id,
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
json_clicks = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("user_id", "item_id", "timestamp", "event_type", "event_id", "value", "x"), json_values),
)


def reason(value: bytes | None, **more: object) -> str:
    event = parse(value, now=NOW, **more)  # type: ignore[arg-type]
    assert isinstance(event, BadEvent), event
    assert event.reason in REASONS
    assert event.detail
    assert len(event.detail) <= 300
    assert event.detail.endswith(event.hint)
    event.detail.encode()
    return event.reason


def message(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


@given(clicks)
def test_what_encode_writes_parse_reads(click):
    assert parse(encode(click), now=NOW) == click


@given(st.binary(max_size=400))
def test_parse_never_raises_on_any_bytes(value):
    event = parse(value, now=NOW)
    assert isinstance(event, Click) or event.reason in REASONS


@given(json_clicks)
def test_parse_never_raises_on_any_json_object(fields):
    value = json.dumps(fields).encode()
    event = parse(value, now=NOW)
    assert isinstance(event, Click) or event.reason in REASONS
    assert parse(value, now=NOW) == event


def test_all_fields_are_read_and_unknown_ones_ignored():
    value = message(event_type="purchase", event_id="e1", value=4, colour="blue", nested={"a": [1]})
    expected = Click(user_id="u1", item_id="i9", timestamp=NOW, event_type="purchase", event_id="e1", value=4.0)
    assert parse(value, now=NOW) == expected


def test_null_counts_as_absent_where_a_field_is_optional():
    assert parse(message(event_type=None, event_id=None, value=None), now=NOW) == Click(**GOOD)


def test_integer_ids_become_their_decimal_text():
    event = parse(message(user_id=7, item_id=-12, event_id=10**200), now=NOW)
    assert (event.user_id, event.item_id, event.event_id) == ("7", "-12", str(10**200))


@pytest.mark.parametrize("name", ["user_id", "item_id", "event_id"])
@pytest.mark.parametrize("wrong", ["", "x" * 257, "é" * 129, True, 1.5, [], {}, 10**256, 10**4000])
def test_an_id_is_1_to_256_bytes_of_text_or_an_integer(name, wrong):
    assert reason(message(**{name: wrong})) == f"invalid-{name}"


def test_an_id_of_exactly_256_bytes_is_accepted():
    assert parse(message(user_id="é" * 128), now=NOW).user_id == "é" * 128
    assert parse(message(user_id=10**255), now=NOW).user_id == str(10**255)


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_required_fields_missing_or_null(name):
    fields = {key: value for key, value in GOOD.items() if key != name}
    assert reason(json.dumps(fields).encode()) == f"missing-{name}"
    assert reason(message(**{name: None})) == f"missing-{name}"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -0.001, -(10**400), True, [], {}])
def test_a_time_that_is_not_a_finite_number_of_seconds_since_1970(wrong):
    assert reason(message(timestamp=wrong)) == "invalid-timestamp"


@pytest.mark.parametrize("wrong", [NOW + 86_401, (NOW + 86_401) * 1_000, 10**400, 1e300])
def test_a_time_too_far_in_the_future(wrong):
    assert reason(message(timestamp=wrong)) == "future-timestamp"


@pytest.mark.parametrize("milliseconds", [1_732_233_600_250, "1732233600250", 1_732_233_600_250.0])
def test_milliseconds_are_read(milliseconds):
    assert parse(message(timestamp=milliseconds), now=NOW + 1).timestamp == NOW + 0.25


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-11-22T00:00:00Z", NOW),
        ("2024-11-22T01:00:00.250+01:00", NOW + 0.25),
        ("1970-01-01T00:00:00+00:00", 0.0),
        ("2024-11-22T14:00:00+14:00", NOW),
        ("2024-11-21T12:00:00-12:00", NOW),
        ("20241122T000000Z", NOW),
        ("2024-11-22T00:00:00.5Z", NOW + 0.5),
        ("2024-11-22T00:00:00.123456789Z", NOW + 0.123456),  # microseconds are what counts
        ("2024-03-31T01:59:59+01:00", 1_711_846_799.0),  # an hour is left out in Berlin, and none since 1970
        ("2024-03-31T03:00:00+02:00", 1_711_846_800.0),
        ("2024-02-29T00:00:00Z", 1_709_164_800.0),
        ("2016-12-31T23:59:60Z", 1_483_228_800.0),  # a leap second is the first one of the next day
        ("2016-12-31T23:59:60.750Z", 1_483_228_800.75),
        ("2017-01-01T08:59:60+09:00", 1_483_228_800.0),
        ("2017-01-01T00:00:00Z", 1_483_228_800.0),
    ],
)
def test_iso_8601_with_an_offset(text, seconds):
    assert parse(message(timestamp=text), now=NOW).timestamp == seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-11-22T00:00:00", "invalid-timestamp"),
        ("2024-11-22", "invalid-timestamp"),
        ("20241122", "invalid-timestamp"),
        ("yesterday", "invalid-timestamp"),
        ("", "invalid-timestamp"),
        ("2" * 60_000, "invalid-timestamp"),
        ("2024-11-22T00:00:00." + "0" * 60 + "Z", "invalid-timestamp"),
        ("2024-11-22T00:00:00+25:00", "invalid-timestamp"),
        ("2024-11-22T00:00:00 Europe/Berlin", "invalid-timestamp"),
        ("2023-02-29T00:00:00Z", "invalid-timestamp"),
        ("2024-11-22T24:00:01Z", "invalid-timestamp"),
        ("2024-11-21T12:30:60Z", "invalid-timestamp"),  # no leap second there
        ("2024-11-21T23:59:61Z", "invalid-timestamp"),
        ("1969-12-31T23:59:59Z", "invalid-timestamp"),
        ("0001-01-01T00:00:00+23:59", "invalid-timestamp"),
        ("9999-12-31T23:59:59.999999-23:59", "future-timestamp"),
    ],
)
def test_iso_8601_without_an_offset_or_out_of_range(text, expected):
    assert reason(message(timestamp=text)) == expected


@pytest.mark.parametrize("wrong", ["", "x" * 65, "é" * 33, 1, True, []])
def test_event_type_is_1_to_64_bytes_of_text(wrong):
    assert reason(message(event_type=wrong)) == "invalid-event_type"


@pytest.mark.parametrize(
    "wrong", [math.nan, math.inf, 10**400, "four", "", "nan", "1e999", "0x4", "4_0", "\u0664", True, []]
)
def test_value_is_a_finite_number_or_null(wrong):
    assert reason(message(value=wrong)) == "invalid-value"


@pytest.mark.parametrize(("text", "number"), [("4", 4.0), ("4.0", 4.0), (" -0.5 ", -0.5), (".5", 0.5), ("1e-3", 0.001)])
def test_value_may_be_numeric_text(text, number):
    assert parse(message(value=text), now=NOW).value == number


@pytest.mark.parametrize("name", ["user_id", "item_id", "event_id"])
def test_a_whole_float_is_the_integer_it_is(name):
    assert getattr(parse(message(**{name: 17.0}), now=NOW), name) == "17"
    assert getattr(parse(message(**{name: -17.0}), now=NOW), name) == "-17"
    assert getattr(parse(message(**{name: 2.0**53 - 1}), now=NOW), name) == str(2**53 - 1)
    for wrong in (17.5, 2.0**53, 1e300, math.nan, math.inf):
        assert reason(message(**{name: wrong})) == f"invalid-{name}"


@pytest.mark.parametrize("user", [" u1", "u1 ", "\x00", "a\nb", "e\u0301", "\u00e9", "None"])
def test_an_id_is_taken_as_it_is(user):
    assert parse(message(user_id=user), now=NOW).user_id == user


def test_a_byte_order_mark_before_json_means_nothing():
    assert parse(b"\xef\xbb\xbf" + message(), now=NOW) == Click(**GOOD)
    assert reason(b"\xef\xbb\xbf" * 20_000) == "malformed-json"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (b"", "empty"),
        (b"{'user_id': 'u1'}", "single quotes"),
        (message() + message(), "more follows"),
        (message() + b"\n" + message() + b"\n", "more follows"),
        (b"[" + message() + b"]", "batch"),
        (json.dumps(message().decode()).encode(), "serialised twice"),
        (b"\0\0\0\0\x07" + message(), "as JSON with the prefix of a schema registry (schema 7)"),
        (b"\0\0\0\0\x07\x04u1\xff", "as Avro or Protobuf with the prefix of a schema registry (schema 7)"),
        (message().decode().encode("utf-16"), "UTF-16"),
        (message().decode().encode("utf-16-le"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "packed by gzip"),
        (b"\x0a\x02u1\xff", "Avro or Protobuf"),
        (b"u1,i9,1732233600", "CSV"),
        (b'{"userId": "u1", "itemId": 2, "ts": 3}', "user_id=userId,item_id=itemId,timestamp=ts"),
        (b'{"user": {"id": 1}, "item_id": 2, "timestamp": 3}', "NEXTCLICK_CLICK_FIELDS=user_id=user.id"),
    ],
)
def test_the_suggested_field_is_named_without_quoting_the_message(value, hint):
    event = parse(value, now=NOW)
    assert reason(value)
    assert hint in event.hint
    assert not {"u1", "i9"} & set(event.hint.split())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "tombstone"),
        (b"", "malformed-json"),
        (b"{", "malformed-json"),
        (b"{} {}", "malformed-json"),
        (b"[" * 60_000, "malformed-json"),
        (b'{"a":' * 10_000, "malformed-json"),
        (b'{"user_id": ' + b"1" * 10_000 + b"}", "malformed-json"),
        (b'{"user_id": "\\ud800"}', "malformed-json"),
        (b'{"user_id": "\xff"}', "invalid-utf8"),
        (b'{"user_id": "\xed\xa0\x80"}', "invalid-utf8"),
        (b"[]", "not-an-object"),
        (b'[{"user_id": "u"}]', "not-an-object"),
        (b"null", "not-an-object"),
        (b"1e999", "not-an-object"),
        (b"NaN", "not-an-object"),
        (b'{"user_id": "u"' + b" " * 1_000_000 + b"}", "too-large"),
    ],
)
def test_what_is_no_json_object(value, expected):
    assert reason(value) == expected


@given(st.floats(0, 1e11) | st.sampled_from([20261128.0, 20000229.0, 1.5e11, 2.5e11]))
def test_what_encode_writes_is_the_same_time_whatever_it_looks_like(seconds):
    click = Click(**{**GOOD, "timestamp": seconds})
    assert parse(encode(click), now=1e12) == click


MAPPED = ClickFields({"user_id": "user.id", "item_id": "payload.after.item", "timestamp": "ts", "event_type": "kind"})


def test_fields_are_read_where_others_put_them():
    theirs = {"user": {"id": 7}, "payload": {"before": None, "after": {"item": "i9"}}, "ts": int(NOW * 1_000)}
    value = json.dumps(theirs | {"kind": "buy", "user_id": "not this one"}).encode()
    assert parse(value, now=NOW, names=MAPPED) == Click(**{**GOOD, "user_id": "7", "event_type": "buy"})


def test_our_own_messages_are_read_all_the_same():
    assert parse(message(value=3), now=NOW, names=MAPPED) == Click(**GOOD, value=3.0)
    forget = Forget(user_sha256=digest_of("u1"), timestamp=NOW)
    assert parse(encode_forget(forget), now=NOW, names=MAPPED) == forget


def test_what_is_missing_is_named_with_its_path():
    theirs = json.dumps({"user": {"id": None}, "ts": NOW, "visitor": {"id": 3}}).encode()
    event = parse(theirs, now=NOW, names=MAPPED)
    assert event.reason == "missing-user_id"
    assert "NEXTCLICK_CLICK_FIELDS says that it is user.id; is it visitor.id?" in event.hint


def test_no_click_has_the_event_type_of_a_request_to_forget():
    theirs = json.dumps({"user": {"id": 7}, "payload": {"after": {"item": 1}}, "ts": NOW, "kind": FORGET}).encode()
    assert parse(theirs, now=NOW, names=MAPPED).reason == "invalid-forget"


@given(json_clicks)
def test_parse_by_other_names_never_raises(fields):
    event = parse(json.dumps(fields).encode(), now=NOW, names=ClickFields({"user_id": "x.a", "value": "timestamp"}))
    assert isinstance(event, Click) or event.reason in REASONS


def test_limits_are_settings():
    limits = Limits(message_bytes_max=1_000, future_s_max=10.0, id_bytes_max=4)
    assert reason(message(user_id="abcde"), limits=limits) == "invalid-user_id"
    assert reason(message(timestamp=NOW + 11), limits=limits) == "future-timestamp"
    assert reason(message(x="x" * 1_000), limits=limits) == "too-large"


def test_without_now_the_clock_of_this_computer_counts():
    assert isinstance(parse(message()), Click)


def test_a_request_to_forget_a_user_is_an_event_among_the_clicks():
    forget = Forget(user_sha256=digest_of("u1"), timestamp=NOW)
    value = encode_forget(forget)
    assert parse(value, now=NOW) == forget
    assert b"u1" not in value.replace(b"nextclick.forget", b"").replace(digest_of("u1").encode(), b"")
    assert parse(value, now=0.0) == forget  # whatever clock it was written by
    assert parse_click(value, now=NOW).reason == "invalid-forget"
    assert parse_click(encode(Click(**GOOD)), now=NOW) == Click(**GOOD)


@pytest.mark.parametrize(
    "changes",
    [
        {"event_type": FORGET},  # a click
        {"event_type": FORGET, "item_id": None, "user_sha256": "0" * 64},
        {"event_type": FORGET, "user_id": None, "user_sha256": "0" * 64},
        {"event_type": FORGET, "user_id": None, "item_id": None},
        {"event_type": FORGET, "user_id": None, "item_id": None, "user_sha256": "u1"},
        {"event_type": FORGET, "user_id": None, "item_id": None, "user_sha256": "A" * 64},
    ],
)
def test_what_is_neither_a_click_nor_that_is_a_bad_event(changes):
    assert reason(message(**changes)) == "invalid-forget"


def test_a_click_is_not_taken_for_it():
    assert isinstance(parse(message(user_sha256="0" * 64, event_type="forget"), now=NOW), Click)
    without = {"event_type": FORGET, "user_sha256": "0" * 64}
    assert reason(json.dumps(without).encode()) == "missing-timestamp"
