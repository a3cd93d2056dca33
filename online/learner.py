"""Everything that is learned from clicks, and the lists that follow from it: test, then train, then rank anew.

Letters: `N` clicks of a micro-batch, `U` users in it, `L` clicks read of each, `D` width, `C` candidates of all clicks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.vocabulary import Vocabulary
from online import candidates
from online.counts import Counts
from online.history import SERVED, UserHistories, earlier_in_batch
from online.metrics import Scores, ranks_among, ranks_in
from online.mixer import Mixer
from online.settings import Settings
from online.states import UserStates
from online.trainer import Negatives, Trainer
from stream.events import Click

METHODS = ("served", "popular", "followed")  # the lists as served, and two rivals that are asked at the same moment
EVENT_TYPES_MAX = 15  # the first ones seen; whatever comes later shares one more


@dataclass(frozen=True)
class Ranking:
    """One user's new list, best item first."""

    items: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Learned:
    """What one micro-batch of N clicks gave: its users' new lists, and how well each click was foreseen.

    Ranks count from 0, half of the ties as ahead. What is no candidate, or not in a list, has rank inf.
    """

    rankings: dict[str, Ranking]
    losses: list[float]  # N, in nats
    ranks: NDArray[np.float64]  # (N,) of the clicked item among all candidates at the moment of the click
    candidates: NDArray[np.int64]  # (N,) how many candidates there were
    served_ranks: NDArray[np.float64]  # (N,) of the clicked item in the first SERVED places of the list that stood


