"""How long a call may take and how often it is tried."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one client, shared by all of its calls.

    Lists have to come before the page does; a click may take longer, because the broker confirms it.

    Args:
        deadline_s: longest time the API gets for a list, all attempts and pauses included.
        attempt_s: longest time of one attempt at a list.
        click_deadline_s: as `deadline_s`, for a click or feedback.
        click_attempt_s: as `attempt_s`, for a click or feedback.
        retries_max: most retries of one call.
        backoff_s: upper end of the random pause before the first retry; it doubles with each further one.
        backoff_s_max: longest such pause.
        budget_ratio: retries that each call adds to the budget.
        budget_reserve: most retries that the budget holds, and those it begins with.
        failures_max: attempts without an answer, one after another, after which the API is left alone for a while.
        open_s: how long; then one attempt finds out whether it is back.
        redis_s: longest wait for a connection to Redis, and again for each of its answers.
        answer_bytes_max: longest answer that is read.
    """

    deadline_s: float = 0.5
    attempt_s: float = 0.25
    click_deadline_s: float = 2.0
    click_attempt_s: float = 1.0
    retries_max: int = 2
    backoff_s: float = 0.02
    backoff_s_max: float = 0.2
    budget_ratio: float = 0.1
    budget_reserve: int = 10
    failures_max: int = 5
    open_s: float = 1.0
    redis_s: float = 0.1
    answer_bytes_max: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name in ("deadline_s", "attempt_s", "click_deadline_s", "click_attempt_s", "open_s", "redis_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is more than 0")
        for name in ("retries_max", "backoff_s", "backoff_s_max", "budget_ratio", "budget_reserve"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0")
        for name in ("failures_max", "answer_bytes_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1")
