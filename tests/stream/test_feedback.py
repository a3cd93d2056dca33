"""A record of feedback is read as it was written, and whatever is none says which field is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import BadEvent, Forget, encode_forget
from stream.feedback import REASONS, Feedback, encode, parse
from stream.user_ids import digest_of

NOW = 1_700_000_000.0
GOOD = {"user_id": "u1", "item_id": "i9", "kind": "hide", "timestamp": NOW}


def read(**changed):
    return parse(json.dumps({**GOOD, **changed}).encode(), now=NOW)


def test_a_record_is_read():
    assert read() == Feedback(user_id="u1", item_id="i9", kind="hide", timestamp=NOW)
    assert read(user_id=7, until=NOW + 5, kind="dislike", more=[1]) == Feedback(
        user_id="7", item_id="i9", kind="dislike", until=NOW + 5, timestamp=NOW
    )
    assert read(until=None, timestamp=1_700_000_000_000).timestamp == NOW


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"user_id": None}, "missing-user_id"),
        ({"user_id": ""}, "invalid-user_id"),
        ({"user_id": True}, "invalid-user_id"),
        ({"item_id": None}, "missing-item_id"),
        ({"item_id": "x" * 257}, "invalid-item_id"),
        ({"item_id": ["i"]}, "invalid-item_id"),
        ({"kind": None}, "missing-kind"),
        ({"kind": "like"}, "invalid-kind"),
        ({"timestamp": None}, "missing-timestamp"),
        ({"timestamp": "soon"}, "invalid-timestamp"),
        ({"timestamp": NOW + 90_000}, "future-timestamp"),
        ({"until": "soon"}, "invalid-until"),
        ({"until": -1}, "invalid-until"),
        ({"until": 10**30}, "invalid-until"),
    ],
)
def test_what_is_wrong_is_named(changed, reason):
    found = read(**changed)
    assert isinstance(found, BadEvent)
    assert found.reason == reason
    assert reason.partition("-")[2] in found.detail


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "tombstone"), (b"{", "malformed-json"), (b"[]", "not-an-object"), (b" " * 70_000, "too-large")],
)
def test_what_is_no_object_is_named(value, reason):
    assert parse(value, now=NOW).reason == reason


def test_a_request_to_forget_is_read():
    request = Forget(user_sha256=digest_of("u1"), timestamp=NOW)
    assert parse(encode_forget(request), now=NOW) == request
    assert parse(b'{"event_type": "nextclick.forget", "user_sha256": "x"}').reason == "invalid-forget"


times = st.floats(min_value=0, max_value=9e10) | st.integers(10**7, 10**8).map(float)


@given(
    st.builds(
        Feedback,
        user_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60),
        item_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60),
        kind=st.sampled_from(["hide", "unhide", "dislike"]),
        until=st.none() | times,
        timestamp=times,
    )
)
def test_what_is_written_is_read_again(feedback):
    found = parse(encode(feedback), now=1e11)
    assert isinstance(found, Feedback), found
    assert (found.user_id, found.item_id, found.kind) == (feedback.user_id, feedback.item_id, feedback.kind)
    assert found.timestamp == pytest.approx(feedback.timestamp, abs=1e-3)
    assert (found.until is None) == (feedback.until is None)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda one: st.lists(one, max_size=3)
)


@given(st.binary() | st.fixed_dictionaries({}, optional=dict.fromkeys([*GOOD, "until"], json_values)))
def test_it_never_raises(value):
    found = parse(value if isinstance(value, bytes) else json.dumps(value).encode(), now=NOW)
    assert not isinstance(found, BadEvent) or found.reason in REASONS
