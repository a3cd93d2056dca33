"""The worker at 70 % of what it can take, for as long as is asked: does anything grow?

    python -m benchmarks.soak [--minutes 30] [--share 0.7] [--kafka HOST:PORT] [--redis URL]

A real worker, on embedded parts or on those that are named, and a town that never stops clicking. First it is measured
how fast the worker learns while clicks always wait (for `--capacity-s`, after `--warm-up-s` of them), then clicks come
at a share of that. Each minute a line: resident memory, lag, time from click to list, open files, threads, disk. Exits
with 1 where memory has grown by more than `--growth` from minute 5 (or a sixth of the time, if that is less) to the
end, where the lag of the last third is more than a poll, where files or threads have grown, or where the worker did
not end well.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._live import Live, live

SAMPLE_S = 1.0


def sample(worker: Live, began: float) -> dict[str, Any]:
    status = worker.status() or {}
    return {
        "at_s": time.monotonic() - began,
        "lag": status.get("lag"),
        "lag_s": status.get("lag_s"),
        "learned": status.get("learned", 0),
        **{name: (status.get("click_to_list_ms") or {}).get(name) for name in ("p50", "p99")},
        "notices": status.get("notice_counts") or {},
        **worker.resources(),
    }


def line(one: dict[str, Any]) -> str:
    def shown(name: str) -> str:
        return "-" if one[name] is None else f"{one[name]:,.1f}" if name == "lag_s" else f"{one[name]:,.0f}"

    names = ("rss_mb", "lag", "lag_s", "p50", "p99", "files", "threads", "disk_mb", "log_mb", "learned")
    return f"{one['at_s'] / 60:6.1f} " + " ".join(f"{shown(name):>9}" for name in names)


def soak(worker: Live, rate: float, minutes: float) -> list[dict[str, Any]]:
    """Clicks come at `rate` -> samples, one a second."""
    worker.rate = rate
    began, said, samples = time.monotonic(), -1, []
    names = ("MB", "lag", "lag s", "p50 ms", "p99 ms", "files", "threads", "disk MB", "log MB", "learned")
    print("minute " + " ".join(f"{name:>9}" for name in names), flush=True)
    while time.monotonic() - began < 60 * minutes:
        time.sleep(SAMPLE_S)
        samples.append(sample(worker, began))
        if int(samples[-1]["at_s"] // 60) > said:
            said = int(samples[-1]["at_s"] // 60)
            print(line(samples[-1]), flush=True)
    print(line(samples[-1]), flush=True)
    return samples


def verdict(samples: list[dict[str, Any]], minutes: float, growth_max: float, poll: int) -> list[str]:
    """What is wrong, in words; [] where nothing is."""
    early_s = 60 * min(5.0, minutes / 6)
    early = next(one for one in samples if one["at_s"] >= early_s)
    late = samples[-1]
    lags = [one["lag"] for one in samples if one["lag"] is not None]
    third = lags[-len(lags) // 3 :]
    growth = late["rss_mb"] / early["rss_mb"] - 1
    print(
        f"memory {early['rss_mb']:,.0f} MB at minute {early['at_s'] / 60:.1f}, {late['rss_mb']:,.0f} MB at the end "
        f"({growth:+.1%}); lag p50 {statistics.median(lags):,.0f}, most {max(lags):,}; files {early['files']:.0f} and "
        f"{late['files']:.0f}, threads {early['threads']:.0f} and {late['threads']:.0f}; "
        f"click to list p50 {late['p50']} ms, p99 {late['p99']} ms; notices {late['notices']}"
    )
    wrong = []
    if growth > growth_max:
        wrong.append(f"memory has grown by {growth:.1%}")
    if statistics.median(third) > poll:
        wrong.append(f"the lag of the last third is {statistics.median(third):,.0f}")
    # A few come and go: a checkpoint that is being written, a connexion that is made anew.
    wrong += [f"{name} have grown" for name in ("files", "threads") if late[name] > early[name] + 5]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--capacity-s", type=float, default=60.0)
    parser.add_argument("--warm-up-s", type=float, default=300.0, help="before that: who has seen little is faster")
    parser.add_argument("--growth", type=float, default=0.1, help="of memory, that is accepted")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="URL")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        live(Path(folder), kafka=options.kafka, redis=options.redis, users=options.users) as worker,
    ):
        capacity = worker.capacity(options.capacity_s, options.warm_up_s)
        print(f"it can take {capacity:,.0f} clicks a second; {options.share:.0%} of that for {options.minutes} minutes")
        worker.rate = 0.0
        worker.wait_for(worker.published)
        samples = soak(worker, options.share * capacity, options.minutes)
        wrong = verdict(samples, options.minutes, options.growth, worker.settings.poll_records_max)
        status = worker.close()
        wrong += [f"the worker ended with {status}"] if status else []
    print("; ".join(wrong).upper() if wrong else "nothing grows")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
