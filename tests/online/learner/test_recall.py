"""Recall's compiled loops against RecallHeads, cosines and autograd.

Letters: `N` queries, `P` hits, `C` candidates of all queries, `M` candidates kept, `S` width of states, `V` rows.
"""

import math
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from model.items import ItemTable
from model.recall import AGES, RecallHeads
from online.learner.facts.features import OWN_HEADS, PARTS
from online.learner.facts.moments import DAY_S, GAP_SCALE, WEEK_S, Hits, Keys
from online.learner.recall import AGE_LIMITS, BLOCK, soft_counts, with_gradients

START = 1_730_600_000.0


class Problem(NamedTuple):
    heads: RecallHeads
    table: ItemTable
    query: Keys
    states: Tensor | None
    log: Keys
    log_states: Tensor
    hits: Hits
    candidates: int

    def count(self):
        return soft_counts(self.heads, self.table.vectors, *self[2:])

    def attach(self, counts, kept):
        return with_gradients(self.heads, self.table.vectors, *self[2:7], counts, kept)

    def learned(self):
        """What gradients reach, by name."""
        found = {"gains": self.heads.gains, "recency": self.heads.recency, "vectors": self.table.vectors}
        return found if self.states is None else found | {"states": self.states}


def problem(seed, *, queries=5, hits_max=40, rows=12, held=60, candidates=8, states=7, nothing=0.2):
    """A random one; few rows, so that many are the same, or 0. `nothing`: the share of hits that point at nothing."""
    random = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)

    def keys(count):
        return Keys(
            last=random.integers(0, rows, count).astype(np.int32),
            before=random.integers(0, rows, count).astype(np.int32),
            times=START + random.random(count) * 10.0 ** random.integers(0, 8, count),
            gaps=(random.random(count) * 16).astype(np.float32),
        )

    starts = np.concatenate([[0], random.integers(0, hits_max + 1, queries).cumsum()]).astype(np.int64)
    P, C = int(starts[-1]), queries * candidates
    of_query = np.repeat(np.arange(queries), np.diff(starts)) * candidates
    targets = of_query + random.integers(0, candidates, P)
    heads = RecallHeads(OWN_HEADS)
    heads.gains.data += torch.rand(heads.gains.shape, generator=generator)
    heads.recency.data += torch.randn(heads.recency.shape, generator=generator)
    now, then = None, torch.zeros(held, 0, dtype=torch.float16)
    if states:
        now = (3 * torch.randn(queries, states, generator=generator)).requires_grad_()
        then = F.normalize(torch.randn(held, states, generator=generator), dim=-1).half()
        then[::5] = 0  # of moments before which nothing stood
    hits = Hits(starts, random.integers(0, held, P), np.where(random.random(P) < nothing, -1, targets))
    return Problem(heads, ItemTable(rows, 32, seed=seed), keys(queries), now, keys(held), then, hits, C)


def reference(case: Problem) -> Tensor:
    """What RecallHeads and cosines say, (C, H)."""
    heads, table, query, states, log, log_states, hits, C = case
    user_hashes = np.repeat(np.arange(len(query.last)), np.diff(hits.starts))
    found = Keys(*(part[hits.moments] for part in log))
    both = None if states is None else (states, log_states[torch.from_numpy(hits.moments)])
    alike = cosines(table, tensors(query), torch.from_numpy(user_hashes), tensors(found), both)
    ages = torch.from_numpy(query.times[user_hashes] - found.times)
    return heads(alike, ages, torch.from_numpy(np.where(hits.candidates < 0, C, hits.candidates)), C)


class Moments(NamedTuple):
    """Keys as tensors, all of the same shape."""

    last: Tensor  # int64 rows
    before: Tensor  # int64 rows
    times: Tensor  # float64 seconds since 1970
    gaps: Tensor  # float32, log(1 + seconds since the click before)


def cosines(
    vectors: ItemTable, query: Moments, user_hashes: Tensor, found: Moments, states: tuple[Tensor, Tensor] | None
) -> Tensor:
    """How like the present of their queries (N,) moments (P,) were, part by part: (P, len(PARTS)) float32.

    owners (P,) says which query each was found for; states: those of the queries (N, S), and of the moments (P, S).
    Hours and weekdays are angles (UTC); a gap's part falls linearly with the log of the ratio, from 1 to −1. Without
    states their part is 1, which says nothing.
    """
    last = (vectors(query.last)[user_hashes] * vectors(found.last)).sum(-1)
    before = (vectors(query.before)[user_hashes] * vectors(found.before)).sum(-1)
    apart = query.times[user_hashes] - found.times
    hour, weekday = (torch.cos(apart.remainder(p) * (2 * math.pi / p)).float() for p in (DAY_S, WEEK_S))
    gap = 1 - ((query.gaps[user_hashes] - found.gaps).abs() / GAP_SCALE).clamp(max=2)
    state = torch.ones_like(gap)
    if states is not None:
        state = (F.normalize(states[0], dim=-1)[user_hashes] * states[1].float()).sum(-1)
    return torch.stack([last, before, hour, weekday, gap, state], -1)


