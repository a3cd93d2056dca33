"""Where nothing seen is to be listed, nothing is: whatever a history no longer holds, and after whatever happens."""

import json
from itertools import pairwise

import numpy as np
import pytest

from online.learner.learner import Learner
from stream.events import Click
from stream.user_ids import digest_of
from tests.online.conftest import NOW

CLICKS_OF = {"few": 300, "many": 900, "most": 3_000}  # different items of each user
ITEMS = 3_040


def stream(clicks_of=CLICKS_OF, items=ITEMS, seed=0):
    """Each user goes through items in an order of their own, all of them at the same pace until they have theirs."""
    random = np.random.default_rng(seed)
    chosen = {user: random.permutation(items)[:count].tolist() for user, count in clicks_of.items()}
    clicks = []
    for turn in range(max(clicks_of.values())):
        for user, mine in chosen.items():
            if turn < len(mine):
                clicks.append(Click(user_id=user, item_id=f"i{mine[turn]}", timestamp=NOW - 1e6 + 10.0 * turn))
    return clicks


def learn(learner, clicks, size=32):
    return [learner.learn(clicks[start : start + size]) for start in range(0, len(clicks), size)]


def as_saved(learner):
    arrays, state = learner.to_state()
    return {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state))


def shown_although_seen(learner, clicks, users):
    """Of each user's list as it is ranked now: how many items they have clicked, and how many there are."""
    had = {user: {click.item_id for click in clicks if click.user_id == user} for user in users}
    lists = zip(users, learner.rank(users), strict=True)
    found = [(len(had[user] & set(ranking.items)), len(ranking.items)) for user, ranking in lists]
    return [seen for seen, _ in found], [size for _, size in found]


@pytest.fixture
def settings(small):
    limits = {"items_held": 4_000, "history_max": 64, "list_size": 50, "successors_held": 64}
    return small(exclude_seen=True, abuse_filter=False, micro_batch_max=32, reformer=False, **limits)


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def trained(settings, kept):
    """A learner that has learned the whole stream."""
    learner = Learner(settings)
    if not kept:
        learn(learner, stream())
        kept["state"] = as_saved(learner)
    else:
        learner.load_state(*kept["state"])
    return learner


def test_no_list_shows_what_its_user_has_clicked_at_any_time(settings):
    learner, had = Learner(settings), {user: set() for user in CLICKS_OF}
    for click_batch in np.array_split(np.array(stream(), dtype=object), 140):
        learned = learner.learn(click_batch.tolist())
        for click in click_batch:
            had[click.user_id].add(click.item_id)
        assert all(not had[user] & set(ranking.items) for user, ranking in learned.rankings.items())


def test_refreshed_lists_are_long_and_show_nothing_seen_also_after_a_restart(settings, trained):
    for learner in (trained, restarted := Learner(settings)):
        if learner is restarted:
            learner.load_state(*as_saved(trained))
        for now in (None, [NOW + 1e5] * 3):
            users = list(CLICKS_OF)
            seen, sizes = shown_although_seen(learner, stream(), users)
            assert seen == [0, 0, 0]
            assert min(sizes[:2]) == 50
            rankings = learner.rank(users, now)
            assert not {click.item_id for click in stream() if click.user_id == "most"} & set(rankings[2].items)


def test_restored_it_goes_on_with_what_was_seen_as_if_nothing_had_happened(settings, trained, same):
    restarted = Learner(settings)
    restarted.load_state(*as_saved(trained))
    more = [Click(user_id=f"new {n % 3}", item_id=f"i{n}", timestamp=NOW + n) for n in range(40)]
    more += [Click(user_id="few", item_id=f"i{n}", timestamp=NOW + n) for n in range(40)]
    found = [[learned.rankings for learned in learn(learner, more)] for learner in (trained, restarted)]
    assert found[0] == found[1]
    (arrays, state), (others_arrays, others_state) = as_saved(trained), as_saved(restarted)
    assert state == others_state
    assert same(arrays, others_arrays)


def test_what_takes_the_place_of_candidates_that_were_all_clicked_is_not_seen_either(settings):
    """The popular items that a history holds no longer are the first that the fallback would show."""
    learner = Learner(settings)
    all_clicks = [Click(user_id=f"u{n % 40}", item_id=f"i{n % 300}", timestamp=NOW - 1e6 + n) for n in range(3_000)]
    learn(learner, all_clicks)
    rare = [Click(user_id=f"r{n}", item_id=f"rare {n}", timestamp=NOW - 9e5 + n) for n in range(5)]
    learn(learner, rare)
    mine = [Click(user_id="a", item_id=f"i{n}", timestamp=NOW - 8e5 + n) for n in range(300)]
    learn(learner, mine)
    for one in (learner, restarted := Learner(settings)):
        if one is restarted:
            one.load_state(*as_saved(learner))
        (ranking,) = one.rank(["a"])
        assert ranking.popular
        assert set(ranking.items) == {f"rare {n}" for n in range(5)}


