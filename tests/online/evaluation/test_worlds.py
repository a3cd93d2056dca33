"""Worlds keep their promises: the quiet world until the change, and then what they state."""

import math
from collections import Counter, defaultdict
from itertools import count, islice, pairwise

import numpy as np
import pytest

from online.config.settings import Settings
from online.evaluation import worlds
from online.evaluation.backtest import NEXTCLICK, backtest
from online.evaluation.baselines import METHODS, Baselines
from online.evaluation.town import CLICK, PURCHASE, Town
from online.evaluation.worlds import Bot, World
from online.metrics import hit_and_ndcg_at
from stream.events import Click

TOWN = Town(users=60, items=64)
AT = 800


def made(seed: int) -> list[World]:
    return [
        worlds.sudden(seed, change_at=AT, town=TOWN),
        worlds.slow(seed, change_at=AT, over=600, town=TOWN),
        worlds.seasonal(seed, change_at=AT, lasts=600, town=TOWN),
        worlds.catalogue(seed, change_at=AT, town=TOWN),
        worlds.attack(seed, change_at=AT, town=TOWN),
        worlds.outage(seed, change_at=AT, town=TOWN),
        worlds.silence(seed, change_at=AT, town=TOWN),
    ]


def right(world: World, clicks: list[Click], part: range, *, changed: bool) -> float:
    """How often, in a part of the clicks, what is clicked next is what the old (or the new) paths say."""
    town = Town(users=60, items=64, seed=world.town.seed, fashion_change_at=0 if changed else None)
    last: dict[str, str] = {}
    found = followed = 0
    for number, click in enumerate(clicks):
        if number in part and click.user_id in last:
            followed += 1
            found += town.best_next(last[click.user_id], 10**6) == click.item_id
        last[click.user_id] = click.item_id
    return found / followed


@pytest.mark.parametrize("world", made(3), ids=lambda world: world.name)
def test_until_the_change_a_world_is_the_quiet_one_and_then_it_is_not(world: World) -> None:
    clicks, quiet = list(world.clicks(2_500)), list(worlds.quiet(3, town=TOWN).clicks(2_500))
    assert clicks == list(world.clicks(2_500))
    assert clicks[:AT] == quiet[:AT]
    assert clicks != quiet
    assert clicks[AT:] == list(world.after(2_500 - AT))
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(clicks))
    assert quiet[AT].timestamp == world.changed_at_s


def test_in_a_quiet_world_there_is_no_moment_of_change() -> None:
    with pytest.raises(ValueError, match="nothing changes in a quiet world"):
        _ = worlds.quiet(0).changed_at_s


def test_after_a_sudden_change_the_new_paths_hold_at_once() -> None:
    world = worlds.sudden(1, change_at=2_000, town=TOWN)
    clicks = list(world.clicks(4_000))
    assert right(world, clicks, range(1_500, 2_000), changed=False) > 0.5
    assert right(world, clicks, range(2_000, 2_500), changed=True) > 0.5
    assert right(world, clicks, range(2_000, 2_500), changed=False) < 0.1


def test_a_slow_change_has_reached_half_of_the_users_half_way() -> None:
    world = worlds.slow(1, change_at=2_000, over=2_000, town=TOWN)
    clicks = list(world.clicks(6_000))
    ends, half_way = range(4_000, 6_000), range(2_800, 3_200)
    assert right(world, clicks, range(2_000, 2_200), changed=False) > 0.5
    assert 0.2 < right(world, clicks, half_way, changed=True) < 0.45
    assert 0.2 < right(world, clicks, half_way, changed=False) < 0.45
    assert right(world, clicks, ends, changed=True) > 0.5


def test_in_a_season_old_taste_comes_back() -> None:
    world = worlds.seasonal(1, change_at=2_000, lasts=1_000, town=TOWN)
    clicks = list(world.clicks(5_000))
    assert right(world, clicks, range(2_000, 3_000), changed=True) > 0.5
    assert right(world, clicks, range(3_000, 5_000), changed=False) > 0.5
    assert world.until == 3_000


@pytest.mark.parametrize("renewed", [0.5, 1.0])
def test_a_new_catalogue_takes_the_old_ones_places(renewed: float) -> None:
    world = worlds.catalogue(2, change_at=AT, renewed=renewed, town=TOWN)
    after = {click.item_id for click in world.after(3_000)}
    assert not {click.item_id for click in world.clicks(AT)} - set(world.town.item_ids)
    assert len(after - set(world.town.item_ids)) == renewed * len(after) == renewed * 64
    quiet = islice(worlds.quiet(2, town=TOWN).clicks(AT + 3_000), AT, None)
    assert after == {world.renewed_id(click.item_id) for click in quiet}