class Learner:
    """Histories, counts, vocabulary, network, mixer and running scores: all that a checkpoint has to bring back."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.version = 1  # of the model; fine-tuning publishes the next one
        self.vocabulary = self._new_vocabulary()
        self.histories = UserHistories(settings.users_held, settings.history_max)
        self.counts = Counts(settings.successors_held, settings.popularity_half_life)
        self.mixer = Mixer(settings.mixer_learning_rate)
        self.trainer = Trainer(settings)
        self.states = UserStates(settings, self.trainer, self.histories)
        self.scores = Scores(METHODS)
        self.event_types: dict[str, int] = {}
        self._expired_at = 0.0  # when idle items last lost their rows, in stream time
        self._make_room()

    def _new_vocabulary(self, state: dict[str, Any] | None = None) -> Vocabulary:
        limits = {"min_count": self.settings.item_min_count, "capacity_max": self.settings.items_held}
        limits["waiting_max"] = self.settings.items_held
        return Vocabulary(**limits) if state is None else Vocabulary.from_state(state, **limits)

    def learn(self, clicks: Sequence[Click]) -> Learned:
        """Scores the lists that stood before these clicks, learns from the clicks, and ranks anew.

        Within a micro-batch histories move with every click, and so do the lists that are scored; counts and weights
        move once, at its end. So nothing that is scored has seen its own click, or a later one.

        Args:
            clicks: one micro-batch in order of arrival (`micro_batches` makes them).
        """
        known = np.array([self.vocabulary.row_of(click.item_id) for click in clicks], np.int64)  # (N,), 0 = new
        slots = self.histories.slots([click.user_id for click in clicks])  # (N,), of each click
        rows = self._observe(clicks)  # (N,)
        known[known != rows] = 0
        self.trainer.rows_changed.update(rows[known != rows].tolist())
        types = [self._event_type(click.event_type) for click in clicks]
        self.histories.append(slots, rows, types, [click.timestamp for click in clicks])
        behind = earlier_in_batch(slots[::-1])[::-1]  # (N,) clicks of the same user that came after in this batch

        before = self.histories.latest(slots, self.settings.history_max, behind + 1)  # without the click itself
        asked = candidates.gather(self.counts, before, exclude_seen=self.settings.exclude_seen)
        last = behind == 0  # (N,) each user's last click in the batch
        users = [click.user_id for click, is_last in zip(clicks, last, strict=True) if is_last]
        by_slot = np.argsort(slots[last])
        of_user = by_slot[np.searchsorted(slots[last], slots, sorter=by_slot)]  # (N,) which of the U users
        by_user = np.argsort(of_user, kind="stable")  # states come user by user
        guesses, taught, states = self.states.read(users, slots[last], np.bincount(of_user))
        guessing = guesses[np.argsort(by_user)]  # (N, D)
        taught = taught[np.argsort(by_user)] & (rows != 0)  # (N,)

        self._ask_network(asked, guessing)
        previous = np.where(before.lengths > 0, before.rows[np.arange(len(clicks)), before.lengths - 1], 0)
        scores = self.mixer.scores(asked)
        ranks = ranks_among(scores, asked.owners, asked.places_of(known))
        served_ranks = self._score(slots, asked, scores, previous, known)
        losses = self.mixer.learn(asked, known)
        for earlier, row in zip(previous.tolist(), rows.tolist(), strict=True):
            self.counts.add(earlier, row)
        if taught.any() and self.vocabulary.rows > 2:
            negatives = Negatives(self.counts.popularity, self.vocabulary.rows)
            self.trainer.update(guessing[taught], rows[taught], negatives)
        rankings = self._rank(slots[last], states)
        listed = dict(zip(users, rankings, strict=True))
        return Learned(listed, losses.tolist(), ranks, np.diff(asked.starts), served_ranks)

    def rank(self, users: Sequence[str]) -> list[Ranking]:
        """New lists of users, as everything stands now. No user twice; each has to have a history."""
        if not users:
            return []
        slots = self.histories.find(users)
        return self._rank(slots, self.states.now(users, slots))

    def _observe(self, clicks: Sequence[Click]) -> NDArray[np.int64]:
        """Rows (N,) of the clicked items. Rows that change hands are cleared everywhere before anybody uses them."""
        # Rows are freed many at a time: to clear them, everything that is kept by row has to be searched.
        new = len({click.item_id for click in clicks if click.item_id not in self.vocabulary})
        surplus = len(self.vocabulary) + new - self.settings.items_held
        if surplus > 0:
            self.vocabulary.free_oldest(max(surplus, self.settings.items_held // 64))
        rows = [self.vocabulary.observe(click.item_id, click.timestamp) for click in clicks]
        now = max(click.timestamp for click in clicks)
        if now - self._expired_at > self.settings.item_idle_s_max / 64:
            self.vocabulary.expire(now - self.settings.item_idle_s_max)
            self._expired_at = now
        self._make_room()
        freed = self.vocabulary.take_reset()
        if freed:
            self.histories.forget_rows(freed)
            self.counts.forget_rows(freed)
            self.trainer.reset_rows(freed)
        # Within one micro-batch a newcomer may have taken the row of an item that was clicked just before it.
        return np.array(
            [
                row if self.vocabulary.item_of(row) == click.item_id else 0
                for row, click in zip(rows, clicks, strict=True)
            ],
            np.int64,
        )

    def _make_room(self) -> None:
        self.trainer.grow(self.vocabulary.rows)
        self.counts.grow(len(self.trainer.network.items))

    def _score(
        self,
        slots: NDArray[np.int64],
        asked: candidates.Candidates,
        scores: NDArray[np.float32],
        previous: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Scores what stood in front of each user -> (N,) the clicked items' ranks in it.

        Whoever clicks twice within a micro-batch is scored the second time with the list that the first click gave;
        Redis only ever gets the last one.
        """
        popular = np.zeros(SERVED, np.int64)
        best = self.counts.popular(SERVED)
        popular[: len(best)] = best
        everywhere = np.broadcast_to(popular, (len(slots), SERVED))
        served = self.histories.served[slots].astype(np.int64)  # (N, SERVED)
        again = earlier_in_batch(slots) > 0
        if again.any():
            between = asked.best(scores, SERVED)
            for at in np.flatnonzero(again):
                served[at] = 0
                served[at, : len(between[at][0])] = between[at][0]
        served = np.where(served.any(1, keepdims=True), served, everywhere)
        followed = self.counts.followers_of(previous, SERVED, filled_with=popular)
        self.scores.add({"served": served, "popular": everywhere, "followed": followed}, targets)
        return ranks_in(served, targets)

    def _ask_network(self, asked: candidates.Candidates, states: Tensor) -> None:
        """Fills in what the states (N, D) say of the candidates; it stays 0 where that is switched off."""
        if self.settings.reformer:
            asked.features[:, candidates.NETWORK] = self.trainer.scores(states, asked.owners, asked.rows)

    def _rank(self, slots: NDArray[np.int64], states: Tensor) -> list[Ranking]:
        """Lists for different slots (U,) whose states are (U, D); they count as served from now on."""
        latest = self.histories.latest(slots, self.settings.history_max)
        asked = candidates.gather(self.counts, latest, exclude_seen=self.settings.exclude_seen)
        self._ask_network(asked, states)
        rankings = []
        best = asked.best(self.mixer.scores(asked), self.settings.list_size)
        self.histories.served[slots] = 0
        for slot, (rows, scores) in zip(slots, best, strict=True):
            self.histories.served[slot, : len(rows[:SERVED])] = rows[:SERVED]
            rankings.append(self._named(rows, scores))
        return rankings

    def popular(self) -> Ranking:
        """The list for anybody unknown."""
        rows = self.counts.popular(self.settings.list_size)
        return self._named(rows, np.asarray(self.counts.recent_popularity(rows), np.float32))

    def _named(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranking:
        items = [self.vocabulary.item_of(row) for row in rows.tolist()]
        named = [(item, score) for item, score in zip(items, scores.tolist(), strict=True) if item is not None]
        return Ranking([item for item, _ in named], [round(score, 4) for _, score in named])

    def _event_type(self, name: str) -> int:
        if name not in self.event_types and len(self.event_types) < EVENT_TYPES_MAX:
            self.event_types[name] = len(self.event_types)
        return self.event_types.get(name, EVENT_TYPES_MAX)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object: together everything that going on as if nothing had happened takes."""
        trained, trainer = self.trainer.to_state()
        history, users = self.histories.to_state()
        remembered, states = self.states.to_state()
        parts = {
            "trainer": trained,
            "states": remembered,
            "history": history,
            "counts": self.counts.to_state(),
            "mixer": self.mixer.to_state(),
        }
        arrays = {f"{part}.{name}": array for part, found in parts.items() for name, array in found.items()}
        return arrays, {
            "version": self.version,
            "trainer": trainer,
            "states": states,
            "users": users,
            "vocabulary": self.vocabulary.to_state(),
            "scores": self.scores.to_state(),
            "event_types": self.event_types,
            "expired_at": self._expired_at,
        }

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        def part(name: str) -> dict[str, NDArray[Any]]:
            return {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}

        self.version = state["version"]
        self.vocabulary = self._new_vocabulary(state["vocabulary"])
        self.trainer.load_state(part("trainer"), state["trainer"])
        self.histories.load_state(part("history"), state["users"])
        self.states.load_state(part("states"), state["states"])
        self.counts.load_state(part("counts"))
        self.mixer.load_state(part("mixer"))
        self.scores.load_state(state["scores"])
        self.event_types = dict(state["event_types"])
        self._expired_at = state["expired_at"]
        self._make_room()
