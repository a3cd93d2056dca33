"""The lists, and when they are ranked again."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode

from online.config.sections.fields import Positive, Rate, Share, fixed, setting


class ListSettings(BaseSettings):
    """Lists of recommendations."""

    list_size: Annotated[int, Field(ge=1, le=1_000)] = setting(50, "Items in a list.")
    list_ttl_s: Positive = setting(
        5 * 86_400, "Time after which a list that was not renewed expires. The user then gets the popular list."
    )
    exclude_seen: bool = setting(
        False,
        "Whether items that a user has clicked before are left out of the user's list.",
        "Set it where an item is of no use a second time.",
    )
    dislike_days: Rate = setting(90.0, "Days for which an item that a user dislikes is not shown to the user.")
    list_filter: str | None = setting(
        None,
        "Which items lists may hold, as a filter over their attributes (docs/filters.md): price <= 20 and "
        "brand in ('a', 'b'). It holds for every list; one that stands loses an item seconds after the item changed.",
        "Set it where items that are available must not be listed all the same.",
    )
    sweep_lists_max: Positive = fixed(2_000, "Lists that are checked for unavailable items after each micro-batch.")
    refresh_ages_s: Annotated[tuple[Rate, ...], NoDecode] = setting(
        (
            *(1_200.0, 3_600.0, 10_800.0, 28_800.0, 57_600.0, 79_200.0, 100_800.0, 129_600.0),
            *(172_800.0, 259_200.0, 345_600.0, 518_400.0, 691_200.0, 864_000.0),
        ),
        "Ages at which a list is ranked again although its user has not clicked. Comma-separated and rising; "
        "none: lists are never refreshed.",
    )
    refresh_share_min: Share = setting(
        0.1,
        "An age is skipped while a smaller share of the lists that reach it is expected to be viewed before the next.",
    )
    refreshes_max: Rate = setting(
        6.0,
        "Refreshes of a list on average. The least useful ages are skipped to stay below it.",
        "Lower it where the CPU is short.",
    )
    expected_views_max: Positive = setting(
        3, "Future moments that a list is ranked for, where it is likely to be viewed hours or days later."
    )
    refresh_interval_s: Rate = fixed(1.0, "Time between two checks for lists that have reached an age.")
    refresh_lists_max: Positive = fixed(64, "Lists that are ranked again after each of these checks.")