def test_a_bot_clicks_one_item_at_its_rate_and_the_others_do_as_they_would_have() -> None:
    bot = Bot(clicks=1_000, rate_hz=2.0)
    world = worlds.attack(4, change_at=AT, bot=bot, town=TOWN)
    clicks = list(world.clicks(AT + 1_200))
    its = [click for click in clicks if click.user_id == bot.user_id]
    assert len(its) == 1_000
    assert {click.item_id for click in its} == {bot.item_id}
    assert its[-1].timestamp - its[0].timestamp == pytest.approx(999 / 2.0, abs=0.01)
    others = [click for click in clicks if click.user_id != bot.user_id]
    assert others == list(worlds.quiet(4, town=TOWN).clicks(len(others)))
    assert bot.item_id not in {click.item_id for click in others}


def test_in_an_outage_some_users_clicks_are_missing_and_the_others_are_untouched() -> None:
    world = worlds.outage(5, change_at=AT, kept=0.25, seconds=10_000.0, town=TOWN)
    assert world.outage is not None
    clicks = list(world.clicks(1_500))
    quiet = list(worlds.quiet(5, town=TOWN).clicks(3_000))
    until = world.changed_at_s + world.outage.seconds

    def meanwhile(some: list[Click]) -> list[Click]:
        return [click for click in some if world.changed_at_s <= click.timestamp < until]

    heard = {click.user_id for click in meanwhile(clicks)}
    assert 0.1 < len(meanwhile(clicks)) / len(meanwhile(quiet)) < 0.5
    assert meanwhile(clicks) == [click for click in meanwhile(quiet) if click.user_id in heard]
    assert any(click.timestamp >= until for click in clicks)


def test_in_a_silence_nothing_arrives() -> None:
    world = worlds.silence(5, change_at=AT, seconds=10_000.0, town=TOWN)
    times = [click.timestamp for click in world.clicks(AT + 10)]
    assert times[AT] - times[AT - 1] >= 10_000.0


def test_of_two_event_types_one_changes() -> None:
    world = worlds.one_type(6, change_at=3_000, share=0.4, town=TOWN)
    old, new = (Town(users=60, items=64, seed=6, fashion_change_at=at) for at in (None, 0))
    clicks = list(world.clicks(6_000))
    assert Counter(click.event_type for click in clicks[:1_000])[PURCHASE] == pytest.approx(400, abs=60)
    last: dict[str, str] = {}
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for number, click in enumerate(clicks):
        if number >= 3_000 and click.user_id in last:
            found[click.event_type, "old"].append(old.best_next(last[click.user_id], 10**6) == click.item_id)
            found[click.event_type, "new"].append(new.best_next(last[click.user_id], 10**6) == click.item_id)
        last[click.user_id] = click.item_id
    shares = {key: sum(right) / len(right) for key, right in found.items()}
    assert shares[CLICK, "old"] > 0.5
    assert shares[CLICK, "new"] < 0.2  # on a path of eight, some follow each other in both fashions
    assert shares[PURCHASE, "new"] > 0.5
    assert shares[PURCHASE, "old"] < 0.2


# --- collections -------------------------------------------------------------------------------------------------


def entries_of(world: worlds.Collections) -> dict[str, list[Click]]:
    found: dict[str, list[Click]] = defaultdict(list)
    for click in world.clicks():
        found[click.user_id].append(click)
    return found


def test_the_same_seed_enters_the_same_collections_in_order_of_time() -> None:
    one, other = worlds.collections(3).clicks(), worlds.collections(4).clicks()
    assert one == worlds.collections(3).clicks()
    assert one[:1_000] == worlds.collections(3).clicks(1_000)
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(one))
    assert one != other
    for clicks in (one, other):
        assert 8_000 < len(clicks) < 15_000
        assert len({click.item_id for click in clicks}) > 1_400


def test_nothing_is_entered_twice_and_sizes_are_log_uniform() -> None:
    found = entries_of(worlds.collections(1, users=200, items=4_000, sizes=(5, 3_000)))
    assert all(len({click.item_id for click in mine}) == len(mine) for mine in found.values())
    sizes = np.log([len(mine) for mine in found.values()])
    assert len(sizes) == 200
    assert math.log(5) <= sizes.min() < math.log(7)
    assert math.log(2_700) < sizes.max() <= math.log(3_000)
    thirds = np.histogram(sizes, np.linspace(math.log(5), math.log(3_001), 4))[0] / 200
    assert thirds.tolist() == pytest.approx([1 / 3] * 3, abs=0.1)


