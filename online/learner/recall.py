"""Recall's soft counts in compiled loops, with their gradients: moments weighted by RecallHeads over cosines.

Hits are processed query by query, at most BLOCK at a time, in passes: each pass is a short loop that does one thing to
all hits of the block, so that the compiler vectorises it.

Letters: `N` queries, `P` hits (moments found for all of them, flat), `C` candidates of all queries, `M` candidates
kept, `H` heads, `F` parts of a key, `A` buckets of age, `V` rows of vectors, `D` their width, `S` width of states.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.recall import AGES, RecallHeads
from online.learner.facts.features import PARTS
from online.learner.facts.jit import inlined, kernel, summing
from online.learner.facts.moments import DAY_S, GAP_SCALE, WEEK_S, Hits, Keys

BLOCK = 256  # hits processed together, so that their values stay in the cache
LAST, BEFORE, HOUR, WEEKDAY, GAP, STATE = range(len(PARTS))

# float32, so that a product with one is no float64
ZERO, QUARTER, HALF, ONE, TWO = (np.float32(x) for x in (0, 0.25, 0.5, 1, 2))
TWO_PI = np.float32(2 * math.pi)
S3, S5, S7, S9, S11 = (np.float32((-1) ** (k // 2) / math.factorial(k)) for k in (3, 5, 7, 9, 11))
E2, E3, E4, E5, E6 = (np.float32(1 / math.factorial(k)) for k in (2, 3, 4, 5, 6))
LOWEST = np.float32(-87)  # smaller exponents count as this one: e^-87 is 2e-38, nearly the smallest float32
HIGHEST = np.float32(88)  # from here on the power of 2 stays, and the rest grows to infinity
PER_LOG_2 = np.float32(1 / math.log(2))
LOG_2_COARSE = np.float32(355 / 512)  # few bits, so that a product with a whole number is exact
LOG_2_FINE = np.float32(math.log(2) - 355 / 512)
ROUNDING, ROUNDING_WHOLE = np.float32(200.5), 200  # a float becomes an int by cutting, so it has to be positive
PER_GAP_SCALE = np.float32(1 / GAP_SCALE)
LENGTH_MIN = np.float32(1e-12)  # F.normalize's
EXPONENTS_APART = np.float32(2.0**112)  # between float16's and float32's, read off the same bits
HASH_FACTOR, HASH_SHIFT = 0x9E3779B1, 15  # Knuth's multiplicative hashing: rows of a run are scattered

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Bits: TypeAlias = NDArray[np.int32]  # of float32
Gradients: TypeAlias = tuple[Tensor | None, ...]


def _age_limits() -> Floats:
    """From which float32 in [2^k, 2^(k + 1)) on the float32 of its logarithm is k + 1: (A,)."""
    limits = np.float32(2) ** np.arange(1, AGES + 1, dtype=np.float32)
    while (
        lower := np.log2(np.nextafter(limits, ZERO).astype(np.float64)).astype(np.float32) >= np.arange(1, AGES + 1)
    ).any():
        limits = np.where(lower, np.nextafter(limits, ZERO), limits)
    return limits


AGE_LIMITS = _age_limits()


def soft_counts(  # noqa: PLR0917 - what it works on, and no options
    heads: RecallHeads,
    vectors: Tensor,
    query: Keys,
    states: Tensor | None,
    log: Keys,
    log_states: Tensor,
    hits: Hits,
    candidates: int,
) -> Floats:
    """Counts the moments that point at each candidate, each weighted by its similarity to the query.

    Args:
        heads: how the parts of a key are weighted.
        vectors: of items, (V, D) float32.
        query: keys of the queries, (N,) each.
        states: the Reformer's states of the queries, (N, S); None: that part counts as 0.
        log: keys of all moments that are held, (held,) each.
        log_states: states of these, (held, S) float16, of unit length or 0.
        hits: the moments found for the queries.
        candidates: C, the number of candidates of all queries.

    Returns:
        log(1 + soft count), (C, H), without gradients. NaN in weights gives NaN in all counts that use them.
    """
    inputs = _Inputs.of(heads, vectors, query, states, log, log_states, hits)
    counts = np.zeros((candidates, len(inputs.gains)), np.float32)
    _add_up(counts, inputs, _Block.empty(inputs))
    torch.from_numpy(counts).log1p_()
    return counts


def with_gradients(  # noqa: PLR0917
    heads: RecallHeads,
    vectors: nn.Parameter,
    query: Keys,
    states: Tensor | None,
    log: Keys,
    log_states: Tensor,
    hits: Hits,
    counts: Floats,
    kept: NDArray[np.int64],
) -> Tensor:
    """Returns soft counts of the kept candidates, with gradients to the heads, the vectors and the queries' states.

    The vectors' gradient is sparse, for the rows that were compared; row 0 (padding, unknown) gets none.

    Args:
        heads, vectors, query, states, log, log_states, hits: the arguments of `soft_counts`.
        counts: (C, H), its result. Between that call and the backward pass, neither the weights nor the moments that
            were found may change.
        kept: (M,) different candidates.

    Returns:
        counts[kept], (M, H), where the vectors are.
    """
    # A Function's result has gradients only if a tensor among its own arguments has.
    return _SoftCounts.apply(  # type: ignore[no-any-return, no-untyped-call]
        heads.gains, heads.recency, vectors, states, (heads, query, log, log_states, hits, counts, kept)
    )


class _SoftCounts(torch.autograd.Function):
    """Picks the counts of the kept candidates; the backward pass recomputes the similarities of their hits."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        gains, recency, vectors, states, rest = arguments
        *_, counts, kept = ctx.rest = rest
        ctx.save_for_backward(gains, recency, vectors, states)
        return torch.from_numpy(counts[kept]).to(vectors.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        heads, query, log, log_states, hits, counts, kept = ctx.rest
        gains, recency, vectors, states = ctx.saved_tensors  # raises if any of them has moved since

        # 1. Hits point at rows of `kept`. The last place of the map is where −1 leads.
        rows = np.full(len(counts) + 1, -1, np.int64)
        rows[kept] = np.arange(len(kept))
        kept_hits = Hits(hits.starts, hits.moments, rows[hits.candidates])
        inputs = _Inputs.of(heads, vectors, query, states, log, log_states, kept_hits)
        slopes = _array(gradient.float()) * np.exp(-counts[kept])  # d log(1 + count) = e^−out · d count

        # 2. The loops.
        touched_max = 2 * (int((kept_hits.candidates >= 0).sum()) + len(query.last))
        table = _RowTable.empty(touched_max, inputs.vectors.shape[1])
        totals = _Totals(np.zeros_like(inputs.gains), np.zeros_like(inputs.recency), np.zeros_like(inputs.states))
        _differentiate(totals, table, slopes, inputs, _Block.empty(inputs))
        touched = int(table.touched[0])

        # 3. As torch wants them, where the weights are.
        of_vectors = torch.sparse_coo_tensor(
            torch.from_numpy(table.rows[None, :touched]),
            torch.from_numpy(table.values[:touched]),
            tuple(vectors.shape),
            device=vectors.device,
            check_invariants=False,
        )
        of_states = None if states is None else torch.from_numpy(totals.states).to(states)
        return (
            torch.from_numpy(totals.gains).to(gains),
            torch.from_numpy(totals.recency).to(recency),
            of_vectors,
            of_states,
            None,
        )


# --- What the loops work on ----------------------------------------------------------------------------------------


class _Inputs(NamedTuple):
    """All that is given, as arrays. Without states, S is 0."""

    gains: Floats  # (H, F)
    recency: Floats  # (H, A)
    vectors: Floats  # (V, D)
    query: Keys
    states: Floats  # (N, S)
    log: Keys
    log_states: NDArray[np.uint16]  # (held, S), the bits of float16: numba has no such numbers
    hits: Hits

    @staticmethod
    def of(  # noqa: PLR0917
        heads: RecallHeads,
        vectors: Tensor,
        query: Keys,
        states: Tensor | None,
        log: Keys,
        log_states: Tensor,
        hits: Hits,
    ) -> "_Inputs":
        if states is None:
            now, then = np.empty((len(query.last), 0), np.float32), np.empty((len(log.last), 0), np.uint16)
        else:
            now, then = _array(states.float()), _array(log_states).view(np.uint16)
        return _Inputs(_array(heads.gains), _array(heads.recency), _array(vectors), query, now, log, then, hits)


class _Block(NamedTuple):
    """Buffers for the hits of a block, so that nothing is allocated for a hit."""

    moments: NDArray[np.int64]  # (BLOCK,), positions in the log
    targets: NDArray[np.int64]  # (BLOCK,), rows that the hits are counted in
    last: NDArray[np.int32]  # (BLOCK,), rows
    before: NDArray[np.int32]  # (BLOCK,), rows
    parts: Floats  # (F, BLOCK), cosines − 1
    weights: Floats  # (H, BLOCK)
    apart_s: Doubles  # (BLOCK,)
    ages: NDArray[np.int32]  # (BLOCK,), buckets
    floats: Floats  # (BLOCK,)
    bits: Bits  # (BLOCK,), the same memory as `floats`
    state: Floats  # (S,), the query's, of unit length
    then: Floats  # (S,), a moment's
    then_bits: Bits  # (S,), the same memory as `then`
    total: Floats  # (S,), a gradient that is being added up

    @staticmethod
    def empty(inputs: _Inputs) -> "_Block":
        S = inputs.states.shape[1]
        floats, then = np.empty(BLOCK, np.float32), np.empty(S, np.float32)
        return _Block(
            moments=np.empty(BLOCK, np.int64),
            targets=np.empty(BLOCK, np.int64),
            last=np.empty(BLOCK, np.int32),
            before=np.empty(BLOCK, np.int32),
            parts=np.empty((len(PARTS), BLOCK), np.float32),
            weights=np.empty((len(inputs.gains), BLOCK), np.float32),
            apart_s=np.empty(BLOCK),
            ages=np.empty(BLOCK, np.int32),
            floats=floats,
            bits=floats.view(np.int32),
            state=np.empty(S, np.float32),
            then=then,
            then_bits=then.view(np.int32),
            total=np.empty(S, np.float32),
        )


class _Totals(NamedTuple):
    """Gradients that are added up."""

    gains: Floats  # (H, F)
    recency: Floats  # (H, A)
    states: Floats  # (N, S)


class _RowTable(NamedTuple):
    """Gradients of the rows that were touched, in the order of the first touch; and a hash table of where they are."""

    touched: NDArray[np.int64]  # (1,), how many rows there are so far
    rows: NDArray[np.int64]  # (rows at most,)
    values: Floats  # (rows at most, D)
    buckets: NDArray[np.int64]  # (a power of 2,): positions in `rows`, −1 where there is none
    total: Floats  # (D,), a gradient that is being added up

    @staticmethod
    def empty(rows_max: int, width: int) -> "_RowTable":
        return _RowTable(
            touched=np.zeros(1, np.int64),
            rows=np.empty(rows_max, np.int64),
            values=np.empty((rows_max, width), np.float32),
            buckets=np.full(1 << (2 * rows_max).bit_length(), -1, np.int64),  # at most half of them are taken
            total=np.empty(width, np.float32),
        )


def _array(tensor: Tensor) -> NDArray[Any]:
    """Without a copy where the tensor is on the CPU and in order."""
    return np.ascontiguousarray(tensor.numpy(force=True))


# --- Counting ------------------------------------------------------------------------------------------------------


@kernel
def _add_up(counts: Floats, inputs: _Inputs, block: _Block) -> None:
    """Adds the weights of all hits to the counts (C, H) of their candidates."""
    starts = inputs.hits.starts
    for q in range(len(starts) - 1):
        at = starts[q]
        while at < starts[q + 1]:
            n, at = _gather(block, inputs.hits, at, starts[q + 1])
            _compare(block, n, inputs, q)
            _weigh(block, n, inputs)
            for i in range(n):
                for h in range(len(inputs.gains)):
                    counts[block.targets[i], h] += block.weights[h, i]


@kernel
def _gather(block: _Block, hits: Hits, at: int, stop: int) -> tuple[int, int]:
    """Fills the block with the next hits that point at something -> how many these are, and the hit after them."""
    n = 0
    while at < stop and n < BLOCK:
        block.moments[n] = hits.moments[at]
        block.targets[n] = hits.candidates[at]
        n += hits.candidates[at] >= 0  # if not, the next one takes its place
        at += 1
    return n, at


@kernel
def _compare(block: _Block, n: int, inputs: _Inputs, q: int) -> None:
    """Computes the similarity of query q to the n moments of the block, part by part, and their ages."""
    query, log = inputs.query, inputs.log
    moments, parts, apart_s = block.moments[:n], block.parts[:, :n], block.apart_s[:n]
    last, before = block.last[:n], block.before[:n]
    for i in range(n):  # a pass of its own: the log is large, and several reads of memory overlap
        last[i] = log.last[moments[i]]
        before[i] = log.before[moments[i]]
        apart_s[i] = query.times[q] - log.times[moments[i]]
        block.floats[i] = query.gaps[q] - log.gaps[moments[i]]
    _compare_gaps(parts[GAP], block.floats)
    if len(block.state):
        for i in range(n):  # states are read here to prefetch them, for the same reason
            block.bits[i] = inputs.log_states[moments[i], 0]
    _compare_rows(parts[LAST], inputs.vectors, query.last[q], last)
    _compare_rows(parts[BEFORE], inputs.vectors, query.before[q], before)
    _compare_clocks(parts[HOUR], apart_s, 1 / DAY_S)
    _compare_clocks(parts[WEEKDAY], apart_s, 1 / WEEK_S)
    _find_ages(block.ages[:n], apart_s, block.floats, block.bits)
    if len(block.state):
        _unit_state(block.state, inputs.states[q])
        _compare_states(parts[STATE], moments, block, inputs.log_states)
    else:
        parts[STATE, :] = ZERO


@summing
def _compare_rows(part: Floats, vectors: Floats, query_row: int, rows: NDArray[np.int32]) -> None:
    """Computes products of vectors, for one of the parts that are items."""
    vector = vectors[query_row]
    with_itself = _product(vector, vector)
    for i in range(len(rows)):
        part[i] = (with_itself if rows[i] == query_row else _product(vector, vectors[rows[i]])) - ONE


@summing
def _compare_states(part: Floats, moments: NDArray[np.int64], block: _Block, log_states: NDArray[np.uint16]) -> None:
    """Products of the query's state and the moments'."""
    state, then, bits = block.state, block.then, block.then_bits
    for i in range(len(moments)):
        _read_state(log_states[moments[i]], then, bits)
        part[i] = _product(state, then) - ONE


@summing
def _product(one: Floats, other: Floats) -> np.float32:
    total = ZERO
    for d in range(len(one)):
        total += one[d] * other[d]
    return total


@summing
def _unit_state(unit: Floats, state: Floats) -> None:
    """The state at unit length, as F.normalize does it."""
    scale = ONE / _length(state)
    for s in range(len(state)):
        unit[s] = state[s] * scale


@kernel
def _length(state: Floats) -> np.float32:
    """At least LENGTH_MIN; NaN where there is one."""
    length = np.sqrt(_product(state, state))
    return LENGTH_MIN if length < LENGTH_MIN else length


@inlined
def _read_state(halves: NDArray[np.uint16], floats: Floats, bits: Bits) -> None:
    """A moment's state becomes float32; `floats` and `bits` are the same memory.

    Its exponent and fraction are moved to where float32 has them; what is left is a factor of 2^112, since exponents
    are counted from 15 there and from 127 here. Infinity and NaN have all bits of the exponent set.
    """
    for s in range(len(floats)):
        half = np.int32(halves[s])
        special = np.int32(0x7F800000) if half & 0x7C00 == 0x7C00 else np.int32(0)
        bits[s] = np.int32((half & 0x8000) << 16) | np.int32((half & 0x7FFF) << 13) | special
    for s in range(len(floats)):
        floats[s] *= EXPONENTS_APART


@kernel
def _compare_gaps(part: Floats, apart: Floats) -> None:
    for i in range(len(part)):
        unlike = abs(apart[i]) * PER_GAP_SCALE
        part[i] = -(TWO if unlike > TWO else unlike)


@kernel
def _compare_clocks(part: Floats, apart_s: Doubles, per_s: float) -> None:
    """Cosines of the angles between times, for a hand that goes round `per_s` times a second.

    cos(2πx) is the sine of at most a quarter of a round, where its series (to the 11th power) is exact to 1e-7.
    """
    for i in range(len(apart_s)):
        rounds = apart_s[i] * per_s
        angle = TWO_PI * (abs(np.float32(rounds - np.floor(rounds)) - HALF) - QUARTER)
        square = angle * angle
        sine = angle * (ONE + square * (S3 + square * (S5 + square * (S7 + square * (S9 + square * S11)))))
        part[i] = sine - ONE


@kernel
def _find_ages(ages: NDArray[np.int32], apart_s: Doubles, floats: Floats, bits: Bits) -> None:
    """Buckets of age: floor(log2(1 + seconds)), read off the exponent of the float32.

    `floats` and `bits` are the same memory. Where a logarithm is rounded up to a whole number, so is the bucket.
    """
    for i in range(len(ages)):
        floats[i] = np.float32(apart_s[i] if apart_s[i] > 0 else 0.0) + ONE
    for i in range(len(ages)):
        bucket = min((bits[i] >> 23) - 127, AGES - 1)
        ages[i] = min(bucket + (floats[i] >= AGE_LIMITS[bucket]), AGES - 1)


@kernel
def _weigh(block: _Block, n: int, inputs: _Inputs) -> None:
    """The weight that each head gives each hit of the block."""
    for h in range(len(inputs.gains)):
        weights = block.weights[h, :n]
        _add_parts(weights, block.parts[:, :n], block.ages[:n], inputs.gains[h], inputs.recency[h])
        _exponentiate(weights, block.floats, block.bits)


@summing
def _add_parts(exponents: Floats, parts: Floats, ages: NDArray[np.int32], gains: Floats, recency: Floats) -> None:
    last, before, hour = gains[LAST], gains[BEFORE], gains[HOUR]  # once, for `exponents` could be the same memory
    weekday, gap, state = gains[WEEKDAY], gains[GAP], gains[STATE]
    for i in range(len(exponents)):
        exponents[i] = (
            last * parts[LAST, i]
            + before * parts[BEFORE, i]
            + hour * parts[HOUR, i]
            + weekday * parts[WEEKDAY, i]
            + gap * parts[GAP, i]
            + state * parts[STATE, i]
            + recency[ages[i]]
        )


@kernel
def _exponentiate(numbers: Floats, floats: Floats, bits: Bits) -> None:
    """Each x becomes e^x = 2^k · e^r: r is at most half of log 2, where the series (to the 6th power) is exact to 1e-7.

    2^k is written as the exponent of a float32: `floats` and `bits` are the same memory. NaN stays NaN, for comparisons
    with it are false. What is too large becomes infinity.
    """
    for i in range(len(numbers)):
        x = LOWEST if numbers[i] < LOWEST else numbers[i]
        k = np.int32((x if x < HIGHEST else HIGHEST) * PER_LOG_2 + ROUNDING) - ROUNDING_WHOLE
        r = (x - np.float32(k) * LOG_2_COARSE) - np.float32(k) * LOG_2_FINE
        bits[i] = np.int32((k + 127) << 23)
        numbers[i] = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    for i in range(len(numbers)):
        numbers[i] *= floats[i]


# --- Gradients -----------------------------------------------------------------------------------------------------


@kernel
def _differentiate(totals: _Totals, table: _RowTable, slopes: Floats, inputs: _Inputs, block: _Block) -> None:
    """Adds up all gradients; slopes (M, H) are those of the counts."""
    query, starts = inputs.query, inputs.hits.starts
    for q in range(len(starts) - 1):
        at = starts[q]
        while at < starts[q + 1]:
            n, at = _gather(block, inputs.hits, at, starts[q + 1])
            if n == 0:
                continue
            _compare(block, n, inputs, q)
            _weigh(block, n, inputs)
            _add_to_heads(totals, block, n, slopes)
            _pull_parts(block, n, inputs.gains)
            _add_to_rows(table, block.parts[LAST, :n], inputs.vectors, query.last[q], block.last)
            _add_to_rows(table, block.parts[BEFORE, :n], inputs.vectors, query.before[q], block.before)
            if len(block.state):
                _add_to_state(totals.states[q], block, n, inputs.states[q], inputs.log_states)


@summing
def _add_to_heads(totals: _Totals, block: _Block, n: int, slopes: Floats) -> None:
    """Weights become the gradients of exponents, and these are added to those of gains and recency."""
    for h in range(len(block.weights)):
        pulls = block.weights[h, :n]
        for i in range(n):
            pulls[i] *= slopes[block.targets[i], h]
            totals.recency[h, block.ages[i]] += pulls[i]
        for part in range(len(block.parts)):
            totals.gains[h, part] += _product(pulls, block.parts[part])


@summing
def _pull_parts(block: _Block, n: int, gains: Floats) -> None:
    """The parts that are learned become the gradients of their cosines."""
    for part in (LAST, BEFORE, STATE):
        pulls = block.parts[part, :n]
        pulls[:] = ZERO
        for h in range(len(gains)):
            gain, weights = gains[h, part], block.weights[h]
            for i in range(n):
                pulls[i] += gain * weights[i]


@kernel
def _add_to_rows(table: _RowTable, pulls: Floats, vectors: Floats, query_row: int, rows: NDArray[np.int32]) -> None:
    """Adds the gradients of both vectors of each product; row 0 gets none."""
    vector, total = vectors[query_row], table.total
    total[:] = ZERO
    alike = ZERO
    for i in range(len(pulls)):
        if rows[i] == query_row:
            alike += pulls[i] + pulls[i]  # the row is on both sides
            continue
        _add_scaled(total, pulls[i], vectors[rows[i]])
        if rows[i]:
            _add_scaled(table.values[_place(table, rows[i])], pulls[i], vector)
    if query_row:
        _add_scaled(total, alike, vector)
        _add_scaled(table.values[_place(table, query_row)], ONE, total)


@summing
def _add_scaled(total: Floats, factor: np.float32, other: Floats) -> None:
    for d in range(len(total)):
        total[d] += factor * other[d]


@kernel
def _place(table: _RowTable, row: int) -> int:
    """Returns where in `values` the row's gradient is added up; a new one begins as 0."""
    last = len(table.buckets) - 1
    bucket = (int(row) * HASH_FACTOR >> HASH_SHIFT) & last
    while table.buckets[bucket] >= 0 and table.rows[table.buckets[bucket]] != row:
        bucket = (bucket + 1) & last
    if table.buckets[bucket] < 0:
        new = table.touched[0]
        table.touched[0] += 1
        table.buckets[bucket], table.rows[new] = new, row
        table.values[new, :] = ZERO
    return int(table.buckets[bucket])


@kernel
def _add_to_state(pulled: Floats, block: _Block, n: int, state: Floats, log_states: NDArray[np.uint16]) -> None:
    """Adds the gradient of a state, without the part along the state, because it is normalised to unit length."""
    total = block.total[: len(state)]
    total[:] = ZERO
    for i in range(n):
        _read_state(log_states[block.moments[i]], block.then, block.then_bits)
        _add_scaled(total, block.parts[STATE, i], block.then)
    length = _length(state)
    if length != LENGTH_MIN:  # shorter ones are only divided by it
        _add_scaled(total, -_product(total, block.state), block.state)
    _add_scaled(pulled, ONE / length, total)
