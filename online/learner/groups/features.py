"""A user's attributes and tags as hashed numbers: users with the same number are a group. Hours of the day and days of
the week have numbers of their own beyond those: who comes then is a group, too."""

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from online.learner.content.bags import normalised, value_text

GROUPS = 2**13  # numbers, from 1; several values may share one
GROUPS_OF_USER_MAX = 16  # first attributes, then tags, in the order of the record
HOURS_FROM = GROUPS  # numbers of the hours, and then of the days
DAYS_FROM = HOURS_FROM + 24
NUMBERS = DAYS_FROM + 7
HOUR_S, DAY_S = 3_600, 86_400


def groups_of(tags: Sequence[str], attributes: Mapping[str, float | str | bool]) -> NDArray[np.uint16]:
    """Returns the numbers of a user's groups, each once. A number's group is the bin of its logarithm."""
    texts = [f"{name}={value_text(value)}" for name, value in attributes.items()]
    texts += [f"#{normalised(tag)}" for tag in tags]
    numbers = dict.fromkeys(1 + crc32(text.encode("utf-8", "surrogatepass")) % (GROUPS - 1) for text in texts)
    return np.array(list(numbers)[:GROUPS_OF_USER_MAX], np.uint16)


def groups_of_moments(times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the numbers of the hour of the day and of the day of the week, in UTC, at times (N,) in seconds since
    1970, (N, 2)."""
    hours = np.floor(times / HOUR_S).astype(np.int64)
    return np.stack([HOURS_FROM + hours % 24, DAYS_FROM + hours // 24 % 7], 1)
