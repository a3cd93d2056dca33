"""Recall's soft counts in compiled loops, with their gradients: what RecallHeads and cosines say, without their tensors.

Hits are gone through query by query, at most BLOCK of them at a time, in passes: each pass is a short loop that does
one thing to all hits of the block, so that the compiler does it to several at a time.

Letters: `N` queries, `P` hits (moments found for all of them, flat), `C` candidates of all queries, `M` candidates
kept, `H` heads, `F` parts of a key, `A` buckets of age, `V` rows of vectors, `D` their width, `S` width of states.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.recall import AGES, RecallHeads
from online.facts.features import PARTS
from online.facts.jit import inlined, kernel, summing
from online.facts.moments import DAY_S, GAP_SCALE, WEEK_S, Hits, Keys

BLOCK = 256  # hits looked at together: what is known of them stays in the cache
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

Floats = NDArray[np.float32]
Gradients = tuple[Tensor | None, ...]


def _age_limits() -> Floats:
    """From which float32 in [2^k, 2^(k + 1)) on the float32 of its logarithm is k + 1: (A,)."""
    limits = np.float32(2) ** np.arange(1, AGES + 1, dtype=np.float32)
    while (
        lower := np.log2(np.nextafter(limits, ZERO).astype(np.float64)).astype(np.float32) >= np.arange(1, AGES + 1)
    ).any():
        limits = np.where(lower, np.nextafter(limits, ZERO), limits)
    return limits


AGE_LIMITS = _age_limits()


def soft_counts(
    heads: RecallHeads,
    vectors: Tensor,
    query: Keys,
    states: Tensor | None,
    log: Keys,
    log_states: Tensor,
    hits: Hits,
    candidates: int,
) -> Floats:
    """How many moments point at each candidate, each weighted by how like its query it was.

    Args:
        heads: how the parts of a key are weighted.
        vectors: of items, (V, D) float32.
        query: keys of the queries, (N,) each.
        states: the Reformer's states of the queries, (N, S); None: that part says nothing.
        log: keys of all moments that are held, (held,) each.
        log_states: states of these, (held, S) float16, of unit length or 0.
        hits: what was found for the queries.
        candidates: C, how many candidates all queries have.

    Returns:
        log(1 + soft count), (C, H), without gradients. NaN in weights makes NaN of what it touches.
    """
    inputs = _Inputs.of(heads, vectors, states, log_states)
    counts = np.zeros((candidates, len(inputs.gains)), np.float32)
    _add_up(counts, inputs, query, log, hits, _Block.empty(inputs))
    torch.from_numpy(counts).log1p_()
    return counts


def with_gradients(
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
    """Soft counts of some candidates, through which gradients reach the heads, the vectors and the queries' states.

    The vectors' gradient is sparse and names rows that were compared; row 0 (padding, unknown) gets none.

    Args:
        heads, vectors, query, states, log, log_states, hits: what `soft_counts` was given.
        counts: (C, H), what it returned. Weights must not have moved since.
        kept: (M,) different candidates.

    Returns:
        counts[kept], (M, H), where the vectors are.
    """
    # A Function's result has gradients only if a tensor among its own arguments has.
    return _SoftCounts.apply(  # type: ignore[no-any-return, no-untyped-call]
        heads.gains, heads.recency, vectors, states, (heads, query, log, log_states, hits, counts, kept)
    )


class _SoftCounts(torch.autograd.Function):
    """Picks what was counted before; what the gradients need is compared anew, of the hits of kept candidates only."""

    @staticmethod
    def forward(ctx: Any, gains: Tensor, recency: Tensor, vectors: Tensor, states: Tensor | None, rest: Any) -> Tensor:
        *_, counts, kept = ctx.rest = rest
        ctx.save_for_backward(gains, recency, vectors, states)
        return torch.from_numpy(counts[kept]).to(vectors.device)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        heads, query, log, log_states, hits, counts, kept = ctx.rest
        gains, recency, vectors, states = ctx.saved_tensors  # raises if any of them has moved since
        inputs = _Inputs.of(heads, vectors, states, log_states)

        # 1. Hits point at rows of `kept`. The last place of the map is where −1 leads.
        rows = np.full(len(counts) + 1, -1, np.int64)
        rows[kept] = np.arange(len(kept))
        rows[-1] = -1
        kept_hits = Hits(hits.starts, hits.moments, rows[hits.candidates])
        slopes = _array(gradient.float()) * np.exp(-counts[kept])  # d log(1 + count) = e^−out · d count

        # 2. The loops.
        touched_max = 2 * (int((kept_hits.candidates >= 0).sum()) + len(query.last))
        table = _RowTable.empty(touched_max, inputs.vectors.shape[1])
        totals = _Totals(np.zeros_like(inputs.gains), np.zeros_like(inputs.recency), np.zeros_like(inputs.states))
        touched = _differentiate(totals, table, slopes, inputs, query, log, kept_hits, _Block.empty(inputs))

        # 3. As torch wants them, where the weights are.
        order = np.argsort(table.rows[:touched])
        sparse = torch.sparse_coo_tensor(
            torch.from_numpy(table.rows[order][None]),
            torch.from_numpy(table.values[order]),
            tuple(vectors.shape),
            device=vectors.device,
            check_invariants=False,
            is_coalesced=True,
        )
        of_states = None if states is None else torch.from_numpy(totals.states).to(states)
        return (
            torch.from_numpy(totals.gains).to(gains),
            torch.from_numpy(totals.recency).to(recency),
            sparse,
            of_states,
            None,
        )


# --- What the loops work on ----------------------------------------------------------------------------------------


class _Inputs(NamedTuple):
    """Weights and states as arrays. Without states, S is 0."""

    gains: Floats  # (H, F)
    recency: Floats  # (H, A)
    vectors: Floats  # (V, D)
    states: Floats  # (N, S)
    log_states: NDArray[np.uint16]  # (held, S), the bits of float16: numba has no such numbers

    @staticmethod
    def of(heads: RecallHeads, vectors: Tensor, states: Tensor | None, log_states: Tensor) -> "_Inputs":
        gains, recency, table = _array(heads.gains), _array(heads.recency), _array(vectors)
        if states is None:
            return _Inputs(gains, recency, table, np.empty((0, 0), np.float32), np.empty((0, 0), np.uint16))
        return _Inputs(gains, recency, table, _array(states.float()), _array(log_states).view(np.uint16))


class _Block(NamedTuple):
    """Room for what is known of the hits of a block, so that nothing is allocated for a hit."""

    moments: NDArray[np.int64]  # (BLOCK,), positions in the log
    targets: NDArray[np.int64]  # (BLOCK,), rows that the hits are counted in
    parts: Floats  # (F, BLOCK), cosines − 1
    weights: Floats  # (H, BLOCK)
    apart_s: NDArray[np.float64]  # (BLOCK,)
    ages: NDArray[np.int64]  # (BLOCK,), buckets
    floats: Floats  # (BLOCK,)
    bits: NDArray[np.uint32]  # (BLOCK,), the same memory as `floats`
    state: Floats  # (S,), the query's, of unit length
    then: Floats  # (S,), a moment's
    then_bits: NDArray[np.uint32]  # (S,), the same memory as `then`
    pull: Floats  # (max(D, S),), a gradient that is being added up

    @staticmethod
    def empty(inputs: _Inputs) -> "_Block":
        S, D = inputs.states.shape[1], inputs.vectors.shape[1]
        floats, then = np.empty(BLOCK, np.float32), np.empty(S, np.float32)
        return _Block(
            moments=np.empty(BLOCK, np.int64),
            targets=np.empty(BLOCK, np.int64),
            parts=np.empty((len(PARTS), BLOCK), np.float32),
            weights=np.empty((len(inputs.gains), BLOCK), np.float32),
            apart_s=np.empty(BLOCK),
            ages=np.empty(BLOCK, np.int64),
            floats=floats,
            bits=floats.view(np.uint32),
            state=np.empty(S, np.float32),
            then=then,
            then_bits=then.view(np.uint32),
            pull=np.empty(max(D, S), np.float32),
        )


class _Totals(NamedTuple):
    """Gradients that are added up."""

    gains: Floats  # (H, F)
    recency: Floats  # (H, A)
    states: Floats  # (N, S)


class _RowTable(NamedTuple):
    """Gradients of the rows that were touched, in the order of the first touch; and a hash table of where they are."""

    rows: NDArray[np.int64]  # (rows at most,)
    values: Floats  # (rows at most, D)
    buckets: NDArray[np.int64]  # (a power of 2,): positions in `rows`, −1 where there is none

    @staticmethod
    def empty(rows_max: int, width: int) -> "_RowTable":
        buckets = np.full(1 << (2 * rows_max).bit_length(), -1, np.int64)  # at most half of them are taken
        return _RowTable(np.empty(rows_max, np.int64), np.empty((rows_max, width), np.float32), buckets)


def _array(tensor: Tensor) -> NDArray[Any]:
    """Without a copy where the tensor is on the CPU and in order."""
    return tensor.detach().cpu().contiguous().numpy()


# --- Counting ------------------------------------------------------------------------------------------------------


@kernel
def _add_up(counts: Floats, inputs: _Inputs, query: Keys, log: Keys, hits: Hits, block: _Block) -> None:
    """Adds the weights of all hits to the counts (C, H) of their candidates."""
    for q in range(len(query.last)):
        _unit_state(block, inputs, q)
        at, stop = hits.starts[q], hits.starts[q + 1]
        while at < stop:
            n, at = _gather(block, hits, at, stop)
            _compare(block, n, inputs, query, q, log)
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
def _compare(block: _Block, n: int, inputs: _Inputs, query: Keys, q: int, log: Keys) -> None:
    """How like query q the n moments of the block were, part by part; and how old they are."""
    _compare_rows(block, n, LAST, inputs.vectors, query.last[q], log.last)
    _compare_rows(block, n, BEFORE, inputs.vectors, query.before[q], log.before)
    if inputs.states.shape[1]:
        _compare_states(block, n, inputs.log_states)
    else:
        for i in range(n):
            block.parts[STATE, i] = 0
    now, gap = query.times[q], query.gaps[q]
    for i in range(n):
        moment = block.moments[i]
        block.apart_s[i] = now - log.times[moment]
        block.floats[i] = gap - log.gaps[moment]
    _compare_gaps(block.parts[GAP], block.floats, n)
    _compare_clocks(block.parts[HOUR], block.apart_s, n, 1 / DAY_S)
    _compare_clocks(block.parts[WEEKDAY], block.apart_s, n, 1 / WEEK_S)
    _find_ages(block, n)


@summing
def _compare_rows(block: _Block, n: int, part: int, vectors: Floats, mine: int, rows: NDArray[np.int32]) -> None:
    """Products of vectors, for one of the parts that are items; `mine` is the query's row."""
    with_itself = _product(vectors, mine, mine)
    for i in range(n):
        row = rows[block.moments[i]]
        cosine = with_itself if row == mine else _product(vectors, mine, row)
        block.parts[part, i] = cosine - ONE


