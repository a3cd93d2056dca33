"""Plots are saved, name every line beside its end, and no name covers another."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from online.config.settings import Settings
from online.evaluation.backtest import METHODS, Outcome, backtest
from online.evaluation.plots import by_history, course, rolling_means, save_plots, spread
from online.evaluation.town import Town


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    small = Settings(layers=("local",), width=8, history_max=32, online_history=8, device="cpu")
    return backtest(list(Town(users=20, items=64).clicks(400)), small)


def test_two_pictures_are_saved_in_a_folder_that_is_made(outcome: Outcome, tmp_path: Path) -> None:
    paths = save_plots(tmp_path / "new" / "plots", outcome, "a town")
    assert [path.name for path in paths] == ["course.png", "history.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width >= 1_000
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > len(METHODS)


@pytest.mark.parametrize("picture", [course, by_history])
def test_every_line_is_named_in_its_colour(outcome: Outcome, picture: type) -> None:
    (axes,) = picture(outcome, "a town").axes
    named = {
        text.get_text().split()[0]: text.get_color() for text in axes.texts if text.get_text().split()[0] in METHODS
    }
    assert set(named) == set(METHODS)
    assert len(set(named.values())) == len(METHODS)
    assert set(named.values()) <= {line.get_color() for line in axes.lines}


def test_rolling_means() -> None:
    np.testing.assert_allclose(rolling_means(np.array([1.0, 0.0, 2.0, 4.0]), 2), [0.5, 1.0, 3.0])


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.08))
def test_names_keep_their_order_and_their_distance_inside_the_axes(places: list[float], gap: float) -> None:
    found = spread(sorted(places), gap)
    assert len(found) == len(places)
    assert all(after - before >= gap * (1 - 1e-9) for before, after in pairwise(found))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in found)


def test_names_with_room_stay_where_their_lines_end() -> None:
    assert spread([0.1, 0.5, 0.9], 0.04) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.04) == pytest.approx([0.48, 0.52])
