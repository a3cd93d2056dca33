"""Made-up streams, the store that takes them in, and a slow version of it in plain lists and dicts.

Letters: `H` clicks kept of a user, `M` moments held.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from online.config.settings import Settings
from online.learner.facts import gather
from online.learner.facts.features import COUNTED, OWN_DECAY
from online.learner.facts.gather import ClickArrays, QueryArrays, SeenRows
from online.learner.facts.moments import DAY_S, GAP_SCALE, MIX, WEEK_S
from online.learner.facts.store import NO_SEEN_ROWS, FeatureStore, Gathered
from online.learner.facts.tables import NEAR
from online.learner.history import UserHistories

NOBODY = -1
START = 1_730_600_000.0
FEW: dict[str, Any] = {  # so that everything collides
    "device": "cpu",
    "history_max": 24,
    "online_history": 6,
    "users_held": 64,
    "successors_held": 3,
    "neighbours_held": 4,
    "popularity_half_lives": (3, 20),
    "moments_held": 80,
    "recall_latest": 4,
    "recall_users_held": 64,
    "recall_buckets": 4,
    "recall_ring": 3,
    "recall_probes": 2,
    "world_buckets": 4,
    "world_ring": 5,
    "micro_batch_max": 64,
}


def few(**changed: Any) -> Settings:
    """Settings in which every ring and row is soon full."""
    return Settings(**{**FEW, **changed})


class Click(NamedTuple):
    """A click that is asked for and then counted."""

    user: int
    row: int  # 0: the item has none
    time: float
    active: float
    trainable: bool


class Ask(NamedTuple):
    """A list of one user at several moments."""

    user: int  # NOBODY: nothing is known of them
    times: tuple[float, ...]
    active: tuple[float, ...]


class Move(NamedTuple):
    """Something that happens between two micro-batches."""

    name: str  # of the store's method
    argument: Any


Event = Click | Ask | Move


class Answer(NamedTuple):
    """What was found for one query."""

    rows: list[int]
    features: list[list[float]]
    moment: tuple[int, int, float, float]  # last, before, time, gap
    own: list[tuple[int, int]]  # numbers of moments, and the rows that they point at
    world: list[tuple[int, int]]
    followers: list[int]


def stream(
    seed: int, clicks: int, *, users: int = 4, rows: int = 12, moves: bool = True, asks: float = 0.5
) -> list[Event]:
    """Random events: some clicks are flagged, late, or on items without a row; lists are asked for in between."""
    random = np.random.default_rng(seed)
    favourite = random.permutation(rows)
    events: list[Event] = []
    time = START
    for _ in range(clicks):
        time += float(random.choice([0.0, 1.0, 300.0, 40_000.0]))
        at = time - (500.0 if random.random() < 0.1 else 0.0)
        row = int(favourite[min(int(random.exponential(rows / 3)), rows - 1)])  # row 0 is one of them
        events.append(Click(int(random.integers(users)), row, at, at / 2, bool(random.random() < 0.85)))
        if random.random() < asks:
            ages = np.sort(random.choice([0.0, 60.0, 3_600.0, 90_000.0], int(random.integers(1, 4)), replace=False))
            times = tuple((time + ages).tolist())
            active = tuple((time / 2 + ages).tolist())
            user = int(random.integers(users + 2)) - 1  # now and then no user, or a user who has not clicked yet
            events.append(Ask(user, times, active))
        if moves and random.random() < 0.08:
            some = random.choice(np.arange(1, rows), 2, replace=False).tolist()
            events.append(
                [
                    Move("set_blocked", (some, [True, False])),
                    Move("forget_rows", some[:1]),
                    Move("decay", 0.5),
                ][int(random.integers(3))]
            )
    return events


class Player:
    """The store, told of events in micro-batches as the learner does."""

    def __init__(self, settings: Settings, size: int) -> None:
        self.settings, self.size = settings, size
        self.store = FeatureStore(settings)
        self.histories = UserHistories(settings.users_held, settings.history_max)
        self.seen: dict[int, set[int]] = defaultdict(set)
        self.flagged = np.zeros(settings.moments_held + settings.micro_batch_max, np.bool_)

    def play(self, events: Sequence[Event]) -> list[Answer]:
        """The answers in the order of the events: one for each click, and for each moment of a list."""
        answers: list[Answer] = []
        batch: list[Click | Ask] = []
        for event in events:
            full = isinstance(event, Click) and sum(isinstance(one, Click) for one in batch) == self.size
            if full or isinstance(event, Move):
                answers += self._batch(batch)
                batch = []
            if isinstance(event, Move):
                self._move(event)
            else:
                batch.append(event)
        return answers + self._batch(batch)

    def _move(self, move: Move) -> None:
        arguments = move.argument if isinstance(move.argument, tuple) else (move.argument,)
        getattr(self.store, move.name)(*arguments)
        if move.name == "forget_rows":
            self.histories.forget_rows(move.argument)
            for mine in self.seen.values():
                mine.difference_update(move.argument)

    def _batch(self, batch: list[Click | Ask]) -> list[Answer]:
        clicks = [one for one in batch if isinstance(one, Click)]
        told, before, lists, seen = self.asked(batch)
        found = self.store.advance(self.histories, told, before, lists, flagged=self.flagged, seen=seen)
        for click in clicks:
            self.seen[click.user].add(click.row)
        of_clicks, of_lists = (iter(self.answers(one)) for one in found)
        answers = []
        for one in batch:
            answers += [next(of_lists) for _ in one.times] if isinstance(one, Ask) else [next(of_clicks)]
        return answers

    def asked(
        self, batch: Sequence[Click | Ask]
    ) -> tuple[ClickArrays, QueryArrays, QueryArrays, tuple[SeenRows, SeenRows]]:
        """What the store is told."""
        clicks = [one for one in batch if isinstance(one, Click)]
        users = [str(click.user) for click in clicks]
        self.store.take_own_slots(list(dict.fromkeys(users)))
        slots, own_slots = self.histories.slots(users), self.store.own_slots(users)
        trainable = np.array([click.trainable for click in clicks], np.bool_)
        self.flagged[self.store.next_numbers(len(clicks)) % len(self.flagged)] = ~trainable
        told = ClickArrays(
            slots,
            own_slots,
            np.array([click.row for click in clicks], np.int64),
            np.zeros(len(clicks), np.int64),
            np.array([click.time for click in clicks], np.float64),
            np.array([click.active for click in clicks], np.float64),
            np.array([click.user + 1 for click in clicks], np.int64),
            trainable,
        )
        positions, nothing = np.arange(len(clicks)), np.zeros(len(clicks), np.bool_)
        before = QueryArrays(positions, slots, own_slots, told.times, told.active, nothing)
        lists, whose, preceding = [], [], 0
        for one in batch:
            preceding += isinstance(one, Click)
            if isinstance(one, Ask):
                slot = int(self.histories.find([str(one.user)])[0]) if str(one.user) in self.histories else -1
                own = int(self.store.own_slots([str(one.user)])[0])
                for at, (time, active) in enumerate(zip(one.times, one.active, strict=True)):
                    lists.append((preceding, slot, own, time, active, at > 0))
                    whose.append(one.user)
        parts = list(zip(*lists, strict=True)) if lists else [()] * 6
        kinds = (np.int64, np.int64, np.int64, np.float64, np.float64, np.bool_)
        queries = QueryArrays(*(np.array(part, kind) for part, kind in zip(parts, kinds, strict=True)))
        return told, before, queries, (self._seen([click.user for click in clicks]), self._seen(whose))

    def _seen(self, users: Sequence[int]) -> SeenRows:
        if not self.settings.exclude_seen:
            return NO_SEEN_ROWS
        rows = [sorted(self.seen[user]) if user != NOBODY else [] for user in users]
        starts = np.cumsum([0, *map(len, rows)])
        return SeenRows(True, starts, np.array([row for mine in rows for row in mine], np.int64))

    def answers(self, found: Gathered) -> Iterator[Answer]:
        """Each query's, with the numbers of moments instead of their places."""
        total, size = int(self.store.log.total[0]), len(self.store.log.items)
        for q in range(len(found.starts) - 1):
            mine = found.part(q, q + 1)
            hits = []
            for some in (mine.own, mine.world):
                numbers = total - (total - some.moments) % size
                hits.append(list(zip(numbers.tolist(), mine.rows[some.candidates].tolist(), strict=True)))
            moment = tuple(part.tolist()[0] for part in mine.keys)
            yield Answer(mine.rows.tolist(), mine.features.tolist(), moment, *hits, mine.followers[0].tolist())


