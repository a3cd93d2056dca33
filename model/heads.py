"""Heads beside the ranker: how likely a click is of each type, if it comes, and how much it is worth then.

Each head is a logistic regression plus a small network of its own whose output is 0 at first; of the value it is the
logarithm that is predicted. Heads share their inputs, and no weight: what is rare learns nothing of what is common.

Letters: `M` candidates, `D` inputs, `T` types, `H` hidden units of each head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 8
LOG_VALUE_MAX = 20.0  # so that a value is finite whatever the weights are


class Heads(nn.Module):
    """T heads of types, and one of the value."""

    def __init__(self, starts: Sequence[Sequence[float]], *, seed: int = 0) -> None:
        """`starts`: (T + 1, D) initial weights of the inputs, of each type and of the value."""
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        count, D = len(starts), len(starts[0])
        bound = D**-0.5
        self.linear = nn.Parameter(torch.tensor(starts))
        self.bias = nn.Parameter(torch.zeros(count))
        self.up = nn.Parameter(torch.empty(count, HIDDEN, D).uniform_(-bound, bound, generator=random))
        self.up_bias = nn.Parameter(torch.empty(count, HIDDEN).uniform_(-bound, bound, generator=random))
        self.out = nn.Parameter(torch.zeros(count, HIDDEN))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns log-odds of the types, and the log of the value, (..., T + 1), of inputs (..., D)."""
        count, H, D = self.up.shape
        rows = inputs.reshape(-1, D)
        hidden = F.relu(torch.addmm(self.up_bias.view(-1), rows, self.up.view(-1, D).T)).view(-1, count, H)
        found = torch.addmm(self.bias, rows, self.linear.T) + (hidden * self.out).sum(-1)
        return found.view(*inputs.shape[:-1], count)

    @torch.no_grad()
    def predicted(self, inputs: Tensor) -> Tensor:
        """Returns chances of the types, and the value, (..., T + 1), of inputs (..., D)."""
        found = self(inputs)
        return torch.cat([found[..., :-1].sigmoid(), found[..., -1:].clamp(max=LOG_VALUE_MAX).exp()], -1)
