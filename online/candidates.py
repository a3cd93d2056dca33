"""The items a list is made of, and what is counted of each: a ragged batch, gathered without a loop over users.

Letters: `N` queries, `L` latest clicks of each, `E` entries looked at, `C` candidates of all of them (flat), `V` rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from online.counts import NEAR, Counts
from online.features import COUNTED
from online.moments import Moments

OWN_DECAY, NEAR_DECAY = 0.98, 0.85
SECOND_MAX, NEAR_MAX, POPULAR_MAX = 50, 100, 60


class Asked(NamedTuple):
    """What is known of a person at the moment they are asked about, latest click first; 0 beyond its length."""

    rows: Tensor  # (N, L) int64
    times: Tensor  # (N, L) float64 seconds
    lengths: Tensor  # (N,) int64
    now: Tensor  # (N,) float64 seconds

    def gaps(self) -> Tensor:
        """log(1 + seconds since the last click), 0 where there is none, (N,)."""
        return torch.where(self.lengths > 0, (self.now - self.times[:, 0]).clamp(min=0).log1p(), 0).float()

    def moment(self) -> Moments:
        """What they are asked at, as a moment to be compared with others."""
        rows = F.pad(self.rows, (0, max(0, 2 - self.rows.shape[1])))
        return Moments(rows[:, 0], rows[:, 1], self.now, self.gaps())


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
        """Keys (E,) -> for each, the place of one that is equal, the same for all equal ones; and whether it is its own."""
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


class Candidates(NamedTuple):
    """Candidates of N queries, each query's once, sorted by query and row."""

    owners: Tensor  # (C,) int64, which of the N
    rows: Tensor  # (C,) int64, never 0
    starts: Tensor  # (N + 1,) int64
    features: Tensor  # (C, F) float32


