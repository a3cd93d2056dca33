"""Increments: what has changed since a full checkpoint, whose file they share. Each stands for itself all the same."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from online.worker import checkpoint as checkpoint_module
from online.worker.checkpoint import ARRAYS, CHANGES, MANIFEST, CheckpointError, Checkpoints
from online.worker.process_copy import begin_in_copy
from online.worker.shared_checkpoints import SharedCheckpoints, fetch
from online.worker.steps import STEPS
from tests.forked import run_forked
from tests.online.worker.test_checkpoint import KilledError, as_safetensors, cut, flip
from tests.online.worker.test_shared_checkpoints import AtOnce

pytestmark = pytest.mark.usefixtures("increments")
ROWS = np.random.default_rng(0).random((2_000, 8))


def arrays_of(number):
    """A few rows change with each number; one array comes, and one grows."""
    rows = ROWS.copy()
    rows[:number] = number
    arrays = {"rows": rows, "number": np.full(3, number), "grown": np.arange(10 * number), "flag": np.array(number > 2)}
    return arrays if number < 3 else arrays | {"later": np.ones(number, np.float32)}


def state_of(number):
    return {"number": number, "users": [f"user-{n}" for n in range(100 * number)]}


def save(checkpoints, number, **how):
    assert checkpoints.next_number() == number
    return checkpoints.save(arrays_of(number), state_of(number), **how)


def filled(folder, count, kept=3, **how):
    checkpoints = Checkpoints(folder, kept, **how)
    for number in range(1, count + 1):
        save(checkpoints, number)
    return checkpoints


def kinds(checkpoints):
    """Numbers of those there are, increments negative."""
    return [-number if checkpoints.is_increment(number) else number for number in checkpoints.numbers()]


@pytest.fixture
def whole(same):
    """Checks that a checkpoint is what was saved under its number."""

    def check(found, number):
        arrays, state = found
        assert same(arrays, {name: np.asarray(array, order="C") for name, array in arrays_of(number).items()})
        assert state == state_of(number)
        for array in arrays.values():
            array.reshape(-1)[:1] = 0  # as a caller that has loaded it may

    return check


def test_an_increment_holds_what_changed_and_comes_back_exactly(tmp_path, whole):
    checkpoints = filled(tmp_path, 1, kept=9)
    full = checkpoints.size_bytes(1)
    for number in range(2, 6):
        saved = save(checkpoints, number)
        assert 0 < saved.written_bytes < full / 10
        files = [path.stat().st_size for path in (tmp_path / f"{number:08d}").iterdir() if path.name != MANIFEST]
        assert saved.size_bytes == sum(files)
    assert kinds(checkpoints) == [1, -2, -3, -4, -5]
    assert len({(tmp_path / f"{number:08d}" / ARRAYS).stat().st_ino for number in range(1, 6)}) == 1
    for number in range(1, 6):
        whole(Checkpoints.existing(tmp_path).read(number), number)
    number, *found = Checkpoints(tmp_path, 9).load()
    whole(found, number)
    with checkpoints.opened(4, lambda name: name == "rows") as (state, arrays):
        assert state == state_of(4)
        assert np.array_equal(next(iter(arrays)), arrays_of(4)["rows"])
    with checkpoints.opened(4, unchanged=True) as (state, _):
        assert state == state_of(1)


def test_the_first_of_a_process_is_a_full_one_and_so_is_one_that_must_be(tmp_path):
    checkpoints = filled(tmp_path, 2, kept=9)
    again = Checkpoints(tmp_path, 9)
    save(again, 3)
    save(again, 4)
    save(again, 5, full=True)
    save(again, 6)
    assert kinds(checkpoints) == [1, -2, 3, -4, 5, -6]
    assert (tmp_path / "00000006" / ARRAYS).stat().st_ino == (tmp_path / "00000005" / ARRAYS).stat().st_ino


def test_so_many_are_increments_at_most(tmp_path):
    assert kinds(filled(tmp_path / "two", 7, kept=9, increments_max=2)) == [1, -2, -3, 4, -5, -6, 7]
    assert kinds(filled(tmp_path / "none", 3, kept=9, increments_max=0)) == [1, 2, 3]


def test_a_full_one_follows_when_increments_take_more_than_it(tmp_path):
    checkpoints, random = Checkpoints(tmp_path, 99), np.random.default_rng(0)
    before = random.random(10_000)
    for _ in range(12):
        checkpoints.save({"a": before}, {})
        before = before.copy()
        before[:4_000] = random.random(4_000)
    # Of 10,000 numbers 4,000 differ from the full one's: three such increments are more than it.
    assert kinds(checkpoints) == [1, -2, -3, -4, 5, -6, -7, -8, 9, -10, -11, -12]


def test_small_ones_are_full(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FULL_BYTES_MIN", 1 << 20)
    assert kinds(filled(tmp_path, 3)) == [1, 2, 3]


def test_the_full_one_makes_room_and_its_increments_are_whole(tmp_path, whole):
    checkpoints = filled(tmp_path, 5, kept=2)
    assert kinds(checkpoints) == [-4, -5]
    number, *found = checkpoints.load()
    whole(found, number)
    whole(checkpoints.read(4), 4)


def test_one_that_shares_nothing_with_the_latest_stays(tmp_path, whole, caplog):
    checkpoints = filled(tmp_path, 3, kept=2)
    again = Checkpoints(tmp_path, 2)
    for number in range(4, 9):
        save(again, number)
        assert kinds(again) == {
            4: [-3, 4], 5: [-3, 4, -5], 6: [-3, -5, -6], 7: [-3, -6, -7], 8: [-3, -7, -8],
        }[number]  # fmt: skip
    for number in range(9, 12):  # more that make room at once change nothing
        save(again, number, pinned={number - 1, number - 2})
    save(again, 12)
    assert kinds(again) == [-3, -11, -12]
    flip(tmp_path / "00000012" / ARRAYS)
    number, *found = checkpoints.load()
    whole(found, number)
    assert number == 3
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
    # The next one cannot build on it, and says so.
    save(again, 13)
    assert kinds(again)[-1] == 13
    assert "checkpoint 13 is a full one, because the file of the latest full one is damaged" in caplog.text
    number, *found = Checkpoints(tmp_path, 2).load()
    whole(found, number)
    assert number == 13


@pytest.mark.parametrize("name", [ARRAYS, CHANGES, MANIFEST])
@pytest.mark.parametrize("how", ["cut", "flip", "missing", "empty"])
def test_after_a_damaged_increment_one_before_is_taken(tmp_path, whole, name, how):
    checkpoints = filled(tmp_path, 1)
    again = Checkpoints(tmp_path, 3)
    save(again, 2)
    save(again, 3)
    path = tmp_path / "00000003" / name
    {
        "cut": cut, "flip": flip, "missing": lambda path: path.unlink(), "empty": lambda path: path.write_bytes(b""),
    }[how](path)  # fmt: skip
    number, *found = checkpoints.load()
    shared = name == ARRAYS and how != "missing"  # another link is not missing
    assert number == (1 if shared else 2)
    whole(found, number)
    with pytest.raises(CheckpointError, match="00000003 cannot be used"):
        checkpoints.read(3)


def test_changes_that_the_manifest_does_not_name_are_not_taken(tmp_path, whole):
    checkpoints = filled(tmp_path, 2)
    save(Checkpoints(tmp_path, 3), 3)
    (tmp_path / "00000003" / CHANGES).write_bytes((tmp_path / "00000002" / CHANGES).read_bytes())
    number, *found = checkpoints.load()
    assert number == 2
    whole(found, number)


def test_where_files_cannot_be_linked_each_one_is_full(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert kinds(filled(tmp_path, 3)) == [1, 2, 3]


def test_where_the_one_before_was_taken_away_the_next_one_is_full(tmp_path, whole):
    checkpoints = filled(tmp_path, 2)
    checkpoints.remove(1)
    checkpoints.remove(2)
    checkpoints.save(arrays_of(3), state_of(3))
    assert kinds(checkpoints) == [1]
    whole(checkpoints.load()[1:], 3)


@pytest.mark.parametrize("step", ["link", "array_writer", "_sum_and_size", "_sync"])
def test_a_full_disk_loses_nothing_and_the_next_one_is_whole(tmp_path, monkeypatch, whole, step):
    checkpoints = filled(tmp_path, 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "link" else checkpoint_module, step, full)
        if step == "link":
            patch.setattr(checkpoint_module, "array_writer", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(checkpoints, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002"]
    whole(checkpoints.load()[1:], 2)
    save(checkpoints, 3)
    save(checkpoints, 4)
    whole(checkpoints.load()[1:], 4)


@pytest.mark.parametrize("step", ["link", "array_writer", "_sum_and_size", "_sync"])
def test_killed_while_writing_an_increment_the_one_before_stays(tmp_path, monkeypatch, whole, step):
    checkpoints = filled(tmp_path, 2)

    def killed(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "link" else checkpoint_module, step, killed)
        with pytest.raises(KilledError):
            save(checkpoints, 3)
    again = Checkpoints(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002"]
    whole(again.load()[1:], 2)
    save(again, 3)
    save(again, 4)
    assert kinds(again)[-2:] == [3, -4]
    whole(again.load()[1:], 4)


@pytest.mark.parametrize("beside", [False, True], ids=["here", "in a copy"])
@pytest.mark.parametrize("step", [step for step in STEPS if step.startswith("checkpoint")])
def test_really_killed_while_writing_one_of_both_is_there_and_whole(tmp_path, whole, step, beside):
    """kill -9, in a process of its own; of a copy it kills the copy, which its process outlives."""
    filled(tmp_path, 1)
    armed = []

    def reached(at):
        if at == step and armed:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        checkpoints = Checkpoints(tmp_path, 3, reached=reached)
        checkpoints.save(arrays_of(2), state_of(2))
        armed.append(True)
        if beside:
            checkpoints.begin_in_copy(lambda: (arrays_of(3), state_of(3)))()
        else:
            checkpoints.save(arrays_of(3), state_of(3))

    done = run_forked(work)
    if beside and step == "checkpoint_state":
        assert "the copy of the process that wrote it was killed by signal 9" in done.stderr
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = Checkpoints(tmp_path, 3)
    number, *found = checkpoints.load()
    assert number == (3 if step == "checkpoint_clean" else 2)
    whole(found, number)
    assert all(path.name.isdigit() for path in tmp_path.iterdir())
    save(checkpoints, number + 1)
    whole(checkpoints.load()[1:], number + 1)


def test_a_pinned_increment_stays_whole_and_can_be_stripped(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    for number in range(1, 6):
        save(checkpoints, number, pinned={2})
    assert kinds(checkpoints) == [-2, -5]
    again = Checkpoints(tmp_path, 1)
    save(again, 6, pinned={2})
    assert kinds(again) == [-2, 6]
    again.strip(2, lambda name: name == "rows", lambda state: {"number": state["number"]})
    assert kinds(again) == [2, 6]
    arrays, state = again.read(2)
    assert state == {"number": 2}
    assert list(arrays) == ["rows"]
    assert np.array_equal(arrays["rows"], arrays_of(2)["rows"])
    (left,) = (tmp_path / "00000002").glob("*.zst")  # nothing of what it was
    assert left.stat().st_nlink == 1


def test_stripping_one_harms_no_other_that_shares_its_file(tmp_path, whole):
    checkpoints = filled(tmp_path, 4, kept=9)
    for number in (1, 3):
        checkpoints.strip(number, lambda name: name == "number", dict)
    whole(checkpoints.read(2), 2)
    whole(checkpoints.load()[1:], 4)


def test_one_of_the_format_before_is_followed_by_a_full_one(tmp_path, whole):
    filled(tmp_path, 2)
    as_safetensors(tmp_path / "00000002")
    checkpoints = Checkpoints(tmp_path, 3)
    whole(checkpoints.load()[1:], 2)
    save(checkpoints, 3)
    save(checkpoints, 4)
    save(checkpoints, 5)
    save(checkpoints, 6)
    assert kinds(checkpoints) == [2, -4, -5, -6]  # the old one shares nothing with the latest


def test_another_worker_copies_all_that_an_increment_needs(tmp_path, whole):
    checkpoints = filled(tmp_path / "data" / "worker-1" / "checkpoints", 3)
    shared = SharedCheckpoints(str(tmp_path / "shared"), interval_s=0.0, executor=AtOnce())
    shared.step(checkpoints.folder / "00000003", 3, "worker-1")
    for place, url, siblings in (
        ("one", str(tmp_path / "shared"), tmp_path / "nothing"), ("other", None, tmp_path / "data"),
    ):  # fmt: skip
        mine = tmp_path / place / "checkpoints"
        assert fetch(url, siblings, mine) is not None
        number, *found = Checkpoints(mine, 3).load()
        whole(found, number)
        assert number == 3


# --- a copy of the process ---------------------------------------------------------------------------------------


def test_a_copy_writes_what_was_there_when_it_was_begun(tmp_path, whole):
    checkpoints, held = filled(tmp_path, 1), [2]
    complete = checkpoints.begin_in_copy(lambda: (arrays_of(held[0]), state_of(held[0])))
    held[0] = 7
    assert checkpoints.load()[0] == 1
    saved = complete()
    assert kinds(checkpoints) == [1, -2]
    assert saved.written_bytes == (tmp_path / "00000002" / CHANGES).stat().st_size
    whole(checkpoints.load()[1:], 2)
    checkpoints.begin_in_copy(lambda: (arrays_of(3), state_of(3)), full=True)()
    assert kinds(checkpoints) == [1, -2, 3]


def test_what_a_copy_meets_is_one_line_and_leaves_nothing(tmp_path, whole):
    checkpoints = filled(tmp_path, 1)

    def full():
        raise OSError(28, "No space left on device")

    for meets, line in (
        (full, "No space left on device"),
        (lambda: {}[0], "the copy of the process that wrote it failed: KeyError: 0"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the copy of the process that wrote it was killed by signal 9"),
        (lambda: os._exit(3), "the copy of the process that wrote it ended with status 3"),
        (lambda: sys.exit(1), "SystemExit"),
    ):
        with pytest.raises(CheckpointError, match="cannot write checkpoints to") as error:
            checkpoints.begin_in_copy(meets)()
        assert line in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    checkpoints.begin_in_copy(lambda: (arrays_of(2), state_of(2)))()
    whole(checkpoints.load()[1:], 2)


def test_a_copy_that_hangs_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("online.worker.process_copy.WORK_S_MAX", 0.2)
    checkpoints = filled(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"it took longer than 0\.2 s"):
        checkpoints.begin_in_copy(signal.pause)()
    assert checkpoints.load()[0] == 1


def test_where_the_system_makes_no_copy_it_is_written_here(tmp_path, monkeypatch, whole, caplog):
    def refused():
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", refused)
    checkpoints = filled(tmp_path, 1)
    checkpoints.begin_in_copy(lambda: (arrays_of(2), state_of(2)))()
    whole(checkpoints.load()[1:], 2)
    assert "this process cannot be copied ([Errno 12] Cannot allocate memory)" in caplog.text


def test_a_copy_ends_with_the_process_that_made_it(tmp_path):
    """Else it would keep the lock of the folder, and the ports, from the worker that is started next."""
    said = tmp_path / "copy"

    def work():
        said.write_text(f"{os.getpid()} {len(os.listdir('/proc/self/fd'))}")
        time.sleep(60)

    def dies():
        with (tmp_path / "held").open("w"):
            begin_in_copy(work)
            while not said.exists() or not said.read_text():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_forked(dies).returncode == -signal.SIGKILL
    pid, descriptors = (tmp_path / "copy").read_text().split()
    assert int(descriptors) <= 5  # standard ones, the pipe, and the folder that is listed
    for _ in range(200):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        signal.sigtimedwait([], 0.05)
    os.kill(int(pid), signal.SIGKILL)
    pytest.fail("the copy lives on")
