"""An item that is not available stands in no list, from seconds after its record came until it is available again."""

import logging
import string
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from online.config.settings import Settings
from online.worker.catalogue import PAGE
from online.worker.connections import open_items, open_lists, open_producer, prepare_topics
from online.worker.items_feed import ItemsFeed
from online.worker.main import run_worker
from stream.dead_letters import dead_letter
from stream.events import Click
from stream.events import encode as encode_click
from stream.items import Item, encode
from stream.readers import LogReader
from stream.source import Partition, SourceError

ITEMS = Partition("items", 0)
GONE = encode(Item(item_id="x", available=False))
THERE = encode(Item(item_id="x", title="a title", tags=("a", "b"), vector=(0.5, 1.0)))


@pytest.fixture
def loop(harness, town_clicks):
    """A loop that has learned from every user of the town."""
    harness.publish(town_clicks)
    loop = harness.begin(harness.loop())
    while loop.turn():
        pass
    return loop


def common_item(harness):
    """The item that most lists hold, the popular one among them."""
    listed = Counter(item for top in harness.lists.held.values() for item in top.items)
    return max(harness.lists.popular_list.items, key=lambda item: listed[item])


def holders(harness, item):
    """Whose list holds the item; None stands for the popular one."""
    every_list = {**harness.lists.held, None: harness.lists.popular_list}
    return {user for user, top in every_list.items() if item in top.items}


def again(clicks, *, hours):
    """The same clicks later: at the same time they would be a bot's, who clicks everything twice."""
    return [click.model_copy(update={"timestamp": click.timestamp + 3_600 * hours}) for click in clicks]


def turns_until_swept(loop):
    turns = 0
    while turns == 0 or loop.writer.catalogue.sweeping or loop.writer.stale:
        loop.turn()
        turns += 1
    return turns


# --- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("withdrawal", [GONE, None], ids=["unavailable", "tombstone"])
def test_a_withdrawn_item_leaves_every_list_and_comes_back(harness, loop, town_clicks, withdrawal):
    item = common_item(harness)
    before = dict(harness.lists.held)
    assert len(holders(harness, item)) > 5
    harness.publish_item(item, withdrawal)
    turns_until_swept(loop)
    assert holders(harness, item) == set()
    for user, top in harness.lists.held.items():
        assert top.items
        assert len(top.items) == len(top.scores)
        if item not in before[user].items:
            assert top == before[user]

    harness.publish(again(town_clicks[:100], hours=6))  # nor do new lists hold it, also of users who click on it
    harness.publish([Click(user_id="fan", item_id=item, timestamp=town_clicks[-1].timestamp)])
    harness.drain(loop)
    assert "fan" in harness.lists.held
    assert holders(harness, item) == set()

    harness.publish_item(item, THERE)
    loop.turn()
    assert harness.lists.popular_list.items == loop.learner.popular().items  # at once: it waits for no click
    assert holders(harness, item) <= {None}
    other = next(one for one in harness.lists.popular_list.items if one != item)
    fans, latest = {"fan", "fan-2", "fan-3"}, town_clicks[-1].timestamp
    for turn, clicked in enumerate([item, other] * 3):
        at = latest + 3_600 * (12 + turn)
        harness.publish([Click(user_id=fan, item_id=clicked, timestamp=at) for fan in sorted(fans)])
    harness.drain(loop)
    assert holders(harness, item) >= fans  # whose last click is not on it, but whose next one may well be


def test_a_list_that_has_become_short_is_ranked_anew(harness, loop):
    user, top = max(harness.lists.held.items(), key=lambda pair: len(pair[1].items))
    gone, left = top.items[:-2], top.items[-2:]
    for item in gone:
        harness.publish_item(item, None)
    turns_until_swept(loop)
    after = harness.lists.held[user]
    assert not set(after.items) & set(gone)
    assert len(after.items) > len(left)
    assert (after.offset, after.clicked_at) == (top.offset, top.clicked_at)


def test_what_is_left_of_a_list_keeps_its_order_and_scores(harness, loop):
    user, top = max(harness.lists.held.items(), key=lambda pair: len(pair[1].items))
    harness.publish_item(top.items[1], None)
    turns_until_swept(loop)
    left = {"items": [top.items[0], *top.items[2:]], "scores": [top.scores[0], *top.scores[2:]]}
    assert harness.lists.held[user] == top.model_copy(update=left)


