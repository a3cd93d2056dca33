"""The n-th of a user's clicks at one time counts 1/n in training: lines of a basket come in no order."""

import numpy as np
import pytest

from online.learner.learner import Learner
from stream.events import Click


@pytest.fixture
def learner(settings):
    return Learner(settings)


def clicks(*given):
    return [Click(user_id=user, item_id=item, timestamp=float(at)) for user, item, at in given]


def weights_of(learner, batch):
    (step,) = learner.learn(batch).steps
    return None if step.weights is None else step.weights.tolist()


def test_clicks_at_different_times_all_count(learner):
    assert weights_of(learner, clicks(("u", "a", 100), ("u", "b", 101), ("v", "c", 101))) is None


def test_lines_count_less_within_a_batch_and_from_one_to_the_next(learner):
    begun = clicks(("u", "a", 100), ("u", "b", 101), ("v", "x", 101), ("u", "c", 101))
    assert weights_of(learner, begun) == pytest.approx([1, 1, 1, 1 / 2])
    going_on = clicks(("u", "d", 101), ("v", "y", 102), ("u", "e", 101), ("u", "f", 102))
    assert weights_of(learner, going_on) == pytest.approx([1 / 3, 1, 1 / 4, 1])


def test_a_batch_that_is_one_basket_moves_the_weights_less(settings):
    def moved(times):
        learner = Learner(settings)
        learner.learn(clicks(*(("u", f"i{n}", 10 + n) for n in range(8))))
        learner.learn(clicks(*(("v", f"i{n}", 30 + n) for n in range(8))))
        seen = []
        learner.weights.train = lambda batch, objectives: seen.append(
            float(sum(loss for one in objectives if (loss := one.loss(learner.weights, batch)) is not None))
        )
        learner.learn(clicks(*(("v", f"i{n}", 100 + at) for n, at in enumerate(times))))
        return seen[0]

    assert 0 < moved([0] * 8) < 0.6 * moved(range(8))


def test_clicks_that_are_trained_again_weigh_as_they_did(settings):
    from online.learner.again import retraced  # noqa: PLC0415

    batch = clicks(("u", "a", 100), ("u", "b", 101), ("u", "c", 101), ("u", "d", 101), ("v", "a", 101))
    learner = Learner(settings)
    learner.learn(batch, owned=np.zeros(len(batch), bool))
    again = retraced(learner, batch)
    assert again.batch.lines.tolist() == [1, 1, 2, 3, 1]
