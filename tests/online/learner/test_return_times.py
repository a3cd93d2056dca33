"""When lists are looked at, against plain loops over the gaps."""

import json
import math
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.learner.return_times import BINS, BINS_EACH, FAR_APART_S, LISTS_MAX, PRIOR, ReturnTimes

AGES = (600.0, 3_600.0, 14_400.0)
some_gaps = st.lists(
    st.sampled_from([-5.0, 0.0, 1.0, 30.0, 500.0, 700.0, 3_000.0, 9_000.0, 30_000.0, 1e6]), max_size=40
)
some_ages = st.lists(st.sampled_from([60.0, 600.0, 3_600.0, 14_400.0, 86_400.0]), unique=True, max_size=5).map(sorted)


def learned(ages_s, gaps, lists=None, **limits):
    returns = ReturnTimes(ages_s, **limits)
    returns.add(np.array(gaps, float), len(gaps) if lists is None else lists)
    return returns


class Slow:
    """Every gap by itself, each as long as the middle of its bin of an eighth of a doubling."""

    def __init__(self, ages_s, gaps, lists, share_min, *, refreshes_max=math.inf, expected_views_max=3):
        self.ages_s, self.lists, self.share_min, self.expected_views_max = (
            list(ages_s),
            lists,
            share_min,
            expected_views_max,
        )
        self.refreshes_max = refreshes_max
        self.gaps = [self.middle(min(BINS - 1, int(math.log2(max(gap, 1.0)) * BINS_EACH))) for gap in gaps]

    @staticmethod
    def middle(bin_):
        return 2 ** ((bin_ + 0.5) / BINS_EACH)

    def looked_at(self, low, high):
        return sum(low <= gap < high for gap in self.gaps)

    def reached(self, mark):
        return max(0, self.lists - self.looked_at(0.0, mark))

    def too_many(self, marks):
        return self.lists and sum(map(self.reached, marks)) > self.refreshes_max * self.lists

    def marks(self):
        """The one with the smallest share goes until each is worth it, and all together are not too many."""
        marks = list(self.ages_s)
        while marks:
            bounds = [*marks, math.inf]
            shares = [(self.looked_at(*span) + 4) / (self.reached(span[0]) + 20) for span in pairwise(bounds)]
            if min(shares) >= self.share_min and not self.too_many(marks):
                break
            del marks[shares.index(min(shares))]
        return marks

    def written(self, gap):
        """A click at the very moment of a mark meets the list that stood before it."""
        return max([0.0, *(mark for mark in self.marks() if mark < gap)])

    def expected_views(self, age):
        """Quantiles, in the middle of K equal parts, of the gaps that end while the list stands."""
        marks = [0.0, *self.marks(), math.inf]
        low = max(mark for mark in marks if mark <= max(age, 0.0))
        high = marks[marks.index(low) + 1]
        stands = [bin_ for bin_ in range(BINS) if low <= self.middle(bin_) < high]
        reached = list(accumulate(self.gaps.count(self.middle(bin_)) + PRIOR for bin_ in stands))
        wanted = [(nth + 0.5) / self.expected_views_max * reached[-1] for nth in range(self.expected_views_max)]
        found = [next(self.middle(b) for b, at in zip(stands, reached, strict=True) if at >= share) for share in wanted]
        if found[-1] - found[0] < FAR_APART_S:
            found = [found[self.expected_views_max // 2]]
        return [max(look, age) for look in found]


def by_list(returns, ages_s):
    """The moments of each list."""
    lists, looks = returns.expected_views(np.array(ages_s, float))
    assert lists.tolist() == sorted(lists.tolist())
    return [looks[lists == at].tolist() for at in range(len(ages_s))]


@given(some_ages, some_gaps, st.integers(0, 30), st.integers(1, 7), st.sampled_from([0.0, 0.1, 0.3, 0.6]))
def test_marks_worth_a_refresh_and_what_follows_from_them_are_those_of_a_loop(ages, gaps, strangers, size, share_min):
    returns, slow = ReturnTimes(ages, share_min), Slow(ages, gaps, len(gaps) + strangers, share_min)
    returns.add(np.zeros(0), strangers)
    for start in range(0, len(gaps), size):
        some = gaps[start : start + size]
        returns.add(np.array(some), len(some))
    assert returns.marks().tolist() == slow.marks()
    asked = [0.0, 1.0, 599.0, *ages, *(age + 0.5 for age in ages), 1e7]
    assert returns.written(np.array(asked)).tolist() == [slow.written(gap) for gap in asked]


@given(some_ages, some_gaps, st.integers(1, 5), st.sampled_from([0.0, 0.3]))
def test_moments_of_looks_are_the_quantiles_of_the_gaps_that_end_while_a_list_stands(
    ages, gaps, expected_views_max, share_min
):
    returns = learned(ages, gaps, share_min=share_min, expected_views_max=expected_views_max)
    slow = Slow(ages, gaps, len(gaps), share_min, expected_views_max=expected_views_max)
    asked = [-3.0, 0.0, 599.0, 2_000.0, *ages, 1e7]
    for found, age in zip(by_list(returns, asked), asked, strict=True):
        assert found == pytest.approx(slow.expected_views(age))


def test_a_mark_that_is_not_worth_it_leaves_its_lists_to_the_one_before():
    """Of a hundred lists fifty are looked at within ten minutes, and the others a day later: an hour and four hours
    after the click, hardly any user looks before the next mark; but who leaves out the last makes up for it."""
    gaps = [60.0] * 500 + [700.0] * 5 + [5_000.0] * 5 + [86_400.0] * 490
    assert learned(AGES, gaps).marks().tolist() == list(AGES)
    assert learned(AGES, gaps, share_min=0.1).marks().tolist() == [14_400.0]
    # None of them comes back any more: the last is not worth it either.
    assert learned(AGES, gaps[:510], lists=1_000, share_min=0.1).marks().tolist() == []


def test_the_marks_least_worth_it_give_way_until_lists_are_not_refreshed_too_often():
    """Every list reaches the first, half of them the second, a tenth the third."""
    gaps = [1_000.0] * 500 + [5_000.0] * 400 + [86_400.0] * 100
    assert learned(AGES, gaps).marks().tolist() == list(AGES)
    assert learned(AGES, gaps, refreshes_max=1.6).marks().tolist() == list(AGES)
    assert learned(AGES, gaps, refreshes_max=1.5).marks().tolist() == [3_600.0, 14_400.0]
    assert learned(AGES, gaps, refreshes_max=0.1).marks().tolist() == [14_400.0]
    assert learned(AGES, gaps, refreshes_max=0.05).marks().tolist() == []


def test_shares_of_lists_that_are_never_read_again_count_too():
    gaps = [60.0] * 100 + [1_000.0] * 20
    assert learned((600.0,), gaps, lists=120, share_min=0.2).marks().tolist() == [600.0]
    assert learned((600.0,), gaps, lists=1_000, share_min=0.2).marks().tolist() == []


@pytest.mark.parametrize("ages", [(), AGES])
def test_before_any_user_returned_each_list_is_expected_to_be_read_while_it_stands(ages):
    bounds = [0.0, *ages, math.inf]
    for low, high, looks in zip(bounds, bounds[1:], by_list(ReturnTimes(ages), [0.0, *ages]), strict=False):
        assert looks
        assert all(low <= look < high for look in looks)


def test_a_list_that_is_written_late_is_looked_at_no_earlier():
    (looks,) = by_list(learned((), [60.0] * 100), [5_000.0])
    assert min(looks) == 5_000.0


def test_moments_close_in_time_are_one_and_distant_ones_as_many_as_the_setting():
    close, far = [600.0] * 500 + [1_500.0] * 500, [60.0] * 50 + [90_000.0] * 50
    for expected_views_max in (1, 2, 3, 8):
        (once,), (often,) = (
            by_list(learned((), gaps, expected_views_max=expected_views_max), [0.0]) for gaps in (close, far)
        )
        assert len(once) == 1
        assert len(often) == expected_views_max
        if expected_views_max > 1:
            assert often[-1] - often[0] > FAR_APART_S
            assert sum(look < 100 for look in often) == pytest.approx(expected_views_max / 2, abs=0.5)


def test_with_one_moment_it_is_the_median():
    (looks,) = by_list(learned((), [60.0] * 20 + [4_000.0] * 100 + [1e6] * 60, expected_views_max=1), [0.0])
    assert looks == pytest.approx([4_000.0], rel=0.1)


def test_what_is_learned_follows_users_who_have_changed():
    returns = learned((), np.full(LISTS_MAX, 10.0))
    assert by_list(returns, [0.0]) == [pytest.approx([10.0], rel=0.1)]
    for _ in range(20):
        returns.add(np.full(LISTS_MAX // 4, 1_000.0), LISTS_MAX // 4)
    assert by_list(returns, [0.0]) == [pytest.approx([1_000.0], rel=0.1)]
    assert by_list(learned((), [10.0] * 200 + [1_000.0] * 100), [0.0]) == [pytest.approx([10.0], rel=0.1)]


def test_all_counts_are_halved_once_there_are_too_many_so_shares_stay():
    gaps = [60.0] * 300 + [1_000.0] * 700
    full, returns = learned((600.0,), gaps, share_min=0.5), learned((600.0,), gaps * 60, share_min=0.5)
    assert returns.to_state()["lists"].tolist() == [len(gaps) * 30]
    assert returns.to_state()["gaps"].sum() == len(gaps) * 30
    assert returns.marks().tolist() == full.marks().tolist() == [600.0]


def test_what_was_learned_outlives_a_restart_also_with_other_ages_and_more_looks():
    gaps = [5.0, 700.0, 9_000.0, 90_000.0] * 20
    returns = learned(AGES, gaps, lists=100, share_min=0.1)
    arrays = {name: np.array(json.loads(json.dumps(array.tolist()))) for name, array in returns.to_state().items()}
    same, others = ReturnTimes(AGES, 0.1), ReturnTimes((60.0,), 0.1, expected_views_max=2)
    for one in (same, others):
        one.load_state(arrays)
    fresh = learned((60.0,), gaps, lists=100, share_min=0.1, expected_views_max=2)
    for one in (returns, same, others, fresh):
        one.add(np.array([50.0, 800.0]), 3)
    for mine, its in ((same, returns), (others, fresh)):
        assert mine.marks().tolist() == its.marks().tolist()
        assert by_list(mine, [0.0, *AGES]) == by_list(its, [0.0, *AGES])
    assert arrays["lists"].tolist() == [100]  # what was loaded is a copy
