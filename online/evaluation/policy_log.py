"""Reads a log of impressions, and the policy that is to be evaluated, for online/evaluation/off_policy.py.

A row is an item that was shown: which (`action`), what came of it (`reward`), the logging policy's probability of
showing it there (`propensity`), its `position`, the `context` that probabilities depend on (columns joined by +), the
`request` it belongs to, and perhaps the evaluated policy's probability (`probability`). A record of impressions
(stream/impressions.py), which holds a whole list, is as many rows.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.evaluation.off_policy import PolicyLog
from stream.event_files import EventFileError
from stream.event_files.table import Row, table_rows

#: What a row has, and the columns that each is read from where nothing else is said (the first that is there).
COLUMNS: dict[str, tuple[str, ...]] = {
    "action": ("action", "item_id", "item"),
    "reward": ("reward", "click"),
    "propensity": ("propensity", "propensity_score", "pscore"),
    "position": ("position", "slot"),
    "context": (),
    "request": ("request_id",),
    "probability": ("probability",),
}
UNIFORM = "uniform"
_ROWS_MIN = 2
_SUM_ERROR = 1e-3
_TRUTHS = {"true": 1.0, "false": 0.0}


class PolicyLogError(Exception):
    """A log or a policy that cannot be evaluated; one line."""


@dataclass(frozen=True)
class Loaded:
    """A log ready for evaluation. `remarks` say what was taken for granted, `actions` counts the distinct ones."""

    log: PolicyLog
    actions: int
    contexts: int
    remarks: list[str] = field(default_factory=list)


def parse_pairs(text: str) -> dict[str, str]:
    """`action=item,reward=click` as {field: column}. Raises ValueError with one line."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, column = (one.strip() for one in part.partition("="))
        if not equals or not column or name not in COLUMNS:
            raise ValueError(f"{part!r} is none of {', '.join(f'{one}=COLUMN' for one in COLUMNS)}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = column
    return found


def load(
    path: Path | str,
    policy: str | None,
    *,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    rows_of: Iterable[Row] | None = None,
) -> Loaded:
    """Reads a log and the evaluated policy's probability of each of its rows.

    Args:
        path: CSV, JSON lines or Parquet; of `rows_of` the name.
        policy: "uniform" (over the actions that the log shows in a context); a file of columns action, probability, and
            perhaps position and those of the context; None: the log's own column `probability`.
        columns: of each field that has another name; a context may join several by +.
        where: only rows in which these columns have these values, as text.
        delimiter: of a CSV.
        rows_of: the log itself, where it is no file.

    Raises:
        PolicyLogError, EventFileError: one line.
    """
    path = Path(path)
    rows = _Rows(path.name, dict(columns or {}))
    for row in _kept(table_rows(path, delimiter) if rows_of is None else rows_of, where or {}):
        rows.add(row)
    if len(rows.action) < _ROWS_MIN:
        raise PolicyLogError(f"{path.name} has {len(rows.action)} rows{' under --where' if where else ''}: too few")
    remarks = rows.remarks()
    if policy is None:
        target = rows.probabilities()
    elif policy == UNIFORM:
        target = _uniform(rows.action, rows.context)
        remarks.append("uniform: over the actions that the log shows in a context")
    else:
        target = _of_table(_table(Path(policy), rows.context_columns, delimiter), rows)
    numbered = [_numbers(values) for values in (rows.action, rows.context, rows.position)]
    log = PolicyLog(
        action=numbered[0],
        reward=np.array(rows.reward),
        target=target,
        propensity=np.array(rows.propensity),
        context=numbered[1],
        position=numbered[2],
        unit=_numbers(rows.request) if rows.request else None,
    )
    if not target.any():
        raise PolicyLogError("the evaluated policy gives no row of the log a probability above 0: do the ids match?")
    return Loaded(log, len(set(rows.action)), len(set(rows.context)), remarks)


class _Rows:
    """The fields of a log's rows, as lists (N,)."""

    def __init__(self, name: str, columns: dict[str, str]) -> None:
        self._name, self._given = name, columns
        self._column: dict[str, str] = {}
        self.context_columns = columns["context"].split("+") if "context" in columns else []
        self.action: list[str] = []
        self.context: list[tuple[str, ...]] = []
        self.position: list[str] = []
        self.request: list[str] = []
        self.reward: list[float] = []
        self.propensity: list[float] = []
        self.probability: list[float] = []
        self.bad_propensities = 0
        self.unrewarded = 0

    def add(self, row: Row) -> None:
        if not self._column:
            self._find(row)
        at = len(self.action) + 1
        for name in (
            *(self._column[one] for one in ("action", "position") if one in self._column),
            *self.context_columns,
        ):
            if row.get(name) is None or row[name] == "":
                raise PolicyLogError(f"{self._name}, row {at:,}: no value in column {name!r}")
        self.action.append(_text(row[self._column["action"]]))
        self.context.append(tuple(_text(row[name]) for name in self.context_columns))
        self.position.append(_text(row[self._column["position"]]) if "position" in self._column else "")
        if "request" in self._column:
            self.request.append(_text(row.get(self._column["request"])))
        reward = self._number(row, "reward", at)
        self.unrewarded += math.isnan(reward)
        self.reward.append(0.0 if math.isnan(reward) else reward)
        propensity = self._number(row, "propensity", at) if "propensity" in self._column else math.nan
        if not 0 < propensity <= 1:  # NaN too
            self.bad_propensities += 1
            propensity = math.nan
        self.propensity.append(propensity)
        if "probability" in self._column:
            probability = self._number(row, "probability", at)
            if not 0 <= probability <= 1:
                raise PolicyLogError(f"{self._name}, row {at:,}: probability must lie between 0 and 1")
            self.probability.append(probability)

    def probabilities(self) -> NDArray[np.float64]:
        if not self.probability:
            raise PolicyLogError(
                f"{self._name} has no column 'probability' of the evaluated policy: name it by --columns "
                "probability=COLUMN, or give --policy uniform or --policy FILE"
            )
        return np.array(self.probability)

    def remarks(self) -> list[str]:
        found = []
        if self.bad_propensities:
            rows = f"{self.bad_propensities:,} of {len(self.action):,} rows"
            found.append(f"{rows} have no propensity between 0 and 1: estimates by frequencies only")
        if self.unrewarded:
            found.append(f"{self.unrewarded:,} rows have no reward: taken as 0")
        if "position" not in self._column:
            found.append("no column for the position: propensities are taken not to depend on it")
        return found

    def _find(self, row: Row) -> None:
        for name, ours in COLUMNS.items():
            given = self._given.get(name)
            for column in given.split("+") if given else ():
                if column not in row:
                    there = ", ".join(list(row)[:20])
                    raise PolicyLogError(f"{self._name} has no column {column!r} (--columns): there are {there}")
            found = given or next((column for column in ours if column in row), None)
            if found is not None:
                self._column[name] = found
        for name in ("action", "reward"):
            if name not in self._column:
                there, hint = ", ".join(list(row)[:20]), f"say which it is: --columns {name}=COLUMN"
                raise PolicyLogError(f"{self._name} has no column {COLUMNS[name][0]!r}: there are {there}; {hint}")

    def _number(self, row: Row, name: str, at: int) -> float:
        value = row.get(self._column[name])
        if value is None or value == "":
            return math.nan
        try:
            number = _TRUTHS[value.lower()] if isinstance(value, str) and value.lower() in _TRUTHS else float(value)
        except (TypeError, ValueError):
            number = math.inf
        if math.isinf(number):
            raise PolicyLogError(f"{self._name}, row {at:,}: {name} in column {self._column[name]!r} is no number")
        return number


@dataclass(frozen=True)
class _Table:
    """Probabilities by (context, position or "", action)."""

    probability: dict[tuple[tuple[str, ...], str, str], float]
    by_position: bool


def _table(path: Path, context: Sequence[str], delimiter: str | None) -> _Table:
    """Reads the evaluated policy. Raises PolicyLogError where a group's probabilities exceed 1."""
    found: dict[tuple[tuple[str, ...], str, str], float] = {}
    by_position = False
    sums: dict[tuple[tuple[str, ...], str], float] = defaultdict(float)
    for at, row in enumerate(table_rows(path, delimiter), start=1):
        action = next((row[name] for name in COLUMNS["action"] if name in row), None)
        missing = [name for name in ("probability", *context) if name not in row]
        if action is None or missing:
            raise PolicyLogError(f"{path.name} needs the columns {', '.join(('action', 'probability', *context))}")
        position = next((row[name] for name in COLUMNS["position"] if name in row), None)
        by_position = position is not None
        group = (tuple(_text(row[name]) for name in context), "" if position is None else _text(position))
        try:
            probability = float(row["probability"])
        except (TypeError, ValueError):
            probability = math.nan
        if not 0 <= probability <= 1:
            raise PolicyLogError(f"{path.name}, row {at:,}: probability must lie between 0 and 1")
        if (*group, _text(action)) in found:
            raise PolicyLogError(f"{path.name}, row {at:,}: action {_text(action)!r} is there twice")
        found[*group, _text(action)] = probability
        sums[group] += probability
    if not found:
        raise PolicyLogError(f"{path.name} has no rows")
    wrong = next((group for group, total in sums.items() if abs(total - 1) > _SUM_ERROR), None)
    if wrong is not None:
        where = ", ".join(filter(None, (*wrong[0], f"position {wrong[1]}" if wrong[1] else ""))) or "all rows"
        raise PolicyLogError(f"{path.name}: the probabilities of {where} add up to {sums[wrong]:.4f}, not 1")
    return _Table(found, by_position)


def _of_table(table: _Table, rows: _Rows) -> NDArray[np.float64]:
    keys = zip(rows.context, rows.position if table.by_position else [""] * len(rows.action), rows.action, strict=True)
    return np.array([table.probability.get(key, 0.0) for key in keys])


def _uniform(action: Sequence[str], context: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
    counts = Counter(there for there, _ in set(zip(context, action, strict=True)))
    return np.array([1 / counts[one] for one in context])


def _numbers(values: Sequence[Any]) -> NDArray[np.int64]:
    """Values (N,) numbered by their first appearance."""
    number: dict[Any, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in values], dtype=np.int64)


def _kept(rows: Iterable[Row], where: Mapping[str, str]) -> Iterator[Row]:
    """The rows that are wanted; a record of impressions as the rows that it stands for."""
    for row in rows:
        missing = next((name for name in where if name not in row), None)
        if missing is not None:
            raise PolicyLogError(f"there is no column {missing!r} (--where): there are {', '.join(list(row)[:20])}")
        if any(_text(row[name]) != value for name, value in where.items()):
            continue
        shown = row.get("items")
        if isinstance(shown, list) and "request_id" in row:
            above = {name: value for name, value in row.items() if name != "items"}
            for one in shown:
                if not isinstance(one, dict):
                    raise EventFileError("an impression's items must be objects")
                yield {"reward": None, **above, **one}
        else:
            yield row


def _text(value: Any) -> str:
    """An id or a label as text: 12.0 is 12."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return "" if value is None else str(value)
