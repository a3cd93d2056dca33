"""The learner: each micro-batch is first scored (tested), then trained on, and then lists are ranked again.

Letters: `N` clicks of a micro-batch, `U` users in it, `D` width of states.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online.config.settings import Settings
from online.learner.again import Retraced, retraced
from online.learner.asking import Answerer
from online.learner.batches import BatchResult, ClickBatch, Impression, Ranking, TrainedStep
from online.learner.explaining import Explainer
from online.learner.listable import ItemChanges
from online.learner.lists import ListRanker
from online.learner.lookahead import Lookahead, UpcomingBatch
from online.learner.objectives import TrainingBatch
from online.learner.preparing import BatchPreparer, PreparedBatch
from online.learner.privacy.gradients import click_gradients
from online.learner.privacy.training import PrivateTraining
from online.learner.queries import QueryBuilder
from online.learner.ranking_model import RankingModel
from online.learner.replay_buffer import among_rivals
from online.learner.scoring import ScoredCandidates
from online.learner.state import LearnerState
from online.learner.training import (
    GUESSING,
    RANKING,
    ReformerStates,
    click_losses,
    guessing_batch,
    read_states,
    score_gradients,
    training_batch,
)
from stream.events import Click
from stream.items import Item

Prepared = PreparedBatch | Retraced


class Learner(LearnerState):
    """Learns from every click, and ranks the lists that follow from it."""

    def __init__(self, settings: Settings, *, lists: bool = True) -> None:
        """Creates a learner that has seen no click.

        Args:
            settings: all settings.
            lists: whether users' lists are ranked; without, served lists are not scored.
        """
        super().__init__(settings)
        self.lists = lists
        self.queries = QueryBuilder(self.histories, self.store, self.returns, self.seen, self.hidden)
        self.preparer = BatchPreparer(self, self.queries, lists=lists)
        self.lookahead = Lookahead(self.preparer)
        self.ranker = ListRanker(self, self.queries)
        self.answerer = Answerer(self, self.queries, self.lookahead.users)
        self.answerer.explain = Explainer(self).explain

    # Learning

    def learn(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None = None,
        *,
        train: bool = True,
        owned: NDArray[np.bool_] | None = None,
        following: Callable[[], UpcomingBatch] | None = None,
    ) -> BatchResult:
        """Scores the lists served before these clicks, learns from the clicks, and ranks new lists.

        Counts change with every click, so the score of a click depends neither on that click nor on a later one. The
        ranker learns in steps of `step_clicks`, each of which is scored first; the Reformer learns once, at the end.

        Args:
            clicks: one micro-batch in order of arrival (`micro_batches` makes them).
            impressions: lists that a backtest needs as they would be written within the micro-batch.
            train: if false, served lists are not scored and the weights stay as they are; all else is the same, and the
                clicks may be replayed later.
            owned: which of the clicks the weights learn from, and whose users get lists; the others, of which another
                worker takes care, are only counted. None: all.
            following: returns the next micro-batch. Its candidates are gathered on another thread while the weights
                learn from these clicks; the result is the same, bit for bit. Until it is learned, the only methods that
                may be called are `set_available` and `put_items`, those of `hidden`, and those of `answerer`.

        Returns:
            The new lists, and how well each click was predicted.

        Raises:
            UnexpectedBatchError: these clicks are not those that were announced as `following`.
        """
        prepared = self.lookahead.take(clicks, impressions, owned)
        if following is not None:
            self.lookahead.start(following())
        try:
            self.make_room()
            if not prepared.batch.users:
                self._count_worth(prepared)
                return counted_only(prepared)
            states = read_states(self, prepared, train=train)
            steps = []
            for start in range(0, len(prepared.batch.users), self.settings.step_clicks):
                step = self._test(prepared, start, states.leaf, train=train)
                steps.append(self._train(prepared, step, states.leaf) if train else step)
            if train:
                self._train_reformer(states)
            self._count_worth(prepared)
            return self._rank(prepared, steps, states, train=train)
        finally:
            self.lookahead.wait()

    def train_again(self, clicks: Sequence[Click]) -> int:
        """Trains the weights on clicks that were only counted so far, as another worker was to learn from them.

        Their features are as of before each of them (`FeatureStore.retrace`). Nothing is counted, no list is ranked.

        Args:
            clicks: of one partition in order of arrival, at most a micro-batch.

        Returns:
            How many were trained; of the others the histories or moments have moved on.
        """
        self.make_room()
        again = retraced(self, clicks)
        if again is None:
            return 0
        states = again.states(self)
        for start in range(0, len(again.batch.users), self.settings.step_clicks):
            self._train(again, self._test(again, start, states.leaf, train=True), states.leaf)
        self._train_reformer(states)
        return int(again.batch.trainable.sum())

    def _test(self, prepared: Prepared, start: int, states: Tensor | None, *, train: bool) -> TrainedStep:
        """Scores the step of clicks that begins at `start`, by weights that have not learned from them."""
        assert prepared.gathered is not None
        part = slice(start, min(start + self.settings.step_clicks, len(prepared.batch.users)))
        batch, gathered = prepared.batch.part(part), prepared.gathered.part(part.start, part.stop)
        # Clicks are replayed only beside new ones to learn from: flagged clicks must not change any weight.
        has_targets = train and bool((batch.trainable & (batch.targets > 0)).any())
        replayed = self.replay.sample(self.settings.replay_batch if has_targets else 0)
        with torch.set_grad_enabled(train and self.privacy is None):
            states = None if states is None else states[part]
            scored = self.score(gathered, states, self.settings.candidates_kept, replayed)
        target_positions = scored.positions(batch.targets)
        positions = np.where(batch.trainable, target_positions, -1)
        places = scored.places(positions) if scored.finite() else np.full(len(positions), -1)
        shares = scored.shares().float().cpu().numpy()
        losses, weights, worth = click_losses(shares, places), batch.weights, None
        if self.worth is not None:
            worth = self.worth.step(batch.types, batch.values, positions, batch.trainable)
            positions, places = (np.where(worth.weights > 0, one, -1) for one in (positions, places))
            weights = worth.weights if weights is None else worth.weights * weights
        first, last = prepared.gathered.starts[[part.start, part.stop]].tolist()
        barred = prepared.barred[(prepared.barred >= first) & (prepared.barred < last)] - first
        self._remember(batch, scored.without(barred, positions), places, weights)
        ranks = scored.ranks(target_positions)
        return TrainedStep(part, scored, positions, replayed, losses, ranks, barred, weights, worth)

    def _remember(
        self,
        batch: ClickBatch,
        scored: ScoredCandidates,
        places: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
    ) -> None:
        """Counts how often the ranker expected each candidate, and keeps clicks with their rivals for replay."""
        kept = np.flatnonzero(places >= 0)
        if len(kept):
            rows, shares = scored.rows(), scored.shares().float().cpu().numpy()
            self.lift.add(rows[kept], shares[kept], rows[kept, places[kept]])
            rivals = among_rivals(scored, self.tensor(places), self.settings.replay_candidates)
            of_kept = None if weights is None else self.tensor(weights[kept])
            self.replay.add(*rivals._replace(weights=of_kept), user_hashes=batch.user_hashes[kept])

    def _train(self, prepared: Prepared, step: TrainedStep, states: Tensor | None) -> TrainedStep:
        """Trains the ranker on the candidates that it has just scored."""
        states = None if states is None else states[step.part]
        scored = step.scored
        choices = scored.without(step.barred, step.positions)
        batch = training_batch(self.weights, choices, step.positions, states, step.replayed, step.weights, step.worth)
        if self.privacy is not None:
            self._train_privately(self.privacy, batch, prepared.batch.user_hashes[step.part])
            return step
        # After a step that was not taken, features may not be finite: they are left out of the running means.
        if self.weights.train(batch, RANKING):
            trainable = self.tensor(prepared.batch.trainable[step.part])
            self.weights.observe(scored.features[scored.present & trainable[:, None]])
            query = prepared.added[0].content
            if query is not None:
                gradients = score_gradients(choices, step.positions, step.weights)
                self.added.content.learn(query.latest[step.part], choices.rows(), gradients)
        return replace(step, scored=scored._replace(each=scored.each.detach(), replayed=None))

    def _train_privately(self, privacy: PrivateTraining, batch: TrainingBatch, user_hashes: NDArray[np.int64]) -> None:
        """Adds the clicks to the private step, and takes it once it is complete. Nothing else learns from them."""
        privacy.add(click_gradients(self.weights, batch).cpu().numpy(), user_hashes)
        if privacy.due and (gradient := privacy.take()) is not None:
            self.weights.step_linear(torch.from_numpy(gradient), self.settings.privacy_learning_rate)

    def _count_worth(self, prepared: PreparedBatch) -> None:
        """Counts event types and values of all clicks of a micro-batch that has been scored."""
        if self.worth is not None:
            counted = prepared.counted.only(prepared.counted.trainable)
            self.worth.add(counted.rows, counted.types, counted.values)

    def _train_reformer(self, states: ReformerStates) -> None:
        """Trains the Reformer to predict the clicks, and with the gradients that ranking has for its states."""
        if states.network is not None and states.before is not None and states.leaf is not None:
            self.weights.train(guessing_batch(states.network, states.before, states.leaf.grad), GUESSING)

    def _rank(
        self, prepared: PreparedBatch, steps: list[TrainedStep], states: ReformerStates, *, train: bool
    ) -> BatchResult:
        """Ranks all lists by the present weights, and scores the served lists, some of which are among them."""
        assert prepared.gathered is not None
        assert prepared.gathered_lists is not None
        batch, clicked, ranker = prepared.batch, prepared.clicked, self.ranker
        list_states = ranker.states(prepared, states)
        rows, scores = ranker.best_rows(prepared.gathered_lists, prepared.list_queries, list_states)
        served_ranks = np.full(len(batch.users), np.inf)
        if self.lists and train:
            served_ranks = ranker.test_served(prepared, rows)
        return BatchResult(
            rankings=ranker.write(prepared, rows, scores) if self.lists else {},
            losses=np.concatenate([step.losses for step in steps]).tolist(),
            ranks=np.concatenate([step.ranks for step in steps]),
            candidates=np.diff(prepared.gathered.starts),
            served_ranks=served_ranks,
            targets=batch.targets,
            trainable=batch.trainable,
            steps=steps,
            network=prepared.network if states.network is None else states.network,
            trained=train,
            freed=clicked.freed,
            taken=clicked.taken,
            expired=clicked.expired,
            starts=prepared.starts,
            impressions=ranker.impressions(prepared, rows),
        )

    def publish(self, weights: RankingModel, version: int) -> None:
        """Makes these weights the live ones, which serve and learn. Users' memories are rebuilt as they click.

        Args:
            weights: of the new version.
            version: its number.
        """
        live = self.weights.optimizer
        weights.grow(len(self.store))
        # The learning rates have decayed with the stream, whichever version was live.
        weights.optimizer.steps, weights.optimizer.boost = max(weights.optimizer.steps, live.steps), live.boost
        if weights.uses_state != self.weights.uses_state:  # memories miss the clicks of the time without
            self.states.forget_all()
        self.weights = self.states.weights = weights
        self.states.weights_replaced()
        self.version = version

    # Lists

    def rank(self, users: Sequence[str], now: Sequence[float] | None = None) -> list[Ranking]:
        """Ranks lists of users from the present state, each for the time at which it is likely to be viewed.

        Args:
            users: ids of users, all different, who have a history.
            now: when each list is written, in seconds since 1970; None: at the user's latest click.
        """
        rankings = []
        for start in range(0, len(users), self.settings.micro_batch_max):
            part = slice(start, start + self.settings.micro_batch_max)
            slots = self.histories.find(users[part])
            clicked_at = self.histories.latest_at(slots)
            ages_s = np.zeros(len(slots)) if now is None else np.asarray(now[part], float) - clicked_at
            states = self.states.now(users[part], slots) if self.deep_state else None
            rankings += self.ranker.rank(users[part], slots, ages_s, states)
        return rankings

    def popular(self) -> Ranking:
        """Returns the list for users without a history."""
        return self.ranker.named(*self.ranker.popular_list())

    def set_available(self, item_id: str, available: bool) -> None:
        """Sets whether an item may be listed, from the next list on. At most `items_held` of them are unavailable."""
        self.items.set_available(item_id, available)
        row = self.vocabulary.row_of(item_id)
        if row:
            self.block([row])
            self.popular_list = None

    def put_items(self, items: Sequence[Item]) -> ItemChanges:
        """Takes in what the latest records of items say beside their availability; the next lists go by it."""
        changes = self.listable.put(items, self.now[0])
        if self.clock.latest > -np.inf:
            self.take_rows(self.items.admit(self.now[1]))
        if changes.rows:
            self.block(changes.rows)
            self.popular_list = None
        return changes

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns arrays by name, and a JSON object: together the whole state, from which learning resumes exactly."""
        self.ranker.popular_list()  # it is part of the state
        return super().to_state()


def counted_only(prepared: PreparedBatch) -> BatchResult:
    """Returns the result of a micro-batch of which no click was learned from."""
    none, clicked = np.zeros(0), prepared.clicked
    return BatchResult(
        rankings={},
        losses=[],
        ranks=none,
        candidates=np.zeros(0, np.int64),
        served_ranks=none,
        targets=np.zeros(0, np.int64),
        trainable=np.zeros(0, np.bool_),
        steps=[],
        starts=prepared.starts,
        network=None,
        trained=False,
        freed=clicked.freed,
        taken=clicked.taken,
        expired=clicked.expired,
    )
