"""When lists are looked at, against running means in plain loops."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.return_times import SLOWEST, ReturnTimes

AGES = (600.0, 3_600.0, 14_400.0)
gaps = st.lists(st.sampled_from([-5.0, 0.0, 1.0, 30.0, 600.0, 601.0, 3_599.0, 9_000.0, 1e6]), max_size=30)


def span_of(age):
    return sum(bound <= age for bound in AGES)


@given(gaps, st.integers(1, 7))
def test_what_is_expected_is_the_running_mean_of_the_logs_of_the_gaps_that_end_in_a_span(gaps, size):
    returns = ReturnTimes(AGES)
    means = [math.log(each) for each in returns.expected(np.array([0.0, *AGES]))]
    counts = [0] * 4
    for start in range(0, len(gaps), size):
        returns.add(np.array(gaps[start : start + size]), 0)
    for gap in gaps:
        span = span_of(gap)
        counts[span] += 1
        means[span] += (math.log(max(1.0, gap)) - means[span]) / (counts[span] + 10)
    for age in (-3.0, 0.0, 599.0, 600.0, 2_000.0, 3_600.0, 20_000.0, 1e9):
        expected = max(math.exp(means[span_of(age)]), age)
        assert returns.expected(np.array([age])).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("ages", [(), AGES])
def test_before_anybody_came_back_each_list_is_expected_to_be_looked_at_within_its_span(ages):
    returns = ReturnTimes(ages)
    bounds = [0.0, *ages, math.inf]
    for low, high, expected in zip(bounds, bounds[1:], returns.expected(np.array([0.0, *ages])), strict=False):
        assert low < expected < high


def test_means_follow_people_who_have_changed():
    returns = ReturnTimes(())
    returns.add(np.full(20_000, 10.0), 0)
    returns.add(np.full(int(10 / SLOWEST), 1_000.0), 0)
    assert returns.expected(np.zeros(1)).tolist() == pytest.approx([1_000.0], rel=1e-3)


def test_what_was_learned_outlives_a_restart_unless_the_ages_are_others():
    returns, again, others = ReturnTimes(AGES), ReturnTimes(AGES), ReturnTimes((60.0,))
    at_the_start = others.expected(np.zeros(1))
    returns.add(np.array([5.0, 700.0, 9_000.0]), 0)
    arrays = {name: np.array(json.loads(json.dumps(array.tolist()))) for name, array in returns.to_state().items()}
    for one in (again, others):
        one.load_state(arrays)
    for one in (returns, again):
        one.add(np.array([50.0, 800.0]), 0)
    assert again.expected(np.array([0.0, *AGES])).tolist() == returns.expected(np.array([0.0, *AGES])).tolist()
    assert others.expected(np.zeros(1)) == at_the_start