@summing
def _product(vectors: Floats, one: int, other: int) -> np.float32:
    total = ZERO
    for d in range(vectors.shape[1]):
        total += vectors[one, d] * vectors[other, d]
    return total


@summing
def _unit_state(block: _Block, inputs: _Inputs, q: int) -> None:
    """The state of query q gets unit length, as F.normalize does it."""
    if inputs.states.shape[1]:
        scale = ONE / _length(inputs.states, q)
        for s in range(inputs.states.shape[1]):
            block.state[s] = inputs.states[q, s] * scale


@summing
def _length(states: Floats, q: int) -> np.float32:
    """Of a state, and at least LENGTH_MIN; of NaN it is NaN."""
    length = np.sqrt(_product(states, q, q))
    return LENGTH_MIN if length < LENGTH_MIN else length


@summing
def _compare_states(block: _Block, n: int, log_states: NDArray[np.uint16]) -> None:
    for i in range(n):
        _read_state(block, log_states, block.moments[i])
        total = ZERO
        for s in range(len(block.state)):
            total += block.state[s] * block.then[s]
        block.parts[STATE, i] = total - ONE


@inlined
def _read_state(block: _Block, log_states: NDArray[np.uint16], moment: int) -> None:
    """A moment's state becomes float32.

    Its exponent and fraction are moved to where float32 has them; what is left is a factor of 2^112, since exponents
    are counted from 15 there and from 127 here. Infinity and NaN have all bits of the exponent set.
    """
    for s in range(len(block.then)):
        half = int(log_states[moment, s])
        special = 0x7F800000 if half & 0x7C00 == 0x7C00 else 0
        block.then_bits[s] = (half & 0x8000) << 16 | (half & 0x7FFF) << 13 | special
    for s in range(len(block.then)):
        block.then[s] *= EXPONENTS_APART


