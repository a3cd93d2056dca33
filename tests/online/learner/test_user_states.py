"""People whose attention is continued from memory get the states that reading their whole history gives."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from online.config.settings import Settings
from online.learner.history import UserHistories
from online.learner.next_item import as_histories
from online.learner.ranking_model import RankingModel
from online.learner.user_states import UserStates


class World:
    """Histories, a network with random weights large enough to matter, and states, all in float32."""

    def __init__(self, **settings: object) -> None:
        given = {"width": 8, "online_history": 4, "history_max": 64, "memory_dtype": "float32", "seed": 3}
        self.settings = Settings(**{**given, "micro_batch_max": 8, "memory_users_held": 8, **settings})
        self.histories = UserHistories(100, self.settings.history_max)
        self.weights = RankingModel(self.settings)
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
        latest = self.histories.oldest_first(self.histories.find([user]), 64)
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
    assert world.states.rebuild() == 0
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


@pytest.mark.parametrize("longest", [1, 3, 15])
def test_several_clicks_at_once_continue_a_memory_as_one_after_the_other(world: World, longest: int) -> None:
    """However the clicks are cut into micro-batches, states are those of the whole history, and nothing is rebuilt."""
    clicks_before = dict.fromkeys(["ada", "bob", "cyd"], 0)
    for _ in range(4):
        clicks = {user: int(world.random.integers(0, longest + 1)) for user in clicks_before} | {"bob": longest}
        before, had, after = world.click([user for user, count in clicks.items() for _ in range(count)])
        at = 0
        for n, user in enumerate(user for user, count in clicks.items() if count):
            whole = world.whole(user)
            torch.testing.assert_close(after[n], whole[-1], rtol=0, atol=1e-5)
            for nth in range(clicks_before[user], clicks_before[user] + clicks[user]):
                assert had[at] == (nth > 0)
                expected = whole[nth - 1] if nth else torch.zeros_like(before[at])
                torch.testing.assert_close(before[at].detach(), expected, rtol=0, atol=1e-5)
                at += 1
        assert at == len(before)
        clicks_before = {user: count + clicks[user] for user, count in clicks_before.items()}
    assert world.states.rebuild() == 0


def test_a_first_click_has_no_gradient_and_later_ones_have(world: World) -> None:
    def gradients() -> list[bool]:
        return [p.grad is not None and bool(p.grad.any()) for p in world.weights.network.layers.parameters()]

    before, had, after = world.click(["bob", "ada", "bob"])
    assert had.tolist() == [False, True, False]
    assert not after.requires_grad
    before[[0, 2]].sum().backward()
    assert not any(gradients())
    before, _, _ = world.click(["bob"])
    before.square().sum().backward()
    assert any(gradients())


def test_company_changes_no_states() -> None:
    torch.set_num_threads(1)
    alone, together = World(), World()
    for step in range(8):
        times, rows = 1.7e9 + 1000 * step + np.arange(3), 1 + step + np.arange(3)
        found = []
        for world, others in ((alone, 0), (together, 4)):
            users = ["ada"] * 3 + [f"u{n}" for n in range(others)]
            rows_of_all = np.concatenate([rows, np.full(others, 7)])
            times_of_all = np.concatenate([times, np.full(others, times[0])])
            world.histories.append(world.histories.slots(users), rows_of_all, 0, times_of_all)
            listed = list(dict.fromkeys(users))
            clicks = np.array([users.count(user) for user in listed])
            before, _, after = world.states.read(listed, world.histories.find(listed), clicks)
            found.append(torch.cat([before[:3], after[:1]]).detach())
        torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_memories_beyond_the_limit_make_room_and_are_made_again(world: World) -> None:
    users = [f"u{n}" for n in range(20)]
    for _ in range(6):
        for user in users:
            world.click([user])
    assert len(world.states.memory.directory) == 8
    for user in users:  # all of whom have lost their memory to others
        world.click([user])  # from their latest clicks
        assert world.states.rebuild() > 0
        _, _, after = world.click([user])
        torch.testing.assert_close(after[0], world.whole(user)[-1], rtol=0, atol=1e-5)


def test_who_comes_back_is_read_from_their_latest_clicks(world: World) -> None:
    for _ in range(9):
        world.click(["ada", "ada"])
    for n in range(8):  # take all slots
        world.click([f"u{n}"])
    before, had, after = world.click(["ada", "ada"])
    assert had.all()
    latest = world.histories.oldest_first(
        world.histories.find(["ada"]), 4 + 1 + 2
    )  # before the latest, the latest, two more
    with torch.no_grad():
        expected = world.weights.network(as_histories(latest, world.weights.device))[0]
    torch.testing.assert_close(torch.cat([before, after]).detach(), expected[-3:], rtol=0, atol=1e-5)
    slots = world.histories.find(["ada"])
    before_anew, after_anew, had_anew = world.states.read_anew(world.weights, slots, np.array([2]))
    assert had_anew.all()
    assert before_anew.requires_grad
    torch.testing.assert_close(torch.cat([before_anew, after_anew]), torch.cat([before, after]), rtol=0, atol=1e-6)


def test_a_forgotten_history_starts_anew_and_a_forgotten_user_is_nowhere(world: World) -> None:
    for _ in range(5):
        world.click(["ada", "bob"])
    world.histories.forget("ada")
    _, had, after = world.click(["ada"])
    assert had.tolist() == [False]
    torch.testing.assert_close(after[0], world.whole("ada")[-1], rtol=0, atol=1e-5)
    slot = world.states.memory.directory.slot("bob")
    assert world.states.forget("bob")
    assert not world.states.forget("bob")
    assert world.states.user_ids() == {"ada"}
    assert not any(tensor[slot].any() for tensor in world.states._kept().values())


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
