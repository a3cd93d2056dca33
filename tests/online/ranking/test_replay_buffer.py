"""What is kept of each click, how many of them, and that a restored buffer goes on as if nothing had happened."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.ranking.replay_buffer import FIRST, ReplayBuffer, among_rivals

CPU = torch.device("cpu")
WIDTH = 3


def buffer(held: int = 300, candidates: int = 4, *, width: int = WIDTH, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(held, candidates, width, seed, CPU)


def add(replay: ReplayBuffer, features: torch.Tensor, best: torch.Tensor, clicked: torch.Tensor) -> None:
    replay.add(*among_rivals(features, best, clicked))


def fill(replay: ReplayBuffer, clicks: int, *, first: int = 0, batch: int = 16) -> ReplayBuffer:
    """Clicks whose clicked item's features are their number (from `first`), with one rival whose features are 0."""
    for start in range(first, first + clicks, batch):
        numbers = torch.arange(start, min(start + batch, first + clicks))
        N = len(numbers)
        features = torch.zeros(N + 1, replay.features.shape[2])
        features[:N] = numbers[:, None].float()
        best = torch.full((N, replay.candidates), N + 1)
        best[:, 0] = N
        add(replay, features, best, torch.arange(N))
    return replay


def numbers_in(replay: ReplayBuffer) -> list[int]:
    """Which of `fill`'s clicks are held."""
    return sorted(replay.features[: replay.filled, 0, 0].int().tolist())


@st.composite
def rankings(draw: st.DrawFn) -> tuple[int, int, list[list[int]], list[int]]:
    """K candidates kept, C candidates, and of each click the K best places (C for none) and the clicked one's."""
    K, C, N = draw(st.integers(2, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    best = [draw(st.permutations(range(C)))[: draw(st.integers(0, K))] for _ in range(N)]
    return K, C, [mine + [C] * (K - len(mine)) for mine in best], [draw(st.integers(0, C - 1)) for _ in range(N)]


@given(rankings())
def test_of_a_click_the_clicked_item_comes_first_and_its_strongest_rivals_follow(
    drawn: tuple[int, int, list[list[int]], list[int]],
) -> None:
    K, C, best, clicked = drawn
    replay = buffer(candidates=K)
    features = (torch.arange(C) + 1.0)[:, None].expand(-1, WIDTH)  # a candidate's features: its place, from 1
    add(replay, features, torch.tensor(best), torch.tensor(clicked))
    assert replay.filled == len(clicked)
    for at, (mine, target) in enumerate(zip(best, clicked, strict=True)):
        kept = (replay.features[at, :, 0][replay.present[at]] - 1).int().tolist()
        assert kept[0] == target
        assert replay.present[at, 0]
        strongest = [place for place in mine if place not in (target, C)][: K - 1]
        assert sorted(kept[1:]) == sorted(strongest)


def test_what_is_given_is_left_as_it_was() -> None:
    best, clicked = torch.tensor([[2, 0], [0, 1]]), torch.tensor([1, 2])
    features = torch.rand(3, WIDTH)
    before = [part.clone() for part in (features, best, clicked)]
    add(buffer(candidates=2), features, best, clicked)
    assert all(torch.equal(one, other) for one, other in zip((features, best, clicked), before, strict=True))


def test_features_are_kept_to_three_digits() -> None:
    replay = buffer(1, 2)
    features = torch.tensor([[0.1234, 1_000.6, -7.77], [0.0, 0.0, 0.0]])
    add(replay, features, torch.tensor([[0, 1]]), torch.tensor([0]))
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
        features, present = sampled
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
            assert all(torch.equal(part, same) for part, same in zip(one, other, strict=True))
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
