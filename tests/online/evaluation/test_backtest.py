"""The backtest's measure against hand-made numbers; it never looks ahead; it finds in a town what is there to find."""

import io
import json
import math
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from online.commands.backtest import run_backtest
from online.config.settings import Settings
from online.evaluation import backtest as module
from online.evaluation.backtest import (
    ABLATIONS,
    AS_SERVED,
    METHODS,
    NEXTCLICK,
    LearnerRun,
    Outcome,
    RunResult,
    backtest,
    complete,
)
from online.evaluation.backtest_events import BacktestError, facts_of, micro_batches, next_clicks, read_clicks
from online.evaluation.backtest_report import report
from online.evaluation.town import Town
from online.learner.batches import BatchResult, Impression
from online.learner.history import SERVED
from online.learner.learner import Learner
from online.learner.lift import Lift
from online.learner.ranking_model import RankingModel
from online.learner.return_times import ReturnTimes
from stream.event_files import EventFile, EventFileError
from stream.events import Click, encode

OURS = [method for method in METHODS if method.startswith(NEXTCLICK)]
SMALL: dict[str, Any] = {"layers": ("local",), "width": 8, "history_max": 32, "online_history": 8, "device": "cpu"}


def settings(**changes: Any) -> Settings:
    return Settings(**{**SMALL, **changes})


def stream(*pairs: str, step_s: float = 60.0) -> list[Click]:
    """`stream("ada tea", ...)`: one click a minute."""
    return [
        Click(user_id=pair.split()[0], item_id=pair.split()[1], timestamp=1_000.0 + step_s * at)
        for at, pair in enumerate(pairs)
    ]


def town(n: int, **fields: Any) -> list[Click]:
    return list(Town(users=20, items=64, **fields).clicks(n))


class TestMeasure:
    def test_facts_of_each_event(self) -> None:
        facts = facts_of(stream("ada tea", "ben tea", "ada cup", "ada tea", "cleo rose", "ben rose"))
        assert facts.first_scored == 2
        assert facts.users.tolist() == [0, 1, 0, 0, 2, 1]
        assert facts.items.tolist() == [0, 0, 1, 0, 2, 2]
        assert facts.earlier_of_user.tolist() == [0, 0, 1, 2, 0, 1]
        assert facts.earlier_of_item.tolist() == [0, 1, 0, 2, 0, 1]
        assert facts.known.tolist() == [0, 1, 1, 2, 2, 3]
        assert facts.had.tolist() == [0, 0, 1, 2, 0, 1]
        assert facts.repeated.tolist() == [False, False, False, True, False, False]

    @pytest.mark.parametrize("exclude_seen", [False, True])
    def test_what_is_no_candidate_stands_tied_behind_all_candidates(self, exclude_seen: bool) -> None:
        facts = facts_of(stream("ada tea", "ben cup", "cleo pot", "ada fern", "ben fern", "ada tea", "ben tea"))
        part = slice(4, 7)
        ranks = complete(facts, part, np.array([1.5, np.inf, np.inf]), np.array([2, 1, 3]), exclude_seen=exclude_seen)
        # Four items are known. Of the second click's, one is a candidate and three are tied behind it, or, without what
        # ada had (tea, fern), it is a miss. Of the third's, three are candidates and one is not.
        assert ranks.tolist() == [1.5, math.inf if exclude_seen else 2.0, 3.0]

    def test_an_item_that_never_occurred_is_a_miss_though_it_be_in_the_same_batch(self) -> None:
        facts = facts_of(stream("ada tea", "ben cup", "cleo pot", "ben pot"))
        ranks = complete(facts, slice(2, 4), np.array([np.inf, np.inf]), np.array([2, 0]), exclude_seen=False)
        assert ranks.tolist() == [math.inf, 1.0]  # pot is new; a click later, three items are known and all are tied

    def test_figures_that_were_worked_out_by_hand(self) -> None:
        clicks = stream("ada tea", "ben tea", "ada cup", "ada tea", "ben cup")
        facts = facts_of(clicks)  # the first one only teaches
        ranks = np.array([0.0, 0.0, np.inf, 0.5, 2.0])
        went = RunResult({NEXTCLICK: ranks, "own": ranks + 1}, np.array([True, True, False, True, False]), 2, 0, 1.0)
        found = report(Outcome(facts, False, {NEXTCLICK: went}, 2.0, went.ranks))
        ndcg = [1.0, 0.0, 1 / math.log2(2.5), 0.5]
        assert found["methods"][NEXTCLICK] == {"hit@10": 0.75, "ndcg@10": round(sum(ndcg) / 4, 5)}
        of_ben, of_ada = (ndcg[0] + ndcg[3]) / 2, (ndcg[1] + ndcg[2]) / 2
        assert found["per_user"][NEXTCLICK] == {"hit@10": 0.75, "ndcg@10": round((of_ben + of_ada) / 2, 5)}
        assert found["new_items"]["scored"] == 3
        assert found["new_users"]["scored"] == 4
        assert [part["scored"] for part in found["by_history"]] == [1, 3, 0, 0, 0, 0, 0]
        assert found["by_history"][0]["methods"][NEXTCLICK] == {"hit@10": 1.0, "ndcg@10": 1.0}
        assert [(part["until"], part["scored"]) for part in found["by_tenth"]] == [(2, 1), (3, 1), (4, 1), (5, 1)]
        assert [part["methods"][NEXTCLICK]["ndcg@10"] for part in found["by_tenth"]] == np.round(ndcg, 5).tolist()
        assert found["never_seen"] == 0.25
        assert found["among_candidates"] == {NEXTCLICK: 0.5}
        assert found["best_counting"] == "own"
        assert found["events_per_s"] == 2.5

    def test_too_few_clicks_are_refused(self) -> None:
        with pytest.raises(BacktestError, match="needs at least 2 clicks"):
            facts_of(stream("ada tea"))


