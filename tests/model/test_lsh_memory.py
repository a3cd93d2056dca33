"""The streaming form against whole sequences; slots; recall against a scan of everything held."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import normalize

from model.lsh import LSHMemory, hash_buckets, lsh_attention, random_rotations


def rotations_of(generator: torch.Generator, *, H: int = 2, R: int = 3, D: int = 8, buckets: int = 8) -> Tensor:
    return random_rotations(H, R, D, buckets, generator=generator)


def clicks(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


@settings(max_examples=150)
@given(
    H=st.integers(1, 3), R=st.integers(1, 4), D=st.sampled_from([1, 4, 8, 32]), half=st.integers(1, 10),
    window=st.integers(1, 40), lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), timed=st.booleans(),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_streaming_gives_the_numbers_of_the_sequence_form(
    *, H: int, R: int, D: int, half: int, window: int, lengths: list[int], timed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    B, L = len(lengths), max(lengths)
    qk, v = clicks(generator, B, H, L, D), clicks(generator, B, H, L, D)
    rotations = rotations_of(generator, H=H, R=R, D=D, buckets=2 * half)
    times = 1e9 + (1e5 * torch.rand(B, L, generator=generator, dtype=torch.float64) ** 4).cumsum(-1)
    time_bias = clicks(generator, H, 12) if timed else None
    whole = lsh_attention(
        qk, v, rotations, window=window, lengths=torch.tensor(lengths), times=times if timed else None,
        time_bias=time_bias,
    )  # fmt: skip
    memory = LSHMemory(rotations, slots=B + 2, window=window, times=timed)
    slot_of = torch.randperm(B + 2, generator=generator)[:B]
    for position in range(L):
        still = (torch.tensor(lengths) > position).nonzero()[:, 0]
        output = memory.append(
            slot_of[still], qk[still, :, position], v[still, :, position], times=times[still, position],
            time_bias=time_bias,
        )  # fmt: skip
        torch.testing.assert_close(output, whole[still, :, position], atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_new_click_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    rotations = rotations_of(generator)
    memory = LSHMemory(rotations.double(), slots=3, window=4, dtype=torch.float64)
    times = torch.tensor([0.0, 7.0, 100.0], dtype=torch.float64)
    for step in range(6):  # the third slot stays empty: its click sees itself
        memory.store(torch.tensor([0, 1]), *clicks(generator, 2, 2, 2, 8).double(), times=times[:2] + step)

    def attend(qk: Tensor, v: Tensor, time_bias: Tensor) -> Tensor:
        return memory.append(
            torch.arange(3), qk, v, times=times + 60, time_bias=time_bias, store=False
        )  # fmt: skip

    inputs = [clicks(generator, *shape).double().requires_grad_() for shape in ((3, 2, 8), (3, 2, 8), (2, 10))]
    assert torch.autograd.gradcheck(attend, inputs)


def test_no_clicks_are_no_trouble() -> None:
    memory = LSHMemory(rotations_of(torch.Generator()), slots=2, window=4, times=False, payloads=True)
    no_slots, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 8)
    assert memory.append(no_slots, nothing, nothing, payloads=no_slots).shape == (0, 2, 8)
    assert memory.recall(no_slots, nothing).found.shape == (0, 2, 27)


def test_looking_ahead_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = LSHMemory(rotations_of(generator), slots=2, window=4, times=False)
    qk, v = clicks(generator, 2, 2, 8), clicks(generator, 2, 2, 8)
    memory.append(torch.arange(2), qk, v)
    before = {name: tensor.clone() for name, tensor in memory.state_tensors().items()}
    ahead = memory.append(torch.arange(2), v, qk, store=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_tensors().items())
    torch.testing.assert_close(memory.append(torch.arange(2), v, qk), ahead, atol=0, rtol=0)


@given(window=st.integers(1, 6), slots=st.lists(st.integers(0, 2), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_many_clicks_of_a_slot_at_once_are_stored_in_their_order(window: int, slots: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rotations = rotations_of(generator, buckets=4)
    together, one_by_one = (LSHMemory(rotations, slots=3, window=window, payloads=True) for _ in range(2))
    keys, values = clicks(generator, 2, len(slots), 2, 8)
    times, payloads = torch.arange(float(len(slots)), dtype=torch.float64), torch.arange(len(slots)) + 1000
    for half in (slice(0, len(slots) // 2), slice(len(slots) // 2, len(slots))):
        together.store(
            torch.tensor(slots, dtype=torch.int64)[half], keys[half], values[half], times=times[half],
            payloads=payloads[half],
        )  # fmt: skip
    for n, slot in enumerate(slots):
        one_by_one.store(torch.tensor([slot]), keys[[n]], values[[n]], times=times[[n]], payloads=payloads[[n]])
    for name, tensor in together.state_tensors().items():
        if name != "used":
            torch.testing.assert_close(tensor, one_by_one.state_tensors()[name], msg=name)


def test_slots_are_allocated_evicted_by_age_and_freed() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = LSHMemory(rotations_of(generator), slots=4, window=4, times=False)

    def click(slot: int) -> None:
        memory.append(torch.tensor([slot]), clicks(generator, 1, 2, 8), clicks(generator, 1, 2, 8))

    slots, evicted = memory.allocate(3)
    assert len(set(slots.tolist())) == 3
    assert not evicted.any()
    for slot in slots.tolist():
        click(slot)
    click(int(slots[0]))
    both, evicted = memory.allocate(2)  # the fourth, and the one clicked longest ago
    assert evicted.tolist() == [False, True]
    assert both[1] == slots[1]
    assert memory.clicks[both].tolist() == [0, 0]
    memory.free(slots[:1])
    assert not memory.entries[slots[0]].any()
    again, evicted = memory.allocate(1)
    assert again.tolist() == slots[:1].tolist()
    assert not evicted.any()
    with pytest.raises(ValueError, match="the memory has 4"):
        memory.allocate(5)


def test_a_cleared_slot_knows_nothing_of_its_last_owner() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = LSHMemory(rotations_of(generator, buckets=2), slots=1, window=4, times=False, payloads=True)
    slot, payload = torch.tensor([0]), torch.tensor([5])
    for _ in range(5):
        memory.append(slot, clicks(generator, 1, 2, 8), clicks(generator, 1, 2, 8), payloads=payload)
    memory.clear(slot)
    qk, v = clicks(generator, 1, 2, 8), clicks(generator, 1, 2, 8)
    assert not memory.recall(slot, qk, probes=2).found.any()
    torch.testing.assert_close(memory.append(slot, qk, v, payloads=payload), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_memory_goes_on_where_it_was(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rotations = rotations_of(generator)
    made = {"slots": 5, "window": 4, "payloads": True, "dtype": dtype}
    memory = LSHMemory(rotations, **made)

    def click() -> dict[str, Any]:
        return {
            "slots": memory.allocate(1)[0], "qk": clicks(generator, 1, 2, 8), "v": clicks(generator, 1, 2, 8),
            "times": torch.zeros(1, dtype=torch.float64), "payloads": torch.tensor([3]),
        }  # fmt: skip

    for _ in range(8):
        memory.append(**click())
    restored = LSHMemory(rotations, **made)
    restored.load_state_tensors(load(save(memory.state_tensors())))
    last = click()
    assert torch.equal(restored.allocate(1)[0], last["slots"])
    assert torch.equal(memory.append(**last), restored.append(**last))
    for name, tensor in memory.state_tensors().items():
        assert torch.equal(tensor, restored.state_tensors()[name]), name


def test_a_state_of_another_shape_is_refused_and_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    rotations = rotations_of(generator)
    memory, other = LSHMemory(rotations, slots=2, window=4), LSHMemory(rotations, slots=2, window=5)
    other.clicks += 1
    with pytest.raises(ValueError, match="entries has to be"):
        memory.load_state_tensors(other.state_tensors())
    assert not memory.clicks.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_agrees_to_its_precision_and_takes_half_the_bytes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rotations = rotations_of(generator)
    whole, half = (LSHMemory(rotations, slots=2, window=9, times=False, dtype=d) for d in (torch.float32, dtype))
    for _ in range(40):
        qk, v = clicks(generator, 2, 2, 8), clicks(generator, 2, 2, 8)
        a, b = (memory.append(torch.arange(2), qk, v) for memory in (whole, half))
        torch.testing.assert_close(a, b, atol=0.03, rtol=0.03)
    assert half.entries.nbytes * 2 == whole.entries.nbytes


@given(
    window=st.integers(1, 9), times=st.booleans(), payloads=st.booleans(), value_width=st.sampled_from([0, 3, 8]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_bytes_per_slot_is_what_the_tensors_take(
    window: int, times: bool, payloads: bool, value_width: int, dtype: torch.dtype
) -> None:
    memory = LSHMemory(
        rotations_of(torch.Generator()), slots=7, window=window, value_width=value_width, times=times,
        payloads=payloads, dtype=dtype,
    )  # fmt: skip
    assert sum(tensor.nbytes for tensor in memory.state_tensors().values()) == 7 * memory.bytes_per_slot


@given(
    R=st.integers(1, 3), window=st.integers(2, 6), probes=st.integers(1, 4), count=st.integers(1, 60),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_recall_finds_each_entry_of_the_probed_buckets_once(
    R: int, window: int, probes: int, count: int, seed: int
) -> None:
    """Keys need no values beside them, and have heads of their own."""
    generator = torch.Generator().manual_seed(seed)
    H, D, buckets = 3, 5, 4
    rotations = rotations_of(generator, H=H, R=R, D=D, buckets=buckets)
    memory = LSHMemory(rotations, slots=2, window=window, value_width=0, payloads=True)
    keys = clicks(generator, count, H, D)
    slots = torch.randint(0, 2, (count,), generator=generator)
    payloads, times = torch.randperm(count, generator=generator), torch.arange(count).double()
    memory.store(slots, keys, times=times, payloads=payloads)
    queries = clicks(generator, 4, H, D)
    asked = torch.tensor([0, 1, 0, 0])
    found, got, cosines, got_times = memory.recall(asked, queries, probes=probes)
    assert got_times is not None
    stored_in = hash_buckets(keys.unsqueeze(2), rotations)[..., 0]  # (count, H, R)
    for n in range(4):
        for h in range(H):
            products = torch.einsum("d,rdc->rc", queries[n, h], rotations[h])
            near = torch.cat((products, -products), -1).topk(probes, -1).indices  # (R, probes)
            wanted = set()
            for r in range(R):
                for bucket in near[r].tolist():
                    ring = ((slots == asked[n]) & (stored_in[:, h, r] == bucket)).nonzero()[:, 0].tolist()
                    wanted |= set(ring[-(window - 1) :])
            assert sorted(got[n, h][found[n, h]].tolist()) == sorted(payloads[list(wanted)].tolist())
            which = times[got_times[n, h][found[n, h]].long()].long()
            exact = normalize(keys[which, h], dim=-1) @ normalize(queries[n, h], dim=-1)
            torch.testing.assert_close(cosines[n, h][found[n, h]], exact, atol=1e-5, rtol=1e-5)


def test_recall_is_differentiable_in_the_query() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = LSHMemory(rotations_of(generator), slots=1, window=4, value_width=0, times=False, payloads=True)
    memory.store(torch.zeros(9, dtype=torch.int64), clicks(generator, 9, 2, 8), payloads=torch.arange(9))
    queries = clicks(generator, 2, 2, 8).requires_grad_()
    recalled = memory.recall(torch.zeros(2, dtype=torch.int64), queries, probes=4)
    recalled.cosines.masked_fill(~recalled.found, 0).sum().backward()
    assert recalled.times is None
    assert queries.grad is not None
    assert queries.grad.abs().sum() > 0


def test_impossible_arguments_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = LSHMemory(rotations_of(generator), slots=2, window=3)
    qk = clicks(generator, 2, 2, 8)
    with pytest.raises(ValueError, match="distinct"):
        memory.append(torch.tensor([1, 1]), qk, qk)
    with pytest.raises(ValueError, match="times has to be given"):
        memory.append(torch.arange(2), qk, qk)
    with pytest.raises(ValueError, match="payloads=True"):
        memory.recall(torch.arange(2), qk)
    with pytest.raises(ValueError, match="window"):
        LSHMemory(rotations_of(generator), slots=2, window=0)
