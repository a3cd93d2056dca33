"""Reversible residual layers: a stack whose memory does not grow with its depth.

Gomez et al. 2017 (arXiv 1707.04585), as used by Kitaev et al. 2020 (arXiv 2001.04451, section 3). Letters: `B` batch,
`L` length, `D` width. Two streams x1, x2 (B, L, D) pass each block of two branches f and g:

    y1 = x1 + f(x2)          backwards:   x2 = y2 - g(y1)
    y2 = x2 + g(y1)                       x1 = y1 - f(x2)

so that the last outputs are enough to recompute every activation, block by block, while the gradients flow back.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ReversibleStack(nn.Module):
    """Blocks (f, g), called as `f(x2, *context)` and `g(y1)`; both return a tensor of their input's shape.

    `context` (lengths, times, ...) reaches every f as it is and gets no gradient: whatever is learned belongs into the
    branches, as their parameters. A parameter may be shared between branches. Branches have to be functions of their
    input, their parameters, the context and torch's random state, which is saved and restored (dropout), and must not
    write to their input.

    With `chunk` > 0, g sees at most so many positions at once (it has to be position-wise then), forwards and
    backwards, which bounds the memory that its hidden layer takes.

    The streams are carried in float64, branches see them in the input's own type. A subtraction in float32 would give
    back x with its last bit wrong now and then, enough to send a position to another hash bucket and so to another
    gradient; two float64 tensors, however deep the stack, buy recomputation that is exact in practice.
    """

    def __init__(self, branches: Iterable[tuple[nn.Module, nn.Module]], *, chunk: int = 0) -> None:
        super().__init__()
        pairs = list(branches)
        self.f = nn.ModuleList(f for f, _ in pairs)
        self.g = nn.ModuleList(g for _, g in pairs)
        self.chunk = chunk

    def forward(self, x1: Tensor, x2: Tensor, *context: Any, recompute: bool = True) -> tuple[Tensor, Tensor]:
        """(B, L, D), (B, L, D) -> (B, L, D), (B, L, D).

        `recompute=False` is the same stack with ordinary autograd: faster by one forward pass, and it keeps every
        activation. TypeError: a tensor in `context` asks for a gradient.
        """
        if any(isinstance(part, Tensor) and part.requires_grad for part in context):
            raise TypeError("context gets no gradient: make what is learned a parameter of a branch")
        if recompute and torch.is_grad_enabled():
            parameters = [p for p in self.parameters() if p.requires_grad]
            y1, y2 = _Recomputed.apply(self, context, x1, x2, *parameters)  # type: ignore[no-untyped-call]
            return y1, y2
        y1, y2 = x1.double(), x2.double()
        for f, g in zip(self.f, self.g, strict=True):
            y1 = y1 + f(y2.to(x1.dtype), *context)
            y2 = y2 + torch.cat([g(part) for part in self.parts(y1.to(x1.dtype))], 1)
        return y1.to(x1.dtype), y2.to(x2.dtype)

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """Views of x (B, L, D) along L, of at most `chunk` positions each."""
        return torch.split(x, self.chunk, 1) if self.chunk > 0 else (x,)


class _Recomputed(torch.autograd.Function):
    """The whole stack as one node of the graph. Parameters are inputs, so that autograd knows whom to give gradients,
    and are saved (not copied), so that it notices when one was overwritten before the backward pass."""

    @staticmethod
    def forward(ctx: Any, stack: ReversibleStack, context: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2, *parameters = tensors
        device, dtype = x1.device, x1.dtype
        ctx.stack, ctx.context, ctx.dtype = stack, context, dtype
        ctx.autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        ctx.random_states = []
        y1, y2 = x1.double(), x2.double()
        with _autocast(device, *ctx.autocast):
            for f, g in zip(stack.f, stack.g, strict=True):
                before_f = _random_state(device)
                y1 = y1 + f(y2.to(dtype), *context)
                ctx.random_states.append((before_f, _random_state(device)))
                y2 = y2 + torch.cat([g(part) for part in stack.parts(y1.to(dtype))], 1)
        ctx.save_for_backward(y1, y2, *parameters)
        return y1.to(dtype), y2.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2, *parameters = ctx.saved_tensors
        stack, dtype, device = ctx.stack, ctx.dtype, y1.device
        gradients: dict[Tensor, Tensor] = {}
        blocks = list(zip(stack.f, stack.g, ctx.random_states, strict=True))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for f, g, (before_f, before_g) in reversed(blocks):
                # x2 = y2 - g(y1), and d1 takes what flows to y1 through g
                _set_random_state(device, before_g)
                outputs, flows = [], []
                for part, d in zip(stack.parts(y1.to(dtype)), stack.parts(d2), strict=True):
                    output, flow = _run_both_ways(g, (part,), d, gradients, ctx.autocast)
                    outputs.append(output)
                    flows.append(flow)
                y2 = y2 - torch.cat(outputs, 1)
                d1 = d1 + torch.cat(flows, 1)
                # x1 = y1 - f(x2), and d2 takes what flows to x2 through f
                _set_random_state(device, before_f)
                output, flow = _run_both_ways(f, (y2.to(dtype), *ctx.context), d1, gradients, ctx.autocast)
                y1 = y1 - output
                d2 = d2 + flow
        return None, None, d1, d2, *(gradients.get(p) for p in parameters)


def _run_both_ways(
    branch: nn.Module,
    inputs: tuple[Any, ...],
    d: Tensor,
    gradients: dict[Tensor, Tensor],
    autocast: tuple[bool, torch.dtype],
) -> tuple[Tensor, Tensor]:
    """Runs a branch once more on `inputs` (x, *context), and at once backwards through that same run.

    -> (its output, the gradient of x). Adds the gradients of the branch's parameters to `gradients`.
    """
    parameters = [p for p in branch.parameters() if p.requires_grad]
    x = inputs[0].detach().requires_grad_()
    with torch.enable_grad(), _autocast(x.device, *autocast):
        output = branch(x, *inputs[1:])
    if not output.requires_grad:
        return output, torch.zeros_like(x)
    # The gradient of this sum by `output` is `d` itself, to the bit. Handed over beside `output`, it would make torch
    # load sympy: 1.5 s and 60 MB.
    with torch.enable_grad():
        total = (output * d.to(output.dtype)).sum()
    flow, *found = torch.autograd.grad(total, [x, *parameters], allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            known = gradients.get(parameter)
            gradients[parameter] = gradient if known is None else known + gradient
    return output.detach(), torch.zeros_like(x) if flow is None else flow


def _autocast(device: torch.device, enabled: bool, dtype: torch.dtype) -> torch.autocast:
    """The autocast state of the forward pass. Without its cache: weights cast in here, where no gradient is recorded,
    would be used outside as well, and their gradient would be lost."""
    return torch.autocast(device.type, dtype=dtype, enabled=enabled, cache_enabled=False)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    on_cpu, on_cuda = state
    torch.set_rng_state(on_cpu)
    if on_cuda is not None:
        torch.cuda.set_rng_state(on_cuda, device)
