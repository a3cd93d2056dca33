"""All that a learner learns and remembers: what a checkpoint brings back."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.vocabulary import Vocabulary
from model.zeros import zeros
from online.config.settings import Settings
from online.learner.abuse_filter import AbuseFilter
from online.learner.arrays import as_tensor, below, joined
from online.learner.facts.moments import Keys, places_held
from online.learner.facts.store import FeatureStore, Gathered
from online.learner.history import UserHistories
from online.learner.item_rows import ClickedRows, ItemRows
from online.learner.lift import Lift
from online.learner.ranking_model import Memory, RankingModel
from online.learner.replay_buffer import ReplayBuffer
from online.learner.reservoir import Reservoir
from online.learner.return_times import ReturnTimes
from online.learner.scoring import ScoredCandidates
from online.learner.seen_items import SeenItems
from online.learner.stream_time import ActiveClock
from online.learner.user_states import UserStates
from online.metrics import Scores
from stream.events import Click
from stream.people import digest_of, owner_number

METHODS = ("served", "popular", "followed")  # the lists as served, and two rivals that are asked at the same moment
EVENT_TYPES_MAX = 15  # the first ones seen; whatever comes later shares one more


class LearnerState:
    """Histories, counts, memories, vocabulary, network, ranker, running scores."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
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
        self.popular_list: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # rows and scores, best first
        self.clock = ActiveClock()
        self.now = 0.0, 0.0  # as of the latest micro-batch: the latest event time, and the active time
        self.expired = 0  # items that lost their rows because they had no clicks for long
        self.event_types: dict[str, int] = {}
        self.make_room()

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
            self.lift.forget_rows(clicked.freed)
            self.weights.reset_rows(self.tensor(np.array(clicked.freed, np.int64)))
        self.block(clicked.taken)
        return clicked

    def block(self, rows: Sequence[int]) -> None:
        """Notes of rows, whose items may have changed, whether they must not be listed."""
        self.store.set_blocked(rows, [self.vocabulary.item_of(row) in self.unavailable for row in rows])

    def make_room(self) -> None:
        """Whatever is kept by row has one for each item."""
        self.store.grow(self.vocabulary.rows)
        self.weights.grow(len(self.store))
        self.lift.grow(len(self.store))

    def event_type(self, name: str) -> int:
        """The number of an event type, given to the first EVENT_TYPES_MAX."""
        if name not in self.event_types and len(self.event_types) < EVENT_TYPES_MAX:
            self.event_types[name] = len(self.event_types)
        return self.event_types.get(name, EVENT_TYPES_MAX)

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

    def score(
        self, gathered: Gathered, states: Tensor | None, kept: int, replayed: tuple[Tensor, Tensor] | None = None
    ) -> ScoredCandidates:
        """What the weights that serve make of candidates (`RankingModel.score`)."""
        lifts, memory = self.lift.of(gathered.rows), self.memory()
        return self.weights.score(gathered, lifts, memory, states, kept=kept, replayed=replayed)

    def mostly_flagged(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of which histories (N,) more than half of the clicks are flagged as abuse, (N,)."""
        if not self.abuse_filter.total:  # none ever was
            return np.zeros(len(slots), np.bool_)
        newest = self.histories.newest(slots, self.settings.history_max)
        found: NDArray[np.bool_] = 2 * self.abuse_filter.was_flagged(newest.numbers).sum(1) > newest.lengths
        return found

    # Users are forgotten

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

    # A checkpoint

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
        assert self.popular_list is not None
        rows, scores = self.popular_list
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
        self.popular_list = anybodys["rows"].copy(), anybodys["scores"].copy()
        self.clock.load_state(state["clock"])
        self.now = (self.clock.latest, self.clock.now) if self.clock.latest > -np.inf else (0.0, 0.0)
        self.expired = state["expired"]
        self.event_types = dict(state["event_types"])
        self.make_room()
        self.block([self.vocabulary.row_of(item_id) for item_id in self.unavailable])

    def _load_seen(self, seen: SeenItems, arrays: dict[str, NDArray[Any]], users: list[str] | None) -> None:
        """From a checkpoint that holds it; otherwise from the histories, which are all that such a checkpoint knows."""
        if users is not None:
            seen.load_state(arrays, users)
            return
        for user in self.histories.users():
            seen.add(user, self.histories.newest(self.histories.find([user]), self.histories.history_max).rows[0])
