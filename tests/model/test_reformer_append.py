"""The streaming form gives the numbers of the sequence form, and its memory belongs to the users it was made for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.memory import Directory, ReformerMemory
from model.reformer import Clicks, Histories, Reformer
from model.runs import Runs, make_runs

from .test_reformer import MIXTURES, histories, reformer

torch.set_num_threads(1)


def stream(model: Reformer, memory: ReformerMemory, slots: Tensor, ours: Histories, *, first: int = 0) -> Tensor:
    """Appends click after click, of every user who still has one -> states (B, L - first, D), zero behind the end."""
    states = []
    for position in range(first, ours.items.shape[1]):
        alive = position < ours.lengths
        clicks = Clicks(slots[alive], *(part[alive, position] for part in ours[:3]))
        found = torch.zeros(len(slots), model.config.width)
        found[alive] = model.append(memory, clicks)
        states.append(found)
    return torch.stack(states, 1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    layers=st.sampled_from(MIXTURES),
    window=st.integers(2, 9),
    rounds=st.integers(1, 3),
    buckets=st.sampled_from([2, 4, 8]),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_append_gives_forwards_states_at_every_position(  # noqa: PLR0917
    layers: tuple[str, ...], window: int, rounds: int, buckets: int, lengths: list[int], seed: int
) -> None:
    model = reformer(layers, window=window, rounds=rounds, buckets=buckets, seed=seed)
    ours = histories(lengths, seed=seed)
    memory = model.memory(8)
    slots, new = memory.take([f"u{n}" for n in range(len(lengths))])
    assert new.all()
    assert (stream(model, memory, slots, ours) - model(ours)).abs().max() <= 1e-5


@torch.no_grad()
def test_looking_ahead_stores_nothing() -> None:
    model, ours = reformer(), histories([12, 12])
    memory = model.memory(2)
    slots, _ = memory.take(["a", "b"])
    stream(model, memory, slots, Histories(*(part[:, :11] for part in ours[:3]), torch.tensor([11, 11])))
    before = {name: tensor.clone() for name, tensor in memory.state_tensors().items()}
    last = Clicks(slots, *(part[:, 11] for part in ours[:3]))
    ahead = model.append(memory, last, store=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in memory.state_tensors().items())
    assert torch.equal(ahead, model.append(memory, last))
    torch.testing.assert_close(ahead, model(ours)[:, 11], atol=1e-5, rtol=0)


def test_gradients_reach_every_weight_and_no_memory() -> None:
    model, ours = reformer(), histories([9, 9])
    memory = model.memory(2)
    slots, _ = memory.take(["a", "b"])
    states = stream(model, memory, slots, ours)
    assert not any(tensor.requires_grad for tensor in memory.state_tensors().values())
    states[:, -1].square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in without if name != "items.biases"] == []


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    layers=st.sampled_from(MIXTURES),
    window=st.integers(2, 9),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_from_a_whole_history_put_into_a_slot_append_goes_on(
    layers: tuple[str, ...], window: int, lengths: list[int], seed: int
) -> None:
    model = reformer(layers, window=window, seed=seed)
    ours = histories([length + 6 for length in lengths], seed=seed)
    memory = model.memory(6)
    slots, _ = memory.take([f"u{n}" for n in range(len(lengths))])
    model.remember(memory, slots, histories(lengths[::-1], seed=7))  # another user's
    past = ours.lengths - 6
    model.remember(memory, slots, ours._replace(lengths=past))
    assert torch.equal(memory.clicks[slots], past)
    expected = model(ours)
    for step in range(6):
        row = torch.arange(len(slots))
        states = model.append(memory, Clicks(slots, *(part[row, past + step] for part in ours[:3])))
        assert (states - expected[row, past + step]).abs().max() <= 1e-5


@torch.no_grad()
def test_under_autocast_the_new_click_is_computed_in_half_precision() -> None:
    model, ours = reformer(), histories([9, 9])
    memory = model.memory(2, dtype=torch.bfloat16)
    slots, _ = memory.take(["a", "b"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.remember(memory, slots, ours)
        memory.clear(slots)
        states = stream(model, memory, slots, ours)
    assert states.dtype == torch.float32
    similarity = torch.cosine_similarity(states, model(ours), dim=-1)
    assert similarity.mean() > 0.95


@torch.no_grad()
def test_users_who_come_and_go_meet_empty_memories() -> None:
    model = reformer()
    memory = model.memory(2)
    for user, other in (("a", "b"), ("c", "b"), ("a", "c")):
        slots, new = memory.take([user])
        assert new.all()
        ours = histories([7], seed=ord(user))
        assert (stream(model, memory, slots, ours) - model(ours)).abs().max() <= 1e-5
        memory.take([other])
    memory.free("a")
    assert "a" not in memory.directory


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_memory_goes_on_as_if_nothing_had_happened(dtype: torch.dtype) -> None:
    model, ours = reformer(("local", "lsh", "local")), histories([20, 14])
    memory = model.memory(3, dtype=dtype)
    slots, _ = memory.take(["a", "b"])
    stream(model, memory, slots, Histories(*(part[:, :13] for part in ours[:3]), torch.tensor([13, 13])))
    again = model.memory(3, dtype=dtype)
    again.load_state_tensors({name: tensor.clone() for name, tensor in memory.state_tensors().items()})
    again.directory.load_state(memory.directory.to_state())
    slots_again, new = again.take(["a", "b"])
    assert not new.any()
    assert torch.equal(slots, slots_again)
    ahead = [stream(model, m, slots, ours, first=13) for m in (memory, again)]
    assert torch.equal(*ahead)
    tolerance = 1e-5 if dtype == torch.float32 else 0.3
    assert (ahead[0] - model(ours)[:, 13:]).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", MIXTURES)
def test_bytes_per_user_are_as_the_formula_says(layers: tuple[str, ...], dtype: torch.dtype) -> None:
    memory = reformer(layers, window=7, buckets=6).memory(50, dtype=dtype)
    measured = sum(tensor.nbytes for tensor in memory.state_tensors().values()) / 50
    assert memory.bytes_per_user == pytest.approx(measured, rel=1e-3)


def test_a_memory_of_another_shape_is_refused_by_name() -> None:
    model = reformer()
    memory = model.memory(3)
    with pytest.raises(ValueError, match="timestamps"):
        memory.load_state_tensors(model.memory(4).state_tensors())
    with pytest.raises(ValueError, match="clicks"):
        memory.load_state_tensors({"timestamps": memory.timestamps})
    with pytest.raises(ValueError, match="slots"):
        memory.directory.load_state(Directory(4).to_state())


def test_the_least_recently_used_make_room_but_no_user_of_the_same_batch() -> None:
    directory = Directory(3)
    directory.take(["a", "b", "c"])
    directory.take(["a"])
    slots, new = directory.take(["d", "b"])
    assert new == [True, False]
    assert directory.users() == ["a", "b", "d"] or directory.users() == ["a", "d", "b"]
    assert len(set(slots)) == 2
    assert directory.free("nobody") is None
    with pytest.raises(ValueError, match="once"):
        directory.take(["x", "x"])
    with pytest.raises(ValueError, match="3 slots"):
        directory.take(["w", "x", "y", "z"])


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40))
def test_the_directory_is_a_dict_that_forgets_the_oldest(capacity: int, calls: list[tuple[str, bool]]) -> None:
    directory, order = Directory(capacity), list[str]()
    held: dict[str, int] = {}
    for user, freed in calls:
        if freed:
            assert directory.free(user) == held.pop(user, None)
            order = [u for u in order if u != user]
            continue
        [slot], [new] = directory.take([user])
        assert new == (user not in held)
        if new and len(held) == capacity:
            del held[order.pop(0)]
        assert held.get(user, slot) == slot
        assert slot not in {s for u, s in held.items() if u != user}
        held[user] = slot
        order = [u for u in order if u != user] + [user]
        copy = Directory(capacity)
        copy.load_state(directory.to_state())
        assert copy.users() == directory.users() == order


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    layers=st.sampled_from(MIXTURES),
    window=st.integers(2, 9),
    rounds=st.integers(1, 3),
    batches=st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=1, max_size=4),
    kept_back=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_several_clicks_at_once_give_what_one_after_the_other_gives(  # noqa: PLR0917
    layers: tuple[str, ...], window: int, rounds: int, batches: list[list[int]], kept_back: int, seed: int
) -> None:
    model = reformer(layers, window=window, rounds=rounds, seed=seed)
    ours = histories(np.sum(batches, 0).tolist(), seed=seed, longest=12 * len(batches))
    expected = model(ours)
    memory = model.memory(5)
    slots, _ = memory.take(["a", "b", "c"])
    done = np.zeros(3, np.int64)
    for batch in np.array(batches):
        who = np.flatnonzero(batch)
        runs = runs_of(ours, slots, who, done[who], batch[who], kept_back=kept_back)
        states = model.extend(memory, runs)
        wanted = torch.cat([expected[u, done[u] : done[u] + batch[u]] for u in who] or [states])
        assert states.shape == (batch.sum(), model.config.width)
        torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)
        done[who] += np.maximum(batch[who] - kept_back, 0)
        assert memory.clicks[slots].tolist() == done.tolist()


def runs_of(
    ours: Histories, slots: Tensor, who: np.ndarray, starts: np.ndarray, lengths: np.ndarray, *, kept_back: int
) -> Runs:
    """So many clicks of some users, from a position of each on."""
    parts = [
        np.concatenate([part[u, start : start + length] for u, start, length in zip(who, starts, lengths, strict=True)])
        if len(who)
        else part[:0, 0].numpy()
        for part in ours[:3]
    ]
    return make_runs(slots[torch.from_numpy(who)], lengths, tuple(parts), kept_back=kept_back)