def test_collections_that_do_not_fit_the_items_are_refused() -> None:
    with pytest.raises(ValueError, match="at most all of them"):
        worlds.collections(0, items=100, sizes=(5, 101))


def test_most_of_a_collection_fits_its_users_tastes_and_each_genre_is_skewed() -> None:
    world = worlds.collections(2, users=400, sizes=(5, 60))  # a genre has 75 items: tastes are not used up
    liked = total = 0
    clicks_on = np.zeros((world.genres, 75))
    for user, mine in entries_of(world).items():
        genres = [world.genre_of(click.item_id) for click in mine]
        liked, total = liked + sum(genre in world.tastes_of[user] for genre in genres), total + len(genres)
        for click in mine:
            clicks_on[world.genre_of(click.item_id), world.rank_of(click.item_id) - 1] += 1
    assert liked / total == pytest.approx(0.95, abs=0.03)
    assert (clicks_on[:, :10].mean(1) > 2 * clicks_on[:, -40:].mean(1)).all()
    assert (clicks_on[:, -40:].sum(1) > 0).all()


def test_the_order_of_entries_carries_nothing() -> None:
    """Neither how popular an item is, nor its genre, nor what stood before it, depends on the place."""
    world = worlds.collections(5)
    earlier, later, together, apart = [], [], 0, 0
    for mine in entries_of(world).values():
        ranks, genres = ([of(click.item_id) for click in mine] for of in (world.rank_of, world.genre_of))
        half = len(mine) // 2
        earlier += ranks[:half]
        later += ranks[-half:]
        if len(mine) > 2:
            together += sum(a == b for a, b in pairwise(genres))
            same = sum(n * (n - 1) for n in Counter(genres).values())
            apart += same / len(mine)  # neighbours of one genre, were the order another one
    assert np.mean(earlier) == pytest.approx(np.mean(later), rel=0.05)
    assert together == pytest.approx(apart, rel=0.04)


def test_entries_come_in_bursts_of_minutes_with_days_between() -> None:
    gaps_s, bursts = [], []
    for mine in entries_of(worlds.collections(6, sizes=(200, 1_000))).values():
        gaps = np.diff([click.timestamp for click in mine])
        gaps_s.append(gaps)
        bursts += np.diff([0, *(1 + np.flatnonzero(gaps > 3_600)), len(mine)])[:-1].tolist()
    gaps = np.concatenate(gaps_s)
    rests = gaps[gaps > 3_600] / 86_400
    assert (rests.min(), rests.max()) == pytest.approx((1, 5), abs=0.2)
    assert gaps[gaps <= 3_600].mean() == pytest.approx(4, rel=0.05)
    assert min(bursts) >= 24
    assert max(bursts) <= 240
    assert 50 < np.median(bursts) < 110  # log-uniform


@pytest.mark.parametrize("seed", [0, 1])
def test_neighbours_tell_far_more_of_a_collection_than_popularity_does(seed: int) -> None:
    counting = Baselines(exclude_seen=True)
    users, items = (defaultdict[str, int](count().__next__) for _ in range(2))  # numbers by first appearance
    clicks, ranks = worlds.collections(seed).clicks(), []
    for number, click in enumerate(clicks):
        user, item = users[click.user_id], items[click.item_id]
        if number >= len(clicks) // 5:
            ranks.append(counting.ranks(user, item))
        counting.learn(user, item)
    ndcg = dict(zip(METHODS, hit_and_ndcg_at(np.array(ranks))[1].mean(0), strict=True))
    assert ndcg["knn"] > 3 * ndcg["popular"]
    assert ndcg["knn"] > 2 * ndcg["markov"]  # order tells nothing of its own


def test_what_users_own_is_foreseen_better_than_by_counting_their_latest_neighbours() -> None:
    settings = Settings(device="cpu", exclude_seen=True)
    outcome = backtest(worlds.collections(0).clicks(), settings, methods=[NEXTCLICK, "knn"])
    ndcg = {method: hit_and_ndcg_at(outcome.scored(method))[1].mean() for method in (NEXTCLICK, "knn")}
    assert ndcg[NEXTCLICK] > 1.12 * ndcg["knn"]
