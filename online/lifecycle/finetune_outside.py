"""Fine-tuning outside the worker: writes a job's folder, starts its processes, and fetches the tuned weights.

All of it happens in a thread; a turn of the loop only looks whether that has ended. Whatever goes wrong is the reason
for which the fine-tuning is thrown away, and harms nothing else.
"""

import fcntl
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from online.config.settings import PREFIX, Settings
from online.learner.history import ClicksOldestFirst
from online.learner.learner import Learner
from online.learner.ranking_model import HEADS, RankingModel
from online.lifecycle.finetune import carried_over
from online.lifecycle.finetune_folder import FolderError, Job, Result, job_of, read_result, write_job
from online.lifecycle.finetune_job import LOCK

FOLDERS = "finetuning-"  # how folders of jobs begin, in the data folder
OUTPUT = "output.txt"
LOOK_EACH_S = 0.1
END_S_MAX = 5.0  # for a command to end its processes, before they are killed
ERROR = re.compile(r"(?:\[rank\d+\]: *)?((?:\w+\.)*\w*(?:Error|Exception)(?:: .*)?)$")
QUOTED_MAX = 300  # characters of a job's output in a notice

log = logging.getLogger(__name__)


def outside(settings: Settings) -> bool:
    """Whether fine-tuning runs outside the worker."""
    return settings.finetune_processes > 0 or settings.finetune_command is not None


def remove_left_jobs(data_dir: Path) -> None:
    """Removes folders of jobs whose worker was killed. The caller holds the lock of the data folder."""
    for folder in data_dir.glob(f"{FOLDERS}*"):
        shutil.rmtree(folder, ignore_errors=True)


class OutsideFineTuning:
    """One fine-tuning of a copy, in processes of its own. The live weights go on learning; `candidate` brings the two
    together."""

    waits = True

    def __init__(self, learner: Learner, histories: ClicksOldestFirst, *, seed: int) -> None:
        """
        Args:
            learner: owns the live weights; knows more than one item.
            histories: to read, (users, L); their order is drawn from `seed`.
            seed: of all random numbers.
        """
        self.learner, self.settings = learner, learner.settings
        tensors = learner.weights.tensors().items()
        self.start = {name: tensor.clone() for name, tensor in tensors if not name.startswith(HEADS)}
        self.rows_changed: set[int] = set()  # freed or handed out since the copy was taken
        self.failed: str | None = None  # why it must be thrown away
        self.folder: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._result = Result({}, [], [], None, 0.0)
        self._closed = threading.Event()
        job = job_of(learner, histories, self.start, seed=seed)
        self._thread = threading.Thread(target=self._run, args=(job,), name="finetuning", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def run_for(self, seconds: float) -> None:
        """Does nothing: it goes on by itself."""

    def candidate(self) -> RankingModel:
        """Does `carried_over`."""
        return carried_over(self.learner, self.start, self._result.tuned, self.rows_changed)

    def figures(self) -> dict[str, Any]:
        """Does `Result.figures`."""
        return self._result.figures()

    def close(self) -> None:
        """Kills the processes and removes the folder, if it is not over."""
        self._closed.set()
        self._thread.join()

    def _run(self, job: Job) -> None:
        try:
            with ExitStack() as parts:
                self._result = self._tuned(job, parts)
                self.failed = self._result.failed
        except (OSError, SafetensorError, FolderError, _JobError) as error:
            self.failed = str(error)
        except Exception as error:  # a thread's own mistake must not leave the supervisor without an answer
            log.exception("fine-tuning outside the worker failed")
            self.failed = f"{type(error).__name__}: {error}"

    def _tuned(self, job: Job, parts: ExitStack) -> Result:
        """Does everything, in the thread."""
        ends_at = time.monotonic() + self.settings.finetune_timeout_s
        try:
            self.settings.data_dir.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=FOLDERS, dir=self.settings.data_dir))  # for this user alone
            parts.callback(shutil.rmtree, self.folder, ignore_errors=True)
            lock = parts.enter_context((self.folder / LOCK).open("w"))
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            write_job(self.folder, job)
        except (OSError, SafetensorError) as error:
            raise _JobError(f"its job cannot be written to {self.settings.data_dir}: {error}") from error
        command = command_of(self.settings, self.folder)
        with (self.folder / OUTPUT).open("wb") as output:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_environment(self.settings),
                    start_new_session=True,
                )
            except OSError as error:
                raise _JobError(f"its job cannot be started: {command[0]}: {error.strerror}") from error
        parts.callback(self._end, self.process)
        while (status := self.process.poll()) is None:
            if self._closed.wait(LOOK_EACH_S):
                raise _JobError("it was ended")
            if time.monotonic() >= ends_at:
                raise _JobError(f"its job took longer than {self.settings.finetune_timeout_s:g} s")
        if status:
            raise _JobError(_ended(status, self.folder / OUTPUT))
        return read_result(self.folder, self.start)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends a job's processes. Ours have nothing to save; a command may have to tell other machines first."""
        if self.settings.finetune_command is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S_MAX)
        for child in _descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _JobError(Exception):
    """A job that failed; one line."""


def command_of(settings: Settings, folder: Path) -> list[str]:
    """Returns the command that starts a job's processes."""
    if settings.finetune_command is not None:
        places = {"{folder}": str(folder), "{processes}": str(settings.finetune_processes)}
        return [_filled(word, places) for word in shlex.split(settings.finetune_command)]
    job = ["-m", "online.lifecycle.finetune_job", str(folder)]
    if settings.finetune_processes == 1:  # there are no others to bring together: no launcher has to load torch too
        return [sys.executable, *job]
    # Not --standalone: there the processes find each other through pickled messages on an open port.
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={settings.finetune_processes}"]
    run += ["--nnodes=1", "--node-rank=0", "--rdzv-backend=static"]
    run += ["--master-addr=127.0.0.1", f"--master-port={_free_port()}"]
    return [*run, *job]


def _filled(word: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(name, value)
    return word


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(settings: Settings) -> dict[str, str]:
    """Returns the worker's variables without its settings: the job has those that it needs, and no password."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    if settings.finetune_command is None:
        kept = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} | kept
    return {"OMP_NUM_THREADS": str(settings.threads)} | kept


def _ended(status: int, output: Path) -> str:
    """Returns why a job failed."""
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    lines = output.read_text(errors="replace").splitlines() if output.exists() else []
    # The first error that Python shows is the cause, unless it is of losing a process that had failed before.
    errors = [found[1] for line in lines if (found := ERROR.match(line)) is not None]
    causes = [error for error in errors if "closed by peer" not in error]
    why = next(iter(causes or errors or [line.strip() for line in lines if line.strip()][-1:]), "")
    return f"its job {how}" + (f": {why[:QUOTED_MAX]}" if why else "")


def _descendants(pid: int) -> Sequence[int]:
    """Returns the processes that a process has started, and those that these have: some lead sessions of their own."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found
