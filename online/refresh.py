"""When lists are to be ranked anew although nobody clicked: what suits a person now suits them less tomorrow."""

import heapq
from collections.abc import Sequence


class RefreshSchedule:
    """Falls due for each list as its age passes a few marks. A click makes a list new, and its marks begin again.

    So a click never causes more refreshes than there are marks, and nobody is refreshed forever. It knows no clock:
    times are whatever seconds `clicked` and `due` are told, so that a stream of the past can be played through it.
    Memory: a few entries for everybody whose latest click is younger than the last mark.
    """

    def __init__(self, ages_s: Sequence[float]) -> None:
        """`ages_s`: seconds after the click, rising. None at all: nothing ever falls due."""
        self.ages_s = tuple(sorted(ages_s))
        self._clicked_at: dict[str, float] = {}  # of everybody who still has a mark before them
        self._heap: list[tuple[float, str, float, int]] = []  # due, user, the click it counts from, which mark

    def clicked(self, user: str, at: float) -> None:
        """The user's list was written at this time, because of a click."""
        if not self.ages_s:
            return
        self._clicked_at[user] = at
        self._push(user, at, 0)
        if len(self._heap) > 64 + 4 * len(self._clicked_at):  # mostly marks of clicks that others have followed
            self._heap = [entry for entry in self._heap if self._clicked_at.get(entry[1]) == entry[2]]
            heapq.heapify(self._heap)

    def due(self, until: float) -> list[tuple[str, float]]:
        """Takes out what falls due up to a time: users and when, in order; somebody may pass several marks."""
        found = []
        while self._heap and self._heap[0][0] <= until:
            due, user, at, mark = heapq.heappop(self._heap)
            if self._clicked_at.get(user) != at:
                continue
            found.append((user, due))
            if mark + 1 < len(self.ages_s):
                self._push(user, at, mark + 1)
            else:
                del self._clicked_at[user]
        return found

    def _push(self, user: str, at: float, mark: int) -> None:
        heapq.heappush(self._heap, (at + self.ages_s[mark], user, at, mark))
