"""How good the lists are and how fast: the one place where hit@10, NDCG@10 and quantiles are computed."""

import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

K = 10
DEPTH_MAX = 1_000  # of a measure, as in p@1000
RECENT = 1_000  # scored clicks that the "recent" figures look back on
CURVE_POINTS_MAX = 400
WINDOW_S = 300.0  # that figures of now look back on
_SLICES = 30  # of a window; the oldest one leaves it as a whole
_SLICE_VALUES_MAX = 400  # values of a slice that are kept, chosen by chance


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


class Measure(NamedTuple):
    """A measure over the first `k` places, for clicks with one right item each.

    `p` and `hit` are the share of clicks whose item is among them (what papers on sessions call P@20), `mrr` the mean
    of 1 / (rank + 1), `ndcg` that of 1 / log2(rank + 2); both are 0 beyond.
    """

    kind: str  # of MEASURES
    k: int

    @property
    def name(self) -> str:
        return f"{self.kind}@{self.k}"

    def of(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns what each click counts, (N,), by ranks (N,) from 0; inf: a miss."""
        gain = {"mrr": 1.0 / (ranks + 1.0), "ndcg": 1.0 / np.log2(ranks + 2.0)}.get(self.kind, np.ones_like(ranks))
        counted: NDArray[np.float64] = np.where(ranks < self.k, gain, 0.0)
        return counted


MEASURES = ("p", "hit", "mrr", "ndcg")


def parse_measures(text: str) -> tuple[Measure, ...]:
    """`p@20,mrr@20` as measures, each once. Raises ValueError with one line."""
    found = {}
    for part in filter(None, (part.strip().lower() for part in text.split(","))):
        match = re.fullmatch(rf"({'|'.join(MEASURES)})@(\d{{1,9}})", part)
        if match is None or not 1 <= int(match[2]) <= DEPTH_MAX:
            raise ValueError(f"there is no {part!r}; there are {', '.join(f'{one}@K' for one in MEASURES)}, as in p@20")
        found[part] = Measure(match[1], int(match[2]))
    if not found:
        raise ValueError("it names no measure, as in p@20,mrr@20")
    return tuple(found.values())


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

    @property
    def sums(self) -> NDArray[np.float64]:
        """(methods, 2) sums of hit@10 and NDCG@10 over all scored clicks; a copy."""
        return self._sums.copy()

    def total(self) -> dict[str, dict[str, float]]:
        return self.named(self._sums / max(1, self.scored))

    def recent(self) -> dict[str, dict[str, float]]:
        return self.named(np.mean(self._recent, axis=0) if self._recent else np.zeros_like(self._sums))

    def named(self, means: NDArray[np.float64]) -> dict[str, dict[str, float]]:
        """Returns (methods, 2) means by the names of methods and measures."""
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


class ScoreWindow:
    """Mean hit@10 and NDCG@10 of the clicks that were scored in the latest minutes: the difference of running sums."""

    def __init__(self, window_s: float = WINDOW_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`window_s`: how far it looks back, in seconds; `monotonic`: a clock, in seconds."""
        self._window_s, self._monotonic = window_s, monotonic
        self._points: deque[tuple[float, int, NDArray[np.float64]]] = deque()  # at, scored, sums; a slice apart

    def means(self, scores: Scores) -> dict[str, dict[str, float]]:
        """Returns the means by method, to be called often; empty if no click was scored in the window."""
        now, scored, sums = self._monotonic(), scores.scored, scores.sums
        if self._points and scored < self._points[-1][1]:  # an earlier state was restored
            self._points.clear()
        if not self._points or now - self._points[-1][0] >= self._window_s / _SLICES:
            self._points.append((now, scored, sums))
        while len(self._points) > 1 and now - self._points[0][0] > self._window_s:
            self._points.popleft()
        _, scored_before, sums_before = self._points[0]
        if scored == scored_before:
            return {}
        return scores.named((sums - sums_before) / (scored - scored_before))


@dataclass(slots=True)
class _Slice:
    """A part of a window: when it began, how many values came, and those that are kept."""

    began: float
    seen: int = 0
    values: list[float] = field(default_factory=list)


class Latencies:
    """Quantiles over the latest minutes, from a sample of at most some thousand values.

    A latency is the difference of two clocks: the producer's and this computer's. Where they disagree so much that it
    would be negative, it is not known and only counted.
    """

    def __init__(
        self,
        window_s: float = WINDOW_S,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        observe: Callable[[float], None] = lambda _: None,
    ) -> None:
        """
        Args:
            window_s: how far quantiles look back, in seconds.
            monotonic: a clock, in seconds.
            observe: called with each latency, in seconds.
        """
        self._window_s, self._monotonic, self._observe = window_s, monotonic, observe
        self._slices: deque[_Slice] = deque()
        self._random = random.Random(0)
        self.unknown = 0

    def add(self, spans_ms: Iterable[tuple[float, float]]) -> None:
        """Beginnings and ends, in ms since 1970; a beginning that is not above 0 is not known."""
        now = self._monotonic()
        if not self._slices or now - self._slices[-1].began >= self._window_s / _SLICES:
            self._slices.append(_Slice(now))
        self._leave(now)
        part = self._slices[-1]
        for began_ms, ended_ms in spans_ms:
            if 0 < began_ms <= ended_ms:
                self._observe((ended_ms - began_ms) / 1_000)
                self._sample(part, ended_ms - began_ms)
            else:
                self.unknown += 1

    def quantiles(self) -> dict[str, float | None]:
        """Returns p50 and p99 in ms; None if nothing came in the window."""
        self._leave(self._monotonic())
        values = [value for part in self._slices for value in part.values]
        if not values:
            return {"p50": None, "p99": None}
        weights = [part.seen / len(part.values) for part in self._slices for _ in part.values]
        p50, p99 = np.quantile(values, (0.5, 0.99), method="inverted_cdf", weights=weights)
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}

    def _sample(self, part: _Slice, value: float) -> None:
        """Keeps a value, or puts it in the place of another by chance, so that all have the same (algorithm R)."""
        part.seen += 1
        if len(part.values) < _SLICE_VALUES_MAX:
            part.values.append(value)
        elif (at := self._random.randrange(part.seen)) < _SLICE_VALUES_MAX:
            part.values[at] = value

    def _leave(self, now: float) -> None:
        while self._slices and now - self._slices[0].began > self._window_s:
            self._slices.popleft()
