"""Off-policy estimates held to known values: `python -m benchmarks.off_policy [FILE] [--resamples 20] [--runs 200]`.

FILE is a log of two policies with the columns policy, campaign, item_id, position, click and propensity_score, such as
the sample of the Open Bandit Dataset. From the rows of one policy the click rate of the other is estimated, and
compared with that of the other's own rows: in how many resamples of the log the rate lies in the 95 % interval, in how
many the estimate from the whole log does (a resample with replacement is a sample of the whole log, so this tells
whether intervals are too narrow), and the interval's width / that of the mean of the other's own rows.
A policy whose probabilities are not in the log (Bernoulli
Thompson sampling) is how often its own rows show an item in a campaign at a position; their clicks are not looked at.

Without FILE, simulated logs whose true value is known: how often the interval covers it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from online.evaluation.off_policy import INTERVALS, Estimate, Options, PolicyLog, Weights, estimates, on_policy
from stream.event_files.table import table_rows

BOTH: tuple[Weights, ...] = ("logged", "frequencies")
Resample = Callable[[np.random.Generator, int], NDArray[np.int64]]
RESAMPLES: dict[str, Resample] = {
    "as many rows, with replacement": lambda random, rows: random.integers(0, rows, rows),
    "half of the rows, without": lambda random, rows: random.permutation(rows)[: rows // 2],
}


def read(path: Path) -> dict[str, PolicyLog]:
    """The log of each policy; `target` is the other's probability."""
    rows = list(table_rows(path))
    columns = {
        name: np.unique([row[name] for row in rows], return_inverse=True)[1]
        for name in ("policy", "campaign", "item_id", "position")
    }
    propensity = np.array([float(row["propensity_score"]) for row in rows])
    click = np.array([float(row["click"]) for row in rows])
    group = columns["campaign"] * (columns["position"].max() + 1) + columns["position"]
    cell = group * (columns["item_id"].max() + 1) + columns["item_id"]
    names = sorted({row["policy"] for row in rows})
    found = {}
    for number, name in enumerate(names):
        own, other = (np.flatnonzero(columns["policy"] == one) for one in (number, 1 - number))
        if names[1 - number] == "random":
            by_campaign = {int(c): p for c, p in zip(columns["campaign"][other], propensity[other], strict=True)}
            target = np.array([by_campaign[int(c)] for c in columns["campaign"][own]])
        else:
            shown, groups = (np.bincount(of[other], minlength=of.max() + 1) for of in (cell, group))
            target = shown[cell[own]] / groups[group[own]]
        parts = (columns["item_id"], click, propensity, columns["campaign"], columns["position"])
        action, reward, logged, context, position = (part[own] for part in parts)
        found[name] = PolicyLog(action, reward, target, logged, context, position)
    return found


def held_to_the_other(logs: dict[str, PolicyLog], resamples: int) -> None:
    options = Options()
    for name, log in logs.items():
        (other,) = set(logs) - {name}
        mean = on_policy(logs[other], options)
        print(f"\nfrom the log of {name} ({len(log):,} rows) the click rate of {other}: {mean.value:.5f}, ", end="")
        print(f"{mean.low:.5f} to {mean.high:.5f} by its own rows")
        kinds = "".join(f"{kind:>42s}" for kind in RESAMPLES)
        print(f"{'':28s}{'estimate and interval':>30s}{'width':>7s}{kinds}")
        counts: dict[tuple[str, str], list[str]] = {}
        for resample in RESAMPLES.values():
            for key, (inside, whole, width) in _resampled(log, logs[other], mean, resample, resamples).items():
                cell = f"{inside:3d} of {resamples}, whole {whole:3d}, width {width:5.2f}"
                counts.setdefault(key, []).append(cell)
        for one in (one for by in BOTH for one in estimates(log, by, options)):
            width = (one.high - one.low) / (mean.high - mean.low)
            shown = f"{one.value:.5f}, {one.low:.5f} to {one.high:.5f}"
            cells = "".join(f"{cell:>42s}" for cell in counts[one.weights, one.estimator])
            print(f"{one.weights:12s}{one.estimator:16s}{shown:>30s}{width:7.2f}{cells}", flush=True)


