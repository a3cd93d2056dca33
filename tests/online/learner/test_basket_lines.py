"""The n-th of a user's clicks at one time counts 1/n in training: lines of a basket come in no order."""

import numpy as np
import pytest

from online.learner.learner import Learner
from stream.events import Click


@pytest.fixture
def learner(small):
    return Learner(small())


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


def test_a_line_weighs_in_training_and_in_replay_what_it_counts(small):
    learner, trained = Learner(small()), []
    learner.learn(clicks(*((user, f"i{n}", 10 + n) for user in "uv" for n in range(4))))
    train = learner.weights.train
    learner.weights.train = lambda batch, objectives: trained.append(batch) or train(batch, objectives)
    learner.learn(clicks(*(("w", f"i{n}", 100) for n in range(4))))
    assert trained[0].weights.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert (trained[0].places >= 0).sum() > 1
    kept = learner.replay.weights[: learner.replay.filled].tolist()
    assert set(kept) <= {1, 1 / 2, *np.float32([1 / 3]).tolist(), 1 / 4}
    assert min(kept) < 1


def test_clicks_that_are_trained_again_weigh_as_they_did(small):
    from online.learner.again import retraced  # noqa: PLC0415

    batch = clicks(("u", "a", 100), ("u", "b", 101), ("u", "c", 101), ("u", "d", 101), ("v", "a", 101))
    learner = Learner(small())
    learner.learn(batch, owned=np.zeros(len(batch), bool))
    again = retraced(learner, batch)
    assert again.batch.lines.tolist() == [1, 1, 2, 3, 1]
