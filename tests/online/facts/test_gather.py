"""One pass over a micro-batch against a slow version in plain lists and dicts, one click at a time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.online.facts.streams import Answer, Event, Player, Slow, SlowAnswer, column_names, few, stream

seeds = st.integers(0, 2**32 - 1)


def is_the_same(found: Answer, expected: SlowAnswer, names: list[str]) -> None:
    """Candidates, features, moments and followers."""
    assert len(set(found.rows)) == len(found.rows)
    assert set(found.rows) == expected.features.keys()
    for row, values in zip(found.rows, found.features, strict=True):
        mine = dict(zip(names, values, strict=True))
        assert mine == pytest.approx(expected.features[row], rel=1e-4, abs=1e-5)
    assert found.moment == pytest.approx(expected.moment, rel=1e-6)
    for mine, theirs in ((found.own, expected.own), (found.world, expected.world)):
        assert len(set(mine)) == len(mine)
        assert set(mine) == theirs
    assert found.followers == expected.followers


def held_to_slow(events: list[Event], size: int, **changed) -> None:
    player = Player(few(**changed), size)
    slow = Slow(player.settings, player.store.index.rotation)
    names = column_names(player.settings.popularity_half_lives)
    found, expected = player.play(events), slow.play(events)
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        is_the_same(mine, theirs, names)


@settings(max_examples=25)
@given(seed=seeds, clicks=st.integers(1, 120), size=st.sampled_from([1, 7, 64]), exclude_seen=st.booleans())
def test_every_answer_is_that_of_a_loop_over_single_clicks(seed, clicks, size, exclude_seen):
    held_to_slow(stream(seed, clicks), size, exclude_seen=exclude_seen)
