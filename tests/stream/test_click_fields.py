"""Other names of a click's fields."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.click_fields import FIELDS, ClickFields, as_setting, at, pairs_in, paths_in, suggested

names = st.text("ab.", min_size=1, max_size=5)
objects = st.recursive(st.integers() | st.none(), lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user_id=user.id", {"user_id": "user.id"}),
        ("user=visitorid, item=itemid ,timestamp=ts", {"user_id": "visitorid", "item_id": "itemid", "timestamp": "ts"}),
        ("value=a=b", {"value": "a=b"}),
        ("event_type=@type,event_id=meta.id", {"event_type": "@type", "event_id": "meta.id"}),
    ],
)
def test_pairs_are_read(text, expected):
    assert pairs_in(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no pair"),
        ("user_id", "'user_id' is no pair"),
        ("user_id=", "'user_id=' is no pair"),
        ("=x", "'=x' is no pair"),
        ("user_id=a,", "'' is no pair"),
        ("user_id:a", "'user_id:a' is no pair"),
        ("userid=a", "no field 'userid'; it has user_id, item_id"),
        ("user_id=a,user=b", "user_id is given twice: 'a' and 'b'"),
    ],
)
def test_pairs_that_cannot_be_meant_are_refused_in_one_line(text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        pairs_in(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ts", 1),
        ("user.id", 2),
        ("payload.after.item", 3),
        ("user.name", 4),  # a name with a dot
        ("meta.a.b.c", 5),  # a name with a dot, nested
        ("a.b", 6),  # the longest name first
        ("user", {"id": 2}),
        ("nothing", None),
        ("user.nothing", None),
        ("ts.deeper", None),
        ("list.0", None),
        ("", None),
        (".", None),
        ("user.", None),
    ],
)
def test_what_stands_at_a_path(path, value):
    message = {
        "ts": 1, "user": {"id": 2}, "payload": {"before": None, "after": {"item": 3}}, "user.name": 4,
        "meta": {"a.b": {"c": 5}}, "a.b": 6, "a": {"b": 7}, "list": [8],
    }  # fmt: skip
    assert at(message, path) == value


@given(st.dictionaries(names, objects, max_size=4))
def test_every_path_that_is_listed_leads_somewhere(message):
    assert all(at(message, path) is not None for path in paths_in(message))


@given(st.dictionaries(names, objects, max_size=4), names)
def test_any_path_may_be_looked_up(message, path):
    at(message, path)
    ours = ClickFields({"user_id": path}).ours(message)
    assert ours is message or set(ours) == set(FIELDS)


def test_paths_are_bounded():
    assert len(list(paths_in({f"n{number}": 1 for number in range(1_000)}))) == 40
    deep = {}
    for _ in range(1_000):
        deep = {"a": deep or 1}
    assert list(paths_in(deep)) == ["a.a.a.a.a"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["userId", "itemId", "ts"], "user_id=userId,item_id=itemId,timestamp=ts"),
        (["visitorid", "itemid", "timestamp"], "user_id=visitorid,item_id=itemid,timestamp=timestamp"),
        (["user.id", "product.id", "event_time"], "user_id=user.id,item_id=product.id,timestamp=event_time"),
        (
            ["payload.before.user_id", "payload.after.user_id", "payload.after.item_id", "payload.ts_ms"],
            "user_id=payload.after.user_id,item_id=payload.after.item_id,timestamp=payload.ts_ms",
        ),
        (["session_id", "customer-id", "sku", "created_at"], "user_id=customer-id,item_id=sku,timestamp=created_at"),
        (["u17.user_id", "colour"], ""),
    ],
)
def test_the_likeliest_names_are_offered(paths, expected):
    assert as_setting(suggested(paths)) == f"NEXTCLICK_CLICK_FIELDS={expected}"
