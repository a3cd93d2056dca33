"""Which event types each item meets with, and which values: facts, counted for all clicks of a micro-batch at once,
after it is scored. What a user did is read from the user's history, so nothing is kept of users here.

Letters: `N` clicks, `C` candidates of all queries (flat), `T` named event types, `W` columns, `V` rows of items.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.config.event_weights import weights_in
from online.config.settings import Settings
from online.learner.batches import StepWorth
from online.learner.facts.gather import QueryArrays
from online.learner.facts.store import Gathered
from online.learner.history import UserHistories, earlier_in_batch
from online.learner.worth.kernels import fill_columns

ITEM_HALF_LIFE = 200.0  # events of an item after which an event counts half
ALL_HALF_LIFE = 20_000.0  # events of all items, likewise for the usual shares, and means
SHARE_MIN = 1e-3  # of a type among all events, so that one that never came has odds at all
SHARE_PRIOR = 20.0  # events that the usual shares begin with, spread evenly
DAY_S = 86_400.0
#: Columns of a candidate: of each named type, and then the others. Those that say what is lost are the last, and no
#: inputs of the heads.
OF_TYPES = ("item_odds", "user_odds", "latest_is", "times", "just_now")
OTHERS = ("events", "place", "age", "item_value", "user_value", "lost_with_user", "lost_with_others")
LOST = slice(-2, None)
LOST_WITH_USER = -2


class EventWorth:
    """Weights by event type, and counts of items by event type and value: 4 (T + 3) bytes a row."""

    def __init__(self, settings: Settings, event_types: Callable[[], Mapping[str, int]]) -> None:
        """`event_types`: returns the numbers of the event types."""
        self.settings, self.event_types = settings, event_types
        self.by_type = weights_in(settings.event_weights)
        self.names = tuple(self.by_type)
        self.weights = np.array(list(self.by_type.values()), np.float64)  # (T,)
        #: (T,) share of its score that an item loses by an event: 1 − e^weight, so that −1 takes 63 % and −3 95 %.
        self.lost = np.where(self.weights < 0, -np.expm1(np.minimum(self.weights, 0.0)), 0.0)
        T = len(self.names)
        self.counts = np.zeros((0, T + 1), np.float32)  # (V, T + 1) fading events by type, and of all types
        self.values = np.zeros((0, 2), np.float32)  # (V, 2) fading sum of values, and clicks with one
        self.total = np.full(T + 1, SHARE_PRIOR / (T + 1), np.float64)  # of all items
        self.total[T] = SHARE_PRIOR
        #: Fading sums over all clicks: values, clicks with one; log(1 + value); weights that train, clicks.
        self.sums = np.zeros(5)
        self._scratch = _scratch(0, T)
        self._mark = 0  # of the scratch

    # Rows of items

    def grow(self, rows: int) -> None:
        """Makes room for so many rows."""
        more = rows - len(self.counts)
        if more > 0:
            self.counts = np.pad(self.counts, ((0, more), (0, 0)))
            self.values = np.pad(self.values, ((0, more), (0, 0)))
            self._scratch = _scratch(rows, len(self.names))

    def forget_rows(self, rows: Any) -> None:
        """Clears rows that are to be handed out again."""
        self.counts[list(rows)], self.values[list(rows)] = 0, 0

    # Counting

    def add(self, rows: NDArray[np.int64], types: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Counts clicks, in order.

        Args:
            rows: (N,) of the items; 0: it has none.
            types: (N,) numbers of event types.
            values: (N,) NaN: it has none.
        """
        N, T = len(rows), len(self.names)
        if not N:
            return
        kinds, clipped = self._named()[types], self._clipped(values)
        valued = np.isfinite(clipped)
        worth = np.where(valued, clipped, 0.0)
        fade = 2 ** (-1 / ITEM_HALF_LIFE)
        later = fade ** earlier_in_batch(rows[::-1])[::-1]  # (N,) what is left of a click after the item's later ones
        of_row = fade ** np.bincount(rows)[(touched := np.unique(rows))]
        self.counts[touched] *= of_row[:, None]
        self.values[touched] *= of_row[:, None]
        some = np.flatnonzero(kinds >= 0)
        np.add.at(self.counts, (rows[some], kinds[some]), later[some])
        np.add.at(self.counts[:, T], rows, later)
        np.add.at(self.values[:, 0], rows, later * worth)
        np.add.at(self.values[:, 1], rows, later * valued)
        self.counts[0], self.values[0] = 0, 0
        raw = self._raw(types, values)
        all_fade = 2 ** (-N / ALL_HALF_LIFE)
        self.total = all_fade * self.total + np.append(np.bincount(kinds[some], minlength=T), N)
        logs = np.log1p(worth).sum()
        self.sums = all_fade * self.sums + np.array([worth.sum(), valued.sum(), logs, raw.sum(), N])

    def add_feedback(self, row: int, event_type: str) -> None:
        """Counts feedback of a user on an item, such as a dislike, as an event of that type, if it is a named one. It
        is no click, so that the usual shares stay."""
        if row and event_type in self.by_type:
            self.counts[row, self.names.index(event_type)] += 1
            self.counts[row, -1] += 1

    # Weights of clicks

    def wanted(self, types: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns which of N clicks the ranker is trained towards, (N,)."""
        return self._raw(types, values) > 0

    def step(
        self,
        types: NDArray[np.int64],
        values: NDArray[np.float64],
        positions: NDArray[np.int64],
        trainable: NDArray[np.bool_],
    ) -> StepWorth:
        """Returns what n clicks are worth, by the means so far.

        Args:
            types: (n,) numbers of event types.
            values: (n,) NaN: none.
            positions: (n,) of the clicked items among all candidates; −1: none, or flagged.
            trainable: (n,) which are not flagged.
        """
        raw, kinds = self._raw(types, values), self._named()[types]
        mean = self.sums[3] / self.sums[4] if self.sums[4] and self.sums[3] > 0 else max(float(raw.mean()), 1e-9)
        return StepWorth(
            weights=(raw / mean).astype(np.float32),
            positions=positions,
            counted=trainable & (raw > 0),
            labels=(kinds[:, None] == np.arange(len(self.names))).astype(np.float32),
            values=self._clipped(values).astype(np.float32),
            mean_value=self.mean_value,
        )

    @property
    def mean_value(self) -> float:
        """Of clicks that have one; 1 before any has."""
        return max(self.sums[0] / self.sums[1], 1e-6) if self.sums[1] and self.sums[0] > 0 else 1.0

    def _raw(self, types: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns weight times worth of the value, (N,), 0 at least. A click without a value counts as the average."""
        kinds = self._named()[types]
        weights = np.where(kinds >= 0, np.append(self.weights, 1.0)[kinds], 1.0)
        raw = np.maximum(weights, 0.0)
        if self.settings.value_as_worth:
            logs = np.log1p(self._clipped(values))
            mean = self.sums[2] / self.sums[1] if self.sums[1] and self.sums[2] > 0 else 1.0
            raw = raw * np.where(np.isfinite(logs), logs / mean, 1.0)
        return raw

    def _clipped(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(values, 0.0, self.settings.value_max)

    def _named(self) -> NDArray[np.int64]:
        """Returns which of the T each number of an event type is; −1: none."""
        found, numbers = np.full(256, -1), self.event_types()
        for kind, name in enumerate(self.names):
            if name in numbers:
                found[numbers[name]] = kind
        return found

    # Columns

    def with_columns(
        self,
        gathered: Gathered,
        histories: UserHistories,
        queries: QueryArrays,
        behind: NDArray[np.int64] | None = None,
    ) -> Gathered:
        """Returns gathered candidates with what is known of their worth.

        Args:
            gathered: candidates of N queries.
            histories: of the users, with the values of their clicks.
            queries: N of them.
            behind: (N,) clicks at the end of each history that come after the query; None: none.
        """
        T = len(self.names)
        columns = np.empty((len(gathered.rows), len(OF_TYPES) * T + len(OTHERS)), np.float32)
        rows, types, times, _, clicks = histories.rings()
        assert histories.values is not None
        self._mark += 1
        shares = np.clip(self.total[:T] / self.total[T], SHARE_MIN, 1 - SHARE_MIN)
        fill_columns(
            gathered.starts, gathered.rows, queries.slots, queries.now,
            np.zeros(len(queries.slots), np.int64) if behind is None else behind,
            rows, types, times, histories.values, clicks, self._named(), self.lost, shares, self.counts, self.values,
            self.mean_value, self.settings.value_max, DAY_S * self.settings.negative_half_life_days, *self._scratch,
            self._mark, columns,
        )  # fmt: skip
        return gathered._replace(worth=columns)

    # A checkpoint

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and what JSON can hold."""
        arrays: dict[str, NDArray[Any]] = {
            "counts": self.counts.copy(),
            "values": self.values.copy(),
            "total": self.total,
            "sums": self.sums,
        }
        return arrays, {"types": list(self.names)}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` returned; of types that are named now and were not then, nothing is known."""
        before, T = state["types"], len(self.names)
        self.grow(len(arrays["counts"]))
        known = [(now, before.index(name)) for now, name in enumerate(self.names) if name in before]
        for now, then in [*known, (T, len(before))]:
            self.counts[: len(arrays["counts"]), now] = arrays["counts"][:, then]
            self.total[now] = arrays["total"][then]
        self.values[: len(arrays["values"])] = arrays["values"]
        self.sums = arrays["sums"].copy()


def _scratch(
    rows: int, T: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]:
    """Returns working memory of `fill_columns`: places, what a user did, what is known of items, and its stamps."""
    return np.full(rows, -1, np.int64), np.zeros(T), np.zeros((rows, T + 2), np.float32), np.zeros(rows, np.int64)
