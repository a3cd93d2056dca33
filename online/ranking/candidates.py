"""The items a list is made of, and what is counted of each: a ragged batch, gathered without a loop over users.

Letters: `N` queries, `L` latest clicks of each, `C` candidates of all of them (flat), `V` rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from online.counts import NEAR, Counts
from online.ranking.ahead import Ahead, Counted
from online.ranking.entries import Entries, Neighbours, Places
from online.ranking.features import COUNTED
from online.ranking.moments import Moments

OWN_DECAY, NEAR_DECAY = 0.98, 0.85
SECOND_MAX, NEAR_MAX, POPULAR_MAX = 50, 100, 60


class Asked(NamedTuple):
    """What is known of a person at the moment they are asked about, latest click first; 0 beyond its length."""

    rows: Tensor  # (N, L) int64
    times: Tensor  # (N, L) float64 seconds
    lengths: Tensor  # (N,) int64
    now: Tensor  # (N,) float64 seconds
    active: Tensor  # (N,) float64 active time then (online/stream_time.py), for what ages with the stream

    def gaps(self) -> Tensor:
        """log(1 + seconds since the last click), 0 where there is none, (N,)."""
        return torch.where(self.lengths > 0, (self.now - self.times[:, 0]).clamp(min=0).log1p(), 0).float()

    def moment(self) -> Moments:
        """What they are asked at, as a moment to be compared with others."""
        rows = F.pad(self.rows, (0, max(0, 2 - self.rows.shape[1])))
        return Moments(rows[:, 0], rows[:, 1], self.now, self.gaps())


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

    def gather(
        self,
        asked: Asked,
        recalled: Tensor,
        blocked: Tensor,
        *,
        exclude_seen: bool,
        seen: tuple[Tensor, Tensor] | None = None,
        ahead: Ahead | None = None,
    ) -> Candidates:
        """recalled (N, R) rows that recall points at, 0 for none; blocked (V,) bool: rows never to be candidates;
        exclude_seen: nor what stands in `asked`; seen (query_ids (S,), rows (S,)): nor these; ahead: clicks of a
        micro-batch that are not counted yet."""
        V = len(self.counts)
        N, L = asked.rows.shape
        queries = torch.arange(N + 1, device=asked.rows.device)
        base = queries[:N, None] * V
        self.places.room(N * V)
        latest = F.pad(asked.rows, (0, max(0, NEAR - L)))[:, :NEAR]
        found = self._neighbours(latest, base)
        totals = {name: self.counts.tables[name].totals[latest[:, at]] for at, name in enumerate(("first", "second"))}
        counted = None if ahead is None else Counted(ahead, latest, base)
        if counted is not None:
            found, more = counted.pairs(found)
            totals = {name: total + more[name] for name, total in totals.items()}
        own = base + asked.rows
        sources = [
            found.first.keys,
            found.second.heaviest(SECOND_MAX),
            found.near.heaviest(NEAR_MAX),
            base + self._popular(blocked),
            base + recalled,
            own,
            *([] if counted is None else [counted.keys]),
        ]
        excluded = [own.flatten()] if exclude_seen else []
        if seen is not None:
            query_ids, seen_rows = seen
            excluded.append(query_ids * V + seen_rows)
        keys = self._allowed(torch.cat(sources, 1).flatten(), torch.cat(excluded) if excluded else None, blocked)
        self.places.set(keys)
        owners, rows = keys // V, keys % V
        clicks, last_at, first_at = (
            part[rows] for part in (self.counts.clicks, self.counts.last_at, self.counts.first_at)
        )
        popularity = self.counts.popularity(rows)
        if counted is not None:
            counted.find(self.places)
            clicks, last_at, first_at = counted.items(clicks, last_at, first_at)
            popularity = counted.popularity(popularity, owners, self.counts.half_lives)
        now = asked.active[owners]
        columns = self._of_neighbours(found, totals, latest, owners)
        columns |= self._of_history(asked, own, latest, owners, rows)
        columns |= {
            "clicks": clicks.log1p() / 4,
            "elapsed": (now - last_at).clamp(min=0).log1p().float() / 4,
            "lifetime": (now - first_at).clamp(min=0).log1p().float() / 4,
        }
        columns["preceded_rate"] = columns["preceded_last"] / (1 + columns["clicks"])
        features = torch.stack([columns[feature.name] for feature in COUNTED], 1)
        features = torch.cat([features, popularity.log1p()], 1)
        return Candidates(owners, rows, torch.searchsorted(owners, queries), features)

    # What may be a candidate

    def _neighbours(self, latest: Tensor, base: Tensor) -> Neighbours:
        """Of the latest clicks (N, NEAR)."""
        last, before, third = latest[:, 0], latest[:, 1], latest[:, 2]
        opened = {"first": last, "second": before, "third": third, "before": last}
        tables = self.counts.tables
        entries = {
            name: Entries(base + tables[name].others[row], tables[name].counts[row]) for name, row in opened.items()
        }
        return Neighbours(**entries, near=self._near(latest, base))

    def _near(self, latest: Tensor, base: Tensor) -> Entries:
        """What occurs near the latest clicks (N, NEAR), with scores for counts: where an item stands several times, one
        has them all, and the others 0."""
        counts, table = self.counts, self.counts.tables["near"]
        weights = NEAR_DECAY ** torch.arange(latest.shape[1], device=latest.device) / (counts.clicks[latest] + 5).sqrt()
        rows = table.others[latest].long().flatten(1)  # (N, E)
        scores = (table.counts[latest] * weights[..., None]).flatten(1) / (counts.clicks[rows] + 5).sqrt()
        keys = base + rows
        chosen, single = self.places.one_of_each(keys.flatten())
        sums = torch.zeros(rows.numel(), device=rows.device).index_add_(0, chosen, scores.flatten())
        return Entries(keys, torch.where(single, sums, 0).view_as(scores))

    def _popular(self, blocked: Tensor) -> Tensor:
        """The most popular rows by each of the half-lives."""
        half_lives = range(len(self.counts.half_lives))
        return torch.cat([self.counts.popular(POPULAR_MAX, half_life, blocked) for half_life in half_lives])

    def _allowed(self, keys: Tensor, seen: Tensor | None, blocked: Tensor) -> Tensor:
        """Keys (E,) -> each once and sorted, without those of row 0, of blocked rows, and the `seen` ones."""
        keys = keys[self.places.one_of_each(keys)[1]]
        rows = keys % len(self.counts)
        allowed = (rows > 0) & ~blocked[rows]
        if seen is not None:
            self.places.set(seen[self.places.one_of_each(seen)[1]])
            allowed &= self.places.find(keys) == len(self.places.keys)
        return keys[allowed].sort().values

    # What is counted of the candidates, whose keys `places` holds; (C,) each, by the names in features.py

    def _of_neighbours(
        self, found: Neighbours, totals: dict[str, Tensor], latest: Tensor, owners: Tensor
    ) -> dict[str, Tensor]:
        def share(name: str, counts: Tensor) -> Tensor:
            return counts / (totals[name][owners] + 1)

        first, second, third, before, near = (self._summed(entries) for entries in found)
        most = torch.zeros(len(latest), device=owners.device).scatter_reduce_(0, owners, near, "amax")
        return {
            "followed_last": first.log1p(),
            "share_last": share("first", first),
            "followed_before": second.log1p(),
            "share_before": share("second", second),
            "followed_third": third.log1p(),
            "preceded_last": before.log1p(),
            "near": (near + 1e-3).log() + 7,
            "near_share": near / (most[owners] + 1e-6),
            "last_clicks": (totals["first"].log1p() / 4)[owners],
        }

    def _summed(self, entries: Entries) -> Tensor:
        places, C = self.places.find(entries.keys).flatten(), len(self.places.keys)
        sums = torch.zeros(C + 1, device=places.device)  # the last: of what is no candidate
        return sums.index_add_(0, places, entries.counts.flatten())[:C]

    def _of_history(self, asked: Asked, own: Tensor, latest: Tensor, owners: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """own (N, L): the keys of the histories."""
        times, newest, oldest = self._own_clicks(own)
        ever, age, log_times = times > 0, newest.float(), times.log1p()
        clicked_at = asked.times[owners, newest]
        elapsed = (asked.now[owners] - clicked_at).clamp(min=0).float()
        mean_gap = (clicked_at - asked.times[owners, oldest]).clamp(min=0).float() / (times - 1).clamp(min=1)
        history = asked.lengths.float().log1p()
        return {
            "own_times": log_times,
            "own_share": log_times / (history[owners] + 1),
            "own_decayed": times.sqrt() * OWN_DECAY**age,
            "own_age": torch.where(ever, age.log1p(), 0),
            "own_elapsed": torch.where(ever, elapsed.log1p() / 4, 0),
            "own_rhythm": torch.where(times > 1, ((elapsed + 60) / (mean_gap + 60)).log(), 0),
            "own_ever": ever.float(),
            "own_length": ever.float() * (history / 4)[owners],
            "is_last": (rows == latest[owners, 0]).float(),
            "is_before": (rows == latest[owners, 1]).float(),
            "history": (history / 4)[owners],
            "gap": (asked.gaps() / 4)[owners],
        }

    def _own_clicks(self, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How often each candidate stands in its owner's history; the places of its latest and its first click."""
        N, L = own.shape
        C = len(self.places.keys)
        places = self.places.find(own).flatten()
        ages = torch.arange(L, device=own.device).expand(N, L).flatten()
        times = torch.zeros(C + 1, device=own.device).index_add_(0, places, torch.ones(N * L, device=own.device))
        newest = torch.full((C + 1,), L - 1, device=own.device).scatter_reduce_(0, places, ages, "amin")
        oldest = torch.zeros(C + 1, dtype=torch.int64, device=own.device).scatter_reduce_(0, places, ages, "amax")
        return times[:C], newest[:C], oldest[:C]