class TestBatches:
    def test_they_are_as_long_as_the_worker_lets_them_be(self) -> None:
        clicks = stream(*["ada tea", "ben tea"] * 20)
        found = list(micro_batches(clicks, settings(micro_batch_max=16, history_max=10)))
        assert [len(batch) for batch in found] == [10, 10, 10, 10]  # five clicks of each: half of what is remembered
        assert found[0] == range(0, 10)
        assert [len(b) for b in micro_batches(clicks, settings(micro_batch_max=16))] == [16, 16, 8]


class Due(NamedTuple):
    """A list that a user will look at: ranked for whom, after how many clicks, as of when."""

    user: str
    came: int
    written_at: float


def active_times(clicks: Sequence[Click]) -> list[float]:
    """Seconds of the stream since its first click, of which a gap counts for an hour at most."""
    now = [max(click.timestamp for click in clicks[: at + 1]) for at in range(len(clicks))]
    return list(accumulate((min(later - earlier, 3_600.0) for earlier, later in pairwise(now)), initial=0.0))


def lists_due(clicks: Sequence[Click], ages_s: Sequence[float], ttl_s: float) -> dict[int, Due]:
    """By the click that looks at it: the list written last before it, unless that is too old by then."""
    found, before = {}, dict[str, int]()
    now = [max(click.timestamp for click in clicks[: at + 1]) for at in range(len(clicks))]
    active = active_times(clicks)
    for look, click in enumerate(clicks):
        if click.user_id in before:
            at = before[click.user_id]
            age = max([0.0, *(age for age in ages_s if active[at] + age < active[look])])
            came = sum(time <= active[at] + age for time in active[:look])
            written_at = max(now[at], now[came - 1] + active[at] + age - active[came - 1])  # on a clock
            if now[look] - written_at <= ttl_s:
                found[look] = Due(click.user_id, came, now[at] + age)
        before[click.user_id] = look
    return found


