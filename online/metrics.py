"""How good the lists are and how fast: the one place where hit@10, NDCG@10 and quantiles are computed."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

K = 10
RECENT = 1_000  # scored clicks that the "recent" figures look back on
CURVE_POINTS_MAX = 400


def hit_and_ndcg(lists: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """hit@10 and NDCG@10 of one click each: 1 / log2(rank + 2) where the rank (from 0) is below 10, else 0.

    Args:
        lists: (N, >= 10) item rows, best first; 0 = nothing stands there.
        targets: (N,) the row clicked; 0 = an item never seen before, always a miss.
    """
    hits = (lists[:, :K] == targets[:, None]) & (targets[:, None] != 0)  # (N, K)
    gains = 1.0 / np.log2(np.arange(hits.shape[1]) + 2.0)
    return hits.any(1).astype(np.float64), (hits * gains).max(1, initial=0.0)


def hit_and_ndcg_at(ranks: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same from ranks (from 0; half a rank for each tie, inf for a miss) of any shape."""
    hit = ranks < K
    return hit.astype(np.float64), np.where(hit, 1.0 / np.log2(ranks + 2.0), 0.0)


def ranks_in(lists: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) ranks of the targets (N,) in lists (N, K) of rows, best first; inf where not in it, or 0 (unknown)."""
    found = (lists == targets[:, None]) & (targets[:, None] != 0)
    return np.where(found.any(1), found.argmax(1), np.inf)


class Scores:
    """Running hit@10 and NDCG@10 of several methods: since the beginning, lately, and over the course of the stream."""

    def __init__(self, methods: Iterable[str]) -> None:
        self.methods = tuple(methods)
        self.scored = 0
        self._sums = np.zeros((len(self.methods), 2))
        self._recent: deque[NDArray[np.float64]] = deque(maxlen=RECENT)
        self._stride = 1_000
        self.curve: list[tuple[int, list[list[float]]]] = []  # (clicks scored, sums so far), thinned as it grows

    def add(self, lists: Mapping[str, NDArray[Any]], targets: NDArray[Any]) -> None:
        """Scores N clicks; `lists` has an (N, >= 10) array for each method."""
        each = np.stack(
            [np.stack(hit_and_ndcg(lists[name], targets), -1) for name in self.methods], 1
        )  # (N, methods, 2)
        for one in each:
            self._sums += one
            self._recent.append(one)
            self.scored += 1
            if self.scored % self._stride == 0:
                self.curve.append((self.scored, self._sums.tolist()))
        if len(self.curve) > CURVE_POINTS_MAX:
            self._stride *= 2
            self.curve = [point for point in self.curve if point[0] % self._stride == 0]

    def total(self) -> dict[str, dict[str, float]]:
        return self._named(self._sums / max(1, self.scored))

    def recent(self) -> dict[str, dict[str, float]]:
        return self._named(np.mean(self._recent, axis=0) if self._recent else np.zeros_like(self._sums))

    def _named(self, means: NDArray[np.float64]) -> dict[str, dict[str, float]]:
        return {
            name: {"hit@10": round(float(hit), 5), "ndcg@10": round(float(ndcg), 5)}
            for name, (hit, ndcg) in zip(self.methods, means, strict=True)
        }

    def to_state(self) -> dict[str, Any]:
        return {
            "scored": self.scored,
            "sums": self._sums.tolist(),
            "recent": [one.tolist() for one in self._recent],
            "stride": self._stride,
            "curve": self.curve,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.scored, self._stride = state["scored"], state["stride"]
        self._sums = np.array(state["sums"])
        self._recent = deque((np.array(one) for one in state["recent"]), maxlen=RECENT)
        self.curve = [(scored, sums) for scored, sums in state["curve"]]


class Latencies:
    """Quantiles over the latest 10,000 values.

    A latency is the difference of two clocks: the producer's and this computer's. Where they disagree so much that it
    would be negative, it is not known and only counted.
    """

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=10_000)
        self.unknown = 0

    def add(self, spans_ms: Iterable[tuple[float, float]]) -> None:
        """Beginnings and ends, in ms since 1970; a beginning that is not above 0 is not known."""
        for began_ms, ended_ms in spans_ms:
            if 0 < began_ms <= ended_ms:
                self._values.append(ended_ms - began_ms)
            else:
                self.unknown += 1

    def quantiles(self) -> dict[str, float | None]:
        if not self._values:
            return {"p50": None, "p99": None}
        p50, p99 = np.quantile(np.array(self._values), (0.5, 0.99))
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
