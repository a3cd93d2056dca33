"""Lists that are ranked at the moment of the request: for a user, or for a visitor who clicked on some items lately.

Nothing of a question changes the model: histories of those who ask are copied, and recent clicks are added to the
copies. All questions that wait are ranked in one gather.

Letters: `Q` questions, `H` clicks kept of a user, `L` clicks read of each, `C` candidates of all of them (flat).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.config.formula import Formula
from online.learner.diversity import varied
from online.learner.exploration import draw_from_shares
from online.learner.facts.gather import QueryArrays, SeenRows
from online.learner.facts.store import NO_SEEN_ROWS, WANTED_MAX, Gathered
from online.learner.history import ClicksOldestFirst, UserHistories
from online.learner.listable import REASONS, SITE_RULE
from online.learner.queries import QueryBuilder
from online.learner.scoring import ScoredCandidates
from online.learner.state import LearnerState
from online.learner.worth.objective import as_shares

UNKNOWN_TYPE = 0  # of recent clicks: the first event type there was
RECENT_GAP_S = 30.0  # taken to lie between recent clicks without times
FEW_MAX = 600  # items that pass a filter and are all ranked, whatever the usual candidates are
WIDER = 300  # candidates that a filter is given where the usual ones do not suffice
#: Why items were dropped.
EXCLUDED, HIDDEN, SEEN, UNAVAILABLE, FILTER = "excluded", "hidden", "seen", "unavailable", "filter"

SITE = REASONS[SITE_RULE]

#: Returns which of rows (N,) may be listed.
RowFilter = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
#: Returns which of items (N,), which need not have rows, may be listed.
ItemFilter = Callable[[Sequence[str]], NDArray[np.bool_]]


class RecentClick(NamedTuple):
    """A click that may not be in the history yet. `timestamp`: seconds since 1970; None: just now."""

    item_id: str
    timestamp: float | None = None


@dataclass(frozen=True)
class Question:
    """What is asked for.

    Attributes:
        user_id: whose list; None: a visitor's without a history.
        recent: latest clicks, oldest first, after those of the history; items that are not known are passed over.
        at: the moment of viewing, in seconds since 1970; None: that of the latest click anywhere.
        k: items wanted.
        candidates: items to be ranked, at most `WANTED_MAX`; None: all there are.
        exclude: items that must not be listed.
        where: which rows may be listed; None: all.
        where_items: the same of given candidates, which need not have rows; None: all.
        diversity: from 0 to 1, how much the list is to vary at the cost of scores.
        max_per_tag: items with the same tag at most; None: any number.
        explain: whether reasons are wanted.
        objective: what the list is ranked by; None: as all lists are.
        explore: expected share of the slots that are drawn, from 0 to 1; not with diversity or `max_per_tag`.
        temperature: of the draw; 1 draws by the shares themselves.
        request_id: seeds the draw.
    """

    user_id: str | None = None
    recent: Sequence[RecentClick] = ()
    at: float | None = None
    k: int = 10
    candidates: Sequence[str] | None = None
    exclude: Collection[str] = ()
    where: RowFilter | None = None
    where_items: ItemFilter | None = None
    diversity: float = 0.0
    max_per_tag: int | None = None
    explain: bool = False
    objective: Formula | None = None
    explore: float = 0.0
    temperature: float = 1.0
    request_id: str = ""


@dataclass(frozen=True)
class Answer:
    """A ranked list.

    Attributes:
        items: best first.
        scores: each item's share of the softmax over its candidates, or the objective's value; of candidates that are
            not known, 0.
        rows: (k,) of the items; 0 where an item has none.
        known: whether anything is known of the asker.
        widened: whether the usual candidates did not suffice, so that more were looked at.
        dropped: how many candidates were left out, by reason.
        considered: how many candidates were ranked.
        explanations: why each item is in the list, as JSON; None: not wanted.
        propensities: (k,) probability of each item at its slot, given those above; None: no slot could be drawn.
        drawn: (k,) which of the items were drawn.
    """

    items: list[str]
    scores: list[float]
    rows: NDArray[np.int64]
    known: bool
    widened: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    considered: int = 0
    explanations: list[Any] | None = None
    propensities: list[float] | None = None
    drawn: list[bool] | None = None


class Asked(NamedTuple):
    """Questions as the feature store takes them, and what it found."""

    histories: UserHistories  # copies, a slot for each question
    queries: QueryArrays  # (Q,)
    has_recent: NDArray[np.bool_]  # (Q,) whether clicks were added to the copy
    seen: SeenRows
    scored: ScoredCandidates
    states: Tensor | None  # (Q, D)


class Answerer:
    """Answers questions from the present facts by the live weights. For the loop's thread only."""

    def __init__(
        self, state: LearnerState, queries: QueryBuilder, counted_ahead: Callable[[], Collection[str]] = frozenset
    ) -> None:
        """`counted_ahead`: returns users whose next clicks are counted already, but not read by the network yet."""
        self.state, self.queries, self.counted_ahead = state, queries, counted_ahead
        #: Explains items of a list that was just asked for (`Explainer.explain`).
        self.explain: Callable[[Asked, int, Sequence[str]], list[Any] | None] = lambda *_: None

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Ranks lists, all in one gather; those whose filters leave too few candidates in a second one."""
        if not questions:
            return []
        passing = [self._few_that_pass(question) for question in questions]
        wanted = [
            self._rows_of(question) if rows is None else rows for question, rows in zip(questions, passing, strict=True)
        ]
        asked = self.ask(questions, wanted)
        answers = [
            self._answer(question, asked, at, widened=rows is not None)
            for at, (question, rows) in enumerate(zip(questions, passing, strict=True))
        ]
        short = [at for at, one in enumerate(questions) if passing[at] is None and self._is_short(one, answers[at])]
        if short:
            wider = [questions[at] for at in short]
            wanted = [self._wider(one, asked.scored.gathered, at) for one, at in zip(wider, short, strict=True)]
            again = self.ask(wider, wanted)
            for n, at in enumerate(short):
                found = self._answer(wider[n], again, n, widened=True)
                if len(found.items) > len(answers[at].items):
                    answers[at] = found
        return answers

    def ask(self, questions: Sequence[Question], wanted: Sequence[NDArray[np.int64]] | None = None) -> Asked:
        """Gathers and scores the candidates of Q questions. Valid until the next call.

        Args:
            questions: Q of them.
            wanted: rows to be candidates; None: those that the questions name, or what the store finds.
        """
        state = self.state
        histories, has_recent = self._histories(questions)
        everyone = np.arange(len(questions))
        lengths = histories.lengths(everyone)
        users = [question.user_id or "" for question in questions]
        now = np.array([self._moment(question) for question in questions])
        queries = QueryArrays(
            positions=np.zeros(len(questions), np.int64),
            slots=np.where(lengths > 0, everyone, -1),
            own_slots=state.store.own_slots(users),
            now=now,
            active=np.array([state.clock.after([moment]) if moment > 0 else state.now[1] for moment in now.tolist()]),
            repeated=np.zeros(len(questions), np.bool_),
        )
        if wanted is None:
            wanted = [self._rows_of(question) for question in questions]
        seen = self._seen(questions)
        added = state.added.of(histories, queries, users)
        gathered = state.store.ask(
            histories, queries, flagged=state.abuse_filter.flagged, seen=seen, wanted=_flat(wanted),
            more=added.candidates,
        )  # fmt: skip
        gathered = state.with_columns(gathered, added, histories, queries)
        latest = histories.oldest_first(everyone, state.settings.online_history)
        states = self._states(questions, latest, has_recent) if state.deep_state else None
        # As many as for lists that are written, and the same whatever others ask for: shares are of the kept ones.
        # Clicks are tested on fewer where a list is longer than `candidates_kept`, so their ranks may differ.
        kept = max(state.settings.candidates_kept, state.settings.list_size)
        scored = self._by_objectives(questions, state.score(gathered, states, kept))
        return Asked(histories, queries, has_recent, seen, scored, states)

    def _by_objectives(self, questions: Sequence[Question], scored: ScoredCandidates) -> ScoredCandidates:
        """Returns scored candidates in the order of the questions' own objectives, where they have any."""
        objective = self.state.weights.objective
        own: dict[Formula, list[int]] = {}
        for at, question in enumerate(questions):
            if question.objective is not None:
                own.setdefault(question.objective, []).append(at)
        if not own or not scored.kept.shape[1]:
            return scored
        order = objective.order(scored)
        for formula, those in own.items():
            order[those] = objective.order(scored, formula)[those]
        return scored._replace(order=order)

    # What is known of who asks

    def _histories(self, questions: Sequence[Question]) -> tuple[UserHistories, NDArray[np.bool_]]:
        """Returns copies of the askers' histories with their recent clicks, a slot for each question, and whether
        recent clicks were added (Q,)."""
        held, Q = self.state.histories, len(questions)
        copies = UserHistories(Q, held.history_max, values=held.values is not None)
        copies.slots([str(at) for at in range(Q)])
        known = [at for at, q in enumerate(questions) if q.user_id is not None and q.user_id in held]
        slots = held.find([questions[at].user_id or "" for at in known])
        for copy, ring in zip(copies.rings(), held.rings(), strict=True):
            copy[known] = ring[slots]
        if copies.values is not None and held.values is not None:
            copies.values[known] = held.values[slots]
        return copies, np.array([self._append(copies, at, question) for at, question in enumerate(questions)], np.bool_)

    def _append(self, copies: UserHistories, at: int, question: Question) -> bool:
        """Adds recent clicks to a copy -> whether there were any. Those that the history ends with already are not
        added again."""
        row_of, H = self.state.vocabulary.row_of, copies.history_max
        recent = [click for click in question.recent if row_of(click.item_id)][-H:]
        rows = [row_of(click.item_id) for click in recent]
        history = copies.clicks_of(at)[0].tolist()
        most = min(len(history), len(rows))
        overlap = next((size for size in range(most, 0, -1) if history[-size:] == rows[:size]), 0)
        if overlap == len(rows):
            return False
        now = self._moment(question)
        told = [click.timestamp for click in recent]
        times = [
            now - RECENT_GAP_S * (len(recent) - nth) if told[nth] is None else told[nth]
            for nth in range(overlap, len(recent))
        ]
        slots = np.full(len(times), at)
        copies.append(slots, rows[overlap:], UNKNOWN_TYPE, times)
        copies.put_values(slots, np.full(len(times), np.nan))
        return True

    def _moment(self, question: Question) -> float:
        return self.state.now[0] if question.at is None else question.at

    def _states(
        self, questions: Sequence[Question], latest: ClicksOldestFirst, has_recent: NDArray[np.bool_]
    ) -> Tensor:
        """Returns the Reformer's state after the latest click of each asker, (Q, D); 0 where there is none.

        Of a user without recent clicks it is the one that lists are ranked by, continued from the attention memory.
        """
        state, ahead = self.state, self.counted_ahead()
        users = [question.user_id if not has_recent[at] else None for at, question in enumerate(questions)]
        there = (latest.lengths > 0).tolist()
        remembered = [
            user is not None and has and user in state.histories and user not in ahead
            for user, has in zip(users, there, strict=True)
        ]
        anew = np.flatnonzero((latest.lengths > 0) & ~np.array(remembered))
        states = torch.zeros(len(questions), state.settings.width, device=state.device)
        if len(anew):
            clicks = ClicksOldestFirst(
                latest.rows[anew], latest.event_types[anew], latest.timestamps[anew], latest.lengths[anew]
            ).trimmed()
            read = state.weights.states(clicks).float()
            states[anew] = read[np.arange(len(anew)), clicks.lengths - 1]
        known = list(dict.fromkeys(user for user, has in zip(users, remembered, strict=True) if user and has))
        if known:
            now = state.states.now(known, state.histories.find(known))
            place = {user: at for at, user in enumerate(known)}
            at = np.flatnonzero(remembered)
            states[at] = now[[place[users[one] or ""] for one in at.tolist()]]
        return states

    def _seen(self, questions: Sequence[Question]) -> SeenRows:
        """Returns the rows that must not be candidates: what each user has seen or hidden, and what each question
        excludes."""
        row_of = self.state.vocabulary.row_of
        users, moments = [question.user_id or "" for question in questions], list(map(self._moment, questions))
        starts, rows = self.queries.barred_from(users, moments)
        parts = []
        for at, question in enumerate(questions):
            excluded = [row for item in question.exclude if (row := row_of(item))]
            parts.append(np.concatenate([rows[starts[at] : starts[at + 1]], np.array(excluded, np.int64)]))
        return _flat(parts)

    # Candidates

    def _rows_of(self, question: Question) -> NDArray[np.int64]:
        rows = [self.state.vocabulary.row_of(item) for item in question.candidates or ()]
        return np.array([row for row in dict.fromkeys(rows) if row], np.int64)

    def _few_that_pass(self, question: Question) -> NDArray[np.int64] | None:
        """Returns all rows that pass a question's filter, if they are few enough to be ranked at once; else None."""
        if question.where is None or question.candidates is not None:
            return None
        rows = np.arange(1, self.state.vocabulary.rows)
        rows = rows[question.where(rows) & ~self.state.store.items.blocked[rows]]
        return rows if 0 < len(rows) <= FEW_MAX else None

    def _is_short(self, question: Question, answer: Answer) -> bool:
        filtered = question.where is not None or bool(question.exclude) or bool(self._hidden_items(question))
        return filtered and question.candidates is None and len(answer.items) < question.k

    def _wider(self, question: Question, gathered: Gathered, at: int) -> NDArray[np.int64]:
        """Returns the usual candidates that pass, and the most popular rows of all that do."""
        rows = np.arange(1, self.state.vocabulary.rows)
        rows = rows[~self.state.store.items.blocked[rows]]
        out = {*question.exclude, *self._hidden_items(question)}
        excluded = [row for item in out if (row := self.state.vocabulary.row_of(item))]
        rows = rows[~np.isin(rows, excluded)]
        rows = rows if question.where is None else rows[question.where(rows)]
        popularity = self.state.popularity()[rows]
        most = rows[np.argsort(-popularity, kind="stable")[:WIDER]]
        usual = gathered.rows[gathered.starts[at] : gathered.starts[at + 1]].astype(np.int64)
        usual = usual if question.where is None else usual[question.where(usual)]
        return np.array(list(dict.fromkeys([*usual.tolist(), *most.tolist()]))[:WANTED_MAX], np.int64)

    # Lists

    def _answer(self, question: Question, asked: Asked, at: int, *, widened: bool) -> Answer:
        scored = asked.scored
        start, stop = scored.gathered.starts[at : at + 2].tolist()
        rows = scored.gathered.rows[start:stop].astype(np.int64)
        order, shares = self._order(scored, at, start, stop)
        if question.candidates is not None and not len(self._rows_of(question)):
            stop, order, shares = start, order[:0], shares[:0]  # none is known, so the store has looked for others
        rows, dropped = rows[order], {}
        if question.where is not None and len(rows):
            passes = question.where(rows)
            dropped[FILTER] = int((~passes).sum())
            rows, shares = rows[passes], shares[passes]
        values = shares
        shares = shares if scored.order is None else as_shares(values)
        if question.diversity > 0 or question.max_per_tag is not None:
            places = varied(
                self.state, rows, shares, question.k, diversity=question.diversity, max_per_tag=question.max_per_tag
            )
            rows, shares, values = rows[places], shares[places], values[places]
        explored = None
        if question.explore > 0:
            explored = draw_from_shares(
                shares, question.k, explore=question.explore, temperature=question.temperature,
                request_id=question.request_id,
            )  # fmt: skip
            rows, values = rows[explored.order], values[explored.order]
        item_of = self.state.vocabulary.item_of
        items = [item_of(row) or "" for row in rows[: question.k].tolist()]
        scores = [float(value) for value in values[: question.k]]
        dropped |= self._left_out(question)
        missing = [] if question.candidates is None else self._unknown(question)
        more = missing[: max(0, question.k - len(items))]
        found = rows[: question.k]
        return Answer(
            items=items + more,
            scores=scores + [0.0] * len(more),
            rows=np.concatenate([found, np.zeros(len(more), np.int64)]),
            known=bool(asked.histories.lengths(np.array([at]))[0]),
            widened=widened,
            dropped={reason: count for reason, count in dropped.items() if count},
            considered=stop - start,
            explanations=self.explain(asked, at, items + more) if question.explain else None,
            propensities=None if explored is None else [*explored.propensity.tolist(), *[1.0] * len(more)],
            drawn=None if explored is None else [*explored.explored.tolist(), *[False] * len(more)],
        )

    def _order(
        self, scored: ScoredCandidates, at: int, start: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the candidates of a query in their order (positions from 0), and their shares, or the objective's
        values: first those that the ranker has scored, then the others by the linear score, with share 0, or the least
        value where that is less."""
        kept = scored.kept[at]
        there = kept >= 0
        scores = scored.ranked_by()[at][there]
        best = np.argsort(-scores, kind="stable")
        shares = (scored.shares()[at].float().cpu().numpy()[there] if scored.order is None else scores)[best]
        first = kept[there][best] - start
        left = np.ones(stop - start, np.bool_)
        left[first] = False
        others = np.flatnonzero(left)
        others = others[np.argsort(-scored.first[start:stop][others], kind="stable")]
        least = np.float32(min(0.0, float(shares.min(initial=0.0))))
        return np.concatenate([first, others]), np.concatenate([shares, np.full(len(others), least)])

    def _left_out(self, question: Question) -> dict[str, int]:
        """Returns how many items of the question were left out before they were ranked, by reason."""
        excluded, hidden = set(question.exclude), self._hidden_items(question)
        if question.candidates is None:
            known = self.state.vocabulary
            return {
                EXCLUDED: sum(item in known for item in excluded),
                HIDDEN: sum(i in known for i in hidden - excluded),
            }
        counts = {EXCLUDED: 0, UNAVAILABLE: 0, SITE: 0, HIDDEN: 0, SEEN: 0}
        seen = self._seen_items(question)
        for item in dict.fromkeys(question.candidates):
            if item in excluded:
                counts[EXCLUDED] += 1
            elif item in self.state.unavailable:
                counts[UNAVAILABLE] += 1
            elif self.state.listable.excludes(item):
                counts[SITE] += 1
            elif item in hidden:
                counts[HIDDEN] += 1
            elif item in seen:
                counts[SEEN] += 1
        return counts

    def _seen_items(self, question: Question) -> set[str]:
        if self.state.seen is None or question.user_id is None:
            return set()
        _, rows = self.queries.seen_by([question.user_id])
        return {item for row in rows.tolist() if (item := self.state.vocabulary.item_of(row))}

    def _hidden_items(self, question: Question) -> set[str]:
        """Returns the items that the user has hidden and that are hidden still at the moment of viewing."""
        return (
            set() if question.user_id is None else self.state.hidden.item_ids(question.user_id, self._moment(question))
        )

    def _unknown(self, question: Question) -> list[str]:
        """Returns given candidates of which nothing is known, in the order in which they were given."""
        given = [item for item in dict.fromkeys(question.candidates or ()) if item not in self.state.vocabulary]
        out = {*question.exclude, *self.state.listable.barred(given), *self._hidden_items(question)}
        items = [item for item in given if item not in out]
        if question.where_items is not None and items:
            return list(compress(items, question.where_items(items).tolist()))
        return items


def _flat(parts: Sequence[NDArray[np.int64]]) -> SeenRows:
    """Returns rows of several queries in one array; none at all where all parts are empty."""
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    if not starts[-1]:
        return NO_SEEN_ROWS
    return SeenRows(True, starts, np.concatenate(parts).astype(np.int64))
