"""Lists that were shown: takes in what the topic of impressions says of them."""

import logging
from collections.abc import Callable

from online.learner.shown.shown import ShownItems
from online.worker.topic_intake import TopicIntake
from stream.impressions import Impression

log = logging.getLogger(__name__)


class ImpressionIntake:
    """Hands lists to the learner, as far as the clicks have come: those that are ahead of them wait on the topic."""

    def __init__(self, intake: TopicIntake[Impression], *, shown: ShownItems, now: Callable[[], float]) -> None:
        """`now`: returns the stream's time, in seconds since 1970."""
        self._intake, self._shown, self._now = intake, shown, now
        self._warned = False

    def start(self) -> None:
        """Begins to read where the checkpoint says. Call it once, after the checkpoint is restored."""
        self._intake.start()

    def take_in(self) -> None:
        """Takes in the lists that have come. Raises SourceError."""
        if not self._shown.has_room(self._now()):
            return
        for _, impression in self._intake.take():
            self._shown.put(impression)
        if self._shown.lists_lost and not self._warned:
            self._warned = True
            log.warning(
                "there is no room for more than %d lists that wait for clicks: raise NEXTCLICK_IMPRESSIONS_HELD",
                self._shown.lists_max,
            )
