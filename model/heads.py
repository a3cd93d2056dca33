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
NONE = -1e4  # score where there is no candidate: finite, so that gradients are
OF_SHARES = 4  # figures of a query's shares that say whether the next item is among its candidates
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


class Calibration(nn.Module):
    """Turns shares into chances: how sharp the softmax is (temperature scaling: Guo et al. 2017), times
    the chance that the next item is among the candidates at all."""

    def __init__(self, situation: int) -> None:
        """`situation`: how many figures describe a query, beside those of its shares."""
        super().__init__()
        self.log_sharpness = nn.Parameter(torch.zeros(1))
        self.weights = nn.Parameter(torch.zeros(OF_SHARES + situation))

    def forward(self, scores: Tensor, situation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns sharpened scores (N, K), and log-odds that the next item is a candidate (N,).

        Args:
            scores: (N, K), −inf where there are no more candidates.
            situation: (N, S) of the queries.
        """
        with torch.no_grad():
            scores = scores.clamp(min=NONE)
            logs = scores.log_softmax(1)
            shares = logs.exp()
            parts = [
                torch.ones_like(shares[:, 0]),
                logs.amax(1),
                -torch.where(shares > 0, shares * logs, 0.0).sum(1),  # entropy
                (shares > 0).sum(1).log1p(),
            ]
            known = torch.cat([torch.stack(parts, 1), situation], 1).nan_to_num(0.0, 0.0, 0.0)
        return self.log_sharpness.exp() * scores, known @ self.weights

    @torch.no_grad()
    def chances(self, scores: Tensor, situation: Tensor) -> Tensor:
        """Returns how likely each candidate is next, (N, K); 0 where there are no more."""
        sharpened, odds = self(scores, situation)
        return torch.where(scores > NONE, sharpened.softmax(1) * odds.sigmoid()[:, None], 0.0)
