"""What is remembered of users and items, which is what most of the memory is for."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode

from online.config.sections.fields import Positive, Seconds, fixed, setting


class MemorySettings(BaseSettings):
    """Users, items and moments that are remembered."""

    users_held: Positive = setting(
        100_000,
        "Users whose history is kept. The user who was seen least recently makes room.",
        "Raise it to the number of users who come back; memory grows with it.",
    )
    history_max: Annotated[int, Field(ge=2)] = setting(256, "Latest clicks that are kept of each user.")
    seen_pairs_max: Positive = setting(
        20_000_000,
        "Pairs of a user and an item that are remembered for NEXTCLICK_EXCLUDE_SEEN, of all users together: 3 to 5 "
        "bytes each for users with hundreds of items, 21 for users with 20. The least recently seen user makes room.",
    )
    hidden_per_user_max: Annotated[int, Field(ge=1, le=2_500)] = setting(
        500, "Items that are kept hidden from a user at the user's own request. The oldest one makes room."
    )
    hidden_users_max: Positive = setting(
        100_000,
        "Users whose hidden items are remembered. The user of whom there was no click and no feedback for longest "
        "makes room.",
        "Raise it where the notice hidden_items_lost comes.",
    )
    items_held: Positive = setting(
        200_000,
        "Items that the model knows. The item that was clicked least recently makes room.",
        "Set it above the size of the catalogue; memory grows with it.",
    )
    item_attributes_max: Annotated[int, Field(ge=0)] = setting(
        32,
        "Attributes of items that are kept for filters, the first ones that records have. Of each item a number takes "
        "8 bytes, true or false 1, a text 4, beside each different text once.",
        "Lower it where records have many fields that no filter needs.",
    )
    item_min_count: Positive = setting(1, "Clicks after which an item is known to the model.")
    item_idle_s_max: Seconds = setting(180 * 86_400.0, "Time without clicks after which an item is dropped.")
    successors_held: Positive = setting(64, "Following items that are counted for each item.")
    neighbours_held: Positive = setting(128, "Items clicked close to it that are counted for each item.")
    popularity_half_lives: Annotated[tuple[Positive, ...], NoDecode] = setting(
        (30, 300, 3_000, 30_000),
        "Half-lives of the popularity counts, in clicks. Comma-separated.",
        min_length=1,
    )
    moments_held: Positive = setting(1_000_000, "Latest moments of all users that recall can find.")
    recall_latest: Positive = setting(64, "Latest moments of a user that recall always compares.")
    recall_users_held: Positive = setting(2_048, "Users whose older moments recall remembers too.")
    recall_buckets: Positive = fixed(16, "LSH buckets of a user's older moments (even).")
    recall_ring: Positive = fixed(32, "Moments in each of these buckets.")
    recall_probes: Positive = fixed(2, "Buckets that are searched.")
    world_buckets: Positive = fixed(4_096, "LSH buckets of all users' moments (even).")
    world_ring: Positive = fixed(128, "Moments in each of these buckets.")
