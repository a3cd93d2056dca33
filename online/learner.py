"""Everything that is learned from clicks, and the lists that follow from it: test, then train, then rank anew.

Letters: `N` clicks of a micro-batch, `U` users in it, `D` width of states, `C` candidates of all clicks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.vocabulary import Vocabulary
from online.arrays import as_tensor, below, joined
from online.counts import Counts
from online.evaluation.metrics import Scores, ranks_among, ranks_in
from online.history import SERVED, UserHistories, earlier_in_batch, next_in_batch
from online.ranking.ahead import Ahead
from online.ranking.candidates import Asked
from online.ranking.guard import Guard, owners_of_all
from online.ranking.item_rows import ClickedRows, ItemRows
from online.ranking.learned import Batch, Learned, Lesson, Look, Ranking, Read
from online.ranking.next_item import Negatives
from online.ranking.questions import Questions, StatesAround
from online.ranking.reservoir import Reservoir
from online.ranking.return_times import ReturnTimes
from online.ranking.scored import Query, Scored
from online.ranking.scorer import Scorer
from online.ranking.seen_items import SeenItems
from online.ranking.states import UserStates
from online.ranking.weights import Weights
from online.settings import Settings
from online.stream_time import ActiveClock
from stream.events import Click
from stream.people import digest_of, owner_number

__all__ = ["EVENT_TYPES_MAX", "METHODS", "Learned", "Learner", "Ranking"]

METHODS = ("served", "popular", "followed")  # the lists as served, and two rivals that are asked at the same moment
EVENT_TYPES_MAX = 15  # the first ones seen; whatever comes later shares one more


class Learner:
    """Histories, counts, memories, vocabulary, network, ranker, running scores: all that a checkpoint brings back."""

    def __init__(self, settings: Settings, *, lists: bool = True) -> None:
        """`lists`: whether anybody gets lists; without, nothing is known of how they would have been served."""
        self.settings = settings
        self.lists = lists
        self.version = 1  # of the model; fine-tuning publishes the next one
        self.items = ItemRows(settings)
        self.guard = Guard(settings)
        # With room for a micro-batch besides: what a click is scored with must not shrink by those that come after it.
        spare = min(settings.micro_batch_max, settings.history_max // 2)
        self.histories = UserHistories(settings.users_held, settings.history_max + spare)
        weights = Weights(settings)
        self.device = weights.device
        self.scorer = Scorer(settings, weights)
        self.states = UserStates(settings, weights, self.histories)
        self.reservoir = Reservoir(settings.finetune_reservoir_held, settings.history_max, settings.seed)
        self.seen = SeenItems(settings.users_held, settings.seen_pairs_max) if settings.exclude_seen else None
        self.random = np.random.default_rng(settings.seed)  # negatives'
        self.scores = Scores(METHODS)
        self.returns = ReturnTimes(
            settings.refresh_ages_s, settings.refresh_share_min, settings.refreshes_max, settings.looks_max
        )
        self.questions = Questions(
            settings,
            self.histories,
            scorer=self.scorer,
            states=self.states,
            returns=self.returns,
            guard=self.guard,
            seen=self.seen,
        )
        self._for_anybody: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # rows and scores, best first
        self.clock = ActiveClock()
        self._now = 0.0, 0.0  # as of the latest micro-batch: the latest event time, and the active time
        self.expired = 0  # items that lost their rows because they had no clicks for long
        self.event_types: dict[str, int] = {}
        self._make_room()

    @property
    def weights(self) -> Weights:
        """Those that serve and learn."""
        return self.scorer.weights

    @property
    def vocabulary(self) -> Vocabulary:
        return self.items.vocabulary

    @property
    def unavailable(self) -> set[str]:
        """Items that must not be listed."""
        return self.items.unavailable

    @property
    def counts(self) -> Counts:
        return self.scorer.counts

    @property
    def deep_state(self) -> bool:
        """Whether the Reformer's state takes part."""
        return self.settings.reformer and self.settings.deep_state

    def publish(self, weights: Weights, version: int) -> None:
        """These weights serve and learn from now on. Memories go on, and are rebuilt as their owners click."""
        live = self.weights.optimizer
        weights.grow(len(self.counts))
        # How far learning rates have come down is a matter of the stream, not of one version.
        weights.optimizer.steps, weights.optimizer.boost = max(weights.optimizer.steps, live.steps), live.boost
        self.scorer.weights = self.states.weights = weights
        self.states.weights_replaced()
        self.version = version

    # Learning

    def learn(self, clicks: Sequence[Click], looks: Sequence[Look] | None = None, *, train: bool = True) -> Learned:
        """Scores the lists that stood before these clicks, learns from the clicks, and ranks anew.

        Within a micro-batch histories move with every click, and so do the lists that are scored; each click is asked
        for as if those before it had been counted (see `Ahead`). Tables and weights move once, at its end. So nothing
        that is scored has seen its own click, or a later one.

        Args:
            clicks: one micro-batch in order of arrival (`micro_batches` makes them).
            looks: lists that a backtest wants as they would be written in between.
            train: without, the lists that stood are not scored and the weights stay; all else is as ever, and the
                clicks may be replayed later.
        """
        users = [click.user_id for click in clicks]
        slots = self.histories.slots(users)  # (N,), of each click
        active = self.clock.update_all(click.timestamp for click in clicks)  # (N,)
        clicked = self._observe(clicks, active)
        rows, targets = clicked.rows, clicked.targets  # (N,) each
        types = [self._event_type(click.event_type) for click in clicks]
        times = np.array([click.timestamp for click in clicks])
        numbers = self.scorer.log.next_numbers(len(clicks))
        self.histories.append(slots, rows, types, times, numbers)
        self.histories.active_at[slots] = active  # of each user's last click, which comes last
        behind = earlier_in_batch(slots[::-1])[::-1]
        guarded, caught = self.guard.judge(users, [click.item_id for click in clicks], times, numbers)
        heard = ~guarded
        batch = Batch(users, slots, rows, targets, times, active, behind, numbers, heard)
        last = np.flatnonzero(behind == 0)  # (U,) each user's last click in the batch
        listed = [users[at] for at in last]
        read = _read(slots, last) if self.deep_state else None
        with torch.set_grad_enabled(train):
            guesses, taught, states = self._states(listed, read, len(clicks))  # (N, D), (N,), (U, D)

        query = self.questions.at(users, slots, times, behind + 1, guesses, active=active)
        ahead = self.questions.ahead(batch, query.asked)
        query = query._replace(ahead=ahead)
        owners = owners_of_all(users)
        self.scorer.log.append(self._tensor(rows), query.asked.moment(), guesses, self._tensor(owners))
        with torch.set_grad_enabled(train):
            scored = self.scorer.score(query)
        places = self._places(scored, targets)
        ranks = ranks_among(scored.scores.detach().cpu().numpy(), scored.candidates.owners.cpu().numpy(), places)
        served_ranks = self._score_served(batch, query.asked, guesses) if train else np.full(len(clicks), np.inf)
        looked = None if looks is None else self._looked(batch, looks, ahead, guesses, states)
        losses, lesson = self._update(batch, scored, places, guesses, taught, train=train)
        self._remember(batch, ahead)
        self._take_back(batch, caught)
        told = heard & ~self.mostly_guarded(slots)
        self.reservoir.offer(self.histories, slots[told], behind[told], owners[told])
        had = (query.asked.lengths.cpu().numpy() > 0) & heard
        self.returns.add((times - query.asked.times[:, 0].cpu().numpy())[had], int(heard.sum()))
        self._now = self.clock.latest, self.clock.now
        if self.seen is not None:  # not before: each click was asked for as things stood before it
            self.seen.add_clicks(users, rows)
        rankings = self._rank(listed, slots[last], times[last], states) if self.lists else []
        found = scored.candidates.starts.diff().cpu().numpy()
        lists = dict(zip(listed, rankings, strict=True)) if self.lists else {}
        lesson = lesson._replace(read=read, freed=clicked.freed, taken=clicked.taken)
        return Learned(
            lists, losses.tolist(), ranks, found, served_ranks, targets, heard, lesson, train, clicked.expired, looked
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
            found["recall"] += self.scorer.own_memory.forget(user)
            if self.seen is not None:
                found["seen"] += self.seen.forget(user)
        found["moments"] = self.scorer.log.forget_owner(owner)
        found["replayed"] = self.scorer.replay.forget_owner(owner)
        found["excerpts"] = self.reservoir.forget_owner(owner)
        found["guard"] = self.guard.forget_owner(owner)
        return dict(found)

    def named(self, digest: str) -> set[str]:
        """The id with that digest, where it stands anywhere here."""
        users = {*self.histories.users(), *self.states.people(), *self.scorer.own_memory.directory.users()}
        if self.seen is not None:
            users |= {*self.seen.users()}
        return {user for user in users if digest_of(user) == digest}

    def holds(self, digest: str) -> dict[str, int]:
        """How much there is of somebody, by kind of memory."""
        owner = owner_number(digest)
        users = {
            "histories": self.histories.users(),
            "attention's memories": self.states.people(),
            "recall's memories": self.scorer.own_memory.directory.users(),
        }
        if self.seen is not None:
            users["seen items"] = self.seen.users()
        found = {kind: sum(digest_of(user) == digest for user in names) for kind, names in users.items()}
        replay = self.scorer.replay
        return found | {
            "moments": int((self.scorer.log.owners == owner).sum()),
            "clicks to replay": int((replay.owners[: replay.filled] == owner).sum()),
            "excerpts for fine-tuning": self.reservoir.count_of(owner),
            "the guard's buckets": self.guard.count_of(owner),
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
            self.scorer.forget_rows(clicked.freed)
        self._block(clicked.taken)
        return clicked

    def _block(self, rows: Sequence[int]) -> None:
        """Notes of rows, whose items may have changed, whether they must not be listed."""
        blocked = [self.vocabulary.item_of(row) in self.unavailable for row in rows]
        at = self._tensor(np.array(rows, np.int64))
        self.scorer.blocked[at] = self._tensor(np.array(blocked, np.bool_))

    def _make_room(self) -> None:
        self.scorer.make_room(self.vocabulary.rows)

    def _update(
        self,
        batch: Batch,
        scored: Scored,
        places: NDArray[np.int64],
        guesses: Tensor | None,
        taught: NDArray[np.bool_],
        *,
        train: bool,
    ) -> tuple[NDArray[np.float32], Lesson]:
        """One step of everything that learns, if it is to `train` -> what each click cost the ranker before it, (N,) in
        nats, and what was taught."""
        places = np.where(batch.heard, places, -1)
        replays = self.settings.replay_batch if train and (places >= 0).any() else 0
        again = self.scorer.replay.sample(replays)
        at = self._tensor(places)
        self.scorer.compare(scored, at)
        with torch.set_grad_enabled(train):
            loss, each, kept = self.weights.losses(scored, at, again)
        if kept is not None:
            features, present, which = kept
            self.scorer.replay.add(features, present, owners_of_all(batch.users)[which.cpu().numpy()])
        taught = taught & (batch.rows != 0) & batch.heard & train
        wanted = self._tensor(batch.rows[taught])
        guessing = negatives = None
        if guesses is not None and taught.any() and self.vocabulary.rows > 2:
            negatives = Negatives(self.popularity(), self.vocabulary.rows).draw(self.settings.negatives, self.random)
            guessing = self.weights.guessing_loss(guesses[taught], wanted, negatives)
        seen = scored.features.detach()[self._tensor(batch.heard)[scored.candidates.owners]]
        if train:
            self.weights.learn(loss, guessing, seen)
        scored = scored._replace(features=scored.features.detach())
        return each.cpu().numpy(), Lesson(scored, at, seen, again, taught, wanted, negatives)

    def _remember(self, batch: Batch, clicked: Ahead) -> None:
        """Counts the clicks; and what is no longer among a person's latest moments goes to the memory of older ones."""
        leaving, owners = np.zeros(0, np.int64), np.zeros(0, np.int64)
        W = self.settings.recall_latest
        if self.settings.reformer:
            left = self.histories.newest(batch.slots, W + 1, batch.behind)
            gone = np.flatnonzero(left.lengths > W).tolist()
            if len(gone):
                people = list(dict.fromkeys(batch.users[at] for at in gone))
                place = dict(zip(people, self.scorer.own_memory.take(people).tolist(), strict=True))
                leaving = left.numbers[gone, W]
                owners = np.array([place[batch.users[at]] for at in gone], np.int64)
        heard = self._tensor(batch.heard)
        told = (clicked.rows, clicked.earlier, clicked.times, clicked.numbers)
        rows, earlier, times, numbers = (part[heard] for part in told)
        self.scorer.observe(rows, earlier, numbers, self._tensor(leaving), self._tensor(owners), times=times)

    def _take_back(self, batch: Batch, caught: NDArray[np.bool_]) -> None:
        """Those who do not stop clicking an item: what their clicks on it have counted so far is gone."""
        for at in np.flatnonzero(caught).tolist():
            newest = self.histories.newest(batch.slots[at : at + 1], self.histories.history_max)
            self.scorer.take_back(self.guard.contributed(newest, int(batch.rows[at])))

    def mostly_guarded(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whose histories (N,) are no person's, as far as the guard can tell, (N,): more than half of the clicks are
        guarded."""
        newest = self.histories.newest(slots, self.settings.history_max)
        found: NDArray[np.bool_] = 2 * self.guard.was_guarded(newest.numbers).sum(1) > newest.lengths
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
            times = self.histories.newest(slots, 1).timestamps[:, 0] if now is None else np.asarray(now[part], float)
            states = self.states.now(users[part], slots) if self.deep_state else None
            rankings += self._rank(users[part], slots, times, states)
        return rankings

    def popular(self) -> Ranking:
        """The list for anybody unknown: what is ranked first for a person without a history."""
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
        return self.counts.popularity_by(self._half_life, self.vocabulary.rows).double().cpu().numpy()

    @property
    def _half_life(self) -> int:
        """Which of the half-lives the popular list goes by: the middle one, the longer of two."""
        return len(self.settings.popularity_half_lives) // 2

    def _popular_rows(self, count: int) -> NDArray[np.int64]:
        return self.counts.popular(count, self._half_life, self.scorer.blocked).cpu().numpy()

    @torch.no_grad()
    def _rank(
        self, users: Sequence[str], slots: NDArray[np.int64], now: NDArray[np.float64], states: Tensor | None
    ) -> list[Ranking]:
        """Lists for different users (U,) whose states are (U, D), which count as served from now on; and, with them,
        the one for anybody."""
        clicked_at = self.histories.newest(slots, 1).timestamps[:, 0]
        ages_s = now - clicked_at
        active = self.histories.active_at[slots] + ages_s
        query, people = self.questions.at_looks(users, slots, ages_s, 0, states, active=active)
        people = np.append(people, len(users))
        rows, scores = self._best(query.with_nobody(*self._now), people, self.settings.list_size)
        self._for_anybody = rows[-1][rows[-1] > 0], scores[-1][rows[-1] > 0]
        rows, scores = rows[:-1], scores[:-1]
        popular = np.zeros(len(rows), bool)
        if self.settings.exclude_seen:
            rows, scores, popular = self._with_unseen(users, slots, rows, scores)
        self.histories.served[slots] = 0
        self.histories.served[slots, : min(SERVED, rows.shape[1])] = rows[:, :SERVED]
        return [
            replace(self._named(mine[mine > 0], its[mine > 0]), popular=bool(filled))
            for mine, its, filled in zip(rows, scores, popular, strict=True)
        ]

    def _with_unseen(
        self, users: Sequence[str], slots: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Lists (U, count) and their scores, with what is popular and not clicked by them for users whose candidates
        they have all clicked; and whose lists these are (U,). Who has clicked everything keeps an empty one."""
        empty = np.count_nonzero(rows, axis=1) == 0
        if not empty.any():
            return rows, scores, empty
        count = self.settings.list_size
        missing = ((0, 0), (0, count - rows.shape[1]))
        rows, scores = np.pad(rows, missing), np.pad(scores, missing)
        shares = self.popularity()
        shares[self.scorer.blocked[: len(shares)].cpu().numpy()] = 0
        shares /= max(shares.sum(), 1e-12)
        for at in np.flatnonzero(empty).tolist():
            unseen = shares.copy()
            # Of users who had to make room in `seen`, their histories still know the latest clicks.
            unseen[self.histories.newest(slots[at : at + 1], self.histories.history_max).rows] = 0
            if self.seen is not None:
                unseen[self.seen.of([users[at]])[1]] = 0
            best = np.argsort(-unseen, kind="stable")[:count]
            best = best[unseen[best] > 0]
            rows[at, : len(best)], scores[at, : len(best)] = best, unseen[best]
        return rows, scores, empty & (np.count_nonzero(rows, axis=1) > 0)

    def _anybodys(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the list for anybody unknown, as of the latest ranking, without what is unavailable."""
        if self._for_anybody is None:
            states = torch.zeros(0, self.settings.width, device=self.device) if self.deep_state else None
            self._rank([], np.zeros(0, np.int64), np.zeros(0), states)
        assert self._for_anybody is not None
        return self._for_anybody

    def _best(
        self, query: Query, people: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best rows for each of U people (U, count), 0 where there are no more, and their scores (U, count); people
        (N,), rising from 0: whom each query is about."""
        scored = self.scorer.score(query).for_people(self._tensor(people), len(self.counts))
        places, scores = scored.best(count)
        rows = torch.nn.functional.pad(scored.candidates.rows, (0, 1))[places]
        return rows.cpu().numpy(), scores.cpu().numpy()

    def _score_served(self, batch: Batch, asked: Asked, guesses: Tensor | None) -> NDArray[np.float64]:
        """Scores what stood in front of each user -> (N,) the clicked items' ranks in it.

        Whoever clicks twice within a micro-batch is scored the second time with the list that the first click gave;
        Redis only ever gets the last one.
        """
        if not self.lists:
            return np.full(len(batch.users), np.inf)
        popular = np.zeros(SERVED, np.int64)
        best = self._popular_rows(SERVED)
        popular[: len(best)] = best
        everywhere = np.broadcast_to(popular, (len(batch.users), SERVED))
        anybodys = np.zeros(SERVED, np.int64)
        best = self._anybodys()[0][:SERVED]
        anybodys[: len(best)] = best
        served = self.histories.served[batch.slots].astype(np.int64)  # (N, SERVED)
        again = np.flatnonzero(batch.behind > 0).tolist()  # clicks after which the same user clicked once more
        if len(again):
            following = next_in_batch(batch.slots)[again]
            states = None if guesses is None else guesses[self._tensor(following)].detach()
            with torch.no_grad():
                who, behind = [batch.users[at] for at in again], batch.behind[again]
                slots, ages_s, active = batch.slots[again], np.zeros(len(again)), batch.active[again]
                between, people = self.questions.at_looks(who, slots, ages_s, behind, states, active=active)
                served[following] = self._best(between, people, SERVED)[0]
        served = np.where(served.any(1, keepdims=True), served, anybodys)
        followed = self.counts.followers_of(asked.moment().last, SERVED, filled_with=popular)
        lists = {"served": served, "popular": everywhere, "followed": followed}
        self.scores.add({name: rows[batch.heard] for name, rows in lists.items()}, batch.targets[batch.heard])
        return ranks_in(served, batch.targets)

    @torch.no_grad()
    def _looked(
        self, batch: Batch, looks: Sequence[Look], ahead: Ahead, guesses: Tensor | None, after: Tensor | None
    ) -> NDArray[np.int64]:
        """The first places of lists (L + 1, SERVED) as rows, 0 where there are no more; last, of the one for anybody,
        as of the batch's start, which is that of whoever has no history any more.

        after (U, D): the Reformer's states after each person's last click in the batch.
        """
        found = np.zeros((len(looks) + 1, SERVED), np.int64)
        held = [at for at, look in enumerate(looks) if look.user_id in self.histories]
        around = None if guesses is None or after is None else StatesAround(guesses.detach(), after)
        size = self.settings.micro_batch_max
        for start in range(0, max(1, len(held)), size):
            part = held[start : start + size]
            asked, lists = self.questions.at_looks_between(batch, [looks[at] for at in part], ahead, around)
            rows, _ = self._best(asked.with_nobody(*self._now), np.append(lists, len(part)), SERVED)
            found[[*part, len(looks)]] = rows
        found[np.setdiff1d(np.arange(len(looks)), held)] = found[-1]
        return found

    def _states(
        self, listed: Sequence[str], read: Read | None, clicks: int
    ) -> tuple[Tensor | None, NDArray[np.bool_], Tensor | None]:
        """The Reformer's states before each click (N, D), with gradients; whether anything was before it (N,); and
        the states after each user's last click (U, D)."""
        if read is None:
            return None, np.zeros(clicks, bool), None
        guesses, taught, states = self.states.read(listed, read.slots, read.clicks)
        return guesses[self._tensor(read.order)], taught[read.order], states

    def _places(self, scored: Scored, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the targets (N,) stand among the candidates, −1 where they do not, or are 0."""
        return self.scorer.places_of(scored, self._tensor(targets)).cpu().numpy()

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return as_tensor(array, self.device)

    def _named(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranking:
        items = [self.vocabulary.item_of(row) for row in rows.tolist()]
        named = [(item, score) for item, score in zip(items, scores.tolist(), strict=True) if item is not None]
        return Ranking([item for item, _ in named], [float(f"{score:.6g}") for _, score in named])

    def _event_type(self, name: str) -> int:
        if name not in self.event_types and len(self.event_types) < EVENT_TYPES_MAX:
            self.event_types[name] = len(self.event_types)
        return self.event_types.get(name, EVENT_TYPES_MAX)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object: together everything that going on as if nothing had happened takes."""
        parts: dict[str, dict[str, NDArray[Any]]] = {}
        state: dict[str, Any] = {}
        for name, part in (("states", self.states), ("scorer", self.scorer), ("guard", self.guard)):
            parts[name], state[name] = part.to_state()
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
        self.scorer.load_state(below(arrays, "scorer"), state["scorer"])
        self.guard.load_state(below(arrays, "guard"), state["guard"])
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


def _read(slots: NDArray[np.int64], last: NDArray[np.int64]) -> Read:
    """slots (N,) of the clicks' histories; last (U,): each person's last click."""
    by_slot = np.argsort(slots[last])
    of_user = by_slot[np.searchsorted(slots[last], slots, sorter=by_slot)]  # (N,) which of the U
    return Read(slots[last], np.bincount(of_user), np.argsort(np.argsort(of_user, kind="stable")))
