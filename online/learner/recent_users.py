"""How far back a click's time is believed, judged by the users who click now.

Limits of abuse go by each user's own event times. But times can be made up: a user who dates each click an hour
after the one before would never be too fast. So a click counts as made at most `late_s` before what a quarter of the
latest users agree on, and of two of them at least. An archive, or one of its partitions, that is months behind the rest
is clicked by many users, who agree; a few accounts with made-up times are alone.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

HELD = 128  # latest different users that count
AGREE_SHARE, AGREE_MIN = 0.25, 2  # of them, who have to stand so far back


class RecentUsers:
    """The latest users, and when each clicked last by their own account."""

    def __init__(self) -> None:
        self._times: OrderedDict[int, float] = OrderedDict()  # by the user's hash, least recently seen first

    def __len__(self) -> int:
        return len(self._times)

    def update(self, user_hashes: NDArray[np.int64], times: NDArray[np.float64]) -> None:
        """Clicks (N,) in order of arrival."""
        for user_hash, time in zip(user_hashes.tolist(), times.tolist(), strict=True):
            self._times[user_hash] = time
            self._times.move_to_end(user_hash)
        while len(self._times) > HELD:
            self._times.popitem(last=False)

    def agreed(self) -> float:
        """The earliest time that enough of them stand behind, in seconds since 1970; -inf while there are too few."""
        enough = max(AGREE_MIN, int(AGREE_SHARE * len(self._times)))
        if len(self._times) < enough:
            return -np.inf
        return sorted(self._times.values())[enough - 1]

    def forget(self, user_hash: int) -> int:
        """A user is forgotten -> how often the user stood here."""
        return 0 if self._times.pop(user_hash, None) is None else 1

    def count_of(self, user_hash: int) -> int:
        return int(user_hash in self._times)

    def to_state(self) -> dict[str, NDArray[Any]]:
        return {
            "user_hashes": np.array(list(self._times), np.int64),
            "times": np.array(list(self._times.values()), float),
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes back what `to_state` gave."""
        self._times = OrderedDict(zip(arrays["user_hashes"].tolist(), arrays["times"].tolist(), strict=True))