def test_lists_of_users_no_longer_remembered_lose_the_item_too(harness, town_clicks):
    harness.publish(town_clicks)
    loop = harness.begin(harness.loop(users_held=16))
    while loop.turn():
        pass
    forgotten = set(harness.lists.held) - set(loop.learner.histories.users())
    assert forgotten
    for item in {item for user in forgotten for item in harness.lists.held[user].items[:2]}:
        harness.publish_item(item, None)
    turns_until_swept(loop)
    unavailable = set(loop.learner.unavailable)
    assert not [user for user, top in harness.lists.held.items() if unavailable & set(top.items)]


def test_withdrawals_that_come_together_share_a_sweep_and_a_later_one_gets_its_own(harness, loop):
    pages = []
    page = harness.lists.page
    harness.lists.page = lambda cursor: (pages.append(cursor), page(cursor))[1]
    items = harness.lists.popular_list.items[:3]
    for item in items[:2]:
        harness.publish_item(item, None)
    loop.turn()
    harness.publish_item(items[2], None)
    turns_until_swept(loop)
    everywhere = list(range(0, len(harness.lists.held), 5))
    assert pages in ([*everywhere, *everywhere], [*everywhere[: len(pages) - len(everywhere)], *everywhere])
    assert not set(items) & {item for top in harness.lists.held.values() for item in top.items}


def test_an_item_that_is_as_available_as_before_costs_nothing(harness, loop):
    pages = []
    page = harness.lists.page
    harness.lists.page = lambda cursor: (pages.append(cursor), page(cursor))[1]
    before = dict(harness.lists.held)
    harness.publish_item(common_item(harness), THERE)
    harness.publish_item("never seen", THERE)
    turns_until_swept(loop)
    assert (pages, harness.lists.held) == ([], before)


def test_an_item_withdrawn_before_its_first_click_is_not_listed_after_it(harness, town_clicks):
    item = town_clicks[0].item_id
    harness.publish_item(item, None)
    harness.broker.topics[harness.partition()] = []
    loop = harness.begin(harness.loop())
    loop.turn()
    harness.publish(town_clicks)
    harness.drain(loop)
    assert harness.lists.held
    assert holders(harness, item) == set()


def test_a_turn_takes_in_and_looks_at_no_more_than_the_settings_say(harness, town_clicks):
    harness.publish(town_clicks[:100])
    loop = harness.begin(harness.loop(items_records_max=3, sweep_lists_max=2 * PAGE))
    while loop.turn():
        pass
    pages = []
    page = harness.lists.page
    harness.lists.page = lambda cursor: (pages.append(cursor), page(cursor))[1]
    for number in range(7):
        harness.publish_item(f"i{number}", None)
    taken = []
    for _ in range(4):
        before = len(pages)
        loop.turn()
        taken.append(loop.progress.next_offsets[ITEMS])
        assert len(pages) - before <= 2
    assert taken == [3, 6, 7, 7]


def test_too_many_withdrawn_items_are_reported_once(harness, loop, caplog):
    loop.learner.items.settings = loop.learner.settings = loop.settings.model_copy(update={"items_held": 2})
    for item in [*harness.lists.popular_list.items[:4], harness.lists.popular_list.items[0]]:
        harness.publish_item(item, None)
    turns_until_swept(loop)
    assert len(loop.learner.unavailable) == 2
    warnings = [
        record.message for record in caplog.records if record.levelno >= logging.WARNING
    ]  # whatever is logged else
    assert warnings == ["2 items are not available, and there is no room for more: raise NEXTCLICK_ITEMS_HELD"]


# --- the site's rule -----------------------------------------------------------------------------------------------


def priced(price):
    return encode(Item(item_id="x", attributes={"price": price}))


@pytest.fixture
def ruled(harness, town_clicks):
    """A loop whose lists hold what costs at most 20, and that has learned of every item's price and from every user."""
    harness.broker.topics[harness.partition()] = []
    for item in sorted({click.item_id for click in town_clicks}):
        harness.publish_item(item, priced(10.0))
    loop = harness.begin(harness.loop(list_filter="price <= 20"))
    while not loop.learner.listable.attributes:
        loop.turn()
    harness.publish(town_clicks)
    while loop.turn():
        pass
    return loop


