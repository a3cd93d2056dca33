"""AdamW (Loshchilov & Hutter 2019) by torch's fused kernel, and without weight decay Adam (Kingma & Ba 2015).

torch.optim's own classes give the same numbers bit for bit. But the first one that is made imports torch's compiler
(torch._dynamo), only to say that it is not to be compiled: 1.1 s at each start, and 74 MB.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """What `torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, fused=True)` does, with its `param_groups`
    and `state`."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, learning_rate: float = 1e-3) -> None:
        """`groups`: each has `params`, and may have an `lr` and a `weight_decay` of its own."""
        self.param_groups: list[dict[str, Any]] = [
            {"lr": learning_rate, "weight_decay": 0.0} | dict(group) | {"params": list(group["params"])}
            for group in groups
        ]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves each parameter that has a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            states = [self._state(parameter) for parameter in moved]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                moved,
                [parameter.grad for parameter in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        return self.state[parameter]
