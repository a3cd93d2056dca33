"""What the worker reports about itself."""

from typing import Literal

from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Seconds, fixed, setting


class ReportSettings(BaseSettings):
    """Status, notices and the log."""

    notices_held: Positive = setting(20, "Latest notices that status and dashboard show.")
    notices_waiting_max: Positive = fixed(1_000, "Notices that wait while the broker is unavailable.")
    status_interval_s: Seconds = setting(1.0, "Time between two status reports of the worker.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level that is logged.")
