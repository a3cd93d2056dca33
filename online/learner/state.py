"""All that a learner learns and remembers: what a checkpoint brings back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.vocabulary import Vocabulary
from online.config.settings import Settings
from online.learner.abuse_filter import AbuseFilter
from online.learner.added import AddedQueries, AddedQuery, candidates_max, columns_of
from online.learner.arrays import as_tensor, below, joined
from online.learner.batches import ClickBatch
from online.learner.facts.gather import QueryArrays
from online.learner.facts.moments import Keys
from online.learner.facts.store import FeatureStore, Gathered
from online.learner.groups.groups import UserGroups
from online.learner.hidden import HiddenItems
from online.learner.history import UserHistories
from online.learner.item_rows import ClickedRows, ItemRows
from online.learner.lift import Lift
from online.learner.listable import Listable
from online.learner.privacy.training import PrivateTraining, private_paths_only
from online.learner.ranking_model import Memory, RankingModel
from online.learner.replay_buffer import ReplayBuffer, Replayed
from online.learner.reservoir import Reservoir
from online.learner.return_times import ReturnTimes
from online.learner.scoring import ScoredCandidates
from online.learner.seen_items import SeenItems
from online.learner.shown.shown import ShownItems
from online.learner.stream_time import ActiveClock
from online.learner.user_states import UserStates
from online.learner.user_stores import UserStores
from online.learner.worth.facts import EventWorth
from online.metrics import Scores
from stream.events import Click

METHODS = ("served", "popular", "followed")  # the lists as served, and two baselines at the same moment
EVENT_TYPES_MAX = 15  # the first ones seen; whatever comes later shares one more
#: What a checkpoint of an earlier version, or of other settings, may lack.
LATER_STORES = {"seen", "hidden", "groups", "shown", "privacy"}


class LearnerState:
    """Histories, counts, memories, vocabulary, network, ranker, running scores."""

    def __init__(self, settings: Settings) -> None:
        settings = private_paths_only(settings)
        self.settings = settings
        self.version = 1  # of the model; fine-tuning publishes the next one
        self.items = ItemRows(settings)
        self.listable = Listable(settings, self.items)
        self.abuse_filter = AbuseFilter(settings)
        self.histories = UserHistories(settings.users_held, settings.history_max, values=settings.predicts_worth)
        self.weights = RankingModel(settings)  # the version that serves and learns
        self.device = self.weights.device
        self.store = FeatureStore(settings, candidates_max(settings))
        self.groups = (
            None
            if not settings.groups_users
            else UserGroups(
                settings.user_attributes_held,
                settings.user_groups_half_life_s,
                by_hour=settings.popularity_by_hour,
            )
        )
        self.shown = (
            ShownItems(
                lists_max=settings.impressions_held,
                users_max=settings.impressions_users_held,
                window_s=settings.impressions_window_s,
                histories=self.histories,
                vocabulary=lambda: self.vocabulary,
            )
            if settings.learn_impressions
            else None
        )
        self.added = AddedQueries(self, settings, self.groups, self.shown)
        self.lift = Lift()
        self.replay = ReplayBuffer(
            settings.replay_held,
            settings.replay_candidates,
            len(self.weights.first) + 1,
            settings.seed,
            self.device,
            added=[column.name for column in columns_of(settings)],
        )
        self.states = UserStates(settings, self.weights, self.histories)
        self.reservoir = Reservoir(settings.finetune_reservoir_held, settings.history_max, settings.seed)
        self.seen = SeenItems(settings.users_held, settings.seen_pairs_max) if settings.exclude_seen else None
        self.hidden = HiddenItems(
            settings.hidden_users_max,
            settings.hidden_per_user_max,
            now=lambda: self.now[0],
            vocabulary=lambda: self.vocabulary,
        )
        self.privacy = PrivateTraining(settings, self.weights.linear_weights) if settings.private else None
        self.user_stores = self._user_stores()
        self.random = np.random.default_rng(settings.seed)  # negatives'
        self.scores = Scores(METHODS)
        self.returns = ReturnTimes(
            settings.refresh_ages_s, settings.refresh_share_min, settings.refreshes_max, settings.expected_views_max
        )
        self.popular_list: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # rows and scores, best first
        self.clock = ActiveClock()
        self.now = 0.0, 0.0  # as of the latest micro-batch: the latest event time, and the active time
        self.expired = 0  # items that lost their rows because they had no clicks for long
        self.event_types: dict[str, int] = {}
        self.worth = EventWorth(settings, lambda: self.event_types) if settings.predicts_worth else None
        self._counts_by_row = [
            counts for counts in (self.lift, self.groups, self.shown, self.worth) if counts is not None
        ]
        self._number_named_types()
        self.frozen = False  # if set, clicks enter their users' histories, and nothing is counted or learned
        self.trial_reads_state = (
            False  # whether weights are tried that use the Reformer's state, though the live ones do not
        )
        self.on_rows_changed: Callable[[Sequence[int], Sequence[int]], None] | None = None  # (freed, taken)
        self.make_room()

    def _user_stores(self) -> UserStores:
        """All that hold data of users."""
        stores = UserStores()
        stores.add("history", self.histories)
        stores.add("states", self.states)
        stores.add("store", self.store)
        stores.add("replay", self.replay)
        stores.add("reservoir", self.reservoir)
        stores.add("abuse_filter", self.abuse_filter)
        if self.seen is not None:
            stores.add("seen", self.seen)
        stores.add("hidden", self.hidden)
        if self.groups is not None:
            stores.add("groups", self.groups)
        if self.shown is not None:
            stores.add("shown", self.shown)
        if self.privacy is not None:
            stores.add("privacy", self.privacy)
        return stores

    @property
    def vocabulary(self) -> Vocabulary:
        return self.items.vocabulary

    @property
    def unavailable(self) -> set[str]:
        """Items that must not be listed."""
        return self.items.unavailable

    @property
    def deep_state(self) -> bool:
        """Whether the Reformer's state takes part. It changes with the weights: never within a turn."""
        return self.may_use_state and self.weights.uses_state

    @property
    def may_use_state(self) -> bool:
        """Whether the settings let the Reformer's state take part."""
        return self.settings.reformer and self.settings.deep_state

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """The array on the device of the weights."""
        return as_tensor(array, self.device)

    # Items

    def observe_items(self, clicks: Sequence[Click], active: NDArray[np.float64]) -> ClickedRows:
        """Rows of the clicked items, given to those that are new.

        Rows that change hands are cleared everywhere before they are used again.
        """
        clicked = self.items.observe(clicks, active)
        self.expired += clicked.expired
        self.make_room()
        if clicked.freed:
            self.popular_list = None
            self.histories.forget_rows(clicked.freed)
            if self.seen is not None:
                self.seen.forget_rows(clicked.freed)
            self.reservoir.forget_rows(clicked.freed)
            self.store.forget_rows(clicked.freed)
            self.listable.free_rows(clicked.freed)
            for counts in self._counts_by_row:
                counts.forget_rows(clicked.freed)
            self.weights.reset_rows(self.tensor(np.array(clicked.freed, np.int64)))
        self.block(clicked.taken)
        if self.on_rows_changed is not None and (clicked.freed or clicked.taken):
            self.on_rows_changed(clicked.freed, clicked.taken)
        return clicked

    def take_rows(self, rows: Sequence[int]) -> None:
        """Follows items that have got rows before their first click."""
        if rows:
            self.make_room()
            self.block(rows)
            if self.on_rows_changed is not None:
                self.on_rows_changed([], rows)

    def block(self, rows: Sequence[int]) -> None:
        """Notes of rows, whose items may have changed, whether they must not be listed."""
        self.store.set_blocked(rows, self.listable.blocked(rows))

    def make_room(self) -> None:
        """Whatever is kept by row has one for each item."""
        self.store.grow(self.vocabulary.rows)
        self.weights.grow(len(self.store))
        self.listable.grow(len(self.store))
        for counts in self._counts_by_row:
            counts.grow(len(self.store))

    def event_type(self, name: str) -> int:
        """The number of an event type, given to the first EVENT_TYPES_MAX."""
        if name not in self.event_types and len(self.event_types) < EVENT_TYPES_MAX:
            self.event_types[name] = len(self.event_types)
        return self.event_types.get(name, EVENT_TYPES_MAX)

    def count_feedback(self, item_id: str, kind: str) -> None:
        """Counts a user's feedback on an item, if such feedback has a weight (NEXTCLICK_EVENT_WEIGHTS)."""
        if self.worth is not None:
            self.worth.add_feedback(self.vocabulary.row_of(item_id), kind)

    def _number_named_types(self) -> None:
        """Numbers the event types that have a weight, while there are numbers left."""
        for name in self.settings.weights_by_type:
            self.event_type(name)

    def popularity(self) -> NDArray[np.float64]:
        """Recent clicks on all rows in use."""
        return self.store.popularity_by(self._half_life, self.vocabulary.rows)

    def popular_rows(self, count: int) -> NDArray[np.int64]:
        """The most popular rows that may be listed, best first."""
        return self.store.popular(count, self._half_life)

    @property
    def _half_life(self) -> int:
        """Which of the half-lives the popular list goes by: the middle one, the longer of two."""
        return len(self.settings.popularity_half_lives) // 2

    # Scores

    def memory(self) -> Memory:
        """What recall compares with."""
        log = self.store.log
        return Memory(Keys(log.last, log.before, log.times, log.gaps), self.moment_states)

    @property
    def moment_states(self) -> Tensor:
        """The Reformer's states at the moments of the log, (M, D) float16."""
        return torch.from_numpy(self.store.moment_states)

    def with_columns(
        self,
        gathered: Gathered,
        added: AddedQuery,
        histories: UserHistories,
        queries: QueryArrays,
        *,
        behind: NDArray[np.int64] | None = None,
        clicks: ClickBatch | None = None,
    ) -> Gathered:
        """Returns gathered candidates with all that is known of them beside the ranker's features.

        Args:
            gathered: candidates of N queries.
            added: what is added to them.
            histories: of the users.
            queries: N of them.
            behind: (N,) clicks at the end of each history that come after the query; None: none.
            clicks: N clicks, each of which follows its query; None: there are none.
        """
        gathered = self.added.with_columns(gathered, added, clicks)
        return gathered if self.worth is None else self.worth.with_columns(gathered, histories, queries, behind)

    def score(
        self, gathered: Gathered, states: Tensor | None, kept: int, replayed: Replayed | None = None
    ) -> ScoredCandidates:
        """What the weights that serve make of candidates (`RankingModel.score`)."""
        lifts, memory = self.lift.of(gathered.rows), self.memory()
        return self.weights.score(gathered, lifts, memory, states, kept=kept, replayed=replayed)

    def mostly_flagged(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of which histories (N,) more than half of the clicks are flagged as abuse, (N,)."""
        if not self.abuse_filter.total:  # none ever was
            return np.zeros(len(slots), np.bool_)
        newest = self.histories.newest_first(slots, self.settings.history_max)
        found: NDArray[np.bool_] = 2 * self.abuse_filter.was_flagged(newest.numbers).sum(1) > newest.lengths
        return found

    # Users are forgotten

    def forget(self, digest: str) -> dict[str, int]:
        """Nothing of a user (`stream.user_ids.digest_of` the id) is left -> how much there was, by kind.

        What stays are sums over all users, from which none can be told: weights, counts, running scores.
        """
        return self.user_stores.forget(digest)

    def named(self, digest: str) -> frozenset[str]:
        """The id with that digest, where it stands anywhere here."""
        return self.user_stores.named(digest)

    def holds(self, digest: str) -> dict[str, int]:
        """How much there is of a user, by the kinds that `forget` gives."""
        return self.user_stores.holds(digest)

    # A checkpoint

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and a JSON object: together everything that going on as if nothing had happened takes."""
        assert self.popular_list is not None
        rows, scores = self.popular_list
        parts, state = self.user_stores.to_state()
        attributes, attributes_state = self.listable.to_state()
        parts |= {
            "lift": self.lift.to_state(),
            "weights": self.weights.to_state(),
            "returns": self.returns.to_state(),
            "popular": {"rows": rows, "scores": scores},
            "attributes": attributes,
        }
        if self.worth is not None:
            parts["worth"], state["worth"] = self.worth.to_state()
        return joined(parts), state | {
            "version": self.version,
            "random": self.random.bit_generator.state,
            "items": self.items.to_state(),
            "attributes": attributes_state,
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
        missing = self.user_stores.load_state(arrays, state)
        if "seen" in missing:
            self._see_histories()
        if self.groups is not None and "groups" in missing:
            self.groups.unread = True
        if lacks := missing - LATER_STORES:
            raise KeyError(f"the checkpoint lacks {sorted(lacks)}")
        self.lift.load_state(below(arrays, "lift"))
        self.scores.load_state(state["scores"])
        self.returns.load_state(below(arrays, "returns"))
        popular = below(arrays, "popular")
        self.popular_list = popular["rows"].copy(), popular["scores"].copy()
        self.clock.load_state(state["clock"])
        self.now = (self.clock.latest, self.clock.now) if self.clock.latest > -np.inf else (0.0, 0.0)
        self.expired = state["expired"]
        self.event_types = dict(state["event_types"])
        self._number_named_types()
        if self.worth is not None and "worth" in state:
            self.worth.load_state(below(arrays, "worth"), state["worth"])
        self.make_room()
        self.block(self.listable.load_state(below(arrays, "attributes"), state.get("attributes")))
        if self.store.items.blocked[self.popular_list[0]].any():  # by a rule that is new
            self.popular_list = None

    def _see_histories(self) -> None:
        """Seen items of a checkpoint that does not hold them: the histories are all that it knows."""
        assert self.seen is not None
        for user in self.histories.users():
            self.seen.add(
                user, self.histories.newest_first(self.histories.find([user]), self.histories.history_max).rows[0]
            )
