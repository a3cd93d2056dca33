"""Decides which weights serve: fine-tuning on request, evaluation in the shadow, versions, and rollbacks.

The loop calls `on_batch` with each micro-batch, once its lists are out, and `step` once a turn.
Each decision is a notice: one line with its figures.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.gate_limits import GateLimits
from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from online.learner.ranking_model import RankingModel
from online.lifecycle.click_rates import OUTAGE, RateNotice
from online.lifecycle.emit import Emit
from online.lifecycle.finetune import FineTuning, Tuning, examples
from online.lifecycle.finetune_outside import OutsideFineTuning, outside
from online.lifecycle.flood import FloodWatch
from online.lifecycle.reaction import Changes
from online.lifecycle.shadow import ShadowEvaluation
from online.lifecycle.versions import VersionError, Versions
from stream.events import Click

SLOW_HERE = 0.5  # share of the expected rate; clicks that are read faster are not missing
STATE_WARM_UP = 0.5  # share of the clicks of a shadow on which a model learns to do with the state, or without it
SKIPPED_REPORTED_EACH = 1_000  # clicks between two notices of updates that were skipped

#: Reads a checkpoint by its number; returns arrays and state. Raises VersionError if it cannot be read.
ReadCheckpoint = Callable[[int], tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]]


@dataclass(frozen=True)
class Proposal:
    """A version that a group's leader sends to all workers.

    Attributes:
        why: its origin, for notices.
        figures: of its evaluation.
        compared: the same in words.
        parent: number of the version that it began from.
        rolled_back_to: number of the version that serves again; None: it is a new one.
        number: of the version itself; None: the next one.
    """

    why: str
    figures: dict[str, Any]
    compared: str
    parent: int
    rolled_back_to: int | None = None
    number: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Proposal":
        """Returns what `as_dict` gave, and more. Raises KeyError."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class Propose(Protocol):
    """Sends a version to all workers of a group. `tuned`: whether it is the live one with a change."""

    def __call__(self, proposal: Proposal, weights: RankingModel, *, tuned: bool) -> None: ...


class Totals(Protocol):
    """The worker's counts that a supervisor uses."""

    learned: int  # clicks
    finetunings: int


