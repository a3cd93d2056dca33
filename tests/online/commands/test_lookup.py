"""`nextclick user` and `nextclick item`: what is known of one of them."""

import json

import pytest
from rich.console import Console

from online.commands.lookup import HISTORY_MAX, UnknownError, look_up_item, look_up_user
from online.commands.lookup_views import item_view, user_view
from online.learner.learner import Learner
from online.worker.checkpoint import CheckpointError
from online.worker.connections import open_lists
from stream.embedded_redis import EmbeddedRedis
from stream.items import Item
from stream.lists import TopList
from tests.online.commands.test_explain import saved
from tests.online.learner.conftest import click, learn, ring


@pytest.fixture
def settings(small, free_port):
    """Whose data folder holds a checkpoint; Redis has one list, and the popular one."""
    settings = small(embedded_redis_port=free_port, history_max=64, users_held=64)
    learner = Learner(settings)
    learn(learner, ring(600))
    learn(learner, [click("lone", 3, 700, event_type="buy"), click("lone", 4, 701)])
    learner.put_items([Item(item_id="i7", title="[red]Kettle\x1b[31m", tags=("tea",), attributes={"price": 3.0})])
    learner.set_available("i7", False)
    saved(learner, settings)
    top = TopList(
        items=["i5", "i7"], scores=[0.5, 0.2], version=2, offset="0:9", clicked_at=1, written_at=2, source="personal"
    )
    with EmbeddedRedis(free_port):
        open_lists(settings).write({"lone": top}, top)
        yield settings


def shown(view):
    console = Console(width=160, record=True)
    console.print(view)
    return console.export_text()


def test_a_user_s_history_and_list_are_shown(settings):
    found = look_up_user(settings, "lone")
    assert json.loads(json.dumps(found)) == found
    assert found["known"]
    assert found["clicks"] == 2
    assert [(one["item_id"], one["event_type"]) for one in found["history"]] == [("i4", "click"), ("i3", "buy")]
    assert found["history"][0]["timestamp"] == 701.0
    assert found["list"]["items"] == ["i5", "i7"]
    assert found["list"]["age_ms"] > 0
    assert found["kept"]["history_clicks"] == 2
    text = shown(user_view(found))
    assert "lone: 2 clicks" in text
    assert "by version 2: i5, i7" in text


def test_of_many_clicks_the_latest_are_shown(settings):
    found = look_up_user(settings, "1")
    assert found["clicks"] > HISTORY_MAX
    assert len(found["history"]) == HISTORY_MAX
    times = [one["timestamp"] for one in found["history"]]
    assert times == sorted(times, reverse=True)
    assert found["list"] is None


def test_an_unknown_user_is_said_to_be_one(settings):
    found = look_up_user(settings, "unknown")
    assert not found["known"]
    assert found["history"] == []
    assert "nothing is known of unknown" in shown(user_view(found))


def test_clicks_that_are_flagged_as_abuse_are_marked(small, free_port):
    settings = small(embedded_redis_port=free_port)
    learner = Learner(settings)
    learn(learner, ring(100))
    learn(learner, [click("bot", 5, 1_000 + at / 10) for at in range(150)])
    saved(learner, settings)
    found = look_up_user(settings, "bot")  # without a Redis
    assert 0 < found["flagged"] < 150
    assert found["history"][0]["flagged"]
    assert "does not answer" in found["list_unknown"]
    assert "flagged as abuse" in shown(user_view(found))


def test_an_item_s_record_counts_and_places_are_shown(settings):
    found = look_up_item(settings, "i7")
    assert json.loads(json.dumps(found)) == found
    assert (found["available"], found["tags"], found["attributes"]) == (False, ["tea"], {"price": 3.0})
    assert found["clicks"] > 1
    assert 1 <= found["popularity_rank"] <= 40
    assert found["followed_by"][0]["item_id"] == "i8"
    assert found["lists"] == {"of": 1, "with_it": 1, "by_place": {"2": 1}, "popular_place": 2}
    text = shown(item_view(found))
    assert "\x1b" not in text
    assert "[red]Kettle\\x1b[31m (i7)" in text
    assert "no: published as such" in text
    assert "in 1 of 1" in text


def test_what_nothing_is_known_of_is_one_line(settings, small, tmp_path):
    with pytest.raises(UnknownError, match="nothing is known of item nowhere"):
        look_up_item(settings, "nowhere")
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        look_up_user(small(data_dir=tmp_path / "empty"), "1")