@kernel
def _compare_gaps(part: Floats, apart: Floats, n: int) -> None:
    for i in range(n):
        unlike = abs(apart[i]) * PER_GAP_SCALE
        part[i] = -(TWO if unlike > TWO else unlike)


@kernel
def _compare_clocks(part: Floats, apart_s: NDArray[np.float64], n: int, per_s: float) -> None:
    """Cosines of the angles between times, for a hand that goes round `per_s` times a second.

    cos(2πx) is a sine of what is at most a quarter of a round, where its series (to the 11th power) is exact to 1e-7.
    """
    for i in range(n):
        rounds = apart_s[i] * per_s
        angle = TWO_PI * (abs(np.float32(rounds - np.floor(rounds)) - HALF) - QUARTER)
        square = angle * angle
        sine = angle * (ONE + square * (S3 + square * (S5 + square * (S7 + square * (S9 + square * S11)))))
        part[i] = sine - ONE


@kernel
def _find_ages(block: _Block, n: int) -> None:
    """Buckets of age: floor(log2(1 + seconds)), read off the exponent of the float32."""
    for i in range(n):
        block.floats[i] = np.float32(max(block.apart_s[i], 0.0)) + ONE
    for i in range(n):
        bucket = min((np.int64(block.bits[i]) >> 23) - 127, AGES - 1)
        block.ages[i] = min(bucket + (block.floats[i] >= AGE_LIMITS[bucket]), AGES - 1)


