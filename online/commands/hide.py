"""`nextclick hide`: publishes what a user says of an item to the feedback topic."""

import time
from contextlib import closing

from online.config.settings import Settings
from online.worker.connections import open_producer, prepare_topics
from stream.events import id_problem
from stream.feedback import Feedback, Kind, encode

DAY_S = 86_400.0
DAYS_MAX = 100_000.0  # some 270 years; more is for good


class HideError(Exception):
    """The arguments are wrong; one line that says why."""


def run_hide(settings: Settings, user_id: str, item_id: str, *, for_days: float | None, undo: bool) -> None:
    """Hides an item from a user, or lets the user see it again. Raises HideError, SourceError."""
    for name, value in (("USER", user_id), ("ITEM", item_id)):
        if (problem := id_problem(value)) is not None:
            raise HideError(f"{name}: {problem}")
    if undo and for_days is not None:
        raise HideError("choose --for-days or --undo, not both")
    if for_days is not None and not 0 < for_days <= DAYS_MAX:
        raise HideError(f"--for-days: more than 0, at most {DAYS_MAX:,.0f}")
    now = time.time()
    until = None if for_days is None else now + DAY_S * for_days
    kind: Kind = "unhide" if undo else "hide"
    record = Feedback(user_id=user_id, item_id=item_id, kind=kind, until=until, timestamp=now)
    prepare_topics(settings)
    with closing(open_producer(settings)) as producer:
        producer.send(settings.feedback_topic, key=user_id.encode(), value=encode(record))
    state = "shown again" if undo else "hidden" if for_days is None else f"hidden for {for_days:g} days"
    print(f"{item_id}: published to topic {settings.feedback_topic} as {state} for user {user_id}")
