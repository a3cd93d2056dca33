"""What a group's leader decides, on its way to all workers: versions of the weights, and reactions to drift.

A version is a replacement of the base. The news of it goes before it, so a leader that is killed in between has
published nothing. All workers adopt it when they read the replacement, which another leader's base may have preceded:
then it is sent again, as a change of the base of then.
"""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from online.learner.ranking_model import RankingModel
from online.lifecycle.supervisor import Proposal, Supervisor
from online.rounds.base import BaseRecord
from online.rounds.encoding import encode_base
from online.rounds.merger import Merger
from online.rounds.replica import Replica
from online.rounds.weights import Weights
from online.worker.steps import StepHook
from online.worker.weights_topic import Outbox

ANNOUNCED_MAX = 64  # versions and reactions that are remembered

log = logging.getLogger(__name__)


class Pending(NamedTuple):
    """A version that is proposed, and not accepted yet."""

    proposal: Proposal
    weights: Weights  # whole; if tuned, the change
    tuned: bool


class Decisions:
    """Sends the leader's decisions, and follows them. For the loop's thread only."""

    def __init__(
        self, *, supervisor: Supervisor, replica: Replica, merger: Merger, outbox: Outbox, reached: StepHook
    ) -> None:
        """Creates one without decisions; it takes the supervisor's proposals from now on."""
        self._supervisor, self._replica, self._merger = supervisor, replica, merger
        self._outbox, self._reached = outbox, reached
        self._pending: Pending | None = None
        self._sent: str | None = None  # identity of the record with the pending version
        self._announced: dict[str, Mapping[str, Any]] = {}  # news of versions, by the identity of their record
        self._reactions = 0  # that this worker has begun
        self._known_reactions: dict[str, None] = {}  # by identity
        self.not_accepted = 0  # proposals that another record preceded
        supervisor.propose = self._propose

    def _propose(self, proposal: Proposal, weights: RankingModel, *, tuned: bool) -> None:
        """Takes a version; it serves once the topic has brought it back."""
        tensors = weights.tensors()
        versions = self._supervisor.versions
        self._pending = Pending(
            replace(proposal, number=versions.next_number),
            self._replica.change_to(tensors) if tuned else self._replica.whole(tensors),
            tuned,
        )
        self._sent = None

    @property
    def waits(self) -> bool:
        """Whether a version is to be sent."""
        return self._pending is not None and self._sent is None

    def send(self, leader_epoch: int) -> str | None:
        """Sends the version that is proposed, if there is one. Returns the identity of its record."""
        if self._pending is None or self._sent is not None:
            return None
        proposal, weights, tuned = self._pending
        whole = self._replica.moved_base(weights) if tuned else weights
        record = self._merger.replacement(whole, leader_epoch, discard=not tuned)
        self._sent = record.position.identity
        self._reached("share_version")
        self._outbox.put({"kind": "version", "identity": self._sent} | proposal.as_dict())
        self._reached("share_replacement")
        self._outbox.put(encode_base(record))
        return self._sent

    def tell_version(self, identity: str) -> None:
        """Tells which version serves with a base that is sent whole."""
        live = self._supervisor.versions.live
        if live.parent is not None:
            proposal = Proposal(live.why, live.figures, "", live.parent, number=live.number)
            self._outbox.put({"kind": "version", "identity": identity} | proposal.as_dict())

    def lapse(self) -> None:
        """Drops what is proposed: another worker leads."""
        if self._pending is not None:
            self._supervisor.lapsed(self._pending.proposal, "another worker leads the group")
        self._pending = self._sent = None

    # What the topic brings

    def is_own_version(self, record: BaseRecord) -> bool:
        """Returns whether a record makes a fine-tuned version serve that this worker has proposed."""
        return self._pending is not None and self._pending.tuned and record.position.identity == self._sent

    def record_read(self, record: BaseRecord, *, accepted: bool, before: RankingModel | None = None) -> None:
        """Follows a record of the topic: a version that it brings is adopted.

        Args:
            record: of a base.
            accepted: whether it is the base now.
            before: the live weights before it, if the version is this worker's.
        """
        identity = record.position.identity
        news = self._announced.pop(identity, None)
        if accepted and news is not None:
            self._adopt(news, before)
        if identity == self._sent:
            self._sent = None
            if accepted:
                self._pending = None
            else:
                self.not_accepted += 1

    def _adopt(self, news: Mapping[str, Any], before: RankingModel | None) -> None:
        try:
            proposal = Proposal.from_dict(news)
            if proposal.number is None or proposal.number > self._supervisor.versions.live.number:
                self._supervisor.adopt(proposal, before)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("a version of the leader's cannot be read: %r is missing or wrong", error)

    def take_news(self, news: Mapping[str, Any]) -> None:
        """Takes news of the topic; what cannot be read is left out."""
        kind, identity = news.get("kind"), news.get("identity")
        if not isinstance(identity, str):
            log.warning("news of a worker without an identity are skipped")
        elif kind == "version":
            self._announced[identity] = news
            _bound(self._announced)
        elif kind == "reaction" and identity not in self._known_reactions:
            self._note_reaction(identity)
            changes = self._supervisor.changes
            if changes is not None:
                changes.reaction.begin()
                self._reactions = changes.reaction.reactions

    def _note_reaction(self, identity: str) -> None:
        self._known_reactions[identity] = None
        _bound(self._known_reactions)

    def tell_of_reaction(self, *, leads: bool) -> None:
        """Tells the others once a reaction to drift has begun here: their counts are scaled down too."""
        changes = self._supervisor.changes
        if changes is not None and changes.reaction.reactions > self._reactions:
            self._reactions = changes.reaction.reactions
            if leads:
                identity = uuid.uuid4().hex
                self._note_reaction(identity)
                self._reached("share_reaction")
                self._outbox.put({"kind": "reaction", "identity": identity})

    # State

    def to_state(self) -> dict[str, Any]:
        return {
            "announced": list(self._announced.values()),
            "reactions": self._reactions,
            "known_reactions": list(self._known_reactions),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned."""
        self._announced = {news["identity"]: news for news in state["announced"]}
        self._reactions = state["reactions"]
        self._known_reactions = dict.fromkeys(state["known_reactions"])


def _bound(remembered: dict[str, Any]) -> None:
    while len(remembered) > ANNOUNCED_MAX:
        del remembered[next(iter(remembered))]
