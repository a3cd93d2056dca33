"""The budget, the pauses and the circuit breaker, on a clock of the test's own."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from online.client.calls import listing_call
from online.client.exchange import Api, Exchange
from online.client.limits import Limits
from online.client.retries import CircuitBreaker, RetryBudget, backoff_s


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(wishes=st.lists(st.integers(0, 5), max_size=200), ratio=st.floats(0, 1), reserve=st.integers(0, 20))
def test_retries_stay_within_the_reserve_and_a_share_of_calls(wishes, ratio, reserve) -> None:
    budget, retries = RetryBudget(ratio=ratio, reserve=reserve), 0
    for calls, wished in enumerate(wishes, start=1):
        budget.deposit()
        retries += sum(budget.withdraw() for _ in range(wished))
        assert retries <= reserve + ratio * calls + 1e-6
        assert 0 <= budget.tokens <= reserve


def test_threads_share_one_budget() -> None:
    budget = RetryBudget(ratio=0.0, reserve=1_000)
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda: taken.append(sum(budget.withdraw() for _ in range(500)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1_000


@given(retry=st.integers(1, 10_000), drawn=st.floats(0, 1))
def test_a_pause_is_random_below_a_bound_that_doubles_up_to_a_limit(retry, drawn) -> None:
    pause = backoff_s(retry, first_s=0.02, longest_s=0.2, draw=lambda: drawn)
    assert pause == drawn * min(0.2, 0.02 * 2 ** min(retry - 1, 40))


def test_a_circuit_opens_probes_and_closes() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures_max=2, open_s=10.0, clock=clock)
    assert (breaker.admit(), breaker.failed(), breaker.admit(), breaker.failed()) == (True, False, True, True)
    assert not breaker.admit()
    clock.now += 10.0
    assert [breaker.admit() for _ in range(3)] == [True, False, False]  # one finds out
    assert not breaker.failed()  # it was open already
    clock.now += 9.0
    assert not breaker.admit()
    clock.now += 1.0
    assert (breaker.admit(), breaker.succeeded(), breaker.succeeded()) == (True, True, False)
    assert all(breaker.admit() for _ in range(5))


def test_a_probe_that_is_cancelled_holds_nothing_up() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures_max=1, open_s=10.0, clock=clock)
    breaker.failed()
    clock.now += 10.0
    assert breaker.admit()  # and nothing is ever heard of it
    clock.now += 10.0
    assert breaker.admit()


def exchange(clock: Clock, **limits: float) -> Exchange:
    api = Api("http://shop", Limits(**{"backoff_s": 0.0, **limits}), clock=clock, draw=lambda: 1.0)
    return Exchange(listing_call("popular", 10, where=None, default=None), api)


def test_a_wait_that_the_api_asks_for_is_kept_where_there_is_time() -> None:
    clock = Clock()
    tried = exchange(clock, deadline_s=5.0)
    assert tried.pause_s() == 0.0
    tried.answered(429, {"retry-after": "3"}, b'{"detail": "too many"}')
    assert tried.pause_s() == 3.0
    clock.now += 3.0
    tried.answered(429, {"retry-after": "3"}, b'{"detail": "too many"}')
    assert tried.pause_s() is None  # 2 s are left
    assert tried.problem == "the API at http://shop answers 429: too many"


def test_no_attempt_lasts_beyond_the_deadline() -> None:
    clock = Clock()
    tried = exchange(clock, deadline_s=1.0, attempt_s=0.75, backoff_s=0.125)
    assert (tried.pause_s(), tried.left_s()) == (0.0, 0.75)
    clock.now += 0.75
    tried.failed("did not answer")
    assert tried.pause_s() == 0.125
    clock.now += 0.125
    assert tried.left_s() == 0.125
    clock.now += 0.125
    tried.failed("did not answer")
    assert tried.pause_s() is None


def test_retries_have_a_number() -> None:
    tried = exchange(Clock(), retries_max=2)
    attempts = 0
    while tried.pause_s() is not None:
        attempts += 1
        tried.failed("is away")
    assert attempts == 3


def test_odd_waits_are_no_waits() -> None:
    for odd in ("", "-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "٣", "9" * 400, "nan"):
        tried = exchange(Clock())
        tried.pause_s()
        tried.answered(503, {"retry-after": odd}, b"")
        assert tried.pause_s() == 0.0