def tensors(keys: Keys) -> Moments:
    last, before, times, gaps = (torch.from_numpy(part) for part in keys)
    return Moments(last.long(), before.long(), times, gaps)


def some_of(case: Problem, seed):
    """Some candidates in any order, (M,), and the gradient of their counts, (M, H)."""
    random = np.random.default_rng(seed)
    kept = random.permutation(case.candidates)[: random.integers(0, case.candidates + 1)]
    return kept, torch.from_numpy(random.standard_normal((len(kept), len(case.heads.gains))).astype(np.float32))


def gradients(case: Problem, counts: Tensor, slopes: Tensor):
    """Of everything that is learned, by name; all of them dense."""
    learned = case.learned()
    found = torch.autograd.grad(counts, list(learned.values()), slopes)
    return {name: g.to_dense() if g.is_sparse else g for name, g in zip(learned, found, strict=True)}


def check(case: Problem, seed=0):
    """Counts and gradients are the reference's, to a few roundings."""
    expected = reference(case)
    counts = case.count()
    assert counts.dtype == np.float32
    assert counts.shape == (case.candidates, len(case.heads.gains))
    np.testing.assert_allclose(counts, expected.detach().numpy(), rtol=1e-5, atol=1e-5)

    kept, slopes = some_of(case, seed)
    attached = case.attach(counts, kept)
    np.testing.assert_array_equal(attached.detach().numpy(), counts[kept])
    theirs = gradients(case, expected[torch.from_numpy(kept)], slopes)
    for name, gradient in gradients(case, attached, slopes).items():
        scale = 1 + float(theirs[name].norm())
        np.testing.assert_allclose(gradient / scale, theirs[name] / scale, rtol=1e-5, atol=1e-5, err_msg=name)


# --- The same as the reference -------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10_000),
    sizes=st.fixed_dictionaries(
        {
            "queries": st.integers(0, 6),
            "hits_max": st.integers(0, 40),
            "rows": st.integers(1, 30),
            "states": st.sampled_from([0, 1, 7, 32]),
            "nothing": st.sampled_from([0.0, 0.3, 1.0]),
        }
    ),
)
@settings(deadline=None)
def test_counts_and_gradients_are_those_of_torch(seed, sizes):
    check(problem(seed, **sizes), seed)


@pytest.mark.parametrize("states", [0, 32])
def test_a_query_may_have_more_hits_than_fit_a_block(states):
    case = problem(1, queries=3, hits_max=4 * BLOCK, held=2_000, rows=300, candidates=20, states=states)
    assert np.diff(case.hits.starts).max() > BLOCK
    check(case)


def test_hits_of_row_0_alone_are_counted_and_give_it_no_gradient():
    case = problem(2, rows=1)
    check(case)
    counts = case.count()
    assert counts.any()
    case.attach(counts, np.arange(case.candidates)).sum().backward()
    assert case.table.vectors.grad.coalesce().indices().numel() == 0


def test_without_hits_or_queries_everything_is_0():
    for case in (problem(3, hits_max=0), problem(3, queries=0), problem(3, nothing=1.0)):
        counts = case.count()
        assert not counts.any()
        for gradient in gradients(
            case, case.attach(counts, np.arange(case.candidates)), torch.ones(counts.shape)
        ).values():
            assert not gradient.any()


def test_the_vectors_gradient_names_each_row_once_and_only_rows_that_were_compared():
    case = problem(4, rows=500)
    counts = case.count()
    case.attach(counts, np.arange(case.candidates)).sum().backward()
    gradient = case.table.vectors.grad
    assert gradient.is_sparse
    rows = gradient._indices()[0].tolist()
    compared = [
        part for keys in (case.query, Keys(*(part[case.hits.moments] for part in case.log))) for part in keys[:2]
    ]
    assert len(rows) == len(set(rows)) > 50
    assert set(rows) <= set(np.concatenate(compared).tolist()) - {0}


def test_gradients_of_two_memories_add_up_as_those_of_torch():
    one, two = problem(5), problem(6)
    two = two._replace(table=one.table)
    kept = np.arange(one.candidates)
    (one.attach(one.count(), kept).sum() + two.attach(two.count(), kept).sum()).backward()
    fast = one.table.vectors.grad.to_dense().clone()
    one.table.vectors.grad = None
    (reference(one).sum() + reference(two).sum()).backward()
    torch.testing.assert_close(fast, one.table.vectors.grad.to_dense(), rtol=1e-4, atol=1e-4)


