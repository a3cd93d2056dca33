"""The whole learner in bfloat16: the same users, nearly the same states, and it still learns."""

from itertools import islice
from typing import Any

import pytest
import torch

from online.config.settings import Settings
from online.evaluation.town import Town
from online.learner.learner import Learner
from online.lifecycle.finetune import FineTuning


def learned(precision: Any, device: Any = "cpu", count: int = 1_500) -> Learner:
    torch.set_num_threads(1)
    learner = Learner(Settings(precision=precision, device=device, width=16, online_history=8, micro_batch_max=16))
    clicks = list(islice(Town(users=40).clicks(count), count))
    for start in range(0, len(clicks), 16):
        learner.learn(clicks[start : start + 16])
        learner.states.rebuild()
    return learner


def hit_rate(learner: Learner, method: str) -> float:
    return learner.scores.recent()[method]["hit@10"]


def test_bfloat16_learns_as_well_as_float32() -> None:
    exact, rounded = learned("float32"), learned("bfloat16")
    assert not exact.weights.bfloat16
    assert rounded.weights.bfloat16
    assert hit_rate(rounded, "served") > 2 * hit_rate(rounded, "popular")
    assert abs(hit_rate(rounded, "served") - hit_rate(exact, "served")) < 0.05
    assert all(parameter.dtype == torch.float32 for parameter in rounded.weights.network.parameters())


def test_fine_tuning_in_bfloat16_ends_with_finite_float32_weights() -> None:
    learner = learned("bfloat16", count=400)
    histories = learner.histories
    recent = histories.oldest_first(histories.recently_seen(40), 64)
    tuning = FineTuning(learner, recent, seed=1)
    while not tuning.done:
        tuning.run_for(0.0)
    learner.publish(tuning.candidate(), 2)
    for parameter in learner.weights.network.parameters():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device: nothing to compare with the CPU")
def test_a_gpu_learns_what_the_cpu_learns() -> None:
    on_cpu, on_gpu = learned("float32", "cpu"), learned("auto", "cuda")
    assert on_gpu.weights.bfloat16
    assert abs(hit_rate(on_gpu, "served") - hit_rate(on_cpu, "served")) < 0.05
