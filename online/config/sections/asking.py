"""Questions: lists that are ranked at the moment of a request."""

from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Share, fixed, setting


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
