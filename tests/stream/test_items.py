"""An item's record is read, or the reason why not is said; it is never an exception."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import BadEvent, Limits
from stream.items import ATTRIBUTES_MAX, FIELDS, NAME_BYTES_MAX, REASONS, TEXT_BYTES_MAX, Item, encode, parse

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=64)
items = st.builds(
    Item,
    item_id=text.filter(bool),
    title=st.none() | text,
    tags=st.lists(text, max_size=4).map(tuple),
    available=st.booleans(),
    vector=st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8).map(tuple),
    attributes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16).filter(
            lambda name: name not in FIELDS
        ),
        st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | text,
        max_size=4,
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
json_items = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("title", "tags", "available", "vector", "x"), json_values)
)


def reason(key: bytes | None, value: bytes | None, **more: object) -> str:
    item = parse(key, value, **more)  # type: ignore[arg-type]
    assert isinstance(item, BadEvent), item
    assert item.reason in REASONS
    assert 0 < len(item.detail) <= 250
    return item.reason


@given(items)
def test_what_encode_writes_parse_reads(item):
    assert parse(item.item_id.encode(), encode(item)) == item


@given(st.none() | st.binary(max_size=300), st.none() | st.binary(max_size=400))
def test_parse_never_raises_on_any_bytes(key, value):
    item = parse(key, value)
    assert isinstance(item, Item) or item.reason in REASONS


@given(json_items)
def test_parse_never_raises_on_any_json_object(fields):
    item = parse(b"i9", json.dumps(fields).encode())
    assert isinstance(item, Item) or item.reason in REASONS


def test_all_fields_are_read_and_others_are_attributes():
    fields = (
        '{"title": "Café", "tags": ["hot", "café"], "available": false, "vector": [1, -0.5], "price": 3, "new": true}'
    )
    expected = Item(item_id="i9", title="Café", tags=("hot", "café"), available=False, vector=(1.0, -0.5))
    item = parse(b"i9", fields.encode())
    assert item == expected.model_copy(update={"attributes": {"price": 3.0, "new": True}})
    assert [type(value) for value in item.attributes.values()] == [float, bool]


def test_what_is_no_single_value_or_too_long_is_no_attribute():
    fields = {"list": [1], "object": {"a": 1}, "null": None, "huge": 10**400, "": 1, "n" * (NAME_BYTES_MAX + 1): 1}
    fields |= {"text": "x" * (TEXT_BYTES_MAX + 1), "kept": "é" * (TEXT_BYTES_MAX // 2), "n" * NAME_BYTES_MAX: 1.5}
    item = parse(b"i9", json.dumps(fields).encode())
    assert item.attributes == {"kept": "é" * (TEXT_BYTES_MAX // 2), "n" * NAME_BYTES_MAX: 1.5}
    assert parse(b"i9", b'{"a": NaN, "b": Infinity, "c": 1}').attributes == {"c": 1.0}
    many = parse(b"i9", json.dumps({f"a{number}": number for number in range(2 * ATTRIBUTES_MAX)}).encode())
    assert many.attributes == {f"a{number}": float(number) for number in range(ATTRIBUTES_MAX)}


@pytest.mark.parametrize("value", [b"{}", b'{"title": null, "tags": null, "available": null, "vector": null}'])
def test_an_item_is_available_unless_it_says_otherwise(value):
    assert parse("ï9".encode(), value) == Item(item_id="ï9", available=True)


def test_a_tombstone_withdraws_the_item():
    assert parse(b"i9", None) == Item(item_id="i9", available=False)


@pytest.mark.parametrize(
    ("key", "expected"),
    [(None, "missing-key"), (b"", "invalid-key"), (b"\xff", "invalid-key"), (b"x" * 257, "invalid-key")],
)
@pytest.mark.parametrize("value", [b"{}", None])
def test_the_key_is_1_to_256_bytes_of_text(key, value, expected):
    assert reason(key, value) == expected
    assert isinstance(parse(b"x" * 256, value), Item)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("title", 7),
        ("title", ["a"]),
        ("tags", "hot"),
        ("tags", ["hot", None]),
        ("tags", {"hot": True}),
        ("available", "false"),
        ("available", 0),
        ("vector", 1.0),
        ("vector", [1.0, "2"]),
        ("vector", [True]),
        ("vector", [float("nan")]),
        ("vector", [float("inf")]),
        ("vector", [10**400]),
    ],
)
def test_a_field_of_another_kind_is_named(field, wrong):
    assert reason(b"i9", json.dumps({field: wrong}).encode()) == f"invalid-{field}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "malformed-json"),
        (b"{", "malformed-json"),
        (b'{"title": "\xff"}', "invalid-utf8"),
        (b"[]", "not-an-object"),
        (b"null", "not-an-object"),
    ],
)
def test_what_is_no_json_object(value, expected):
    assert reason(b"i9", value) == expected


def test_the_size_of_a_message_bounds_all_its_fields():
    limits = Limits(message_bytes_max=1_000, id_bytes_max=4)
    assert reason(b"i9", encode(Item(item_id="i9", vector=(0.5,) * 1_000)), limits=limits) == "too-large"
    assert reason(b"i9", encode(Item(item_id="i9", title="x" * 1_000)), limits=limits) == "too-large"
    assert reason(b"item9", b"{}", limits=limits) == "invalid-key"
