"""Into how many other users' lists bots bring their item, with the abuse filter and without.

    python -m benchmarks.attack [--seeds 20] [--clicks 10000] [--jobs 2]

In a town of shoppers, after 3,000 clicks bots click one item that no other user clicks, ten thousand times at five
clicks a second: one account, one that clicks popular items in between (to make its item what follows them), and both
with twenty accounts. What is counted: lists of other users whose top ten hold the item, among those written from the
first of the bots' clicks to 1,000 clicks of other users later; and the same of the popular list. Last, an attack
that the filter does not see: twenty accounts at the pace of patient users, one click each on the item in five minutes.
"""

import argparse
import multiprocessing
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch

from online.config.settings import load_settings
from online.evaluation.town import Town
from online.evaluation.worlds import Bot, attack
from online.learner.learner import Learner

BEGINS_AT, OTHERS_CLICKS, TOP, POPULAR = 3_000, 1_000, 10, 10
# A small network, so that twenty seeds take minutes; what is counted and recalled is what a bot can poison.
SMALL = {
    "layers": ("lsh",), "width": 16, "rounds": 1, "buckets": 4, "window": 8, "online_history": 8, "history_max": 64,
    "users_held": 1_000,
    "moments_held": 50_000, "recall_users_held": 512, "world_buckets": 256, "world_ring": 32,
    "ranker_hidden": 16, "replay_held": 2_000, "replay_candidates": 32, "replay_batch": 32, "list_size": TOP,
    "micro_batch_max": 64,
}  # fmt: skip


class Found(NamedTuple):
    """What came of one attack."""

    lists: int  # of other users
    poisoned: int
    populars: int  # popular lists
    poisoned_populars: int
    trainable: int  # clicks of bots that were learned from


def measured(bot: Bot, between: bool, seed: int, guard: bool) -> Found:
    """One attack in one town; whether popular items are clicked in between."""
    torch.set_num_threads(1)
    bot = replace(bot, between=popular_items(seed) if between else ())
    world = attack(seed, change_at=BEGINS_AT, bot=bot)
    learner = Learner(load_settings(abuse_filter=guard, device="cpu", **SMALL))
    size, bots = learner.settings.micro_batch_max, set(bot.user_ids)
    stream = world.clicks(10**9)
    for _ in range(BEGINS_AT // size):
        learner.learn(list(islice(stream, size)))
    lists = poisoned = populars = poisoned_populars = trainable = others = 0
    while others < OTHERS_CLICKS:
        batch = list(islice(stream, size))
        learned = learner.learn(batch)
        others += sum(click.user_id not in bots for click in batch)
        trainable += sum(
            bool(one) for one, click in zip(learned.trainable, batch, strict=True) if click.user_id in bots
        )
        theirs = [ranking.items[:TOP] for user, ranking in learned.rankings.items() if user not in bots]
        lists, poisoned = lists + len(theirs), poisoned + sum(bot.item_id in items for items in theirs)
        populars, poisoned_populars = populars + 1, poisoned_populars + (bot.item_id in learner.popular().items[:TOP])
    return Found(lists, poisoned, populars, poisoned_populars, trainable)


def popular_items(seed: int) -> tuple[str, ...]:
    """What is clicked most before the attack."""
    clicked = [click.item_id for click in Town(seed=seed).clicks(BEGINS_AT)]
    return tuple(sorted(set(clicked), key=lambda item: (-clicked.count(item), item))[:POPULAR])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--clicks", type=int, default=10_000, help="of the bots")
    parser.add_argument("--abuse-filter", choices=("both", "on", "off"), default="both")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    given = parser.parse_args()
    one, twenty = Bot(clicks=given.clicks), Bot(clicks=given.clicks, accounts=20)
    patient = replace(twenty, rate_hz=twenty.accounts / 150.0)  # every other click is on the item
    print(f"{'bots':42} filter lists with the item  popular lists   clicks learned from")
    for name, bot, between in (
        ("one account, the item only", one, False),
        ("one account, between popular items", one, True),
        ("20 accounts, the item only", twenty, False),
        ("20 accounts, between popular items", twenty, True),
        ("20 patient accounts, between popular items", patient, True),
    ):
        for guard in {"both": (False, True), "on": (True,), "off": (False,)}[given.abuse_filter]:
            with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
                found = pool.starmap(measured, [(bot, between, seed, guard) for seed in range(given.seeds)])
            lists, poisoned, populars, poisoned_populars, trainable = (sum(part) for part in zip(*found, strict=True))
            worst = max(one.poisoned / one.lists for one in found)
            print(
                f"{name:42} {'on' if guard else 'off':5} {poisoned / lists:7.2%} (worst {worst:6.2%}) "
                f"{poisoned_populars / populars:12.2%} {trainable / len(found):14.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