@summing
def _weigh(block: _Block, n: int, inputs: _Inputs) -> None:
    """The weight that each head gives each hit of the block."""
    gains, parts = inputs.gains, block.parts
    for h in range(len(gains)):
        for i in range(n):
            block.weights[h, i] = (
                gains[h, LAST] * parts[LAST, i]
                + gains[h, BEFORE] * parts[BEFORE, i]
                + gains[h, HOUR] * parts[HOUR, i]
                + gains[h, WEEKDAY] * parts[WEEKDAY, i]
                + gains[h, GAP] * parts[GAP, i]
                + gains[h, STATE] * parts[STATE, i]
                + inputs.recency[h, block.ages[i]]
            )
        _exponentiate(block.weights[h], block.floats, block.bits, n)


@kernel
def _exponentiate(numbers: Floats, floats: Floats, bits: NDArray[np.uint32], n: int) -> None:
    """Each x becomes e^x = 2^k · e^r: r is at most half of log 2, where the series (to the 6th power) is exact to 1e-7.

    2^k is written as the exponent of a float32: `bits` and `floats` are the same memory. NaN stays NaN, for comparisons
    with it are false. What is too large becomes infinity.
    """
    for i in range(n):
        x = LOWEST if numbers[i] < LOWEST else numbers[i]
        k = np.int32((x if x < HIGHEST else HIGHEST) * PER_LOG_2 + ROUNDING) - ROUNDING_WHOLE
        r = (x - np.float32(k) * LOG_2_COARSE) - np.float32(k) * LOG_2_FINE
        bits[i] = (k + 127) << 23
        numbers[i] = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    for i in range(n):
        numbers[i] *= floats[i]


# --- Gradients -----------------------------------------------------------------------------------------------------


