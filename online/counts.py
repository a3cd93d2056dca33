"""Live counts of all clicks, as fixed-width tensors: what follows an item, what occurs near it, what is popular now.

Letters: `V` rows of the vocabulary, `M` entries kept of a row, `K` pairs of a batch, `N` clicks of a batch,
`P` half-lives.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.vocabulary import grown

NEAR = 20  # clicks back in which two items count as near each other
THIRD = slice(2, 5)  # distances 3 to 5, which share one table
BACKWARD = 0.5  # what a neighbour counts that came after, not before
FORGOTTEN_ROWS = 4_096  # gone through at a time, for rows that are to be forgotten
OVERFLOW = 1e12  # of the popularity's weight, at which all are scaled down


class HeavyHitters:
    """Of each row the M heaviest others, by space-saving (Metwally et al. 2005), a whole batch at a time.

    A newcomer goes on from the row's lightest count (0 while a place is free), and of what was there and what comes the
    M heaviest stay. So a count is never too small, and too large by at most total / M; whatever has more is kept:

    - What is not kept has at most the lightest count, for it was no heavier than what drove it out, and the lightest
      count never falls. So who goes on from it has not less than is due.
    - The counts of a row add up to at most its total, for a newcomer that stays adds the lightest count to its own
      weight, and what it drives out had no less. So the lightest of M counts is at most total / M.

    8 M + 4 bytes a row.
    """

    def __init__(self, held: int, device: torch.device) -> None:
        self.held = held
        self.others = torch.zeros(0, held, dtype=torch.int32, device=device)  # (V, M) rows; 0: a free place
        self.counts = torch.zeros(0, held, device=device)  # (V, M)
        self.totals = torch.zeros(0, device=device)  # (V,)

    def grow(self, rows: int) -> None:
        for name in ("others", "counts", "totals"):
            setattr(self, name, _grown(getattr(self, name), rows))

    def add(self, rows: Tensor, others: Tensor, weights: Tensor) -> None:
        """Counts pairs (K,), which may repeat; those with row 0 on either side are left out."""
        counted = (rows > 0) & (others > 0)
        rows, others, weights = rows[counted], others[counted], weights[counted]
        if not len(rows):
            return
        self.totals.index_add_(0, rows, weights)
        V = len(self.totals)
        pairs, which = torch.unique(rows * V + others, return_inverse=True)  # sorted: by row, then by other
        sums = torch.zeros(len(pairs), device=rows.device).index_add_(0, which, weights)
        rows, others = pairs // V, pairs % V
        same = self.others[rows] == others[:, None].to(torch.int32)  # (K, M)
        kept, place = same.any(1), same.to(torch.uint8).argmax(1)
        self.counts[rows[kept], place[kept]] += sums[kept]
        self._take_places(rows[~kept], others[~kept], sums[~kept])

    def _take_places(self, rows: Tensor, others: Tensor, sums: Tensor) -> None:
        """Newcomers (K,), sorted by row: the k-th heaviest of a row takes its k-th lightest place, if it is heavier."""
        if not len(rows):
            return
        heaviest = sums.sort(descending=True, stable=True).indices
        by_row = heaviest[rows[heaviest].sort(stable=True).indices]
        rows, others, sums = rows[by_row], others[by_row], sums[by_row]
        different, start, newcomers = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
        first = newcomers.cumsum(0) - newcomers
        nth = torch.arange(len(rows), device=rows.device) - first[start]
        most = min(int(newcomers.max()), self.held)
        lightest, places = self.counts[different].topk(most, 1, largest=False)  # (rows, most), lightest first
        fits = nth < most
        rows, others, start, nth = rows[fits], others[fits], start[fits], nth[fits]
        counts = lightest[start, 0] + sums[fits]
        stays = counts > lightest[start, nth]
        rows, place = rows[stays], places[start, nth][stays]
        self.counts[rows, place] = counts[stays]
        self.others[rows, place] = others[stays].to(torch.int32)

    def decay(self, factor: float) -> None:
        """Whatever was counted so far counts `factor` of itself from now on; the bounds above scale with it."""
        self.counts *= factor
        self.totals *= factor

    def take_back(self, rows: Tensor, others: Tensor, weights: Tensor) -> None:
        """Pairs (K,) that should not have been counted, with what they counted. What is no longer kept stays gone."""
        counted = (rows > 0) & (others > 0)
        rows, others, weights = rows[counted], others[counted], weights[counted]
        self.totals.index_add_(0, rows, -weights)
        same = self.others[rows] == others[:, None].to(torch.int32)  # (K, M)
        pair, place = same.nonzero(as_tuple=True)
        rows = rows[pair]
        self.counts.index_put_((rows, place), -weights[pair], accumulate=True)
        gone = self.counts[rows, place] <= 0
        self.counts[rows[gone], place[gone]] = 0
        self.others[rows[gone], place[gone]] = 0

    def forget(self, rows: Tensor) -> None:
        """Clears rows (K,), and what other rows counted of them: those places are free again, so that what had no place
        in such a row before, and comes back, counts from 0."""
        cleared = torch.zeros(len(self.others), dtype=torch.bool, device=rows.device)
        cleared[rows] = True
        cleared[0] = False
        for start in range(0, len(self.others), FORGOTTEN_ROWS):  # looked up: to search for each took seconds
            others, counts = (part[start : start + FORGOTTEN_ROWS] for part in (self.others, self.counts))
            gone = cleared[others]
            others[gone], counts[gone] = 0, 0
        self.others[rows], self.counts[rows], self.totals[rows] = 0, 0, 0

    def tensors(self) -> dict[str, Tensor]:
        return {"others": self.others, "counts": self.counts, "totals": self.totals}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` gave; of more than M entries the heaviest, and what comes to fewer finds room."""
        others, counts = tensors["others"], tensors["counts"]
        if counts.shape[1] > self.held:
            heaviest = counts.sort(dim=1, descending=True, stable=True).indices[:, : self.held]
            others, counts = others.gather(1, heaviest), counts.gather(1, heaviest)
        room = self.held - counts.shape[1]
        self.others, self.counts, self.totals = F.pad(others, (0, room)), F.pad(counts, (0, room)), tensors["totals"]


