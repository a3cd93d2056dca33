"""What has changed between two arrays brings the new one back, and is about as large as the change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from online.learner import delta as delta_module
from online.learner.delta import Delta, DeltaError, delta, patched

TYPES = [np.bool_, np.uint8, np.float16, np.int32, np.float32, np.uint64, np.float64]


def back(before, array):
    changes = delta(before, array)
    again = patched(before, changes, array.dtype, array.shape)
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())
    return changes


@pytest.mark.parametrize("dtype", TYPES)
@given(data=st.data())
def test_any_two_arrays_come_back_exactly(dtype, data):
    of = st.integers(0, 3).map(lambda number: np.dtype(dtype).type(number))  # few values, so that much is alike
    one, other = (data.draw(arrays(dtype, st.integers(0, 60), elements=of)) for _ in range(2))
    back(one, other)
    spliced = np.concatenate([one[10:], other[:7], one[:20], one[:20]])
    back(one, spliced)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_the_change_is_as_large_as_the_rows_that_changed(dtype):
    random = np.random.default_rng(0)
    before = random.integers(1, 2**31, (5_000, 16)).astype(dtype)
    array = before.copy()
    array[[3, 700, 4_999]] = -array[[3, 700, 4_999]]
    changes = back(before, array)
    assert changes.new.size == 3 * 16
    assert len(changes.runs) <= 4
    assert len(back(before, before).new) == 0
    assert len(back(before, before).runs) == 1


def test_rows_that_move_or_grow_or_go_are_no_change():
    random = np.random.default_rng(1)
    rows = [random.integers(0, 2**31, 30).astype(np.int32) for _ in range(3_000)]
    before = np.concatenate(rows)
    moved = [*rows[:50], *rows[51:], rows[50]]  # the user clicked
    moved[1_000] = np.append(moved[1_000], np.int32(7))  # an item has one more neighbour
    moved[2_000] = moved[2_000][1:]
    assert back(before, np.concatenate(moved)).new.size < 2_500
    shifted = np.append(before[3_000:], random.integers(0, 2**31, 3_000).astype(np.int32))  # a ring of moments
    assert back(before, shifted).new.size < 3_100


def test_grown_and_shrunk_arrays_are_compared_with_what_was_there():
    before = np.arange(10_000, dtype=np.float64)
    assert back(before, np.append(before, [1.0, 2.0])).new.size <= 2
    assert back(before, before[:5_000]).new.size == 0
    back(before, before[:0])
    back(before[:0], before)


def test_nan_and_signed_zeros_are_compared_bit_for_bit():
    before = np.array([np.nan, 0.0, 1.0] * 10)
    assert back(before, before).new.size == 0
    back(before, -before)


def test_a_delta_of_another_array_is_refused():
    before, array = np.arange(100), np.arange(1, 101)
    runs, new = delta(before, array)
    for wrong in (
        Delta(runs, new[:-1]),
        Delta(runs + 1, new),
        Delta(-runs, new),
        Delta(runs[:, :2], new),
        Delta(runs.copy(), new.astype(np.int32)),
    ):
        with pytest.raises(DeltaError, match="of another array"):
            patched(before, wrong, array.dtype, array.shape)
    with pytest.raises(DeltaError):
        patched(before[:50], Delta(runs, new), array.dtype, array.shape)
    with pytest.raises(DeltaError):
        patched(before, Delta(runs, new), array.dtype, (99,))


def test_plain_python_finds_the_same_runs():
    """numba's form against the code that it was made from."""
    random = np.random.default_rng(2)
    before = random.integers(0, 9, 2_000).astype(np.int32)
    array = np.concatenate([before[500:], before[:300], random.integers(0, 9, 50).astype(np.int32)])
    compiled = delta_module._runs(before, array, 6)
    plain = getattr(delta_module._runs, "py_func", delta_module._runs)
    assert np.array_equal(plain(before, array, 6), compiled)
