"""The privacy accountant: how much noise a step needs, and what a user can have lost so far.

Each private step is a Gaussian mechanism (Dwork and Roth 2014) on a sum in which one user is worth at most a given
norm. A user takes part in a bounded number of steps; the others do not depend on the user. So for each user only that
many steps compose, however many there are. Nothing is taken off for sampling: clicks come in their order, and none is
left out at random.

Gaussian mechanisms whose noise multipliers are s1, s2, ... are together as private as a single one of multiplier
(1 / s1^2 + 1 / s2^2 + ...)^(-1/2), also where each depends on the results of those before it (Dong, Roth, Su 2022,
corollary 3.3). dp-accounting gives the exact epsilon of that one (Balle and Wang 2018).
"""

import math
from collections.abc import Sequence
from typing import Any

from online.config.settings import SettingsError

ROUNDING = 1e-4  # share by which the noise is larger than what spends the budget exactly


class Accountant:
    """Steps by their noise multiplier (standard deviation by norm), and the epsilon of those that may be one user's."""

    def __init__(self, epsilon: float, delta: float, steps_per_user: int) -> None:
        """Finds the noise with which `steps_per_user` steps spend at most `epsilon`.

        Raises:
            SettingsError: dp-accounting is not installed.
        """
        try:
            import dp_accounting  # noqa: PLC0415 - only where it is used: it imports for a second or more
        except ModuleNotFoundError as error:
            needs = (
                "NEXTCLICK_PRIVACY_EPSILON needs the packages of the extra privacy: pip install 'nextclick[privacy]'"
            )
            raise SettingsError(f"{needs} ({error})") from error

        self._epsilon_of_one = dp_accounting.get_epsilon_gaussian
        self.epsilon, self.delta, self.steps_per_user = epsilon, delta, steps_per_user
        of_one = float(dp_accounting.get_sigma_gaussian(epsilon, delta))
        self.noise_multiplier = (1 + ROUNDING) * of_one * math.sqrt(steps_per_user)
        self._history: list[tuple[float, int]] = []  # noise multiplier, steps taken with it

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return sum(steps for _, steps in self._history)

    def spent(self) -> float:
        """Returns the epsilon of one user, at `delta`, who took part in as many steps so far as one may: those with the
        least noise, where settings have changed."""
        return self._epsilon_of(self._history)

    def allows_step(self) -> bool:
        """Returns whether one more step stays within the budget."""
        return self._epsilon_of(self._after_step()) <= self.epsilon

    def count_step(self) -> None:
        """Counts a step with the present noise."""
        self._history = self._after_step()

    def _after_step(self) -> list[tuple[float, int]]:
        *earlier, last = self._history or [(self.noise_multiplier, 0)]
        if last[0] == self.noise_multiplier:
            return [*earlier, (last[0], last[1] + 1)]
        return [*earlier, last, (self.noise_multiplier, 1)]

    def _epsilon_of(self, history: Sequence[tuple[float, int]]) -> float:
        precision, left = 0.0, self.steps_per_user
        for noise, steps in sorted(history):
            taken = min(left, steps)
            precision += taken / noise**2
            left -= taken
        return float(self._epsilon_of_one(precision**-0.5, self.delta)) if precision else 0.0

    def to_state(self) -> list[list[float]]:
        return [[noise, steps] for noise, steps in self._history]

    def load_state(self, state: Sequence[Sequence[Any]]) -> None:
        """Loads what `to_state` returned. Steps that were taken under other settings keep their own noise."""
        self._history = [(float(noise), int(steps)) for noise, steps in state]
