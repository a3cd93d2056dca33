"""The versions of the model: which were published, when, why, after which figures, and where they stand on disk.

The index is part of each checkpoint. A version's weights, optimizer, vocabulary, counts and offsets are the checkpoint
that was written when it was published, which is pinned for as long as the version may be rolled back to. The first
version was never published, and knew nothing when it began: its own is the latest while it makes the lists.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

State = Literal["live", "kept", "rolled back", "gone"]
LIVE: Final = "live"
KEPT: Final = "kept"
ROLLED_BACK: Final = "rolled back"
GONE: Final = "gone"
STATES: dict[State, str] = {
    LIVE: "makes the lists",
    KEPT: "was replaced; can be rolled back to",
    ROLLED_BACK: "was given up for a version before it; can be rolled back to all the same",
    GONE: "its checkpoint has made room",
}


class VersionError(Exception):
    """A version that cannot be had; one line that says which there are."""


@dataclass(frozen=True)
class Version:
    """One published model. `at_ms`: milliseconds since 1970; `learned`: clicks learned until then."""

    number: int
    at_ms: int
    learned: int
    why: str
    parent: int | None
    checkpoint: int | None  # None until the next one is written
    state: State
    figures: dict[str, Any] = field(default_factory=dict)


class Versions:
    """An index of the latest `listed` versions. The latest `kept` of them have a checkpoint; numbers only ever rise.

    Each change must be followed by a checkpoint before a list names the new number.
    """

    def __init__(self, kept: int, listed: int, *, at_ms: int = 0) -> None:
        self.kept = kept
        self.listed = listed
        self._held = {1: Version(1, at_ms, 0, "the beginning", None, None, LIVE)}
        self._saving: tuple[int, int | None, int] | None = None  # a version, its checkpoint before, and the one to come

    @property
    def live(self) -> Version:
        return next(version for version in self._held.values() if version.state == LIVE)

    @property
    def unsaved(self) -> bool:
        """Whether the live version was published after the latest checkpoint."""
        return self.live.checkpoint is None and self.live.parent is not None

    @property
    def came_back(self) -> bool:
        """Whether the live version took the place of one that was given up."""
        return self._held.get(self.live.number - 1, self.live).state == ROLLED_BACK

    def all(self) -> list[Version]:
        """Oldest first."""
        return list(self._held.values())

    @property
    def next_number(self) -> int:
        """The number of the next version."""
        return max(self._held) + 1

    def publish(
        self,
        why: str,
        *,
        at_ms: int,
        learned: int,
        figures: Mapping[str, Any] | None = None,
        parent: int | None = None,
        number: int | None = None,
    ) -> Version:
        """A new live version. `parent`: whose weights it began from; None: the live one's. `number`: at least the next
        one, which None means."""
        before = self.live
        number = max(self.next_number, number or 0)
        self._held[before.number] = replace(before, state=KEPT)
        self._held[number] = Version(
            number, at_ms, learned, why, parent or before.number, None, LIVE, dict(figures or {})
        )
        self._make_room()
        return self._held[number]

    def roll_back(
        self,
        to: int,
        why: str,
        *,
        at_ms: int,
        learned: int,
        figures: Mapping[str, Any] | None = None,
        at_hand: bool = False,
        number: int | None = None,
    ) -> Version:
        """A new live version that begins from the weights of version `to`. Raises VersionError: it cannot be had.

        `at_hand`: its weights need no checkpoint."""
        if not at_hand:
            self.held(to)
        given_up = self.live.number
        version = self.publish(why, at_ms=at_ms, learned=learned, figures=figures, parent=to, number=number)
        if self._held[given_up].state == KEPT:
            self._held[given_up] = replace(self._held[given_up], state=ROLLED_BACK)
        return version

    def held(self, number: int) -> Version:
        """A version that has a checkpoint and does not make the lists. Raises VersionError."""
        version = self._held.get(number)
        if version is not None and version.state in (KEPT, ROLLED_BACK) and version.checkpoint is not None:
            return version
        there = [str(v.number) for v in self._held.values() if v.state in (KEPT, ROLLED_BACK)]
        kept = f"kept are {', '.join(there)}" if there else "none is kept yet"
        if version is None:
            raise VersionError(f"there is no version {number}; {kept}")
        what = "makes the lists already" if version.state == LIVE else "is not kept any more"
        raise VersionError(f"version {number} {what}; {kept}")

    @property
    def pinned(self) -> set[int]:
        """Checkpoints of versions that can be rolled back to, and the live one's."""
        held = (version for version in self._held.values() if version.state != GONE)
        return {version.checkpoint for version in held if version.checkpoint is not None}

    def saving(self, checkpoint: int) -> set[int]:
        """A checkpoint with that number is about to be written -> those to pin. The first since a version was published
        is that version's; the first version's is each of them, until another is published."""
        live, self._saving = self.live, None
        if live.checkpoint is None or live.parent is None:
            self._saving = live.number, live.checkpoint, checkpoint
            self._held[live.number] = replace(live, checkpoint=checkpoint)
        return self.pinned

    def not_saved(self) -> None:
        """The checkpoint that was about to be written could not be: what `saving` noted is not so."""
        if self._saving is not None:
            number, before, checkpoint = self._saving
            version = self._held.get(number)
            if version is not None and version.checkpoint == checkpoint:  # it may have made room since
                self._held[number] = replace(version, checkpoint=before)

    def _make_room(self) -> None:
        for number in list(self._held)[: -self.listed]:
            del self._held[number]
        for version in list(self._held.values())[: -self.kept]:
            self._held[version.number] = replace(version, state=GONE, checkpoint=None)

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(version) for version in self._held.values()]

    def to_state(self) -> list[dict[str, Any]]:
        return self.as_dicts()

    def load_state(self, state: list[dict[str, Any]], there: Collection[int]) -> None:
        """Takes back what `to_state` gave. `there`: numbers of the checkpoints on disk; a version whose own is not
        among them is gone."""
        self._held = {row["number"]: Version(**row) for row in state}
        self._make_room()  # fewer may be kept than when it was saved
        for version in self._held.values():
            if version.checkpoint is not None and version.checkpoint not in there:
                gone: State = LIVE if version.state == LIVE else GONE
                self._held[version.number] = replace(version, state=gone, checkpoint=None)
