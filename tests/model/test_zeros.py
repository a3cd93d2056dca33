"""Zeros that take memory as they are filled."""

from pathlib import Path

import pytest
import torch

from model.zeros import zeros

MIB = 2**20


def resident_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (), (2, 0, 3)])
def test_they_are_what_torch_gives(dtype, shape):
    ours, theirs = zeros(*shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    assert torch.equal(ours, theirs)
    ours += 1 if dtype != torch.bool else True
    assert torch.equal(ours, torch.ones(shape, dtype=dtype))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process holds")
def test_only_what_is_written_takes_memory():
    before = resident_mib()
    some = zeros(256, MIB, dtype=torch.int8)
    assert resident_mib() - before < 16
    some[:64] = 1
    assert 32 < resident_mib() - before < 128
    assert int(some[64:].sum()) == 0
