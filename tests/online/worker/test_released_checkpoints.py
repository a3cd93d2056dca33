"""Checkpoints of earlier versions go on here, or are refused by one line that says what to do; and this version's
layout is the one that was noted.

`tests/checkpoints/VERSION` has a small one of each, made by that version's own code
(`python -m tests.checkpoints.make`). 0.1.0 was never released. Of its last format only the manifest and the state are
kept, since the manifest is enough to refuse it.
"""

import io
import json
import lzma
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest

from online.worker.checkpoint import FORMAT, MANIFEST, SAFETENSORS, CheckpointError, Checkpoints
from stream.source import Partition
from tests.checkpoints.make import CLICKS, published
from tests.online.conftest import SMALL

ROOT = Path(__file__).resolve().parents[3]
STORED = ROOT / "tests/checkpoints"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FORMATS = {"0.1.0": 7, "0.2.0": 8, "0.3.0": 8, "0.4.0": 9, "0.5.0": 9}
READ = [version for version, number in FORMATS.items() if number in (SAFETENSORS, FORMAT)]
REFUSED = [version for version in FORMATS if version not in READ]
#: Whose checkpoints hold all that the items topic says. Others' workers read it once more.
ITEMS_KEPT = {"0.3.0", "0.4.0", "0.5.0"}


def unpack(version, folder):
    folder.mkdir(parents=True)
    packed = io.BytesIO(lzma.decompress((STORED / version / "checkpoint.tar.xz").read_bytes()))
    with tarfile.open(fileobj=packed) as tar:
        tar.extractall(folder, filter="data")
    return folder


def layout(folder):
    """What a reader has to know of a checkpoint: types and ranks of its arrays, and the state's keys on two levels."""
    found, state = Checkpoints.existing(folder.parent).read(int(folder.name))
    arrays = {name: f"{array.dtype} {array.ndim}" for name, array in found.items()}
    return arrays, {key: sorted(value) if isinstance(value, dict) else None for key, value in state.items()}


def harness_with(harness, version):
    """The broker and the folder as the worker of that version left them."""
    published(harness, CLICKS)
    unpack(version, harness.folder / "checkpoints" / "00000007")
    return harness


def test_there_is_a_small_checkpoint_of_each_version_and_of_this_one():
    assert {path.name for path in STORED.iterdir() if path.is_dir() and path.name[0].isdigit()} == set(FORMATS)
    assert VERSION in FORMATS, "python -m tests.checkpoints.make, and add the version to FORMATS"
    assert max(path.stat().st_size for path in STORED.rglob("*.xz")) < 250_000  # of each: they grow in number


@pytest.mark.parametrize("version", FORMATS)
def test_a_stored_checkpoint_is_of_the_format_that_its_version_wrote(tmp_path, version):
    manifest = json.loads((unpack(version, tmp_path / version) / MANIFEST).read_text())
    assert manifest["format"] == FORMATS[version]


@pytest.mark.parametrize("version", READ)
def test_a_worker_goes_on_with_a_checkpoint_of_an_earlier_version(harness, version):
    loop = harness_with(harness, version).loop()
    assert loop.restore() == 7
    stored, _ = Checkpoints.existing(harness.folder / "checkpoints").read(7)
    restored = loop.learner.to_state()[0]
    assert len(stored) > 150
    same = {name for name, array in stored.items() if name in restored and np.array_equal(array, restored[name])}
    weights = {name for name in stored if name.startswith(("weights.", "ranker.", "store."))}
    assert weights
    assert weights <= same
    assert loop.progress.learned == CLICKS
    assert "i1" in loop.learner.listable.items.unavailable

    loop = harness.drain(loop_started(loop))
    assert loop.progress.learned == CLICKS  # none twice
    assert harness.feed.began_at == [{Partition("items", 0): 1} if version in ITEMS_KEPT else {}]
    assert loop.learner.listable.attributes.title("i1") == "A kettle"
    published(harness, CLICKS + 60, start=CLICKS)
    loop = harness.run()  # from its own checkpoint, as after the next restart
    assert loop.progress.learned == CLICKS + 60
    assert loop.checkpoints.numbers()[-1] > 7
    users = {user for user, top in harness.lists.held.items() if top.items}
    assert len(users) > 10
    assert not harness.dead()


@pytest.mark.parametrize("version", REFUSED)
def test_a_format_that_is_not_read_is_refused_in_one_line_that_says_what_to_do(harness, version):
    with pytest.raises(CheckpointError) as refused:
        harness_with(harness, version).loop().restore()
    message = str(refused.value)
    assert f"it is of format {FORMATS[version]}, this version of nextclick reads {FORMAT}" in message
    assert "go on with the version that wrote it, or learn from the topic again, in a new folder" in message
    assert "--data-dir FOLDER --from-beginning" in message
    assert "\n" not in message
    assert harness.lists.held == {}


def test_the_layout_of_a_checkpoint_changes_only_with_the_version(harness, tmp_path):
    loop = published(harness, CLICKS).run()
    now = layout(loop.checkpoints.folder / f"{loop.checkpoints.numbers()[-1]:08d}")
    noted = layout(unpack(VERSION, tmp_path / "00000001"))
    assert now == noted, (
        "what a checkpoint holds has changed since this version: raise the version in pyproject.toml and make a "
        "checkpoint of it; raise FORMAT in online/worker/checkpoint.py too if earlier ones are no longer read"
    )


def test_the_settings_that_shaped_the_stored_ones_are_those_of_the_tests(tmp_path):
    unpack(VERSION, tmp_path / "00000001")
    _, state = Checkpoints.existing(tmp_path).read(1)
    assert state["shape"]["width"] == SMALL["width"]


def loop_started(loop):
    loop.start()
    return loop
