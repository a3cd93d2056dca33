import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.user_ids import digest_of, hash_of_digest, is_digest, texts_in, user_ids_in

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(ids)
def test_a_digest_holds_no_id_and_is_always_the_same(user):
    assert is_digest(digest_of(user))
    assert digest_of(user) == digest_of(user)
    assert 0 < hash_of_digest(digest_of(user)) < 2**63


def test_strings_that_are_no_digest_are_recognised():
    assert not any(map(is_digest, [None, 7, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"]))


def test_a_digest_of_zeros_is_not_the_hash_of_no_user():
    assert hash_of_digest("0" * 64) == 1


@given(ids, st.booleans())
def test_a_user_is_found_in_their_click_however_it_is_written(user, ascii_only):
    value = json.dumps({"user_id": user, "item_id": ""}, ensure_ascii=ascii_only).encode()
    assert user_ids_in(None, value) == {user}
    assert user in user_ids_in(user.encode(), b"no json")
    assert user in user_ids_in(None, value[:-1])  # cut off: no JSON any more


@pytest.mark.parametrize(
    ("value", "ids"),
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
def test_values_that_may_be_user_ids(value, ids):
    assert user_ids_in(None, value) == ids


def test_an_id_within_another_is_not_found():
    for value in (b'{"user_id": "u11"}', b"u11 xu1 u1x", b'{"user": "u11"', b"\xffu11"):
        assert "u1" not in user_ids_in(b"u11", value)
    for value in (b"u1", b"user=u1;", b"'u1'", b'{"u1"', b"\xff u1,"):
        assert "u1" in user_ids_in(None, value)


@given(st.binary(max_size=80), st.binary(max_size=200))
def test_any_bytes_will_do(key, value):
    assert all(isinstance(name, str) for name in user_ids_in(key, value))


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (b'{"user_id": 17.0}', {"17"}),  # as it is read
        (b'{"user_id": 1.7e1}', {"17"}),
        (b'{"user_id": 17.5, "who": "u2"}', {"u2"}),
        (b'\xef\xbb\xbf{"user_id": "u1", "x": "y"}', {"u1"}),
        (b'{"user_id": "u1", "user": {"id": 17}, "x": "y"}', {"u1", "17"}),
        (b'{"user": {"id": "u2"}, "event_id": "e"}', {"u2"}),
        (b'{"user.id": "u3", "x": "y"}', {"u3"}),
        (b'{"user": {"name": "u1"}}', {"u1"}),
    ],
)
def test_who_stands_elsewhere_is_found(value, ids):
    assert user_ids_in(None, value, "user.id") == ids


def test_a_user_is_found_wherever_their_click_is_read_from():
    value = b'{"item_id": {"user": "u1"}, "event_id": "u9", "timestamp": 1}'
    assert "u1" not in user_ids_in(None, value)
    assert user_ids_in(None, value, "item_id.user") == {"u1"}


def test_counts_are_not_taken_for_a_user_id():
    status = b'{"learned": 42, "share": 1.0, "notices": [{"text": "u1"}], "user": "42a"}'
    assert texts_in(status) == {"u1", "42a"}
    assert texts_in(b"u1 42") == {"u1", "42"}
