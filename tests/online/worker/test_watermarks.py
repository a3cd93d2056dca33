"""What Redis has lost is found out at the next write."""

import pytest

from online.worker.watermarks import WRITES_HELD, WriteWatermarks
from stream.lists import MARKS_MAX


class Redis:
    """One number, as Redis keeps it."""

    def __init__(self, watermarks):
        self.watermarks = watermarks
        self.number = None

    def write(self, *users):
        mark = self.watermarks.mark()
        found, self.number = self.number, mark.number
        return self.watermarks.written({"": found}, users).get("", ())


@pytest.fixture
def redis():
    return Redis(WriteWatermarks())


def test_without_loss_nothing_is_reported(redis):
    assert [redis.write(user) for user in "abc"] == [(), (), ()]


def test_an_emptied_redis_has_lost_everything(redis):
    redis.write("a")
    redis.number = None
    assert redis.write("b") is None
    assert redis.write("c") == ()


def test_one_that_went_back_has_lost_what_came_last(redis):
    redis.write("a")
    redis.write("b", "c")
    kept = redis.number
    redis.write("d")
    redis.write("b")
    redis.number = kept
    assert set(redis.write("e")) == {"d", "b"}
    assert redis.write("f") == ()


def test_one_that_went_back_further_than_is_remembered_has_lost_everything(redis):
    redis.write("a")
    kept = redis.number
    for _ in range(WRITES_HELD + 1):
        redis.write("b")
    redis.number = kept
    assert redis.write("c") is None


def test_after_a_crash_what_the_killed_worker_wrote_later_is_no_loss(redis):
    redis.write("a")
    saved = redis.watermarks.to_state()
    redis.write("b")
    redis.write("c")
    redis.watermarks = WriteWatermarks()
    redis.watermarks.load_state(saved)
    assert redis.write("b") == ()
    assert redis.write("c") == ()


def test_after_a_restart_an_emptied_redis_is_noticed(redis):
    redis.write("a")
    saved = redis.watermarks.to_state()
    redis.watermarks, redis.number = WriteWatermarks(), None
    redis.watermarks.load_state(saved)
    assert redis.write("b") is None


def test_workers_do_not_mistake_each_others_marks():
    assert WriteWatermarks().mark().id != WriteWatermarks().mark().id


class Cluster:
    """Numbers by part, as a cluster keeps them."""

    def __init__(self):
        self.watermarks = WriteWatermarks()
        self.numbers = {}

    def write(self, *users, parts):
        mark = self.watermarks.mark()
        marked = dict.fromkeys([*parts, *mark.parts])
        found = {part: self.numbers.get(part) for part in marked}
        self.numbers |= dict.fromkeys(marked, mark.number)
        return self.watermarks.written(found, users)


def test_each_part_of_a_cluster_loses_its_data_alone():
    cluster = Cluster()
    assert cluster.write("a", parts="xy") == {}
    assert cluster.write("b", parts="xy") == {}
    del cluster.numbers["y"]
    assert cluster.write("c", parts="xy") == {"y": None}
    assert cluster.write("d", parts="xy") == {}
    cluster.numbers["x"] = 2
    lost = cluster.write("e", parts="xy")
    assert set(lost["x"]) == {"c", "d"}
    assert set(lost) == {"x"}


def test_a_part_that_is_new_has_lost_nothing_and_one_of_before_is_still_looked_at():
    cluster = Cluster()
    cluster.write("a", parts="x")
    assert cluster.write("b", parts="y") == {}
    del cluster.numbers["x"]
    assert cluster.write("c", parts="y") == {"x": None}


def test_parts_outlive_a_restart_and_a_checkpoint_of_before_them_is_understood():
    cluster = Cluster()
    cluster.write("a", parts="xy")
    state = cluster.watermarks.to_state()
    cluster.watermarks = WriteWatermarks()
    cluster.watermarks.load_state(state)
    del cluster.numbers["x"]
    assert cluster.write("b", parts="xy") == {"x": None}
    older = WriteWatermarks()
    older.load_state({"id": "w", "number": 3})
    assert older.written({"": None}, ()) == {"": None}


def test_the_parts_that_are_remembered_are_bounded():
    cluster = Cluster()
    for n in range(3 * MARKS_MAX):
        cluster.write(parts=[str(n)])
    assert len(cluster.watermarks.mark().parts) == MARKS_MAX
