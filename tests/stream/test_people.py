import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.people import digest_of, is_digest, owner_number, people_in

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(ids)
def test_a_digest_names_nobody_and_is_always_the_same(user):
    assert is_digest(digest_of(user))
    assert digest_of(user) == digest_of(user)
    assert 0 < owner_number(digest_of(user)) < 2**63


def test_what_is_no_digest_is_told():
    assert not any(map(is_digest, [None, 7, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"]))


def test_a_digest_of_zeros_is_no_owner_of_what_nobody_owns():
    assert owner_number("0" * 64) == 1


@given(ids, st.booleans())
def test_somebody_is_found_in_their_click_however_it_is_written(user, ascii_only):
    value = json.dumps({"user_id": user, "item_id": ""}, ensure_ascii=ascii_only).encode()
    assert people_in(None, value) == {user}
    assert user in people_in(user.encode(), b"no json")
    assert user in people_in(None, value[:-1])  # cut off: no JSON any more


@pytest.mark.parametrize(
    ("value", "people"),
    [
        (b'{"user_id": 42, "item_id": "7"}', {"42"}),
        (b'{"user_id": true, "item_id": "u1", "who": "u2"}', {"u2"}),
        (b'{"user": {"id": "u1", "ids": [3]}, "event_id": "e"}', {"u1", "3"}),
        (b'["u1", 2.5, null]', {"u1"}),
        (b'"u1"', {"u1"}),
        (b"", set()),
        (None, set()),
    ],
)
def test_what_may_name_somebody(value, people):
    assert people_in(None, value) == people


def test_an_id_within_another_is_not_found():
    for value in (b'{"user_id": "u11"}', b"u11 xu1 u1x", b'{"user": "u11"', b"\xffu11"):
        assert "u1" not in people_in(b"u11", value)
    for value in (b"u1", b"user=u1;", b"'u1'", b'{"u1"', b"\xff u1,"):
        assert "u1" in people_in(None, value)


@given(st.binary(max_size=80), st.binary(max_size=200))
def test_any_bytes_will_do(key, value):
    assert all(isinstance(name, str) for name in people_in(key, value))