@pytest.mark.parametrize("record", [priced(21.0), THERE, None], ids=["dearer", "no price", "tombstone"])
def test_an_item_that_the_rule_excludes_leaves_every_list_and_comes_back(harness, ruled, town_clicks, record):
    item = common_item(harness)
    assert len(holders(harness, item)) > 5
    harness.publish_item(item, record)
    turns_until_swept(ruled)
    assert holders(harness, item) == set()
    harness.publish(again(town_clicks[:100], hours=6))
    harness.drain(ruled)
    assert holders(harness, item) == set()
    harness.publish_item(item, priced(20.0))
    ruled.turn()
    assert harness.lists.popular_list.items == ruled.learner.popular().items


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_the_rule_is_swept_the_next_worker_ends_it(harness, ruled, after):
    item = common_item(harness)
    harness.publish_item(item, priced(21.0))
    ruled.settings = ruled.settings.model_copy(update={"sweep_lists_max": 1})
    harness.crash(harness.lists, "amend", call=1, after=after)
    with pytest.raises(harness.aborted):
        turns_until_swept(ruled)
    vars(harness.lists).pop("amend")
    second = harness.begin(harness.loop(list_filter="price <= 20"))
    turns_until_swept(second)
    assert holders(harness, item) == set()


def test_a_rule_that_is_new_is_applied_to_the_lists_that_stand(harness, ruled):
    item = common_item(harness)
    harness.publish_item(item, priced(15.0))
    turns_until_swept(ruled)
    ruled.finish()
    second = harness.begin(harness.loop(list_filter="price < 15"))
    turns_until_swept(second)
    assert holders(harness, item) == set()
    assert harness.lists.held


def test_items_are_read_again_after_a_version_that_kept_nothing_of_them(harness, ruled, town_clicks, monkeypatch):
    harness.publish_item("bad", b"no json")
    turns_until_swept(ruled)
    to_state = type(ruled.learner).to_state

    def as_before(learner):
        arrays, state = to_state(learner)
        del state["attributes"]
        return {name: array for name, array in arrays.items() if not name.startswith("attributes.")}, state

    monkeypatch.setattr(type(ruled.learner), "to_state", as_before)
    harness.publish(again(town_clicks[:20], hours=6))
    harness.drain(ruled)
    ruled.finish()
    monkeypatch.undo()
    second = harness.begin(harness.loop(list_filter="price <= 20"))
    assert harness.feed.began_at == [{}]
    turns_until_swept(second)
    assert len(second.learner.listable.attributes) == len({click.item_id for click in town_clicks})
    assert harness.lists.popular_list.items
    harness.publish(again(town_clicks[:20], hours=9))
    harness.drain(second)
    second.finish()
    assert [dead_letter(letter).reason for letter in harness.dead()] == ["malformed-json"]


def test_a_rule_over_an_attribute_that_no_item_has_is_reported_once(harness, caplog):
    loop = harness.begin(harness.loop(list_filter="prise <= 20"))
    for number in range(3):
        harness.publish_item(f"i{number}", priced(1.0))
        loop.turn()
        loop.turn()
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [
        "NEXTCLICK_LIST_FILTER, by the items that were read so far: "
        "at character 1: no item has an attribute 'prise'; did you mean 'price'?"
    ]


# --- restarts, crashes, Redis --------------------------------------------------------------------------------------


def test_after_a_restart_it_goes_on_where_it_was_and_items_stay_withdrawn(harness, loop, town_clicks):
    item = common_item(harness)
    harness.publish_item(item, None)
    turns_until_swept(loop)
    loop.finish()
    harness.publish_item("another", None)
    again = harness.begin(harness.loop())
    assert harness.feed.began_at == [{ITEMS: 1}]
    harness.publish(town_clicks[:100])
    harness.drain(again)
    assert again.progress.next_offsets[ITEMS] == 2
    assert holders(harness, item) == set()


