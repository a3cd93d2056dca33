"""Streams that no honest world sends: memory and time per click while one user, one item, or many new items flood it.

    python -m benchmarks.extremes [--clicks 20000] [--items 100000] [--only user item items]

Each learner has first lived 2,000 clicks of a town. Then come, in the midst of the town's clicks:

- nine clicks in ten from one user, with the abuse filter and without;
- one click in two on one item, from all users, with the abuse filter and without;
- new items alone, each clicked once, `--items` of them; and as many again where every row is in use already
  (`items_held` is `--items`), so that each newcomer takes a row from an older item.

Printed are the CPU time per click over the first and the last tenth, the longest micro-batch, and by how much resident
memory has grown by half of the clicks and by the end. Nothing may grow with the clicks but what has a limit that is not
reached yet.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from benchmarks.bounds import resident_bytes
from online.config.settings import load_settings
from online.evaluation.town import Town
from online.learner.learner import Learner
from stream.events import Click

BEFORE = 2_000  # clicks of the town alone


def one_user(town: Iterator[Click]) -> Iterator[Click]:
    """Nine of ten clicks are one user's, on items that the others click."""
    for number, click in enumerate(town):
        yield click.model_copy(update={"user_id": "a bot"}) if number % 10 else click


def one_item(town: Iterator[Click]) -> Iterator[Click]:
    """Every other click is on one item, by any user."""
    for number, click in enumerate(town):
        yield click.model_copy(update={"item_id": "a hit"}) if number % 2 else click


def new_items(town: Iterator[Click]) -> Iterator[Click]:
    """Each click is on an item that no user has seen."""
    for number, click in enumerate(town):
        yield click.model_copy(update={"item_id": f"new {number}"})


def measure(name: str, flood: Callable[[Iterator[Click]], Iterator[Click]], clicks: int, learner: Learner) -> None:
    town = Town(users=2_000, seed=3).clicks(10**9)
    size = learner.settings.micro_batch_max
    for _ in range(BEFORE // size):
        learner.learn(list(islice(town, size)))
    stream = flood(town)
    before = resident_bytes()
    taken: list[float] = []
    half = 0
    for number in range(clicks // size):
        batch = list(islice(stream, size))
        began = time.process_time()
        learner.learn(batch)
        taken.append(time.process_time() - began)
        if number == clicks // size // 2:
            half = resident_bytes() - before
        if number % 16 == 15:  # as the loop does after each poll
            learner.states.rebuild()
    tenth = max(1, len(taken) // 10)
    first, last = (1000 * sum(part) / (tenth * size) for part in (taken[:tenth], taken[-tenth:]))
    grown = resident_bytes() - before
    print(
        f"{name:44} {clicks:9,} {first:7.2f} {last:7.2f} {1000 * max(taken):9.0f} {half / 1e6:9.1f} {grown / 1e6:9.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=("user", "item", "items"), default=("user", "item", "items"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':44} {'clicks':>9} {'ms/click':>15} {'longest':>9} {'MB more':>9} {'MB more':>9}")
    print(f"{'':44} {'':9} {'first':>7} {'last':>7} {'batch, ms':>9} {'at half':>9} {'at end':>9}")
    for what, flood in (("user", one_user), ("item", one_item)):
        for abuse_filter in (True, False):
            if what in options.only:
                name = f"one {what} has most clicks, abuse filter {'on' if abuse_filter else 'off'}"
                measure(name, flood, options.clicks, Learner(load_settings(abuse_filter=abuse_filter)))
    if "items" in options.only:
        measure("new items, free rows", new_items, options.items, Learner(load_settings()))
        full = Learner(load_settings(items_held=options.items))
        for number in range(options.items):
            full.vocabulary.observe(f"old {number}", 1.7e9)
        measure("new items, every row in use", new_items, options.items, full)


if __name__ == "__main__":
    main()
