"""The sequence form: nothing leaks from the future or from padding, the seed decides everything, and it learns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.loss import sampled_softmax_loss
from model.optim import Optimizer, OptimizerConfig
from model.reformer import Histories, Reformer, ReformerConfig

torch.set_num_threads(1)
MIXTURES = [("local",), ("lsh",), ("local", "lsh"), ("lsh", "lsh", "local", "local")]


def reformer(layers: tuple[str, ...] = ("local", "lsh"), *, sparse: bool = True, **settings: int | float) -> Reformer:
    config = ReformerConfig(**{"layers": layers, "width": 16, "buckets": 4, "window": 4, **settings})
    model = Reformer(config, rows=50, sparse=sparse)
    with torch.no_grad():  # weights large enough for every part to matter
        generator = torch.Generator().manual_seed(9)
        for name, parameter in model.named_parameters():
            if not name.startswith("items."):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=config.width**-0.5)
    return model


def histories(lengths: list[int], *, seed: int = 0, longest: int | None = None) -> Histories:
    generator = torch.Generator().manual_seed(seed)
    B, L = len(lengths), longest or max(lengths)
    gaps = torch.exp(torch.rand(B, L, generator=generator, dtype=torch.float64) * 16)
    return Histories(
        torch.randint(0, 50, (B, L), generator=generator),
        torch.randint(0, 16, (B, L), generator=generator),
        1.7e9 + gaps.cumsum(1),
        torch.tensor(lengths),
    )


def changed_from(ours: Histories, position: Tensor, *, seed: int = 99) -> Histories:
    """Other clicks from a position (B,) on; lengths stay."""
    other = histories(ours.lengths.tolist(), seed=seed, longest=ours.items.shape[1])
    keep = torch.arange(ours.items.shape[1]) < position[:, None]
    items, types, times = (torch.where(keep, a, b) for a, b in zip(ours[:3], other[:3], strict=True))
    return Histories(items, types, times, ours.lengths)


@pytest.mark.parametrize("layers", MIXTURES)
def test_what_stands_behind_a_history_changes_nothing(layers: tuple[str, ...]) -> None:
    model, ours = reformer(layers), histories([9, 1, 0, 17])
    states = model(ours)
    garbage = changed_from(ours, ours.lengths)
    garbage.items[0, 12], garbage.event_types[0, 13], garbage.timestamps[0, 14] = 10**9, -7, float("nan")
    assert torch.equal(states, model(garbage))
    assert not states[torch.arange(17) >= ours.lengths[:, None]].any()
    for row, length in ((0, 9), (1, 1), (3, 17)):  # nor does it matter how far the others reach
        alone = Histories(*(part[row : row + 1, :length] for part in ours[:3]), ours.lengths[row : row + 1])
        torch.testing.assert_close(model(alone)[0], states[row, :length], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", MIXTURES)
def test_what_comes_later_changes_nothing_earlier(layers: tuple[str, ...]) -> None:
    model, ours = reformer(layers), histories([23, 23])
    position = torch.tensor([5, 16])
    before, after = model(ours), model(changed_from(ours, position))
    for row, at in enumerate(position.tolist()):
        assert torch.equal(before[row, :at], after[row, :at])
        assert (before[row, at:] != after[row, at:]).any(-1).all()


@pytest.mark.parametrize("layers", MIXTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_gradients_equal_ordinary_ones(layers: tuple[str, ...], dropout: float, autocast: bool) -> None:
    # Under autocast ordinary autograd sums the chunks' gradients in bfloat16, and recomputation in float32: both right,
    # but no longer equal, so there the positions go in one chunk.
    chunk = 0 if autocast else 5
    found = []
    for recompute in (True, False):
        model = reformer(layers, dropout=dropout, sparse=False, feed_forward_chunk=chunk)
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            states = model(histories([21, 8, 1]), recompute=recompute)
            loss = (states * torch.linspace(-1, 1, 16)).square().sum()
        assert states.dtype == torch.float32
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    ours, plain = found
    assert ours.keys() == plain.keys()
    assert len(ours) > 10 * len(layers)
    for name, gradient in plain.items():
        assert (ours[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, name


def test_the_seed_decides_every_weight_and_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Reformer(ReformerConfig(seed=4), rows=20)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = Reformer(ReformerConfig(seed=4), rows=20), Reformer(ReformerConfig(seed=5), rows=20)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(first.layers.f[1].rotations, other.layers.f[1].rotations)
    assert not torch.equal(first.gaps.weight, other.gaps.weight)


def test_rotations_are_saved_with_the_model() -> None:
    saved, other = reformer(("lsh", "lsh"), seed=1), reformer(("lsh", "lsh"), seed=2)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(saved(histories([20])), other(histories([20])))
    assert not torch.equal(saved.layers.f[0].rotations, saved.layers.f[1].rotations)


def test_the_same_gaps_at_another_date_give_the_same_states() -> None:
    model, ours = reformer(), histories([30])
    shifted = ours._replace(timestamps=ours.timestamps + 2.0**25)
    torch.testing.assert_close(model(ours), model(shifted), atol=1e-6, rtol=0)
    slower = ours._replace(timestamps=ours.timestamps[:, :1] + 1000 * (ours.timestamps - ours.timestamps[:, :1]))
    assert not torch.allclose(model(ours), model(slower), atol=1e-3)


def test_scores_are_products_with_the_items_vectors_plus_their_biases() -> None:
    model = reformer()
    torch.nn.init.normal_(model.items.biases)
    states, rows = torch.randn(3, 5, 16), torch.randint(1, 50, (3, 5, 7))
    expected = torch.einsum("bld,blcd->blc", states, model.items.vectors[rows]) + model.items.biases[rows][..., 0]
    torch.testing.assert_close(model.scores(states, rows), expected)
    shared = torch.arange(1, 50)
    torch.testing.assert_close(model.scores(states, shared), model.scores(states, shared.expand(3, 5, 49)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", ()),
        ("layers", ("local", "global")),
        ("width", 15),
        ("heads", 0),
        ("buckets", 3),
        ("window", 1),
        ("rounds", 0),
        ("event_types", 0),
        ("gap_buckets", 0),
        ("feed_forward", 0),
        ("dropout", 1.0),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ReformerConfig(**{field: value})


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from(MIXTURES), st.integers(2, 9), st.integers(1, 3), st.lists(st.integers(0, 40), min_size=1))
def test_any_shape_gives_finite_states(layers: tuple[str, ...], window: int, rounds: int, lengths: list[int]) -> None:
    model = reformer(layers, window=window, rounds=rounds)
    ours = histories(lengths, longest=max([1, *lengths]))
    states = model(ours)
    assert states.shape == (len(lengths), ours.items.shape[1], 16)
    assert states.isfinite().all()


@pytest.mark.parametrize("layers", [("local",), ("lsh",), ("local", "lsh")])
def test_it_learns_what_follows_what(layers: tuple[str, ...]) -> None:
    """On a ring of items each click is followed by the next item; guessing blindly costs log(12) = 2.5 nats."""
    model = Reformer(ReformerConfig(layers=layers, width=32, buckets=4, window=4), rows=16)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=3e-3, rows_learning_rate=0.05, warm_up_steps=5))
    generator = torch.Generator().manual_seed(0)
    negatives, log_q = torch.arange(1, 13), torch.full((12,), 1 / 12).log()
    losses = []
    for _ in range(80):
        start = torch.randint(0, 12, (16, 1), generator=generator)
        items = 1 + (start + torch.arange(9)) % 12
        times = torch.arange(8, dtype=torch.float64).expand(16, 8) * 60
        states = model(Histories(items[:, :-1], torch.zeros_like(items[:, :-1]), times, torch.full((16,), 8)))
        states, targets = states.flatten(0, 1), items[:, 1:].flatten()
        target_logits = model.scores(states, targets[:, None])[:, 0]
        loss = sampled_softmax_loss(target_logits, model.scores(states, negatives), targets, negatives, log_q).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2
    assert losses[-1] < 0.5