@kernel
def _differentiate(
    totals: _Totals,
    table: _RowTable,
    slopes: Floats,
    inputs: _Inputs,
    query: Keys,
    log: Keys,
    hits: Hits,
    block: _Block,
) -> int:
    """Adds up all gradients; slopes (M, H) are those of the counts -> how many rows of vectors were touched."""
    touched = 0
    for q in range(len(query.last)):
        at, stop = hits.starts[q], hits.starts[q + 1]
        while at < stop:
            n, at = _gather(block, hits, at, stop)
            if n == 0:
                continue
            _unit_state(block, inputs, q)
            _compare(block, n, inputs, query, q, log)
            _weigh(block, n, inputs)
            _add_to_heads(totals, block, n, slopes)
            _pull_parts(block, n, inputs.gains)
            touched = _add_to_rows(table, touched, block, n, LAST, inputs.vectors, query.last[q], log.last)
            touched = _add_to_rows(table, touched, block, n, BEFORE, inputs.vectors, query.before[q], log.before)
            if inputs.states.shape[1]:
                _add_to_state(totals, block, n, inputs, q)
    return touched


@summing
def _add_to_heads(totals: _Totals, block: _Block, n: int, slopes: Floats) -> None:
    """Weights become the gradients of exponents, and these are added to those of gains and recency."""
    for h in range(len(block.weights)):
        for i in range(n):
            block.weights[h, i] *= slopes[block.targets[i], h]
        for i in range(n):
            totals.recency[h, block.ages[i]] += block.weights[h, i]
        for part in range(len(block.parts)):
            total = ZERO
            for i in range(n):
                total += block.weights[h, i] * block.parts[part, i]
            totals.gains[h, part] += total


@summing
def _pull_parts(block: _Block, n: int, gains: Floats) -> None:
    """The parts that are learned become the gradients of their cosines."""
    for part in (LAST, BEFORE, STATE):
        for i in range(n):
            block.parts[part, i] = ZERO
        for h in range(len(gains)):
            for i in range(n):
                block.parts[part, i] += gains[h, part] * block.weights[h, i]


@summing
def _add_to_rows(
    table: _RowTable,
    touched: int,
    block: _Block,
    n: int,
    part: int,
    vectors: Floats,
    mine: int,
    rows: NDArray[np.int32],
) -> int:
    """A product pulls each of its two vectors towards the other; row 0 stays where it is -> rows touched so far."""
    D = vectors.shape[1]
    pull = block.pull
    pull[:D] = ZERO
    alike = ZERO
    for i in range(n):
        row, strength = rows[block.moments[i]], block.parts[part, i]
        if row == mine:
            alike += strength + strength  # the row is on both sides
            continue
        for d in range(D):
            pull[d] += strength * vectors[row, d]
        if row:
            at, touched = _find_row(table, touched, row)
            for d in range(D):
                table.values[at, d] += strength * vectors[mine, d]
    if mine:
        at, touched = _find_row(table, touched, mine)
        for d in range(D):
            table.values[at, d] += pull[d] + alike * vectors[mine, d]
    return touched


@kernel
def _find_row(table: _RowTable, touched: int, row: int) -> tuple[int, int]:
    """Where the row's gradient is; it begins with 0 -> that, and rows touched so far."""
    last = len(table.buckets) - 1
    bucket = (row * HASH_FACTOR >> HASH_SHIFT) & last
    while table.buckets[bucket] >= 0:
        at = table.buckets[bucket]
        if table.rows[at] == row:
            return at, touched
        bucket = (bucket + 1) & last
    table.buckets[bucket] = touched
    table.rows[touched] = row
    for d in range(table.values.shape[1]):
        table.values[touched, d] = ZERO
    return touched, touched + 1


@summing
def _add_to_state(totals: _Totals, block: _Block, n: int, inputs: _Inputs, q: int) -> None:
    """Only what turns a state counts: what would lengthen it is taken off, for it gets unit length anyway."""
    S = inputs.states.shape[1]
    pull = block.pull
    pull[:S] = ZERO
    for i in range(n):
        _read_state(block, inputs.log_states, block.moments[i])
        for s in range(S):
            pull[s] += block.parts[STATE, i] * block.then[s]
    length = _length(inputs.states, q)
    along = ZERO
    if length != LENGTH_MIN:  # shorter ones are only divided by it
        for s in range(S):
            along += pull[s] * block.state[s]
    for s in range(S):
        totals.states[q, s] += (pull[s] - along * block.state[s]) / length
