"""A topic that is read anew: from its beginning, also after a crash before its first record, without letters twice."""

from types import SimpleNamespace

import pytest

from online.worker.progress import Progress
from online.worker.topic_intake import NOT_ALL_KEPT, TopicIntake
from stream.events import BadEvent
from stream.source import Partition, Record

HERE, OTHER = Partition("users", 0), Partition("clicks", 0)


def record(offset):
    return Record("users", 0, offset, timestamp_ms=0, key=b"u", value=b"bad")


@pytest.fixture
def parts():
    """An intake whose records are all bad, its progress, where its feed began, and the offsets of its letters."""
    feed = SimpleNamespace(began=[], records=[])
    feed.start = lambda starts, prepare: feed.began.append((dict(starts), prepare))
    feed.take = lambda: feed.records
    letters = []
    progress = Progress()
    progress.next_offsets.update({HERE: 7, OTHER: 3})
    intake = TopicIntake(
        "users",
        feed=feed,
        read=lambda _: BadEvent("malformed-json"),
        dead_letters=SimpleNamespace(put=lambda one, _: letters.append(one.offset)),
        progress=progress,
        unreadable=SimpleNamespace(update=lambda *_: None),
        emit=lambda *_: None,
    )
    return intake, feed, progress, letters


def test_it_goes_on_where_the_checkpoint_says(parts):
    intake, feed, progress, _ = parts
    intake.start()
    assert feed.began == [({HERE: 7}, None)]
    assert progress.next_offsets == {HERE: 7, OTHER: 3}


def test_a_checkpoint_before_the_first_record_begins_anew_too(parts, caplog):
    intake, feed, progress, _ = parts
    with caplog.at_level("INFO"):
        intake.start(anew=NOT_ALL_KEPT)
    assert feed.began == [({}, None)]
    assert progress.next_offsets == {OTHER: 3}
    assert "the users topic is read again, because not all of what its records say was kept" in caplog.text


def test_bad_records_that_are_read_again_are_no_dead_letters_again(parts):
    intake, feed, progress, letters = parts
    intake.start(anew=NOT_ALL_KEPT)
    feed.records = [record(offset) for offset in (5, 6, 7, 8)]
    assert list(intake.take()) == []
    assert letters == [7, 8]
    assert progress.next_offsets[HERE] == 9
