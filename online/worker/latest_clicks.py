"""The latest clicks and how well each was foreseen, for the dashboard: in memory alone, and gone with a restart."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from online.learner.batches import BatchResult
from online.learner.history import SERVED
from online.worker.micro_batches import ReceivedClick
from stream.user_ids import digest_of

TTL_S = 30  # in Redis, without a later write: as long as a status
NOT_LISTED = 0  # as a rank: not among the first SERVED items of the list


class LatestClicks:
    """At most `held` clicks, of which the latest stay."""

    def __init__(self, held: int) -> None:
        """`held`: 0: none."""
        self.held = held
        self._rows: deque[dict[str, Any]] = deque(maxlen=held)

    def add(self, clicks: Sequence[ReceivedClick], result: BatchResult) -> None:
        """Adds the clicks that were learned from in a micro-batch, in order; of a group, this worker's own."""
        for at in range(max(0, len(clicks) - self.held), len(clicks)):
            one = clicks[at]
            if one.owned:
                self._rows.append(
                    {
                        "at": one.clicked_at_ms,
                        "user_id": one.click.user_id,
                        "item_id": one.click.item_id,
                        "event_type": one.click.event_type,
                        "rank": _rank(float(result.served_ranks[at])) if result.trained else None,
                    }
                )

    def forget(self, digest: str) -> None:
        """Drops the clicks of a user. `digest`: `stream.user_ids.digest_of` the id."""
        self._rows = deque((row for row in self._rows if digest_of(row["user_id"]) != digest), self.held)

    def count(self, digest: str) -> int:
        """Returns how many clicks of a user there are."""
        return sum(digest_of(row["user_id"]) == digest for row in self._rows)

    def newest_first(self) -> list[dict[str, Any]]:
        """Returns the clicks: `at` (ms since 1970), `user_id`, `item_id`, `event_type`, and `rank`: the item's place in
        the list that stood before, from 1 to SERVED; NOT_LISTED: in none of these; None: not looked up, as while
        training is shed."""
        return [*reversed(self._rows)]


def _rank(served_rank: float) -> int:
    return int(served_rank) + 1 if math.isfinite(served_rank) and served_rank < SERVED else NOT_LISTED
