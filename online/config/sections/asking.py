"""Questions: lists that are ranked at the moment of a request."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, Share, fixed, setting


class AskingSettings(BaseSettings):
    """Lists that the worker ranks when the API asks for them."""

    ask_timeout_ms: Positive = setting(
        100,
        "Time within which the worker must answer a question of the API. Later, the list that stands in Redis is "
        "returned.",
        "Raise it where a list of this moment matters more than a quick answer.",
    )
    ask_waiting_max: Positive = setting(
        256, "Questions that wait for one worker at most. Beyond it the list that stands in Redis is returned at once."
    )
    ask_share_max: Share = setting(
        0.15,
        "Share of its time that the worker spends on questions while clicks wait. Beyond it questions wait. "
        "0: none are answered while clicks wait.",
        "Raise it where answers matter more than how soon clicks are learned.",
    )
    ask_batch_max: Positive = fixed(32, "Questions that are ranked together at most.")
    explore: Share = setting(
        0.0,
        "Share of the slots of a list that are drawn by the scores instead of taking the best item left, in lists that "
        "are ranked on request without an explore of their own. 0: none.",
        "Set 0.05 to 0.2 where logs are to tell what another policy would earn.",
    )
    explore_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = setting(
        1.0, "Temperature of the draw: below 1 it keeps closer to the best items, above 1 it draws more evenly."
    )
    log_impressions: Literal["explored", "all", "none"] = setting(
        "explored",
        "Which of the lists that the worker has ranked on request are logged to the topic of impressions by the API, "
        "if it may write: those with an explore above 0, all, or none.",
    )
    impressions_retention_s: Rate = setting(
        2_592_000.0,
        "How long Kafka keeps the topic of impressions, which names users, where nextclick creates it. The embedded "
        "log keeps as many as NEXTCLICK_LOG_RECORDS_MAX.",
    )
    learn_impressions: bool = setting(
        False,
        "Whether the worker reads the topic of impressions, and ranking goes by what was shown and not clicked.",
        "Set it where all lists that a site shows are sent, those of POST /v1/rank (NEXTCLICK_LOG_IMPRESSIONS=all) and "
        "others (POST /v1/impressions).",
    )
    impressions_window_s: Rate = setting(
        1_800.0, "Time after a list was shown in which a click on one of its items is a click on that list."
    )
    impressions_held: Positive = setting(
        20_000,
        "Lists that wait for clicks, 0.4 kB each. The oldest one makes room, and is not learned from.",
        "Raise it to the number of lists that are shown within NEXTCLICK_IMPRESSIONS_WINDOW_S.",
    )
    impressions_users_held: Positive = setting(
        50_000,
        "Users of whom it is remembered which items they were shown and did not click, 0.4 kB each. The user who was "
        "shown a list least recently makes room.",
    )
    impressions_records_max: Positive = fixed(
        500, "Records of the topic of impressions that are taken after each micro-batch."
    )
    impressions_interval_s: Rate = fixed(1.0, "Time between two reads of the topic of impressions.")
    impressions_waiting_max: Positive = fixed(
        10_000, "Lists that wait to be logged at most. Those beyond it are counted and not logged."
    )
