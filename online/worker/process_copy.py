"""Work that a copy of this process does (fork): it sees all memory as it is now, and this process goes on at once.

The kernel copies a page of memory when one of the two first writes to it, so the copy costs what is written meanwhile.
The copy has the calling thread alone: what it calls must not wait for another thread, nor use a GPU. It keeps no file
or socket of this process open, logs nothing, and ends with the thread that made it.
"""

import ctypes
import errno
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import torch

WORK_S_MAX = 600.0  # after which a copy is killed: it may wait for a lock of a thread that it does not have
REPLY_BYTES_MAX = 4_096  # an error's text is cut, so that writing it never waits for a reader
_PR_SET_PDEATHSIG = 1


class CopyEndedError(Exception):
    """A copy that ended without saying that its work is done; one line."""


def can_copy() -> bool:
    """Whether this system can: elsewhere libraries do not allow a copy without its threads."""
    return sys.platform == "linux"


def begin_in_copy(work: Callable[[], None]) -> Callable[[], None]:
    """Has a copy of this process do some work.

    Returns:
        What waits for its end, in any thread, to be called once. It raises CopyEndedError, or OSError if the work did.

    Raises:
        OSError: the system makes no copy, for want of memory or by a limit.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid == 0:
        _work(work, writing, parent)
    os.close(writing)

    def wait() -> None:
        reply = _reply(reading, pid)
        _, status = os.waitpid(pid, 0)
        _raise_for(reply, os.waitstatus_to_exitcode(status))

    return wait


def _work(work: Callable[[], None], writing: int, parent: int) -> NoReturn:
    """All that the copy does."""
    reply: dict[str, Any] = {"error": "it was interrupted"}
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could be noticed
            os._exit(1)
        gc.disable()  # it would write to every object
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.closerange(3, writing)
        os.closerange(writing + 1, descriptors)
        torch.set_num_threads(1)  # the others' threads are not here
        work()
        reply = {}
    except OSError as error:
        reply = {"errno": error.errno, "error": error.strerror or str(error)}
    except BaseException as error:  # nothing may return into the loop that was copied
        reply = {"error": f"{type(error).__name__}: {error}"}
    finally:
        with suppress(OSError):
            reply["error"] = reply.get("error", "")[: REPLY_BYTES_MAX // 8]  # JSON writes up to six bytes a character
            os.write(writing, json.dumps(reply).encode())
        os._exit(0)


def _reply(reading: int, pid: int) -> bytes:
    """Returns what the copy wrote before it ended; kills it if it takes too long."""
    ends_at, reply = time.monotonic() + WORK_S_MAX, b""
    try:
        while True:
            ready = select.poll()
            ready.register(reading, select.POLLIN)
            if not ready.poll(1_000 * max(0.0, ends_at - time.monotonic())):
                os.kill(pid, signal.SIGKILL)
                return json.dumps({"errno": errno.ETIMEDOUT, "error": f"it took longer than {WORK_S_MAX:g} s"}).encode()
            if not (part := os.read(reading, REPLY_BYTES_MAX)):
                return reply
            reply += part
    finally:
        os.close(reading)


def _raise_for(reply: bytes, exit_code: int) -> None:
    if not reply:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with status {exit_code}"
        raise CopyEndedError(f"the copy of the process that wrote it {how}")
    said = json.loads(reply)
    if "errno" in said:
        raise OSError(said["errno"], said["error"])
    if said["error"]:
        raise CopyEndedError(f"the copy of the process that wrote it failed: {said['error']}")