# The slow version


class SlowTable:
    """Of each row the others, in the order of their places."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.rows: dict[int, list[tuple[int, Any]]] = defaultdict(list)
        self.totals: dict[int, float] = defaultdict(float)

    def count(self, row: int, other: int, weight: float) -> None:
        if not row or not other:
            return
        entries, w = self.rows[row], np.float32(weight)
        places = [place for place, (held, _) in enumerate(entries) if held == other]
        if places:
            entries[places[0]] = other, entries[places[0]][1] + w
        elif len(entries) < self.held:
            entries.append((other, w))
        else:
            begin = int(self.totals[row]) % self.held
            round_ = [*range(begin, self.held), *range(begin)]
            entries[min(round_, key=lambda place: entries[place][1])] = other, w
        self.totals[row] += float(w)

    def forget(self, gone: Sequence[int]) -> None:
        for row in gone:
            self.rows.pop(row, None)
            self.totals.pop(row, None)
        for entries in self.rows.values():
            place = 0
            while place < len(entries):  # the last one takes the place of one that goes
                if entries[place][0] in gone:
                    entries[place] = entries[-1]
                    entries.pop()
                else:
                    place += 1

    def decay(self, factor: float) -> None:
        for row, entries in self.rows.items():
            self.rows[row] = [(other, count * np.float32(factor)) for other, count in entries]
            self.totals[row] *= float(np.float32(factor))

    def of(self, row: int) -> dict[int, float]:
        return {other: float(count) for other, count in self.rows.get(row, ())}


class SlowMoment(NamedTuple):
    """A moment of the log."""

    item: int
    last: int
    before: int
    time: float
    gap: float
    trainable: bool


class SlowAnswer(NamedTuple):
    """The same as `Answer`, without an order."""

    features: dict[int, dict[str, float]]  # by candidate
    moment: tuple[int, int, float, float]
    own: set[tuple[int, int]]
    world: set[tuple[int, int]]
    followers: list[int]


class Slow:
    """What `advance` does, one click at a time."""

    def __init__(self, settings: Settings, rotation: Any) -> None:
        self.settings, self.rotation = settings, rotation
        few_held = max(8, settings.successors_held // 2)
        self.tables = {name: SlowTable(few_held) for name in ("second", "third", "before")}
        self.tables |= {"first": SlowTable(settings.successors_held), "near": SlowTable(settings.neighbours_held)}
        self.counted: list[tuple[int, float]] = []  # rows of all clicks that were counted, and what each counts
        self.first_at: dict[int, float] = {}
        self.last_at: dict[int, float] = {}
        self.blocked: set[int] = set()
        self.clicks: dict[int, list[tuple[int, float, int]]] = defaultdict(list)  # of a user: row, time, number
        self.log: list[SlowMoment] = []  # number 1 comes first
        self.own: dict[tuple[int, str, int], list[int]] = defaultdict(list)  # by user, kind and bucket
        self.world: dict[int, list[int]] = defaultdict(list)

    def play(self, events: Sequence[Event], *, clicks: bool = True) -> list[SlowAnswer]:
        """As `Player.play`; without the clicks' answers if need be."""
        answers = []
        for event in events:
            if isinstance(event, Ask):
                first = self.find(event.user, event.times[0])
                for time, active in zip(event.times, event.active, strict=True):
                    answers.append(self.answer(event.user, time, active, first))
            elif isinstance(event, Move):
                getattr(self, event.name)(event.argument)
            else:
                if clicks:
                    found = self.find(event.user, event.time)
                    answers.append(self.answer(event.user, event.time, event.active, found))
                self.observe(event)
        return answers

    # What happens

    def set_blocked(self, argument: tuple[list[int], list[bool]]) -> None:
        for row, blocked in zip(*argument, strict=True):
            (self.blocked.add if blocked else self.blocked.discard)(row)

    def forget_rows(self, gone: list[int]) -> None:
        def kept(row: int) -> int:
            return 0 if row in gone else row

        for table in self.tables.values():
            table.forget(gone)
        self.counted = [(kept(row), counts) for row, counts in self.counted]
        for row in gone:
            self.first_at.pop(row, None)
            self.last_at.pop(row, None)
            self.blocked.discard(row)
        for user, clicks in self.clicks.items():
            self.clicks[user] = [(kept(row), time, number) for row, time, number in clicks]
        self.log = [SlowMoment(kept(m.item), kept(m.last), kept(m.before), *m[3:]) for m in self.log]

    def decay(self, factor: float) -> None:
        for table in self.tables.values():
            table.decay(factor)
        self.counted = [(row, counts * factor) for row, counts in self.counted]

    def observe(self, click: Click) -> None:
        history = self.history(click.user)
        last, before = ([row for row, _, _ in history] + [0, 0])[:2]
        gap = math.log1p(max(0.0, click.time - history[0][1])) if history else 0.0
        if click.trainable:
            for distance, (earlier, _, number) in enumerate(history[:NEAR], start=1):
                if self.held(number) and not self.log[number - 1].trainable:
                    continue
                self._count_pair(earlier, click.row, distance)
            self.counted.append((click.row, 1.0))
            if click.row:
                self.first_at[click.row] = min(click.active, self.first_at.get(click.row, click.active))
                self.last_at[click.row] = max(click.active, self.last_at.get(click.row, click.active))
        self.log.append(SlowMoment(click.row, last, before, click.time, float(np.float32(gap)), click.trainable))
        number = len(self.log)
        if click.trainable and click.row and last:
            self.world[self.bucket(last, self.settings.world_buckets)].append(number)
        latest = self.settings.recall_latest
        if len(history) >= latest and self.held(history[latest - 1][2]):
            leaving = history[latest - 1][2]
            moment = self.log[leaving - 1]
            self.own[click.user, "item", self.bucket(moment.last, self.settings.recall_buckets)].append(leaving)
            self.own[click.user, "clock", self.clock_buckets(moment.time, moment.gap)[0]].append(leaving)
        self.clicks[click.user].append((click.row, click.time, number))

    def _count_pair(self, earlier: int, row: int, distance: int) -> None:
        if distance <= 5:
            self.tables[{1: "first", 2: "second"}.get(distance, "third")].count(earlier, row, 1.0)
        if distance == 1:
            self.tables["before"].count(row, earlier, 1.0)
        if earlier != row:
            self.tables["near"].count(earlier, row, 1 / math.sqrt(distance))
            self.tables["near"].count(row, earlier, 1 / math.sqrt(distance))

    # What is known

    def history(self, user: int) -> list[tuple[int, float, int]]:
        """Latest first."""
        return self.clicks[user][-self.settings.history_max :][::-1] if user != NOBODY else []

    def held(self, number: int) -> bool:
        return number > len(self.log) - self.settings.moments_held

    def bucket(self, row: int, buckets: int) -> int:
        return (row * MIX % 2**32) * buckets // 2**32

    def clock_buckets(self, time: float, gap: float) -> list[int]:
        """Best first."""
        day, week = 2 * math.pi * (time % DAY_S) / DAY_S, 2 * math.pi * (time % WEEK_S) / WEEK_S
        apart = gap / GAP_SCALE
        clock = [math.cos(day), math.sin(day), math.cos(week) / 2, math.sin(week) / 2]
        scores = np.array([*clock, math.cos(apart) / 2, math.sin(apart) / 2]) @ self.rotation
        return np.argsort(-np.concatenate([scores, -scores]), kind="stable").tolist()

    def clicks_on(self, row: int) -> float:
        return sum(counts for clicked, counts in self.counted if clicked == row) if row else 0.0

    def popularity(self, half_life: int) -> dict[int, float]:
        found: dict[int, float] = defaultdict(float)
        for at, (row, counts) in enumerate(self.counted):
            found[row] += counts * 0.5 ** ((len(self.counted) - at) / half_life)
        return {row: value for row, value in found.items() if row}

    def near(self, user: int, allowed: Any) -> dict[int, Any]:
        """Scores of what stands near the latest items."""
        return self.votes(user, allowed, NEAR, gather.NEAR_DECAY)

    def taste(self, user: int, allowed: Any) -> dict[int, Any]:
        """The same for what the user likes, which lasts longer than what they are at."""
        return self.votes(user, allowed, gather.TASTE_LATEST, gather.TASTE_DECAY)

    def votes(self, user: int, allowed: Any, latest: int, decay: float) -> dict[int, Any]:
        sums: dict[int, Any] = {}
        for age, (row, _, _) in enumerate(self.history(user)[:latest]):
            vote = np.float32(decay**age / math.sqrt(self.clicks_on(row) + gather.EXPECTED_MIN))
            for other, count in self.tables["near"].rows.get(row, ()):
                if allowed(other):
                    sums[other] = sums.get(other, np.float32(0)) + vote * count
        root = {row: np.float32(math.sqrt(self.clicks_on(row) + gather.EXPECTED_MIN)) for row in sums}
        return {row: value / root[row] for row, value in sums.items()}

    # What is found

    def find(self, user: int, now: float) -> tuple[set[int], set[tuple[int, int]], set[tuple[int, int]]]:
        """Candidates, and the moments that point at them, as numbers and rows: the user's own, and all users'."""
        history = self.history(user)
        last, before = ([row for row, _, _ in history] + [0, 0])[:2]
        seen = {row for row, _, _ in self.clicks[user]} if self.settings.exclude_seen and user != NOBODY else set()

        def allowed(row: int) -> bool:
            return row != 0 and row not in self.blocked and row not in seen

        found = set(self.tables["first"].of(last))
        found |= best(self.tables["second"].of(before), gather.SECOND_MAX)
        found |= best(self.near(user, allowed), gather.NEAR_MAX) | best(self.taste(user, allowed), gather.NEAR_MAX)
        for half_life in self.settings.popularity_half_lives:
            popular = {row: value for row, value in self.popularity(half_life).items() if allowed(row)}
            found |= best(popular, gather.POPULAR_MAX)
        found |= {row for row, _, _ in history}
        gap = math.log1p(max(0.0, now - history[0][1])) if history else 0.0
        own, world = self.recall(user, last, now, gap)
        found |= {self.log[number - 1].item for number in own | world}
        found = {row for row in found if allowed(row)}
        own_hits, world_hits = (
            {(number, self.log[number - 1].item) for number in some if self.log[number - 1].item in found}
            for some in (own, world)
        )
        return found, own_hits, world_hits

    def recall(self, user: int, last: int, now: float, gap: float) -> tuple[set[int], set[int]]:
        if user == NOBODY or not self.settings.reformer:
            return set(), set()
        limits = self.settings
        own = {number for _, _, number in self.history(user)[: limits.recall_latest]}
        own |= set(self.own[user, "item", self.bucket(last, limits.recall_buckets)][-limits.recall_ring :])
        for bucket in self.clock_buckets(now, gap)[: limits.recall_probes]:
            own |= set(self.own[user, "clock", bucket][-limits.recall_ring :])
        world: set[int] = set()
        if last:
            numbers = self.world[self.bucket(last, limits.world_buckets)][-limits.world_ring :]
            world = {number for number in numbers if self.log[number - 1].last}
        return {n for n in own if self.held(n)}, {n for n in world if self.held(n)}

    def answer(
        self,
        user: int,
        now: float,
        active: float,
        hits: tuple[set[int], set[tuple[int, int]], set[tuple[int, int]]],
    ) -> SlowAnswer:
        found, own, world = hits
        history = self.history(user)
        last, before = ([row for row, _, _ in history] + [0, 0])[:2]
        gap = math.log1p(max(0.0, now - history[0][1])) if history else 0.0
        near, taste = self.near(user, lambda row: row in found), self.taste(user, lambda row: row in found)
        popularity = {half_life: self.popularity(half_life) for half_life in self.settings.popularity_half_lives}
        features = {}
        for row in found:
            features[row] = (
                self._of_neighbours(history, row)
                | self._of_history(history, row, now, gap)
                | self._of_item(row, active)
                | {
                    "near": math.log(near.get(row, 0.0) + 1e-3) + 7,
                    "near_share": near.get(row, 0.0) / (max(near.values(), default=0.0) + 1e-6),
                    "taste": math.log(taste.get(row, 0.0) + 1e-3) + 7,
                    "taste_share": taste.get(row, 0.0) / (max(taste.values(), default=0.0) + 1e-6),
                }
                | {f"popularity_{n}": math.log1p(popularity[n].get(row, 0.0)) for n in popularity}
            )
        followers = sorted(self.tables["first"].of(last).items(), key=lambda one: -one[1])[: gather.SHOWN]
        shown = [row for row, _ in followers] + [0] * (gather.SHOWN - len(followers))
        return SlowAnswer(features, (last, before, now, gap), own, world, shown)

    def _of_neighbours(self, history: list[tuple[int, float, int]], row: int) -> dict[str, float]:
        last, before, third = ([one for one, _, _ in history] + [0, 0, 0])[:3]
        tables = self.tables
        first, second = tables["first"].of(last).get(row, 0.0), tables["second"].of(before).get(row, 0.0)
        preceded = math.log1p(tables["before"].of(last).get(row, 0.0))
        return {
            "followed_last": math.log1p(first),
            "share_last": first / (float(tables["first"].totals[last]) + 1),
            "followed_before": math.log1p(second),
            "share_before": second / (float(tables["second"].totals[before]) + 1),
            "followed_third": math.log1p(tables["third"].of(third).get(row, 0.0)),
            "preceded_last": preceded,
            "preceded_rate": preceded / (1 + math.log1p(self.clicks_on(row)) / 4),
            "last_clicks": math.log1p(float(tables["first"].totals[last])) / 4,
        }

    def _of_history(self, history: list[tuple[int, float, int]], row: int, now: float, gap: float) -> dict[str, float]:
        ages = [age for age, (clicked, _, _) in enumerate(history) if clicked == row]
        times = [history[age][1] for age in ages]
        elapsed = max(now - times[0], 0.0) if ages else 0.0
        mean_gap = max(times[0] - times[-1], 0.0) / max(len(ages) - 1, 1) if ages else 0.0
        length = math.log1p(len(history))
        return {
            "own_times": math.log1p(len(ages)),
            "own_share": math.log1p(len(ages)) / (1 + length),
            "own_decayed": math.sqrt(len(ages)) * OWN_DECAY ** ages[0] if ages else 0.0,
            "own_age": math.log1p(ages[0]) if ages else 0.0,
            "own_elapsed": math.log1p(elapsed) / 4 if ages else 0.0,
            "own_rhythm": math.log((elapsed + 60) / (mean_gap + 60)) if len(ages) > 1 else 0.0,
            "own_ever": float(bool(ages)),
            "own_length": length / 4 if ages else 0.0,
            "is_last": float(bool(history) and row == history[0][0]),
            "is_before": float(len(history) > 1 and row == history[1][0]),
            "history": length / 4,
            "gap": gap / 4,
        }

    def _of_item(self, row: int, active: float) -> dict[str, float]:
        return {
            "clicks": math.log1p(self.clicks_on(row)) / 4,
            "elapsed": math.log1p(max(active - self.last_at.get(row, 0.0), 0.0)) / 4,
            "lifetime": math.log1p(max(active - self.first_at.get(row, 0.0), 0.0)) / 4,
        }


def best(scores: dict[int, Any], most: int) -> set[int]:
    """The highest; of equal ones those that stand first."""
    return set(sorted(scores, key=lambda row: -scores[row])[:most])


def column_names(half_lives: Sequence[int]) -> list[str]:
    """What stands in which column."""
    return [feature.name for feature in COUNTED] + [f"popularity_{n}" for n in half_lives]
