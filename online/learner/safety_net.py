"""What if the limits are wrong, and not the clicks? Then far more is flagged as abuse than abuse can be.

A few accounts that flood the stream may well make most of its clicks, and are to be kept out. But when the clicks of
many users are flagged, something does not fit: a clock, an archive that is replayed in pieces, limits that are too low
for what users do here. So the net opens when both hold, over the latest `WINDOW` clicks:

- more than `share_max` of the clicks are flagged (before there are `WINDOW_MIN`, of so many);
- those flagged are of more than a few users: more than `FEW`, or more than half of the users who clicked lately, and
  never of one alone.

It closes when one of the two has come down to half. While it is open, flagged clicks are let through, unless a setting
says otherwise; either way a notice says so, with the reasons.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW, WINDOW_MIN = 1_000, 200  # clicks
FEW = 32  # accounts

OPENED, CLOSED = "abuse_share", "abuse_share_over"  # kinds of notices


class NetNotice(NamedTuple):
    """The net has opened, or closed."""

    kind: str
    text: str
    figures: dict[str, Any]


class SafetyNet:
    """Counts flagged clicks and their users; part of each checkpoint."""

    def __init__(self, share_max: float, *, lets_through: bool, reasons: Sequence[str]) -> None:
        """`reasons`: for which clicks are flagged, by the numbers from 1 that `update` gets."""
        self.share_max, self.lets_through, self.reasons = share_max, lets_through, tuple(reasons)
        self.open = False
        self.let_through: Counter[str] = Counter()  # flagged clicks, by reason, that were let through
        self._user_hashes = np.zeros(WINDOW, np.int64)  # of flagged clicks; 0: not flagged, or the user was forgotten
        self._flagged = np.zeros(WINDOW, np.int8)  # 0: not; else the reason
        self._clicks = 0
        self._notice: NetNotice | None = None

    @property
    def share(self) -> float:
        """Of the latest clicks, how many are flagged."""
        return int(np.count_nonzero(self._flagged)) / max(WINDOW_MIN, min(self._clicks, WINDOW))

    def update(self, user_hashes: NDArray[np.int64], flagged: NDArray[np.int8], recent_users: int) -> bool:
        """Clicks (N,) in order: whose they are, and for which reason each is flagged, 0 for none; `recent_users`: how
        many users clicked lately -> whether flagged clicks are to be let through."""
        at = (self._clicks + np.arange(len(flagged))) % WINDOW
        self._flagged[at], self._user_hashes[at] = flagged, np.where(flagged > 0, user_hashes, 0)
        self._clicks += len(flagged)
        share, accounts = self.share, len(np.unique(self._user_hashes[self._user_hashes > 0]))
        few = max(1.0, min(FEW, recent_users / 2))
        if not self.open and share > self.share_max and accounts > few:
            self._turn(True, share, accounts)
        elif self.open and (share <= self.share_max / 2 or accounts <= few / 2):
            self._turn(False, share, accounts)
        through = self.open and self.lets_through
        if through:
            self.let_through.update(self.reasons[reason - 1] for reason in flagged[flagged > 0].tolist())
        return through

    def _turn(self, opens: bool, share: float, accounts: int) -> None:
        self.open = opens
        counts = Counter(self.reasons[reason - 1] for reason in self._flagged[self._flagged > 0].tolist())
        clicks = min(self._clicks, WINDOW)
        figures = {"share": round(share, 4), "clicks": clicks, "users": accounts, "reasons": dict(counts)}
        figures["let_through"] = self.lets_through
        of = f"{counts.total():,} of the latest {clicks:,} clicks, of {accounts:,} users"
        if not opens:
            text = f"the limits on abuse fit the stream again: they flag {of}"
            self._notice = NetNotice(CLOSED, text, figures)
            return
        why = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
        then = (
            "flagged clicks are let through until that is over"
            if self.lets_through
            else "flagged clicks are kept out, as NEXTCLICK_ABUSE_SHARE_EXCEEDED says"
        )
        text = f"the limits on abuse flag {of} ({why}): that is not abuse, limits or clocks do not fit; {then}"
        self._notice = NetNotice(OPENED, text, figures)

    def take_notice(self) -> NetNotice | None:
        """The notice that came up since the last call, if any."""
        notice, self._notice = self._notice, None
        return notice

    def forget(self, user_hash: int) -> int:
        """A user is forgotten -> how many of their clicks stood here. That these were flagged stays."""
        of_user = self._user_hashes == user_hash
        self._user_hashes[of_user] = 0
        return int(of_user.sum())

    def count_of(self, user_hash: int) -> int:
        return int((self._user_hashes == user_hash).sum())

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object."""
        arrays: dict[str, NDArray[Any]] = {"user_hashes": self._user_hashes, "flagged": self._flagged}
        return arrays, {"clicks": self._clicks, "open": self.open, "let_through": dict(self.let_through)}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self._user_hashes, self._flagged = arrays["user_hashes"].copy(), arrays["flagged"].copy()
        self._clicks, self.open, self.let_through = state["clicks"], state["open"], Counter(state["let_through"])
