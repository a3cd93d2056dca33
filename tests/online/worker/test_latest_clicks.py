"""The latest clicks: bounded, with the places that lists had foreseen, and gone with their users."""

from types import SimpleNamespace

import numpy as np
import pytest

from online.learner.history import SERVED
from online.worker.latest_clicks import LatestClicks
from online.worker.micro_batches import ReceivedClick
from stream.events import Click, Forget, encode_forget
from stream.source import Record
from stream.user_ids import digest_of
from tests.online.conftest import NOW


def received(user, *, owned=True):
    click = Click(user_id=user, item_id=f"of {user}", timestamp=1.5, event_type="play")
    return ReceivedClick(click, Record("clicks", 0, 0, 0, None, b""), owned=owned)


def result(*ranks, trained=True):
    return SimpleNamespace(served_ranks=np.array(ranks, float), trained=trained)


def test_the_latest_stay_and_each_says_where_its_item_stood():
    latest = LatestClicks(3)
    latest.add([received(user) for user in "abcd"], result(np.inf, 0, SERVED - 1, np.inf))
    assert [(row["user_id"], row["rank"]) for row in latest.newest_first()] == [("d", 0), ("c", SERVED), ("b", 1)]
    latest.add([received("e")], result(np.inf, trained=False))
    first = {"at": 1_500, "user_id": "e", "item_id": "of e", "event_type": "play", "rank": None}
    assert latest.newest_first()[0] == first
    assert len(latest.newest_first()) == 3


def test_a_worker_of_a_group_tells_its_own_alone():
    latest = LatestClicks(3)
    latest.add([received("a"), received("b", owned=False)], result(1, 2))
    assert [row["user_id"] for row in latest.newest_first()] == ["a"]


@pytest.mark.parametrize("clicks", [1, 5])
def test_none_are_held_where_none_may_be_shown(clicks):
    latest = LatestClicks(0)
    latest.add([received("a")] * clicks, result(*range(clicks)))
    assert latest.newest_first() == []


def test_the_loop_tells_ranks_as_the_served_lists_had_them(harness, town_clicks):
    harness.publish(town_clicks[:300])
    loop = harness.run(clicks_shown=200)
    served = {row["user_id"]: row for row in loop.writer.latest.newest_first()[::-1]}
    assert {row["user_id"] for row in served.values()} <= {click.user_id for click in town_clicks}
    before = {user: list(top.items) for user, top in harness.lists.held.items()}
    user = next(iter(before))
    harness.publish([town_clicks[0].model_copy(update={"user_id": user, "item_id": before[user][3]})])
    harness.publish([town_clicks[0].model_copy(update={"user_id": user, "item_id": "never seen"})])
    loop = harness.begin(harness.loop(clicks_shown=2))
    while loop.turn():
        pass
    second, first = loop.writer.latest.newest_first()
    assert (first["user_id"], first["item_id"], first["rank"]) == (user, before[user][3], 4)
    assert (second["item_id"], second["rank"]) == ("never seen", 0)


@pytest.mark.parametrize("away", [False, True])
def test_a_forgotten_user_s_clicks_go_from_memory_and_from_redis(harness, town_clicks, away):
    harness.publish(town_clicks[:50])
    loop = harness.begin(harness.loop())
    while loop.turn():
        pass
    loop.writer.write_latest()
    user = town_clicks[49].user_id
    assert user in {row["user_id"] for row in harness.lists.clicks["clicks"]}
    digest = digest_of(user)
    assert loop.answer_forget({"forget": digest, "after": [], "search": True})["memory"]["latest clicks"]
    harness.lists.away = away
    harness.publish([encode_forget(Forget(user_sha256=digest, timestamp=NOW))])
    loop.turn()
    harness.lists.away = False
    loop.turn()
    loop.turn()
    assert not loop.answer_forget({"forget": digest, "after": [], "search": True})["memory"]["latest clicks"]
    rows = harness.lists.clicks["clicks"]
    assert rows
    assert user not in {row["user_id"] for row in rows}