class Spy:
    """Stands in for `Learner.learn`: learns nothing, notes what it is asked for, and answers with lists of one number
    each: of the click that will look at it; of the popular list, `ANYBODYS` and the clicks learned before."""

    ANYBODYS = 1_000

    def __init__(self, due: dict[int, Due]) -> None:
        self.looks = {one: look for look, one in due.items()}
        self.learned = 0
        self.asked: list[list[Due]] = []  # of each micro-batch
        self.targets: list[int] = []  # of the next one

    def learn(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None = None,
        train: bool = True,
        following: Any = None,  # noqa: ARG002
    ) -> Any:
        assert train
        n, wanted = len(clicks), impressions or ()
        due = [Due(one.user_id, self.learned + one.preceding, one.written_at) for one in wanted]
        self.asked.append(due)
        lists = np.zeros((len(wanted) + 1, SERVED), np.int64)
        lists[:, 0] = [*(self.looks[one] for one in due), self.ANYBODYS + self.learned]
        self.learned += n
        targets = np.array(self.targets or [0] * n)
        return SimpleNamespace(ranks=np.zeros(n), candidates=np.ones(n, int), impressions=lists, targets=targets)


class TestRefreshes:
    AGES = (600.0, 3_600.0)

    def run(self, clicks: Sequence[Click], *batches: range, **changes: Any) -> tuple[LearnerRun, Spy]:
        """Asserts that each list is asked for in the micro-batch in which it falls due, and that each click meets the
        one that stands; unless it looks at none, the popular one as of its micro-batch."""
        given = {"refresh_ages_s": self.AGES, "refresh_share_min": 0.0, **changes}
        run = LearnerRun(settings(**given), clicks)
        due = lists_due(clicks, given["refresh_ages_s"], run.settings.list_ttl_s)
        spy = Spy(due)
        run.learner.learn = spy.learn  # type: ignore[method-assign]
        for batch in batches:
            spy.targets = [look if look in due else spy.ANYBODYS + batch.start for look in batch]
            _, _, served = run.step(batch)
            assert served.tolist() == [0.0] * len(batch)
            expected = [one for one in due.values() if batch.start < one.came <= batch.stop]
            assert sorted(spy.asked[-1]) == sorted(expected)
        return run, spy

    def test_next_clicks_are_those_of_the_same_user(self) -> None:
        assert next_clicks(stream("ada tea", "ben tea", "ada cup", "ada tea", "cleo tea")) == [2, 5, 3, 5, 5]

    @given(
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, 300, 600, 601, 3_600, 9_000])), max_size=30),
        st.lists(st.integers(1, 6), min_size=30, max_size=30),
        st.sampled_from([(), (600.0,), (600.0, 3_600.0)]),
        st.sampled_from([1, 2_000, 100_000]),
    )
    def test_a_list_is_ranked_in_the_batch_where_it_is_due_and_scored_with_its_click(
        self, made: list[tuple[str, int]], sizes: list[int], ages: tuple[float, ...], ttl_s: int
    ) -> None:
        times = [1_000 + time for time in accumulate(step for _, step in made)]
        clicks = [
            Click(user_id=user, item_id="tea", timestamp=time) for (user, _), time in zip(made, times, strict=True)
        ]
        ends = [end for end in accumulate(sizes, initial=0) if end < len(clicks)] + [len(clicks)]
        batches = [range(start, end) for start, end in pairwise(ends)]
        run, _ = self.run(clicks, *batches, refresh_ages_s=ages, list_ttl_s=ttl_s)
        # All marks count that pass before the next click, or the end, whether the user looks or not.
        active = active_times(clicks)[: len(clicks)]
        until = [active[min(following, len(active) - 1)] for following in next_clicks(clicks)]
        assert run.refreshes == sum(time + age < end for time, end in zip(active, until, strict=True) for age in ages)

    def test_only_the_last_mark_before_the_next_click_is_ranked_and_all_are_counted(self) -> None:
        clicks = stream("ada tea", "ben tea", "ada cup", "ada tea", step_s=2_000.0)
        run, spy = self.run(clicks, *(range(at, at + 1) for at in range(4)))
        start = clicks[0].timestamp
        assert spy.asked == [[], [Due("ada", 2, start + 3_600)], [Due("ada", 3, start + 4_600)], []]
        assert run.refreshes == 2 + 2 + 1  # ada's first list, ben's that is never looked at again, ada's second

    def test_a_list_is_ranked_with_the_clicks_that_had_come_when_it_fell_due(self) -> None:
        clicks = stream("ada tea", *[f"u{at} tea" for at in range(8)], "ada cup", step_s=1_000.0)
        _, spy = self.run(clicks, range(2), range(2, 6), range(6, 10))
        assert spy.asked == [[], [Due("ada", 4, clicks[0].timestamp + 3_600)], []]  # not when she clicks

    def test_a_click_at_the_very_moment_of_a_mark_meets_the_list_that_is_not_refreshed(self) -> None:
        clicks = stream("ada tea", "ada cup", step_s=600.0)
        run, spy = self.run(clicks, range(1), range(1, 2))
        assert spy.asked == [[Due("ada", 1, clicks[0].timestamp)], []]
        assert run.refreshes == 0

    def test_lists_are_refreshed_also_between_two_clicks_of_a_user_in_one_batch(self) -> None:
        clicks = stream("ada tea", "ben tea", "ada cup", "ben cup", step_s=500.0)
        run, spy = self.run(clicks, range(4))
        assert spy.asked == [[Due("ada", 2, clicks[0].timestamp + 600), Due("ben", 3, clicks[1].timestamp + 600)]]
        assert run.refreshes == 2

    def test_without_lists_nothing_is_asked_for(self) -> None:
        run = LearnerRun(settings(), stream("ada tea", "ben tea", "ada cup", step_s=2_000.0), lists=False)
        served = [run.step(range(at, at + 1))[2] for at in range(3)]
        assert run.refreshes == 0
        assert np.isinf(np.concatenate(served)).all()

    def test_refreshing_moves_the_lists_as_served_and_nothing_on_request(self) -> None:
        clicks = town(400)
        none, often = (
            backtest(clicks, settings(refresh_ages_s=ages, micro_batch_max=4), methods=[NEXTCLICK, AS_SERVED])
            for ages in ((), (60.0, 600.0))
        )
        np.testing.assert_array_equal(none.ranks[NEXTCLICK], often.ranks[NEXTCLICK])
        assert (none.ranks[AS_SERVED] != often.ranks[AS_SERVED]).any()
        assert report(none)["refreshes_per_click"] == 0 < report(often)["refreshes_per_click"]

    def test_a_list_that_is_too_old_is_replaced_by_the_popular_one(self) -> None:
        first = stream("ben tea", "cleo tea", "dora tea", "ben pot", "ada tea", "ada cup")
        soon, late = (Click(user_id="ada", item_id="tea", timestamp=first[-1].timestamp + s) for s in (60.0, 4_000.0))
        ages = {"list_ttl_s": 3_600, "exclude_seen": True}
        run = LearnerRun(settings(refresh_ages_s=(), **ages), [*first, soon, late])
        _, (fresh,), (gone,) = (run.step(batch)[2] for batch in (range(6), range(6, 7), range(7, 8)))
        assert fresh == math.inf  # her own list leaves out what she had
        assert gone == 0.0
        run = LearnerRun(settings(refresh_ages_s=(1_000.0,), **ages), [*first, soon, late])
        _, _, (renewed,) = (run.step(batch)[2] for batch in (range(6), range(6, 7), range(7, 8)))
        assert renewed == math.inf


