"""Numbers rise, whatever happens; what is kept has a checkpoint; what has none cannot come back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.lifecycle.versions import GONE, KEPT, LIVE, ROLLED_BACK, VersionError, Versions


def numbers(versions, state):
    return [version.number for version in versions.all() if version.state == state]


class Disk:
    """Versions as the loop uses them: after each change a checkpoint is written, and the others make room."""

    def __init__(self, kept=3, listed=6, checkpoints_kept=2):
        self.checkpoints_kept = checkpoints_kept
        self.versions = Versions(kept, listed)
        self.there = {}  # the state that each checkpoint holds

    def save(self):
        number = max(self.there, default=0) + 1
        pinned = self.versions.saving(number)
        self.there[number] = json.loads(json.dumps(self.versions.to_state()))
        for old in sorted(self.there)[: -self.checkpoints_kept]:
            if old not in pinned:
                del self.there[old]
        return number

    def publish(self, **fields):
        self.versions.publish("a test", at_ms=1, learned=2, **fields)
        self.save()

    def roll_back(self, to):
        found = self.versions.roll_back(to, "a test", at_ms=1, learned=2)
        self.save()
        return found


def test_the_first_version_s_checkpoint_is_the_latest_that_it_made():
    disk = Disk()
    assert (disk.versions.live.number, disk.versions.live.parent, disk.versions.unsaved) == (1, None, False)
    disk.save()
    disk.save()
    assert disk.versions.live.checkpoint == 2
    disk.versions.publish("fine-tuned", at_ms=1, learned=2)
    disk.save()
    assert [version.checkpoint for version in disk.versions.all()] == [2, 3]


def test_a_published_version_is_numbered_next_and_saved_at_the_next_checkpoint():
    disk = Disk()
    disk.save()
    version = disk.versions.publish("fine-tuned", at_ms=5, learned=7, figures={"steps": 3})
    assert (version.number, version.parent, version.state, version.checkpoint) == (2, 1, LIVE, None)
    assert disk.versions.unsaved
    disk.save()
    assert not disk.versions.unsaved
    assert disk.versions.live.checkpoint == 2
    assert numbers(disk.versions, KEPT) == [1]


def test_a_rollback_is_a_new_version_whose_parent_is_the_one_gone_back_to():
    disk = Disk()
    disk.save()
    disk.publish()
    disk.publish()
    version = disk.roll_back(2)
    assert (version.number, version.parent) == (4, 2)
    assert disk.versions.came_back
    assert (numbers(disk.versions, LIVE), numbers(disk.versions, ROLLED_BACK)) == ([4], [3])
    disk.publish()
    assert not disk.versions.came_back
    assert disk.roll_back(3).parent == 3  # what was given up is kept as long as the others


@pytest.mark.parametrize(
    ("to", "line"),
    [
        (9, "there is no version 9; kept are 3, 4"),
        (1, "version 1 is not kept any more; kept are 3, 4"),
        (5, "version 5 makes the lists already; kept are 3, 4"),
    ],
)
def test_a_version_that_cannot_be_restored_is_refused_with_those_that_can(to, line):
    disk = Disk()
    for _ in range(4):
        disk.publish()
    with pytest.raises(VersionError) as error:
        disk.roll_back(to)
    assert str(error.value) == line
    assert disk.versions.live.number == 5


def test_before_anything_was_published_there_is_nothing_to_go_back_to():
    with pytest.raises(VersionError, match="there is no version 2; none is kept yet"):
        Versions(3, 6).held(2)


def test_a_version_whose_checkpoint_is_not_there_is_gone():
    disk = Disk()
    for _ in range(3):
        disk.publish()
    again = Versions(3, 6)
    again.load_state(disk.there[max(disk.there)], there=[max(disk.there)])
    assert (numbers(again, LIVE), numbers(again, KEPT)) == ([4], [])
    assert len(numbers(again, GONE)) == 3


def test_weights_at_hand_need_no_checkpoint():
    versions = Versions(3, 6)
    versions.publish("a test", at_ms=0, learned=0)
    assert versions.roll_back(1, "a test", at_ms=0, learned=0, at_hand=True).number == 3


@given(
    steps=st.lists(st.sampled_from(["publish", "save", "back", "crash"]), max_size=40),
    kept=st.integers(1, 4),
    checkpoints_kept=st.integers(1, 3),
)
def test_whatever_happens_numbers_rise_what_is_kept_is_there_and_the_disk_is_bounded(steps, kept, checkpoints_kept):
    disk = Disk(kept, kept + 2, checkpoints_kept)
    disk.save()
    seen = [1]
    for step in steps:
        if step == "publish":
            disk.publish()
        elif step == "save":
            disk.save()
        elif step == "back" and (held := [v for v in disk.versions.all() if v.state in (KEPT, ROLLED_BACK)]):
            disk.roll_back(held[0].number)
        elif step == "crash":
            before, disk.versions = disk.versions.to_state(), Versions(kept, kept + 2)
            disk.versions.load_state(disk.there[max(disk.there)], list(disk.there))
            assert disk.versions.to_state() == before
        seen.append(disk.versions.live.number)
        assert seen[-1] >= seen[-2]
        assert len(numbers(disk.versions, LIVE)) == 1
        for version in disk.versions.all():
            assert (version.checkpoint in disk.there) == (version.state != GONE)
            if version.checkpoint is not None:  # the checkpoint is of the moment at which it was published
                assert max(row["number"] for row in disk.there[version.checkpoint]) == version.number
        assert len(disk.there) <= kept + checkpoints_kept
        assert len(disk.versions.all()) <= kept + 2


def test_what_a_checkpoint_that_failed_would_have_held_is_not_noted():
    versions = Versions(5, 20)
    versions.saving(1)
    before = versions.to_state()
    versions.saving(2)
    versions.not_saved()
    assert versions.to_state() == before
    versions.publish("better", at_ms=1, learned=1)
    versions.saving(2)
    versions.not_saved()
    assert versions.unsaved
    assert versions.saving(3) == {1, 3}
