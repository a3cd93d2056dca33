"""Checkpoints that workers of a group share, so that a new one need not read the whole topic.

A new worker copies the newest checkpoint that it finds: in the shared folder, a path of any kind that fsspec knows, or
in the folders of other workers on the same disk. The worker that leads the group puts its own there from time to time.
A copy counts once its manifest is there, which is written last; its checksums are verified when it is loaded.
"""

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from online.worker.checkpoint import MANIFEST, is_whole

KEPT = 1  # copies in the shared folder, while no other is being written
COPY_TRIES = 3  # a checkpoint may make room while it is copied
SOURCES_MAX = 8  # that are tried
RETRY_S = 10.0  # time after which a copy that failed is tried again

log = logging.getLogger(__name__)


class SharedCheckpoints:
    """The shared folder. Copies are written by another thread; failures are logged, and tried again at the next time.

    `url`: a path, or a URL such as `s3://bucket/folder` (its fsspec package has to be installed).
    """

    def __init__(
        self,
        url: str,
        *,
        interval_s: float,
        executor: Executor | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`interval_s`: time between two copies; `executor`: writes them, None: a thread."""
        self._url, self._interval_s = url, interval_s
        self._executor = ThreadPoolExecutor(1, "shared-checkpoint") if executor is None else executor
        self._copying: Future[None] | None = None
        self._copied_at = -float("inf")
        self._monotonic, self._failed = monotonic, False
        self.copied: int | None = None  # number of the checkpoint that was copied last
        self._least = 0  # copies of checkpoints with lower numbers hold a forgotten user

    def forget_before(self, number: int) -> None:
        """Notes that checkpoints before this one hold a forgotten user: their copy has to be replaced at once."""
        self._least = max(self._least, number)

    @property
    def waits(self) -> bool:
        """Whether a copy, which may be another worker's, may still hold a forgotten user."""
        return (self.copied or 0) < self._least

    def step(self, folder: Path, number: int, worker: str) -> None:
        """Begins to copy a complete checkpoint, if it is time.

        Args:
            folder: of the checkpoint.
            number: of the checkpoint.
            worker: the name of this worker.
        """
        if self._copying is not None and not self._copying.done():
            return
        waited_s = self._monotonic() - self._copied_at
        urgent = self.waits and number >= self._least
        if waited_s < (RETRY_S if self._failed else 0.0 if urgent else self._interval_s):
            return
        if number >= self._least and number != self.copied:
            self._copied_at = self._monotonic()
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
            self._failed = True
            return
        self.copied, self._failed = number, False
        log.info("checkpoint %d copied to the shared folder", number)

    def close(self) -> None:
        """Waits for a copy that is being written."""
        self._executor.shutdown()


class _Source(NamedTuple):
    """A complete checkpoint of another worker."""

    written_at_ns: int
    url: str
    number: int


def fetch(url: str | None, siblings: Path, checkpoints: Path) -> str | None:
    """Copies the newest checkpoint of another worker that is whole into an empty folder of checkpoints.

    It keeps its number, because versions name the checkpoints that hold them.

    Args:
        url: the shared folder; None: there is none.
        siblings: the folder that holds other workers' folders.
        checkpoints: this worker's checkpoints.

    Returns:
        Where it is from; None if there is none, or none can be copied.
    """
    damaged: set[str] = set()
    for _ in range(COPY_TRIES):  # it may make room while it is copied
        sources = sorted({*_shared(url), *_of_siblings(siblings, checkpoints)}, reverse=True)
        for source in sources[:SOURCES_MAX]:
            if source.url in damaged:
                continue
            writing = checkpoints / "writing-copy"
            try:
                files, path = _opened(source.url)
                shutil.rmtree(writing, ignore_errors=True)
                writing.mkdir(parents=True)
                for file in files.ls(path, detail=False):
                    files.get_file(file, str(writing / str(file).rpartition("/")[2]))
                if not is_whole(writing):
                    damaged.add(source.url)
                    raise ValueError("it is damaged, or holds a version's weights only")
                writing.rename(checkpoints / f"{source.number:08d}")
            except Exception as error:  # whatever the file system's package raises
                log.warning("the checkpoint at %s cannot be copied: %s", source.url, _line(error))
                shutil.rmtree(writing, ignore_errors=True)
                continue
            return source.url
    return None


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # noqa: PLC0415 - slow to import, and most workers need it once or never

    files, root = url_to_fs(url)
    return files, str(root).rstrip("/")


def _copies(files: Any, root: str) -> list[str]:
    """Returns the names of complete copies, oldest first."""
    names = [str(path).rpartition("/")[2] for path in files.ls(root, detail=False)]
    return sorted(name for name in names if files.exists(f"{root}/{name}/{MANIFEST}"))


def _shared(url: str | None) -> list[_Source]:
    """Returns the complete copies in the shared folder, at most SOURCES_MAX, the newest."""
    if url is None:
        return []
    try:
        files, root = _opened(url)
        names = _copies(files, root)[-SOURCES_MAX:] if files.exists(root) else []
        return [
            _Source(
                int(name.partition("-")[0]), str(files.unstrip_protocol(f"{root}/{name}")), int(name.rpartition("-")[2])
            )
            for name in names
        ]
    except Exception as error:  # whatever the file system's package raises
        log.warning("the shared folder cannot be read: %s", _line(error))
        return []


def _of_siblings(siblings: Path, checkpoints: Path) -> list[_Source]:
    found = []
    for manifest in siblings.glob(f"*/checkpoints/[0-9]*/{MANIFEST}"):
        if manifest.parent.parent != checkpoints:
            with suppress(OSError):  # it has just made room
                found.append(_Source(manifest.stat().st_mtime_ns, str(manifest.parent), int(manifest.parent.name)))
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
