"""A checkpoint is whole or it is not there; what stood there before stays until the next one is whole."""

import hashlib
import json
import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from online.worker import checkpoint as checkpoint_module
from online.worker.checkpoint import ARRAYS, MANIFEST, OLD_ARRAYS, SAFETENSORS, STATE, CheckpointError, Checkpoints
from online.worker.steps import STEPS
from tests.forked import run_forked

ODD = {
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "digests": np.array([2**64 - 1], np.uint64),
    "bytes": np.arange(5, dtype=np.uint8),
}


def arrays_of(number):
    return {**ODD, "number": np.full(100, number, np.float64)}


def filled(folder, count, kept=3):
    checkpoints = Checkpoints(folder, kept)
    for number in range(1, count + 1):
        checkpoints.save(arrays_of(number), {"number": number, "random": 2**127 + number, "text": "Ä"})
    return checkpoints


def test_what_is_saved_comes_back_exactly(tmp_path, same):
    saved = Checkpoints(tmp_path / "new" / "folder", 3)
    assert saved.load() is None
    said = saved.save(arrays_of(1), {"number": 1, "random": 2**127 + 1, "text": "Ä"})
    number, arrays, state = Checkpoints(tmp_path / "new" / "folder", 3).load()
    assert number == said.number == 1
    assert same(arrays, {name: np.asarray(array, order="C") for name, array in arrays_of(1).items()})
    assert state == {"number": 1, "random": 2**127 + 1, "text": "Ä"}
    files = (tmp_path / "new" / "folder" / "00000001").iterdir()
    assert said.size_bytes == sum(path.stat().st_size for path in files if path.name != MANIFEST)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_only_the_latest_are_kept_and_numbers_go_up_across_restarts(tmp_path, kept):
    filled(tmp_path, 4, kept)
    again = Checkpoints(tmp_path, kept)
    assert again.save(arrays_of(5), {}).number == 5
    assert again.numbers() == [5 - number for number in reversed(range(kept))]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:08d}" for number in again.numbers()]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def manifest_of(folder, *names, number=checkpoint_module.FORMAT):
    """A manifest whose sums are right for these files, as another program might write it."""
    found = {name: (folder / name).read_bytes() for name in names}
    files = {name: [hashlib.sha256(data).hexdigest(), len(data)] for name, data in found.items()}
    content = {"format": number, "files": files, "thinned": False}
    return json.dumps(content | {"sum": hashlib.sha256(json.dumps(content).encode()).hexdigest()})


