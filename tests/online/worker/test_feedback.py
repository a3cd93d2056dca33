"""What a user hides leaves the user's list in the same turn, outlives crashes, and goes when its user is forgotten."""

import json
import time
from typing import Any

import httpx
import pytest

from online.api.serve import Api
from online.commands.forget import forget
from online.config.settings import Settings
from online.worker.connections import open_lists, open_producer, prepare_topics
from stream.dead_letters import dead_letter
from stream.events import Click, Forget, encode, encode_forget
from stream.feedback import Feedback
from stream.lists import top_key
from stream.source import Partition
from stream.user_ids import digest_of
from tests.online.conftest import NOW, SMALL, worker_thread
from tests.online.worker.group_harness import FEEDBACK, GroupHarness
from tests.online.worker.test_group import some_clicks

DAY_S = 86_400.0
WAIT_S = 120.0


def said(kind: Any, user: str, item: str, until: float | None = None, timestamp: float = NOW) -> Feedback:
    return Feedback(user_id=user, item_id=item, kind=kind, until=until, timestamp=timestamp)


@pytest.fixture
def loop(harness, town_clicks):
    """A loop that has learned from every user of the town."""
    harness.publish(town_clicks)
    loop = harness.begin(harness.loop())
    while loop.turn():
        pass
    return loop


def some_user(harness):
    """A user with a list, and its first item."""
    user = sorted(harness.lists.held)[0]
    return user, harness.lists.held[user].items[0]


def test_a_hidden_item_leaves_its_users_list_in_the_same_turn_and_comes_back(harness, loop):
    user, item = some_user(harness)
    others = {name: top for name, top in harness.lists.held.items() if name != user}
    harness.publish_feedback(said("hide", user, item))
    loop.turn()
    assert harness.lists.held[user].items
    assert item not in harness.lists.held[user].items
    assert {name: top for name, top in harness.lists.held.items() if name != user} == others
    assert loop.progress.next_offsets[Partition(FEEDBACK, 0)] == 1
    harness.publish_feedback(said("unhide", user, item))
    loop.turn()
    assert item in harness.lists.held[user].items


def test_its_list_is_written_before_those_of_others_that_wait(harness, loop):
    user, item = some_user(harness)
    loop.settings = loop.writer.settings = loop.settings.model_copy(update={"refresh_lists_max": 1})
    loop.writer.renew_all()
    harness.publish_feedback(said("hide", user, item))
    loop.turn()
    assert item not in harness.lists.held[user].items
    assert loop.writer.behind > 1


def test_while_redis_is_away_it_is_kept_and_written_when_it_is_back(harness, loop):
    user, item = some_user(harness)
    harness.lists.away = True
    harness.publish_feedback(said("hide", user, item))
    loop.turn()
    assert item in harness.lists.held[user].items
    harness.lists.away = False
    loop.turn()
    loop.turn()
    assert item not in harness.lists.held[user].items


def test_a_dislike_hides_for_some_days(harness, town_clicks):
    harness.publish(town_clicks)
    loop = harness.begin(harness.loop(dislike_days=2.0))
    harness.publish_feedback(said("dislike", "u", "a"), said("dislike", "u", "b", until=NOW + 5))
    loop.turn()
    assert loop.learner.hidden.of("u", NOW) == [("a", NOW + 2 * DAY_S), ("b", NOW + 5)]


def test_a_dislike_counts_against_the_item_for_all_where_it_has_a_weight(harness, town_clicks):
    harness.publish(town_clicks)
    loop = harness.begin(harness.loop(event_weights="click=1,dislike=-2"))
    while loop.turn():
        pass
    user, item = some_user(harness)
    worth, row = loop.learner.worth, loop.learner.vocabulary.row_of(item)
    before = worth.counts[row].copy()
    harness.publish_feedback(said("dislike", user, item))
    loop.turn()
    assert (worth.counts[row] - before).tolist() == [0.0, 1.0, 1.0]  # clicks, dislikes, events of any type


