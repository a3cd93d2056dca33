"""The worker's folder: only one worker may use it, and each worker of a group has its own."""

import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from online.config.settings import Settings
from online.worker.checkpoint import CheckpointError, DiskFullError, no_room

FOLDERS_MAX = 1_000  # of workers, in one data folder
IDENTITY = "worker.id"
LOCK = "worker.lock"  # holds the name of the machine whose worker had the folder last


@contextmanager
def worker_folder(settings: Settings) -> Iterator[Settings]:
    """Locks a folder for this worker, and yields the settings with that folder.

    A worker alone uses the data folder itself, because two workers would overwrite each other's checkpoints. A worker
    of a group uses a folder within it, which is named after the worker, or is the first of `worker-1`, `worker-2`, …
    that no running worker uses: so a worker that is started again takes over what one of them left. Those that this
    machine, or container, had before come first: else workers that are restarted together would change their names.

    Raises:
        CheckpointError: another worker holds the folder, or it cannot be written.
    """
    with ExitStack() as locks:
        if settings.workers == "one":
            if not locks.enter_context(_locked(settings.data_dir)):
                raise CheckpointError(
                    f"another worker uses {settings.data_dir}: stop it, or set NEXTCLICK_DATA_DIR to another folder"
                )
            yield settings
            return
        for folder in _folders(settings):
            if locks.enter_context(_locked(folder)):
                yield settings.model_copy(update={"data_dir": folder})
                return
        if settings.worker_name is not None:
            raise CheckpointError(
                f"another worker is named {settings.worker_name}, and uses {settings.data_dir / settings.worker_name}: "
                "stop it, or set NEXTCLICK_WORKER_NAME to another name"
            )
        raise CheckpointError(
            f"{FOLDERS_MAX} workers use {settings.data_dir}: set NEXTCLICK_DATA_DIR to another folder"
        )


def _folders(settings: Settings) -> Iterator[Path]:
    if settings.worker_name is not None:
        yield settings.data_dir / settings.worker_name
        return
    folders = [settings.data_dir / f"worker-{number}" for number in range(1, FOLDERS_MAX + 1)]
    machine = socket.gethostname()
    yield from sorted(folders, key=lambda folder: _last_machine(folder) != machine)


def _last_machine(folder: Path) -> str | None:
    try:
        return (folder / LOCK).read_text()
    except (OSError, ValueError):
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Locks a folder, which is made if it is missing. Yields whether no other worker holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")  # not "w": that would empty it before it is known whose it is
    except OSError as error:
        line = f"cannot write to {folder} ({error.strerror})"
        if no_room(error):
            raise DiskFullError(f"{line}: free space, or set NEXTCLICK_DATA_DIR to another folder") from error
        raise CheckpointError(f"{line}: set NEXTCLICK_DATA_DIR to a folder that this user may write to") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        with suppress(OSError):  # a full disk is no reason not to start
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), socket.gethostname().encode())
        yield True


def identity_of(folder: Path) -> str:
    """Returns the id of the worker whose folder this is; it is made once. A checkpoint that was copied from another
    folder names another id, so its worker's own change of the weights is not taken for this one's."""
    path = folder / IDENTITY
    try:
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
        return path.read_text().strip()
    except OSError as error:
        raise CheckpointError(f"cannot write to {folder} ({error.strerror})") from error
