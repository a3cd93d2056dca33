"""The commands `nextclick user` and `nextclick item`: everything known of one of them.

It comes from the newest checkpoint of the data folder and the lists in Redis. Nothing is written.
"""

import time
from typing import Any

import numpy as np

from online.commands.newest_checkpoint import load_newest
from online.config.settings import Settings
from online.learner.facts.tables import neighbours
from online.learner.learner import Learner
from online.learner.state import EVENT_TYPES_MAX
from online.worker.connections import open_lists
from stream.lists import ListsError
from stream.user_ids import digest_of

HISTORY_MAX = 50  # latest clicks that are shown
FOLLOWERS_MAX = 10  # items that followed most often
OTHER_TYPE = "(other)"  # event types beyond EVENT_TYPES_MAX share a number


class UnknownError(Exception):
    """Nothing is known of what was asked for; one line."""


def look_up_user(settings: Settings, user: str) -> dict[str, Any]:
    """Returns everything that is known of a user, as an object for JSON.

    Raises:
        CheckpointError: there is no checkpoint that can be used.
    """
    number, learner, _ = load_newest(settings)
    found: dict[str, Any] = {"user_id": user, "known": user in learner.histories, "checkpoint": number}
    found |= _clicks(learner, user) if found["known"] else {"clicks": 0, "flagged": 0, "history": []}
    found["hidden"] = sorted(learner.hidden.item_ids(user))
    return found | _list_of(settings, user) | {"kept": learner.holds(digest_of(user))}


def _clicks(learner: Learner, user: str) -> dict[str, Any]:
    histories = learner.histories
    slots = histories.find([user])
    (slot,) = slots.tolist()
    newest = histories.newest_first(slots, learner.settings.history_max)
    flagged = learner.abuse_filter.was_flagged(newest.numbers)[0, : newest.lengths[0]]
    rows, types, times, _ = histories.clicks_of(slot)
    items, names = learner.vocabulary.items_of(rows.tolist()), type_names(learner)
    clicks = [
        {
            "item_id": item,
            "title": None if item is None else learner.listable.attributes.title(item),
            "timestamp": float(at),
            "event_type": names.get(int(kind), OTHER_TYPE),
            "flagged": bool(is_flagged),
        }
        for item, kind, at, is_flagged in zip(reversed(items), types[::-1], times[::-1], flagged, strict=True)
    ]
    return {
        "clicks": int(histories.rings()[4][slot]),
        "flagged": int(flagged.sum()),
        "history": clicks[:HISTORY_MAX],
    }


def type_names(learner: Learner) -> dict[int, str]:
    """Returns event types by their numbers."""
    return {number: name for name, number in learner.event_types.items() if number < EVENT_TYPES_MAX}


def _list_of(settings: Settings, user: str) -> dict[str, Any]:
    """The user's list in Redis; why not, where Redis does not answer."""
    try:
        top = open_lists(settings).read(user)
    except ListsError as error:
        return {"list": None, "list_unknown": str(error)}
    if top is None:
        return {"list": None}
    return {"list": top.model_dump() | {"age_ms": max(0, int(1_000 * time.time()) - top.written_at)}}


def look_up_item(settings: Settings, item: str) -> dict[str, Any]:
    """Returns everything that is known of an item, as an object for JSON.

    Raises:
        UnknownError: nothing is.
        CheckpointError: there is no checkpoint that can be used.
    """
    number, learner, _ = load_newest(settings)
    attributes, row = learner.listable.attributes, learner.vocabulary.row_of(item)
    if not row and not attributes.slot_of(item) and item not in learner.unavailable:
        raise UnknownError(
            f"nothing is known of item {item} in checkpoint {number} of {settings.data_dir}: it has had no click and "
            "no record, or none for long (publish one with --available or --unavailable)"
        )
    found: dict[str, Any] = {
        "item_id": item,
        "checkpoint": number,
        "title": attributes.title(item),
        "tags": attributes.tags(item),
        "attributes": dict(sorted(attributes.attributes(item).items())),
        "available": item not in learner.unavailable,
        "excluded_by_rule": learner.listable.excludes(item),
    }
    return found | _counts(learner, row) | _places(settings, item)


def _counts(learner: Learner, row: int) -> dict[str, Any]:
    if not row:
        return {"clicks": 0, "popularity": 0.0, "popularity_rank": None, "followed_by": []}
    popularity = learner.popularity()
    others, counts = neighbours(learner.store.tables.first, row)
    best = np.argsort(-counts, kind="stable")[:FOLLOWERS_MAX]
    names = learner.vocabulary.items_of(others[best].tolist())
    return {
        "clicks": int(learner.store.items.clicks[row]),
        "popularity": float(popularity[row]),
        "popularity_rank": 1 + int((popularity > popularity[row]).sum()),
        "followed_by": [
            {"item_id": name, "title": learner.listable.attributes.title(name), "count": float(count)}
            for name, count in zip(names, counts[best].tolist(), strict=True)
            if name is not None
        ],
    }


def _places(settings: Settings, item: str) -> dict[str, Any]:
    """Where it stands in the lists of Redis, a page at a time; in how many of them, by place."""
    places: dict[int, int] = {}
    try:
        lists = open_lists(settings)
        popular = lists.popular()
        cursor, page = lists.page()
        count = 0
        while True:
            for top in page.values():
                count += 1
                if item in top.items:
                    at = 1 + top.items.index(item)
                    places[at] = places.get(at, 0) + 1
            if not cursor:
                break
            cursor, page = lists.page(cursor)
    except ListsError as error:
        return {"lists": None, "lists_unknown": str(error)}
    in_popular = 1 + popular.items.index(item) if popular is not None and item in popular.items else None
    by_place = {str(place): places[place] for place in sorted(places)}
    return {"lists": {"of": count, "with_it": sum(places.values()), "by_place": by_place, "popular_place": in_popular}}
