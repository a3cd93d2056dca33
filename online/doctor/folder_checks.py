"""Checks of the data folder: whether it is there, may be written to, and has room for the next checkpoint."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from online.doctor.verdict import Verdict, size

AREA = "folder"
FREE_BYTES_MIN = 256 * 2**20
FREE_SHARE_MIN = 0.1
CHECKPOINTS_ROOM = 2  # times the newest checkpoint: one is written while the others stay


class Disk(NamedTuple):
    """The disk that a folder lies on."""

    free_bytes: int  # to users without special rights
    total_bytes: int
    files_free: int | None  # None: it has no limit of files
    read_only: bool


def disk_of(folder: Path) -> Disk:
    """Returns the disk of a folder. Raises OSError."""
    found = os.statvfs(folder)
    return Disk(
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        found.f_favail if found.f_files else None,
        bool(found.f_flag & os.ST_RDONLY),
    )


def check_folder(folder: Path, checkpoint_bytes: int = 0) -> list[Verdict]:
    """Checks a folder, which need not exist yet. `checkpoint_bytes`: of the newest checkpoint in it."""
    if folder.exists() and not folder.is_dir():
        text, way_out = f"{folder} is a file", "Set NEXTCLICK_DATA_DIR to a folder."
        return [Verdict(AREA, "data folder", "wrong", text, way_out)]
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        disk = disk_of(there)
    except OSError as error:
        text = f"{folder} cannot be looked at ({error.strerror})"
        way_out = "Give this user the right to enter it, or set NEXTCLICK_DATA_DIR."
        return [Verdict(AREA, "data folder", "wrong", text, way_out)]
    return [_writable(folder, there, disk), *check_disk(folder, disk, checkpoint_bytes)]


def _writable(folder: Path, there: Path, disk: Disk) -> Verdict:
    if disk.read_only:
        text = f"{folder} lies on a disk that is mounted read-only"
        return Verdict(AREA, "data folder", "wrong", text, "Mount it writable, or set NEXTCLICK_DATA_DIR.")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        text = f"this user may not write to {there}"
        way_out = "Run doctor as the worker's user; else give that user the right, or set NEXTCLICK_DATA_DIR."
        return Verdict(AREA, "data folder", "wrong", text, way_out)
    text = str(folder) if there == folder else f"{folder} is not there yet; the worker makes it"
    return Verdict(AREA, "data folder", "ok", text)


def check_disk(folder: Path, disk: Disk, checkpoint_bytes: int) -> Iterator[Verdict]:
    """Whether what is written next fits."""
    free = f"{size(disk.free_bytes)} of {size(disk.total_bytes)} are free for {folder}"
    needed = max(FREE_BYTES_MIN, CHECKPOINTS_ROOM * checkpoint_bytes)
    way_out = "Free space, or set NEXTCLICK_DATA_DIR to a larger disk."
    if disk.free_bytes < needed:
        text = f"{free}, and the next checkpoints need {size(needed)}"
        yield Verdict(AREA, "disk", "wrong", text, way_out)
    elif disk.files_free == 0:
        text = f"the disk of {folder} takes no more files (no inodes are free)"
        yield Verdict(AREA, "disk", "wrong", text, "Delete files on it, or set NEXTCLICK_DATA_DIR to another disk.")
    elif disk.free_bytes < FREE_SHARE_MIN * disk.total_bytes:
        yield Verdict(AREA, "disk", "warning", f"{free}: it is nearly full", way_out)
    else:
        yield Verdict(AREA, "disk", "ok", free)
