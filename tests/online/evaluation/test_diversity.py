"""The trade of diversity: other ways against their definitions, and the curve of a learner."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.evaluation.backtest import NEXTCLICK, backtest
from online.evaluation.diversity import Setting, diversity_curve
from online.evaluation.diversity_peers import SHARPEST, greedy_dpp, largest_mmr, scaled
from online.learner.diversity import cosines

seeds = st.integers(0, 2**32 - 1)


def drawn(seed):
    random = np.random.default_rng(seed)
    return -np.sort(-random.normal(size=8)), cosines(random.normal(size=(8, 8)))


@given(seeds, st.integers(1, 4), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_greedy_dpp_takes_the_largest_determinant(seed, k, diversity):
    scores, alike = drawn(seed)
    quality = np.exp(scaled(scores) * min(SHARPEST, (1 - diversity) / diversity) / 2)
    kernel = quality[:, None] * alike * quality
    expected = []
    while len(expected) < k:
        left = set(range(len(scores))) - set(expected)
        expected.append(max(left, key=lambda one: np.linalg.slogdet(kernel[np.ix_(*[[*expected, one]] * 2)])[1]))
    assert greedy_dpp(scores, alike, k, diversity).tolist() == expected


@given(seeds, st.integers(1, 8), st.sampled_from([0.1, 0.5, 1.0]))
def test_mmr_by_the_largest_likeness_is_what_its_definition_says(seed, k, diversity):
    scores, alike = drawn(seed)
    relevant, expected = scaled(scores), [0]
    while len(expected) < k:
        left = [one for one in range(len(scores)) if one not in expected]
        gain = {one: (1 - diversity) * relevant[one] - diversity * max(alike[one, expected].max(), 0) for one in left}
        expected.append(max(left, key=lambda one: gain[one]))
    assert largest_mmr(scores, alike, k, diversity).tolist() == expected


def test_without_diversity_the_curve_has_the_figures_of_the_backtest(small, town_clicks):
    settings = small(candidates_kept=16)
    plain, varied, only = diversity_curve(town_clicks, settings, [Setting(0.0), Setting(0.5), Setting(1.0)])
    outcome = backtest(town_clicks, settings, methods=[NEXTCLICK])
    ranks = outcome.scored(NEXTCLICK)
    # Ties, and the ranks of what was not kept, are the same but for rounding: half of ten places of some clicks.
    assert plain["hit@10"] == pytest.approx((ranks < 10).mean(), abs=0.02)
    assert plain["ndcg@10"] == pytest.approx(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean(), abs=0.02)
    assert plain["intra_list_similarity"] > varied["intra_list_similarity"] > only["intra_list_similarity"]
    assert plain["ndcg@10"] > only["ndcg@10"]


def test_tags_cap_lists_of_the_curve(small, town_clicks):
    settings = small(candidates_kept=16)
    figures = diversity_curve(
        town_clicks, settings, [Setting(0.0), Setting(0.0, max_per_tag=1)], tags_of=lambda item: [item[-1]]
    )
    assert figures[1]["max_per_tag"] == 1
    assert figures[1]["intra_list_similarity"] < figures[0]["intra_list_similarity"]
