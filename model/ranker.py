"""The ranker: a score for each candidate from what is known of it, learned by softmax over each click's candidates.

Letters: `N` clicks, `C` candidates of all of them (flat), `F` features, `M` networks of `H` hidden units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 2_048  # candidates scored at a time: what comes in between stays in the cache (a tenth faster on the whole)
SLOWEST = 0.01  # share of the newest batch in the running mean and variance of the features
DEVIATION_MIN = 0.05  # a feature that hardly varies is not blown up


class Ranker(nn.Module):
    """A linear score whose weights are sensible from the start, plus the mean of some networks that begin silent.

    The networks, of two layers, see each feature less its running mean, by its running deviation (over all candidates
    of all clicks). Each learns as if it were alone beside the linear score: they differ by chance, and their mean errs
    less than one of them (an ensemble: Hansen and Salamon 1990).
    """

    def __init__(self, starts: Sequence[float], hidden: int, networks: int = 1) -> None:
        """`starts` (F,): the linear weights at the start."""
        super().__init__()
        bound = hidden**-0.5  # as nn.Linear's
        self.linear = nn.Parameter(torch.tensor(starts))
        self.up = nn.Linear(len(starts), networks * hidden)
        self.mid = nn.Parameter(torch.empty(networks, hidden, hidden).uniform_(-bound, bound))  # (M, from, to)
        self.mid_bias = nn.Parameter(torch.empty(networks, 1, hidden).uniform_(-bound, bound))
        self.out = nn.Parameter(torch.zeros(networks, hidden))
        self.mean: Tensor
        self.variance: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(len(starts)))
        self.register_buffer("variance", torch.ones(len(starts)))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) -> (...); only differences between candidates of one click mean anything."""
        if torch.is_grad_enabled() or features.dim() != 2:
            return self.each(features).mean(-1)
        return torch.cat([self.each(piece).mean(-1) for piece in torch.split(features, PIECE)])

    def each(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., M): what each network would make of it alone."""
        M, _, H = self.mid.shape
        scaled = (features - self.mean) / (self.variance.sqrt() + DEVIATION_MIN)
        hidden = F.relu(self.up(scaled)).reshape(-1, M, H).transpose(0, 1)  # (M, ·, H)
        hidden = F.relu(torch.baddbmm(self.mid_bias, hidden, self.mid))
        scores = torch.bmm(hidden, self.out[..., None])[..., 0]  # (M, ·)
        return (features @ self.linear)[..., None] + scores.T.reshape(*features.shape[:-1], M)

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Moves the running mean and variance towards those of features (C, F)."""
        if len(features) < 2:
            return
        self.batches += 1
        share = max(1 / int(self.batches), SLOWEST)
        self.mean += share * (features.mean(0) - self.mean)
        self.variance += share * ((features - self.mean).square().mean(0) - self.variance)


def listwise_losses(scores: Tensor, owners: Tensor, places: Tensor) -> Tensor:
    """Softmax cross-entropy over the candidates of each click: scores (C,), owners (C,) which of the N clicks each
    belongs to, places (N,) of the clicked items among the C -> (N,) in nats.

    This is ListNet's top-one loss (Cao et al. 2007) with one relevant item. N clicks without candidates are undefined.
    """
    most = scores.new_full((len(places),), -torch.inf).scatter_reduce(0, owners, scores.detach(), "amax")
    most = most.clamp(min=-1e30)
    sums = scores.new_zeros(len(places)).index_add(0, owners, (scores - most[owners]).exp())
    return sums.clamp(min=1e-30).log() + most - scores[places]
