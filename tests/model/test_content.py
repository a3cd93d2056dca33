"""The score of added columns: its hand-written gradients are autograd's."""

import pytest
import torch

from model.content import ContentScore


@pytest.mark.parametrize("shape", [(7,), (3, 5), (0,)])
def test_scores_and_their_gradients_are_those_of_autograd(shape):
    score = ContentScore([0.0] * 6, seed=1)
    with torch.no_grad():
        score.linear.copy_(torch.linspace(-1, 1, 6))
        score.out.copy_(torch.linspace(-1, 2, len(score.out)))
    random = torch.Generator().manual_seed(0)
    columns, pull = torch.randn(*shape, 6, generator=random), torch.randn(*shape, generator=random)
    found = []
    for scored in (score(columns), score.by_autograd(columns)):
        gradients = torch.autograd.grad((scored * pull).sum(), [score.linear, score.up, score.up_bias, score.out])
        found.append((scored.detach(), *gradients))
    for mine, autograds in zip(*found, strict=True):
        torch.testing.assert_close(mine, autograds)