@pytest.mark.parametrize("step", ["page", "amend"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_in_the_middle_of_a_sweep_the_next_worker_ends_it(harness, loop, step, after):
    item = common_item(harness)
    harness.publish_item(item, None)
    loop.settings = loop.settings.model_copy(update={"sweep_lists_max": 1})
    loop.turn()
    harness.crash(harness.lists, step, call=1, after=after)
    with pytest.raises(harness.aborted):
        turns_until_swept(loop)
    vars(harness.lists).pop(step)
    second = harness.begin(harness.loop())
    turns_until_swept(second)
    assert holders(harness, item) == set()


def test_items_withdrawn_during_an_outage_leave_the_lists_when_redis_is_back(harness, loop):
    item = common_item(harness)
    harness.lists.away = True
    harness.publish_item(item, None)
    for _ in range(3):
        loop.turn()
    assert holders(harness, item)
    harness.lists.away = False
    turns_until_swept(loop)
    assert holders(harness, item) == set()
    assert loop.writer.redis_waits_since is None


def test_a_redis_that_comes_back_with_older_lists_is_looked_through(harness, loop, town_clicks):
    item = common_item(harness)
    older = dict(harness.lists.held)
    harness.publish_item(item, None)
    turns_until_swept(loop)
    harness.lists.away = True
    harness.publish(town_clicks[:1])
    loop.turn()
    harness.lists.held = older
    harness.lists.away = False
    turns_until_swept(loop)
    assert holders(harness, item) == set()


# --- what cannot be read -------------------------------------------------------------------------------------------


def test_what_is_no_item_is_a_dead_letter_once_and_stops_nothing(harness, loop):
    item = common_item(harness)
    bad = [b"no json", b'{"available": "no"}', b"x" * 70_000]
    for value in bad:
        harness.publish_item(item, value)
    harness.broker.append("items", b"{}")
    harness.publish_item(item, None)
    turns_until_swept(loop)
    assert holders(harness, item) == set()
    loop.finish()
    harness.run()
    letters = list(map(dead_letter, harness.dead()))
    assert [(letter.topic, letter.partition, letter.offset, letter.reason) for letter in letters] == [
        ("items", 0, 0, "malformed-json"),
        ("items", 0, 1, "invalid-available"),
        ("items", 0, 2, "too-large"),
        ("items", 0, 3, "missing-key"),
    ]
    assert [letter.record.value for letter in letters[:3]] == bad
    assert loop.progress.dead_letters == dict.fromkeys([letter.reason for letter in letters], 1)


def test_a_crash_before_the_checkpoint_puts_no_dead_letter_twice(harness, loop):
    harness.publish_item("i", b"no json")
    harness.publish_item("j", b"[]")
    harness.crash(loop.checkpoints, "save", call=1)
    with pytest.raises(harness.aborted):
        turns_until_swept(loop)
    harness.run()
    assert [dead_letter(letter).reason for letter in harness.dead()] == ["malformed-json", "not-an-object"]


# --- the worker ----------------------------------------------------------------------------------------------------


def test_the_worker_reads_the_topic(small, tmp_path, free_port, town_clicks):
    settings = small(data_dir=tmp_path, embedded_redis_port=free_port, items_interval_s=0.01, status_interval_s=0.0)
    stop, ready = threading.Event(), threading.Event()
    with ThreadPoolExecutor() as pool:
        worker = pool.submit(run_worker, settings, stop, ready=ready)
        try:
            assert ready.wait(60)
            lists = open_lists(settings)
            producer = open_producer(settings)
            for click in town_clicks:
                producer.send(settings.clicks_topic, key=click.user_id.encode(), value=encode_click(click))
            producer.flush()
            until(lambda: (lists.status() or {}).get("learned") == len(town_clicks))
            item = lists.popular().items[0]
            producer.send(settings.items_topic, key=item.encode(), value=None)
            producer.close()
            until(lambda: not any(item in lists.read(user).items for user in lists.users()))
            until(lambda: item not in lists.popular().items)
            until(lambda: lists.status()["unavailable"] == 1)
            assert lists.status()["positions"][f"{settings.items_topic}:0"] == 1
        finally:
            stop.set()
        worker.result(60)


def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- the feed ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["log", pytest.param("kafka", marks=pytest.mark.real)])
def settings(request, tmp_path):
    """Settings of each kind of broker, with topics of its own."""
    name = uuid.uuid4().hex
    more = {}
    if request.param == "kafka":
        more["kafka_bootstrap_servers"] = request.getfixturevalue("kafka_broker").bootstrap_servers
    settings = Settings(
        data_dir=tmp_path, items_interval_s=0.01, items_records_max=10,
        items_topic=f"items-{name}", clicks_topic=f"clicks-{name}", dead_letters_topic=f"{name}.dead", **more,
    )  # fmt: skip
    prepare_topics(settings)
    return settings


@pytest.fixture
def opened(settings):
    """Opens a feed that begins where it is told, and closes it."""
    feeds = []

    def open_one(at=None):
        feeds.append(open_items(settings))
        feeds[-1].start({} if at is None else {Partition(settings.items_topic, 0): at})
        return feeds[-1]

    yield open_one
    for feed in feeds:
        feed.close()
    assert not reading()


def reading():
    """Whether the thread of a feed runs."""
    return any(thread.name == "items" for thread in threading.enumerate())


def publish(settings, names):
    producer = open_producer(settings)
    for name in names:
        producer.send(settings.items_topic, key=name.encode(), value=None)
    producer.close()


def taken(feed, count):
    """The next `count` records."""
    records, deadline = [], time.monotonic() + 30
    while len(records) < count and time.monotonic() < deadline:
        some = feed.take()
        assert len(some) <= 10
        records += some
        time.sleep(0.001)
    assert len(records) == count
    return records


def keys(records):
    return "".join(record.key.decode() for record in records)


def test_a_feed_gives_what_is_there_and_what_comes_a_bounded_number_at_a_time(settings, opened):
    publish(settings, string.ascii_letters[:40])
    feed = opened()
    found = taken(feed, 40)
    publish(settings, string.ascii_letters[40:])
    found += taken(feed, 12)
    assert keys(found) == string.ascii_letters
    assert [record.offset for record in found] == list(range(52))
    publish(settings, "!")
    assert keys(taken(feed, 1)) == "!"  # nothing came in between, nor twice
    assert feed.take() == []


def test_a_feed_begins_at_its_offset_and_anew_in_a_topic_made_anew(settings, opened, caplog):
    publish(settings, "abc")
    assert keys(taken(opened(2), 1)) == "c"
    assert caplog.text == ""
    assert keys(taken(opened(7), 3)) == "abc"
    assert f"topic {settings.items_topic} was created again" in caplog.text


def test_a_feed_without_a_reader_is_bounded_and_can_be_closed(settings, opened):
    publish(settings, string.ascii_letters)
    feed = opened()
    deadline = time.monotonic() + 30
    while feed.waiting < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert feed.waiting == 10
    feed.close()
    assert not reading()


def test_a_feed_that_was_never_started_can_be_closed(settings):
    open_items(settings).close()


@pytest.mark.parametrize("settings", ["log"], indirect=True)
def test_the_embedded_log_is_compacted_when_it_is_opened(settings, opened):
    publish(settings, "abacab")
    assert [(record.key, record.offset) for record in taken(opened(), 3)] == [(b"c", 3), (b"a", 4), (b"b", 5)]


@pytest.mark.real
@pytest.mark.parametrize("settings", ["kafka"], indirect=True)
def test_kafka_s_topic_of_items_is_compacted(settings):
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, settings.items_topic)])
    admin.close()
    assert found["topic"][settings.items_topic]["cleanup.policy"]["value"] == "compact"


