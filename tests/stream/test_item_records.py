"""Records of items in Redis."""

import fakeredis
import pytest
import redis

from stream.item_records import COMPLETE_KEY, FoundRecords, ItemRecord, ItemRecords, item_key
from stream.lists import Lists, ListsError, TopList, connect

KETTLE = ItemRecord(title="A kettle", tags=("kitchen",), attributes={"price": 20.0, "new": True, "brand": "a"})
GONE = ItemRecord(available=False)
LIST = TopList(items=["i"], scores=[0.5], version=1, offset="0:1", clicked_at=1, written_at=2, source="personal")


@pytest.fixture
def client():
    return fakeredis.FakeRedis()


def test_what_is_written_is_read_and_expires(client):
    records = ItemRecords(client, ttl_s=100)
    records.write({"i/ 9": KETTLE, "x": GONE})
    assert records.read(["x", "other", "i/ 9"]) == FoundRecords({"x": GONE, "i/ 9": KETTLE}, complete=False)
    assert 0 < client.ttl(item_key("x")) <= 100
    records.write({"x": None})
    assert records.read(["x"]).records == {}
    value = client.get(item_key("i/ 9"))
    assert b'"price":20.0' in value
    assert b'"new":true' in value
    assert ItemRecord.model_validate_json(value).attributes["new"] is True


def test_whether_all_stand_is_told_apart(client):
    records = ItemRecords(client, ttl_s=100)
    records.mark_complete(3)
    assert records.read([]).complete
    assert 0 < client.ttl(COMPLETE_KEY) <= 100
    records.mark_incomplete()
    assert not records.read(["a"]).complete


@pytest.mark.parametrize("value", [b"[]", b"{", b'{"tags": 3}', b"x" * 2_000, b"\xff"])
def test_a_value_that_is_no_record_counts_as_absent(client, value):
    client.set(item_key("i"), value)
    assert ItemRecords(client, ttl_s=100, value_bytes_max=1_000).read(["i"]).records == {}


def test_a_redis_that_is_away_is_one_line():
    with pytest.raises(ListsError, match=r"^no Redis answers"):
        ItemRecords(redis.Redis(port=1), ttl_s=1).read(["i"])


def test_records_of_items_name_no_user(client):
    lists = Lists(client, ttl_s=100)
    lists.items.write({"u1": ItemRecord(title="u1", tags=("u1",))})
    assert lists.keys_naming("u1") == 0


def test_some_lists_are_looked_at_and_no_more(client):
    lists = Lists(client, ttl_s=100)
    lists.items.write({f"i{n}": KETTLE for n in range(50)})
    lists.write({f"u{n}": LIST for n in range(30)})
    client.set("nextclick:top:broken", b"{")
    assert len(lists.some(100)) == 30
    assert set(lists.some(7)) < {f"u{n}" for n in range(30)} | {"broken"}
    assert len(lists.some(7)) <= 7


@pytest.mark.real
def test_a_cluster_takes_records(redis_cluster):
    redis_cluster.flush()
    lists = Lists(connect(redis_cluster.url), ttl_s=100)
    records = {f"i{n}": KETTLE for n in range(300)}
    lists.items.write(records)
    lists.items.mark_complete(300)
    assert lists.items.read(list(records)) == FoundRecords(records, complete=True)
    lists.items.write(dict.fromkeys(records))
    assert lists.items.read(list(records)).records == {}
    lists.write({f"u{n}": LIST for n in range(30)})
    assert len(lists.some(100)) == 30
