"""Checkpoints: everything the worker knows, with the offsets to read next, as one atomic version on disk.

A checkpoint is a folder: `arrays.zst` with everything, compressed (online/worker/array_file.py), and `manifest.json`
with sizes and SHA-256 sums. It is written under a temporary name, synced, and renamed; so a folder with its final name
is complete, and the sums tell whether the disk has kept it, the manifest itself included. Nothing in it is executable:
no pickle. Those of format 8, with `arrays.safetensors` and `state.json`, are read too.

Most checkpoints are increments: `arrays.zst` is that of the latest full one, as a hard link, and `changes.zst` says
what has changed since. So each folder holds all that it needs, whichever others are removed or copied; an increment
needs one full one and no other increment; and the disk has the full one's bytes once. A full one is written when the
increments since the latest one take more bytes than that, where the disk knows no links, and when the caller asks.

A checkpoint from which no worker may resume any more can be stripped to the parts that a rollback needs.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from online.worker.array_file import ArrayFile, ArrayFileError, array_writer
from online.worker.process_copy import CopyEndedError, begin_in_copy
from online.worker.steps import StepHook, no_hook

FORMAT = 9
SAFETENSORS = 8  # the format before: not compressed, and never an increment
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
ARRAYS, CHANGES, MANIFEST = "arrays.zst", "changes.zst", "manifest.json"
OLD_ARRAYS = "arrays.safetensors"
STATE = "state.json"  # a file in the format before; now the name of an array of bytes
LEVEL = 1  # of zstd
INCREMENTS_MAX = 100  # after a full one
READERS = 4  # threads that check and unpack a checkpoint
FULL_BYTES_MIN = 1 << 20  # of full checkpoints on which increments build: others are written as fast

State = Mapping[str, Any]
Content = tuple[Mapping[str, NDArray[Any]], State]

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
    written_bytes: int = 0  # of it: an increment shares the rest with the full one


@dataclass(frozen=True)
class _Full:
    """The full checkpoint on which the next increment builds."""

    number: int  # of the latest checkpoint that has its file
    file: tuple[str, int]  # its sum and size
    increments: int = 0  # that build on it
    increments_bytes: int = 0  # of all of these


class Checkpoints:
    """The latest `kept` checkpoints in one folder, numbered upwards, and those that are pinned.

    So the folder has at most `kept` checkpoints plus the pinned ones, and one more while it is written. If the latest
    build on one full checkpoint, the newest that does not is kept too: a disk may damage that one file. The caller of
    `save` names the pinned ones each time; that is part of its saved state, so it survives a crash.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path,
        kept: int,
        *,
        level: int = LEVEL,
        increments_max: int = INCREMENTS_MAX,
        reached: StepHook = no_hook,
    ) -> None:
        """`level`: of zstd's compression; `increments_max`: that may build on one full checkpoint."""
        self.folder = folder
        self.kept = kept
        self._level, self._increments_max = level, increments_max
        self._reached = reached
        self._full: _Full | None = None  # None: the next one is full; always the first of a process
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

    def save(
        self, arrays: Mapping[str, NDArray[Any]], state: State, pinned: Collection[int] = (), *, full: bool = False
    ) -> Saved:
        """Writes the next checkpoint, then removes those that are neither among the latest `kept` nor `pinned`. If the
        write fails, earlier checkpoints stay as they are.

        `full`: whether it must share nothing with earlier ones, nor may later ones."""
        return self.begin(arrays, state, pinned, full=full)()

    def begin(
        self, arrays: Mapping[str, NDArray[Any]], state: State, pinned: Collection[int] = (), *, full: bool = False
    ) -> Callable[[], Saved]:
        """Writes arrays and state, which may change afterwards; the first part of `save`.

        Returns:
            The second part, which takes longest: checksums, and the wait for the disk. Another thread may call it;
            before it returns, nothing else may be saved, and there is no new checkpoint.

        Raises:
            CheckpointError: the disk refuses it; the second part raises it too.
        """
        began, number = time.monotonic(), self.next_number()
        writing, linked = self._make(number, full=full)
        with self._removed_on_error(writing):
            self._write(writing, arrays, state)
        return partial(self._complete_next, number, writing, pinned, linked=linked, began=began)

    def begin_in_copy(
        self, capture: Callable[[], Content], pinned: Collection[int] = (), *, full: bool = False
    ) -> Callable[[], Saved]:
        """Does `begin` at once, whatever the size: a copy of this process captures arrays and state, and writes them.

        Args:
            capture: returns both. What it changes is lost.
            pinned: as for `save`.
            full: as for `save`.

        Raises:
            CheckpointError: as for `begin`.
        """
        began, number = time.monotonic(), self.next_number()
        writing, linked = self._make(number, full=full)
        completed = partial(self._complete_next, number, writing, pinned, linked=linked, began=began)
        with self._removed_on_error(writing):
            try:
                wait = begin_in_copy(lambda: self._write(writing, *capture()))
            except OSError as error:
                log.warning("the checkpoint is written while clicks wait: this process cannot be copied (%s)", error)
                self._write(writing, *capture())
                return completed

        def complete() -> Saved:
            with self._removed_on_error(writing):
                wait()
            return completed()

        return complete

    def _make(self, number: int, *, full: bool) -> tuple[Path, bool]:
        """Makes a folder that is no checkpoint yet. Returns it, and whether the full one's file is linked there."""
        writing, linked = self.folder / f"writing-{number}", False
        with self._removed_on_error(writing):
            self._reached("checkpoint")
            writing.mkdir()
            self._reached("checkpoint_link")
            if not full and self._increment_pays():
                assert self._full is not None
                try:
                    os.link(self._path(self._full.number) / ARRAYS, writing / ARRAYS)
                    linked = True
                except OSError as error:
                    log.info("checkpoint %d is a full one, because the latest cannot be linked: %s", number, error)
        return writing, linked

    def _increment_pays(self) -> bool:
        """Whether the next one is an increment. Increments grow with what has changed since the full one: with a new
        one whenever all of them together are as large as it, about the least is written in the long run."""
        full = self._full
        return full is not None and (
            full.increments < self._increments_max
            and full.increments_bytes <= full.file[1]
            and full.file[1] >= FULL_BYTES_MIN
        )

    def _write(self, writing: Path, arrays: Mapping[str, NDArray[Any]], state: State) -> None:
        """Writes arrays and state into a folder: as changes of the full one's file there, else all of them."""
        if (writing / ARRAYS).exists():
            try:
                with (writing / ARRAYS).open("rb") as file:
                    self._write_file(writing / CHANGES, arrays, state, ArrayFile(file))
            except (OSError, ArrayFileError):  # the full one is damaged; or the disk is full, as it will say again
                (writing / CHANGES).unlink(missing_ok=True)
                (writing / ARRAYS).unlink()  # the link: other checkpoints share the file
            else:
                return
        self._write_file(writing / ARRAYS, arrays, state, None)

    def _write_file(
        self, path: Path, arrays: Mapping[str, NDArray[Any]], state: State, before: ArrayFile | None
    ) -> None:
        with array_writer(path, self._level) as file:
            for name, array in arrays.items():
                file.add(name, array, None if before is None else before.read_if_there(name))
            self._reached("checkpoint_state")
            text = np.frombuffer(json.dumps(state).encode(), np.uint8)
            file.add(STATE, text, None if before is None else before.read_if_there(STATE))

    def _complete_next(
        self, number: int, writing: Path, pinned: Collection[int], *, linked: bool, began: float
    ) -> Saved:
        """The second part of `save`."""
        full = self._full
        self._full = None  # unless all goes well
        increment = (writing / CHANGES).exists()
        if linked and not increment:
            log.warning("checkpoint %d is a full one, because the file of the latest full one is damaged", number)
        files = self._complete(writing, self._path(number), full=full if increment else None)
        written = files[CHANGES if increment else ARRAYS][1]
        if increment and full is not None:
            self._full = _Full(number, full.file, full.increments + 1, full.increments_bytes + written)
        else:
            self._full = _Full(number, files[ARRAYS])
        self._reached("checkpoint_clean")
        for old in set(self._surplus()) - set(pinned):
            self.remove(old)
        size = sum(size for _, size in files.values())
        return Saved(number, size, time.monotonic() - began, written)

    def _surplus(self) -> list[int]:
        """Numbers of those that are not among the latest, nor needed if the full one's file is damaged."""
        numbers = self.numbers()
        old, latest = numbers[: -self.kept], {self._full_file(number) for number in numbers[-self.kept :]}
        if self.kept > 1 and len(latest) == 1:
            others = (n for n in reversed(old) if self._full_file(n) not in latest and not _is_thinned(self._path(n)))
            spare = next(others, None)
            old = [number for number in old if number != spare]
        return old

    def _full_file(self, number: int) -> tuple[int, int] | None:
        """Which file of the disk holds a checkpoint's arrays; None: it cannot be told."""
        for name in (ARRAYS, OLD_ARRAYS):
            try:
                found = (self._path(number) / name).stat()
            except OSError:
                continue
            return found.st_dev, found.st_ino
        return None

    def _complete(
        self, writing: Path, final: Path, *, full: _Full | None = None, thinned: bool = False
    ) -> dict[str, tuple[str, int]]:
        """What was written gets its manifest, is synced, and gets its final name -> sums and sizes of the files.

        `full`: on which it builds, and whose file was written and synced before."""
        with self._removed_on_error(writing):
            self._reached("checkpoint_manifest")
            new = [ARRAYS] if full is None else [CHANGES]
            files = ({} if full is None else {ARRAYS: full.file}) | {n: _sum_and_size(writing / n) for n in new}
            (writing / MANIFEST).write_text(_manifest(FORMAT, files, thinned=thinned))
            for name in (*new, MANIFEST):
                _sync(writing / name)
            _sync(writing)
            self._reached("checkpoint_rename")
            writing.rename(final)
            _sync(self.folder)
        return files

    @contextmanager
    def _removed_on_error(self, writing: Path) -> Iterator[None]:
        """What cannot be written goes, and is one CheckpointError."""
        try:
            yield
        except (OSError, CopyEndedError) as error:
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
            writing, _ = self._make(number, full=True)
            with self._removed_on_error(writing):
                self._write(writing, dict(zip(arrays.names, arrays, strict=True)), state_of(state))
            self._complete(writing, thin, thinned=True)
        self.remove(number)
        thin.rename(self._path(number))
        _sync(self.folder)

    def is_increment(self, number: int) -> bool:
        """Whether a checkpoint holds a full one's file, and what has changed since."""
        return (self._path(number) / CHANGES).exists()

    def stripped(self) -> set[int]:
        """Numbers of those that were stripped."""
        return {number for number in self.numbers() if _is_thinned(self._path(number))}

    @contextmanager
    def opened(
        self, number: int, wanted: Callable[[str], bool] = bool, *, unchanged: bool = False
    ) -> Iterator[tuple[dict[str, Any], "Arrays"]]:
        """A checkpoint's state, and its arrays one at a time: it may be larger than what memory is free.

        `unchanged`: of an increment, what the full one held.

        Raises:
            CheckpointError: it is not there, or is not whole.
        """
        path = self._path(number)
        try:
            _check(path)
            with _opened(path, unchanged=unchanged) as content:
                yield content.state(), Arrays(content, wanted)
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


