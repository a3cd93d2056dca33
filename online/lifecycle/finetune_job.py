"""Fine-tuning outside the worker: reads a job's folder, trains, and leaves the result there.

    python -m online.lifecycle.finetune_job FOLDER

alone, or several of them that torch.distributed.run starts, on one machine or on several that share the folder. All
of them together take the same steps that one would take (online/lifecycle/shares.py).
"""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

from online.learner.ranking_model import choose_device
from online.lifecycle.finetune_folder import FolderError, Job, read_job, write_result
from online.lifecycle.shares import Together, share_dropout
from online.lifecycle.tuning_steps import TuningSteps

LOCK = "worker.lock"  # held by the worker that wrote the job, as long as it lives
LOOK_EACH_S = 0.5
SLICE_S = 3_600.0


def main(folder: Path) -> int:
    """Runs this process's part of a job, and returns its exit status."""
    threading.Thread(target=_watch, args=(folder,), daemon=True).start()
    try:
        job = read_job(folder)
    except FolderError as error:
        print(error, file=sys.stderr)
        return 1
    torch.set_num_threads(job.settings.threads)
    with _group(job) as shares:
        began = time.monotonic()
        steps = train(job, shares)
        if shares is None or shares.number == 0:
            write_result(folder, steps, time.monotonic() - began)
        if shares is not None:
            dist.barrier()  # no process leaves while another still has to hear from it
    return 0


def train(job: Job, shares: Together | None) -> TuningSteps:
    """Takes all steps of a job, and returns them."""
    steps = job.steps(shares)
    if shares is not None:
        share_dropout(steps.weights.network, shares)
    while not steps.done:
        steps.run_for(SLICE_S)
    return steps


@contextmanager
def _group(job: Job) -> Iterator[Together | None]:
    """Joins the other processes, which torch.distributed.run names in the environment; None: there are none."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = choose_device(job.settings.device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if processes == 1:
        yield None
        return
    # NCCL wants a device for each process; gloo shares one.
    nccl = cuda and int(os.environ.get("LOCAL_WORLD_SIZE", processes)) <= torch.cuda.device_count()
    timeout = timedelta(seconds=job.settings.finetune_timeout_s)
    dist.init_process_group("nccl" if nccl else "gloo", timeout=timeout)
    try:
        yield Together(dist.get_rank(), processes)
    finally:
        dist.destroy_process_group()


def _watch(folder: Path) -> None:
    """Ends this process once its result is not wanted: its starter died, the folder is gone, or the worker is."""
    parent = os.getppid()
    while os.getppid() == parent and folder.exists() and not _worker_gone(folder):
        time.sleep(LOOK_EACH_S)
    os._exit(1)


def _worker_gone(folder: Path) -> bool:
    """Whether the worker has died: then nothing holds its lock. A folder without one was made by hand."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:  # held, or this file system has no locks
        return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
