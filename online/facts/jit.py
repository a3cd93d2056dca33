"""Compiled loops: how numba is asked to compile them. With NUMBA_DISABLE_JIT=1 all of them are the plain Python."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

SUMS = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity stay what they are


def kernel(function: Function) -> Function:
    """Compiles a loop over arrays. The machine code is kept on disk, and it runs without the interpreter's lock."""
    return _compiled(function)


def summing(function: Function) -> Function:
    """The same for loops that add up floats: in any order, so that several are added at a time."""
    return _compiled(function, fastmath=SUMS)


def inlined(function: Function) -> Function:
    """A small function whose text is put where a kernel calls it, so that it sums as that kernel does."""
    return _compiled(function, inline="always")


def _compiled(function: Function, **options: Any) -> Function:
    try:
        return cast(Function, numba.njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # there is no folder that can be written to: then each process compiles for itself
        return cast(Function, numba.njit(nogil=True, **options)(function))
