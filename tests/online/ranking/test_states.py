"""People whose attention is continued from memory get the states that reading their whole history gives."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from online.history import UserHistories
from online.ranking.next_item import as_histories
from online.ranking.states import UserStates
from online.ranking.weights import Weights
from online.settings import Settings


class World:
    """Histories, a network with random weights large enough to matter, and states, all in float32."""

    def __init__(self, **settings: object) -> None:
        given = {"width": 8, "online_history": 4, "history_max": 64, "memory_dtype": "float32", "seed": 3}
        self.settings = Settings(**{**given, "micro_batch_max": 8, "memory_users_held": 8, **settings})
        self.histories = UserHistories(100, self.settings.history_max)
        self.weights = Weights(self.settings)
        self.weights.grow(64)
        with torch.no_grad():
            torch.manual_seed(0)
            for parameter in self.weights.network.layers.parameters():
                parameter.normal_(std=0.4)
        self.states = UserStates(self.settings, self.weights, self.histories)
        self.random = np.random.default_rng(0)
        self.time = 1.7e9

    def click(self, users: list[str]) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
        """One micro-batch: each user clicks as often as they are named."""
        slots = self.histories.slots(users)
        times = self.time + np.cumsum(self.random.exponential(100, len(users)))
        self.time = float(times[-1])
        self.histories.append(slots, self.random.integers(1, 64, len(users)), 0, times)
        different = list(dict.fromkeys(users))
        return self.states.read(
            different, self.histories.find(different), np.array([users.count(u) for u in different])
        )

    def whole(self, user: str) -> torch.Tensor:
        """The states after each click of the whole history, (L, D)."""
        latest = self.histories.latest(self.histories.find([user]), 64)
        with torch.no_grad():
            return self.weights.network(as_histories(latest, self.weights.device))[0, : int(latest.lengths[0])]


@pytest.fixture
def world() -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield World()
    torch.set_num_threads(threads)


def test_a_continued_memory_gives_the_states_of_the_whole_history(world: World) -> None:
    for _ in range(12):
        world.click(["ada", "bob", "cyd"])
    assert world.states.rebuild() == 3
    for _ in range(10):
        before, anything, after = world.click(["bob", "ada"])
        assert anything.all()
        assert before.requires_grad
        assert not after.requires_grad
        for at, user in enumerate(["bob", "ada"]):
            whole = world.whole(user)
            torch.testing.assert_close(after[at], whole[-1], rtol=0, atol=1e-5)
            torch.testing.assert_close(before[at].detach(), whole[-2], rtol=0, atol=1e-5)


def test_states_come_user_by_user_whatever_way_they_were_computed(world: World) -> None:
    for _ in range(12):
        world.click(["ada", "bob"])
    world.states.rebuild()
    before, anything, after = world.click(["new", "ada", "cyd", "cyd", "bob"])
    assert anything.tolist() == [False, True, False, True, True]
    torch.testing.assert_close(before[1].detach(), world.whole("ada")[-2], rtol=0, atol=1e-5)
    torch.testing.assert_close(before[3].detach(), world.whole("cyd")[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(before[4].detach(), world.whole("bob")[-2], rtol=0, atol=1e-5)
    for at, user in enumerate(["new", "ada", "cyd", "bob"]):
        torch.testing.assert_close(after[at], world.whole(user)[-1], rtol=0, atol=1e-5)


def test_asking_for_a_state_changes_nothing(world: World) -> None:
    for _ in range(12):
        world.click(["ada", "bob"])
    world.states.rebuild()
    for _ in range(2):
        states = world.states.now(["bob", "ada"], world.histories.find(["bob", "ada"]))
        torch.testing.assert_close(states[0], world.whole("bob")[-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(states[1], world.whole("ada")[-1], rtol=0, atol=1e-5)


def test_several_clicks_at_once_put_a_memory_aside_until_it_is_rebuilt(world: World) -> None:
    for _ in range(12):
        world.click(["ada"])
    world.states.rebuild()
    world.click(["ada", "ada", "ada"])
    assert world.states.rebuild() == 1
    assert world.states.rebuild() == 0
    _, _, after = world.click(["ada"])
    torch.testing.assert_close(after[0], world.whole("ada")[-1], rtol=0, atol=1e-5)


def test_memories_beyond_the_limit_make_room_and_short_histories_need_none(world: World) -> None:
    users = [f"u{n}" for n in range(20)]
    for _ in range(6):
        for user in users:
            world.click([user])
            while world.states.rebuild():
                pass
    assert len(world.states.memory.directory) == 8
    for user in users:
        _, _, after = world.click([user])
        if user in world.states.memory.directory:
            torch.testing.assert_close(after[0], world.whole(user)[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_memory_goes_on_bit_for_bit(dtype: str) -> None:
    torch.set_num_threads(1)
    one, other = World(memory_dtype=dtype), World(memory_dtype=dtype)
    for world in (one, other):
        for _ in range(12):
            world.click(["ada", "bob"])
        world.states.rebuild()
    arrays, state = one.states.to_state()
    other.states = UserStates(other.settings, other.weights, other.histories)
    other.states.load_state(arrays, state)
    for _ in range(3):
        torch.testing.assert_close(one.click(["ada", "bob"]), other.click(["ada", "bob"]), rtol=0, atol=0)


def test_a_memory_of_another_shape_is_left_and_rebuilt() -> None:
    torch.set_num_threads(1)
    one = World()
    for _ in range(12):
        one.click(["ada"])
    one.states.rebuild()
    other = World(window=8)
    other.states.load_state(*one.states.to_state())
    assert len(other.states.memory.directory) == 0


def test_fine_tuned_weights_and_long_use_ask_for_a_rebuild() -> None:
    torch.set_num_threads(1)
    world = World(memory_updates_max=5)
    for _ in range(12):
        world.click(["ada"])
    world.states.rebuild()
    world.click(["ada"])
    assert world.states.rebuild() == 0
    world.states.weights_replaced()
    world.weights.optimizer.steps += 1
    world.click(["ada"])
    assert world.states.rebuild() == 1
    world.click(["ada"])
    assert world.states.rebuild() == 0
    world.weights.optimizer.steps += 6
    world.click(["ada"])
    assert world.states.rebuild() == 1
