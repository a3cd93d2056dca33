"""Time of an answer with a filter that few items pass, against one without: python -m benchmarks.filtered

A learner that has learned a town's clicks ranks lists of single users, in turns without a filter, with one that about
1 % of the items pass (so that more candidates have to be looked at), and with one that half of them pass. Told are
medians in milliseconds of CPU time (`time.thread_time`), and the ratios; and how many items the lists have.
"""

import argparse
import json
import time
from statistics import median

from online.config.settings import load_settings
from online.evaluation.backtest_events import micro_batches
from online.evaluation.town import Town
from online.filters.evaluate import compiled
from online.learner.asking import Question
from online.learner.learner import Learner
from stream.items import Item

FILTERS = {"none": None, "1 %": "shelf < 1", "50 %": "shelf < 50"}


def question(learner: Learner, user: str, where: str | None) -> Question:
    """As the worker makes one."""
    wanted = None if where is None else compiled(where)
    rows = None if wanted is None else lambda rows: learner.listable.apply(wanted, rows).mask
    return Question(user, at=learner.now[0], k=learner.settings.list_size, where=rows)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=300)
    given = parser.parse_args()
    settings = load_settings()
    clicks = list(Town(users=1_000, items=given.items, seed=3).clicks(given.clicks))
    learner = Learner(settings, lists=False)
    for batch in micro_batches(clicks, settings):
        learner.learn([clicks[at] for at in batch])
    names = dict.fromkeys(click.item_id for click in clicks)
    learner.put_items([Item(item_id=name, attributes={"shelf": at % 100}) for at, name in enumerate(names)])
    users = list(dict.fromkeys(click.user_id for click in reversed(clicks)))
    took: dict[str, list[float]] = {name: [] for name in FILTERS}
    listed: dict[str, list[int]] = {name: [] for name in FILTERS}
    for number in range(given.questions + 20):
        for name, where in FILTERS.items():
            asked = question(learner, users[number % len(users)], where)
            began = time.thread_time()
            (answer,) = learner.answerer.answer([asked])
            if number >= 20:
                took[name].append(1_000 * (time.thread_time() - began))
                listed[name].append(len(answer.items))
    middle = {name: median(times) for name, times in took.items()}
    print(json.dumps({
        "items": len(names),
        "ms": {name: round(value, 2) for name, value in middle.items()},
        "with / without": {name: round(value / middle["none"], 2) for name, value in middle.items()},
        "items listed": {name: median(counts) for name, counts in listed.items()},
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
