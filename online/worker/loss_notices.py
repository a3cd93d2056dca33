"""Notices of many items or lists that disappear at once, with the reason, so that lists are never emptied silently."""

import time
from collections.abc import Callable

from online.learner.hidden import HiddenItems
from online.learner.history import UserHistories
from online.learner.item_rows import ItemRows
from online.learner.seen_items import SeenItems
from online.lifecycle.emit import Emit

MANY_MIN, MANY_SHARE = 10, 0.1  # of items that lose their rows at once
LISTS_MIN, LISTS_SHARE = 100, 0.5  # of lists that age at once
REPORTED_AGAIN_S = 3_600.0  # after a notice of lists that aged: a replay ages them all, again and again
HIDDEN_MIN = 100  # hidden items that are lost
SEEN_REPORTED_AGAIN_S = 86_400.0  # after one of users, items, seen or hidden ones: at its limit it loses them all day


class LossNotices:
    """Emits a notice when many items expire, or many lists age or are deleted."""

    def __init__(self, emit: Emit, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._emit, self._monotonic = emit, monotonic
        self._aged_at = float("-inf")
        self._full: dict[str, tuple[float, int]] = {}  # by kind: when it was reported last, and how many were lost then

    def expired(self, items: int, left: int, idle_s_max: float) -> None:
        """Notes that `items` items expired, because they had no clicks for `idle_s_max` seconds; `left` have a row."""
        if items < max(MANY_MIN, MANY_SHARE * (items + left)):
            return
        days = f"{idle_s_max / 86_400:,.3g} days of active time (NEXTCLICK_ITEM_IDLE_S_MAX)"
        text = f"{items:,} of {items + left:,} items went at once: they had no clicks for {days}"
        self._emit("items_expired", text, {"items": items, "left": left})

    def aged(self, lists: int, of: int) -> None:
        """Notes how many lists have aged since the last check."""
        if lists < max(LISTS_MIN, LISTS_SHARE * of) or self._monotonic() - self._aged_at < REPORTED_AGAIN_S:
            return
        self._aged_at = self._monotonic()
        text = f"{lists:,} of {of:,} lists have aged at once, as the stream's time went on: little by little they are"
        self._emit("lists_stale", f"{text} ranked anew", {"lists": lists, "of": of})

    def seen_items(self, seen: SeenItems) -> None:
        """Reports if users' seen items were evicted since the latest notice."""
        users = self._newly_lost("seen_items_lost", seen.users_lost)
        if not users:
            return
        text = (
            f"what {users:,} of the least recently seen users have clicked is not remembered any more: "
            f"{len(seen):,} users (of at most {seen.users_held:,}, NEXTCLICK_USERS_HELD) are held now, with "
            f"{seen.pairs:,} items (of at most {seen.pairs_max:,}, NEXTCLICK_SEEN_PAIRS_MAX). "
            "A user who comes back may be shown what they have seen"
        )
        figures = {"users": users, "users_lost": seen.users_lost, "pairs_lost": seen.pairs_lost, "pairs": seen.pairs}
        self._emit("seen_items_lost", text, figures)

    def hidden_items(self, hidden: HiddenItems) -> None:
        """Reports if many hidden items had to make room since the latest notice."""
        lost = self._newly_lost("hidden_items_lost", hidden.items_lost, least=HIDDEN_MIN)
        if not lost:
            return
        text = (
            f"{lost:,} items that users have hidden are not remembered any more: {len(hidden):,} users (of at most "
            f"{hidden.users_max:,}, NEXTCLICK_HIDDEN_USERS_MAX) are held now, with at most {hidden.per_user_max:,} "
            "items each (NEXTCLICK_HIDDEN_PER_USER_MAX). Lists may show these items again"
        )
        figures = {"items": lost, "items_lost": hidden.items_lost, "users_lost": hidden.users_lost}
        self._emit("hidden_items_lost", text, figures)

    def items(self, rows: ItemRows) -> None:
        """Reports if items had to make room for others since the latest notice."""
        text = (
            "{lost:,} of the items clicked longest ago had to make room for others: no more than {most:,} are held "
            "(NEXTCLICK_ITEMS_HELD). An item that was lost is listed again only after its next click. Raise the limit "
            "if there is memory for it (docs/scale.md), or give topics of their own to parts of the catalogue"
        )
        self._lost("items_lost", text, rows.lost, rows.settings.items_held)

    def users(self, histories: UserHistories) -> None:
        """Reports if users had to make room for others since the latest notice."""
        text = (
            "what {lost:,} of the least recently seen users have clicked is forgotten: no more than {most:,} users are "
            "held (NEXTCLICK_USERS_HELD). Such a user begins anew at their next click. Raise the limit if there is "
            "memory for it (docs/scale.md); NEXTCLICK_HISTORY_MAX, lowered, makes a user take less"
        )
        self._lost("users_lost", text, histories.users_lost, histories.users_held)

    def _lost(self, kind: str, text: str, total: int, most: int) -> None:
        if lost := self._newly_lost(kind, total):
            self._emit(kind, text.format(lost=lost, most=most), {"lost": lost, "total": total, "held_max": most})

    def _newly_lost(self, kind: str, total: int, least: int = 1) -> int:
        """Returns how many of `total` were lost since the latest notice of this kind, and notes one; 0 where there are
        fewer than `least`, or where the latest is not SEEN_REPORTED_AGAIN_S ago."""
        reported_at, reported = self._full.get(kind, (float("-inf"), 0))
        lost = total - reported
        if lost < least or self._monotonic() - reported_at < SEEN_REPORTED_AGAIN_S:
            return 0
        self._full[kind] = self._monotonic(), total
        return lost

    def deleted(self, lists: int) -> None:
        """Notes how many lists were deleted from Redis, because none of their items is available any more."""
        if lists >= LISTS_MIN:
            text = f"{lists:,} lists went: none of their items is available any more"
            self._emit("lists_deleted", text, {"lists": lists})
