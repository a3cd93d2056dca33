"""Checkpoints that workers share: the newest whole one is copied, and a forgotten user's copy is replaced."""

import shutil
import uuid
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from online.worker import shared_checkpoints
from online.worker.checkpoint import ARRAYS, MANIFEST, Checkpoints
from online.worker.shared_checkpoints import SharedCheckpoints, fetch


class AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture(params=["path", "file", "memory"])
def url(request, tmp_path) -> str:
    return {
        "path": str(tmp_path / "shared"),
        "file": f"file://{tmp_path / 'shared'}",
        "memory": f"memory://{uuid.uuid4().hex}",
    }[request.param]


def written(folder: Path, count: int) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", 8)
    for number in range(1, count + 1):
        checkpoints.save({"a": np.full(50, number)}, {"number": number})
    return checkpoints


def share(url: str, checkpoints: Checkpoints, number: int) -> SharedCheckpoints:
    shared = SharedCheckpoints(url, interval_s=0.0, executor=AtOnce())
    shared.step(checkpoints.folder / f"{number:08d}", number, "worker-1")
    return shared


def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "joiner" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_shared_copy_is_fetched_with_its_number(tmp_path, url) -> None:
    share(url, written(tmp_path / "elsewhere", 7), 7)
    mine = empty(tmp_path)
    assert fetch(url, tmp_path / "data", mine) is not None
    number, arrays, state = Checkpoints(mine, 2).load()
    assert (number, state["number"], int(arrays["a"][0])) == (7, 7, 7)


def test_the_newest_of_all_is_fetched(tmp_path, url) -> None:
    share(url, written(tmp_path / "elsewhere", 2), 2)
    written(tmp_path / "data" / "sibling", 3)
    mine = empty(tmp_path)
    fetch(url, tmp_path / "data", mine)
    assert Checkpoints(mine, 2).load()[2]["number"] == 3


def test_a_damaged_one_is_passed_over(tmp_path, url) -> None:
    share(url, written(tmp_path / "elsewhere", 2), 2)
    newest = written(tmp_path / "data" / "sibling", 3).folder / "00000003" / ARRAYS
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    mine = empty(tmp_path)
    fetch(url, tmp_path / "data", mine)
    assert Checkpoints(mine, 2).load()[2]["number"] == 2


def test_a_copy_without_its_manifest_does_not_count(tmp_path, url) -> None:
    checkpoints = written(tmp_path / "elsewhere", 1)
    share(url, checkpoints, 1)
    files, root = shared_checkpoints._opened(url)
    half = f"{root}/{10**19 - 1:020d}-worker-2-{9:08d}"
    files.makedirs(half)
    files.put_file(str(checkpoints.folder / "00000001" / ARRAYS), f"{half}/{ARRAYS}")
    mine = empty(tmp_path)
    fetch(url, tmp_path / "data", mine)
    assert Checkpoints(mine, 2).load()[0] == 1


def test_one_that_makes_room_while_it_is_copied_is_passed_over(tmp_path, monkeypatch) -> None:
    theirs = written(tmp_path / "data" / "sibling", 3)
    opened = shared_checkpoints._opened

    def opened_late(url: str) -> Any:
        if url.endswith("00000003"):
            shutil.rmtree(url, ignore_errors=True)
        return opened(url)

    monkeypatch.setattr(shared_checkpoints, "_opened", opened_late)
    mine = empty(tmp_path)
    assert fetch(None, tmp_path / "data", mine) == str(theirs.folder / "00000002")
    assert [path.name for path in mine.iterdir()] == ["00000002"]


def test_nothing_to_copy_leaves_an_empty_folder(tmp_path, url) -> None:
    mine = empty(tmp_path)
    assert fetch(url, tmp_path / "data", mine) is None
    assert fetch("unheardof://bucket", tmp_path / "data", mine) is None
    assert not list(mine.iterdir())


def test_one_copy_stays_and_a_forgotten_users_is_replaced_at_once(tmp_path, url) -> None:
    seconds = 100.0
    checkpoints = written(tmp_path / "elsewhere", 4)
    shared = SharedCheckpoints(url, interval_s=600.0, executor=AtOnce(), monotonic=lambda: seconds)

    def step(number: int) -> None:
        shared.step(checkpoints.folder / f"{number:08d}", number, "worker-1")

    step(1)
    assert (shared.copied, shared.waits) == (1, False)
    seconds += 5.0
    step(2)
    assert shared.copied == 1
    shared.forget_before(4)
    step(3)
    assert (shared.copied, shared.waits) == (1, True)
    step(4)
    assert (shared.copied, shared.waits) == (4, False)
    files, root = shared_checkpoints._opened(url)
    (left,) = files.ls(root, detail=False)
    assert str(left).endswith("00000004")
    assert files.exists(f"{left}/{MANIFEST}")


def test_a_copy_that_fails_is_tried_again_later(tmp_path) -> None:
    seconds = 100.0
    checkpoints = written(tmp_path / "elsewhere", 1)
    blocked = tmp_path / "shared"
    blocked.write_text("a file stands where the folder should be")
    shared = SharedCheckpoints(str(blocked), interval_s=600.0, executor=AtOnce(), monotonic=lambda: seconds)
    folder = checkpoints.folder / "00000001"
    shared.step(folder, 1, "worker-1")
    assert shared.copied is None
    blocked.unlink()
    shared.step(folder, 1, "worker-1")
    assert shared.copied is None
    seconds += shared_checkpoints.RETRY_S
    shared.step(folder, 1, "worker-1")
    assert shared.copied == 1
