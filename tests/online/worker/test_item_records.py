"""What the items topic says of items stands in Redis: after each update, after a crash, and after Redis was wiped."""

import pytest

from online.learner.item_attributes import TITLE_CHARACTERS_MAX
from online.learner.learner import Learner
from online.worker import item_records
from online.worker.item_records import RENEWALS, ItemRecordWriter
from stream.item_records import ItemRecord
from stream.items import Item, encode
from tests.online.conftest import MemoryLists
from tests.online.worker.group_harness import ITEMS, GroupHarness
from tests.online.worker.test_group import some_clicks

KETTLE = Item(item_id="x", title="A kettle", tags=("a", "b"), vector=(0.5,), attributes={"price": 3.0, "new": True})
RECORD = ItemRecord(title="A kettle", tags=("a", "b"), attributes={"price": 3.0, "new": True})


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def lists():
    return MemoryLists()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def learner(small):
    learner = Learner(small())
    learner.put_items([KETTLE.model_copy(update={"item_id": f"i{n}"}) for n in range(10)])
    learner.set_available("gone", available=False)
    return learner


@pytest.fixture
def writer(learner, lists, clock):
    return ItemRecordWriter(learner, lists.items, monotonic=clock)


def turns(loop):
    """As many as there is work for."""
    while loop.turn() or loop.writer.waiting:
        pass
    return loop


def runs(harness, **settings):
    loop = turns(harness.begin(harness.loop(**settings)))
    loop.finish()
    return loop


def work(writer, **options):
    steps = 0
    while writer.waits(**options):
        writer.step(**options)
        steps += 1
    return steps


def test_an_item_has_a_record_from_its_message_on(harness):
    harness.publish_item("x", encode(KETTLE))
    harness.publish_item("long", encode(Item(item_id="long", title="t" * 300)))
    runs(harness)
    assert harness.lists.items.held["x"] == RECORD
    assert harness.lists.items.held["long"].title == "t" * TITLE_CHARACTERS_MAX
    assert TITLE_CHARACTERS_MAX == 200
    assert harness.lists.items.complete == 2
    harness.publish_item("x", None)
    harness.publish_item("long", b"{}")  # nothing is known of it any more
    runs(harness)
    assert harness.lists.items.held == {"x": ItemRecord(available=False)}


def test_a_wiped_redis_gets_all_records_again(harness, town_clicks, monkeypatch):
    monkeypatch.setattr(item_records, "SLICE", 4)
    for n in range(10):
        harness.publish_item(f"x{n}", encode(KETTLE))
    harness.publish(town_clicks[:50])
    loop = turns(harness.begin(harness.loop()))
    before = dict(harness.lists.items.held)
    assert len(before) == 10
    harness.lists.lose_everything()
    harness.lists.items.writes.clear()
    loop.writer.check()
    turns(loop)
    assert harness.lists.items.held == before
    assert harness.lists.items.complete == 10
    assert max(harness.lists.items.writes) == 4


def test_what_a_redis_that_was_away_has_missed_is_written_when_it_is_back(harness, town_clicks):
    harness.publish(town_clicks[:50])
    loop = turns(harness.begin(harness.loop()))
    harness.lists.away = True
    harness.publish_item("x", encode(KETTLE))
    harness.publish(town_clicks[50:80])
    while loop.turn():
        pass
    assert not harness.lists.items.held
    harness.lists.away = False
    for _ in range(50):
        loop.turn()
    assert harness.lists.items.held["x"] == RECORD


def test_a_worker_that_starts_again_writes_them_from_its_checkpoint(harness):
    harness.publish_item("x", encode(KETTLE))
    runs(harness)
    harness.lists.lose_everything()
    runs(harness)
    assert harness.feed.began_at[-1]  # not read again
    assert harness.lists.items.held == {"x": RECORD}


def test_records_grow_where_a_checkpoint_held_less_of_items(harness):
    """As one of an earlier version does: then the topic is read again from its beginning."""
    harness.publish_item("x", encode(KETTLE))
    runs(harness, item_attributes_max=1)
    assert harness.lists.items.held["x"].attributes == {"price": 3.0}
    runs(harness)
    assert harness.feed.began_at == [{}]
    assert harness.lists.items.held["x"] == RECORD


def test_all_are_renewed_within_their_lifetime_in_slices(writer, lists, clock, monkeypatch):
    monkeypatch.setattr(item_records, "SLICE", 3)
    writer.renew()
    assert work(writer) == 5  # three, three, three, two, and that they are complete
    assert len(lists.items.held) == 11
    assert lists.items.complete == 10
    assert not lists.items.held["gone"].available
    clock.now += lists.items.ttl_s / RENEWALS
    assert work(writer) == 5
    assert not writer.waits()


def test_what_has_changed_comes_first_and_a_failure_loses_nothing(writer, lists):
    writer.renew()
    writer.note(["i3", "unknown"])
    lists.away = True
    for _ in range(2):
        with pytest.raises(Exception, match="no Redis"):
            writer.step()
    lists.away = False
    writer.step()
    assert lists.items.held == {"i3": RECORD}
    work(writer)
    assert len(lists.items.held) == 11


def test_a_redis_that_evicts_gets_what_is_new_and_a_mark_that_some_may_be_missing(writer, lists, clock):
    writer.renew()
    work(writer)
    lists.items.held.clear()
    writer.note(["i3"])
    clock.now += lists.items.ttl_s
    work(writer, evicting=True)
    assert lists.items.held == {"i3": RECORD}
    assert lists.items.complete is None
    assert not writer.waits(evicting=True)
    writer.renew()  # there is room again
    work(writer)
    assert lists.items.complete == 10


def test_more_changes_than_items_are_held_become_a_pass(writer, lists, learner):
    writer.note(f"n{n}" for n in range(learner.settings.items_held + 1))
    work(writer)
    assert len(lists.items.held) == 11


def test_in_a_group_the_worker_that_leads_writes_and_the_next_leader_writes_all(tmp_path):
    group = GroupHarness(tmp_path, abuse_filter=False, gate=False)
    group.broker.append(ITEMS, encode(KETTLE), key=b"x")
    for name in "ab":
        group.begin(name)
    group.publish(some_clicks(60))
    group.drain()
    assert group.lists.items.held == {"x": RECORD}
    leader = group.coordinator.leader
    group.lists.items.held.clear()
    group.drain()
    assert group.lists.items.held == {}
    group.kill(leader)
    group.drain()
    assert group.coordinator.leader != leader
    assert group.lists.items.held == {"x": RECORD}
