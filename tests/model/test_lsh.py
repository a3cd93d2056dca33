"""The fast attention against the slow one, outputs and gradients; hashing that does not depend on its company."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from model import exact
from model.lsh import hash_buckets, log_time_bucket, lsh_attention, random_rotations
from model.lsh_hash import nearest_buckets


class Case(NamedTuple):
    qk: Tensor
    v: Tensor
    rotations: Tensor
    settings: dict[str, Any]

    def inputs(self) -> list[Tensor]:
        """What gradients are taken of."""
        return [self.qk, self.v, *(x for name, x in self.settings.items() if name == "time_bias")]


def make_case(
    *, B: int, H: int, R: int, L: int, D: int, buckets: int, window: int, ragged: bool, timed: bool, seed: int,
    dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    settings: dict[str, Any] = {"window": window}
    if ragged:
        settings["lengths"] = torch.randint(0, L + 1, (B,), generator=generator)
    if timed:
        gaps = torch.rand(B, L, generator=generator, dtype=torch.float64)
        settings |= {"times": 1e9 + (1e5 * gaps**4).cumsum(-1), "time_bias": normal(H, 12)}
    rotations = random_rotations(H, R, D, buckets, generator=generator)
    return Case(normal(B, H, L, D), normal(B, H, L, D), rotations, settings)


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> Case:
    return make_case(
        B=draw(st.integers(1, 3)),
        H=draw(st.integers(1, 2)),
        R=draw(st.integers(1, 4)),
        L=draw(st.integers(1, 50)),
        D=draw(st.sampled_from([2, 8, 32])),
        buckets=2 * draw(st.integers(1, 8)),
        window=draw(st.integers(1, 40)),
        ragged=draw(st.booleans()),
        timed=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
        dtype=dtype,
    )


@given(cases())
def test_outputs_and_gradients_equal_the_reference(case: Case) -> None:
    output = lsh_attention(case.qk, case.v, case.rotations, **case.settings)
    expected = exact.lsh_attention(case.qk, case.v, case.rotations, **case.settings)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    expected = expected + 0 * sum(x.sum() for x in case.inputs())  # loops over empty sequences touch nothing
    gradients = torch.autograd.grad((output * direction).sum(), case.inputs())
    for got, wanted in zip(gradients, torch.autograd.grad((expected * direction).sum(), case.inputs()), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@given(cases())
def test_a_self_score_of_minus_1e5_gives_the_same(case: Case) -> None:
    """The paper's form, dense: every round shows a position itself too, with a score that counts beside nothing."""
    if "lengths" in case.settings:
        return
    _, _, L, D = case.qk.shape
    window = case.settings["window"]
    same = hash_buckets(case.qk, case.rotations)[..., None, :] == hash_buckets(case.qk, case.rotations)[..., None]
    before = torch.ones(L, L, dtype=torch.bool).tril(-1)
    same = same & before  # (B, H, R, L, L), from query to key
    later = same.flip(-1).cumsum(-1).flip(-1)  # keys of the bucket from this one up to the query
    seen = same & (later < window)
    scores = case.qk @ normalize(case.qk, dim=-1).mT / D**0.5  # (B, H, L, L)
    if "times" in case.settings:
        bias = case.settings["time_bias"]  # (H, T)
        gaps = case.settings["times"][:, :, None] - case.settings["times"][:, None]
        scores = scores + bias[:, log_time_bucket(gaps, bias.shape[1])].transpose(0, 1)
    itself = torch.eye(L, dtype=torch.bool)
    scores = (scores - 1e5 * itself)[:, :, None].masked_fill(~(seen | itself), -torch.inf)  # (B, H, R, L, L)
    shares = scores.transpose(2, 3).flatten(3).softmax(-1).unflatten(-1, (-1, L)).sum(3)  # (B, H, L, L)
    output = lsh_attention(case.qk, case.v, case.rotations, **case.settings)
    torch.testing.assert_close(output, shares @ case.v, atol=1e-5, rtol=1e-5)


def test_a_round_that_shows_nothing_does_not_drown_what_another_shows() -> None:
    """Two rounds: in the first all three positions share a bucket, in the second each has its own."""
    qk = torch.tensor([[1.0, 0.1], [1.0, -0.1], [10.0, 0.0]])[None, None]
    v = torch.eye(3)[None, None, :, :2]
    rotations = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])[None]  # (1, 2, 2, 1)
    assert hash_buckets(qk, rotations)[0, 0].tolist() == [[0, 0, 0], [0, 1, 0]]
    output = lsh_attention(qk, v, rotations, window=3)
    torch.testing.assert_close(output[0, 0, 1], v[0, 0, 0])  # the second round shows it nothing


