"""Writes files of a made-up town, for docs/evaluation.md: clicks with types and values, and items.

python -m benchmarks.town_files FOLDER [--clicks 6000]
nextclick backtest FOLDER/clicks.csv --items FOLDER/items.csv --plots docs/evaluation
"""

import argparse
import csv
from pathlib import Path

from online.evaluation.town import PURCHASE, Town


def main() -> None:
    """Writes clicks.csv and items.csv."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--clicks", type=int, default=6_000)
    given = arguments.parse_args()
    town = Town(purchase_share=0.2, fashion_change_at=2 * given.clicks // 3)
    given.folder.mkdir(parents=True, exist_ok=True)
    prices = {item: 5 + 7 * number % 60 for number, item in enumerate(town.item_ids)}
    with (given.folder / "clicks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "timestamp", "event_type", "value"])
        for click in town.clicks(given.clicks):
            value = prices[click.item_id] if click.event_type == PURCHASE else ""
            rows.writerow([click.user_id, click.item_id, click.timestamp, click.event_type, value])
    with (given.folder / "items.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", "tags", "price"])
        for item, price in prices.items():
            rows.writerow([item, item.capitalize(), "|".join(item.split()[:2]), price])


if __name__ == "__main__":
    main()
