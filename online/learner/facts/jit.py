"""How loops are compiled: by numba, without Python's global lock, and cached on disk from one start to the next.

With NUMBA_DISABLE_JIT=1 the same code runs as plain Python, which is its slow reference.

numba checks only the file of a kernel to see whether its compiled form is current, and not the files of the functions
that the kernel calls. So compiled forms are kept in a folder that is named after a digest of all these files: code that
was compiled from other sources is never run.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from platformdirs import user_cache_path

_LINEAR_ALGEBRA = "scipy.linalg"
_loaded = sys.modules.get(_LINEAR_ALGEBRA)
# numba would load it for products of matrices, of which there are none here: 0.25 s and 15 MB of each start.
sys.modules[_LINEAR_ALGEBRA] = _loaded  # type: ignore[assignment]
try:
    import numba
    import numba.np.arraymath
    import numba.np.linalg
finally:
    if _loaded is None:
        del sys.modules[_LINEAR_ALGEBRA]

Function = TypeVar("Function", bound=Callable[..., Any])

SUMS = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity stay what they are
_PACKAGE = Path(__file__).resolve().parent.parent  # online/learner/
_KERNELS = ("content/kernels.py", "content/near.py", "groups/kernels.py", "worth/kernels.py")
_SOURCES = ("facts/*.py", *_KERNELS, "recall.py", "prune.py", "abuse_filter.py", "delta.py")


def cache_folder() -> Path:
    """Returns the folder of the compiled forms: in NUMBA_CACHE_DIR if that is set, else beside the code, or, where that
    is not writable, in the user's cache folder."""
    beside = _beside()
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(named) / beside.name
    writable = os.access(beside.parent if beside.parent.exists() else beside.parent.parent, os.W_OK)
    return beside if writable else user_cache_path("nextclick") / beside.name


def _beside() -> Path:
    digest = hashlib.sha256(numba.__version__.encode())
    for pattern in _SOURCES:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.read_bytes())
    return _PACKAGE / "facts" / "__pycache__" / f"kernels-{digest.hexdigest()[:16]}"


def use_folder() -> Path:
    """Returns the folder, after copying into it what was compiled when another user installed the code: numba reads no
    folder that it cannot write to."""
    folder, beside = cache_folder(), _beside()
    if folder != beside and beside.exists() and not folder.exists():
        copied = folder.with_name(f"{folder.name}-{os.getpid()}")
        try:
            shutil.copytree(beside, copied)
            copied.rename(folder)
        except OSError:  # there is no room, or another process was faster
            shutil.rmtree(copied, ignore_errors=True)
    return folder


numba.config.CACHE_DIR = str(use_folder())  # type: ignore[attr-defined]
if not os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES"):
    # In no other folder: numba's own choice would not be named after these sources.
    numba.config.CACHE_LOCATOR_CLASSES = "UserProvidedCacheLocator"  # type: ignore[attr-defined]


def kernel(function: Function) -> Function:
    """Compiles a loop over arrays. The machine code is cached on disk and runs without the interpreter's lock."""
    return _compiled(function)


def summing(function: Function) -> Function:
    """Compiles a loop that adds up floats in any order, so that several are added at a time."""
    return _compiled(function, fastmath=SUMS)


def called(function: Function) -> Function:
    """Compiles a small function of numbers that kernels call; LLVM inlines it."""
    return _compiled(function)


def inlined(function: Function) -> Function:
    """Compiles a small function that numba inlines into the kernels that call it: it sums as they do, and passing
    arrays to it costs nothing."""
    return _compiled(function, inline="always")


def allocating(function: Function) -> Function:
    """Compiles a kernel that allocates arrays."""
    return _compiled(function, _nrt=True)


def _compiled(function: Function, **options: Any) -> Function:
    # The arrays passed in belong to the caller, which waits for the loop. Counting their references took a third of the
    # time of all loops.
    options = {"_nrt": False} | options
    try:
        return cast(Function, numba.njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # there is no folder that can be written to: then each process compiles for itself
        return cast(Function, numba.njit(nogil=True, **options)(function))
