"""The guard: honest streams pass, floods and pushed items do not, and others' lists stay as they are."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from online.evaluation import worlds
from online.evaluation.town import Town
from online.evaluation.worlds import Bot
from online.learner.abuse_filter import CAUGHT, FULL_MOST, WAYS, AbuseFilter, Buckets, user_hashes_of
from online.learner.facts.gather import count_pair
from online.learner.facts.items import count_click
from online.learner.facts.jit import kernel
from online.learner.facts.store import FeatureStore
from online.learner.facts.tables import NAMES, NEAR, copy_of_rows, neighbours
from online.learner.learner import Learner
from stream.events import Click

AT_ONCE, REPEATS, INTERVAL_S = 20, 3, 100.0


@pytest.fixture
def guard(small):
    return AbuseFilter(small(**LIMITS))


LIMITS = {
    "abuse_clicks_at_once": AT_ONCE,
    "abuse_clicks_per_minute": 6.0,
    "abuse_repeats_at_once": REPEATS,
    "abuse_repeats_interval_s": INTERVAL_S,
    "abuse_late_s": 1_000.0,
}


def judge(guard, clicks, size=16):
    """Clicks as (user, item, seconds) -> which are flagged, which show that a user is flagged."""
    found = []
    for start in range(0, len(clicks), size):
        users, items, times = zip(*clicks[start : start + size], strict=True)
        numbers = np.arange(start + 1, start + 1 + len(users))
        found.append(guard.judge(list(map(str, users)), list(map(str, items)), np.array(times, float), numbers))
    return np.concatenate([one.flagged for one in found]), np.concatenate([one.caught for one in found])


# --- buckets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_buckets_of_a_batch_are_those_of_clicks_one_by_one(batch):
    random = np.random.default_rng(batch)
    keys, now = random.integers(1, 9, 600), np.cumsum(random.exponential(2.0, 600)) - random.choice([0, 30], 600)
    amounts = random.choice([1.0, 1.0, -1.0], 600)
    buckets = Buckets(4, 10.0, 400)
    parts = [slice(start, start + batch) for start in range(0, 600, batch)]
    found = np.concatenate([buckets.consume(keys[part], now[part], amounts[part]) for part in parts])
    held, expected = {}, []
    for key, at, amount in zip(keys.tolist(), now.tolist(), amounts.tolist(), strict=True):
        level, since = held.get(key, (0.0, at))
        level = max(0.0, level - max(0.0, at - since) / 10.0)
        expected.append(level)
        held[key] = (min(max(level + amount, 0.0), FULL_MOST * 4.0), max(at, since))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_in_a_full_row_the_emptiest_makes_room():
    buckets = Buckets(10, 1e9, WAYS)  # one row
    for key in range(1, WAYS + 1):
        buckets.consume(np.full(key + 1, key), np.zeros(key + 1))
    newcomers = np.arange(100, 200)
    assert buckets.consume(newcomers, np.zeros(100)).max() == 0
    assert buckets.consume(np.arange(WAYS, 0, -1), np.zeros(WAYS)).tolist() == [*range(WAYS + 1, 2, -1), 0]


def test_looking_at_buckets_says_what_the_next_click_would_find_and_changes_nothing():
    random = np.random.default_rng(0)
    buckets = Buckets(4, 10.0, 64)
    buckets.consume(random.integers(1, 40, 300), np.cumsum(random.exponential(1.0, 300)))
    keys, now = np.arange(1, 41), random.uniform(200, 400, 40)
    before = {name: part.copy() for name, part in buckets.to_state().items()}
    found = buckets.levels(keys, now)
    assert all(np.array_equal(part, before[name]) for name, part in buckets.to_state().items())
    for key, at, level in zip(keys, now, found, strict=True):
        again = Buckets(4, 10.0, 64)
        again.load_state(before)
        assert again.consume(np.array([key]), np.array([at])).tolist() == [level]
    assert found.max() > 0


# --- who is flagged ----------------------------------------------------------------------------------------------


def test_a_hundred_ratings_at_one_moment_and_clicks_out_of_order_are_honest(small):
    guard = AbuseFilter(small())
    ratings = [("rater", item, 5_000.0) for item in range(100)]
    late = [("late", item, 5_000.0 - 60 * item) for item in range(100)]
    assert not judge(guard, ratings + late)[0].any()


def test_a_flood_is_heard_up_to_a_bucket_and_again_after_a_pause(guard):
    flood = [("bot", item, item / 10) for item in range(1_000)]
    flagged, _ = judge(guard, flood)
    assert not flagged[:AT_ONCE].any()
    assert flagged[AT_ONCE + 10 :].all()
    assert guard.total["rate"] == flagged.sum()
    after, _ = judge(guard, [("bot", 1, 100 + FULL_MOST * AT_ONCE * 10.0)])
    assert not after.any()


def test_an_item_is_trainable_up_to_a_bucket_and_then_its_user_is_flagged_once(guard):
    flagged, caught = judge(guard, [("bot", "it", 8.0 * at) for at in range(100)])
    assert flagged.tolist() == [False] * REPEATS + [True] * 97
    assert np.flatnonzero(caught).tolist() == [CAUGHT * REPEATS]  # one has drained meanwhile, or part of it


def test_what_many_repeat_is_heard_and_what_few_repeat_is_not(guard):
    many = [(user, "song", 40.0 * user + at) for user in range(100) for at in range(2)]
    assert not judge(guard, many)[0].any()
    few = [(f"bot-{at % 20}", "spam", 5_000.0 + at) for at in range(20 * REPEATS)]
    flagged, _ = judge(guard, few)
    assert not flagged[:20].any()  # a click each: what a trend looks like
    assert (~flagged[20:]).sum() <= 2 * REPEATS
    assert guard.total["crowd"] == flagged.sum()


def test_a_repeat_that_would_be_flagged_is_known_before_it_is_made(small):
    guard, random = AbuseFilter(small(**LIMITS, abuse_share_exceeded="keep-out")), np.random.default_rng(1)
    clicks = [(f"u{random.integers(4)}", f"i{random.integers(3)}", 5.0 * at) for at in range(200)]
    for at, (user, item, time) in enumerate(clicks):
        expected = guard.repeats_exhausted(user_hashes_of([user]), [item], np.array([time]))
        before = guard.total["repeats"]
        judge(guard, [(user, item, time)])
        assert [guard.total["repeats"] > before] == expected.tolist(), at
    assert guard.total["repeats"] > 10
    assert not guard.total["rate"]


def test_made_up_timestamps_gain_one_span_at_most(guard):
    judge(guard, [("anybody", "else", 1e6)])
    flagged, _ = judge(guard, [("bot", "it", 1_000.0 * at) for at in range(900)])
    assert (~flagged).sum() <= REPEATS + 1_000.0 / INTERVAL_S + 1


def chunks(users=400, clicks_each=40, partitions=4, days=120):
    """An archive of users who play a dozen items often, cut into partitions by user, which come in turns."""
    random = np.random.default_rng(3)
    parts = [[] for _ in range(partitions)]
    for user in range(users):
        at = np.sort(random.uniform(0, days * 86_400.0, clicks_each))
        items = random.integers(0, 12, clicks_each)
        parts[user % partitions] += [(f"u{user}", f"i{item}", 1e9 + t) for item, t in zip(items, at, strict=True)]
    return [sorted(part, key=lambda one: one[2]) for part in parts]


@pytest.mark.parametrize("size", [64, 500, 4_000])
def test_an_archive_that_comes_partition_by_partition_is_flagged_nowhere(small, size):
    """In chunks, so that time jumps by weeks or months from one to the next, forwards and back."""
    parts = chunks()
    stream = [
        one for start in range(0, max(map(len, parts)), size) for part in parts for one in part[start : start + size]
    ]
    guard = AbuseFilter(small(abuse_share_exceeded="keep-out"))
    judge(guard, stream)
    assert guard.total.total() == 0


def test_a_user_whose_clock_is_days_late_is_judged_as_one_whose_clock_is_right(guard):
    """Their pace is what counts, and so it is for a flood."""
    for at in range(200):
        clicks = [("ada", f"a{at}", 1e9 + 20.0 * at), ("ben", f"b{at}", 1e9 + 20.0 * at)]
        clicks += [("late", f"c{at}", 1e9 - 5 * 86_400.0 + 20.0 * at)]
        assert not judge(guard, clicks)[0].any()
    now = 1e9 + 4_000.0
    flood = [("late", f"d{at}", now - 5 * 86_400.0 + at / 10) for at in range(300)]
    assert judge(guard, flood)[0][AT_ONCE + 5 :].all()


def test_one_user_far_ahead_changes_nothing_for_the_others(guard):
    """Slow repeats are trainable, as before; a clock that is ahead must not stop that of others."""
    judge(guard, [(f"u{user}", "song", 1e9 + user) for user in range(20)])
    judge(guard, [("ahead", "x", 1e9 + 86_400.0)])
    later = [(f"u{user}", "song", 1e9 + 200.0 * (1 + turn) + user) for turn in range(20) for user in range(2)]
    assert not judge(guard, later)[0].any()


def test_without_it_everything_is_heard(small):
    guard = AbuseFilter(small(abuse_filter=False))
    flagged, caught = judge(guard, [("bot", "it", at) for at in range(500)])
    assert not flagged.any()
    assert not caught.any()
    assert not guard.total


# --- what was counted is taken back ------------------------------------------------------------------------------


@kernel
def count_all(tables, counted_items, rows, earlier, times):
    """Clicks on rows (K,) after others (K, NEAR), one by one."""
    for k in range(len(rows)):
        for d in range(earlier.shape[1]):
            count_pair(tables, earlier[k, d], rows[k], d)
        count_click(counted_items, rows[k], times[k])


def test_taken_back_counts_are_as_if_those_clicks_had_not_been(small):
    random = np.random.default_rng(0)
    rows, times = random.integers(1, 12, 60), np.arange(1.0, 61.0)
    earlier = np.zeros((60, NEAR), np.int64)
    for at in range(60):
        before = rows[max(0, at - NEAR) : at][::-1]
        earlier[at, : len(before)] = before
    pushed = rows == 3

    everything, others = (FeatureStore(small(successors_held=32, neighbours_held=32)) for _ in range(2))
    for store in (everything, others):
        store._make_room_for_pairs(len(rows))
    count_all(everything.tables, everything.items, rows, earlier, times)
    unpushed = np.where(earlier == 3, 0, earlier)[~pushed]
    count_all(others.tables, others.items, rows[~pushed], unpushed, times[~pushed])

    only = np.where(pushed[:, None] | (earlier == 3), earlier, 0)
    at = np.flatnonzero(pushed | only.any(1))
    ages = np.where(pushed, np.arange(59, -1, -1), -1)[at].astype(float)
    everything.take_back(rows[at], only[at], ages, np.zeros(0, np.int64))
    for name, table, expected in zip(NAMES, everything.tables, others.tables, strict=True):
        for row in range(20):
            mine, on_item = (
                dict(zip(*(part.tolist() for part in neighbours(one, row)), strict=True)) for one in (table, expected)
            )
            assert mine == pytest.approx(on_item, rel=1e-5), (name, row)
        np.testing.assert_allclose(table.totals, expected.totals, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(everything.items.clicks, others.items.clicks)
    assert everything.items.popular[3].max() == 0
    assert 3 not in everything.items.top
    assert everything.items.first_at[3] == everything.items.last_at[3] == 0


# --- the learner -------------------------------------------------------------------------------------------------

TOWN = Town(users=60, items=64)
AT = 640


def attacked(small, bot, *, abuse_filter, others=800, **overrides):
    """A learner after an attack, and the share of other users' lists since it began that hold the bots' item."""
    world = worlds.attack(1, change_at=AT, bot=bot, town=TOWN)
    held = {"list_size": 10, "successors_held": 32, "users_held": 128, "history_max": 64, "moments_held": 5_000}
    learner = Learner(small(abuse_filter=abuse_filter, **held, **overrides))
    stream, found, seen = world.clicks(10**6), [], 0
    while seen < AT + others:
        batch = list(islice(stream, 16))
        rankings = learner.learn(batch).rankings
        theirs = [ranking for user, ranking in rankings.items() if user not in bot.user_ids]
        seen += sum(click.user_id not in bot.user_ids for click in batch)
        if seen > AT:
            found += [bot.item_id in ranking.items for ranking in theirs]
    return learner, sum(found) / len(found)


POPULAR = tuple(TOWN.item_ids[:6])


@pytest.mark.parametrize("accounts", [1, 20])
def test_a_bot_s_item_stays_out_of_others_lists_only_with_the_abuse_filter(small, accounts):
    bot = Bot(clicks=1_500, rate_hz=5.0, accounts=accounts, between=POPULAR)
    assert attacked(small, bot, abuse_filter=False)[1] > 0.05
    assert attacked(small, bot, abuse_filter=True)[1] < 0.01


def test_nothing_that_others_see_is_left_of_an_account_that_was_caught(small):
    bot = Bot(clicks=600, rate_hz=1.0, between=POPULAR)
    learner, _ = attacked(small, bot, abuse_filter=True, abuse_clicks_per_minute=600.0, abuse_clicks_at_once=1_000)
    row = learner.vocabulary.row_of(bot.item_id)
    assert row > 0
    assert learner.store.items.clicks[row] == 0
    assert learner.store.items.popular[row].max() == 0
    assert row not in learner.store.items.top
    for name, table in zip(NAMES, learner.store.tables, strict=True):
        assert not (copy_of_rows(table, slice(None)).others == row).any(), name
    assert learner.abuse_filter.total["taken-back"] >= learner.settings.abuse_repeats_at_once


def test_flagged_clicks_move_their_user_s_history_and_list_but_nothing_else(small):
    town = list(TOWN.clicks(320))
    learner = Learner(small(abuse_repeats_at_once=2))
    for start in range(0, 320, 16):
        learner.learn(town[start : start + 16])
    now = town[-1].timestamp
    pushes = [Click(user_id="bot", item_id="spam", timestamp=now + at) for at in range(40)]
    learner.learn(pushes[:16])
    before = {name: array.tobytes() for name, array in learner.to_state()[0].items()}
    scored = learner.scores.scored
    learned = learner.learn(pushes[16:32])
    after = {name: array.tobytes() for name, array in learner.to_state()[0].items()}
    assert not learned.trainable.any()
    moved = [name for name in after if after[name] != before[name]]
    counts = *(f"store.{name}." for name in (*NAMES, "items")), "store.index.world"
    shared = ("weights.", *counts, "lift.", "replay.", "reservoir.", "returns.")
    assert not [name for name in moved if name.startswith(shared)]
    assert "history.times" in moved
    assert learner.scores.scored == scored
    (slot,) = learner.histories.find(["bot"])
    assert learner.histories.newest_first(np.array([slot]), 5).rows.tolist() == [
        [learner.vocabulary.row_of("spam")] * 5
    ]
    assert "spam" in learned.rankings["bot"].items


def test_an_item_whose_next_click_would_be_flagged_is_no_rival_in_training(small, monkeypatch):
    """Among clicks to learn from it is never the clicked one, whatever users do."""
    learner, batches, found = Learner(small(**LIMITS, abuse_share_exceeded="keep-out")), [], []
    train = learner.weights.train
    monkeypatch.setattr(learner.weights, "train", lambda batch, what: batches.append(batch) or train(batch, what))
    others = [Click(user_id=f"u{at}", item_id=f"i{at % 5}", timestamp=1e9 + at) for at in range(20)]
    for clicks in (others, *([Click(user_id="u", item_id=item, timestamp=1e9 + 60)] for item in ["i1"] * 5 + ["i2"])):
        learned = learner.learn(clicks)
        if clicks[0].user_id == "u":
            (step,) = learned.steps
            rows = step.scored.rows()[0]
            batch = next(one for one in reversed(batches) if one.present is not None)
            there = {
                item: bool(batch.present[0][rows == learner.vocabulary.row_of(item)].any()) for item in ("i1", "i2")
            }
            found.append((bool(learned.trainable[0]), there["i1"], there["i2"]))
    # Three clicks on i1 are learned from; as long as a fourth would be too, i1 is a candidate like others.
    assert found[:3] == [(True, True, True)] * 3
    assert found[3:5] == [(False, False, True)] * 2
    assert found[5] == (True, False, True)


def test_a_restart_in_the_middle_of_an_attack_goes_on_bit_for_bit(small, same):
    bot = replace(Bot(clicks=700, rate_hz=1.0), accounts=3, between=POPULAR)
    clicks = list(worlds.attack(2, change_at=160, bot=bot, town=TOWN).clicks(800))
    settings = small(history_max=64, moments_held=5_000)
    whole, *halves = (Learner(settings) for _ in range(3))
    for start in range(0, 800, 16):
        whole.learn(clicks[start : start + 16])
    for start in range(0, 240, 16):
        halves[0].learn(clicks[start : start + 16])
    arrays, state = halves[0].to_state()
    assert 0 < halves[0].abuse_filter.total["repeats"] < whole.abuse_filter.total["repeats"]
    halves[1].load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    for start in range(240, 800, 16):
        halves[1].learn(clicks[start : start + 16])
    assert whole.abuse_filter.total["taken-back"]
    assert same(whole.to_state()[0], halves[1].to_state()[0])
    assert whole.to_state()[1] == halves[1].to_state()[1]
