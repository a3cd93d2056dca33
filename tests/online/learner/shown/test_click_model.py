"""The click model finds the position bias of a made-up site, and how attractive items are wherever they stood."""

import numpy as np
import pytest

from online.evaluation.shown_world import ShownWorld
from online.learner.shown.click_model import STARTS, ClickModel, bands_of

POSITIONS = np.arange(1, 11)


def truth_by_band(examination):
    bands = bands_of(POSITIONS)
    return np.array([examination[bands == band].mean() for band in np.unique(bands)])


def test_bands_begin_where_they_say():
    assert bands_of(np.array([*STARTS, 8, 10, 1_000])).tolist() == [*range(12), 6, 7, 11]


@pytest.mark.parametrize("steepness", [0.0, 0.5, 1.0])
def test_examination_is_found_though_better_items_stand_higher(steepness):
    random, model, V = np.random.default_rng(1), ClickModel(), 200
    model.grow(V + 1)
    examination, attraction = POSITIONS**-steepness, np.append(0, random.beta(1.2, 6, V))
    for _ in range(200):
        lists = np.array([1 + random.choice(V, 10, replace=False) for _ in range(50)])
        order = np.argsort(-(3 * attraction[lists] + random.random(lists.shape)), 1)
        lists = np.take_along_axis(lists, order, 1)
        clicked = random.random(lists.shape) < examination * attraction[lists]
        positions = np.tile(POSITIONS, (50, 1)).ravel()
        model.add(lists.ravel(), bands_of(positions), np.zeros(500, np.bool_), clicked.ravel())
    np.testing.assert_allclose(model.examination[:8], truth_by_band(examination), atol=0.08)
    rate = model.clicks[1:] / (model.shown @ model.examination)[1:]
    assert np.corrcoef(rate, attraction[1:])[0, 1] > 0.95


def test_drawn_slots_tell_examination_where_the_others_mislead():
    """Each user is shown first what they like, so that clicks at the top are due to the user too."""
    world = ShownWorld(users=60, items=120, drawn_share=0.3, seed=3)

    def policy(user, at):  # noqa: ARG001
        return np.argsort(-world.attraction[user], kind="stable")[:10]

    def learned(model, *, told):
        model.grow(world.items + 1)
        for visit in world.visits(10_000, policy):
            rows = np.array([1 + int(item.item_id[1:]) for item in visit.shown.items])
            clicks = {1 + int(click.item_id[1:]) for click in visit.clicks}
            drawn = np.array([item.explored and told for item in visit.shown.items])
            model.add(rows, bands_of(POSITIONS), drawn, np.array([row in clicks for row in rows.tolist()]))
        return model.examination[:8]

    truth = truth_by_band(world.examination)
    from_drawn = np.abs(learned(ClickModel(), told=True) - truth).mean()
    from_all = np.abs(learned(ClickModel(), told=False) - truth).mean()
    assert from_drawn < 0.1
    assert from_drawn < from_all


def test_items_that_lose_their_rows_are_forgotten_and_a_state_comes_back(same):
    model, random = ClickModel(), np.random.default_rng(2)
    model.grow(20)
    rows = random.integers(1, 20, 3_000)
    model.add(rows, random.integers(0, 12, 3_000), rows % 2 == 0, random.random(3_000) < 0.1)
    gone = np.zeros(20, np.bool_)
    gone[[3, 4]] = True
    model.forget_rows(gone)
    assert not model.shown[gone].any()
    assert not model.drawn[gone].any()
    assert not model.clicks[gone].any()
    again = ClickModel()
    again.load_state(model.to_state())
    assert same(model.to_state(), again.to_state())
