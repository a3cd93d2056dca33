"""What a size takes is said by a formula (benchmarks/scale.py, docs/scale.md), which is held to real arrays here."""

from pathlib import Path

import pytest
import torch

from benchmarks.checkpoint import filled
from benchmarks.scale import (
    PLACES_PER_PAIR,
    array_bytes,
    checkpoint_bytes,
    each_line,
    formula,
    memory_bytes,
    size_lines,
    size_of,
)
from online.config.settings import Settings

SIZES = [(1_000, 300), (4_000, 300), (1_000, 3_000), (9_000, 5_000)]
SHAPES = [{}, {"width": 16, "history_max": 40, "neighbours_held": 32, "popularity_half_lives": (10, 20, 100)}]


def taken(settings, items, users):
    """Bytes of all arrays that a learner holds, of those in its checkpoint, and what the formula says of both."""
    settings = settings.model_copy(update={"items_held": items, "users_held": users})
    learner = filled(settings, items, users)
    learner.weights.reset_rows(torch.tensor([0]))  # the optimizers' sums grow at their next step: this is one
    saved = sum(array.nbytes for array in learner.to_state()[0].values())
    terms = formula(settings, size_of(learner))
    return (array_bytes(learner), memory_bytes(terms)), (saved, checkpoint_bytes(terms))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula_predicts_memory_and_checkpoint_of_other_sizes(small, shape):
    first, *others = [taken(small(**shape), *size) for size in SIZES]
    for other in others:
        for (bytes_then, said_then), (bytes_now, said_now) in zip(first, other, strict=True):
            assert said_now > 1.1 * said_then
            assert bytes_now - bytes_then == pytest.approx(said_now - said_then, rel=0.01)


def test_the_formula_predicts_what_more_moments_take(small):
    (held, said), (saved, of_checkpoint) = taken(small(moments_held=500), 1_000, 300)
    (more, said_of_more), (more_saved, of_more) = taken(small(moments_held=20_000), 1_000, 300)
    assert more - held == pytest.approx(said_of_more - said, rel=0.01)
    assert more_saved - saved == pytest.approx(of_more - of_checkpoint, rel=0.02)


def test_places_for_pairs_are_as_many_as_the_formula_takes_them_to_be(small):
    settings = small().model_copy(update={"items_held": 20_000, "neighbours_held": 128, "successors_held": 64})
    size = size_of(filled(settings, 20_000, 300))
    assert size.places / size.pairs == pytest.approx(PLACES_PER_PAIR, rel=0.03)


def test_the_document_has_the_figures_of_the_formula():
    page = (Path(__file__).resolve().parents[2] / "docs/scale.md").read_text()
    assert [line for line in [*each_line(Settings()), *size_lines()] if line not in page] == []
