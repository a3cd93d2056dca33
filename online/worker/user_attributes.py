"""Attributes of users: takes in what the users topic says of them."""

import logging
from collections.abc import Callable

from online.learner.groups.groups import UserGroups
from online.worker.forget import Forgetting
from online.worker.topic_intake import NOT_ALL_KEPT, TopicIntake
from stream.users import User

log = logging.getLogger(__name__)


class UserIntake:
    """Applies the records of the users topic, in order, to the groups of the learner."""

    def __init__(
        self,
        intake: TopicIntake[User],
        *,
        groups: UserGroups,
        forgetting: Forgetting,
        owns: Callable[[], bool],
    ) -> None:
        """`owns`: returns whether this worker does what only one of many may do."""
        self._intake, self._groups, self._forgetting, self._owns = intake, groups, forgetting, owns
        self._warned = False

    def start(self) -> None:
        """Begins to read, from the beginning where the checkpoint does not hold all that was said of users."""
        self._intake.start(anew=NOT_ALL_KEPT if self._groups.unread else "")

    def take_in(self) -> None:
        """Applies the records that have come. Raises SourceError."""
        for record, user in self._intake.take():
            known = user.user_id in self._groups
            self._groups.put(user)
            if record.value is None:
                self._forgetting.forget_attributes(user.user_id, record, owned=self._owns(), known=known)
        if self._groups.users_lost and not self._warned:
            self._warned = True
            log.warning(
                "there is no room for the attributes of more than %d users: raise NEXTCLICK_USER_ATTRIBUTES_HELD",
                self._groups.users_max,
            )