def test_redis_says_what_users_hide_whether_they_have_clicked_or_not(harness, loop):
    user, item = some_user(harness)
    harness.publish_feedback(said("hide", "new", item), said("dislike", user, item, until=NOW + 5))
    loop.turn()
    assert harness.lists.hidden.held == {"new": {item: None}, user: {item: NOW + 5}}
    assert "new" not in harness.lists.held  # the popular list is theirs, less what Redis says they hide
    harness.publish_feedback(said("unhide", "new", item))
    loop.turn()
    assert set(harness.lists.hidden.held) == {user}


@pytest.mark.parametrize("lost", ["redis", "worker"])
def test_what_is_lost_of_it_is_written_again(harness, loop, lost):
    item = harness.lists.popular_list.items[0]
    harness.publish_feedback(*(said("hide", f"new-{n}", item) for n in range(300)))
    while loop.turn() or loop.writer.waiting:
        pass
    assert len(harness.lists.hidden.held) == 300
    harness.lists.lose_everything()
    if lost == "worker":
        loop.finish()
        loop = harness.begin(harness.loop())
    loop.writer.check()
    while loop.turn() or loop.writer.waiting:
        pass
    assert len(harness.lists.hidden.held) == 300
    assert max(harness.lists.hidden.writes) <= 128


def test_while_redis_is_away_it_is_kept_and_then_written(harness, loop):
    harness.lists.away = True
    harness.publish_feedback(said("hide", "new", "i1"))
    loop.turn()
    harness.lists.away = False
    for _ in range(3):
        loop.turn()
    assert harness.lists.hidden.held == {"new": {"i1": None}}


def test_it_is_renewed_before_any_list_outlives_it(harness, town_clicks):
    """A list that is written just before a worker dies expires first, whenever that is."""
    harness.publish(town_clicks)
    now = 0.0
    loop = harness.begin(harness.loop(monotonic=lambda: now))
    harness.publish_feedback(said("hide", "new", "i1"))
    written_at, lifetime_s = 0.0, harness.lists.hidden.ttl_s
    while now < 3 * lifetime_s:
        writes = len(harness.lists.hidden.writes)
        while loop.turn() or loop.writer.waiting:
            pass
        written_at = now if len(harness.lists.hidden.writes) > writes else written_at
        assert written_at + lifetime_s > now + harness.lists.items.ttl_s  # which lists have, too
        now += lifetime_s / 40
    assert len(harness.lists.hidden.writes) < 3 * 4 + 3  # and no more often than that needs


def test_bad_records_become_dead_letters(harness, loop):
    bad = [b"{", json.dumps({"user_id": "u", "item_id": "i", "kind": "like", "timestamp": NOW}).encode(), None]
    harness.publish_feedback(*bad, said("hide", "u", "a"))
    loop.turn()
    loop.finish()
    letters = [dead_letter(record) for record in harness.dead()]
    assert [(one.topic, one.offset, one.reason) for one in letters] == [
        (FEEDBACK, 0, "malformed-json"), (FEEDBACK, 1, "invalid-kind"), (FEEDBACK, 2, "tombstone"),
    ]  # fmt: skip
    assert loop.learner.hidden.of("u") == [("a", None)]
    assert harness.begin(harness.loop()).turn() == 0
    assert len(harness.dead()) == 3


@pytest.mark.parametrize("killed_at", [("lists", 3), ("items", 4), ("checkpoint", 2), ("commit", 2)], ids=str)
def test_a_crash_changes_nothing(new_harness, town_clicks, killed_at):
    users = sorted({click.user_id for click in town_clicks})
    items = sorted({click.item_id for click in town_clicks})
    records = [said("hide", user, item) for user in users[:5] for item in items[:9]]
    records += [said("unhide", users[0], items[0]), said("dislike", users[1], items[1]), b"{"]

    def run(crash: bool) -> tuple[dict[str, Any], Any]:
        harness, calls = new_harness(), 0
        harness.publish(town_clicks)
        harness.publish_feedback(*records)
        if crash:

            def reached(step: str) -> None:
                nonlocal calls
                calls += step == killed_at[0]
                if (step, calls) == killed_at:
                    calls += 1
                    raise harness.aborted

            harness.crashes(harness.loop(reached, feedback_records_max=7))
        loop = harness.run(feedback_records_max=7)
        return harness.everything(loop), loop.learner.hidden.to_state()

    (quiet, quiet_hidden), (found, found_hidden) = run(False), run(True)
    assert {name for name in quiet if found[name] != quiet[name]} == set()
    assert found_hidden[1] == quiet_hidden[1]
    for name, array in quiet_hidden[0].items():
        assert found_hidden[0][name].tolist() == array.tolist()