def _resampled(
    log: PolicyLog, other: PolicyLog, known: Estimate, resample: Resample, resamples: int
) -> dict[tuple[str, str], tuple[int, int, float]]:
    """Of each estimator: in how many resamples the known rate lies in its interval, in how many the whole log's
    estimate does, and the median relative width."""
    random, options = np.random.default_rng(0), Options()
    whole = {(one.weights, one.estimator): one.value for by in BOTH for one in estimates(log, by, options)}
    found: dict[tuple[str, str], list[tuple[bool, bool, float]]] = {}
    for _ in range(resamples):
        rows = resample(random, len(log))
        mean = on_policy(other.take(resample(random, len(other))), options)  # of as many rows
        for one in (one for by in BOTH for one in estimates(log.take(rows), by, options)):
            width = (one.high - one.low) / (mean.high - mean.low)
            key = one.weights, one.estimator
            inside = one.low <= known.value <= one.high
            found.setdefault(key, []).append((inside, one.low <= whole[key] <= one.high, width))
    return {
        key: (sum(i for i, _, _ in all_), sum(o for _, o, _ in all_), float(np.median([w for _, _, w in all_])))
        for key, all_ in found.items()
    }


def simulated(seed: int, rows: int, *, from_uniform: bool) -> tuple[PolicyLog, float]:
    """A log of a policy that learns, of which the uniform one is evaluated, or the other way round; and the true value.

    60 items with click rates around 0.5 % (log-normal), 3 positions of unequal rates; the learning policy changes in 20
    phases, prefers good items, and gives each at least 1 / 60,000.
    """
    random = np.random.default_rng(seed)
    rates = 0.005 * random.lognormal(0, 0.5, 60)
    seen = np.array([1.2, 1.0, 0.8])
    logits = 2 * np.log(rates) + random.normal(0, 1, (20, 60))
    learned = np.exp(logits - logits.max(axis=1, keepdims=True))
    learned = 0.999 * learned / learned.sum(axis=1, keepdims=True) + 0.001 / 60
    uniform = np.full((20, 60), 1 / 60)
    logging, evaluated = (uniform, learned.mean(axis=0)) if from_uniform else (learned, uniform[0])
    phase, position = random.integers(0, 20, rows), random.integers(0, 3, rows)
    action = np.minimum((random.random(rows)[:, None] > logging.cumsum(axis=1)[phase]).sum(axis=1), 59)
    reward = (random.random(rows) < rates[action] * seen[position]).astype(float)
    zeros = np.zeros(rows, dtype=np.int64)
    log = PolicyLog(action, reward, evaluated[action], logging[phase, action], zeros, position)
    return log, float(evaluated @ rates)


def coverage(runs: int, rows: int, *, from_uniform: bool) -> None:
    """Prints the share of the runs in which each interval covers the true value, and the median relative width."""
    found: dict[tuple[str, str], dict[str, list[tuple[bool, float]]]] = {}
    for seed in range(runs):
        log, value = simulated(seed, rows, from_uniform=from_uniform)
        width = 2 * 1.96 * np.sqrt(value * (1 - value) / rows)
        for interval in INTERVALS:
            options = Options(interval=interval, resamples=200)
            for one in (one for by in BOTH for one in estimates(log, by, options)):
                shares = found.setdefault((one.weights, one.estimator), {}).setdefault(interval, [])
                shares.append((one.low <= value <= one.high, (one.high - one.low) / width))
    what = "the learning policy from a uniform log" if from_uniform else "the uniform policy from a learning one's log"
    error = 1.96 * np.sqrt(0.95 * 0.05 / runs)
    print(f"\n{what}, {rows:,} rows, {runs} runs: 95 % would be {0.95 - error:.3f} to {min(1, 0.95 + error):.3f}")
    print(f"{'':28s}" + "".join(f"{interval:>22s}" for interval in INTERVALS))
    for (by, name), intervals in found.items():
        cells = (f"{np.mean([c for c, _ in all_]):.3f}, width {np.median([w for _, w in all_]):6.2f}"
                 for all_ in intervals.values())  # fmt: skip
        print(f"{by:12s}{name:16s}" + "".join(f"{cell:>22s}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--resamples", type=int, default=20)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[3_000, 30_000])
    given = parser.parse_args()
    if given.file is not None:
        held_to_the_other(read(given.file), given.resamples)
        return
    for rows in given.rows:
        for from_uniform in (True, False):
            coverage(given.runs, rows, from_uniform=from_uniform)


if __name__ == "__main__":
    main()
