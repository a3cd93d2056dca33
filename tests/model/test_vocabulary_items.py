"""The item table, whose rows the vocabulary hands out."""

import torch

from model.items import ItemTable, unit_vectors
from model.vocabulary import grown

torch.set_num_threads(1)


def test_rows_start_as_unit_vectors_that_are_nearly_orthogonal_and_row_0_as_zero() -> None:
    vectors = unit_vectors(torch.arange(2000), 64, seed=3)
    torch.testing.assert_close(vectors[1:].norm(dim=1), torch.ones(1999))
    assert not vectors[0].any()
    cosines = vectors[1:] @ vectors[1:].T
    cosines.fill_diagonal_(0)
    assert abs(float(cosines.mean())) < 1e-3
    assert abs(float(cosines.std()) - 1 / 8) < 0.01
    assert float(cosines.abs().max()) < 0.75


def test_a_row_is_a_function_of_the_seed_and_the_row_alone() -> None:
    assert torch.equal(unit_vectors(torch.tensor([7, 3]), 8, seed=1), unit_vectors(torch.arange(9), 8, seed=1)[[7, 3]])
    assert not torch.equal(unit_vectors(torch.arange(9), 8, seed=1)[1:], unit_vectors(torch.arange(9), 8, seed=2)[1:])


def test_growing_keeps_values_and_the_result_is_that_of_a_table_born_large() -> None:
    small, large = ItemTable(4, 8, seed=5), ItemTable(16, 8, seed=5)
    parameter = small.vectors
    small.vectors.data[2] = 1
    assert small.grow(16)
    assert not small.grow(9)
    assert len(small) == 16
    assert small.vectors is parameter
    assert small.vectors.data[2].eq(1).all()
    small.reset(torch.tensor([2, 99]))  # 99 was handed out and taken away before the table had it
    assert torch.equal(small.vectors, large.vectors)
    assert small(torch.tensor([[0, 15]])).shape == (1, 2, 8)


def test_growing_one_row_at_a_time_allocates_once_per_doubling() -> None:
    table = ItemTable(2, 4)
    assert sum(table.grow(grown(needed, len(table))) for needed in range(1, 1025)) == 9
    assert len(table) == 1024


def test_a_table_takes_the_size_of_the_state_it_loads() -> None:
    saved = ItemTable(32, 4, seed=1)
    saved.vectors.data += 1
    for rows in (2, 64):
        table = ItemTable(rows, 4, seed=2)
        table.load_state_dict(saved.state_dict())
        assert torch.equal(table.vectors, saved.vectors)


def test_only_used_rows_have_a_gradient_and_row_0_never() -> None:
    table = ItemTable(1000, 4)
    rows = torch.tensor([5, 0, 7])
    (table(rows).sum() + table.bias(rows).sum()).backward()
    for gradient in (table.vectors.grad, table.biases.grad):
        assert gradient.is_sparse
        assert set(gradient.coalesce().indices()[0].tolist()) <= {5, 7}


def test_first_vectors_are_the_same_made_in_pieces(monkeypatch):
    whole = unit_vectors(torch.arange(50), 8, seed=3)
    monkeypatch.setattr("model.items.PIECE", 7)
    assert torch.equal(unit_vectors(torch.arange(50), 8, seed=3), whole)
