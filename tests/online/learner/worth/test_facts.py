"""What is known of the worth of candidates: columns against a slow reading of all clicks, and weights of clicks."""

import json
import math

import numpy as np
import pytest

from online.learner.learner import Learner
from online.learner.lookahead import UpcomingBatch
from online.learner.worth.facts import DAY_S, ITEM_HALF_LIFE, SHARE_MIN, EventWorth
from online.learner.worth.kernels import AGE_SCALE, ITEM_PRIOR, USER_PRIOR, VALUE_PRIOR
from tests.online.learner.worth.conftest import BUY, RETURN, VIEW, learn, shop

NAMES = (VIEW, BUY, RETURN)
LOST = (0.0, 0.0, 1 - math.exp(-3))


class Slow:
    """Item counts, one click after the other."""

    def __init__(self):
        self.counts, self.values = {}, {}

    def add(self, clicks):
        fade = 2 ** (-1 / ITEM_HALF_LIFE)
        for click in clicks:
            counts = self.counts.setdefault(click.item_id, [0.0] * 4)
            values = self.values.setdefault(click.item_id, [0.0] * 2)
            counts[:], values[:] = [fade * one for one in counts], [fade * one for one in values]
            counts[NAMES.index(click.event_type)] += 1
            counts[3] += 1
            if click.value is not None:
                values[0] += min(max(click.value, 0.0), 50.0)
                values[1] += 1


def odds(count, total, share, prior):
    return math.log((count + prior * share) / (total - count + prior * (1 - share)))


def slow_columns(  # noqa: PLR0917 - all that there is to know
    slow, history, item, now, shares, mean
):
    """`history`: the user's clicks before this moment, oldest first."""
    counts, values = slow.counts.get(item, [0.0] * 4), slow.values.get(item, [0.0] * 2)
    mine = [click for click in history if click.item_id == item]
    kinds = [click.event_type for click in history]
    last = mine[-1] if mine else None
    worths = [min(max(click.value, 0.0), 50.0) for click in history if click.value is not None]
    lost_with_user = min(
        [0.0]
        + [
            math.log(1 - LOST[2] * 2 ** (-(now - click.timestamp) / (30 * DAY_S)))
            for click in mine
            if click.event_type == RETURN
        ]
    )
    return [
        *(odds(counts[t], counts[3], shares[t], ITEM_PRIOR) for t in range(3)),
        *(
            odds(kinds.count(name), len(kinds), shares[t], USER_PRIOR) - math.log(shares[t] / (1 - shares[t]))
            for t, name in enumerate(NAMES)
        ),
        *(float(last is not None and last.event_type == name) for name in NAMES),
        *(math.log1p(sum(click.event_type == name for click in mine)) for name in NAMES),
        *(float(last is not None and last is history[-1] and last.event_type == name) for name in NAMES),
        math.log1p(len(mine)),
        0.0 if last is None else 1 / (1 + history[::-1].index(last)),
        0.0 if last is None else math.log1p(now - last.timestamp) / AGE_SCALE,
        math.log((values[0] + VALUE_PRIOR * mean) / (values[1] + VALUE_PRIOR)),
        math.log((sum(worths) + VALUE_PRIOR * mean) / ((len(worths) + VALUE_PRIOR) * mean)),
        lost_with_user,
        math.log(1 - LOST[2] * counts[2] / (counts[3] + ITEM_PRIOR)),
    ]


@pytest.mark.parametrize("ahead", [False, True])
def test_columns_are_what_a_slow_reading_of_all_earlier_clicks_gives(worthy, ahead):
    learner, clicks, slow, histories = worthy(value_max=50.0), shop(480, returns=0.5), Slow(), {}
    compared = 0
    batches = [clicks[start : start + 16] for start in range(0, len(clicks), 16)]
    for number, batch in enumerate(batches):
        worth = learner.worth
        shares, mean = np.clip(worth.total[:3] / worth.total[3], SHARE_MIN, 1 - SHARE_MIN), worth.mean_value
        upcoming = [UpcomingBatch(one) for one in batches[number + 1 : number + 2] if ahead]
        following = (lambda found=upcoming: found[0]) if upcoming else None
        for step in learner.learn(batch, following=following).steps:
            gathered = step.scored.gathered
            for at in range(len(gathered.starts) - 1):
                click = batch[step.part.start + at]
                history = histories.setdefault(click.user_id, [])
                after = sum(
                    one.user_id == click.user_id for one in batch[step.part.start + at :]
                )  # in the ring already
                part = slice(*gathered.starts[at : at + 2].tolist())
                for row, columns in zip(gathered.rows[part].tolist(), gathered.worth[part], strict=True):
                    item = learner.vocabulary.item_of(row)
                    expected = slow_columns(slow, history[-(40 - after) :], item, click.timestamp, shares, mean)
                    np.testing.assert_allclose(columns, expected, rtol=1e-4, atol=1e-4)
                    compared += 1
                history.append(click)
        slow.add(batch)
    assert compared > 2_000


