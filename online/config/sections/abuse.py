"""The abuse filter: users and items with more clicks than are plausible."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, Seconds, setting


class AbuseSettings(BaseSettings):
    """The abuse filter. The lists of other users do not learn from clicks that it flags."""

    abuse_filter: bool = setting(True, "Whether implausibly many clicks of a user are flagged and not learned from.")
    abuse_clicks_at_once: Positive = setting(
        120, "Clicks that a user may make at once before further ones are flagged."
    )
    abuse_clicks_per_minute: Rate = setting(20.0, "Clicks per minute that a user may make in the long run.")
    abuse_repeats_at_once: Annotated[int, Field(ge=2)] = setting(
        5, "Clicks on the same item that a user may make at once before further ones are flagged."
    )
    abuse_repeats_interval_s: Rate = setting(300.0, "Time after which a user may repeat a click on the item once more.")
    abuse_late_s: Seconds = setting(
        86_400.0,
        "For these limits, a click is taken to be at most this late, compared with the latest clicks of other users.",
    )
    abuse_keys_held: Positive = setting(
        131_072, "Users, items and pairs of both whose clicks are counted for the filter."
    )
    abuse_share_max: Annotated[float, Field(gt=0, le=1)] = setting(
        0.05, "Share of flagged clicks above which, with many users among them, the limits are taken to be too low."
    )
    abuse_share_exceeded: Literal["let-through", "keep-out"] = setting(
        "let-through",
        "What happens to flagged clicks while their share is above that: they are learned, or still kept out.",
    )
