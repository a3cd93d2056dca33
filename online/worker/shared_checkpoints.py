"""Checkpoints that workers of a group share, so that a new one need not read the whole topic.

A new worker copies the newest checkpoint that it finds: in the shared folder, a path of any kind that fsspec knows, or
in the folders of other workers on the same disk. The worker that leads the group puts its own there from time to time.
A copy counts once its manifest is there, which is written last; its checksums are verified when it is loaded.
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from online.worker.checkpoint import MANIFEST

KEPT = 1  # copies in the shared folder, while no other is being written
COPY_TRIES = 3  # a checkpoint may make room while it is copied

log = logging.getLogger(__name__)


class SharedCheckpoints:
    """The shared folder. Copies are written by another thread; failures are logged, and tried again at the next time.

    `url`: a path, or a URL such as `s3://bucket/folder` (its fsspec package has to be installed).
    """

    def __init__(self, url: str, *, interval_s: float, executor: Executor | None = None) -> None:
        """`interval_s`: time between two copies."""
        self._url, self._interval_s = url, interval_s
        self._executor = ThreadPoolExecutor(1, "shared-checkpoint") if executor is None else executor
        self._copying: Future[None] | None = None
        self._copied_at = -float("inf")
        self._lock = threading.Lock()
        self.copied: int | None = None  # number of the checkpoint that was copied last
        self._least = 0  # copies of checkpoints with lower numbers hold a forgotten user

    def forget_before(self, number: int) -> None:
        """Notes that checkpoints before this one hold a forgotten user: their copy has to be replaced at once."""
        self._least = max(self._least, number)

    @property
    def waits(self) -> bool:
        """Whether a copy may still hold a forgotten user."""
        return self.copied is not None and self.copied < self._least

    def step(self, folder: Path, number: int, worker: str) -> None:
        """Begins to copy a complete checkpoint, if it is time.

        Args:
            folder: of the checkpoint.
            number: of the checkpoint.
            worker: the name of this worker.
        """
        if self._copying is not None and not self._copying.done():
            return
        due = time.monotonic() - self._copied_at >= self._interval_s or (self.waits and number >= self._least)
        if due and number != self.copied:
            self._copied_at = time.monotonic()
            self._copying = self._executor.submit(self._copy, folder, number, worker)

    def _copy(self, folder: Path, number: int, worker: str) -> None:
        try:
            files, root = _opened(self._url)
            name = f"{time.time_ns():020d}-{worker}-{number:08d}"
            files.makedirs(f"{root}/{name}", exist_ok=True)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
                files.put_file(str(path), f"{root}/{name}/{path.name}")
            for old in _copies(files, root)[:-KEPT]:
                files.rm(f"{root}/{old}", recursive=True)
        except Exception as error:  # whatever the file system's package raises
            log.warning("checkpoint %d cannot be copied to the shared folder yet: %s", number, _line(error))
            return
        self.copied = number
        log.info("checkpoint %d copied to the shared folder", number)

    def close(self) -> None:
        """Waits for a copy that is being written."""
        self._executor.shutdown()


def fetch(url: str | None, siblings: Path, checkpoints: Path) -> str | None:
    """Copies the newest checkpoint of another worker into an empty folder of checkpoints.

    Args:
        url: the shared folder; None: there is none.
        siblings: the folder that holds other workers' folders.
        checkpoints: this worker's checkpoints.

    Returns:
        Where it is from; None if there is none, or it cannot be copied.
    """
    for _ in range(COPY_TRIES):
        sources = [_newest_shared(url)] if url is not None else []
        sources += [_newest_sibling(siblings, checkpoints)]
        for source in sources:
            if source is None:
                continue
            writing = checkpoints / "writing-copy"
            try:
                files, path = _opened(source)
                shutil.rmtree(writing, ignore_errors=True)
                writing.mkdir(parents=True)
                for file in files.ls(path, detail=False):
                    files.get_file(file, str(writing / str(file).rpartition("/")[2]))
                writing.rename(checkpoints / f"{1:08d}")
            except Exception as error:  # whatever the file system's package raises; it may have made room meanwhile
                log.warning("the checkpoint at %s cannot be copied: %s", source, _line(error))
                shutil.rmtree(writing, ignore_errors=True)
                continue
            return source
    return None


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # noqa: PLC0415 - slow to import, and most workers need it once or never

    files, root = url_to_fs(url)
    return files, str(root).rstrip("/")


def _copies(files: Any, root: str) -> list[str]:
    """Returns the names of complete copies, oldest first."""
    names = [str(path).rpartition("/")[2] for path in files.ls(root, detail=False)]
    return sorted(name for name in names if files.exists(f"{root}/{name}/{MANIFEST}"))


def _newest_shared(url: str) -> str | None:
    try:
        files, root = _opened(url)
        if not files.exists(root):
            return None
        copies = _copies(files, root)
        return str(files.unstrip_protocol(f"{root}/{copies[-1]}")) if copies else None
    except Exception as error:  # whatever the file system's package raises
        log.warning("the shared folder cannot be read: %s", _line(error))
        return None


def _newest_sibling(siblings: Path, checkpoints: Path) -> str | None:
    def complete() -> Iterator[tuple[float, Path]]:
        for manifest in siblings.glob(f"*/checkpoints/[0-9]*/{MANIFEST}"):
            if manifest.parent.parent != checkpoints:
                with suppress(OSError):
                    yield manifest.stat().st_mtime, manifest.parent

    newest = max(complete(), default=None)
    return None if newest is None else str(newest[1])


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
