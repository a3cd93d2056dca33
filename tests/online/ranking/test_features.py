"""The table of the ranker's inputs says what stands in which column. That each column holds what its name says is held
by test_candidates.py for what is counted, and by test_scorer.py for recall."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from online.counts import THIRD
from online.learner import Learner
from online.ranking.candidates import NEAR_DECAY, OWN_DECAY
from online.ranking.features import COUNTED, OWN_HEADS, PARTS, WORLD_HEADS, Feature, features
from online.ranking.scorer import Query, Scored
from online.settings import Settings
from stream.events import Click

HALF_LIVES = (7, 90, 400)


@pytest.fixture
def asked(small: Callable[..., Settings], town_clicks: list[Click]) -> tuple[Learner, Query, Scored]:
    """Three people asked about, with all that there is to say of their candidates."""
    learner = Learner(small(popularity_half_lives=HALF_LIVES))
    for start in range(0, 160, 16):
        learner.learn(town_clicks[start : start + 16])
    users = learner.histories.users()[:3]
    slots = learner.histories.find(users)
    states = learner.states.now(users, slots)
    now = np.full(3, town_clicks[160].timestamp)
    query = learner.questions.at(users, slots, now, 0, states, active=now)
    with torch.no_grad():
        return learner, query, learner.scorer.score(query)


def test_the_scorers_columns_are_those_of_the_table_in_its_order(asked: tuple[Learner, Query, Scored]) -> None:
    learner, query, scored = asked
    scorer, rows, owners = learner.scorer, scored.candidates.rows, scored.candidates.owners
    table = features(HALF_LIVES)
    assert scorer.inputs == table
    assert scored.features.shape == (len(rows), len(table))
    at = {feature.name: column for column, feature in enumerate(table)}
    columns = dict(zip(at, scored.features.T, strict=True))
    for column, feature in enumerate(COUNTED):
        assert at[feature.name] == column
        assert torch.equal(scored.candidates.features[:, column], columns[feature.name])
    for number, half_life in enumerate(HALF_LIVES):
        expected = scorer.counts.popularity(rows)[:, number].log1p()
        assert torch.equal(columns[f"popularity_{half_life}"], expected)
    weights, gathered = scorer.weights, scorer.gather(query)
    with torch.no_grad():
        for name, heads, found in (("own", weights.own, gathered.own), ("world", weights.world, gathered.world)):
            assert found is not None
            counted = weights._heads(heads, found, gathered, query.states)
            assert counted.any(0).all()  # equal by chance they are not
            for head, soft_counts in enumerate(counted.T, start=1):
                assert torch.equal(columns[f"{name}_{head}"], soft_counts)
    assert query.states is not None
    logits = learner.weights.network.scores(query.states[owners], rows[:, None])[:, 0]
    torch.testing.assert_close(columns["network"], logits, rtol=1e-5, atol=1e-6)


def test_the_ranker_begins_with_the_weights_of_the_table(small: Callable[..., Settings]) -> None:
    scorer = Learner(small(popularity_half_lives=HALF_LIVES)).scorer
    torch.testing.assert_close(scorer.weights.ranker.linear.tolist(), [feature.start for feature in scorer.inputs])
    assert scorer.weights.own.gains.tolist() == [list(gains) for gains in OWN_HEADS]
    assert scorer.weights.world.gains.tolist() == [list(gains) for gains in WORLD_HEADS]


def test_every_input_has_a_name_of_its_own_and_is_explained() -> None:
    table = features(HALF_LIVES)
    assert len({feature.name for feature in table}) == len(table)
    assert all(feature.name.isidentifier() and feature.meaning and feature.transformation for feature in table)
    assert len(table) == len(COUNTED) + len(HALF_LIVES) + len(OWN_HEADS) + len(WORLD_HEADS) + 2


def test_numbers_that_the_table_names_are_those_of_the_code() -> None:
    table = {feature.name: feature for feature in features(HALF_LIVES)}
    assert f"{NEAR_DECAY}^age" in table["near"].meaning
    assert f"{OWN_DECAY}^" in table["own_decayed"].transformation
    assert f"{THIRD.start + 1} to {THIRD.stop} clicks" in table["followed_third"].meaning
    for number, half_life in enumerate(HALF_LIVES):
        feature = table[f"popularity_{half_life}"]
        assert feature == features(HALF_LIVES[number:])[len(COUNTED)]
        assert f"every {half_life} later" in feature.meaning


@pytest.mark.parametrize(("whose", "heads"), [("own", OWN_HEADS), ("world", WORLD_HEADS)])
def test_each_head_is_described_by_its_gains(whose: str, heads: tuple[tuple[float, ...], ...]) -> None:
    mine: list[Feature] = [feature for feature in features(HALF_LIVES) if feature.meaning.startswith("moments")]
    described = [feature.meaning.split(": ")[1] for feature in mine if feature.name.startswith(f"{whose}_")]
    assert len(described) == len(heads)
    for words, gains in zip(described, heads, strict=True):
        assert len(gains) == len(PARTS)
        named = dict(part.split() for part in words.split(", "))
        assert {part: float(gain) for part, gain in named.items()} == {
            part: gain for part, gain in zip(PARTS, gains, strict=True) if gain
        }
