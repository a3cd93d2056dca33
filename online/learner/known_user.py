"""What is held of a user's clicks, in words."""

from typing import Any

from online.learner.state import LearnerState

SHOWN_MAX = 50  # clicks, the latest ones
OTHER_TYPE = "other"  # of clicks whose event type came after the first EVENT_TYPES_MAX ones


def known_user(state: LearnerState, user_id: str) -> dict[str, Any]:
    """Returns what is held of a user, for JSON.

    Args:
        state: what the learner knows.
        user_id: id of the user.

    Returns:
        `known`: whether there is a history; `clicks`: how many it holds, at most `history_max`; `history`: the latest
        `SHOWN_MAX` of them, newest first, each with `item_id`, `timestamp` (seconds since 1970) and `event_type`.
        Clicks on items that have been dropped since are counted, but not shown. `hidden`: the items that the user wants
        to see no more, each with `item_id` and `until` (seconds since 1970; None: for good).
    """
    hidden = [{"item_id": item, "until": until} for item, until in state.hidden.of(user_id)]
    if user_id not in state.histories:
        return {"known": False, "clicks": 0, "history": [], "hidden": hidden}
    (slot,) = state.histories.find([user_id]).tolist()
    rows, types, times, _ = (part[::-1] for part in state.histories.clicks_of(slot))
    names = {number: name for name, number in state.event_types.items()}
    items = state.vocabulary.items_of(rows.tolist())
    history = [
        {"item_id": item, "timestamp": at, "event_type": names.get(number, OTHER_TYPE)}
        for item, at, number in zip(items, times.tolist(), types.tolist(), strict=True)
        if item is not None
    ]
    return {"known": True, "clicks": len(rows), "history": history[:SHOWN_MAX], "hidden": hidden}
