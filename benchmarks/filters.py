"""Filters: time of a mask, of a record, of a checkpoint's part, and the memory of items' attributes.

    python -m benchmarks.filters --items 100000 --attributes 20

Ratios are to reading the same attributes item by item in Python, which tests hold the masks to.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from online.config.settings import Settings
from online.filters.evaluate import Rows, compiled
from online.filters.itemwise import keeps
from online.learner.item_attributes import ItemAttributes
from stream.items import Item

FILTERS = (
    "n0 <= 20",
    "t0 in ('v7', 'v20')",
    "title contains 'kettle'",
    "tags any ('tag1', 'tag77')",
    "missing(n1)",
    "n0 <= 20 and t0 in ('v7', 'v20') and tags any ('tag1', 'tag2') and not tags all ('tag3', 'tag4') and available "
    "and title contains 'kettle'",
)
CANDIDATES = 400


def catalogue(items: int, attributes: int, seed: int) -> list[Item]:
    """Items with numbers, texts of few and of many values, truth values, one to eight tags, and a title."""
    random = np.random.default_rng(seed)
    words = ("kettle", "cup", "tea", "lamp", "chair")
    made = []
    for number in range(items):
        values: dict[str, float | str | bool] = {}
        for at in range(attributes):
            kind, draw = at % 4, float(random.random())
            if draw < 0.1:
                continue
            values[f"{'ntub'[kind]}{at // 4}"] = (draw * 100, f"v{int(draw * 50)}", f"u{number}", draw < 0.5)[kind]
        tags = tuple(f"tag{int(5_000 * draw**3)}" for draw in random.random(random.integers(0, 9)).tolist())
        title = f"{words[number % 5]} number {number} of the catalogue"
        made.append(Item(item_id=f"item-{number}", title=title, tags=tags, attributes=values))
    return made


def seconds(call: Callable[[], Any], repeats: int = 15) -> float:
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--attributes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    items = catalogue(options.items, options.attributes, options.seed)
    tracemalloc.start()
    attributes = ItemAttributes(Settings(items_held=options.items, item_attributes_max=options.attributes))
    for item in items:
        attributes.put(item, 0)
    print(f"memory: {tracemalloc.get_traced_memory()[0] / options.items:.0f} bytes per item, beside the records' texts")
    tracemalloc.stop()
    again = iter(items)
    print(f"a record: {1e6 * seconds(lambda: attributes.put(next(again), 0), 2_000):.0f} µs")

    random = np.random.default_rng(options.seed)
    some = random.integers(0, options.items, CANDIDATES)
    for name, chosen in ((f"{CANDIDATES} candidates", some), ("all items", np.arange(options.items))):
        asked = [items[at] for at in chosen.tolist()]
        slots = attributes.slots_of([item.item_id for item in asked])
        rows = Rows(attributes, slots, np.ones(len(slots), np.bool_))
        for text in FILTERS:
            one = compiled(text)
            took = seconds(lambda one=one, rows=rows: one.mask(rows))  # type: ignore[misc]
            slow = seconds(lambda one=one, asked=asked: [keeps(one.filter.root, item) for item in asked], 1)  # type: ignore[misc]
            kept = one.mask(rows).mean()
            print(f"{name}: {1e6 * took:8.0f} µs, {slow / took:6.0f} times as fast; keeps {kept:6.1%}  {text[:60]}")
    text = FILTERS[-1]
    compiled(text)

    def anew() -> None:
        compiled.cache_clear()
        compiled(text)

    print(f"to compile the longest: {1e6 * seconds(anew, 200):.0f} µs; compiled before: "
          f"{1e6 * seconds(lambda: compiled(text), 200):.1f} µs")  # fmt: skip

    def saved() -> None:
        attributes._saved = None  # as after a change
        attributes.to_state()

    anew_ms, unchanged_ms = 1e3 * seconds(saved, 5), 1e3 * seconds(attributes.to_state, 5)
    print(f"a checkpoint's part: {anew_ms:.0f} ms, unchanged {unchanged_ms:.2f} ms")
    arrays, state = attributes.to_state()
    print(f"in the checkpoint: {sum(array.nbytes for array in arrays.values()) / 1e6:.0f} MB")
    loaded = ItemAttributes(Settings(items_held=options.items, item_attributes_max=options.attributes))
    print(f"loading it: {1e3 * seconds(lambda: loaded.load_state(arrays, state), 3):.0f} ms")


if __name__ == "__main__":
    main()
