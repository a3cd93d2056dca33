"""Recall: pointer attention over remembered moments, each of which points at the item that was clicked then.

Letters: `P` moments found, `H` heads, `F` parts of a key, `A` buckets of age, `C` candidates of all queries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

AGES = 40  # buckets of log2(1 + seconds)


class RecallHeads(nn.Module):
    """Soft counts of each candidate: how many moments point at it, each weighted by how like the present it was.

    Head h weighs a moment by exp(sum over parts of gain[h, part] · (cosine of the part − 1) + recency[h, log age]).
    This is not normalised: it is 1 where all parts agree and it was just now, and soft counts add up. A part with gain
    0 is silent, and lets itself in by its gradient.
    """

    def __init__(self, gains: Sequence[Sequence[float]], *, decay: float = 0.05) -> None:
        """`gains` (H, F) at the start; `decay`: what each doubling of the age takes off the exponent at the start."""
        super().__init__()
        self.gains = nn.Parameter(torch.tensor(gains))
        self.recency = nn.Parameter(-decay * torch.arange(AGES).float().repeat(len(gains), 1))  # (H, A)

    def forward(self, cosines: Tensor, ages_s: Tensor, places: Tensor, candidates: int) -> Tensor:
        """Moments' cosines with their queries (P, F), ages in seconds (P,), and places (P,) int64 of the candidates
        they point at (`candidates`, which is C, for none) -> log(1 + soft count) of each candidate, (C, H).

        This is the slow reference: what ranks computes the same, gradients too, in compiled loops
        (online/learner/recall.py).
        """
        age = torch.log2(ages_s.clamp(min=0).float() + 1).long().clamp(max=AGES - 1)
        weights = torch.exp((cosines - 1) @ self.gains.T + self.recency.T[age])  # (P, H)
        counts = weights.new_zeros(candidates + 1, len(self.gains)).index_add(0, places, weights)
        return torch.log1p(counts[:candidates])
