"""What the worker reports about itself."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Port, Positive, Rate, Seconds, fixed, setting


class ReportSettings(BaseSettings):
    """Status, metrics, notices and the log."""

    notices_held: Positive = setting(20, "Latest notices that status and dashboard show.")
    notices_waiting_max: Positive = fixed(1_000, "Notices that wait while the broker is unavailable.")
    clicks_shown: Annotated[int, Field(ge=0, le=200)] = setting(
        50,
        "Latest clicks that the dashboard shows, each with its user, its item, and the item's place in the list before "
        "it. The worker writes them to Redis with each status. 0: none.",
        "Set 0 where those who see the dashboard must not see single users' clicks.",
    )
    status_interval_s: Seconds = setting(1.0, "Time between two status reports of the worker.")
    metrics_window_s: Rate = setting(
        300.0, "How far figures of now look back: the quantiles of click to list, and the recent hit rates."
    )
    worker_host: str = setting(
        "127.0.0.1",
        "Address on which a worker answers /metrics, /healthz and /readyz.",
        "0.0.0.0 opens it to other machines; it needs no key.",
    )
    worker_port: Port = setting(
        8_001,
        "Port for that. 0: none.",
        "Give each worker on a machine its own. If the default is taken, a worker warns and has none; if one that is "
        "set here is taken, it does not start.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level that is logged.")
    log_format: Literal["text", "json"] = setting(
        "text", "Form of the log: lines to read, or one JSON object a line.", "json suits systems that collect logs."
    )
