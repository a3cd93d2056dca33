"""The decorators of compiled loops."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from online.facts.jit import inlined, kernel, summing


@inlined
def half(x):
    return x / 2


@kernel
def halve(values):
    for i in range(len(values)):
        values[i] = half(values[i])


@summing
def add_up(values):
    total = 0.0
    for i in range(len(values)):
        total += values[i]
    return total


def test_loops_do_what_they_say():
    values = np.arange(10.0)
    halve(values)
    assert values.tolist() == [i / 2 for i in range(10)]
    assert add_up(values) == pytest.approx(22.5)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_sums_in_any_order_keep_nan_and_infinity(odd):
    values = np.ones(100)
    values[41] = odd
    assert str(add_up(values)) == str(odd)


def test_code_that_cannot_be_kept_on_disk_is_compiled_all_the_same():
    names = {}
    exec("def double(x):\n    return 2 * x", names)  # in no file, so it has no folder
    assert kernel(names["double"])(21) == 42


def test_without_compiler_functions_are_the_plain_python():
    code = "from online.facts.jit import *; f = lambda: 0; assert f is kernel(f) is summing(f) is inlined(f)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, check=True)
