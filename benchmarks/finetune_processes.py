"""Fine-tuning in the worker, and outside it in one or more processes: time for each history, and whether weights agree.

    python -m benchmarks.finetune_processes [--processes 1 2] [--histories 512]

A learner that has learned a town's clicks; nothing else runs. The time of the steps is given alone, and with all that
comes before and after (the folder, the start of the processes, imports).
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from online.config.settings import Settings
from online.evaluation.town import Town
from online.learner.learner import Learner
from online.lifecycle.finetune import FineTuning, Tuning, examples
from online.lifecycle.finetune_outside import OutsideFineTuning
from stream.events import Click

MICRO_BATCH = 64


def learned(settings: Settings, clicks: int) -> Learner:
    """Returns a learner of a town's clicks."""
    learner = Learner(settings)
    stream: Iterator[Click] = Town(users=2_000, items=2_000, seed=1).clicks(clicks)
    while some := list(islice(stream, MICRO_BATCH)):
        learner.learn(some)
    return learner


def timed(tuning: Tuning, began: float) -> float:
    """Runs a fine-tuning to its end, and returns the seconds since it began."""
    while not tuning.done:
        tuning.run_for(1.0)
        if tuning.waits:
            time.sleep(0.005)
    assert tuning.failed is None, tuning.failed
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--histories", type=int, default=512)
    parser.add_argument("--clicks", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), finetune_histories=arguments.histories)
        torch.set_num_threads(settings.threads)
        learner = learned(settings, arguments.clicks)
        histories = examples(learner, 1.0, np.random.default_rng(0))
        assert histories is not None
        count, clicks = len(histories.lengths), int(histories.lengths.sum())
        print(f"{count} histories of {clicks} clicks; {len(os.sched_getaffinity(0))} cores, torch in one thread")
        began = time.monotonic()
        inside = FineTuning(learner, histories, seed=1)
        took = timed(inside, began)
        print(f"in the worker: {1_000 * took / count:.1f} ms each", flush=True)
        for processes in arguments.processes:
            learner.settings = settings.model_copy(update={"finetune_processes": processes})
            began = time.monotonic()
            outside = OutsideFineTuning(learner, histories, seed=1)
            whole = timed(outside, began)
            tuned, one = outside.candidate().tensors(), inside.candidate().tensors()
            far = max(float((one[n] - tuned[n]).abs().max()) for n in one if one[n].is_floating_point())
            seconds = outside.figures()["seconds"]
            steps = f"{1_000 * seconds / count:.1f} ms each; {whole:.1f} s in all, {seconds:.1f} s of them steps"
            print(f"outside, {processes} processes: {steps}; weights differ by {far:.1e} at most")


if __name__ == "__main__":
    main()