def test_within_a_micro_batch_an_item_is_seen_by_later_clicks_not_by_its_own(settings):
    learner = Learner(settings)
    clicks = stream({"few": 45, "other": 60}, items=60)  # as many items as the popular ones among the candidates
    learn(learner, clicks)
    unseen = sorted({f"i{n}" for n in range(60)} - {click.item_id for click in clicks if click.user_id == "few"})
    learned = learner.learn([Click(user_id="few", item_id=item, timestamp=NOW) for item in unseen[:3]])
    gathered = learned.steps[0].scored.gathered
    candidates = [set(gathered.rows[start:stop].tolist()) for start, stop in pairwise(gathered.starts.tolist())]
    new = [learner.vocabulary.row_of(item) for item in unseen]
    assert [[row in found for row in new[:3]] for found in candidates] == [
        [True, True, True],
        [False, True, True],
        [False, False, True],
    ]
    assert candidates[0] == set(new)


def test_the_next_item_of_a_row_has_not_been_seen_by_those_who_saw_the_one_before(small):
    learner = Learner(small(exclude_seen=True, abuse_filter=False, items_held=30))
    learn(learner, stream({"few": 30, "other": 30}, items=30), size=4)
    row = learner.vocabulary.row_of("i4")
    learner.vocabulary.expire(float("inf"))
    learner.learn([Click(user_id="third", item_id="new", timestamp=NOW)])
    assert learner.vocabulary.row_of("new")
    assert learner.seen.pairs == 1
    assert row
    assert learner.rank(["few"])[0].items == ["new"]


def test_nothing_is_left_of_who_was_forgotten(trained):
    trained.histories.forget("most")  # as if they had made room there
    assert trained.named(digest_of("most")) == {"most"}
    assert trained.holds(digest_of("most"))["seen_items"] == 3_000
    assert trained.forget(digest_of("most"))["seen_items"] == 3_000
    assert not any(trained.holds(digest_of("most")).values())
    arrays, state = as_saved(trained)
    assert "most" not in json.dumps(state)
    assert len(arrays["seen.starts"]) == len(CLICKS_OF)


def test_a_checkpoint_without_seen_items_goes_on_with_those_of_its_histories(settings, trained):
    arrays, state = as_saved(trained)
    del state["seen"]
    learner = Learner(settings)
    learner.load_state({name: array for name, array in arrays.items() if not name.startswith("seen.")}, state)
    assert learner.seen.users() == learner.histories.users()
    latest = learner.histories.newest_first(learner.histories.find(["few"]), learner.histories.history_max)
    assert learner.seen.of(["few"])[1].tolist() == sorted(set(latest.rows[0].tolist()))
    assert len(latest.rows[0]) == settings.history_max


def test_without_the_setting_a_checkpoint_with_seen_items_loads_and_none_is_held(settings, trained):
    learner = Learner(settings.model_copy(update={"exclude_seen": False}))
    learner.load_state(*as_saved(trained))
    assert learner.seen is None
    assert "seen" not in learner.to_state()[1]


# --- the worker --------------------------------------------------------------------------------------------------


def test_seen_items_that_had_to_go_are_reported_at_once_and_once(harness):
    harness.publish(stream({"a": 40, "b": 40, "c": 40}, items=60))
    loop = harness.run(exclude_seen=True, seen_pairs_max=100)
    told = [notice for notice in loop.notices.latest if notice.kind == "seen_items_lost"]
    assert len(told) == 1
    assert "NEXTCLICK_SEEN_PAIRS_MAX" in told[0].text
    assert 101 <= told[0].clicks <= 101 + 16  # with the micro-batch that holds the first pair too many
    assert (told[0].figures["users"], told[0].figures["pairs_lost"]) == (1, 33)  # theirs who were seen least recently
    assert loop.learner.seen.pairs <= 100


def test_while_there_is_room_nothing_is_reported(harness):
    harness.publish(stream({"a": 40, "b": 40, "c": 40}, items=60))
    loop = harness.run(exclude_seen=True, seen_pairs_max=120)
    assert loop.learner.seen.pairs == 120
    assert not [notice for notice in loop.notices.latest if notice.kind == "seen_items_lost"]