class Counts:
    """What is counted of all items, told of each batch once, after it was scored.

    Of each row M followers and neighbours, of the others max(8, M / 2): 8 (2 M + 3 max(8, M / 2)) + 40 + 8 P bytes.
    """

    def __init__(self, held: int, half_lives: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.half_lives = tuple(half_lives)
        few = max(8, held // 2)
        self.tables = {
            "first": HeavyHitters(held, device),  # followers at distance 1
            "second": HeavyHitters(few, device),
            "third": HeavyHitters(few, device),  # at distances 3 to 5
            "before": HeavyHitters(few, device),  # predecessors at distance 1
            "near": HeavyHitters(held, device),  # within NEAR clicks, before or after
        }
        self.clicks = torch.zeros(0, device=device)  # (V,) ever
        self.first_at = torch.zeros(0, dtype=torch.float64, device=device)  # (V,) active time, seconds; 0: never
        self.last_at = torch.zeros(0, dtype=torch.float64, device=device)
        self._popular = torch.zeros(0, len(self.half_lives), dtype=torch.float64, device=device)  # (V, P), inflated
        self._weights = torch.ones(len(self.half_lives), dtype=torch.float64, device=device)  # what a click counts now
        self._best: dict[tuple[int, int], tuple[Tensor, int, Tensor]] = {}  # what `popular` found since they moved

    def __len__(self) -> int:
        return len(self.clicks)

    def grow(self, rows: int) -> None:
        """Makes room for so many rows, by doubling."""
        rows = grown(rows, max(len(self), 1024))
        if rows == len(self):
            return
        for table in self.tables.values():
            table.grow(rows)
        for name in ("clicks", "first_at", "last_at", "_popular"):
            setattr(self, name, _grown(getattr(self, name), rows))
        self._best.clear()

    def add(self, rows: Tensor, earlier: Tensor, times: Tensor) -> None:
        """A batch of clicks in order: rows (N,), what each person had clicked before (N, NEAR), latest first, 0 where
        there was nothing; times (N,) float64 active time, seconds."""
        for name, (known, others, weights) in self._pairs(rows, earlier).items():
            self.tables[name].add(known, others, weights)
        self.clicks.index_add_(0, rows, torch.ones(len(rows), device=self.device))
        self._add_popularity(rows)
        self.last_at.scatter_reduce_(0, rows, times, "amax")
        fresh = self.first_at[rows] == 0
        self.first_at.scatter_reduce_(0, rows[fresh], times[fresh], "amin", include_self=False)
        for cleared in (self.clicks, self.first_at, self.last_at, self._popular):
            cleared[0] = 0
        self._best.clear()

    def _pairs(self, rows: Tensor, earlier: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """What clicks (N,) after others (N, NEAR) count in each table: rows, others, weights, (K,) each."""
        ones = torch.ones(len(rows), device=self.device)
        third = earlier[:, THIRD]
        near = torch.where(earlier == rows[:, None], 0, earlier).reshape(-1)
        current = rows.repeat_interleave(earlier.shape[1])
        weights = torch.ones(len(near), device=self.device)
        both = torch.cat([near, current]), torch.cat([current, near]), torch.cat([weights, weights * BACKWARD])
        return {
            "first": (earlier[:, 0], rows, ones),
            "second": (earlier[:, 1], rows, ones),
            "before": (rows, earlier[:, 0], ones),
            "third": (third.reshape(-1), rows.repeat_interleave(third.shape[1]), ones.repeat(third.shape[1])),
            "near": both,
        }

    def take_back(self, rows: Tensor, earlier: Tensor, ages: Tensor) -> None:
        """What should not have been counted: rows (N,) and what stood before them (N, NEAR), as `add` was told, 0 in
        whatever pair is to stay; ages (N,) float64: clicks counted since, -1 where the click itself is to stay."""
        for name, (known, others, weights) in self._pairs(rows, earlier).items():
            self.tables[name].take_back(known, others, weights)
        rows, ages = rows[ages >= 0], ages[ages >= 0]
        self.clicks.index_add_(0, rows, -torch.ones(len(rows), device=self.device))
        rates = torch.tensor([2 ** (1 / n) for n in self.half_lives], dtype=torch.float64, device=self.device)
        self._popular.index_add_(0, rows, -self._weights / rates ** (ages[:, None] + 1))
        self._popular.clamp_(min=0)
        nobodys = rows[self.clicks[rows] <= 0]
        for cleared in (self.clicks, self.first_at, self.last_at, self._popular):
            cleared[nobodys] = 0
        self._best.clear()

    def _add_popularity(self, rows: Tensor) -> None:
        """Instead of letting all counts decay with each click, each click counts more than the one before it."""
        N = len(rows)
        rates = torch.tensor([2 ** (1 / n) for n in self.half_lives], dtype=torch.float64, device=self.device)
        weights = self._weights * rates**N
        if float(weights.max()) > OVERFLOW:
            self._popular /= weights  # by inf: what is so long ago counts nothing
            weights = torch.ones_like(weights)
        later = torch.arange(N, 0, -1, device=self.device, dtype=torch.float64)[:, None]
        self._popular.index_add_(0, rows, weights / rates**later)
        self._weights = weights

    def decay(self, factor: float) -> None:
        """The past counts `factor` (from 0 to 1) of itself from now on; which moments were first and last stays."""
        for table in self.tables.values():
            table.decay(factor)
        self.clicks *= factor
        self._popular *= factor
        self._best.clear()

    def popularity(self, rows: Tensor) -> Tensor:
        """Clicks on rows (...), each counting half for every half-life of clicks since -> (..., P) float32."""
        return (self._popular[rows] / self._weights).float()

    def popularity_by(self, half_life: int, rows: int) -> Tensor:
        """The same by one of the half-lives (its place in `half_lives`), of the first `rows` rows, (rows,)."""
        return (self._popular[:rows, half_life] / self._weights[half_life]).float()

    def popular(self, count: int, half_life: int, blocked: Tensor) -> Tensor:
        """The most popular rows by that half-life (its place in `half_lives`), best first, at most `count`, without
        the blocked (V,)."""
        found = self._best.get((count, half_life))
        if found is not None and found[0] is blocked and found[1] == blocked._version:
            return found[2]
        column = torch.where(blocked, 0, self._popular[:, half_life])
        best = column.topk(min(count, len(column))).indices
        best = best[column[best] > 0]
        self._best[count, half_life] = blocked, blocked._version, best
        return best

    def followers_of(self, rows: Tensor, count: int, *, filled_with: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N, count): what followed each row (N,) most often, then `filled_with`, each once; 0 beyond."""
        table = self.tables["first"]
        order = table.counts[rows].sort(dim=1, descending=True, stable=True).indices[:, :count]
        followers = table.others[rows].gather(1, order).cpu().numpy()
        found = np.zeros((len(rows), count), np.int64)
        for at, mine in enumerate(followers.tolist()):
            best = list(dict.fromkeys([row for row in (*mine, *filled_with.tolist()) if row]))[:count]
            found[at, : len(best)] = best
        return found

    def forget_rows(self, rows: Sequence[int]) -> None:
        """Clears rows that are to be handed out again, and what others know of them."""
        at = torch.tensor(list(rows), dtype=torch.int64, device=self.device)
        for table in self.tables.values():
            table.forget(at)
        for cleared in (self.clicks, self.first_at, self.last_at, self._popular):
            cleared[at] = 0
        self._best.clear()

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"{name}.{part}": t for name, table in self.tables.items() for part, t in table.tensors().items()}
        return named | {
            "clicks": self.clicks,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "popular": self._popular,
            "weights": self._weights,
        }

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave, with as many half-lives; of more entries than fit, the heaviest."""
        tensors = {name: torch.from_numpy(array.copy()).to(self.device) for name, array in arrays.items()}
        for name, table in self.tables.items():
            table.load({part: tensors[f"{name}.{part}"] for part in table.tensors()})
        self.clicks, self.first_at, self.last_at = (tensors[name] for name in ("clicks", "first_at", "last_at"))
        self._popular, self._weights = tensors["popular"], tensors["weights"]
        self._best.clear()


def _grown(tensor: Tensor, rows: int) -> Tensor:
    new = tensor.new_zeros(rows, *tensor.shape[1:])
    new[: len(tensor)] = tensor
    return new
