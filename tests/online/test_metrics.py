"""The measure against counting by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online import metrics
from online.metrics import Latencies, Scores, ScoreWindow, hit_and_ndcg

# A list of ten, what was clicked, and where by hand: place (from 1), or None.
STREAM = [
    ([5, 3, 9, 1, 2, 4, 6, 7, 8, 10], 5, 1),
    ([5, 3, 9, 1, 2, 4, 6, 7, 8, 10], 9, 3),
    ([5, 3, 9, 1, 2, 4, 6, 7, 8, 10], 10, 10),
    ([5, 3, 9, 1, 2, 4, 6, 7, 8, 10], 11, None),
    ([5, 3, 0, 0, 0, 0, 0, 0, 0, 0], 3, 2),
    ([5, 3, 0, 0, 0, 0, 0, 0, 0, 0], 0, None),  # an unknown item, although nothing stands there either
    ([0] * 10, 0, None),
    ([0, 0, 7, 0, 0, 0, 0, 0, 0, 0], 7, 3),  # an item that lost its row leaves a hole, and no item moves up
]


def test_a_hand_made_stream_is_counted_as_by_hand():
    lists, targets = np.array([one for one, _, _ in STREAM]), np.array([one for _, one, _ in STREAM])
    hits, ndcgs = hit_and_ndcg(lists, targets)
    assert hits.tolist() == [0.0 if place is None else 1.0 for _, _, place in STREAM]
    np.testing.assert_allclose(ndcgs, [0.0 if place is None else 1 / math.log2(place + 1) for _, _, place in STREAM])


def test_only_the_first_ten_places_count():
    hits, ndcgs = hit_and_ndcg(np.arange(1, 21)[None], np.array([11]))
    assert (hits.tolist(), ndcgs.tolist()) == ([0.0], [0.0])


@given(st.lists(st.tuples(st.permutations(range(14)), st.integers(0, 14)), min_size=1, max_size=30))
def test_it_agrees_with_an_independent_count(stream):
    lists, targets = np.array([one for one, _ in stream]), np.array([one for _, one in stream])
    hits, ndcgs = hit_and_ndcg(lists, targets)
    for (served, target), hit, ndcg in zip(stream, hits, ndcgs, strict=True):
        rank = list(served[:10]).index(target) if target and target in served[:10] else None
        assert hit == (rank is not None)
        assert ndcg == pytest.approx(0.0 if rank is None else math.log(2) / math.log(rank + 2))


def test_totals_and_recent_are_means_of_their_clicks_by_method(monkeypatch):
    monkeypatch.setattr(metrics, "RECENT", 3)
    scores = Scores(("served", "popular"))
    lists, targets = np.array([one for one, _, _ in STREAM]), np.array([one for _, one, _ in STREAM])
    nothing = np.zeros_like(lists)
    for cut in (slice(0, 1), slice(1, 5), slice(5, 8)):
        scores.add({"served": lists[cut], "popular": nothing[cut]}, targets[cut])
    gains = [0.0 if place is None else 1 / math.log2(place + 1) for _, _, place in STREAM]
    assert scores.scored == 8
    assert scores.total() == {
        "served": {"hit@10": round(5 / 8, 5), "ndcg@10": round(sum(gains) / 8, 5)},
        "popular": {"hit@10": 0.0, "ndcg@10": 0.0},
    }
    assert scores.recent()["served"] == {"hit@10": round(1 / 3, 5), "ndcg@10": round(sum(gains[-3:]) / 3, 5)}


def test_nothing_scored_is_zero():
    scores = Scores(("served",))
    assert scores.total() == scores.recent() == {"served": {"hit@10": 0.0, "ndcg@10": 0.0}}


def test_the_curve_stays_short_and_even_however_long_the_stream():
    scores = Scores(("served",))
    hit, miss = np.arange(1, 11)[None].repeat(500, 0), np.zeros((500, 10), np.int64)
    for number in range(1_700):
        scores.add({"served": hit if number % 2 else miss}, np.ones(500, np.int64))
    at = [point for point, _ in scores.curve]
    assert len(at) <= metrics.CURVE_POINTS_MAX
    assert set(np.diff(at)) == {at[0]}
    assert at[-1] > 1_700 * 500 - 2 * at[0]
    assert all(sums[0][0] == pytest.approx(point / 2, abs=500) for point, sums in scores.curve)


def test_restored_from_json_it_goes_on_as_if_nothing_had_happened():
    whole, restored = Scores(("served",)), Scores(("served",))
    lists, targets = np.array([one for one, _, _ in STREAM]), np.array([one for _, one, _ in STREAM])
    for _ in range(300):
        whole.add({"served": lists}, targets)
    restored.load_state(json.loads(json.dumps(whole.to_state())))
    for _ in range(100):
        whole.add({"served": lists}, targets)
        restored.add({"served": lists}, targets)
    assert json.dumps(restored.to_state()) == json.dumps(whole.to_state())


def test_quantiles_of_latencies():
    latencies = Latencies()
    assert latencies.quantiles() == {"p50": None, "p99": None}
    latencies.add((1_000.0, 1_000.0 + value) for value in range(101))
    assert latencies.quantiles() == {"p50": 50.0, "p99": 99.0}
    latencies.add([(1_000.0, 1_007.0)] * 20_000)
    assert latencies.quantiles() == {"p50": 7.0, "p99": 7.0}
    assert latencies.unknown == 0


@pytest.mark.parametrize("began_ms", [1_000_593.246, -1.0, 0.0], ids=["a clock that is ahead", "none given", "1970"])
def test_a_latency_that_clocks_do_not_tell_is_left_out_and_counted(began_ms):
    latencies = Latencies()
    latencies.add([(began_ms, 1_000_000.0), (999_990.0, 1_000_000.0), (began_ms, 1_000_000.0)])
    assert latencies.quantiles() == {"p50": 10.0, "p99": 10.0}
    assert latencies.unknown == 2


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_backlog_of_long_ago_leaves_the_quantiles_after_the_window():
    clock = Clock()
    latencies = Latencies(300.0, clock)
    latencies.add([(1_000.0, 480_564.0)] * 50_000)
    assert latencies.quantiles() == {"p50": 479_564.0, "p99": 479_564.0}
    clock.now = 301.0
    latencies.add([(1_000.0, 1_020.0)])
    assert latencies.quantiles() == {"p50": 20.0, "p99": 20.0}
    clock.now = 700.0
    assert latencies.quantiles() == {"p50": None, "p99": None}


def test_quantiles_of_a_sample_are_those_of_all_values_and_its_memory_is_bounded():
    clock, seen = Clock(), []
    latencies = Latencies(300.0, clock, observe=seen.append)
    values = np.random.default_rng(0).lognormal(3.0, 1.0, 60_000)
    for part in np.split(values, 60):
        latencies.add((1_000.0, 1_000.0 + value) for value in part)
        clock.now += 4.9
    held = sum(len(part.values) for part in latencies._slices)
    assert held <= 31 * metrics._SLICE_VALUES_MAX
    p50, p99 = np.quantile(values, (0.5, 0.99))
    assert latencies.quantiles()["p50"] == pytest.approx(p50, rel=0.05)
    assert latencies.quantiles()["p99"] == pytest.approx(p99, rel=0.1)
    assert len(seen) == len(values)


def test_recent_scores_are_of_the_window_and_none_where_nothing_was_scored():
    clock = Clock()
    scores, window = Scores(("served",)), ScoreWindow(300.0, clock)
    hit, one = np.arange(1, 11)[None], np.ones(1, np.int64)
    assert window.means(scores) == {}
    scores.add({"served": np.zeros_like(hit)}, one)
    assert window.means(scores)["served"]["hit@10"] == 0.0
    for _ in range(40):
        clock.now += 10
        scores.add({"served": hit}, one)
        recent = window.means(scores)["served"]["hit@10"]
    assert recent == 1.0  # the miss has left the window
    clock.now += 290
    window.means(scores)
    clock.now += 290
    window.means(scores)
    assert window.means(scores) == {}
    scores.load_state(Scores(("served",)).to_state())  # a version before is back
    assert window.means(scores) == {}