def test_what_makes_room_in_quantity_is_told_once(harness, town_clicks):
    harness.publish(town_clicks)
    loop = harness.loop(hidden_per_user_max=1, feedback_records_max=1_000)
    harness.publish_feedback(*(said("hide", "u", f"i{n}") for n in range(150)))
    harness.drain(harness.begin(loop))
    told = [notice for notice in loop.notices.latest if notice.kind == "hidden_items_lost"]
    assert [notice.figures["items_lost"] for notice in told] == [149]
    assert "NEXTCLICK_HIDDEN_PER_USER_MAX" in told[0].text


# --- a user is forgotten -------------------------------------------------------------------------------------------


def request(user: str) -> bytes:
    return encode_forget(Forget(user_sha256=digest_of(user), timestamp=NOW))


def test_a_forgotten_user_has_hidden_nothing_and_is_in_no_checkpoint(harness, loop):
    user, item = some_user(harness)
    harness.publish_feedback(said("hide", user, item), f'{{"user_id": "{user}"}}'.encode())
    loop.turn()
    loop.checkpoint()
    digest = digest_of(user)
    asked = {"forget": digest, "after": [[FEEDBACK, 0, 3]], "search": True}
    assert loop.answer_forget(asked)["memory"]["hidden_items"] == 1
    assert any(loop.answer_forget(asked)["checkpoints"].values())
    harness.publish([request(user)])
    loop.turn()
    assert not loop.answer_forget(asked)["passed"]
    harness.publish_feedback(request(user))
    loop.settings = loop.forgetting.settings = loop.settings.model_copy(update={"forget_checkpoints_s": 0.0})
    loop.turn()
    loop.turn()
    loop.turn()
    found = loop.answer_forget(asked)
    assert found["passed"]
    assert not any(found["memory"].values())
    assert not any(found["checkpoints"].values())
    assert user not in harness.lists.held
    assert user not in harness.lists.hidden.held
    assert harness.dead() == []


def test_feedback_that_is_read_after_its_user_was_forgotten_is_forgotten_too(harness, loop):
    user, item = some_user(harness)
    harness.publish([request(user)])
    loop.turn()
    harness.publish_feedback(said("hide", user, item), said("hide", "other", item), request(user))
    loop.turn()
    assert loop.learner.hidden.user_ids() == ["other"]
    assert user not in harness.lists.held
    assert set(harness.lists.hidden.held) == {"other"}


def test_an_item_that_is_named_like_a_user_is_not_taken_for_the_user(harness, loop):
    user, _ = some_user(harness)
    harness.publish_feedback(said("hide", "other", user))
    harness.publish([request(user)])
    loop.settings = loop.forgetting.settings = loop.settings.model_copy(update={"forget_checkpoints_s": 0.0})
    for _ in range(4):
        loop.turn()
    found = loop.answer_forget({"forget": digest_of(user), "after": [], "search": True})
    assert not any(found["checkpoints"].values())
    assert loop.learner.hidden.of("other") == [(user, None)]


# --- several workers -----------------------------------------------------------------------------------------------


def test_every_worker_applies_it_and_the_users_owner_writes_the_list(tmp_path):
    group = GroupHarness(tmp_path, abuse_filter=False)
    group.begin("a")
    group.begin("b")
    group.publish(some_clicks(300))
    group.drain()
    users = sorted(group.lists.held)[:6]
    hidden = {user: group.lists.held[user].items[0] for user in users}
    for user, item in hidden.items():
        group.broker.append(FEEDBACK, said("hide", user, item).model_dump_json().encode(), key=user.encode())
    group.drain()
    for loop in group.loops.values():
        assert {user: loop.learner.hidden.of(user)[0][0] for user in users} == hidden
    assert all(item not in group.lists.held[user].items for user, item in hidden.items())
    assert {user: list(items) for user, items in group.lists.hidden.held.items()} == {
        user: [item] for user, item in hidden.items()
    }


