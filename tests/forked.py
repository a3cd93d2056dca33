"""A process of its own for a part of a test: a fork of this one, which does not have to load Python and torch again."""

import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class EndedFork:
    """How a fork ended. `returncode`: as subprocess has it, negative for a signal; 1 where the work raised."""

    returncode: int
    stdout: str  # what the work returned, and what else was written to this descriptor
    stderr: str


def run_forked(work: Callable[[], str | None]) -> EndedFork:
    """Runs `work` in a fork of this process, and waits for its end. The fork has this thread alone, and ends without
    what Python does at its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _work(work, out.fileno(), err.fileno())
        try:
            _, status = os.waitpid(pid, 0)
        except BaseException:  # the test's time is over
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return EndedFork(os.waitstatus_to_exitcode(status), *texts)


def _work(work: Callable[[], str | None], out: int, err: int) -> None:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        if said := work():
            os.write(1, said.encode())
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)
