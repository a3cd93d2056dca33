"""A wrong name of a field is told by the first messages, with the names that are there."""

import json

import pytest

from online.worker.first_messages import FEW, FIRST, FirstMessages
from stream.click_fields import ClickFields
from stream.events import Click, parse
from tests.online.conftest import NOW

OURS = ClickFields({})


class Told(list):
    def __call__(self, kind, text, figures):
        assert kind == "first_messages"
        self.append((text, dict(figures)))


def judged(messages, names=OURS, *, more=True, learned=0):
    """What is told of these messages, and then no other comes unless `more`."""
    told = Told()
    first = FirstMessages(names, told)
    for message in messages:
        value = message if isinstance(message, bytes | None) else json.dumps(message).encode()
        if not first.done:
            first.update(value, parse(value, now=NOW, names=names))
    if not more:
        first.nothing_more(learned=learned)
    return [text for text, _ in told]


THEIRS = {"userId": "alice17", "itemId": 4, "ts": NOW, "page": {"url": "https://example.com", "u17": 1}}


def test_unknown_field_names_are_logged_with_the_setting_that_maps_them():
    (text,) = judged([THEIRS] * FIRST)
    assert text == (
        "none of the first 100 messages has user_id, item_id, timestamp; there is: userId, itemId, ts, page.url. If "
        "these are clicks, set NEXTCLICK_CLICK_FIELDS=user_id=userId,item_id=itemId,timestamp=ts"
    )


@pytest.mark.parametrize("count", [1, 3, FIRST - 1])
def test_what_there_is_is_judged_when_nothing_more_comes(count):
    assert judged([THEIRS] * count) == []
    (text,) = judged([THEIRS] * count, more=False)
    of = "(there is one message so far)" if count == 1 else f"of the first {count} messages"
    assert text.startswith(f"none {of} has user_id, item_id, timestamp; there is: userId")


def test_after_a_restart_a_few_messages_are_not_enough():
    assert judged([THEIRS] * (FEW - 1), more=False, learned=5) == []
    assert judged([THEIRS] * FEW, more=False, learned=5) != []


@pytest.mark.parametrize(
    ("message", "setting"),
    [
        ({"visitorid": 1, "itemid": 2, "timestamp": NOW}, "user_id=visitorid,item_id=itemid"),
        ({"user": {"id": 1}, "item_id": 2, "timestamp": NOW}, "user_id=user.id"),
        (
            {"schema": {"user_id": "int"}, "payload": {"before": None, "after": {"user_id": 1, "item_id": 2, "ts": 3}}},
            "user_id=payload.after.user_id,item_id=payload.after.item_id,timestamp=payload.after.ts",
        ),
        ({"user.id": 1, "item_id": 2, "timestamp": NOW}, "user_id=user.id"),
    ],
)
def test_what_would_map_them_works(message, setting):
    (text,) = judged([message] * 3, more=False)
    assert text.endswith(f"set NEXTCLICK_CLICK_FIELDS={setting}")
    names = ClickFields(dict(pair.split("=") for pair in setting.split(",")))
    assert isinstance(parse(json.dumps(message).encode(), now=NOW, names=names), Click)


def test_field_names_that_resemble_none_are_logged_too():
    (text,) = judged([{"who": 1, "what": 2, "when": 3}], more=False)
    assert "there is: who, what, when." in text
    assert "as in user_id=user.id" in text


def test_a_path_that_no_message_has_is_logged_with_those_there_are():
    names = ClickFields({"user_id": "user.uid", "item_id": "itemId", "timestamp": "ts"})
    (text,) = judged([{"user": {"id": 7}, "itemId": 1, "ts": NOW}] * FIRST, names)
    assert text == (
        "none of the first 100 messages has user.uid (user_id, by NEXTCLICK_CLICK_FIELDS); there is: itemId, ts, "
        "user.id. If these are clicks, set NEXTCLICK_CLICK_FIELDS=item_id=itemId,timestamp=ts,user_id=user.id"
    )


def test_a_path_of_a_field_that_need_not_be_there_waits_for_all_of_them():
    names = ClickFields({"value": "stars"})
    ours = {"user_id": 1, "item_id": 2, "timestamp": NOW}
    assert judged([ours] * (FIRST - 1), names, more=False) == []
    (text,) = judged([ours] * FIRST, names)
    assert "has stars (value, by NEXTCLICK_CLICK_FIELDS)" in text


def test_good_ones_say_nothing():
    good = {"user_id": "u1", "item_id": "i1", "timestamp": NOW}
    assert judged([good] * FIRST) == judged([good], more=False) == []
    assert judged([*[THEIRS] * (FIRST - 1), good]) == []
    assert judged([*[b"{"] * (FIRST - 1), good]) == []
    assert judged([], more=False) == []
    assert judged([good | {"timestamp": 0}] * FIRST, ClickFields({"timestamp": "timestamp"}))[0].startswith("the first")


def test_messages_that_are_no_json_are_logged():
    (text,) = judged([b"u1,i1,3", None, b"[]"], more=False)
    assert "none of the first 3 messages is a JSON object with fields" in text
    (text,) = judged([{"u17": 1}], more=False)
    assert "there is: nothing whose name could be shown" in text


def test_times_of_1970_are_logged():
    clicks = [{"user_id": 1, "item_id": 2, "timestamp": 2_026 + number} for number in range(FIRST)]
    (text,) = judged(clicks)
    assert "the first 100 clicks were made within 35 minutes of the beginning of 1970" in text
    assert judged([*clicks[:-1], {"user_id": 1, "item_id": 2, "timestamp": 10**9}]) == []  # 2001 may be made up


def test_nothing_of_a_message_s_content_is_logged():
    (text,) = judged([{"userId": "alice", "kettle17": 1, "ann@example.com": 2, "q": 4711}], more=False)
    assert not any(word in text for word in ("alice", "kettle", "example", "4711"))


def test_the_worker_says_it_once(harness):
    for _ in range(150):
        harness.broker.append("clicks", json.dumps(THEIRS).encode())
    loop = harness.run()
    assert loop.notices.counts["first_messages"] == 1


def test_with_the_setting_they_are_learned(harness):
    for number in range(150):
        message = THEIRS | {"itemId": number % 7, "ts": int(1_000 * NOW) + number}
        harness.broker.append("clicks", json.dumps(message).encode())
    loop = harness.run(click_fields="user=userId,item=itemId,timestamp=ts")
    assert loop.progress.learned == 150
    assert "first_messages" not in loop.notices.counts
    assert loop.progress.latest_clicked_at_ms == 1_000 * NOW + 149
