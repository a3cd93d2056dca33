"""Groups of features: by these contributions are summed, and features can be left out."""

OBJECTIVE = "objective"
OWN_MOMENTS, WORLD_MOMENTS = "own_moments", "world_moments"  # recall's soft counts

#: Which group each feature belongs to; of those with numbers, what stands before the number.
GROUPS = {
    **dict.fromkeys(
        (
            *("followed_last", "share_last", "followed_before", "share_before"),
            *("followed_third", "preceded_last", "preceded_rate"),
        ),
        "followed",
    ),
    **dict.fromkeys(("near", "near_share"), "near"),
    **dict.fromkeys(("taste", "taste_share"), "taste"),
    **dict.fromkeys(
        (
            *("own_times", "own_share", "own_decayed", "own_age", "own_elapsed", "own_rhythm", "own_ever"),
            *("own_length", "is_last", "is_before"),
        ),
        "clicked",
    ),
    **dict.fromkeys(("clicks", "popularity"), "popular"),
    **dict.fromkeys(("elapsed", "lifetime"), "age"),
    **dict.fromkeys(("history", "gap", "last_clicks"), "situation"),
    "lift": "lift",
    "own": OWN_MOMENTS,
    "world": WORLD_MOMENTS,
    "network": "network",
}

ADDED_GROUPS = {
    "content_": "content",
    "group_": "user_attributes",
    "shown_": "impressions",
}  # by how their columns begin


def group_of(feature: str) -> str:
    """Returns the group of a feature."""
    if feature == OBJECTIVE:
        return OBJECTIVE
    for prefix, group in ADDED_GROUPS.items():
        if feature.startswith(prefix):
            return group
    return GROUPS.get(feature) or GROUPS[feature.rpartition("_")[0]]