class Gatherer:
    """Makes candidates from counts, histories, and the items that remembered moments point at."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.places = Places(counts.device)

    def gather(self, asked: Asked, recalled: Tensor, blocked: Tensor, *, exclude_seen: bool) -> Candidates:
        """recalled (N, R) rows that recall points at, 0 for none; blocked (V,) bool: rows never to be candidates."""
        counts, V = self.counts, len(self.counts)
        N, L = asked.rows.shape
        device = asked.rows.device
        users = torch.arange(N, device=device)
        base = users[:, None] * V
        self.places.room(N * V)
        padded = F.pad(asked.rows, (0, max(0, NEAR - L)))
        last, before = padded[:, 0], padded[:, 1]
        near_rows, near_scores = self._near(padded[:, :NEAR], base)
        best = near_scores.topk(min(NEAR_MAX, near_scores.shape[1]), 1)
        popular = torch.cat(
            [counts.popular(POPULAR_MAX, half_life, blocked) for half_life in range(len(counts.half_lives))]
        )

        first, second, third, preceding = (counts.tables[name] for name in ("first", "second", "third", "before"))
        first_keys, first_counts = base + first.others[last], first.counts[last]
        second_keys, second_counts = base + second.others[before], second.counts[before]
        second_best = second_counts.topk(min(SECOND_MAX, second.held), 1).indices
        own_keys = base + asked.rows
        everything = [
            first_keys,
            second_keys.gather(1, second_best),
            torch.where(best.values > 0, base + near_rows.gather(1, best.indices), base),
            base + popular,
            base + recalled,
            own_keys,
        ]
        keys = torch.cat(everything, 1).flatten()
        _, single = self.places.one_of_each(keys)
        keys = keys[single]
        rows = keys % V
        allowed = (rows > 0) & ~blocked[rows]
        if exclude_seen:
            self.places.set(own_keys.flatten()[self.places.one_of_each(own_keys.flatten())[1]])
            allowed &= self.places.find(keys) == len(self.places.keys)
        keys = keys[allowed].sort().values
        self.places.set(keys)
        owners, rows = keys // V, keys % V
        C = len(keys)

        def summed(keys: Tensor, weights: Tensor) -> Tensor:
            return torch.zeros(C + 1, device=device).index_add_(0, self.places.find(keys).flatten(), weights.flatten())[
                :C
            ]

        third_row = padded[:, 2]
        f: dict[str, Tensor] = {}
        followed = summed(first_keys, first_counts)
        f["followed_last"] = followed.log1p()
        f["share_last"] = followed / (first.totals[last][owners] + 1)
        followed = summed(second_keys, second_counts)
        f["followed_before"] = followed.log1p()
        f["share_before"] = followed / (second.totals[before][owners] + 1)
        f["followed_third"] = summed(base + third.others[third_row], third.counts[third_row]).log1p()
        f["preceded_last"] = summed(base + preceding.others[last], preceding.counts[last]).log1p()
        clicks = counts.clicks[rows].log1p() / 4
        f["preceded_rate"] = f["preceded_last"] / (1 + clicks)
        near = summed(base + near_rows, near_scores.clamp(min=0))
        most = torch.zeros(N, device=device).scatter_reduce_(0, owners, near, "amax")
        f["near"] = (near + 1e-3).log() + 7
        f["near_share"] = near / (most[owners] + 1e-6)
        self._own(f, asked, own_keys, owners, C)
        f["is_last"] = (rows == last[owners]).float()
        f["is_before"] = (rows == before[owners]).float()
        f["clicks"] = clicks
        now = asked.now[owners]
        f["elapsed"] = (now - counts.last_at[rows]).clamp(min=0).log1p().float() / 4
        f["lifetime"] = (now - counts.first_at[rows]).clamp(min=0).log1p().float() / 4
        f["gap"] = (asked.gaps() / 4)[owners]
        f["last_clicks"] = (first.totals[last].log1p() / 4)[owners]
        features = torch.stack([f[name] for name, *_ in COUNTED], 1)
        features = torch.cat([features, counts.popularity(rows).log1p()], 1)
        starts = torch.searchsorted(owners, torch.arange(N + 1, device=device))
        return Candidates(owners, rows, starts, features)

    def _near(self, latest: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """What occurs near the latest clicks (N, NEAR) -> rows (N, E), each once where its score is above 0, and scores (N, E)."""
        counts, table = self.counts, self.counts.tables["near"]
        weights = NEAR_DECAY ** torch.arange(latest.shape[1], device=latest.device) / (counts.clicks[latest] + 5).sqrt()
        rows = table.others[latest].long().flatten(1)  # (N, E)
        scores = (table.counts[latest] * weights[..., None]).flatten(1) / (counts.clicks[rows] + 5).sqrt()
        chosen, single = self.places.one_of_each((base + rows).flatten())
        sums = torch.zeros(rows.numel(), device=rows.device).index_add_(0, chosen, scores.flatten())
        return rows, torch.where(single & (rows.flatten() > 0), sums, 0).view_as(scores)

    def _own(self, f: dict[str, Tensor], asked: Asked, own_keys: Tensor, owners: Tensor, C: int) -> None:
        N, L = asked.rows.shape
        device = owners.device
        places = self.places.find(own_keys).flatten()
        ages = torch.arange(L, device=device).expand(N, L).flatten()
        places = torch.where(ages < asked.lengths.repeat_interleave(L), places, C)
        times = torch.zeros(C + 1, device=device).index_add_(0, places, torch.ones(len(places), device=device))[:C]
        newest = torch.full((C + 1,), L - 1, device=device).scatter_reduce_(0, places, ages, "amin")[:C]
        oldest = torch.zeros(C + 1, dtype=torch.int64, device=device).scatter_reduce_(0, places, ages, "amax")[:C]
        ever = times > 0
        age = newest.float()
        now, latest_at = asked.now[owners], asked.times[owners, newest]
        elapsed = (now - latest_at).clamp(min=0).float()
        history = asked.lengths.float().log1p()
        f["own_times"] = times.log1p()
        f["own_share"] = f["own_times"] / (history[owners] + 1)
        f["own_decayed"] = times.sqrt() * OWN_DECAY**age
        f["own_age"] = torch.where(ever, age.log1p(), 0)
        f["own_elapsed"] = torch.where(ever, elapsed.log1p() / 4, 0)
        mean_gap = (latest_at - asked.times[owners, oldest]).clamp(min=0).float() / (times - 1).clamp(min=1)
        f["own_rhythm"] = torch.where(times > 1, ((elapsed + 60) / (mean_gap + 60)).log(), 0)
        f["own_ever"] = ever.float()
        f["own_length"] = f["own_ever"] * (history / 4)[owners]
        f["history"] = (history / 4)[owners]
