"""What is kept of each click, how many of them, and that a restored buffer goes on as if nothing had happened."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.learner.replay_buffer import FIRST, ReplayBuffer, among_rivals
from online.learner.scoring import ScoredCandidates
from online.learner.user_stores import UserKey

CPU = torch.device("cpu")
WIDTH = 3


def buffer(held: int = 300, candidates: int = 4, *, width: int = WIDTH, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(held, candidates, width, seed, CPU)


def scored_of(features: torch.Tensor, present: torch.Tensor, scores: torch.Tensor) -> ScoredCandidates:
    """Clicks whose kept candidates have these features (N, K, F) and scores (N, K); what is not present has no score.
    Nothing else of them is looked at."""
    nothing: Any = None
    scores = scores.masked_fill(~present, -torch.inf)
    return ScoredCandidates(nothing, nothing, nothing, features, present, scores, scores[..., None])


def fill(replay: ReplayBuffer, clicks: int, *, first: int = 0, batch: int = 16) -> ReplayBuffer:
    """Clicks whose clicked item's features are their number (from `first`), with one rival whose features are 0."""
    for start in range(first, first + clicks, batch):
        numbers = torch.arange(start, min(start + batch, first + clicks))
        N = len(numbers)
        features = torch.zeros(N, 2, replay.features.shape[2])
        features[:, 1] = numbers[:, None].float()
        scored = scored_of(features, torch.ones(N, 2, dtype=torch.bool), torch.tensor([[1.0, 0.0]]).repeat(N, 1))
        replay.add(*among_rivals(scored, torch.ones(N, dtype=torch.int64), replay.candidates))
    return replay


def numbers_in(replay: ReplayBuffer) -> list[int]:
    """Which of `fill`'s clicks are held."""
    return sorted(replay.features[: replay.filled, 0, 0].int().tolist())


@st.composite
def clicks_with_rivals(draw: st.DrawFn) -> tuple[int, list[list[int]], list[int]]:
    """How many rivals and clicked item are kept, and of each click the candidates' scores, all different, and which of
    them was clicked; −1 for none."""
    K, N = draw(st.integers(1, 7)), draw(st.integers(0, 4))
    scores = [draw(st.lists(st.integers(-50, 50), max_size=K, unique=True)) for _ in range(N)]
    return draw(st.integers(2, 5)), scores, [draw(st.integers(-1, len(mine) - 1)) for mine in scores]


@given(clicks_with_rivals())
def test_of_a_click_the_clicked_item_comes_first_and_its_strongest_rivals_follow(
    drawn: tuple[int, list[list[int]], list[int]],
) -> None:
    count, scores, clicked = drawn
    N, K = len(scores), max([len(mine) for mine in scores], default=0) + 1  # the last place is free in all of them
    features, present = torch.zeros(N, K, WIDTH), torch.zeros(N, K, dtype=torch.bool)
    flat = torch.zeros(N, K)
    for at, mine in enumerate(scores):
        present[at, : len(mine)] = True
        flat[at, : len(mine)] = torch.tensor(mine, dtype=torch.float32)
    features[:] = (torch.arange(K) + 1.0)[:, None]  # a candidate's features: its place, from 1
    scored = scored_of(features, present, flat)
    found, there, *_ = among_rivals(scored, torch.tensor(clicked, dtype=torch.int64), count)
    learned = [(mine, place) for mine, place in zip(scores, clicked, strict=True) if place >= 0]
    assert found.shape == (len(learned), count, WIDTH)
    for kept, its, (mine, place) in zip(found, there, learned, strict=True):
        rivals = sorted((score, at) for at, score in enumerate(mine) if at != place)[::-1]
        expected = [place, *(at for _, at in rivals)][:count]
        assert (kept[its][:, 0] - 1).int().tolist() == expected
        assert its.tolist() == [True] * len(expected) + [False] * (count - len(expected))


def test_what_is_given_is_left_as_it_was() -> None:
    scored = scored_of(torch.rand(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool), torch.rand(2, 3))
    places = torch.tensor([1, 2])
    before = [part.clone() for part in (scored.features, scored.present, scored.scores, places)]
    buffer(candidates=2).add(*among_rivals(scored, places, 2))
    after = (scored.features, scored.present, scored.scores, places)
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


