"""Adam by the fused kernel: torch.optim's numbers, without torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from model.adam import Adam


def parameters():
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 7), (7,), (2, 3, 4))]


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_it_moves_parameters_as_torch_s_own_does_bit_for_bit(weight_decay):
    ours, theirs = parameters(), parameters()
    groups = [
        [{"params": some[:2], "lr": 0.01, "weight_decay": weight_decay}, {"params": some[2:]}]
        for some in (ours, theirs)
    ]
    adam = Adam(groups[0], learning_rate=0.003)
    reference = torch.optim.AdamW(groups[1], lr=0.003, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(4)
    for step in range(20):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(one.shape, generator=generator)
            one.grad, other.grad = (None, None) if (step + number) % 5 == 4 else (gradient, gradient.clone())
        if step == 10:
            for optimizer in (adam, reference):
                optimizer.param_groups[0]["lr"] = 0.05
        adam.step()
        reference.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        assert adam.state[one].keys() == reference.state[other].keys()
        assert all(torch.equal(adam.state[one][name], value) for name, value in reference.state[other].items())


def test_without_gradients_nothing_moves():
    some = parameters()
    before = [one.detach().clone() for one in some]
    adam = Adam([{"params": some}])
    some[0].grad = torch.ones_like(some[0])
    adam.zero_grad()
    adam.step()
    assert all(torch.equal(one, was) for one, was in zip(some, before, strict=True))


def test_a_step_imports_no_compiler():
    code = (
        "import sys, torch; from model.adam import Adam; p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2);"
        "Adam([{'params': [p]}]).step(); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
