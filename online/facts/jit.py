"""Compiled loops: how numba is asked to compile them. With NUMBA_DISABLE_JIT=1 all of them are the plain Python."""

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])

SUMS = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity stay what they are


def kernel(function: Function) -> Function:
    """Compiles a loop over arrays. The machine code is kept on disk, and it runs without the interpreter's lock."""
    return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]


def summing(function: Function) -> Function:
    """The same for loops that add up floats: in any order, so that several are added at a time."""
    return numba.njit(cache=True, nogil=True, fastmath=SUMS)(function)  # type: ignore[no-any-return]


def inlined(function: Function) -> Function:
    """A small function whose text is put where a kernel calls it, so that it sums as that kernel does."""
    return numba.njit(cache=True, nogil=True, inline="always")(function)  # type: ignore[no-any-return]
