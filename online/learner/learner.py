"""The learner: each micro-batch is tested, then trained on, and then lists are ranked anew.

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
from online.learner.batches import BatchResult, ClickBatch, Impression, Ranking, TrainedStep
from online.learner.lists import ListRanker
from online.learner.lookahead import Lookahead, UpcomingBatch
from online.learner.preparing import BatchPreparer, PreparedBatch
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
    training_batch,
)
from stream.events import Click


class Learner(LearnerState):
    """Learns from every click, and ranks the lists that follow from it."""

    def __init__(self, settings: Settings, *, lists: bool = True) -> None:
        """`lists`: whether users get lists; without, nothing is known of how they would have been served."""
        super().__init__(settings)
        self.lists = lists
        self.queries = QueryBuilder(self.histories, self.store, self.returns, self.seen)
        self.preparer = BatchPreparer(self, self.queries, lists=lists)
        self.lookahead = Lookahead(self.preparer)
        self.ranker = ListRanker(self, self.queries)

    # Learning

    def learn(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None = None,
        *,
        train: bool = True,
        following: Callable[[], UpcomingBatch] | None = None,
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
        prepared = self.lookahead.take(clicks, impressions)
        if following is not None:
            self.lookahead.start(following())
        try:
            self.make_room()
            states = read_states(self, prepared, train=train)
            steps = []
            for start in range(0, len(clicks), self.settings.step_clicks):
                step = self._test(prepared, start, states.leaf, train=train)
                steps.append(self._train(prepared, step, states.leaf) if train else step)
            if train:
                self._train_reformer(states)
            return self._rank(prepared, steps, states, train=train)
        finally:
            self.lookahead.wait()

    def _test(self, prepared: PreparedBatch, start: int, states: Tensor | None, *, train: bool) -> TrainedStep:
        """Some of the clicks are scored by weights that have not seen them."""
        assert prepared.gathered is not None
        part = slice(start, min(start + self.settings.step_clicks, len(prepared.batch.users)))
        batch, gathered = prepared.batch.part(part), prepared.gathered.part(part.start, part.stop)
        # Where nothing is to be learned, older clicks teach nothing either: flagged ones must not move anything.
        teaches = train and bool((batch.trainable & (batch.targets > 0)).any())
        replayed = self.replay.sample(self.settings.replay_batch if teaches else 0)
        with torch.set_grad_enabled(train):
            states = None if states is None else states[part]
            scored = self.score(gathered, states, self.settings.candidates_kept, replayed)
        found = scored.positions(batch.targets)
        positions = np.where(batch.trainable, found, -1)
        places = scored.places(positions) if scored.finite() else np.full(len(positions), -1)
        shares = scored.shares().float().cpu().numpy()
        self._remember(batch, scored, places, shares)
        return TrainedStep(part, scored, positions, replayed, click_losses(shares, places), scored.ranks(found))

    def _remember(
        self, batch: ClickBatch, scored: ScoredCandidates, places: NDArray[np.int64], shares: NDArray[np.float32]
    ) -> None:
        """How often the ranker expected each candidate; and clicks that were foreseen at all may be replayed later."""
        kept = np.flatnonzero(places >= 0)
        if len(kept):
            rows = scored.rows()
            self.lift.add(rows[kept], shares[kept], rows[kept, places[kept]])
            rivals = among_rivals(scored, self.tensor(places), self.settings.replay_candidates)
            self.replay.add(*rivals, batch.user_hashes[kept])

    def _train(self, prepared: PreparedBatch, step: TrainedStep, states: Tensor | None) -> TrainedStep:
        """The ranker learns from what it has just scored."""
        states = None if states is None else states[step.part]
        scored = step.scored
        batch = training_batch(self.weights, scored, step.positions, states, step.replayed)
        # Features from which nothing could be learned may be no numbers, and stay out of the running means.
        if self.weights.train(batch, RANKING):
            trainable = self.tensor(prepared.batch.trainable[step.part])
            self.weights.ranker.observe(scored.features[scored.present & trainable[:, None]])
        return replace(step, scored=scored._replace(each=scored.each.detach(), replayed=None))

    def _train_reformer(self, states: ReformerStates) -> None:
        """The Reformer learns to guess the clicks, and moves its states to where ranking wants them."""
        if states.network is not None and states.before is not None and states.leaf is not None:
            self.weights.train(guessing_batch(states.network, states.before, states.leaf.grad), GUESSING)

    def _rank(
        self, prepared: PreparedBatch, steps: list[TrainedStep], states: ReformerStates, *, train: bool
    ) -> BatchResult:
        """All lists by the weights of now. The lists that stood are scored, some of which are among these."""
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
            network=states.network,
            trained=train,
            freed=clicked.freed,
            taken=clicked.taken,
            expired=clicked.expired,
            impressions=ranker.impressions(prepared, rows),
        )

    def publish(self, weights: RankingModel, version: int) -> None:
        """These weights serve and learn from now on. Memories go on, and are rebuilt as their users click."""
        live = self.weights.optimizer
        weights.grow(len(self.store))
        # How far learning rates have come down is a matter of the stream, not of one version.
        weights.optimizer.steps, weights.optimizer.boost = max(weights.optimizer.steps, live.steps), live.boost
        self.weights = self.states.weights = weights
        self.states.weights_replaced()
        self.version = version

    # Lists

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
            rankings += self.ranker.rank(users[part], slots, ages_s, states)
        return rankings

    def popular(self) -> Ranking:
        """The list for users without a history: what is ranked first where nothing is known of a user."""
        return self.ranker.named(*self.ranker.popular_list())

    def set_available(self, item_id: str, available: bool) -> None:
        """Whether an item may be listed, from the next list on. At most `items_held` are known as unavailable."""
        self.items.set_available(item_id, available)
        row = self.vocabulary.row_of(item_id)
        if row:
            self.block([row])
            self.popular_list = None

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object: together everything that going on as if nothing had happened takes."""
        self.ranker.popular_list()  # part of it
        return super().to_state()
