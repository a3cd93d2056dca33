"""What groups of features add, against the same worked out one click and one candidate at a time."""

import copy
import math
from typing import get_args

import numpy as np
import pytest
import torch

from online.config.sections.learning import FeatureGroup
from online.evaluation import feature_worth
from online.evaluation.backtest import NEXTCLICK, backtest
from online.evaluation.feature_worth import FeatureTrial
from online.learner.facts.feature_groups import GROUPS, group_of
from online.learner.facts.features import features
from online.learner.learner import Learner


def gain(scores, place):
    rank = sum(other > scores[place] for other in scores) + (sum(other == scores[place] for other in scores) - 1) / 2
    return 1 / math.log2(rank + 2) if rank < 10 else 0.0


def test_it_is_what_is_lost_where_a_group_says_the_same_of_all_candidates(small, town_clicks, monkeypatch):
    monkeypatch.setattr(feature_worth, "EVERY", 1)
    learner = Learner(small(step_clicks=8))  # one step for each micro-batch: so the ranker is that of before
    trial = FeatureTrial(learner, first=180)
    groups = [group_of(feature.name) for feature in features(learner.settings.popularity_half_lives)]
    expected, ndcg = [], []
    for start in range(0, 240, 8):
        before = copy.deepcopy(learner.weights.ranker)
        learned = learner.learn(town_clicks[start : start + 8])
        trial.after(range(start, start + 8), learned)
        if start + 8 < 180 or start == 176:  # noted from the micro-batch on that follows one with such a click
            continue
        for step in learned.steps:
            places = step.scored.places(step.scored.positions(learned.targets[step.part]))
            for at, place in enumerate(places):
                there = step.scored.present[at]
                rows = step.scored.features[at][there]
                added = []
                for group in dict.fromkeys(groups):
                    silent = rows.clone()
                    for column in [n for n, other in enumerate(groups) if other == group]:
                        silent[:, column] = before.mean[column]
                    with torch.no_grad():
                        both = [gain(before(one).tolist(), place) if place >= 0 else 0.0 for one in (rows, silent)]
                    added.append(both[0] - both[1])
                expected.append(added)
                ndcg.append(gain(step.scored.scores[at][there].tolist(), place) if place >= 0 else 0.0)
    found = trial.result()
    assert found.groups == tuple(dict.fromkeys(groups))
    assert found.clicks.tolist() == list(range(184, 240))
    np.testing.assert_allclose(found.ndcg, ndcg, atol=1e-6)
    assert np.isclose(found.added, expected, atol=1e-6).mean() > 0.99  # but for ties that rounding decides
    assert np.abs(found.added).max() > 0.1


def test_a_backtest_measures_it_where_that_is_wanted_and_is_not_changed_by_it(small, town_clicks):
    settings = small()
    plain = backtest(town_clicks, settings, methods=[NEXTCLICK]).results[NEXTCLICK]
    measured = backtest(town_clicks, settings, methods=[NEXTCLICK], features_from=200).results[NEXTCLICK]
    assert plain.feature_worth is None
    np.testing.assert_array_equal(plain.ranks[NEXTCLICK], measured.ranks[NEXTCLICK])
    assert measured.feature_worth is not None
    clicks = measured.feature_worth.clicks
    assert 0 < len(clicks) < 200
    assert clicks.min() >= 200


def test_what_is_not_used_is_not_measured(small, town_clicks):
    settings = small(features_left_out="near,own_moments", deep_state=False)
    found = backtest(town_clicks, settings, methods=[NEXTCLICK], features_from=200).results[NEXTCLICK].feature_worth
    assert set(found.groups) == set(GROUPS.values()) - {"near", "own_moments", "network"}


def test_every_group_but_the_network_can_be_left_out():
    assert set(get_args(FeatureGroup)) == set(GROUPS.values()) - {"network"}


@pytest.mark.parametrize("named", ["nears", "network", "near,"])
def test_a_group_that_is_not_known_is_refused_with_those_that_are(small, named):
    with pytest.raises(ValueError, match=r"features_left_out[\s\S]*'followed', 'near'"):
        small(features_left_out=named)
