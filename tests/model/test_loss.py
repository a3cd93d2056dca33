import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.loss import sampled_softmax_loss

torch.set_num_threads(1)


def problem(items: int = 40, clicks: int = 6, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(clicks, width, generator=generator)
    table = torch.randn(items, width, generator=generator)
    return states, table, torch.randint(items, (clicks,), generator=generator)


def sampled(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, log_q: Tensor) -> Tensor:
    target_logits = (states * table[targets]).sum(-1)
    return sampled_softmax_loss(target_logits, states @ table[negatives].T, targets, negatives, log_q[negatives])


def test_with_every_item_as_a_negative_once_it_is_the_full_softmax() -> None:
    states, table, targets = problem()
    items = len(table)
    log_q = torch.full((items,), -math.log(items))
    loss = sampled(states, table, targets, torch.arange(items), log_q)
    torch.testing.assert_close(loss, F.cross_entropy(states @ table.T, targets, reduction="none"))


def test_the_gradient_approaches_that_of_the_full_softmax_under_skewed_sampling() -> None:
    states, table, targets = problem()
    table.requires_grad_()
    (full,) = torch.autograd.grad(F.cross_entropy(states @ table.T, targets), table)
    q = torch.softmax(torch.linspace(0, -4, len(table)), 0)
    generator = torch.Generator().manual_seed(1)

    def error(negatives_per_step: int, *, corrected: bool = True) -> float:
        mean = torch.zeros_like(full)
        for _ in range(200):
            negatives = torch.multinomial(q, negatives_per_step, replacement=True, generator=generator)
            log_q = q.log() if corrected else torch.full_like(q, -math.log(len(q)))
            loss = sampled(states, table, targets, negatives, log_q).mean()
            mean += torch.autograd.grad(loss, table)[0] / 200
        return float((mean - full).norm() / full.norm())

    assert error(2000) < 0.02
    assert error(100) < 0.15
    assert error(2000, corrected=False) > 0.2


def test_a_target_drawn_as_a_negative_does_not_count_against_itself() -> None:
    states, table, targets = problem(clicks=1)
    log_q = torch.zeros(len(table))
    loss = sampled(states, table, targets, targets.repeat(7), log_q)
    assert loss.tolist() == [0.0]


def test_negatives_may_differ_from_click_to_click() -> None:
    states, table, targets = problem()
    generator = torch.Generator().manual_seed(2)
    negatives = torch.randint(len(table), (len(states), 9), generator=generator)
    log_q = torch.full((len(table),), -math.log(len(table)))
    logits = torch.einsum("nd,nkd->nk", states, table[negatives])
    target_logits = (states * table[targets]).sum(-1)
    together = sampled_softmax_loss(target_logits, logits, targets, negatives, log_q[negatives])
    one_by_one = [
        sampled(states[i : i + 1], table, targets[i : i + 1], negatives[i], log_q) for i in range(len(states))
    ]
    torch.testing.assert_close(together, torch.cat(one_by_one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    target = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    negative = torch.tensor([[1e4, -1e4], [1e4, -1e4]], dtype=dtype, requires_grad=True)
    loss = sampled_softmax_loss(target, negative, torch.tensor([1, 2]), torch.tensor([3, 4]), torch.zeros(2))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert target.grad.isfinite().all()
    assert negative.grad.isfinite().all()
