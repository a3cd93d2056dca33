"""Everything that is learned from clicks, and the lists that follow from it: test, then train, then rank anew.

Letters: `N` clicks of a micro-batch, `U` users in it, `D` width of states, `L` lists that are asked for.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.vocabulary import Vocabulary
from model.zeros import zeros
from online.config.settings import Settings
from online.learner.abuse_filter import AbuseFilter, owners_of_all
from online.learner.arrays import as_tensor, below, joined
from online.learner.batches import BatchResult, ClickBatch, Impression, Ranking, TrainedNetwork, TrainedStep
from online.learner.facts.gather import Clicks, Queries, Seen
from online.learner.facts.moments import Keys, places_held
from online.learner.facts.store import FeatureStore, Gathered
from online.learner.history import SERVED, HistorySnapshot, UserHistories, earlier_in_batch, next_in_batch
from online.learner.item_rows import ClickedRows, ItemRows
from online.learner.lift import Lift
from online.learner.next_item import Negatives
from online.learner.objectives import ListwiseRanking, NextItem, Pruning, TrainingBatch
from online.learner.queries import Lists, QueryBuilder, Wanted
from online.learner.ranking_model import MISS_LOSS, Memory, RankingModel
from online.learner.replay_buffer import ReplayBuffer, among_rivals
from online.learner.reservoir import Reservoir
from online.learner.return_times import ReturnTimes
from online.learner.scoring import ScoredCandidates
from online.learner.seen_items import SeenItems
from online.learner.stream_time import ActiveClock
from online.learner.user_states import UserStates
from online.metrics import Scores, ranks_in
from stream.events import Click
from stream.people import digest_of, owner_number

__all__ = ["EVENT_TYPES_MAX", "METHODS", "BatchResult", "Learner", "Ranking"]

METHODS = ("served", "popular", "followed")  # the lists as served, and two rivals that are asked at the same moment
EVENT_TYPES_MAX = 15  # the first ones seen; whatever comes later shares one more
SCORE_DIGITS = 6  # of scores in lists
EXACT_POWER_MAX = 22  # of ten, among float64
_NONE = np.zeros(0, np.int64)
RANKING, GUESSING = (ListwiseRanking(), Pruning()), (NextItem(),)


class Unseen(NamedTuple):
    """What is popular, for users who have clicked all of their candidates."""

    shares: NDArray[np.float64]  # (V,) of recent clicks; 0 of what must not be listed
    latest: NDArray[np.int64]  # (U, ·) rows that each user has clicked lately
    starts: NDArray[np.int64]  # (U + 1,) of all that each has clicked
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """A micro-batch of which nothing is learned yet; what is None is found in the course of it."""

    batch: ClickBatch
    clicked: ClickedRows
    caught: NDArray[np.bool_]  # (N,) clicks that show that their user does not stop clicking their item
    listed: NDArray[np.int64]  # (U,) each user's last click
    told: tuple[Clicks, Queries, Seen]  # the clicks as facts take them, and a query for each
    wanted: Wanted  # (L,) lists between the clicks; then those of `listed`; then the one for anybody
    lists: Lists
    repeated: NDArray[np.int64]  # (R,) clicks that the same user's next click follows in the batch: the first lists
    impressions: Sequence[Impression] | None
    held: NDArray[np.int64]  # which of the impressions' users have a history: the next lists
    popular: NDArray[np.int64]  # (SERVED,) rows as of the start, 0 beyond
    gathered: Gathered | None = None  # for the clicks
    of_lists: Gathered | None = None
    network: TrainedNetwork | None = None  # None: the Reformer takes no part
    unseen: Unseen | None = None  # where seen items are excluded


class Following(NamedTuple):
    """A micro-batch that is going to be learned next."""

    clicks: Sequence[Click]
    impressions: Sequence[Impression] | None = None


class Ahead(NamedTuple):
    """A micro-batch whose facts are gathered while the one before trains the weights."""

    following: Following
    begun: Prepared | None  # None: it has to wait, since users or items make room for it
    facts: Future[tuple[Gathered, Gathered]] | None
    error: Exception | None  # what went wrong when it was begun


class UnexpectedBatchError(RuntimeError):
    """A micro-batch was announced, and another one came."""


class Learner:
    """Histories, counts, memories, vocabulary, network, ranker, running scores: all that a checkpoint brings back."""

    def __init__(self, settings: Settings, *, lists: bool = True) -> None:
        """`lists`: whether anybody gets lists; without, nothing is known of how they would have been served."""
        self.settings = settings
        self.lists = lists
        self.version = 1  # of the model; fine-tuning publishes the next one
        self.items = ItemRows(settings)
        self.abuse_filter = AbuseFilter(settings)
        self.histories = UserHistories(settings.users_held, settings.history_max)
        self.weights = RankingModel(settings)  # the version that serves and learns
        self.device = self.weights.device
        self.store = FeatureStore(settings)
        self.moment_states = zeros(  # of the moments in the log, of unit length, or 0
            len(self.store.log.items), settings.width if self.deep_state else 0, dtype=torch.float16
        )
        self.lift = Lift()
        self.replay = ReplayBuffer(
            settings.replay_held, settings.replay_candidates, len(self.weights.first) + 1, settings.seed, self.device
        )
        self.states = UserStates(settings, self.weights, self.histories)
        self.reservoir = Reservoir(settings.finetune_reservoir_held, settings.history_max, settings.seed)
        self.seen = SeenItems(settings.users_held, settings.seen_pairs_max) if settings.exclude_seen else None
        self.random = np.random.default_rng(settings.seed)  # negatives'
        self.scores = Scores(METHODS)
        self.returns = ReturnTimes(
            settings.refresh_ages_s, settings.refresh_share_min, settings.refreshes_max, settings.expected_views_max
        )
        self.queries = QueryBuilder(self.histories, self.store, self.returns, self.seen)
        self._ahead: Ahead | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="facts")
        self._for_anybody: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # rows and scores, best first
        self.clock = ActiveClock()
        self._now = 0.0, 0.0  # as of the latest micro-batch: the latest event time, and the active time
        self.expired = 0  # items that lost their rows because they had no clicks for long
        self.event_types: dict[str, int] = {}
        self._make_room()

    @property
    def vocabulary(self) -> Vocabulary:
        return self.items.vocabulary

    @property
    def unavailable(self) -> set[str]:
        """Items that must not be listed."""
        return self.items.unavailable

    @property
    def deep_state(self) -> bool:
        """Whether the Reformer's state takes part."""
        return self.settings.reformer and self.settings.deep_state

    def publish(self, weights: RankingModel, version: int) -> None:
        """These weights serve and learn from now on. Memories go on, and are rebuilt as their owners click."""
        live = self.weights.optimizer
        weights.grow(len(self.store))
        # How far learning rates have come down is a matter of the stream, not of one version.
        weights.optimizer.steps, weights.optimizer.boost = max(weights.optimizer.steps, live.steps), live.boost
        self.weights = self.states.weights = weights
        self.states.weights_replaced()
        self.version = version

    # Learning

    def learn(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None = None,
        *,
        train: bool = True,
        following: Callable[[], Following] | None = None,
    ) -> BatchResult:
        """Scores the lists that stood before these clicks, learns from the clicks, and ranks anew.

        Facts move with every click, so nothing that is scored has seen its own click or a later one. The ranker learns
        in steps of `step_clicks`, each of which is scored before; the Reformer learns once, at the end.

        Args:
            clicks: one micro-batch in order of arrival (`micro_batches` makes them).
            impressions: lists that a backtest wants as they would be written in between.
            train: without, the lists that stood are not scored and the weights stay; all else is as ever, and the
                clicks may be replayed later.
            following: says what is going to be learned next. Its facts are gathered on another thread while the weights
                learn from these clicks; what is learned is the same, bit for bit. Nothing may be asked of the learner
                before that is learned, except to say which items are available.

        Raises:
            UnexpectedBatchError: something else was announced as `following`.
        """
        prepared = self._gathered(self._begin(clicks, impressions)) if self._ahead is None else self._taken(clicks)
        if following is not None:
            self._ahead = self._start(following())
        try:
            return self._finish(prepared, train=train)
        finally:
            if self._ahead is not None and self._ahead.facts is not None:
                wait([self._ahead.facts])  # raises nothing

    def _start(self, following: Following) -> Ahead:
        """Begins with what comes next. Whatever goes wrong with it is raised when its turn comes."""
        try:
            if self._makes_room(following.clicks):
                return Ahead(following, None, None, None)
            begun = self._begin(following.clicks, following.impressions)
        except Exception as error:
            return Ahead(following, None, None, error)
        return Ahead(following, begun, self._thread.submit(self._advance, begun), None)

    def _taken(self, clicks: Sequence[Click]) -> Prepared:
        """What was begun while the micro-batch before was learned."""
        assert self._ahead is not None
        ahead, self._ahead = self._ahead, None
        if ahead.following.clicks is not clicks:
            raise UnexpectedBatchError("other clicks were announced to follow than these that are to be learned")
        if ahead.error is not None:
            raise ahead.error
        if ahead.begun is None or ahead.facts is None:
            return self._gathered(self._begin(*ahead.following))
        return self._gathered(ahead.begun, ahead.facts.result())

    def _makes_room(self, clicks: Sequence[Click]) -> bool:
        """Whether users or items have to make room for these clicks: not while other clicks are being learned."""
        now = self.clock.after(click.timestamp for click in clicks)
        return self.histories.would_evict(click.user_id for click in clicks) or self.items.would_free(clicks, now)

    def _begin(self, clicks: Sequence[Click], impressions: Sequence[Impression] | None) -> Prepared:
        """What is asked for each click, and for every list in between."""
        batch, clicked, caught = self._batch(clicks)
        B = len(batch.users)
        listed = np.flatnonzero(batch.behind == 0)
        self._take_own_slots(batch)
        told, before, seen = self.queries.before_clicks(batch)
        # Lists. Before this batch's gaps are known, and after.
        repeated = np.flatnonzero(batch.behind > 0) if self.lists else _NONE
        held = _NONE
        wanted = self.queries.after_clicks(batch, repeated)
        if impressions is not None:
            held = np.array([i for i, one in enumerate(impressions) if one.user_id in self.histories], np.int64)
            wanted = wanted.and_also(self.queries.of_impressions(batch, [impressions[i] for i in held.tolist()]))
            wanted = wanted.and_also(self.queries.of_nobody(0, self._now[1]))
        now = self._now[0]
        had = ~np.isnan(batch.previous_at) & batch.trainable
        self.returns.add((batch.times - batch.previous_at)[had], int(batch.trainable.sum()))
        self._now = self.clock.latest, self.clock.now
        if self.lists:
            wanted = wanted.and_also(self.queries.at_end(batch, listed))
            wanted = wanted.and_also(self.queries.of_nobody(B, self._now[1]))
            now = self._now[0]
        return Prepared(
            batch=batch,
            clicked=clicked,
            caught=caught,
            listed=listed,
            told=(told, before, seen),
            wanted=wanted,
            lists=self.queries.lists(wanted, now=now),
            repeated=repeated,
            impressions=impressions,
            held=held,
            popular=_padded(self._popular_rows(SERVED)),
        )

    def _advance(self, begun: Prepared) -> tuple[Gathered, Gathered]:
        """Each click is asked for and then counted, and so is every list in between. May run on a thread of its own."""
        told, before, seen = begun.told
        return self.store.advance(
            self.histories,
            told,
            before,
            begun.lists.queries,
            flagged=self.abuse_filter.flagged,
            seen=(seen, begun.lists.seen),
        )

    def _gathered(self, begun: Prepared, found: tuple[Gathered, Gathered] | None = None) -> Prepared:
        """Everything else that follows from the clicks alone, and what the weights will want to know of histories and
        counts, which move on while they learn."""
        batch = begun.batch
        gathered, of_lists = self._advance(begun) if found is None else found
        if self.seen is not None:  # not before: each click was asked for as things stood before it
            self.seen.add_clicks(batch.users, batch.rows)
        self.histories.active_at[batch.slots] = batch.active  # of each user's last click, which comes last
        self._take_back(batch, begun.caught)
        offered = batch.trainable & ~self.mostly_flagged(batch.slots)
        self.reservoir.offer(self.histories, batch.slots[offered], batch.behind[offered], batch.owners[offered])
        network = None
        if self.deep_state:
            slots = begun.wanted.slots
            length = self.settings.online_history + 1 + int(np.bincount(batch.slots).max())
            histories = HistorySnapshot(self.histories, np.concatenate([batch.slots, slots[slots >= 0]]), length)
            network = self._to_guess(batch, begun.listed, histories)
        unseen = None
        if self.settings.exclude_seen and self.lists:
            users = [batch.users[at] for at in begun.listed.tolist()]
            unseen = self._unseen(users, batch.slots[begun.listed])
        return replace(begun, gathered=gathered, of_lists=of_lists, network=network, unseen=unseen)

    def _finish(self, prepared: Prepared, *, train: bool) -> BatchResult:
        """Weights: each step is scored and then learned; then all lists are ranked."""
        batch, clicked, network = prepared.batch, prepared.clicked, prepared.network
        assert prepared.gathered is not None
        assert prepared.of_lists is not None
        anybodys = prepared.popular if self._for_anybody is None else _padded(self._for_anybody[0])
        self.weights.grow(len(self.store))
        self.lift.grow(len(self.store))
        before = after = leaf = None
        if network is not None:
            with torch.set_grad_enabled(train):
                users = [batch.users[at] for at in prepared.listed.tolist()]
                before, had, after = self.states.read(users, network.slots, network.clicks, network.histories)
                before = before[self._tensor(network.order)]
            network = replace(network, guessed=network.guessed & had[network.order] & train)
            network = replace(network, targets=self._tensor(batch.rows[network.guessed]))
            leaf = before.detach().requires_grad_(train)
            self._note_states(batch, leaf)
        steps, losses, ranks = [], [], []
        for start in range(0, len(batch.users), self.settings.step_clicks):
            part = slice(start, min(start + self.settings.step_clicks, len(batch.users)))
            step, loss, rank = self._step(batch, prepared.gathered, part, leaf, train=train)
            steps.append(step)
            losses.append(loss)
            ranks.append(rank)
        if network is not None and train:
            assert before is not None
            assert leaf is not None
            self.weights.train(guessing_batch(network, before, leaf.grad), GUESSING)
        states = self._states_of_lists(prepared, before, after)
        rows, scores = self._rows_of_lists(prepared.of_lists, prepared.lists, states)
        served_ranks = np.full(len(batch.users), np.inf)
        if self.lists and train:
            served_ranks = self._score_served(prepared, rows, anybodys)
        rankings = self._write_lists(prepared, rows, scores) if self.lists else {}
        found = np.diff(prepared.gathered.starts)
        return BatchResult(
            rankings,
            np.concatenate(losses).tolist(),
            np.concatenate(ranks),
            found,
            served_ranks,
            batch.targets,
            batch.trainable,
            steps,
            network,
            train,
            clicked.freed,
            clicked.taken,
            clicked.expired,
            None if prepared.impressions is None else self._rows_of_impressions(prepared, rows),
        )

    def forget(self, digest: str) -> dict[str, int]:
        """Nothing of somebody (`stream.people.digest_of` their id) is left -> how much there was, by kind.

        What stays are sums over everybody, which nobody can be told from: weights, counts, running scores.
        """
        owner = owner_number(digest)
        found: Counter[str] = Counter()
        for user in self.named(digest):
            found["clicks"] += self.histories.forget(user)
            found["attention"] += self.states.forget(user)
            found["recall"] += self.store.forget_user(user)
            if self.seen is not None:
                found["seen"] += self.seen.forget(user)
        gone = self.store.forget_owner(owner)
        self.moment_states[torch.from_numpy(gone)] = 0
        found["moments"] = len(gone)
        found["replayed"] = self.replay.forget_owner(owner)
        found["excerpts"] = self.reservoir.forget_owner(owner)
        found["guard"] = self.abuse_filter.forget_owner(owner)
        return dict(found)

    def named(self, digest: str) -> set[str]:
        """The id with that digest, where it stands anywhere here."""
        users = {*self.histories.users(), *self.states.people(), *self.store.directory.users()}
        if self.seen is not None:
            users |= {*self.seen.users()}
        return {user for user in users if digest_of(user) == digest}

    def holds(self, digest: str) -> dict[str, int]:
        """How much there is of somebody, by kind of memory."""
        owner = owner_number(digest)
        users = {
            "histories": self.histories.users(),
            "attention's memories": self.states.people(),
            "recall's memories": self.store.directory.users(),
        }
        if self.seen is not None:
            users["seen items"] = self.seen.users()
        found = {kind: sum(digest_of(user) == digest for user in names) for kind, names in users.items()}
        replay = self.replay
        return found | {
            "moments": int((self.store.log.owners == owner).sum()),
            "clicks to replay": int((replay.owners[: replay.filled] == owner).sum()),
            "excerpts for fine-tuning": self.reservoir.count_of(owner),
            "the guard's buckets": self.abuse_filter.count_of(owner),
        }

    def _observe(self, clicks: Sequence[Click], active: NDArray[np.float64]) -> ClickedRows:
        """Rows of the clicked items, given to those that are new.

        Rows that change hands are cleared everywhere before anybody uses them.
        """
        clicked = self.items.observe(clicks, active)
        self.expired += clicked.expired
        self._make_room()
        if clicked.freed:
            self._for_anybody = None
            self.histories.forget_rows(clicked.freed)
            if self.seen is not None:
                self.seen.forget_rows(clicked.freed)
            self.reservoir.forget_rows(clicked.freed)
            self.store.forget_rows(clicked.freed)
            self.lift.forget_rows(clicked.freed)
            self.weights.reset_rows(self._tensor(np.array(clicked.freed, np.int64)))
        self._block(clicked.taken)
        return clicked

    def _block(self, rows: Sequence[int]) -> None:
        """Notes of rows, whose items may have changed, whether they must not be listed."""
        self.store.set_blocked(rows, [self.vocabulary.item_of(row) in self.unavailable for row in rows])

    def _make_room(self) -> None:
        self.store.grow(self.vocabulary.rows)
        self.weights.grow(len(self.store))
        self.lift.grow(len(self.store))

    def _batch(self, clicks: Sequence[Click]) -> tuple[ClickBatch, ClickedRows, NDArray[np.bool_]]:
        """The clicks with all that is known of each by itself; and which show that their user does not stop clicking
        their item."""
        users = [click.user_id for click in clicks]
        slots = self.histories.slots(users)
        times = np.array([click.timestamp for click in clicks])
        active = self.clock.update_all(click.timestamp for click in clicks)
        clicked = self._observe(clicks, active)
        types = np.array([self._event_type(click.event_type) for click in clicks], np.int64)
        numbers = self.store.next_numbers(len(clicks))
        flagged, caught = self.abuse_filter.judge(users, [click.item_id for click in clicks], times, numbers)
        following = next_in_batch(slots)
        nth = earlier_in_batch(slots)
        previous_at = np.where(self.histories.lengths(slots) > 0, self.histories.latest_at(slots), np.nan)
        more = np.flatnonzero(following >= 0)
        previous_at[following[more]] = times[more]
        batch = ClickBatch(
            users,
            slots,
            clicked.rows,
            clicked.targets,
            types,
            times,
            active,
            nth,
            earlier_in_batch(slots[::-1])[::-1],
            previous_at,
            numbers,
            owners_of_all(users),
            ~flagged,
        )
        return batch, clicked, caught

    def _take_own_slots(self, batch: ClickBatch) -> None:
        """Users of whom a moment is about to become older than those that are always compared get room for these."""
        if not self.settings.reformer:
            return
        leaving = self.histories.lengths(batch.slots) + batch.nth >= self.settings.recall_latest
        users = dict.fromkeys(batch.users[at] for at in np.flatnonzero(leaving).tolist())
        if users:
            self.store.take_own_slots(list(users))

    def _to_guess(self, batch: ClickBatch, listed: NDArray[np.int64], histories: HistorySnapshot) -> TrainedNetwork:
        """What the Reformer is to guess: clicks on known items that are not flagged, against a sample of the others."""
        slots = batch.slots[listed]
        by_slot = np.argsort(slots)
        of_user = by_slot[np.searchsorted(slots[by_slot], batch.slots)]  # (N,) which of the U
        guessed = (batch.rows != 0) & batch.trainable
        negatives = None
        if guessed.any() and self.vocabulary.rows > 2:
            negatives = Negatives(self.popularity(), self.vocabulary.rows).draw(self.settings.negatives, self.random)
        order = np.argsort(np.argsort(of_user, kind="stable"))
        return TrainedNetwork(
            histories, slots, np.bincount(of_user), order, guessed, self._tensor(batch.rows), negatives
        )

    def _note_states(self, batch: ClickBatch, states: Tensor) -> None:
        """The moments of these clicks are compared by these states from now on."""
        at = self._tensor(batch.numbers % len(self.moment_states)).cpu()
        self.moment_states[at] = torch.nn.functional.normalize(states.detach(), dim=-1).half().cpu()

    def memory(self) -> Memory:
        """What recall compares with."""
        log = self.store.log
        return Memory(Keys(log.last, log.before, log.times, log.gaps), self.moment_states)

    def _score(
        self, gathered: Gathered, states: Tensor | None, kept: int, replayed: tuple[Tensor, Tensor] | None = None
    ) -> ScoredCandidates:
        lifts, memory = self.lift.of(gathered.rows), self.memory()
        return self.weights.score(gathered, lifts, memory, states, kept=kept, replayed=replayed)

    def _step(
        self, batch: ClickBatch, gathered: Gathered, part: slice, states: Tensor | None, *, train: bool
    ) -> tuple[TrainedStep, NDArray[np.float64], NDArray[np.float64]]:
        """Some of the clicks are scored, and then the ranker learns from them -> what each cost it before, in nats, and
        the clicked items' ranks."""
        gathered = gathered.part(part.start, part.stop)
        mine = None if states is None else states[part]
        # Where nothing is to be learned, older clicks teach nothing either: flagged ones must not move anything.
        teaches = train and bool((batch.trainable[part] & (batch.targets[part] > 0)).any())
        replayed = self.replay.sample(self.settings.replay_batch if teaches else 0)
        with torch.set_grad_enabled(train):
            scored = self._score(gathered, mine, self.settings.candidates_kept, replayed)
        found = scored.positions(batch.targets[part])
        ranks = scored.ranks(found)
        trainable = batch.trainable[part]
        positions = np.where(trainable, found, -1)
        finite = scored.finite()
        places = scored.places(positions) if finite else np.full(len(positions), -1)
        losses = np.full(len(positions), MISS_LOSS)
        there = np.flatnonzero(places >= 0)
        shares = scored.shares().float().cpu().numpy()
        losses[there] = np.minimum(-np.log(np.maximum(shares[there, places[there]], 1e-30)), MISS_LOSS)
        if finite and len(there):
            rows = scored.rows()
            self.lift.add(rows[there], shares[there], rows[there, places[there]])
            inputs = among_rivals(scored, self._tensor(places), self.settings.replay_candidates)
            self.replay.add(*inputs, batch.owners[part][there])
        if train:
            lesson = training_batch(self.weights, scored, positions, mine, replayed)
            train = self.weights.train(lesson, RANKING)
        if train:  # features from which nothing could be learned may be no numbers, and stay out of the running means
            seen = scored.features[scored.present & self._tensor(trainable)[:, None]]
            self.weights.ranker.observe(seen)
        scored = scored._replace(each=scored.each.detach(), replayed=None)
        return TrainedStep(part, scored, positions, replayed), losses, ranks

    def _take_back(self, batch: ClickBatch, caught: NDArray[np.bool_]) -> None:
        """Those who do not stop clicking an item: what their clicks on it have counted so far is gone."""
        for at in np.flatnonzero(caught).tolist():
            newest = self.histories.newest(batch.slots[at : at + 1], self.histories.history_max)
            self.store.take_back(*self.abuse_filter.contributed(newest, int(batch.rows[at])))

    def mostly_flagged(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whose histories (N,) are no person's, as far as the guard can tell, (N,): more than half of the clicks are
        flagged."""
        if not self.abuse_filter.total:  # none ever was
            return np.zeros(len(slots), np.bool_)
        newest = self.histories.newest(slots, self.settings.history_max)
        found: NDArray[np.bool_] = 2 * self.abuse_filter.was_flagged(newest.numbers).sum(1) > newest.lengths
        return found

    # Ranking

    def rank(self, users: Sequence[str], now: Sequence[float] | None = None) -> list[Ranking]:
        """New lists of users, as everything stands now. No user twice; each has to have a history.

        `now`: for each the moment at which the list is written, in seconds since 1970; None: their latest click. It is
        ranked for the moment at which it is likely to be looked at.
        """
        rankings = []
        for start in range(0, len(users), self.settings.micro_batch_max):
            part = slice(start, start + self.settings.micro_batch_max)
            slots = self.histories.find(users[part])
            clicked_at = self.histories.latest_at(slots)
            ages_s = np.zeros(len(slots)) if now is None else np.asarray(now[part], float) - clicked_at
            states = self.states.now(users[part], slots) if self.deep_state else None
            rankings += self._rank(users[part], slots, ages_s, states)
        return rankings

    def popular(self) -> Ranking:
        """The list for anybody unknown: what is ranked first for a user without a history."""
        return self._named(*self._anybodys())

    def set_available(self, item_id: str, available: bool) -> None:
        """Whether an item may be listed, from the next list on. At most `items_held` are known as unavailable."""
        self.items.set_available(item_id, available)
        row = self.vocabulary.row_of(item_id)
        if row:
            self._block([row])
            self._for_anybody = None

    def popularity(self) -> NDArray[np.float64]:
        """Recent clicks on all rows in use."""
        return self.store.popularity_by(self._half_life, self.vocabulary.rows)

    @property
    def _half_life(self) -> int:
        """Which of the half-lives the popular list goes by: the middle one, the longer of two."""
        return len(self.settings.popularity_half_lives) // 2

    def _popular_rows(self, count: int) -> NDArray[np.int64]:
        return self.store.popular(count, self._half_life)

    @torch.no_grad()
    def _rank(
        self, users: Sequence[str], slots: NDArray[np.int64], ages_s: NDArray[np.float64], states: Tensor | None
    ) -> list[Ranking]:
        """Lists for different users (U,) whose states are (U, D), which count as served from now on; and, with them,
        the one for anybody."""
        wanted = self.queries.of_users(users, slots, ages_s).and_also(self.queries.of_nobody(0, self._now[1]))
        lists = self.queries.lists(wanted, now=self._now[0])
        gathered = self.store.ask(self.histories, lists.queries, flagged=self.abuse_filter.flagged, seen=lists.seen)
        if states is not None:
            states = torch.cat([states, states.new_zeros(1, states.shape[1])])
        rows, scores = self._rows_of_lists(gathered, lists, states)
        unseen = self._unseen(users, slots) if self.settings.exclude_seen else None
        return self._served(slots, rows, scores, unseen)

    def _rows_of_lists(
        self, gathered: Gathered, lists: Lists, states: Tensor | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best rows of each wanted list (L, ·), 0 where there are no more, and their scores; states (L, D)."""
        count = max(self.settings.list_size, SERVED)
        if states is not None:
            states = states[self._tensor(lists.order[lists.lists])]
        with torch.no_grad():
            scored = self._score(gathered, states, max(count, self.settings.candidates_kept))
        rows, scores = scored.best(lists.lists, count)
        self._leave_out_blocked(rows, scores)
        back = np.argsort(lists.order)
        return rows[back], scores[back]

    def _leave_out_blocked(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """What was withdrawn since candidates were gathered leaves the lists (L, ·); what is behind it moves up."""
        gone = self.store.items.blocked[rows]
        for at in np.flatnonzero(gone.any(1)).tolist():
            kept = ~gone[at]
            count = int(kept.sum())
            rows[at, :count], scores[at, :count] = rows[at, kept], scores[at, kept]
            rows[at, count:], scores[at, count:] = 0, -np.inf

    def _states_of_lists(self, prepared: Prepared, before: Tensor | None, after: Tensor | None) -> Tensor | None:
        """The states (L, D) of the users of lists, as they stood when each was written."""
        if before is None or after is None:
            return None
        wanted, batch = prepared.wanted, prepared.batch
        B, U = len(before), len(after)
        later = (batch.slots == wanted.slots[:, None]) & (np.arange(B) >= wanted.preceding[:, None])  # (L, B)
        came = batch.slots[prepared.listed] == wanted.slots[:, None]  # (L, U)
        at = np.where(came.any(1), B + came.argmax(1), B + U)  # after the last click; or nobody's
        at = np.where(later.any(1), later.argmax(1), at)  # before the first of those that come later
        states = torch.cat([before.detach(), after, after.new_zeros(1, after.shape[1])])[self._tensor(at)]
        others = np.flatnonzero((at == B + U) & (wanted.slots >= 0)).tolist()
        if others:
            users = list(dict.fromkeys(wanted.users[one] for one in others))
            slots = np.array([wanted.slots[wanted.users.index(user)] for user in users], np.int64)
            assert prepared.network is not None
            found = self.states.now(users, slots, prepared.network.histories)
            place = {user: n for n, user in enumerate(users)}
            states[others] = found[[place[wanted.users[one]] for one in others]]
        return states

    def _write_lists(
        self, prepared: Prepared, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> dict[str, Ranking]:
        """The lists of everybody who clicked, which are the last but one for anybody."""
        mine = slice(len(rows) - len(prepared.listed) - 1, None)
        users = [prepared.batch.users[at] for at in prepared.listed.tolist()]
        slots = prepared.batch.slots[prepared.listed]
        rankings = self._served(slots, rows[mine], scores[mine], prepared.unseen)
        return dict(zip(users, rankings, strict=True))

    def _served(
        self, slots: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32], unseen: Unseen | None
    ) -> list[Ranking]:
        """Lists (U + 1, ·), the last of them for anybody, count as served."""
        rows, scores = rows[:, : self.settings.list_size], scores[:, : self.settings.list_size]
        self._for_anybody = rows[-1][rows[-1] > 0], scores[-1][rows[-1] > 0]
        rows, scores = rows[:-1], scores[:-1]
        popular = np.zeros(len(rows), bool)
        if unseen is not None:
            rows, scores, popular = self._with_unseen(unseen, rows, scores)
        self.histories.served[slots] = 0
        self.histories.served[slots, : min(SERVED, rows.shape[1])] = rows[:, :SERVED]
        return [
            replace(self._named(mine[mine > 0], its[mine > 0]), popular=bool(filled))
            for mine, its, filled in zip(rows, scores, popular, strict=True)
        ]

    def _unseen(self, users: Sequence[str], slots: NDArray[np.int64]) -> Unseen:
        shares = self.popularity()
        shares[self.store.items.blocked[: len(shares)]] = 0
        shares /= max(shares.sum(), 1e-12)
        starts, rows = self.queries.seen_by(users)
        # Of users who had to make room there, their histories still know the latest clicks.
        return Unseen(shares, self.histories.newest(slots, self.histories.history_max).rows, starts, rows)

    def _with_unseen(
        self, unseen: Unseen, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Lists (U, count) and their scores, with what is popular and not clicked by them for users whose candidates
        they have all clicked; and whose lists these are (U,). Who has clicked everything keeps an empty one."""
        empty = np.count_nonzero(rows, axis=1) == 0
        count = rows.shape[1]
        for at in np.flatnonzero(empty).tolist():
            shares = unseen.shares.copy()
            shares[unseen.latest[at]] = 0
            shares[unseen.rows[unseen.starts[at] : unseen.starts[at + 1]]] = 0
            best = np.argsort(-shares, kind="stable")[:count]
            best = best[shares[best] > 0]
            rows[at, : len(best)], scores[at, : len(best)] = best, shares[best]
        return rows, scores, empty & (np.count_nonzero(rows, axis=1) > 0)

    def _anybodys(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the list for anybody unknown, as of the latest ranking, without what is unavailable."""
        if self._for_anybody is None:
            states = torch.zeros(0, self.settings.width, device=self.device) if self.deep_state else None
            self._rank([], np.zeros(0, np.int64), np.zeros(0), states)
        assert self._for_anybody is not None
        return self._for_anybody

    def _score_served(
        self, prepared: Prepared, rows: NDArray[np.int64], anybodys: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Scores what stood in front of each user -> (N,) the clicked items' ranks in it.

        Whoever clicks twice within a micro-batch is scored the second time with the list that the first click gave;
        Redis only ever gets the last one.
        """
        batch = prepared.batch
        served = self.histories.served[batch.slots].astype(np.int64)  # (N, SERVED)
        served[next_in_batch(batch.slots)[prepared.repeated]] = rows[: len(prepared.repeated), :SERVED]
        served = np.where(served.any(1, keepdims=True), served, anybodys)
        popular = np.broadcast_to(prepared.popular, served.shape)
        assert prepared.gathered is not None
        followed = prepared.gathered.followers.astype(np.int64)
        followed = filled(followed, prepared.popular)
        lists = {"served": served, "popular": popular, "followed": followed}
        trainable = batch.trainable
        self.scores.add({name: some[trainable] for name, some in lists.items()}, batch.targets[trainable])
        return ranks_in(served, batch.targets)

    def _rows_of_impressions(self, prepared: Prepared, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first places of impressions' lists as rows (I + 1, SERVED), 0 where there are no more; last, of the one
        for anybody, as of the batch's start, which is that of users who have no history any more."""
        assert prepared.impressions is not None
        first = len(prepared.repeated)
        anybodys = rows[first + len(prepared.held), :SERVED]
        found = np.broadcast_to(anybodys, (len(prepared.impressions) + 1, SERVED)).copy()
        found[prepared.held] = rows[first : first + len(prepared.held), :SERVED]
        return found

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return as_tensor(array, self.device)

    def _named(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranking:
        items = self.vocabulary.items_of(rows.tolist())
        return Ranking([item for item in items if item is not None], list(compress(_rounded(scores), items)))

    def _event_type(self, name: str) -> int:
        if name not in self.event_types and len(self.event_types) < EVENT_TYPES_MAX:
            self.event_types[name] = len(self.event_types)
        return self.event_types.get(name, EVENT_TYPES_MAX)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object: together everything that going on as if nothing had happened takes."""
        parts: dict[str, dict[str, NDArray[Any]]] = {}
        state: dict[str, Any] = {}
        kept: dict[str, Any] = {
            "states": self.states,
            "store": self.store,
            "replay": self.replay,
            "guard": self.abuse_filter,
        }
        for name, part in kept.items():
            parts[name], state[name] = part.to_state()
        parts["lift"] = self.lift.to_state()
        parts["moments"] = {"states": self.moment_states[places_held(self.store.log)].numpy()}
        parts["weights"] = self.weights.to_state()
        parts["reservoir"], state["reservoir"] = self.reservoir.to_state()
        parts["history"], state["users"] = self.histories.to_state()
        if self.seen is not None:
            parts["seen"], state["seen"] = self.seen.to_state()
        parts["returns"] = self.returns.to_state()
        rows, scores = self._anybodys()
        parts["anybody"] = {"rows": rows, "scores": scores}
        return joined(parts), state | {
            "version": self.version,
            "random": self.random.bit_generator.state,
            "items": self.items.to_state(),
            "scores": self.scores.to_state(),
            "event_types": self.event_types,
            "clock": self.clock.to_state(),
            "expired": self.expired,
        }

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave."""
        self.version = state["version"]
        self.items.load_state(state["items"])
        self.random.bit_generator.state = state["random"]
        self.weights.load_state(below(arrays, "weights"))
        self.reservoir.load_state(below(arrays, "reservoir"), state["reservoir"])
        self.histories.load_state(below(arrays, "history"), state["users"])
        if self.seen is not None:
            self._load_seen(self.seen, below(arrays, "seen"), state.get("seen"))
        self.states.load_state(below(arrays, "states"), state["states"])
        self.store.load_state(below(arrays, "store"), state["store"])
        self.replay.load_state(below(arrays, "replay"), state["replay"])
        self.lift.load_state(below(arrays, "lift"))
        places, saved = places_held(self.store.log), torch.from_numpy(arrays["moments.states"].copy())
        if saved.shape[1] == self.moment_states.shape[1]:
            kept = min(len(places), len(saved))  # the latest, where there is room for fewer or for more
            self.moment_states[places[len(places) - kept :]] = saved[len(saved) - kept :]
        self.abuse_filter.load_state(below(arrays, "guard"), state["guard"])
        self.scores.load_state(state["scores"])
        self.returns.load_state(below(arrays, "returns"))
        anybodys = below(arrays, "anybody")
        self._for_anybody = anybodys["rows"].copy(), anybodys["scores"].copy()
        self.clock.load_state(state["clock"])
        self._now = (self.clock.latest, self.clock.now) if self.clock.latest > -np.inf else (0.0, 0.0)
        self.expired = state["expired"]
        self.event_types = dict(state["event_types"])
        self._make_room()
        self._block([self.vocabulary.row_of(item_id) for item_id in self.unavailable])

    def _load_seen(self, seen: SeenItems, arrays: dict[str, NDArray[Any]], users: list[str] | None) -> None:
        """From a checkpoint that holds it; otherwise from the histories, which are all that such a checkpoint knows."""
        if users is not None:
            seen.load_state(arrays, users)
            return
        for user in self.histories.users():
            seen.add(user, self.histories.newest(self.histories.find([user]), self.histories.history_max).rows[0])


def training_batch(
    model: RankingModel,
    scored: ScoredCandidates,
    positions: NDArray[np.int64],
    states: Tensor | None,
    replayed: tuple[Tensor, Tensor] | None,
) -> TrainingBatch:
    """What a model has to learn from clicks whose candidates it has just scored; positions (N,) of the clicked items
    among all candidates, −1: none, or not to be learned from."""
    places = scored.places(positions)
    left_out = np.flatnonzero((positions >= 0) & (places < 0))
    forced, forced_present, forced_places = scored.features, scored.present, places
    if len(left_out):
        K = scored.kept.shape[1]
        at = as_tensor(left_out, model.device)
        inputs, _ = model.inputs(scored, positions[left_out, None], None if states is None else states[at])
        forced = scored.features.clone()
        forced[at, K - 1] = inputs[:, 0]
        forced_places = places.copy()
        forced_places[left_out] = K - 1
    return TrainingBatch(
        scores=scored.each,
        present=scored.present,
        places=as_tensor(places, model.device),
        forced=forced,
        forced_present=forced_present,
        forced_places=as_tensor(forced_places, model.device),
        replayed=None if replayed is None or scored.replayed is None else (scored.replayed, replayed[1]),
    )


def guessing_batch(network: TrainedNetwork, before: Tensor, pull: Tensor | None) -> TrainingBatch:
    """What the Reformer has to learn from: the clicks it should have guessed from its states before them (N, D), and
    what ranking wants of these states, (N, D); None: nothing."""
    guessed = as_tensor(np.flatnonzero(network.guessed), before.device)
    return TrainingBatch(
        states=before[guessed] if network.negatives is not None and len(guessed) else None,
        targets=network.targets,
        negatives=network.negatives,
        pulled=None if pull is None else before,
        pull=pull,
    )


def filled(lists: NDArray[np.int64], popular: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lists (N, K) of rows, 0 beyond their ends, with what is popular (K,) after them, each row once."""
    short = np.flatnonzero((lists == 0).any(1))
    for at in short.tolist():
        mine = list(dict.fromkeys([row for row in (*lists[at].tolist(), *popular.tolist()) if row]))
        mine = mine[: lists.shape[1]]
        lists[at] = 0
        lists[at, : len(mine)] = mine
    return lists


def _rounded(scores: NDArray[np.float32]) -> list[float]:
    """To SCORE_DIGITS, and to no less than the last power of ten that is exact."""
    exact = scores.astype(np.float64)
    with np.errstate(divide="ignore"):
        scale = 10.0 ** np.minimum(SCORE_DIGITS - 1 - np.floor(np.log10(np.abs(exact))), EXACT_POWER_MAX)
    rounded: list[float] = (np.round(exact * scale) / scale).tolist()
    return rounded


def _padded(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first SERVED, 0 beyond."""
    return np.pad(rows[:SERVED], (0, max(0, SERVED - len(rows)))).astype(np.int64)
