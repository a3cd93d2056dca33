"""What items say of themselves, in ranking."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Rate, setting


class ContentSettings(BaseSettings):
    """Titles, tags, attributes and vectors of items, as the ranker uses them."""

    content: bool = setting(
        True,
        "Whether titles, tags, attributes and vectors of items are used in ranking, and new items are listed before "
        "their first click. Without item records it changes nothing.",
        "Set it to false only to measure what it adds, or where items' texts mislead.",
    )
    content_new_items_max: Annotated[int, Field(ge=0)] = setting(
        16_384,
        "Items without a click that may be listed: a quarter of NEXTCLICK_ITEMS_HELD at most. The one published first "
        "makes room.",
    )
    content_learning_rate: Rate = setting(0.01, "Learning rate of what content adds to scores (Adam).")
