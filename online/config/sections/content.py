"""What items say of themselves, and what is known of users, in ranking."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, setting


class ContentSettings(BaseSettings):
    """Titles, tags, attributes and vectors of items, and attributes of users, as the ranker uses them."""

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
    content_learning_rate: Rate = setting(
        0.01, "Learning rate of what content and users' attributes add to scores (Adam)."
    )
    user_attributes_held: Positive = setting(
        100_000,
        "Users whose attributes and tags are held. The user of whom there was no record and no click for longest makes "
        "room.",
        "Raise it to the number of users on NEXTCLICK_USERS_TOPIC.",
    )
    popularity_by_hour: bool = setting(
        False,
        "Whether users with fewer than 10 clicks get items that are clicked at this hour of the day, or on this day of "
        "the week, more often than at other times.",
        "Set it to true where many users are new, and what they look for follows the clock.",
    )
    user_groups_half_life_s: Rate = setting(
        30 * 86_400.0,
        "Time after which a click counts half in what users with the same attribute value click on. A gap between two "
        "clicks of the stream counts as an hour at most.",
    )
    text_encoder: str | None = setting(
        None,
        "What makes vectors of items' titles and tags, where records have no `vector`: a folder with a model, or "
        "wordllama, a package that brings one. Nothing is downloaded (docs/content.md).",
        "Set it where items with different words are alike in meaning, and `nextclick backtest --items` shows a gain. "
        "It needs the packages of nextclick[text].",
    )
    text_vectors_held: Positive = setting(
        20_000,
        "Latest texts whose vectors are kept, so that they are not encoded again: 512 bytes each for 256 dimensions, "
        "in memory and in the checkpoint.",
        "Raise it to the number of items where the encoder is slow and all records are published again and again.",
    )
