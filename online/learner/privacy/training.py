"""Private steps: the sum of users' clipped gradients, with noise (DP-SGD: Abadi et al. 2016; by user: McMahan et al.
2018).

A step takes a given number of clicks, in their order. Of each user in it the gradients of all clicks are summed and
clipped; the sum over users gets Gaussian noise. Only that moves weights. A user takes part in a bounded number of
steps. Without a user, whose clicks would then leave their places in the stream empty, only these steps differ, each by
at most the clipping norm.

How many users a step has is released with it, with the same noise, so that a step of too few moves nothing: it would be
little but noise (a bounded value beside the gradient, as in adaptive clipping: Andrew et al. 2021).

Letters: `N` clicks, `U` users of the step so far, `P` weights.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings
from online.learner.privacy.accountant import Accountant
from online.learner.user_stores import UserKey

ROOM_MIN = 64  # users of a step for whom there is room from the start
COUNT_SHARE = 0.25  # what one user adds to the count of users, by the clipping norm
NORM_FACTOR = math.hypot(1.0, COUNT_SHARE)  # norm of what one user adds to a step, by the clipping norm
DEVIATIONS_MIN = 2.0  # a step moves weights if its noisy count of users is so many standard deviations above 0
FEW_STEPS_MAX = 3  # steps of too few users in a row, of which operators are told


class PrivacyNotice(NamedTuple):
    """A change that operators are told."""

    kind: str
    text: str
    figures: dict[str, Any]


def private_paths_only(settings: Settings) -> Settings:
    """Returns the settings without what would take clicks into weights beside the private steps.

    The Reformer's states are not used, so that nothing trains it, and no click is learned again.
    """
    if not settings.private:
        return settings
    return settings.model_copy(update={"deep_state": False, "replay_batch": 0})


def clipped_sum(sums: NDArray[np.float32], norm: float) -> NDArray[np.float64]:
    """Returns the sum (P,) of users' gradients (U, P), each clipped to a norm. What is not finite counts as 0."""
    exact = np.where(np.isfinite(sums).all(1, keepdims=True), sums, 0.0).astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    total: NDArray[np.float64] = (exact * (norm / np.maximum(norms, norm))).sum(0)
    return total


