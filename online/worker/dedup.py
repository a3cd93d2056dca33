"""Event ids that were learned lately, so that a redelivered click is not learned twice."""

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SeenEvents:
    """The latest `held` event ids, as 64-bit digests: some 120 bytes each in memory, 8 in a checkpoint.

    Two different ids share a digest with a probability of about held / 2^64 per click.
    """

    def __init__(self, held: int) -> None:
        self.held = held
        self._digests: OrderedDict[int, None] = OrderedDict()

    def add(self, event_id: str) -> bool:
        """Adds an id. Returns whether it is new."""
        digest = int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little")
        if digest in self._digests:
            return False
        self._digests[digest] = None
        if len(self._digests) > self.held:
            self._digests.popitem(last=False)
        return True

    def to_state(self) -> NDArray[np.uint64]:
        return np.fromiter(self._digests, np.uint64, len(self._digests))

    def load_state(self, digests: NDArray[Any]) -> None:
        self._digests = OrderedDict.fromkeys(digests.tolist()[-self.held :])