class TestLists:
    """What stands in the lists that are looked at."""

    def looked(self, run: LearnerRun, batches: Sequence[range]) -> list[tuple[int, Impression | None, list[int]]]:
        """The start of the batch, what was asked for (None: the popular list) and the rows that were found."""
        found: list[tuple[int, Impression | None, list[int]]] = []
        learn = run.learner.learn

        def spy(
            clicks: Sequence[Click],
            impressions: Sequence[Impression] | None = None,
            train: bool = True,
            following: Any = None,
        ) -> BatchResult:
            learned = learn(clicks, impressions, train=train, following=following)
            assert learned.impressions is not None
            lists = [mine[mine > 0].tolist() for mine in learned.impressions]
            found.extend((start, one, rows) for one, rows in zip([*(impressions or ()), None], lists, strict=True))
            return learned

        run.learner.learn = spy  # type: ignore[method-assign]
        for batch in batches:
            start = batch.start
            run.step(batch)
        return found

    def test_new_and_evicted_users_get_the_popular_list(self) -> None:
        clicks = stream(*[f"u{at} i{at % 3}" for at in range(20)], "u0 cup", step_s=10.0)
        clicks[-1] = clicks[-1].model_copy(update={"timestamp": 10_000.0})
        run = LearnerRun(settings(users_held=16, micro_batch_max=16, list_ttl_s=100_000), clicks)
        found = self.looked(run, [range(16), range(16, 20), range(20, 21)])
        assert [(start, look and look.user_id) for start, look, _ in found] == [
            (0, None), (16, "u0"), (16, None), (20, None),
        ]  # fmt: skip
        first, lost, anybodys, _ = (rows for *_, rows in found)
        assert first == []
        assert lost == anybodys
        popular = np.argsort(-np.bincount([run.learner.vocabulary.row_of(f"i{at % 3}") for at in range(16)]))
        assert anybodys[0] == popular[0]

    @pytest.mark.parametrize("reformer", [False, True])
    def test_a_list_is_the_one_that_a_learner_fed_click_by_click_would_have_ranked(
        self, reformer: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With weights and observed by expected clicks that stand still: of these a micro-batch knows what was before
        it; all other facts are those of the moment."""
        clicks = town(240)
        given = settings(
            reformer=reformer, micro_batch_max=16, refresh_ages_s=(600.0, 7_200.0), list_size=64, history_max=128
        )
        monkeypatch.setattr(ReturnTimes, "add", lambda *_: None)
        monkeypatch.setattr(RankingModel, "train", lambda *_: False)
        monkeypatch.setattr(Lift, "add", lambda *_: None)
        run, slow = LearnerRun(given, clicks), Learner(given, lists=False)
        for learner in (run.learner, slow):
            generator = torch.Generator().manual_seed(1)
            linear = learner.weights.ranker.linear
            linear.data = torch.randn(len(linear), generator=generator)
            learner.weights.first.data = linear.data[:-1].clone()
            for parameter in learner.weights.network.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator) / 10
        found = self.looked(run, [range(at, at + 16) for at in range(0, 240, 16)])
        asked = [(start + look.preceding, look, rows) for start, look, rows in found if look]
        asked.sort(key=lambda one: one[0])
        assert len(asked) > 100
        assert any(look.written_at > clicks[came - 1].timestamp for came, look, _ in asked)
        learned = 0
        for came, look, rows in asked:
            for click in clicks[learned:came]:
                slow.learn([click])
            learned = came
            (ranking,) = slow.rank([look.user_id], [look.written_at])
            score = dict(zip(ranking.items, ranking.scores, strict=True))
            mine = [score[str(run.learner.vocabulary.item_of(row))] for row in rows]
            assert mine == pytest.approx(ranking.scores[: len(rows)], rel=1e-3)
            assert len(rows) == min(SERVED, len(ranking.items))


class TestOrder:
    def test_what_comes_later_changes_nothing_before(self) -> None:
        clicks = town(600)
        future = [clicks[at] for at in 400 + np.random.default_rng(0).permutation(200)]
        changed = [
            late.model_copy(update={"timestamp": was.timestamp}) for late, was in zip(future, clicks[400:], strict=True)
        ]
        one, other = (backtest(c, settings(micro_batch_max=16)) for c in (clicks, clicks[:400] + changed))
        for method in METHODS:
            np.testing.assert_array_equal(one.ranks[method][:400], other.ranks[method][:400], method)
        assert any((one.ranks[method] != other.ranks[method]).any() for method in METHODS)

    @pytest.mark.parametrize("user_count", [50, 3_000])  # users with histories, and mostly first clicks
    def test_what_cannot_be_foreseen_is_not(self, user_count: int) -> None:
        """A method that sees a click before it is scored finds order where there is none."""
        rng = np.random.default_rng(0)
        users, items = rng.integers(0, user_count, 3_000), rng.integers(0, 100, 3_000)
        clicks = stream(*[f"u{user} i{item}" for user, item in zip(users, items, strict=True)])
        outcome = backtest(clicks, settings())
        for method in METHODS:
            hits = (outcome.scored(method) < 10).mean()
            assert hits == pytest.approx(0.1, abs=0.03), method

    def test_but_for_weights_each_click_is_foreseen_from_exactly_what_came_before_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether clicks come one by one or in micro-batches, also where they meet a list that was written before. Only
        new users are shown the popular list as of their micro-batch."""
        monkeypatch.setattr(RankingModel, "train", lambda *_: False)
        monkeypatch.setattr(Lift, "add", lambda *_: None)
        monkeypatch.setattr(ReturnTimes, "add", lambda *_: None)
        clicks = town(400)
        for reformer in (False, True):
            given = {"reformer": reformer, "history_max": 64, "refresh_ages_s": (600.0, 7_200.0)}
            one, other = (
                backtest(clicks, settings(micro_batch_max=size, **given), methods=[NEXTCLICK, AS_SERVED])
                for size in (1, 16)
            )
            for method in (NEXTCLICK, AS_SERVED):
                hits = one.scored(method) < 10
                assert 0.1 < hits.mean() < 0.95  # there was something to foresee
                same = np.isclose(one.ranks[method], other.ranks[method])
                if method == AS_SERVED:
                    same |= one.facts.earlier_of_user == 0
                assert same.all(), (method, reformer, np.flatnonzero(~same))

    def test_what_is_new_in_a_batch_is_behind_what_was_popular_before(self) -> None:
        clicks = stream(*["ada tea", "ben cup"] * 30, "cleo pot", "dora pot", "emil pot")
        outcome = backtest(clicks, settings(), methods=[NEXTCLICK])
        batches = list(micro_batches(clicks, settings()))
        assert len(batches[-1]) > 2
        assert (outcome.ranks[NEXTCLICK][-2:] > 1).all()  # behind what was popular before the batch


@pytest.fixture(scope="module")
def in_town() -> Outcome:
    return backtest(town(2_500), settings(micro_batch_max=32))


@pytest.fixture(scope="module")
def short() -> Outcome:
    """Every method over the same 300 clicks."""
    return backtest(town(300), settings(seed=3))


class TestTown:
    def test_we_find_what_counting_finds_and_more(self, in_town: Outcome) -> None:
        found = report(in_town)
        ndcg = {method: figures["ndcg@10"] for method, figures in found["methods"].items()}
        assert list(ndcg) == list(METHODS)
        assert ndcg["markov"] > 2 * ndcg["popular"]
        assert ndcg[NEXTCLICK] > ndcg["markov"]
        assert ndcg[AS_SERVED] > 0.8 * ndcg[NEXTCLICK]
        assert found["among_candidates"][NEXTCLICK] > 0.95
        assert found["never_seen"] < 0.02

    def test_runs_beside_each_other_find_the_same(self, short: Outcome) -> None:
        told: dict[str, int] = {}

        def listen(name: str, done: int, _: float) -> None:
            told[name] = done

        together = backtest(town(300), settings(seed=3), jobs=2, on_progress=listen)
        for method in METHODS:
            np.testing.assert_array_equal(short.ranks[method], together.ranks[method], method)
        assert set(told.values()) == {300}

    def test_a_seed_repeats(self, short: Outcome) -> None:
        same = backtest(town(300), settings(seed=3), methods=OURS)
        for method in OURS:
            np.testing.assert_array_equal(short.ranks[method], same.ranks[method], method)


def test_ablations_change_settings_that_exist() -> None:
    for overrides in ABLATIONS.values():
        assert set(overrides) <= set(Settings.model_fields)
        assert overrides


class TestFile:
    def test_unreadable_rows_and_repeated_events_are_left_out_and_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "clicks.jsonl"
        clicks = stream("ada tea", "ben tea", "ada cup")
        lines = [encode(click.model_copy(update={"event_id": f"e{at % 2}"})) for at, click in enumerate(clicks)]
        path.write_bytes(b"\n".join([*lines, b'{"user_id": "ada", "item_id": "tea", "timestamp": "soon"}', b"{"]))
        read = read_clicks(EventFile(path), settings(), bad_rows_max=0.5)
        assert [click.item_id for click in read.clicks] == ["tea", "tea"]
        assert read.duplicates == 1
        assert read.unreadable == {"invalid-timestamp": 1, "malformed-json": 1}
        assert len(read_clicks(EventFile(path), settings(), limit=1).clicks) == 1


Command = tuple[str, dict[str, Any]]


def command(folder: Path, **given: Any) -> Command:
    """What `nextclick backtest` shows, and the JSON it writes."""
    path = folder / "town.csv"
    rows = [f"{click.user_id},{click.item_id},{click.timestamp}" for click in town(300)]
    path.write_text("\n".join(["user,item,timestamp", *rows]))
    shown = io.StringIO()
    given = {"json_out": folder / "out.json", "jobs": 1, **given}
    run_backtest(Console(width=80, file=shown), EventFile(path), settings(), **given)
    return shown.getvalue(), json.loads((folder / "out.json").read_text())


class TestCommand:
    @pytest.fixture(scope="class")
    def with_all_methods(self, tmp_path_factory: pytest.TempPathFactory) -> Command:
        return command(tmp_path_factory.mktemp("backtest"))

    def test_json_keeps_the_contract(self, with_all_methods: Command) -> None:
        _, found = with_all_methods
        assert {key: found[key] for key in ("events", "scored", "users", "exclude_seen")} == {
            "events": 300, "scored": 240, "users": 20, "exclude_seen": False,
        }  # fmt: skip
        assert list(found["methods"]) == list(METHODS)
        assert all(set(figures) == {"hit@10", "ndcg@10"} for figures in found["methods"].values())

    def test_the_table_fits_80_columns(self, with_all_methods: Command) -> None:
        shown, found = with_all_methods
        assert max(map(len, shown.splitlines())) <= 80
        assert "…" not in shown
        for method, figures in found["methods"].items():
            assert re.search(rf"^ {method} +{figures['hit@10']:.4f} +{figures['ndcg@10']:.4f}", shown, re.MULTILINE)

    def test_only_the_methods_asked_for(self, tmp_path: Path) -> None:
        _, found = command(tmp_path, methods="own, nextclick")
        assert list(found["methods"]) == ["nextclick", "own"]
        _, found = command(tmp_path, methods="popular")
        assert list(found["methods"]) == ["popular"]

    def test_a_file_without_a_click_says_why(self, tmp_path: Path) -> None:
        path = tmp_path / "clicks.csv"
        path.write_text("user,item,timestamp\nada,tea,soon\nben,,1\n")
        with pytest.raises(EventFileError, match=r"2 of 2 rows \(100%\).* 1 invalid-timestamp, 1 invalid-item_id"):
            run_backtest(Console(quiet=True), EventFile(path), settings())
        with pytest.raises(BacktestError, match=r"no click that can be read.* 1 invalid-timestamp, 1 invalid-item_id"):
            run_backtest(Console(quiet=True), EventFile(path), settings(), bad_rows_max=1)

    def test_impossible_options_are_refused_before_the_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "backtest", None)
        (tmp_path / "file").touch()
        for wrong, words in [
            ({"methods": "nextclick,best"}, "there is no best; there are nextclick, "),
            ({"plots": tmp_path / "file"}, "is a file: name a folder"),
        ]:
            with pytest.raises(BacktestError, match=words):
                command(tmp_path, **wrong)
        with pytest.raises(BacktestError, match="there is no folder"):
            command(tmp_path, json_out=tmp_path / "no" / "out.json")


