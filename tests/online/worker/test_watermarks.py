"""What Redis has lost is found out at the next write."""

import pytest

from online.worker.watermarks import WRITES_HELD, WriteWatermarks


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