class PrivateTraining:
    """The step that is being summed up, its noise, and the budget. It holds gradients by user until the step is
    taken, 4 P + 8 bytes for each of its users, and in how many steps each user took part."""

    def __init__(self, settings: Settings, weights: int) -> None:
        """`weights`: P. Raises SettingsError where a package is missing."""
        self.settings = settings
        self.accountant = Accountant(
            settings.privacy_epsilon,
            settings.privacy_delta,
            min(settings.privacy_steps_per_user, settings.privacy_steps),
        )
        self.clicks = 0  # of the step so far, also those without a gradient
        self.left_out = 0  # clicks with a gradient whose users had taken part often enough
        self.few_steps = 0  # latest steps in a row that had too few users
        self.moved = 0  # steps that moved weights
        self.exhausted = False  # whether no further step is taken
        seed = settings.privacy_seed
        self._random = np.random.default_rng(None if seed < 0 else seed)
        self._taken: dict[int, int] = {}  # steps that users took part in, by their hashes
        self._rows: dict[int, int] = {}  # of users of the step so far, by their hashes
        self._sums = np.zeros((ROOM_MIN, weights), np.float32)
        self._notice: PrivacyNotice | None = None

    def add(self, gradients: NDArray[np.float32], user_hashes: NDArray[np.int64]) -> None:
        """Adds the gradients of N clicks (N, P), 0 for those without one, and their users' hashes (N,)."""
        if self.exhausted:
            return
        self.clicks += len(gradients)
        for at in np.flatnonzero(gradients.any(1)).tolist():
            user = int(user_hashes[at])
            if self._taken.get(user, 0) < self.settings.privacy_steps_per_user:
                row = self._row(user)  # first: it may make room
                self._sums[row] += gradients[at]
            else:
                self.left_out += 1

    @property
    def due(self) -> bool:
        """Whether the step is complete, so that it has to be taken."""
        return self.clicks >= self.settings.privacy_clicks_per_step

    def take(self) -> NDArray[np.float32] | None:
        """Takes the step, and begins the next one.

        Returns:
            Its noisy sum, divided by its number of clicks, (P,); None if it has too few users.
        """
        norm, noise = self.settings.privacy_clip_norm, self.accountant.noise_multiplier * NORM_FACTOR
        total = clipped_sum(self._sums[: len(self._rows)], norm)
        total += self._random.normal(0.0, noise * norm, len(total))
        users = len(self._rows) + self._random.normal(0.0, noise / COUNT_SHARE)
        for user in self._rows:
            self._taken[user] = self._taken.get(user, 0) + 1
        self._begin()
        self.accountant.count_step()
        moves = users >= DEVIATIONS_MIN * noise / COUNT_SHARE
        self._note(moves=moves)
        return (total / self.settings.privacy_clicks_per_step).astype(np.float32) if moves else None

    def take_notice(self) -> PrivacyNotice | None:
        """Returns the notice that came up since the last call, if any."""
        notice, self._notice = self._notice, None
        return notice

    def describe(self) -> dict[str, Any]:
        """Returns what the status says."""
        accountant = self.accountant
        return {
            "epsilon": accountant.epsilon,
            "delta": accountant.delta,
            "spent": round(accountant.spent(), 4),
            "steps": accountant.steps,
            "steps_max": self.settings.privacy_steps,
            "moved": self.moved,
            "noise_multiplier": round(accountant.noise_multiplier, 4),
            "left_out": self.left_out,
            "few_users": self.few_steps >= FEW_STEPS_MAX,
            "exhausted": self.exhausted,
        }

    def _row(self, user: int) -> int:
        row = self._rows.setdefault(user, len(self._rows))
        if row == len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        return row

    def _begin(self) -> None:
        self._sums[...] = 0
        self._rows.clear()
        self.clicks = 0

    def _note(self, *, moves: bool) -> None:
        before, self.few_steps = self.few_steps, 0 if moves else self.few_steps + 1
        self.moved += moves
        if self.few_steps == FEW_STEPS_MAX:
            text = (
                f"{FEW_STEPS_MAX} private steps in a row had too few users who may still take part: such steps move no "
                "weight. If it goes on, raise NEXTCLICK_PRIVACY_CLICKS_PER_STEP"
            )
            self._notice = PrivacyNotice("privacy_few_users", text, self.describe())
        elif moves and before >= FEW_STEPS_MAX:
            text = "private steps have enough users again: weights move"
            self._notice = PrivacyNotice("privacy_few_users_over", text, self.describe())
        self._look_whether_exhausted()

    def _look_whether_exhausted(self) -> None:
        """Ends learning after the last step, and before one that would exceed the budget: under settings that have
        changed."""
        if self.exhausted or (self.accountant.steps < self.settings.privacy_steps and self.accountant.allows_step()):
            return
        self.exhausted = True
        self._begin()
        figures = self.describe()
        text = (
            f"the privacy budget is spent (epsilon {figures['spent']:g} of {figures['epsilon']:g}, {figures['steps']} "
            "private steps): the weights stay as they are from now on. Counts and histories go on"
        )
        self._notice = PrivacyNotice("privacy_budget_spent", text, figures)

    # Users

    def user_ids(self) -> Iterable[str]:
        return ()

    def count_user(self, user: UserKey) -> dict[str, int]:
        known = user.user_hash in self._taken
        return {"private_gradients": int(user.user_hash in self._rows), "private_steps": int(known)}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        found = self.count_user(user)
        self._taken.pop(user.user_hash, None)
        row = self._rows.pop(user.user_hash, None)
        if row is not None:
            last = len(self._rows)
            self._rows = {other: row if at == last else at for other, at in self._rows.items()}
            self._sums[row] = self._sums[last]
            self._sums[last] = 0
        return found

    def usage(self) -> tuple[int, int]:
        per_step = self.settings.privacy_clicks_per_step + self.settings.step_clicks
        return len(self._taken | self._rows), per_step * self.settings.privacy_steps

    # A checkpoint

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and a JSON object. The state of the noise is part of it, so that a step that is
        taken again after a crash is the same step, and spends nothing more."""
        arrays: dict[str, NDArray[Any]] = {
            "users": np.array(list(self._rows), np.int64),
            "sums": self._sums[list(self._rows.values())].copy(),
            "taken_users": np.array(list(self._taken), np.int64),
            "taken": np.array(list(self._taken.values()), np.int64),
        }
        return arrays, {
            "clicks": self.clicks,
            "left_out": self.left_out,
            "few_steps": self.few_steps,
            "moved": self.moved,
            "steps": self.accountant.to_state(),
            "random": self._random.bit_generator.state,
            "exhausted": self.exhausted,
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned. Under a larger budget, or more steps, a spent one is no longer spent."""
        self._begin()
        for user, gradient in zip(arrays["users"].tolist(), arrays["sums"], strict=True):
            row = self._row(user)
            self._sums[row] = gradient
        self._taken = dict(zip(arrays["taken_users"].tolist(), arrays["taken"].tolist(), strict=True))
        self.clicks, self.left_out = state["clicks"], state["left_out"]
        self.few_steps, self.moved = state["few_steps"], state["moved"]
        self.accountant.load_state(state["steps"])
        self._random.bit_generator.state = state["random"]
        self.exhausted = False
        self._look_whether_exhausted()
        if state["exhausted"]:  # operators have been told
            self._notice = None
