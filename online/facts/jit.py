"""How loops are compiled: numba, without Python's lock, and kept on disk from one start to the next.

With NUMBA_DISABLE_JIT=1 the same code runs as plain Python, which is its slow reference.

numba looks at the file that a kernel stands in to see whether its compiled form is still right, and not at the files of
what the kernel calls. So compiled forms lie in a folder that is named after a digest of all these files: code that was
compiled from other sources is never run.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from platformdirs import user_cache_path

F = TypeVar("F", bound=Callable[..., Any])

#: What may be reordered in sums: everything but what would lose infinities and NaN.
SUMMING = {"reassoc", "contract", "arcp", "nsz"}
_PACKAGE = Path(__file__).resolve().parent.parent  # online/
_SOURCES = ("facts/*.py", "ranking/recall.py", "ranking/prune.py")


def _cache_folder() -> Path:
    digest = hashlib.sha256(f"{numba.__version__}".encode())
    for pattern in _SOURCES:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.read_bytes())
    name = f"kernels-{digest.hexdigest()[:16]}"
    beside = _PACKAGE / "facts" / "__pycache__"
    writable = os.access(beside if beside.exists() else beside.parent, os.W_OK)
    # Where the code was installed by another user, what was compiled then is used, or else compiled for this one.
    return beside / name if writable or (beside / name).exists() else user_cache_path("nextclick") / name


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(_cache_folder())


def kernel(function: F) -> F:
    """A loop called from Python."""
    return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]


def summing(function: F) -> F:
    """The same for a loop that mostly adds up: its sums may be taken in another order."""
    return numba.njit(cache=True, nogil=True, fastmath=SUMMING)(function)  # type: ignore[no-any-return]


def called(function: F) -> F:
    """A small function of numbers that kernels call; the compiler's last stage puts it in their place."""
    return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """A small function whose text is put where a kernel calls it: arrays that are handed on cost nothing then."""
    return numba.njit(cache=True, nogil=True, inline="always")(function)  # type: ignore[no-any-return]
