"""Users whose attention is continued from memory get the states that reading their whole history gives."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from online.config.settings import Settings
from online.learner.history import UserHistories
from online.learner.next_item import as_histories
from online.learner.ranking_model import RankingModel
from online.learner.user_states import UserStates


class StatesHarness:
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
def harness() -> Iterator[StatesHarness]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield StatesHarness()
    torch.set_num_threads(threads)


def test_a_continued_memory_gives_the_states_of_the_whole_history(harness: StatesHarness) -> None:
    for _ in range(12):
        harness.click(["ada", "bob", "cyd"])
    assert harness.states.rebuild() == 0
    for _ in range(10):
        before, anything, after = harness.click(["bob", "ada"])
        assert anything.all()
        assert before.requires_grad
        assert not after.requires_grad
        for at, user in enumerate(["bob", "ada"]):
            whole = harness.whole(user)
            torch.testing.assert_close(after[at], whole[-1], rtol=0, atol=1e-5)
            torch.testing.assert_close(before[at].detach(), whole[-2], rtol=0, atol=1e-5)


def test_states_come_user_by_user_whatever_way_they_were_computed(harness: StatesHarness) -> None:
    for _ in range(12):
        harness.click(["ada", "bob"])
    harness.states.rebuild()
    before, anything, after = harness.click(["new", "ada", "cyd", "cyd", "bob"])
    assert anything.tolist() == [False, True, False, True, True]
    torch.testing.assert_close(before[1].detach(), harness.whole("ada")[-2], rtol=0, atol=1e-5)
    torch.testing.assert_close(before[3].detach(), harness.whole("cyd")[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(before[4].detach(), harness.whole("bob")[-2], rtol=0, atol=1e-5)
    for at, user in enumerate(["new", "ada", "cyd", "bob"]):
        torch.testing.assert_close(after[at], harness.whole(user)[-1], rtol=0, atol=1e-5)


def test_asking_for_a_state_changes_nothing(harness: StatesHarness) -> None:
    for _ in range(12):
        harness.click(["ada", "bob"])
    harness.states.rebuild()
    for _ in range(2):
        states = harness.states.now(["bob", "ada"], harness.histories.find(["bob", "ada"]))
        torch.testing.assert_close(states[0], harness.whole("bob")[-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(states[1], harness.whole("ada")[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("longest", [1, 3, 15])
def test_several_clicks_at_once_continue_a_memory_as_one_after_the_other(harness: StatesHarness, longest: int) -> None:
    """However the clicks are cut into micro-batches, states are those of the whole history, and nothing is rebuilt."""
    clicks_before = dict.fromkeys(["ada", "bob", "cyd"], 0)
    for _ in range(4):
        clicks = {user: int(harness.random.integers(0, longest + 1)) for user in clicks_before} | {"bob": longest}
        before, had, after = harness.click([user for user, count in clicks.items() for _ in range(count)])
        at = 0
        for n, user in enumerate(user for user, count in clicks.items() if count):
            whole = harness.whole(user)
            torch.testing.assert_close(after[n], whole[-1], rtol=0, atol=1e-5)
            for nth in range(clicks_before[user], clicks_before[user] + clicks[user]):
                assert had[at] == (nth > 0)
                expected = whole[nth - 1] if nth else torch.zeros_like(before[at])
                torch.testing.assert_close(before[at].detach(), expected, rtol=0, atol=1e-5)
                at += 1
        assert at == len(before)
        clicks_before = {user: count + clicks[user] for user, count in clicks_before.items()}
    assert harness.states.rebuild() == 0


def test_a_first_click_has_no_gradient_and_later_ones_have(harness: StatesHarness) -> None:
    def gradients() -> list[bool]:
        return [p.grad is not None and bool(p.grad.any()) for p in harness.weights.network.layers.parameters()]

    before, had, after = harness.click(["bob", "ada", "bob"])
    assert had.tolist() == [False, True, False]
    assert not after.requires_grad
    before[[0, 2]].sum().backward()
    assert not any(gradients())
    before, _, _ = harness.click(["bob"])
    before.square().sum().backward()
    assert any(gradients())


def test_company_changes_no_states() -> None:
    torch.set_num_threads(1)
    alone, together = StatesHarness(), StatesHarness()
    for step in range(8):
        times, rows = 1.7e9 + 1000 * step + np.arange(3), 1 + step + np.arange(3)
        found = []
        for harness, others in ((alone, 0), (together, 4)):
            users = ["ada"] * 3 + [f"u{n}" for n in range(others)]
            rows_of_all = np.concatenate([rows, np.full(others, 7)])
            times_of_all = np.concatenate([times, np.full(others, times[0])])
            harness.histories.append(harness.histories.slots(users), rows_of_all, 0, times_of_all)
            listed = list(dict.fromkeys(users))
            clicks = np.array([users.count(user) for user in listed])
            before, _, after = harness.states.read(listed, harness.histories.find(listed), clicks)
            found.append(torch.cat([before[:3], after[:1]]).detach())
        torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_memories_beyond_the_limit_make_room_and_are_made_again(harness: StatesHarness) -> None:
    users = [f"u{n}" for n in range(20)]
    for _ in range(6):
        for user in users:
            harness.click([user])
    assert len(harness.states.memory.directory) == 8
    for user in users:  # all of whom have lost their memory to others
        harness.click([user])  # from their latest clicks
        assert harness.states.rebuild() > 0
        _, _, after = harness.click([user])
        torch.testing.assert_close(after[0], harness.whole(user)[-1], rtol=0, atol=1e-5)


def test_who_comes_back_is_read_from_their_latest_clicks(harness: StatesHarness) -> None:
    for _ in range(9):
        harness.click(["ada", "ada"])
    for n in range(8):  # take all slots
        harness.click([f"u{n}"])
    before, had, after = harness.click(["ada", "ada"])
    assert had.all()
    latest = harness.histories.oldest_first(
        harness.histories.find(["ada"]), 4 + 1 + 2
    )  # before the latest, the latest, two more
    with torch.no_grad():
        expected = harness.weights.network(as_histories(latest, harness.weights.device))[0]
    torch.testing.assert_close(torch.cat([before, after]).detach(), expected[-3:], rtol=0, atol=1e-5)
    slots = harness.histories.find(["ada"])
    before_anew, after_anew, had_anew = harness.states.read_anew(harness.weights, slots, np.array([2]))
    assert had_anew.all()
    assert before_anew.requires_grad
    torch.testing.assert_close(torch.cat([before_anew, after_anew]), torch.cat([before, after]), rtol=0, atol=1e-6)


def test_a_forgotten_history_starts_anew_and_a_forgotten_user_is_nowhere(harness: StatesHarness) -> None:
    for _ in range(5):
        harness.click(["ada", "bob", "cy"])
    harness.histories.forget("ada")
    _, had, after = harness.click(["ada"])
    assert had.tolist() == [False]
    torch.testing.assert_close(after[0], harness.whole("ada")[-1], rtol=0, atol=1e-5)
    slot = harness.states.memory.directory.slot("bob")
    before, _ = harness.states.to_state()
    assert any(array[slot].any() for array in before.values())
    assert harness.states.forget("bob")
    assert not harness.states.forget("bob")
    assert harness.states.user_ids() == {"ada", "cy"}
    after, _ = harness.states.to_state()  # the slots up to that of the third user
    assert not any(array[slot].any() for array in after.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_memory_goes_on_bit_for_bit(dtype: str) -> None:
    torch.set_num_threads(1)
    one, other = StatesHarness(memory_dtype=dtype), StatesHarness(memory_dtype=dtype)
    for harness in (one, other):
        for _ in range(12):
            harness.click(["ada", "bob"])
        harness.states.rebuild()
    arrays, state = one.states.to_state()
    other.states = UserStates(other.settings, other.weights, other.histories)
    other.states.load_state(arrays, state)
    for _ in range(3):
        torch.testing.assert_close(one.click(["ada", "bob"]), other.click(["ada", "bob"]), rtol=0, atol=0)


def test_a_memory_of_another_shape_is_left_and_rebuilt() -> None:
    torch.set_num_threads(1)
    one = StatesHarness()
    for _ in range(12):
        one.click(["ada"])
    one.states.rebuild()
    other = StatesHarness(window=8)
    other.states.load_state(*one.states.to_state())
    assert len(other.states.memory.directory) == 0


def test_fine_tuned_weights_and_long_use_ask_for_a_rebuild() -> None:
    torch.set_num_threads(1)
    harness = StatesHarness(memory_updates_max=5)
    for _ in range(12):
        harness.click(["ada"])
    harness.states.rebuild()
    harness.click(["ada"])
    assert harness.states.rebuild() == 0
    harness.states.weights_replaced()
    harness.weights.optimizer.steps += 1
    harness.click(["ada"])
    assert harness.states.rebuild() == 1
    harness.click(["ada"])
    assert harness.states.rebuild() == 0
    harness.weights.optimizer.steps += 6
    harness.click(["ada"])
    assert harness.states.rebuild() == 1
