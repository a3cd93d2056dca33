"""A user's attributes and tags as hashed numbers: users with the same number are a group."""

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from online.learner.content.bags import normalised, value_text

GROUPS = 2**13  # numbers, from 1; several values may share one
GROUPS_OF_USER_MAX = 16  # first attributes, then tags, in the order of the record


def groups_of(tags: Sequence[str], attributes: Mapping[str, float | str | bool]) -> NDArray[np.uint16]:
    """Returns the numbers of a user's groups, each once. A number's group is the bin of its logarithm."""
    texts = [f"{name}={value_text(value)}" for name, value in attributes.items()]
    texts += [f"#{normalised(tag)}" for tag in tags]
    numbers = dict.fromkeys(1 + crc32(text.encode("utf-8", "surrogatepass")) % (GROUPS - 1) for text in texts)
    return np.array(list(numbers)[:GROUPS_OF_USER_MAX], np.uint16)
