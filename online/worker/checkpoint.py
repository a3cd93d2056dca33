"""Checkpoints: everything the worker knows, with the offsets to read next, as one atomic version on disk.

A checkpoint is a folder: `arrays.safetensors`, `state.json`, and `manifest.json` with their sizes and SHA-256 sums. It
is written under a temporary name, synced, and renamed; so a folder with its final name is complete, and the sums tell
whether the disk has kept it, the manifest itself included. Nothing in it is executable: no pickle.

A checkpoint from which no worker may resume any more can be stripped to the parts that a rollback needs.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from online.worker.steps import StepHook, no_hook

FORMAT = 8
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
ARRAYS, STATE, MANIFEST = "arrays.safetensors", "state.json", "manifest.json"

log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; one line that names the path and says what to do."""


class DiskFullError(CheckpointError):
    """There is no space for a checkpoint; the write can be repeated once some is freed."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint."""

    number: int
    size_bytes: int
    seconds: float | None  # duration of the write; None if it was written by an earlier process


class Checkpoints:
    """The latest `kept` checkpoints in one folder, numbered upwards, and those that are pinned.

    So the folder has at most `kept` checkpoints plus the pinned ones, and one more while it is written. The caller of
    `save` names the pinned ones each time; that is part of its saved state, so it survives a crash.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, kept: int, *, reached: StepHook = no_hook) -> None:
        self.folder = folder
        self.kept = kept
        self._reached = reached
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("writing-*"):
                shutil.rmtree(leftover)
            for thin in folder.glob("thin-*"):  # whole, but perhaps not in its place yet
                self._path(int(thin.name.removeprefix("thin-"))).exists() or thin.rename(folder / thin.name[5:])
                shutil.rmtree(thin, ignore_errors=True)
        except OSError as error:
            raise _cannot_write(folder, error) from error

    @classmethod
    def existing(cls, folder: Path) -> "Checkpoints":
        """Opens a folder only to read it, also while a worker writes to it: nothing in it is made or cleaned up."""
        found = cls.__new__(cls)
        found.folder, found.kept, found._reached = folder, 1, no_hook
        return found

    def numbers(self) -> list[int]:
        """Numbers of the complete checkpoints, oldest first. Raises CheckpointError."""
        try:
            return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}"

    def size_bytes(self, number: int) -> int:
        """Returns the size of a checkpoint on disk."""
        return sum(path.stat().st_size for path in self._path(number).iterdir())

    def next_number(self) -> int:
        """Returns the number of the checkpoint that `save` will write next."""
        return max(self.numbers(), default=0) + 1

    def save(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any], pinned: Collection[int] = ()) -> Saved:
        """Writes the next checkpoint, then removes those that are neither among the latest `kept` nor `pinned`. If the
        write fails, earlier checkpoints stay as they are."""
        return self.begin(arrays, state, pinned)()

    def begin(
        self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any], pinned: Collection[int] = ()
    ) -> Callable[[], Saved]:
        """Writes arrays and state, which may change afterwards; the first part of `save`.

        Returns:
            The second part, which takes longest: checksums, and the wait for the disk. Another thread may call it;
            before it returns, nothing else may be saved, and there is no new checkpoint.

        Raises:
            CheckpointError: the disk refuses it; the second part raises it too.
        """
        began = time.monotonic()
        number = self.next_number()
        writing = self._write_content(number, arrays, state)

        def complete() -> Saved:
            size = self._complete(writing, self._path(number))
            self._reached("checkpoint_clean")
            for old in set(self.numbers()[: -self.kept]) - set(pinned):
                self.remove(old)
            return Saved(number, size, time.monotonic() - began)

        return complete

    def _write_content(self, number: int, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> Path:
        """Arrays and state in a folder that is no checkpoint yet -> that folder."""
        writing = self.folder / f"writing-{number}"
        with self._removed_on_error(writing):
            self._reached("checkpoint")
            writing.mkdir()
            save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, writing / ARRAYS)
            self._reached("checkpoint_state")
            (writing / STATE).write_text(json.dumps(state))
        return writing

    def _complete(self, writing: Path, final: Path, *, thinned: bool = False) -> int:
        """What was written gets its manifest, is synced, and gets its final name -> bytes."""
        with self._removed_on_error(writing):
            self._reached("checkpoint_manifest")
            files = {name: _sum_and_size(writing / name) for name in (ARRAYS, STATE)}
            (writing / MANIFEST).write_text(_manifest(files, thinned=thinned))
            for name in (ARRAYS, STATE, MANIFEST):
                _sync(writing / name)
            _sync(writing)
            self._reached("checkpoint_rename")
            writing.rename(final)
            _sync(self.folder)
        return sum(size for _, size in files.values())

    @contextmanager
    def _removed_on_error(self, writing: Path) -> Iterator[None]:
        """What cannot be written goes, and is one CheckpointError."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise _cannot_write(self.folder, error) from error

    def strip(
        self, number: int, keep: Callable[[str], bool], state_of: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        """Leaves of a checkpoint the arrays whose names `keep` wants, and what `state_of` makes of its state: `read`
        gives that, and `load` passes it over.

        Raises:
            CheckpointError: it cannot be read, or the disk is full.
        """
        with self.opened(number, keep) as (state, arrays):
            thin = self.folder / f"thin-{number:08d}"
            writing = self._write_content(number, dict(zip(arrays.names, arrays, strict=True)), state_of(state))
            self._complete(writing, thin, thinned=True)
        self.remove(number)
        thin.rename(self._path(number))
        _sync(self.folder)

    def stripped(self) -> set[int]:
        """Numbers of those that were stripped."""
        return {number for number in self.numbers() if _is_thinned(self._path(number))}

    @contextmanager
    def opened(self, number: int, wanted: Callable[[str], bool] = bool) -> Iterator[tuple[dict[str, Any], "Arrays"]]:
        """A checkpoint's state, and its arrays one at a time: it may be larger than what memory is free.

        Raises:
            CheckpointError: it is not there, or is not whole.
        """
        path = self._path(number)
        try:
            _check(path)
            with safe_open(path / ARRAYS, "numpy") as file:
                yield json.loads((path / STATE).read_text()), Arrays(file, wanted)
        except _UNREADABLE as error:
            raise CheckpointError(f"checkpoint {path} cannot be used: {error}") from error

    def remove(self, number: int) -> None:
        """Renamed first: a crash in between must not leave half a checkpoint under its final name."""
        leaving = self.folder / f"writing-{number}-removed"
        try:
            self._path(number).rename(leaving)
        except OSError as error:
            log.warning("the old checkpoint %s cannot be removed: %s", self._path(number), error)
        shutil.rmtree(leaving, ignore_errors=True)

    def read(self, number: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """One checkpoint's arrays and state.

        Raises:
            CheckpointError: it is not there, or is not whole.
        """
        try:
            return _read(self._path(number))
        except _UNREADABLE as error:
            raise CheckpointError(f"checkpoint {self._path(number)} cannot be used: {error}") from error

    def load(self) -> tuple[int, dict[str, NDArray[Any]], dict[str, Any]] | None:
        """The latest checkpoint that is whole: its number, arrays and state; None where there is none at all.

        Raises:
            CheckpointError: there are checkpoints, but none can be used. Starting anew is for the operator to decide.
        """
        reasons = []
        for number in reversed(self.numbers()):
            path = self._path(number)
            try:
                if _is_thinned(path):
                    raise ValueError("it holds a version's weights only, since a user was forgotten")
                arrays, state = _read(path)
            except _UNREADABLE as error:
                reasons.append(f"{path}: {error}")
                log.error("checkpoint %s cannot be used, the one before is tried: %s", path, error)
                continue
            return number, arrays, state
        if reasons:
            raise CheckpointError(
                f"no checkpoint can be used ({'; '.join(reasons)}); restore one, "
                f"or move {self.folder} away to start anew"
            )
        return None


class Arrays:
    """A checkpoint's arrays, read one at a time."""

    def __init__(self, file: Any, wanted: Callable[[str], bool]) -> None:
        self._file = file
        self.names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 - no mapping

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return map(self._file.get_tensor, self.names)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and state; the checksums are computed meanwhile, and nothing is given out whose sum is wrong."""
    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(_check, path)
        try:
            return load_file(path / ARRAYS), json.loads((path / STATE).read_text())
        finally:
            checked.result()  # what it says of a damaged file wins over what reading it says


def is_whole(path: Path) -> bool:
    """Returns whether a folder is a checkpoint from which a worker may resume, and undamaged."""
    try:
        _check(path)
        return not _is_thinned(path)
    except _UNREADABLE:
        return False


def _is_thinned(path: Path) -> bool:
    """Not, where that cannot be read."""
    try:
        return bool(json.loads((path / MANIFEST).read_text())["thinned"])
    except _UNREADABLE:
        return False


def _check(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    manifest = json.loads(text)
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"it is of format {manifest['format']}, this version of nextclick reads {FORMAT}: go on with the version "
            "that wrote it, or learn from the topic again, in a new folder (--data-dir FOLDER --from-beginning)"
        )
    sums = {name: (digest, size) for name, (digest, size) in manifest["files"].items()}
    if text != _manifest(sums, thinned=manifest["thinned"]):
        raise ValueError(f"{MANIFEST} is not what was written (checksum differs)")
    for name in (ARRAYS, STATE):
        if _sum_and_size(path / name) != sums[name]:
            raise ValueError(f"{name} is not what was written (checksum or size differs)")


def _manifest(files: Mapping[str, tuple[str, int]], *, thinned: bool = False) -> str:
    """The manifest's text, which ends in a sum over what it says: so not a space of it can change unnoticed."""
    content = {"format": FORMAT, "files": files, "thinned": thinned}
    return json.dumps(content | {"sum": hashlib.sha256(json.dumps(content).encode()).hexdigest()})


def _sum_and_size(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_room(error: Exception) -> bool:
    """Whether it says that the disk, or the user's share of it, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _cannot_write(folder: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    kind = DiskFullError if no_room(error) else CheckpointError
    return kind(f"cannot write checkpoints to {folder} ({reason}): free space or set NEXTCLICK_DATA_DIR")
