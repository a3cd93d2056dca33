"""Times of day as crontabs write them."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger


def cron_trigger(text: str, jitter_s: float = 0.0) -> "CronTrigger":
    """`minute hour day month weekday`, in UTC; each time up to `jitter_s` seconds earlier or later.

    Weekdays go by name. Of numbers APScheduler counts Monday as 0, where crontabs count Sunday.

    Raises:
        ValueError: with a line that says what is wrong.
        ImportError: APScheduler is not installed; it is the worker's.
    """
    from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415 - an extra: the API runs without it

    fields = text.split()
    if len(fields) != 5:
        raise ValueError(
            f"five fields are needed: minute hour day month weekday, like '30 3 * * *'; these are {len(fields)}"
        )
    if re.search(r"(?<!/)\b\d", fields[4]):
        raise ValueError(f"weekdays go by name, like mon-fri or sat,sun, not '{fields[4]}'")
    trigger = CronTrigger.from_crontab(text, timezone=UTC)
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise ValueError(f"'{text}' never comes")
    trigger.jitter = jitter_s or None
    return trigger
