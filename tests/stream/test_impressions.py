"""An impression is read, or the field that is wrong is named; it is never an exception."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import BadEvent
from stream.impressions import REASONS, Impression, ShownItem, encode, parse

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
shown = st.builds(
    ShownItem,
    item_id=text,
    position=st.integers(1, 1_000),
    propensity=st.floats(1e-12, 1),
    explored=st.booleans(),
    reward=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
lists = st.lists(shown, min_size=1, max_size=5, unique_by=(lambda one: one.item_id, lambda one: one.position))
impressions = st.builds(
    Impression,
    request_id=text,
    user_id=st.none() | text,
    timestamp=st.floats(1e9, 2e9),
    policy=text,
    version=st.integers(0, 10**6),
    explored=st.booleans(),
    items=lists.map(tuple),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
GOOD = {
    "request_id": "r-1", "user_id": "u1", "timestamp": 1732233600.25, "policy": "nextclick", "version": 3,
    "explored": True, "items": [{"item_id": "i9", "position": 1, "propensity": 0.7, "explored": True}],
}  # fmt: skip


def parsed(**change):
    return parse(json.dumps(GOOD | change).encode())


def with_item(**change):
    return parsed(items=[GOOD["items"][0] | change])


@given(impressions)
def test_what_encode_writes_parse_reads(impression):
    assert parse(encode(impression)) == impression


@given(st.none() | st.binary(max_size=300))
def test_parse_never_raises_on_any_bytes(value):
    found = parse(value)
    assert isinstance(found, Impression) or found.reason in REASONS


@given(
    st.dictionaries(st.sampled_from(list(GOOD)), json_values),
    st.dictionaries(st.sampled_from(["item_id", "position", "propensity", "reward"]), json_values),
)
def test_parse_never_raises_on_any_json(change, item):
    for value in (GOOD | change, GOOD | {"items": [GOOD["items"][0] | item]}):
        found = parse(json.dumps(value).encode())
        assert isinstance(found, Impression) or (found.reason in REASONS and 0 < len(found.detail) <= 250)


def test_all_is_read_and_what_is_unknown_ignored():
    found = parsed(ab_test="blue", user_id=17)
    assert isinstance(found, Impression)
    assert (found.request_id, found.user_id, found.version, found.timestamp) == ("r-1", "17", 3, 1732233600.25)
    assert found.items == (ShownItem(item_id="i9", position=1, propensity=0.7, explored=True),)
    assert found.items[0].reward is None


def test_a_time_is_read_in_each_form_that_a_click_s_is():
    for written in (1732233600, 1732233600000, "2024-11-22T00:00:00Z"):
        found = parsed(timestamp=written)
        assert isinstance(found, Impression)
        assert found.timestamp == 1732233600


def test_a_visitor_without_an_account_has_no_user_id():
    found = parsed(user_id=None)
    assert isinstance(found, Impression)
    assert found.user_id is None


@pytest.mark.parametrize(
    ("found", "reason", "detail"),
    [
        (lambda: parsed(request_id=None), "missing-request_id", "request_id: is missing or null"),
        (lambda: parsed(request_id="x" * 300), "invalid-request_id", "request_id: "),
        (lambda: parsed(request_id="ä" * 200), "invalid-request_id", "request_id: it must have 1 to 256 bytes"),
        (lambda: parsed(user_id=True), "invalid-user_id", "user_id: "),
        (lambda: parsed(timestamp="yesterday"), "invalid-timestamp", "timestamp"),
        (lambda: parsed(version="3"), "invalid-version", "version: "),
        (lambda: parsed(explored=1), "invalid-explored", "explored: "),
        (lambda: parsed(items=[]), "invalid-items", "items: "),
        (lambda: parsed(items="i9"), "invalid-items", "items: "),
        (lambda: parsed(items=GOOD["items"] * 2), "invalid-items", "items: a position stands twice"),
        (lambda: with_item(propensity=0), "invalid-items", "items[0].propensity: "),
        (lambda: with_item(propensity=1.5), "invalid-items", "items[0].propensity: "),
        (lambda: with_item(propensity="0.5"), "invalid-items", "items[0].propensity: "),
        (lambda: with_item(position=0), "invalid-items", "items[0].position: "),
        (lambda: with_item(item_id=None), "invalid-items", "items[0].item_id: "),
        (lambda: with_item(reward="much"), "invalid-items", "items[0].reward: "),
        (lambda: parse(json.dumps(GOOD).encode(), now=0.0), "future-timestamp", "timestamp"),
        (lambda: parse(b"[1]"), "not-an-object", "object"),
    ],
)
def test_what_is_wrong_is_named(found, reason, detail):
    bad = found()
    assert isinstance(bad, BadEvent)
    assert bad.reason == reason
    assert detail in bad.detail