class Supervisor:
    """Drift, fine-tuning, the shadow, and versions of one learner's weights.

    At most one candidate is in the shadow, and beside it the live weights' predecessor: after a version was published,
    and again after an alarm for the worse.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        learner: Learner,
        totals: Totals,
        versions: Versions,
        changes: Changes | None,
        emit: Emit,
        read_checkpoint: ReadCheckpoint | None,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates a supervisor.

        Args:
            settings: all settings.
            learner: whose weights are supervised.
            totals: the worker's counts.
            versions: the versions of the weights.
            changes: detects drift; None: drift is not watched.
            emit: emits notices.
            read_checkpoint: reads a checkpoint for a rollback; None: there are no checkpoints.
            clock: the computer's, in seconds since 1970.
            monotonic: a monotonic clock, in seconds.
        """
        self.settings, self.learner, self.totals, self.versions = settings, learner, totals, versions
        self.changes, self.clock = changes, clock
        self._emit, self._read_checkpoint = emit, read_checkpoint
        self._rollbacks: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self.propose: Propose | None = None  # in a group
        self.leads = True  # else another worker of the group takes the decisions, and this one follows
        self.finetuning: Tuning | None = None
        self.candidate: ShadowEvaluation | None = None
        self.predecessor: ShadowEvaluation | None = None
        self._next_slice_at = 0.0  # of fine-tuning, by the monotonic clock
        self.last_finetuned_at: float | None = None  # seconds since 1970
        self._state_trial_at = settings.state_trial_clicks  # clicks, from which on the next trial of the state begins
        self._asked: dict[str, Any] | None = None
        self._why: dict[str, Any] = {}  # the request of the running fine-tuning
        self._flood = FloodWatch()
        self._outage_reported = False  # whether an outage was reported, and not yet its end
        self._monotonic = monotonic
        self._read_at = deque([monotonic()], maxlen=settings.outage_clicks + 1)  # when the latest clicks were read
        self._skipped_reported = (
            0,
            -SKIPPED_REPORTED_EACH,
        )  # updates skipped, clicks learned: at the latest notice

    # Requests

    def ask_finetuning(self, why: str, *, drift: bool = False) -> None:
        """Requests fine-tuning. May be called from any thread; several requests before it begins count once.

        Args:
            why: the reason, for notices.
            drift: whether to train mostly on recent clicks.
        """
        if self._asked is None or (drift and not self._asked["drift"]):
            self._asked = {"why": why, "drift": drift}

    def ask_rollback(self, number: int, why: str) -> None:
        """Requests that version `number` serves again, from the next turn on. May be called from any thread.

        Raises:
            VersionError: the version cannot be restored.
        """
        self.versions.held(number)
        self._rollbacks.put((number, why))

    @property
    def state(self) -> str:
        """`running`, `shadow` (a candidate is compared), `asked` or `idle`."""
        if self.finetuning is not None:
            return "running"
        return "shadow" if self.candidate is not None else "asked" if self._asked is not None else "idle"

    @property
    def busy(self) -> bool:
        """Whether there is work to do even without clicks."""
        running = self.finetuning is not None and not self.finetuning.waits
        asked = self.finetuning is None and self._asked is not None and self.candidate is None and self.leads
        return running or asked

    @property
    def trials(self) -> list[ShadowEvaluation]:
        """The candidate and the predecessor, as far as there are any."""
        return [trial for trial in (self.candidate, self.predecessor) if trial is not None]

    @property
    def outage(self) -> bool:
        """Whether an outage of clicks was reported, and not yet its end."""
        return self._outage_reported

    @property
    def flooded(self) -> bool:
        """Whether there is a flood of flagged clicks."""
        return self._flood.lasts

    # What the loop calls

    def on_batch(
        self, clicks: Sequence[Click], learned: BatchResult, arrived_at: Sequence[float] | None = None
    ) -> None:
        """Handles a micro-batch that was learned and whose lists are written; `arrived_at`: as for `Changes.update`."""
        self._read_at.extend([self._monotonic()] * len(clicks))
        if not self.leads:
            self._check_live(learned)
            if self.changes is not None:
                self.changes.reaction.after(len(clicks))
            return
        if self.finetuning is not None:
            self.finetuning.rows_changed.update(learned.freed, learned.taken)
        for trial in self.trials:
            trial.update(learned)
        self._check_live(learned)
        if self.changes is not None:
            for notice in self.changes.update(clicks, learned, arrived_at):
                self._notice(notice)

    def silence(self, idle_s: float) -> None:
        """Reports missing clicks while no messages arrive and none wait; `idle_s`: seconds since the last one."""
        if not self.leads:
            return
        for notice in [] if self.changes is None or self._outage_reported else self.changes.silence(idle_s):
            self._outage_reported = True
            self._emit(notice.kind, str(notice), notice.as_dict())

    def step(self, *, late: bool = False) -> bool:
        """Takes the decisions that are due, and does a slice of fine-tuning unless clicks are late.

        Returns:
            Whether another version serves now; it has to be saved before any list names it.
        """
        before = self.learner.version
        if not self.leads:
            return False
        while not self._rollbacks.empty():
            self._roll_back_to(*self._rollbacks.get())
        if self.predecessor is not None and not self.predecessor.paused:
            self._decide_predecessor(self.predecessor)
        if self.candidate is not None:
            self._decide_candidate(self.candidate)
        elif not late:
            self._finetune()
            self._try_state()
        self._note_trials()
        return self.learner.version != before

    def rows_changed(self, learned: BatchResult) -> None:
        """Notes the rows that changed hands in a micro-batch that was only counted."""
        if self.finetuning is not None:
            self.finetuning.rows_changed.update(learned.freed, learned.taken)

    def follow(self) -> None:
        """Leaves the decisions to another worker of the group, and drops what was being decided."""
        self.leads = False
        self.close()
        self.candidate = self.predecessor = self._asked = None
        self._note_trials()
        while not self._rollbacks.empty():
            self._rollbacks.get()

    def forget(self) -> None:
        """Handles that a user is forgotten: a running fine-tuning, which may have read their clicks, starts again."""
        if self.finetuning is not None:
            self._asked = self._asked or self._why
            self.close()
        for trial in self.trials:
            trial.forget_lists()

    def close(self) -> None:
        """Ends a running fine-tuning, with its processes and its folder if it is outside the worker."""
        if self.finetuning is not None:
            self.finetuning.close()
            self.finetuning = None

    # Fine-tuning

    def _finetune(self) -> None:
        """Does a slice of fine-tuning, if it is running or requested, and has not had its share of the time."""
        if self.finetuning is None:
            if self._asked is None:
                return
            self._why, self._asked = self._asked, None
            self.finetuning = self._begin_finetuning(self._why)
            if self.finetuning is None:
                return
        began = self._monotonic()
        if began < self._next_slice_at:
            return
        self.finetuning.run_for(self.settings.finetune_slice_ms / 1000)
        ended = self._monotonic()
        self._next_slice_at = ended + (ended - began) * (1 / self.settings.finetune_cpu_share - 1)
        if self.finetuning.done:
            tuning, self.finetuning = self.finetuning, None
            self._finetuned(tuning)

    def _begin_finetuning(self, asked: Mapping[str, Any]) -> Tuning | None:
        if self.learner.privacy is not None:
            text = "left out: NEXTCLICK_PRIVACY_EPSILON does not account for learning whole histories"
            self._emit("finetuning", text, {"why": asked["why"]})
            return None
        seed = self.settings.seed + self.totals.finetunings + 1
        share = self.settings.finetune_recent_share_drift if asked["drift"] else self.settings.finetune_recent_share
        histories = examples(self.learner, share, np.random.default_rng(seed))
        if histories is None:
            self._emit("finetuning", "left out: no history has two clicks on known items yet", {"why": asked["why"]})
            return None
        figures = {"why": asked["why"], "histories": len(histories.lengths), "clicks": int(histories.lengths.sum())}
        self._emit("finetuning", f"began ({asked['why']}) on {figures['histories']} histories", figures)
        kind = OutsideFineTuning if outside(self.settings) else FineTuning
        return kind(self.learner, histories, seed=seed)

    def _finetuned(self, tuning: Tuning) -> None:
        self.totals.finetunings += 1
        self.last_finetuned_at = self.clock()
        why = f"fine-tuned ({self._why['why']})"
        if tuning.failed is None:
            self.examine(tuning.candidate(), why, tuning.figures())
        else:
            self._emit("rejected", f"{why}: {tuning.failed}", tuning.figures())

    # What the state adds

    def _try_state(self) -> None:
        """Puts a copy of the live weights into the shadow that does not use the Reformer's state, once it is time to
        measure what it adds; or one that does, where the live ones do not.

        It adds a little on some streams and nothing on others, and takes a quarter of a click's time.
        """
        settings, live = self.settings, self.learner.weights
        wanted = settings.tries_state and self.learner.may_use_state
        free = self.candidate is None and self.finetuning is None and self._asked is None
        free = free and (self.predecessor is None or self.predecessor.paused)
        if not (wanted and free and self.totals.learned >= self._state_trial_at):
            return
        self._state_trial_at = 2 * self.totals.learned
        weights = live.copy()
        weights.uses_state = not live.uses_state
        why = f"{'with' if weights.uses_state else 'without'} the network's state"
        self.examine(weights, why, {}, warm_up=int(STATE_WARM_UP * settings.shadow_clicks_max))

    def _note_trials(self) -> None:
        """Has the learner prepare what weights in the shadow read of histories."""
        self.learner.trial_reads_state = any(trial.weights.uses_state and not trial.paused for trial in self.trials)

    def _limits(self, weights: RankingModel) -> GateLimits:
        """What a candidate has to pass."""
        if weights.uses_state == self.learner.weights.uses_state:
            return self.settings.candidate_gate
        return self.settings.state_gate(uses_state=weights.uses_state)

    def examine(self, weights: RankingModel, why: str, figures: Mapping[str, Any], *, warm_up: int = 0) -> None:
        """Puts weights into the shadow as the candidate, instead of any other; without a gate, publishes them.

        Args:
            weights: of the candidate.
            why: their origin, for notices.
            figures: for notices.
            warm_up: clicks on which the candidate only learns, before it is compared.
        """
        if not weights.finite():
            self._emit("rejected", f"{why}: its weights are not finite", figures)
            return
        facts: dict[str, Any] = {"why": why, "figures": dict(figures), "parent": self.learner.version}
        if warm_up:
            facts["warm_up"] = warm_up
        self.candidate = ShadowEvaluation(self.learner, weights, self._limits(weights), facts=facts)
        if self.settings.gate:
            self._emit("candidate", f"{why}: ranks beside version {self.learner.version}", figures)
        else:
            self._publish(self.candidate)

    # Decisions

    def _decide_candidate(self, trial: ShadowEvaluation) -> None:
        if trial.decision == "publish":
            self._publish(trial)
        elif trial.decision == "reject":
            self.candidate = None
            figures = trial.figures()
            reason = trial.fault or f"{_compared(figures)} after {figures['clicks']:,} clicks"
            self._emit("rejected", f"{trial.facts['why']}: {reason}", trial.facts["figures"] | figures)

    def _decide_predecessor(self, trial: ShadowEvaluation) -> None:
        if trial.decision == "go on":
            return
        trial.paused = True
        if trial.fault is not None:
            self.predecessor = None
        elif trial.decision == "publish":
            figures = trial.figures()
            reason = trial.live_fault or f"it is worse than its predecessor: {_compared(figures)}"
            self._take_back(trial.weights, trial.facts["number"], reason, figures)

    def _publish(self, trial: ShadowEvaluation) -> None:
        self.candidate = None
        facts, figures = trial.facts, trial.facts["figures"] | trial.figures()
        compared = _compared(figures) if figures["clicks"] else "without a gate"
        if self.propose is not None:
            self.propose(Proposal(facts["why"], figures, compared, facts["parent"]), trial.weights, tuned=True)
            return
        before, number = self.learner.weights, self.learner.version
        version = self.versions.publish(
            facts["why"], at_ms=self._now_ms(), learned=self.totals.learned, figures=figures, parent=facts["parent"]
        )
        self.learner.publish(trial.weights, version.number)
        self._keep_predecessor(before, number)
        self._emit("published", f"version {version.number}, {facts['why']}: {compared}", figures)

    def _keep_predecessor(self, before: RankingModel, number: int) -> None:
        if self.learner.privacy is not None:  # in the shadow it would learn, beside what the budget covers
            return
        self.predecessor = ShadowEvaluation(self.learner, before, self.settings.rollback_gate, facts={"number": number})
        self.predecessor.paused = not self.settings.gate

    def lapsed(self, proposal: Proposal, reason: str) -> None:
        """Notes that a version that was proposed does not serve."""
        self._emit("rejected", f"{proposal.why}: {reason}", proposal.figures)

    def adopt(self, proposal: Proposal, before: RankingModel | None = None) -> None:
        """Notes a version of the group's leader, whose weights the live ones are now. `before`: the live weights before
        them, if this worker compares the two."""
        number, back = self.learner.version, proposal.rolled_back_to
        stamp: dict[str, Any] = {"at_ms": self._now_ms(), "learned": self.totals.learned, "figures": proposal.figures}
        stamp["number"] = proposal.number
        if back is None:
            version = self.versions.publish(proposal.why, **stamp, parent=proposal.parent)
            self._emit("published", f"version {version.number}, {proposal.why}: {proposal.compared}", proposal.figures)
        else:
            version = self.versions.roll_back(back, proposal.why, **stamp, at_hand=True)
            text = f"version {number} gives way to version {back}, which is version {version.number} now"
            self._emit("rolled_back", f"{text}: {proposal.why}", proposal.figures)
        self.learner.version = version.number
        self.predecessor = None
        if self.leads and before is not None and back is None:
            self._keep_predecessor(before, number)

    def _take_back(self, weights: RankingModel, number: int, why: str, figures: Mapping[str, Any]) -> None:
        """Makes version `number` serve again, as a new version, and drops the candidate of the version given up."""
        given_up = self.learner.version
        if self.propose is not None:
            self.close()
            self.predecessor = self.candidate = None
            proposal = Proposal(why, dict(figures), "", given_up, rolled_back_to=number)
            self.propose(proposal, weights, tuned=False)
            return
        version = self.versions.roll_back(
            number, why, at_ms=self._now_ms(), learned=self.totals.learned, figures=figures, at_hand=True
        )
        self.learner.publish(weights, version.number)
        self.predecessor = None
        self.close()
        text = f"version {given_up} gives way to version {number}, which is version {version.number} now: {why}"
        self._emit("rolled_back", text, figures)
        if self.candidate is not None:
            self._emit("rejected", f"{self.candidate.facts['why']}: version {given_up} was given up", {})
            self.candidate = None

    def _roll_back_to(self, number: int, why: str) -> None:
        """Rolls back to a version's weights from its checkpoint, as an operator requested. Counts, memories and
        histories stay as they are."""
        try:
            version = self.versions.held(number)
            if self._read_checkpoint is None:
                raise VersionError("there are no checkpoints")
            arrays, state = self._read_checkpoint(version.checkpoint or 0)
        except VersionError as error:
            self._emit("rollback_refused", f"not rolled back to version {number}: {error}", {})
            return
        self._take_back(self._weights_of(arrays, state["learner"]), number, why, {})

    def _weights_of(self, arrays: Mapping[str, NDArray[Any]], learner: Mapping[str, Any]) -> RankingModel:
        """Returns the weights of a checkpoint, with each item's vectors in its present row."""
        weights = RankingModel(self.settings)
        weights.load_state(below(arrays, "weights"))
        saved = learner["items"]["vocabulary"]
        now = [self.learner.vocabulary.row_of(item) for item in saved["items"]]
        there = [(old, new) for old, new in zip(saved["rows"], now, strict=True) if old and new]
        old, new = torch.tensor(there, dtype=torch.int64).reshape(-1, 2).unbind(1)
        weights.move_rows(old, new, len(self.learner.store))
        return weights

    # Notices

    def _check_live(self, learned: BatchResult) -> None:
        """Reports skipped updates and floods of flagged clicks, and compares broken weights with their predecessor."""
        paused = self.predecessor is not None and self.predecessor.paused
        if paused and not learned.finite():
            self._compare_with_predecessor()
        skipped, (reported, at) = self.learner.weights.skipped, self._skipped_reported
        if skipped > reported and self.totals.learned - at >= SKIPPED_REPORTED_EACH:
            self._emit("update_skipped", f"{skipped - reported} updates skipped: gradients exploded or not finite", {})
            self._skipped_reported = (skipped, self.totals.learned)
        if (flood := self._flood.update(self.totals.learned, self.learner.abuse_filter.total)) is not None:
            self._emit(*flood)
        if (turned := self.learner.abuse_filter.net.take_notice()) is not None:
            self._emit(*turned)
        if self.learner.privacy is not None and (changed := self.learner.privacy.take_notice()) is not None:
            self._emit(*changed)

    def _notice(self, notice: Any) -> None:
        """Handles a notice of drift, or of missing clicks."""
        if isinstance(notice, RateNotice):
            self._notice_of_rate(notice)
            return
        self._emit("alarm" if notice.worse else "improvement", str(notice), notice.as_dict())
        if notice.worse:
            self.ask_finetuning("drift", drift=True)
            self._compare_with_predecessor()

    def _notice_of_rate(self, notice: RateNotice) -> None:
        """Reports an outage only if this worker reads clicks slowly too: else it is catching up with clicks that
        arrived slowly in the past, or the broker's clock was set. Reports the end of each reported outage."""
        begins = notice.kind == OUTAGE
        took_s = self._monotonic() - self._read_at[0]
        slow_here = len(self._read_at) - 1 < SLOW_HERE * notice.expected_hz * took_s
        if begins == self._outage_reported or (begins and not slow_here):
            return
        self._outage_reported = begins
        self._emit(notice.kind, str(notice), notice.as_dict())

    def _compare_with_predecessor(self) -> None:
        """Compares the live weights with their predecessor again, since they may be the cause of an alarm."""
        if self.settings.gate and self.predecessor is not None and self.predecessor.paused:
            self.predecessor.restart()

    def _now_ms(self) -> int:
        return int(1000 * self.clock())

    # State

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and a JSON object. A running fine-tuning is saved as a request for one."""
        arrays: dict[str, Mapping[str, NDArray[Any]]] = {}
        state: dict[str, Any] = {"candidate": None, "predecessor": None}
        for name, trial in (("candidate", self.candidate), ("predecessor", self.predecessor)):
            if trial is not None:
                arrays[name], state[name] = trial.to_state()
        return joined(arrays), state | {
            "state_trial_at": self._state_trial_at,
            "asked": self._why if self.finetuning is not None else self._asked,
            "skipped_told": list(self._skipped_reported),
            "flood": self._flood.to_state(),
            "outage_told": self._outage_reported,
            "changes": None if self.changes is None else self.changes.to_state(),
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Loads what `to_state` returned, after the learner, totals and versions were loaded."""
        gates = {"candidate": self._limits, "predecessor": lambda _: self.settings.rollback_gate}
        for name, limits in gates.items():
            if state[name] is not None:
                setattr(self, name, ShadowEvaluation.restored(self.learner, limits, below(arrays, name), state[name]))
        self._note_trials()
        self._state_trial_at = state.get("state_trial_at", self._state_trial_at)
        self._asked = state["asked"]
        skipped, at = state["skipped_told"]
        self._skipped_reported = (skipped, at)
        self._flood.load_state(state["flood"])
        self._outage_reported = state["outage_told"]
        if self.changes is not None:
            self.changes.load_state(state["changes"])
            self.changes.rates.silent = self._outage_reported and not self.changes.rates.falling


def _compared(figures: Mapping[str, Any]) -> str:
    """Returns the figures of a gate in words."""
    return f"NDCG@10 {figures['candidate']} in the shadow, {figures['live']} live, {figures['clicks']:,} clicks"