DAMAGES = {
    **{f"{name}-{how.__name__}": (name, how) for name in (ARRAYS, MANIFEST) for how in (cut, flip)},
    **{f"{name}-missing": (name, lambda path: path.unlink()) for name in (ARRAYS, MANIFEST)},
    **{f"{name}-empty": (name, lambda path: path.write_bytes(b"")) for name in (ARRAYS, MANIFEST)},
    "another-format": (MANIFEST, lambda path: rewrite(path, format=1)),
    "no-format": (MANIFEST, lambda path: path.write_text("{}")),
    "a-list": (MANIFEST, lambda path: path.write_text("[1]")),
    "files-of-another-kind": (MANIFEST, lambda path: rewrite(path, files=[1])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_a_damaged_checkpoint_the_one_before_is_taken_and_the_reason_logged(tmp_path, caplog, damage):
    name, how = DAMAGES[damage]
    checkpoints = filled(tmp_path, 3)
    how(tmp_path / "00000003" / name)
    number, arrays, state = checkpoints.load()
    assert (number, state["number"], arrays["number"][0]) == (2, 2, 2.0)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "00000003 cannot be used, the one before is tried: " in record.message
    assert checkpoints.save(arrays_of(9), {}).number == 4
    assert checkpoints.load()[0] == 4


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_no_flipped_bit_and_no_missing_end_goes_unnoticed(tmp_path, caplog, name):
    caplog.set_level(logging.CRITICAL)
    checkpoints = filled(tmp_path, 2)
    path = tmp_path / "00000002" / name
    whole = path.read_bytes()

    @given(st.integers(0, 8 * len(whole) - 1), st.integers(0, len(whole) - 1))
    @hypothesis_settings(max_examples=60)
    def unharmed(bit, length):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        for content in (bytes(damaged), whole[:length]):
            path.write_bytes(content)
            number, arrays, state = checkpoints.load()
            assert number == state["number"] == arrays["number"][0] == 1

    unharmed()
    path.write_bytes(whole)
    assert checkpoints.load()[0] == 2


def test_the_manifest_says_no_more_and_no_less_than_was_written(tmp_path):
    checkpoints = filled(tmp_path, 2)
    path = tmp_path / "00000002" / MANIFEST
    manifest = json.loads(path.read_text())
    for changed in ({**manifest, "files": {}}, {**manifest, "more": 1}, {**manifest, "sum": "0"}, [manifest]):
        path.write_text(json.dumps(changed))
        assert checkpoints.load()[0] == 1
    path.write_text(manifest_of(path.parent))  # a right sum over nothing
    assert checkpoints.load()[0] == 1


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_what_may_not_be_read_is_passed_over_too(tmp_path, monkeypatch, name):
    checkpoints = filled(tmp_path, 2)
    opened = Path.open

    def refused(path, *args, **kwargs):
        if path.parent.name == "00000002" and path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint_module.Path, "open", refused)
    assert checkpoints.load()[0] == 1


def test_if_all_checkpoints_are_damaged_the_operator_decides(tmp_path):
    checkpoints = filled(tmp_path, 2)
    cut(tmp_path / "00000001" / ARRAYS)
    (tmp_path / "00000002" / ARRAYS).unlink()
    with pytest.raises(CheckpointError) as error:
        checkpoints.load()
    message = str(error.value)
    assert "00000001: arrays.zst is not what was written" in message
    assert "00000002" in message
    assert f"move {tmp_path} away to start anew" in message
    assert "\n" not in message


class KilledError(BaseException):
    """As kill -9: nothing that would clean up is run."""


@pytest.mark.parametrize("step", ["mkdir", "array_writer", "_sum_and_size", "_sync", "rename"])
def test_killed_while_writing_the_one_before_stays_and_what_is_left_over_goes(tmp_path, monkeypatch, step):
    checkpoints = filled(tmp_path, 2)

    def killed(*_, **__):
        raise KilledError

    where = checkpoint_module.Path if step in {"mkdir", "rename"} else checkpoint_module
    with monkeypatch.context() as patch:
        patch.setattr(where, step, killed)
        with pytest.raises(KilledError):
            checkpoints.save(arrays_of(3), {"number": 3})
    assert checkpoints.numbers() == [1, 2]
    assert checkpoints.load()[0] == 2
    again = Checkpoints(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002"]
    assert again.save(arrays_of(3), {"number": 3}).number == 3


@pytest.mark.parametrize("step", [step for step in STEPS if step.startswith("checkpoint")])
def test_really_killed_while_writing_one_of_both_is_there_and_whole(tmp_path, step):
    """kill -9, in a process of its own."""
    filled(tmp_path, 2)

    def reached(at):
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        checkpoints = Checkpoints(tmp_path, 2, reached=reached)
        checkpoints.save({"number": np.full(100_000, 3.0)}, {"number": 3})

    done = run_forked(work)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = Checkpoints(tmp_path, 2)
    number, arrays, state = checkpoints.load()
    assert number == state["number"] == arrays["number"][0] == (3 if step == "checkpoint_clean" else 2)
    assert all(path.name.isdigit() for path in tmp_path.iterdir())
    assert checkpoints.save(arrays_of(9), {"number": 9}).number == number + 1
    assert checkpoints.load()[0] == number + 1


def test_everything_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    done = []
    sync, rename = checkpoint_module._sync, checkpoint_module.Path.rename
    monkeypatch.setattr(checkpoint_module, "_sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(checkpoint_module.Path, "rename", lambda path, to: (done.append("rename"), rename(path, to))[1])
    Checkpoints(tmp_path / "c", 3).save(arrays_of(1), {})
    assert done == [ARRAYS, MANIFEST, "writing-1", "rename", "c"]


@pytest.mark.parametrize("step", ["array_writer", "_sync"])
def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path, monkeypatch, step):
    checkpoints = filled(tmp_path, 2, kept=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, step, full)
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(arrays_of(3), {"number": 3})
    assert str(error.value) == (
        f"cannot write checkpoints to {tmp_path} (No space left on device): free space or set NEXTCLICK_DATA_DIR"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"]
    assert checkpoints.load()[0] == 2
    assert checkpoints.save(arrays_of(3), {"number": 3}).number == 3


def test_a_disk_that_is_really_full_is_one_clear_line_too(tmp_path):
    """A limit on the size of files stands in for a full disk: what is buffered is refused once more later."""

    def work():
        checkpoints = Checkpoints(tmp_path, 3)
        checkpoints.save({"a": np.zeros(10)}, {})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(CheckpointError) as refused:
            checkpoints.save({"a": np.random.default_rng(0).random(100_000)}, {})
        return f"{refused.value}\n{checkpoints.numbers()} {len(list(checkpoints.folder.iterdir()))}\n"

    done = run_forked(work)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write checkpoints to {tmp_path} (")
    assert done.stdout.endswith("free space or set NEXTCLICK_DATA_DIR\n[1] 1\n")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=f"cannot write checkpoints to {tmp_path}/file/c"):
        Checkpoints(tmp_path / "file" / "c", 3)


def test_files_that_are_not_ours_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints = filled(tmp_path, 5, kept=1)
    assert checkpoints.numbers() == [5]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_checkpoint_copied_from_elsewhere_can_be_restored(tmp_path):
    filled(tmp_path / "a", 3)
    Checkpoints(tmp_path / "b", 3)
    shutil.copytree(tmp_path / "a" / "00000003", tmp_path / "b" / "00000003")
    assert Checkpoints(tmp_path / "b", 3).load()[0] == 3


def test_sums_that_are_right_for_what_is_no_file_of_arrays_do_not_help(tmp_path):
    checkpoints = filled(tmp_path, 2)
    path = tmp_path / "00000002"
    whole = (path / ARRAYS).read_bytes()
    for wrong in (b"no array", whole[: len(whole) // 2], whole[100:], b""):
        (path / ARRAYS).write_bytes(wrong)
        (path / MANIFEST).write_text(manifest_of(path, ARRAYS))
        assert checkpoints.load()[0] == 1
    (path / ARRAYS).write_bytes(whole)
    (path / MANIFEST).write_text(manifest_of(path, ARRAYS))
    assert checkpoints.load()[0] == 2


def as_safetensors(path):
    """Turns a checkpoint into one of the format before."""
    checkpoints = Checkpoints.existing(path.parent)
    arrays, state = checkpoints.read(int(path.name))
    shutil.rmtree(path)
    path.mkdir()
    save_file(arrays, path / OLD_ARRAYS)
    (path / STATE).write_text(json.dumps(state))
    (path / MANIFEST).write_text(manifest_of(path, OLD_ARRAYS, STATE, number=SAFETENSORS))


def test_one_of_the_format_before_is_read_and_the_next_one_is_of_this(tmp_path, same):
    checkpoints = filled(tmp_path, 2)
    arrays, state = checkpoints.read(2)
    as_safetensors(tmp_path / "00000002")
    number, loaded, found = Checkpoints(tmp_path, 3).load()
    assert number == 2
    assert same(loaded, arrays)
    assert found == state
    with checkpoints.opened(2, lambda name: name == "number") as (found, some):
        assert found == state
        assert [array[0] for array in some] == [2.0]
    checkpoints.strip(2, lambda name: name == "number", dict)
    assert checkpoints.stripped() == {2}
    assert (tmp_path / "00000002" / ARRAYS).exists()


@pytest.mark.parametrize("name", [OLD_ARRAYS, STATE, MANIFEST])
@pytest.mark.parametrize("how", [cut, flip, lambda path: path.unlink()], ids=["cut", "flip", "missing"])
def test_a_damaged_one_of_the_format_before_is_passed_over(tmp_path, name, how):
    checkpoints = filled(tmp_path, 2)
    as_safetensors(tmp_path / "00000002")
    how(tmp_path / "00000002" / name)
    assert checkpoints.load()[0] == 1


# --- pinned ------------------------------------------------------------------------------------------------------


def test_what_is_pinned_stays_until_it_is_not_pinned_any_more(tmp_path):
    checkpoints = filled(tmp_path, 3, kept=2)
    for number, pinned, there in [
        (4, {2}, [2, 3, 4]), (5, {2, 4}, [2, 4, 5]), (6, {2, 4, 77}, [2, 4, 5, 6]), (7, {4}, [4, 6, 7]),
        (8, (), [7, 8]),
    ]:  # fmt: skip
        assert checkpoints.next_number() == number
        checkpoints.save(arrays_of(number), {"number": number}, pinned)
        assert checkpoints.numbers() == there


def test_any_checkpoint_can_be_read_and_what_cannot_is_named(tmp_path):
    checkpoints = filled(tmp_path, 3)
    arrays, state = checkpoints.read(2)
    assert (arrays["number"][0], state["number"]) == (2, 2)
    cut(tmp_path / "00000002" / ARRAYS)
    for number in (2, 9):
        with pytest.raises(CheckpointError, match=f"{number:08d} cannot be used"):
            checkpoints.read(number)


def test_where_the_latest_are_damaged_a_pinned_one_is_better_than_none(tmp_path):
    checkpoints = filled(tmp_path, 1, kept=1)
    for number in (2, 3):
        checkpoints.save(arrays_of(number), {"number": number}, pinned={1})
    cut(tmp_path / "00000003" / ARRAYS)
    assert checkpoints.load()[0] == 1


def test_killed_while_an_old_one_is_removed_no_half_of_it_is_left(tmp_path, monkeypatch):
    checkpoints = filled(tmp_path, 2, kept=2)

    def killed(path, **_):
        (path / ARRAYS).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(arrays_of(3), {})
    monkeypatch.undo()
    again = Checkpoints(tmp_path, 2)
    assert again.numbers() == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000003"]
    assert again.load()[0] == 3


def test_if_all_checkpoints_have_an_older_format_one_line_says_what_to_do(tmp_path):
    """It must not begin from nothing without a word."""
    saved = filled(tmp_path, 2)
    for number in saved.numbers():
        rewrite(tmp_path / f"{number:08d}" / MANIFEST, format=SAFETENSORS - 1)
    with pytest.raises(CheckpointError) as error:
        saved.load()
    line = str(error.value)
    assert "\n" not in line
    old, now = SAFETENSORS - 1, checkpoint_module.FORMAT
    assert f"is of format {old}, this version of nextclick reads {now}: go on with the version that wrote it" in line
    assert "or learn from the topic again, in a new folder (--data-dir FOLDER --from-beginning)" in line
    assert f"move {tmp_path} away to start anew" in line