@pytest.mark.parametrize("window", [1, 2, 5, 33])
def test_gradients_are_the_slopes(window: int) -> None:
    case = make_case(
        B=2, H=2, R=2, L=9, D=4, buckets=4, window=window, ragged=False, timed=True, seed=1, dtype=torch.float64
    )

    def attention(qk: Tensor, v: Tensor, time_bias: Tensor) -> Tensor:
        settings = {**case.settings, "time_bias": time_bias}
        return lsh_attention(qk, v, case.rotations, **settings)

    assert torch.autograd.gradcheck(attention, case.inputs())


@pytest.fixture(params=[2, 3, 4, 9])
def many_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("timed", [True, False])
def test_many_threads_and_pieces_and_one_give_the_same(
    many_threads: int, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(B=3, H=2, R=3, L=100, D=8, buckets=6, window=20, ragged=True, timed=timed, seed=3)
    whole = lsh_attention(case.qk, case.v, case.rotations, **case.settings)
    gradients = torch.autograd.grad(whole.square().sum(), case.inputs())
    monkeypatch.setattr("model.lsh_groups.SCORES_MIN", 1)
    monkeypatch.setattr("model.lsh_chunks.PIECE_BYTES", {"cpu": 1, "other": 1})
    monkeypatch.setattr("model.lsh_hash.PIECE_BYTES", 1)
    pieces = lsh_attention(case.qk, case.v, case.rotations, **case.settings)
    torch.testing.assert_close(pieces, whole)
    for got, wanted in zip(torch.autograd.grad(pieces.square().sum(), case.inputs()), gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        assert torch.equal(lsh_attention(case.qk, case.v, case.rotations, **case.settings), pieces)
    assert torch.get_num_threads() == many_threads


class _Operations(TorchDispatchMode):
    """Counts the operations of the thread that entered it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("many_threads")
def test_threads_share_a_call_out_and_not_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where a busy machine displaces a thread, each operation that is split over threads waits for it.
    monkeypatch.setattr("model.lsh_groups.SCORES_MIN", 1)
    case = make_case(B=2, H=4, R=2, L=64, D=8, buckets=4, window=8, ragged=True, timed=True, seed=4)
    with _Operations() as forward:
        output = lsh_attention(case.qk, case.v, case.rotations, **case.settings).sum()
    with _Operations() as backward:
        torch.autograd.grad(output, case.inputs())
    assert 0 < forward.count < 20
    assert 0 < backward.count < 20


def test_padding_is_neither_seen_nor_leaks_whatever_stands_there() -> None:
    case = make_case(B=3, H=2, R=2, L=20, D=8, buckets=4, window=5, ragged=False, timed=True, seed=5)
    lengths = torch.tensor([20, 7, 0])
    padding = torch.arange(20) >= lengths[:, None]
    spoilt = [x.detach().masked_fill(padding[:, None, :, None], float("nan")).requires_grad_() for x in case[:2]]
    output = lsh_attention(*spoilt, case.rotations, lengths=lengths, **case.settings)
    output.square().sum().backward()
    assert (output.masked_select(padding[:, None, :, None]) == 0).all()
    for x in spoilt:
        assert (x.grad.masked_select(padding[:, None, :, None]) == 0).all()
        assert x.grad.isfinite().all()
    times = case.settings["times"][1:2, :7]
    alone = lsh_attention(*(x[1:2, :, :7] for x in spoilt), case.rotations, **{**case.settings, "times": times})
    torch.testing.assert_close(output[1:2, :, :7], alone)


def test_what_a_position_sees_does_not_change_when_others_follow() -> None:
    case = make_case(B=1, H=2, R=2, L=60, D=8, buckets=4, window=7, ragged=False, timed=False, seed=6)
    whole = lsh_attention(case.qk, case.v, case.rotations, window=7)
    start = lsh_attention(case.qk[:, :, :35], case.v[:, :, :35], case.rotations, window=7)
    torch.testing.assert_close(start, whole[:, :, :35])


def test_nothing_gives_nothing() -> None:
    rotations = random_rotations(2, 1, 4, 2, generator=torch.Generator())
    for shape in ((0, 2, 5, 4), (3, 2, 0, 4)):
        assert lsh_attention(torch.zeros(shape), torch.zeros(shape), rotations, window=3).shape == shape


def test_huge_and_zero_vectors_give_finite_numbers() -> None:
    case = make_case(B=1, H=1, R=2, L=30, D=8, buckets=4, window=5, ragged=False, timed=False, seed=7)
    qk = (case.qk.detach() * 1e5).index_fill(2, torch.tensor([3, 4, 5]), 0).requires_grad_()
    output = lsh_attention(qk, case.v, case.rotations, window=5)
    output.sum().backward()
    assert output.isfinite().all()
    assert qk.grad.isfinite().all()


def test_the_same_seed_gives_the_same_bits() -> None:
    def run() -> list[Tensor]:
        case = make_case(B=2, H=2, R=2, L=50, D=16, buckets=8, window=9, ragged=True, timed=True, seed=8)
        output = lsh_attention(case.qk, case.v, case.rotations, **case.settings)
        return [output, *torch.autograd.grad(output.sum(), case.inputs())]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_close(autocast: bool) -> None:
    case = make_case(B=2, H=2, R=2, L=50, D=16, buckets=4, window=9, ragged=True, timed=True, seed=9)
    qk, v = case.qk.detach().bfloat16().requires_grad_(), case.v.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = lsh_attention(qk, v, case.rotations, **case.settings)
    output.sum().backward()
    wanted = lsh_attention(qk.float(), v.float(), case.rotations, **case.settings)
    assert output.dtype == torch.bfloat16
    assert qk.grad.isfinite().all()
    torch.testing.assert_close(output.float(), wanted, atol=0.05, rtol=0.05)


def test_wrong_settings_are_refused() -> None:
    case = make_case(B=1, H=1, R=1, L=4, D=4, buckets=2, window=2, ragged=False, timed=False, seed=0)
    with pytest.raises(ValueError, match="window"):
        lsh_attention(case.qk, case.v, case.rotations, window=0)
    with pytest.raises(ValueError, match="time_bias"):
        lsh_attention(case.qk, case.v, case.rotations, window=2, times=torch.zeros(1, 4, dtype=torch.float64))
    for buckets in (0, 7):
        with pytest.raises(ValueError, match="buckets"):
            random_rotations(1, 1, 4, buckets, generator=torch.Generator())


@given(
    seed=st.integers(0, 2**32), D=st.integers(1, 130), half=st.integers(1, 70), scale=st.sampled_from([1e-6, 1, 1e6])
)
def test_a_vector_is_hashed_alike_alone_and_in_company(seed: int, D: int, half: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    qk = scale * torch.randn(3, 2, 20, D, generator=generator)
    rotations = random_rotations(2, 3, D, 2 * half, generator=generator)
    buckets = hash_buckets(qk, rotations)  # (3, 2, 3, 20)
    assert 0 <= buckets.min() <= buckets.max() < 2 * half
    assert torch.equal(hash_buckets(qk[1:2, :, 7:8], rotations), buckets[1:2, :, :, 7:8])
    transposed = qk.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(hash_buckets(transposed.double(), rotations), buckets)
    assert torch.equal(nearest_buckets(qk, rotations, 1)[..., 0], buckets)


def test_the_bucket_is_the_nearest_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    qk = torch.randn(2, 2, 500, 32, generator=generator)
    rotations = random_rotations(2, 3, 32, 64, generator=generator)
    products = torch.einsum("bhld,hrdc->bhrlc", qk, rotations)
    nearest = torch.cat((products, -products), -1).argmax(-1)
    assert (hash_buckets(qk, rotations) == nearest).float().mean() > 0.999


def test_near_vectors_share_buckets_and_opposite_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    qk = torch.randn(1, 1, 1000, 32, generator=generator)
    rotations = random_rotations(1, 1, 32, 16, generator=generator)
    near = qk + 0.1 * torch.randn(qk.shape, generator=generator)
    buckets = hash_buckets(qk, rotations)
    assert (buckets == hash_buckets(near, rotations)).float().mean() > 0.7
    assert not (buckets == hash_buckets(-qk, rotations)).any()


def test_gaps_fall_into_buckets_of_doubling_seconds() -> None:
    gaps = torch.tensor([-5, 0, 0.99, 1, 1.99, 2, 3.99, 4, 1e30, float("inf")], dtype=torch.float64)
    assert log_time_bucket(gaps, 32).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 31, 31]
    assert log_time_bucket(gaps, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
