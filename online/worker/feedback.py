"""Feedback of users: takes in what they say of items, and has their lists written anew."""

from collections.abc import Callable

from online.config.settings import Settings
from online.learner.learner import Learner
from online.worker.forget import Forgetting
from online.worker.list_writer import ListWriter
from online.worker.topic_intake import TopicIntake
from stream.events import Forget
from stream.feedback import Feedback
from stream.source import Partition

DAY_S = 86_400.0


class FeedbackIntake:
    """Applies the records of the feedback topic, in order, to the hidden items of the learner."""

    def __init__(
        self,
        settings: Settings,
        intake: TopicIntake[Feedback | Forget],
        *,
        learner: Learner,
        writer: ListWriter,
        forgetting: Forgetting,
        owns: Callable[[Partition], bool],
    ) -> None:
        """`owns`: whether a partition of clicks is this worker's."""
        self._settings, self._intake = settings, intake
        self._learner, self._writer, self._forgetting, self._owns = learner, writer, forgetting, owns

    def start(self) -> None:
        """Begins to read where the checkpoint says. Call it once, after the checkpoint is restored."""
        self._intake.start()

    def take_in(self) -> None:
        """Applies the records that have come. Raises SourceError."""
        for record, found in self._intake.take():
            if isinstance(found, Forget):
                # The owner of the first clicks does what only one of many workers may do.
                owned = self._owns(Partition(self._settings.clicks_topic, 0))
                self._forgetting.forget_hidden(found, record, owned=owned)
            else:
                self._apply(found)

    def _apply(self, feedback: Feedback) -> None:
        hidden, user, item_id = self._learner.hidden, feedback.user_id, feedback.item_id
        if feedback.kind == "unhide":
            hidden.unhide(user, item_id)
        elif feedback.kind == "hide":
            hidden.hide(user, item_id, feedback.until)
        else:
            days = self._settings.dislike_days
            until = feedback.timestamp + DAY_S * days if feedback.until is None else feedback.until
            hidden.dislike(user, item_id, until)
        self._learner.count_feedback(item_id, feedback.kind)
        self._writer.feedback_changed(user)