# --- the worker, the API and the command, with the embedded parts ---------------------------------------------------


def until(true):
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_from_the_api_to_the_list_and_forgotten(tmp_path, free_port, town_clicks, command, monkeypatch):
    quick = {"checkpoint_interval_s": 0.0, "status_interval_s": 0.0, "poll_timeout_s": 0.01}
    quick |= {"feedback_interval_s": 0.02, "forget_checkpoints_s": 0.0, "ask_timeout_ms": 20_000}
    settings = Settings(**{"data_dir": tmp_path / "data", "embedded_redis_port": free_port, **SMALL, **quick})
    prepare_topics(settings)
    producer = open_producer(settings)
    for click in town_clicks:
        producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode(click))
    producer.flush()
    with worker_thread(settings):
        lists = open_lists(settings)
        until(lambda: (lists.status() or {}).get("learned") == len(town_clicks))
        user = sorted(lists.users())[0]
        item, second = lists.read(user).items[:2]
        api = Api(settings.model_copy(update={"api_port": 0, "api_read_only": False}), lists, producer).start()
        about = {"user_id": user, "item_id": item}
        try:
            answer = httpx.post(f"{api.url}/hide", json={**about, "for_s": 3_600})
            assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
            until(lambda: item not in lists.read(user).items)
            ranked = httpx.post(
                f"{api.url}/rank", json={"user_id": user, "candidates": [item, second]}, timeout=30
            ).json()
            assert (ranked["items"], ranked["dropped"]) == ([second], {"hidden": 1})
            httpx.post(f"{api.url}/unhide", json=about)
            until(lambda: item in lists.read(user).items)
            httpx.post(f"{api.url}/dislike", json=about)
            until(lambda: item not in lists.read(user).items)
            best = lists.popular().items[0]
            httpx.post(f"{api.url}/hide", json={"user_id": "new", "item_id": best})
            until(lambda: best not in httpx.get(f"{api.url}/recommend/new").json()["items"])
            httpx.post(f"{api.url}/hide", json={"user_id": user, "item_id": best})
            until(lambda: lists.standing_for(user).hidden == {item, best})

            def asked_after_expiry() -> dict:
                lists.client.delete(top_key(user))  # the worker may still write the list for the last hide
                return httpx.get(f"{api.url}/recommend/{user}").json()

            until(lambda: asked_after_expiry()["source"] == "popular" and best not in asked_after_expiry()["items"])
            httpx.post(f"{api.url}/unhide", json={"user_id": user, "item_id": best})
            until(lambda: lists.read(user) is not None and lists.standing_for(user).hidden == {item} - {best})
        finally:
            api.close()
        monkeypatch.setattr("online.cli._folder_settings", lambda *_, **__: settings)
        code, shown, _ = command("hide", user, second, "--for-days", "30")
        assert (code, "hidden for 30 days" in shown) == (0, True)
        until(lambda: second not in lists.read(user).items)
        assert command("hide", user, second, "--undo")[0] == 0
        until(lambda: second in lists.read(user).items)
        assert command("hide", user, "")[0] == 2
        assert command("hide", user, second, "--undo", "--for-days", "1")[0] == 2
        proof = forget(settings, user, timeout_s=WAIT_S)
        assert proof.complete, proof.as_dict()
        assert proof.found["memory: hidden_items"] == 0
        assert proof.found[f"topic {settings.feedback_topic}"] == 0
    producer.close()


def test_a_click_is_no_feedback(harness, loop):
    harness.publish_feedback(encode(Click(user_id="u", item_id="i", timestamp=NOW)))
    loop.turn()
    assert loop.progress.dead_letters["missing-kind"] == 1
