"""The optimizers: cost follows the batch, state survives growth, reuse of rows, and a restart."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from model.items import ItemTable
from model.optim import Optimizer, OptimizerConfig, RowwiseAdagrad

torch.set_num_threads(1)


class Small(nn.Module):
    def __init__(self, *, sparse: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = ItemTable(8, 4, sparse=sparse)
        self.head = nn.Linear(4, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return (self.head(self.items(rows))[..., 0] + self.items.bias(rows) - 1).square().mean()


def train(model: Small, optimizer: Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model(torch.tensor([1 + step % 5, 3, 3])).backward()
        optimizer.step()


def test_sparse_and_dense_gradients_move_a_table_alike() -> None:
    found = []
    for sparse in (True, False):
        model = Small(sparse=sparse)
        train(model, Optimizer(model), 20)
        found.append(model.items.vectors.detach())
    torch.testing.assert_close(*found)


def test_adagrad_follows_the_formula_of_one_sum_per_row() -> None:
    table = nn.Parameter(torch.zeros(3, 2))
    adagrad = RowwiseAdagrad({"t": table}, learning_rate=0.5)
    for gradient in ([3.0, 4.0], [6.0, 8.0]):
        rows, values = torch.tensor([[1]]), torch.tensor([gradient])
        table.grad = torch.sparse_coo_tensor(rows, values, (3, 2), check_invariants=True)
        adagrad.step()
    first = 12.5  # mean of 9 and 16
    expected = -0.5 * (torch.tensor([3.0, 4.0]) / first**0.5 + torch.tensor([6.0, 8.0]) / (first + 50) ** 0.5)
    torch.testing.assert_close(table.detach()[1], expected)
    assert not table.detach()[[0, 2]].any()
    assert adagrad.sums["t"].tolist() == [0, 62.5, 0]


def test_rows_not_touched_are_not_moved() -> None:
    model = Small()
    before = model.items.vectors.detach().clone()
    train(model, Optimizer(model), 5)
    moved = (model.items.vectors.detach() != before).any(1)
    assert moved.tolist() == [False, True, True, True, True, True, False, False]


def test_the_table_may_grow_between_steps_and_rows_start_over() -> None:
    model = Small()
    optimizer = Optimizer(model)
    train(model, optimizer, 5)
    model.items.grow(32)
    model(torch.tensor([17, 3])).backward()
    optimizer.step()
    sums = optimizer.rows.sums["items.vectors"]
    assert len(sums) == 32
    assert sums[3] > 0
    assert sums[17] > 0
    optimizer.reset_rows(torch.tensor([3, 99]))  # 99 was handed out and taken away before the table had it
    assert optimizer.rows.sums["items.vectors"][3] == 0
    assert optimizer.rows.sums["items.biases"][3] == 0


def test_a_restart_in_the_middle_ends_in_the_same_weights() -> None:
    straight = Small()
    train(straight, Optimizer(straight), 30)
    first = Small()
    optimizer = Optimizer(first)
    train(first, optimizer, 13)
    saved = optimizer.state_tensors()
    train(first, optimizer, 5)  # goes on after saving: what was saved must not follow
    second = Small()
    middle = Small()
    train(middle, Optimizer(middle), 13)
    second.load_state_dict(middle.state_dict())
    again = Optimizer(second)
    again.load_state_tensors(saved)
    train(second, again, 17, first=13)
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_clipped_together_and_the_norm_before_is_returned() -> None:
    model = Small()
    optimizer = Optimizer(model, OptimizerConfig(clip_norm=1e-3))
    model(torch.tensor([1, 2])).backward()
    norm = optimizer.step()
    after = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in model.parameters()]
    assert norm > 1e-3
    assert float(torch.nn.utils.get_total_norm(after)) == pytest.approx(1e-3, rel=1e-4)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    for bad in (float("nan"), float("inf")):
        model = Small()
        optimizer = Optimizer(model)
        before = [p.detach().clone() for p in model.parameters()]
        (model(torch.tensor([1, 2])) * bad).backward()
        assert optimizer.step() != 0
        for a, b in zip(before, model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_rates_rise_and_then_fall_to_the_floor() -> None:
    config = OptimizerConfig(warm_up_steps=10, half_life_steps=100, floor=0.25)
    shares = [config.share(step) for step in range(5000)]
    assert shares[0] == pytest.approx(1 / 11)
    assert shares[10] == 1.0 == max(shares)
    assert all(a <= b for a, b in pairwise(shares[:11]))
    assert all(a >= b for a, b in pairwise(shares[10:]))
    assert shares[110] == pytest.approx(0.625)
    assert shares[-1] == pytest.approx(0.25)