class FailingReader:
    """A reader whose broker is away the first times, and worse."""

    def __init__(self, reader, errors):
        self.reader, self.errors, self.closed = reader, errors, False

    def ends(self):
        if self.errors:
            raise self.errors.pop(0)
        return self.reader.ends()

    def read(self, starts):
        return self.reader.read(starts)

    def close(self):
        self.closed = True
        self.reader.close()


@pytest.mark.parametrize("settings", ["log"], indirect=True)
def test_an_unavailable_broker_is_reported_once_and_asked_again(settings, caplog):
    publish(settings, "a")
    errors = [SourceError("no Kafka answers"), SourceError("no Kafka answers"), ValueError("a surprise")]
    reader = FailingReader(LogReader(settings.log_path, settings.items_topic), errors)
    feed = ItemsFeed(reader, records_max=10, interval_s=0.01)
    feed.start({})
    assert keys(taken(feed, 1)) == "a"
    feed.close()
    assert reader.closed
    assert [record.message for record in caplog.records] == [
        "no Kafka answers; until then items are not updated",
        "items cannot be read; trying again",
    ]


@pytest.mark.parametrize("settings", ["log"], indirect=True)
def test_records_are_prepared_in_the_feed_s_thread_before_they_can_be_taken(settings):
    publish(settings, [f"{n:02}" for n in range(50)])
    prepared = []

    def prepare(records):
        prepared.append((threading.current_thread().name, [record.key for record in records]))

    feed = ItemsFeed(LogReader(settings.log_path, settings.items_topic), records_max=100, interval_s=0.01)
    feed.start({}, prepare)
    deadline = time.monotonic() + 30
    while feed.waiting < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    records = feed.take()
    feed.close()
    assert [name for name, _ in prepared] == ["items", "items"]
    assert [len(keys) for _, keys in prepared] == [32, 18]
    assert [key for _, keys in prepared for key in keys] == [record.key for record in records]
