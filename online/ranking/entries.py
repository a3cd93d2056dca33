"""What tables hold of queries, and where among the candidates it stands.

Letters: `N` queries, `E` entries looked at, `C` candidates of all queries (flat), `V` rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Places:
    """Where keys below `size` stand in a list of different ones, by a table that need not be cleared between uses
    (Briggs and Torczon 1993: sparse sets)."""

    def __init__(self, device: torch.device) -> None:
        self._table = torch.zeros(0, dtype=torch.int32, device=device)
        self.keys = torch.zeros(0, dtype=torch.int64, device=device)

    def room(self, size: int) -> None:
        if len(self._table) < size:
            self._table = torch.zeros(size, dtype=torch.int32, device=self._table.device)

    def one_of_each(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (E,) -> for each, the place of one that is equal, the same for all equal ones; whether it is its own.
        What was set before is not found any more."""
        number = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        self._table[keys] = number
        chosen = self._table[keys]
        return chosen.long(), chosen == number

    def set(self, keys: Tensor) -> None:
        """Different keys (C,)."""
        self.keys = keys
        self._table[keys] = torch.arange(len(keys), dtype=torch.int32, device=keys.device)

    def find(self, keys: Tensor) -> Tensor:
        """Places of keys (...) in what was set; C where they are not."""
        C = len(self.keys)
        if not C:
            return torch.zeros_like(keys)
        place = self._table[keys].long()
        place = torch.where(place < C, place, 0)
        return torch.where(self.keys[place] == keys, place, C)


class Entries(NamedTuple):
    """What a table holds of N queries."""

    keys: Tensor  # (N, E) int64: query · V + row
    counts: Tensor  # (N, E)

    def heaviest(self, count: int) -> Tensor:
        """Their keys (N, at most `count`)."""
        return self.keys.gather(1, self.counts.topk(min(count, self.counts.shape[1]), 1).indices)

    def and_also(self, more: "Entries") -> "Entries":
        """Both; what stands in both counts as often."""
        return Entries(torch.cat([self.keys, more.keys], 1), torch.cat([self.counts, more.counts], 1))


class Neighbours(NamedTuple):
    """What the tables hold of each query's latest clicks. Row 0 stands where they hold nothing."""

    first: Entries  # followers of the last item
    second: Entries  # of the one before it, one between
    third: Entries  # of the third last
    before: Entries  # predecessors of the last
    near: Entries  # what occurs near the latest ones, each once where its score is above 0
