"""Attention's backward made by hand gives autograd's gradients."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.runs import Sight, attend, attend_by_autograd, make_runs

torch.set_num_threads(1)
H, D, T = 2, 4, 6


def sight_of(lengths: list[int], entries: int, generator: torch.Generator, dtype: torch.dtype) -> Sight:
    """Random entries, of which some are seen, and some of the pairs."""
    M = sum(lengths)
    clicks = (np.ones(M, np.int64), np.zeros(M, np.int64), np.arange(float(M)))
    runs = make_runs(torch.arange(len(lengths)), np.array(lengths, np.int64), clicks)
    buckets = torch.randint(0, T, (H, M, entries), generator=generator, dtype=torch.int32)
    weights = torch.randint(0, 3, (H, len(runs.places)), generator=generator)
    weights[:, :M] += 1  # each row sees itself, so that none sees nothing
    return Sight(
        entries=torch.randn(H, M, entries, 2 * D, generator=generator, dtype=dtype),
        entry_bias=buckets + torch.arange(0, H * T, T, dtype=torch.int32)[:, None, None],
        entry_seen=torch.rand(H, M, entries, generator=generator) < 0.6,
        pairs=runs.places,
        pair_bias=torch.randint(0, T, (len(runs.places),), generator=generator, dtype=torch.int32),
        pair_weights=weights,
    )


def inputs_of(M: int, generator: torch.Generator, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(H, M, D)] * 3 + [(H, T)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    entries=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_gradients_equal_those_of_autograd(lengths: list[int], entries: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sight = sight_of(lengths, entries, generator, torch.float32)
    inputs = inputs_of(sum(lengths), generator, torch.float32)
    outputs = [form(*inputs, sight) for form in (attend, attend_by_autograd)]
    assert torch.equal(*outputs)
    direction = torch.randn(outputs[0].shape, generator=generator)
    found, expected = (torch.autograd.grad((output * direction).sum(), inputs) for output in outputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_gradients_are_the_slopes() -> None:
    generator = torch.Generator().manual_seed(0)
    sight = sight_of([3, 1, 2], 4, generator, torch.float64)
    inputs = inputs_of(6, generator, torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: attend(*tensors, sight), inputs)


def test_pairs_are_each_row_and_the_earlier_rows_of_the_same_user() -> None:
    clicks = (np.arange(6), np.zeros(6, np.int64), np.array([5.0, 1, 2, 4, 9, 10]))
    runs = make_runs(torch.tensor([7, 3, 5]), np.array([1, 3, 2]), clicks, kept_back=1)
    assert runs.slots.tolist() == [7, 3, 3, 3, 5, 5]
    pairs = list(zip(runs.queries.tolist(), runs.keys.tolist(), strict=True))
    assert pairs == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (2, 1), (3, 1), (3, 2), (5, 4)]
    assert runs.gaps.tolist() == [0, 0, 0, 0, 0, 0, 1, 3, 2, 1]
    assert runs.stored.tolist() == [1, 2, 4]
    assert runs.stored_slots.tolist() == [3, 3, 5]
    assert runs.stored_times.tolist() == [1, 2, 9]
    assert runs.later.tolist() == [1, 0, 0]
    assert (runs.longest, runs.longest_stored) == (3, 2)