def test_lists_know_the_clicks_that_come_before_them_and_no_others(worthy):
    """The list after a micro-batch is that of a learner asked after it."""
    learner = worthy()
    learn(learner, shop(320))
    gathered = []
    with_columns = learner.worth.with_columns
    learner.worth.with_columns = lambda *given: (gathered.append(with_columns(*given)), gathered[-1])[1]
    learner.learn(shop(336)[320:])
    lists = gathered[1]
    users = sorted({click.user_id for click in shop(336)[320:]})
    learner.rank(users)
    T = 3
    # What users did; the age of the latest event is as of when each list is read.
    of_lists, of_ranked = (
        {tuple(row) for row in part.worth[:, 2 * T : 5 * T + 2].round(4).tolist()} for part in (lists, gathered[2])
    )
    assert len(of_ranked) > 20
    assert of_ranked <= of_lists


def test_what_is_trained_towards_is_told_by_weight_and_value(small):
    settings = small(event_weights="buy=4,look=0,return=-2", value_as_worth=True)
    worth = EventWorth(settings, lambda: {"buy": 0, "look": 1, "return": 2})
    worth.grow(10)
    types, nan = np.array([0, 0, 1, 2, 5]), np.nan
    values = np.array([3.0, nan, nan, -5.0, nan])
    assert worth.wanted(types, values).tolist() == [True, True, False, False, True]
    worth.add(np.array([1, 1, 2, 3, 4]), types, values)
    worth.add(np.array([1]), np.array([0]), np.array([0.0]))
    step = worth.step(types, values, np.arange(5), np.arange(5) > 0)
    assert step.labels.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert step.counted.tolist() == [False, True, False, False, True]
    assert step.weights[2] == step.weights[3] == 0
    assert step.weights[1] == pytest.approx(4 * step.weights[4])
    mean_log = (math.log1p(3) + 0 + 0) / 3  # of three clicks with a value, one below 0 and one of 0
    assert step.weights[0] == pytest.approx(step.weights[1] * math.log1p(3) / mean_log, rel=1e-3)


def test_weights_are_one_on_average_over_a_stream(worthy):
    learner = worthy(value_as_worth=True)
    found = learn(learner, shop(1_600))[50:]
    weights = np.concatenate([step.worth.weights for one in found for step in one.steps])
    assert weights.mean() == pytest.approx(1.0, abs=0.15)
    assert len(set(weights.round(2).tolist())) > 2


def test_a_row_that_is_handed_out_again_knows_nothing_of_the_item_before(worthy):
    learner = worthy()
    learn(learner, shop(160))
    row = learner.vocabulary.row_of("i2")
    assert learner.worth.counts[row].any()
    learner.worth.forget_rows([row])
    assert not learner.worth.counts[row].any()
    assert not learner.worth.values[row].any()


def test_counts_of_types_that_are_named_later_begin_anew_and_the_others_stay(small):
    def built(weights):
        worth = EventWorth(small(event_weights=weights), lambda: {"a": 0, "b": 1, "c": 2})
        worth.grow(4)
        return worth

    before = built("a=1,b=2")
    before.add(np.array([1, 1, 2]), np.array([0, 1, 2]), np.array([1.0, np.nan, 2.0]))
    arrays, state = before.to_state()
    after = built("c=2,b=3")
    after.load_state(arrays, json.loads(json.dumps(state)))
    assert after.counts[1].tolist() == [0, before.counts[1, 1], before.counts[1, 2]]
    np.testing.assert_array_equal(after.values, before.values)
    assert after.mean_value == before.mean_value


def test_dislikes_count_against_an_item_where_they_have_a_weight(small):
    for weights, counted in (("dislike=-2", 1.0), ("view=1", 0.0)):
        learner = Learner(small(event_weights=weights))
        learn(learner, shop(64))
        learner.count_feedback("i2", "dislike")
        learner.count_feedback("unknown", "dislike")
        counts = learner.worth.counts[learner.vocabulary.row_of("i2")]
        assert counts[0] >= counted if counted else weights == "view=1"
    plain = Learner(small())
    plain.count_feedback("i2", "dislike")  # nothing is counted
    assert plain.worth is None
