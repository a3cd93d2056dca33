"""Stored lists, filtered without the worker by what Redis holds of their items (stream/item_records.py)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from online.filters.expression import parse
from online.filters.itemwise import keeps
from stream.item_records import FoundRecords, ItemRecord
from stream.lists import Lists, ListsError, TopList

#: Why items were left out.
EXCLUDED, HIDDEN, UNAVAILABLE, SITE, FILTER = "excluded", "hidden", "unavailable", "site_rule", "filter"
NOTHING_KNOWN = ItemRecord()


class StoredList(NamedTuple):
    """What is left of a stored list."""

    items: list[str]
    scores: list[float]
    dropped: dict[str, int]  # items that were left out, by reason
    filtered: bool  # whether all that was asked for was applied


def filtered_list(
    lists: Lists,
    top: TopList,
    fields: Mapping[str, Any],
    rule: str | None = None,
    hidden: Collection[str] = frozenset(),
) -> StoredList:
    """Applies the rules of a question to a stored list. It waits for Redis, and never raises ListsError.

    Given candidates come in the list's order, and after them those that it does not hold, as they were given, with
    score 0. Where Redis does not hold what is known of the items, nothing passes a filter, rather than what must not.

    Args:
        lists: the link to Redis.
        top: the list.
        fields: of the question, as `WireQuestion` has them.
        rule: the site's (`NEXTCLICK_LIST_FILTER`), which stored lists obey already, and given candidates may not.
        hidden: items that the user has hidden, which may be among given candidates.
    """
    scores = dict(zip(top.items, top.scores, strict=False))
    candidates = fields.get("candidates")
    items = list(scores)
    if candidates is not None:
        given = dict.fromkeys(candidates)
        items = [*(item for item in items if item in given), *(item for item in given if item not in scores)]
    items = [item for item in items if item != fields.get("item_id")]  # no item is like itself
    excluded = set(fields.get("exclude") or ())
    kept, dropped = items, {}
    for reason, gone in ((EXCLUDED, excluded), (HIDDEN, hidden)):
        kept, dropped[reason] = _passing(kept, [item not in gone for item in kept])
    records, sure = _known_of(lists, kept)
    kept, dropped[UNAVAILABLE] = _passing(kept, [records[item].available for item in kept])
    filtered = (
        not fields.get("diversity") and fields.get("objective") is None and (sure or fields.get("max_per_tag") is None)
    )
    for reason, text in ((SITE, None if candidates is None else rule), (FILTER, fields.get("where"))):
        if text is not None and not sure:
            return StoredList([], [], _some(dropped), filtered=False)
        if text is not None:
            root = parse(text).root
            kept, dropped[reason] = _passing(kept, [keeps(root, records[item]) for item in kept])
    if sure and (most := fields.get("max_per_tag")) is not None:
        kept = _capped(kept, [records[item].tags for item in kept], most)
    kept = kept[: fields["k"]]
    return StoredList(kept, [scores.get(item, 0.0) for item in kept], _some(dropped), filtered)


def _known_of(lists: Lists, items: Sequence[str]) -> tuple[dict[str, ItemRecord], bool]:
    """Returns what is known of each item, and whether that is all there is to know."""
    try:
        found = lists.items.read(items)
    except ListsError:
        found = FoundRecords({}, complete=False)
    known = {item: found.records.get(item, NOTHING_KNOWN) for item in items}
    return known, found.complete or len(found.records) == len(known)


def _passing(items: Sequence[str], passes: Sequence[bool]) -> tuple[list[str], int]:
    """Returns the items that pass, and how many do not."""
    kept = [item for item, passed in zip(items, passes, strict=True) if passed]
    return kept, len(items) - len(kept)


def _capped(items: Sequence[str], tags: Sequence[Sequence[str]], most: int) -> list[str]:
    """Returns the items in their order, without those that have a tag which `most` items before them have."""
    counts: dict[str, int] = {}
    kept = []
    for item, own in zip(items, tags, strict=True):
        if all(counts.get(tag, 0) < most for tag in own):
            kept.append(item)
            for tag in set(own):
                counts[tag] = counts.get(tag, 0) + 1
    return kept


def _some(dropped: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in dropped.items() if count}