def test_the_order_of_methods_is_ours_then_counting() -> None:
    ours = [method.startswith(NEXTCLICK) for method in METHODS]
    assert all(before >= after for before, after in pairwise(ours))


def test_fine_tuning_in_a_backtest_passes_the_gate_and_changes_nothing_before_it() -> None:
    clicks = town(640)
    given = settings(gate_block_clicks=5, shadow_clicks_max=100)
    runs = [LearnerRun(given, clicks, lists=False, finetune_every=every) for every in (0, 200)]
    ranks = [
        [run.step(range(at, min(at + 32, len(clicks))))[0].tolist() for at in range(0, len(clicks), 32)] for run in runs
    ]
    assert runs[0].tuning is None
    assert runs[1].tuning is not None
    told = runs[1].tuning.notices
    began = [at for kind, at, *_ in told if kind == "finetuning"]
    assert began
    assert all(at % 200 < 32 for at in began)
    assert {kind for kind, *_ in told} <= {"finetuning", "candidate", "published", "rejected"}
    published = [at for kind, at, *_ in told if kind == "published"]
    assert published
    assert runs[1].learner.version == 1 + len(published)
    differs = next(number for number, (one, other) in enumerate(zip(*ranks, strict=True)) if one != other)
    assert 32 * differs >= published[0]