class _Content(Protocol):
    """The arrays and the state of a checkpoint of any format."""

    @property
    def names(self) -> Sequence[str]: ...
    def read(self, name: str) -> NDArray[Any]: ...
    def state(self) -> dict[str, Any]: ...


class _Compressed:
    """Of this format."""

    def __init__(self, file: ArrayFile) -> None:
        self._file = file
        self.names = [name for name in file.names if name != STATE]

    def read(self, name: str) -> NDArray[Any]:
        return self._file.read(name)

    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._file.read(STATE).tobytes())
        return content


class _Safetensors:
    """Of the format before."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path
        self.names = list(file.keys())

    def read(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = self._file.get_tensor(name)
        return array

    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self._path / STATE).read_text())
        return content


@contextmanager
def _opened(path: Path, *, unchanged: bool = False) -> Iterator[_Content]:
    """Opens a checkpoint without checking its sums. Raises what `_UNREADABLE` names."""
    with ExitStack() as files:
        if not (path / ARRAYS).exists():
            yield _Safetensors(files.enter_context(safe_open(path / OLD_ARRAYS, "numpy")), path)
            return
        arrays = ArrayFile(files.enter_context((path / ARRAYS).open("rb")))
        if not unchanged and (path / CHANGES).exists():
            arrays = ArrayFile(files.enter_context((path / CHANGES).open("rb")), arrays)
        yield _Compressed(arrays)


class Arrays:
    """A checkpoint's arrays, read one at a time."""

    def __init__(self, content: _Content, wanted: Callable[[str], bool]) -> None:
        self._content = content
        self.names = [name for name in content.names if wanted(name)]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return map(self._content.read, self.names)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and state; the checksums are computed meanwhile, and nothing is given out whose sum is wrong."""
    with ThreadPoolExecutor(READERS) as beside:
        checked = beside.submit(_check, path)
        try:
            with _opened(path) as content:
                arrays = beside.map(content.read, content.names)
                return dict(zip(content.names, arrays, strict=True)), content.state()
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
    number = manifest["format"]
    if number not in (FORMAT, SAFETENSORS):
        raise ValueError(
            f"it is of format {number}, this version of nextclick reads {FORMAT}: go on with the version "
            "that wrote it, or learn from the topic again, in a new folder (--data-dir FOLDER --from-beginning)"
        )
    sums = {name: (digest, size) for name, (digest, size) in manifest["files"].items()}
    if text != _manifest(number, sums, thinned=manifest["thinned"]):
        raise ValueError(f"{MANIFEST} is not what was written (checksum differs)")
    files = {OLD_ARRAYS, STATE} if number == SAFETENSORS else {ARRAYS}
    for name in sorted(files | sums.keys() | {name for name in (ARRAYS, CHANGES) if (path / name).exists()}):
        if name not in sums or _sum_and_size(path / name) != sums[name]:
            raise ValueError(f"{name} is not what was written (checksum or size differs)")


def _manifest(number: int, files: Mapping[str, tuple[str, int]], *, thinned: bool = False) -> str:
    """The manifest's text, which ends in a sum over what it says: so not a space of it can change unnoticed."""
    content = {"format": number, "files": files, "thinned": thinned}
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
