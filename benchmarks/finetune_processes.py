"""Fine-tuning in the worker, and outside it in processes of their own: time of each history, and how far weights differ.

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

from online.config.settings import Settings
from online.evaluation.town import Town
from online.learner.history import ClicksOldestFirst
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


def overhead(learner: Learner, histories: ClicksOldestFirst) -> float:
    """Returns the seconds of a job of two histories: what a job costs besides its steps."""
    began = time.monotonic()
    return timed(OutsideFineTuning(learner, histories.of(np.arange(2)), seed=1), began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--histories", type=int, default=512)
    parser.add_argument("--clicks", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), finetune_histories=arguments.histories)
        learner = learned(settings, arguments.clicks)
        histories = examples(learner, 1.0, np.random.default_rng(0))
        assert histories is not None
        count, clicks = len(histories.lengths), int(histories.lengths.sum())
        print(f"{count} histories of {clicks} clicks; {len(os.sched_getaffinity(0))} cores, torch in one thread")
        began = time.monotonic()
        inside = FineTuning(learner, histories, seed=1)
        took = timed(inside, began)
        print(f"in the worker: {1_000 * took / count:.1f} ms each")
        for processes in arguments.processes:
            learner.settings = settings.model_copy(update={"finetune_processes": processes})
            more = overhead(learner, histories)
            began = time.monotonic()
            outside = OutsideFineTuning(learner, histories, seed=1)
            whole = timed(outside, began)
            tuned, one = outside.candidate().tensors(), inside.candidate().tensors()
            far = max(float((one[n] - tuned[n]).abs().max()) for n in one if one[n].is_floating_point())
            steps = f"{1_000 * (whole - more) / count:.1f} ms each, {whole:.1f} s with the start ({more:.1f} s)"
            print(f"outside, {processes} processes: {steps}; weights differ by {far:.1e} at most")


if __name__ == "__main__":
    main()
