"""What diversity costs in NDCG@10, and by which way of choosing: nextclick's, MMR by the largest likeness, and a DPP.

    python -m benchmarks.diversity clicks.csv.xz --limit 10000 [--items items.csv.xz]

`--items`: a file with the columns `item` and `genres` (separated by |), which are the items' tags.
"""

import argparse
import csv
import gzip
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from online.commands.file_options import open_file
from online.config.settings import load_settings
from online.evaluation.backtest_events import read_clicks
from online.evaluation.diversity import OURS, Setting, diversity_curve
from online.evaluation.diversity_report import table

OTHERS = [("mmr-largest", value) for value in (0.5, 0.8)] + [("dpp", value) for value in (0.5, 0.8, 0.9)]


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("clicks", type=Path)
    arguments.add_argument("--limit", type=int, default=10_000)
    arguments.add_argument("--items", type=Path)
    arguments.add_argument("--values", default="0,0.2,0.4,0.5")
    given = arguments.parse_args()
    settings = load_settings()
    clicks = read_clicks(open_file(given.clicks, None, None, None, None), settings, given.limit).clicks
    choices = [Setting(float(value), OURS) for value in given.values.split(",")]
    choices += [Setting(value, method) for method, value in OTHERS]
    tags_of = None if given.items is None else tags(given.items)
    Console(width=100).print(table(diversity_curve(clicks, settings, choices, tags_of=tags_of)))


def tags(path: Path) -> Callable[[str], Sequence[str]]:
    """Reads the tags of items."""
    openers: dict[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open}
    with openers.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        found = {row["item"]: [tag for tag in row["genres"].split("|") if tag] for row in csv.DictReader(file)}
    return lambda item: found.get(item, [])


if __name__ == "__main__":
    main()
