"""The recomputed backward pass is held to the same stack under ordinary autograd: outputs and gradients."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.reversible import ReversibleStack

torch.set_num_threads(1)
WIDTH = 8


class Mix(nn.Module):
    """Mixes positions causally, weighted by how far apart their times are; needs lengths and times."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)
        self.decay = nn.Parameter(torch.tensor(0.1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor, times: Tensor) -> Tensor:
        age = times[:, :, None] - times[:, None, :]
        weights = torch.exp(-self.decay * age.clamp(min=0)) * (age >= 0)
        weights = weights * (torch.arange(x.shape[1]) < lengths[:, None])[:, None, :]
        return self.dropout(weights / (weights.sum(-1, keepdim=True) + 1) @ torch.tanh(self.project(x)))


class FeedForward(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x))))


def stack_of(depth: int, *, dropout: float = 0.0, chunk: int = 0, shared: bool = False) -> ReversibleStack:
    torch.manual_seed(1)
    branches = [(Mix(dropout), FeedForward(dropout)) for _ in range(depth)]
    if shared:
        for mix, feed in branches[1:]:
            mix.project = branches[0][0].project
            feed.down.weight = branches[0][1].down.weight
    return ReversibleStack(branches, chunk=chunk)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x1, x2 = (torch.randn(3, 11, WIDTH, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    times = torch.rand(3, 11, generator=generator).cumsum(1)
    return x1, x2, torch.tensor([11, 4, 1]), times


def gradients(stack: ReversibleStack, *, recompute: bool, autocast: bool = False) -> list[Tensor]:
    """Outputs, then the gradients of both inputs and of all parameters."""
    stack = copy.deepcopy(stack)
    x1, x2, lengths, times = inputs()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y1, y2 = stack(x1, x2, lengths, times, recompute=recompute)
    torch.manual_seed(4)  # what happens to the random state in between must not matter
    (y1.square().mean() + (y2 * torch.linspace(-1, 1, WIDTH)).sum()).backward()
    return [y1, y2, *(t.grad for t in [x1, x2, *stack.parameters()])]


def assert_close(ours: list[Tensor], plain: list[Tensor], tolerance: float = 1e-4) -> None:
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max() + 1e-12


@pytest.mark.parametrize("depth", [1, 2, 8, 32])
@pytest.mark.parametrize("chunk", [0, 4])
def test_gradients_equal_those_of_the_plain_stack(depth: int, chunk: int) -> None:
    stack = stack_of(depth, chunk=chunk)
    assert_close(gradients(stack, recompute=True), gradients(stack, recompute=False))


@pytest.mark.parametrize("chunk", [0, 4])
def test_recomputation_drops_out_what_the_forward_pass_dropped(chunk: int) -> None:
    stack = stack_of(4, dropout=0.3, chunk=chunk)
    assert_close(gradients(stack, recompute=True), gradients(stack, recompute=False))


def test_recomputation_in_the_backward_pass_leaves_the_random_state_as_it_was() -> None:
    stack = stack_of(2, dropout=0.5)
    x1, x2, lengths, times = inputs()
    y1, _ = stack(x1, x2, lengths, times)
    before = torch.get_rng_state()
    y1.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


def test_a_parameter_shared_between_layers_gets_the_sum_of_its_gradients() -> None:
    stack = stack_of(4, shared=True, dropout=0.2)
    assert_close(gradients(stack, recompute=True), gradients(stack, recompute=False))


def test_autocast_is_the_same_in_recomputation() -> None:
    stack = stack_of(4, dropout=0.2)
    reversible = gradients(stack, recompute=True, autocast=True)
    assert_close(reversible, gradients(stack, recompute=False, autocast=True))
    full = gradients(stack, recompute=True)
    assert any(not torch.equal(a, b) for a, b in zip(reversible, full, strict=True)), "autocast had no effect at all"


def test_a_weight_used_outside_the_stack_too_keeps_its_gradient_under_autocast() -> None:
    stack = stack_of(1)
    x1, x2, lengths, times = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stack(x1, x2, lengths, times)  # casts the weight where no gradient is recorded
        F.linear(x1, stack.g[0].up.weight).sum().backward()
    assert stack.g[0].up.weight.grad is not None


@pytest.mark.parametrize("wanted", ["first input", "second input", "one parameter", "parameters"])
def test_gradients_of_only_some_inputs(wanted: str) -> None:
    def run(recompute: bool) -> list[Tensor]:
        stack = stack_of(3)
        x1, x2, lengths, times = inputs()
        x1.requires_grad_(wanted == "first input")
        x2.requires_grad_(wanted == "second input")
        names = [n for n, _ in stack.named_parameters()]
        for name, parameter in stack.named_parameters():
            parameter.requires_grad_(wanted == "parameters" or (wanted == "one parameter" and name == names[2]))
        y1, y2 = stack(x1, x2, lengths, times, recompute=recompute)
        (y1 * y2).sum().backward()
        found = [x1, x2, *stack.parameters()]
        return [torch.zeros(1) if t.grad is None else t.grad for t in found]

    ours, plain = run(True), run(False)
    assert sum(bool(t.any()) for t in ours) > 0
    assert_close(ours, plain)


def test_only_one_of_the_outputs_is_used() -> None:
    for pick in (0, 1):
        found = []
        for recompute in (True, False):
            stack = stack_of(2)
            x1, x2, lengths, times = inputs()
            stack(x1, x2, lengths, times, recompute=recompute)[pick].sum().backward()
            found.append([x1.grad, x2.grad])
        assert_close(*found)


def test_without_gradients_nothing_is_recorded_and_the_output_is_the_same() -> None:
    stack = stack_of(3)
    x1, x2, lengths, times = inputs()
    with torch.no_grad():
        quiet = stack(x1, x2, lengths, times)
    loud = stack(x1, x2, lengths, times)
    assert not quiet[0].requires_grad
    assert loud[0].requires_grad
    assert torch.equal(quiet[0], loud[0])
    assert torch.equal(quiet[1], loud[1])


def test_a_branch_whose_output_depends_on_nothing_learned() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, *_: Tensor) -> Tensor:
            return torch.zeros_like(x).detach()

    stack = ReversibleStack([(Zero(), FeedForward(0.0)), (Mix(0.0), Zero())])
    assert_close(gradients(stack, recompute=True), gradients(stack, recompute=False))


def test_the_backward_pass_can_run_twice_over_a_kept_graph() -> None:
    stack = stack_of(2)
    x1, x2, lengths, times = inputs()
    loss = stack(x1, x2, lengths, times)[0].square().sum()
    first = torch.autograd.grad(loss, [x1, *stack.parameters()], retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, [x1, *stack.parameters()], allow_unused=True)
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_overwriting_a_parameter_before_the_backward_pass_is_noticed() -> None:
    stack = stack_of(2)
    x1, x2, lengths, times = inputs()
    loss = stack(x1, x2, lengths, times)[0].sum()
    with torch.no_grad():
        stack.f[0].decay.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_context_that_asks_for_a_gradient_is_refused() -> None:
    x1, x2, lengths, times = inputs()
    with pytest.raises(TypeError, match="context"):
        stack_of(1)(x1, x2, lengths, times.requires_grad_())


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_depth() -> None:
    def kept(depth: int, recompute: bool) -> int:
        stack = stack_of(depth)
        parameters = {p.data_ptr() for p in stack.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in parameters:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = stack(*inputs(), recompute=recompute)
        assert output[0].requires_grad
        return sum(storages.values())

    assert kept(16, True) == kept(1, True)
    assert kept(16, False) > 8 * kept(1, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_on_cuda_dropout_and_autocast_are_the_same_in_recomputation(autocast: bool) -> None:
    model = ReversibleStack((FeedForward(0.3), FeedForward(0.3)) for _ in range(4))
    found = []
    for recompute in (True, False):
        stack = copy.deepcopy(model).cuda()
        x1, x2 = (part.detach().cuda().requires_grad_() for part in inputs()[:2])
        torch.manual_seed(3)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            y1, y2 = stack(x1, x2, recompute=recompute)
        torch.manual_seed(4)
        (y1.square().mean() + y2.sum()).backward()
        found.append([y1, y2, x1.grad, x2.grad, *(p.grad for p in stack.parameters())])
    assert_close(*found)