def test_weights_that_are_frozen_and_states_without_gradients_are_let_alone():
    case = problem(7)
    case.states.requires_grad_(False)
    case.heads.requires_grad_(False)
    case.attach(case.count(), np.arange(case.candidates)).sum().backward()
    assert case.heads.gains.grad is None
    assert case.states.grad is None
    assert case.table.vectors.grad is not None


@pytest.mark.parametrize("length", [0.0, 1e-14])
def test_states_too_short_for_a_direction_have_the_gradient_of_normalize(length):
    case = problem(8, states=4)
    case.states.data *= length
    check(case)


# --- Edges of the numbers ------------------------------------------------------------------------------------------


def one_hit(age_s=0.0, **others):
    """One query, one candidate, and one moment that is alike in everything but its age."""
    case = problem(9, queries=1, candidates=1, held=1, states=0, **others)
    query = Keys(
        *(np.array([x], t) for x, t in ((1, np.int32), (2, np.int32), (START + age_s, float), (3, np.float32)))
    )
    log = query._replace(times=np.array([START]))
    return case._replace(query=query, log=log, hits=Hits(np.array([0, 1]), np.array([0]), np.array([0])))


@pytest.mark.parametrize(
    "exponent", [-1e30, -200.0, -88.0, -60.0, -1.0, 0.0, 1.0, 60.0, 88.0, 90.0, 1e30, -math.inf, math.inf]
)
def test_exponents_of_any_size_give_what_exp_gives(exponent):
    case = one_hit()
    case.heads.recency.data[:] = exponent
    np.testing.assert_allclose(case.count(), reference(case).detach(), rtol=1e-5, atol=1e-37)


def test_ages_fall_into_the_buckets_of_log2():
    ages = np.concatenate([[-5.0, 0.0, 0.4], *(2.0**k + np.arange(-3, 3) * 0.5 for k in range(1, 32)), [1e13]])
    for age in ages:
        case = one_hit(age)
        with torch.no_grad():
            case.heads.gains[:] = 0
            case.heads.recency[:] = torch.arange(AGES) / 10
        np.testing.assert_allclose(case.count(), reference(case).detach(), rtol=1e-5)


def test_logarithms_that_are_rounded_up_are_so_for_torch_too():
    below = np.nextafter(AGE_LIMITS, np.float32(0))
    whole = torch.arange(1, AGES + 1)
    assert (torch.log2(torch.from_numpy(AGE_LIMITS)).long() == whole).all()
    assert (torch.log2(torch.from_numpy(below)).long() == whole - 1).all()


@pytest.mark.parametrize(
    ("place", "odd"),
    [(place, math.nan) for place in ("gains", "recency", "vectors", "states", "log_states", "times")]
    + [(place, math.inf) for place in ("recency", "vectors", "states", "log_states", "times")],
)
def test_what_is_not_finite_shows_in_the_counts(place, odd):
    case = problem(10, rows=4, nothing=0.0, states=4)
    if place == "gains":
        case.heads.gains.data[2, PARTS.index("hour")] = odd
    elif place == "recency":
        case.heads.recency.data[:] = odd
    elif place == "vectors":
        case.table.vectors.data[2, 31] = odd
    elif place == "states":
        case.states.data[:, 1] = odd
    elif place == "log_states":
        case.log_states[:, 3] = odd
    else:
        case.query.times[:] = odd
    counts = case.count()
    assert not np.isfinite(counts).all()
    kept = np.arange(case.candidates)
    found = gradients(case, case.attach(counts, kept), torch.ones(counts.shape))
    assert not all(bool(gradient.isfinite().all()) for gradient in found.values())


@pytest.mark.parametrize("place", ["vectors", "states"])
def test_nan_shows_even_where_it_has_no_gain_yet(place):
    case = problem(11, rows=2, nothing=0.0, states=4)
    with torch.no_grad():
        case.heads.gains[:] = 0
        case.learned()[place][1] = math.nan
    assert np.isnan(case.count()).any()


def test_every_number_of_a_moment_s_state_is_read_as_float16_has_it():
    halves = torch.arange(65_536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    halves = halves[halves.isfinite()]
    for part in halves.split(1_000):
        case = problem(12, queries=1, held=len(part), states=1, candidates=len(part))
        at = np.arange(len(part))
        case = case._replace(log_states=part[:, None], hits=Hits(np.array([0, len(part)]), at, at))
        with torch.no_grad():
            case.heads.gains[:] = torch.tensor([0, 0, 0, 0, 0, 1e-4])
            case.heads.recency[:] = 0
        np.testing.assert_allclose(case.count(), reference(case).detach(), rtol=1e-6)


# --- Without the compiler ------------------------------------------------------------------------------------------


def test_without_compiler_the_plain_python_gives_the_same():
    code = f"""
import runpy
test = runpy.run_path({__file__!r})
for states in (0, 5):
    test["check"](test["problem"](13, queries=3, hits_max=10, states=states))
from online.learner import recall
import types
assert isinstance(recall._add_up, types.FunctionType)
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, check=True)