def test_features_are_kept_to_three_digits() -> None:
    replay = buffer(1, 2)
    features = torch.tensor([[0.1234, 1_000.6, -7.77], [0.0, 0.0, 0.0]])
    scored = scored_of(features[None], torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))
    replay.add(*among_rivals(scored, torch.tensor([0]), 2))
    sampled = replay.sample(1)
    assert sampled is not None
    assert sampled[0].dtype == torch.float32
    torch.testing.assert_close(sampled[0][0, 0], features[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("held", [1, 20, 33, 300])
@pytest.mark.parametrize("batch", [1, 32, 64])
def test_at_most_so_many_are_held_and_each_in_a_place_of_its_own(held: int, batch: int) -> None:
    replay = buffer(held)
    for start in range(0, 400, batch):
        fill(replay, batch, first=start, batch=batch)
        numbers = numbers_in(replay)
        assert len(numbers) == len(set(numbers)) == min(held, start + batch)
        assert set(range(start, start + min(batch, held))) <= set(numbers)  # the new ones are there
    assert replay.features.shape[0] == replay.present.shape[0] == held


def test_without_room_nothing_is_kept_and_nothing_replayed() -> None:
    replay = fill(buffer(0), 40)
    assert replay.filled == 0
    assert replay.sample(8) is None


def test_older_clicks_give_way_at_random_so_that_their_ages_fall_off_exponentially() -> None:
    replay = fill(buffer(500), 1_500)
    ages = 1_500 - np.array(numbers_in(replay))
    assert 0.30 < (ages > 500).mean() < 0.44  # e^−1 = 0.37
    assert 0.09 < (ages > 1_000).mean() < 0.19  # e^−2 = 0.14


def test_what_is_replayed_is_drawn_evenly_from_all_that_is_held() -> None:
    replay = fill(buffer(300), 300)
    drawn = []
    for _ in range(100):
        sampled = replay.sample(30)
        assert sampled is not None
        features, present, *_ = sampled
        assert features.shape == (30, 4, WIDTH)
        assert present.tolist() == [[True, True, False, False]] * 30
        drawn += features[:, 0, 0].int().tolist()
    times = np.bincount(drawn, minlength=300)
    assert len(times) == 300
    assert (times > 0).mean() > 0.99
    assert times.max() < 30


@pytest.mark.parametrize(("held", "needed"), [(300, FIRST), (FIRST, FIRST), (10, 10)])
def test_replay_begins_once_enough_is_held(held: int, needed: int) -> None:
    replay = fill(buffer(held), needed - 1)
    assert replay.sample(5) is None
    fill(replay, 1, first=needed)
    assert replay.sample(5) is not None
    assert replay.sample(0) is None


def test_a_seed_repeats_and_another_replays_something_else() -> None:
    found = []
    for seed in (1, 1, 2):
        sampled = fill(buffer(seed=seed), 500).sample(20)
        assert sampled is not None
        found.append(sampled[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("clicks", [0, 5, 280, 500])
def test_what_is_restored_goes_on_as_if_nothing_had_happened(clicks: int) -> None:
    whole, restored = fill(buffer(seed=3), clicks), buffer(seed=9)
    arrays, state = whole.to_state()
    restored.load_state(arrays, json.loads(json.dumps(state)))
    for step in range(20):
        for replay in (whole, restored):
            fill(replay, 16, first=clicks + 16 * step)
        one, other = whole.sample(7), restored.sample(7)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert all(torch.equal(part, same) for part, same in zip(one[:2], other[:2], strict=True))
    assert torch.equal(whole.features, restored.features)
    assert torch.equal(whole.present, restored.present)


def test_only_what_is_there_is_saved() -> None:
    arrays, _ = fill(buffer(), 20).to_state()
    assert arrays["features"].shape == (20, 4, WIDTH)
    assert arrays["present"].shape == (20, 4)


@pytest.mark.parametrize("held", [10, 400])
def test_restored_with_another_limit_it_takes_what_fits_and_goes_on(held: int) -> None:
    restored = buffer(held)
    restored.load_state(*fill(buffer(), 300).to_state())
    assert restored.filled == min(held, 300)
    assert set(numbers_in(restored)) <= set(range(300))
    fill(restored, 200, first=300)
    assert restored.filled == held
    assert restored.sample(5) is not None


@pytest.mark.parametrize("changed", [{"candidates": 5}, {"width": 4}])
def test_clicks_of_another_shape_are_left_behind(changed: dict[str, int]) -> None:
    restored = buffer(**changed)
    restored.load_state(*fill(buffer(), 300).to_state())
    assert restored.filled == 0
    assert restored.sample(5) is None
    assert numbers_in(fill(restored, 20)) == list(range(20))


def test_who_is_forgotten_leaves_nothing_and_others_stay() -> None:
    replay = buffer(20)
    features, present = torch.ones(6, 4, WIDTH), torch.ones(6, 4, dtype=torch.bool)
    replay.add(features * torch.arange(1, 7)[:, None, None], present, user_hashes=np.array([7, 8, 7, 9, 7, 8]))
    assert replay.forget_user(UserKey(frozenset(), 7)) == {"replay_clicks": 3}
    assert replay.user_hashes[: replay.filled].tolist() == [8, 9, 8]
    assert replay.features[: replay.filled, 0, 0].tolist() == [2, 4, 6]
    assert not replay.features[replay.filled :].any()
    assert not replay.user_hashes[replay.filled :].any()
    assert replay.forget_user(UserKey(frozenset(), 7)) == {"replay_clicks": 0}
