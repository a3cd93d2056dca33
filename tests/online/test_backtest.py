"""The backtest's measure against hand-made numbers; it never looks ahead; it finds in a town what is there to find."""

import io
import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from online import backtest as module
from online.backtest import ABLATIONS, AS_SERVED, METHODS, NEXTCLICK, LearnerRun, Outcome, Went, backtest, complete
from online.backtest_command import run_backtest
from online.backtest_events import BacktestError, facts_of, micro_batches, read_clicks
from online.backtest_report import report
from online.event_files import EventFile
from online.learner import Learned, Ranking
from online.refresh import RefreshSchedule
from online.settings import Settings
from online.town import Town
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
        assert facts.again.tolist() == [False, False, False, True, False, False]

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
        went = Went({NEXTCLICK: ranks, "own": ranks + 1}, np.array([True, True, False, True, False]), 2, 0, 1.0)
        found = report(Outcome(facts, False, {NEXTCLICK: went}, 2.0, went.ranks))
        ndcg = [1.0, 0.0, 1 / math.log2(2.5), 0.5]
        assert found["methods"][NEXTCLICK] == {"hit@10": 0.75, "ndcg@10": round(sum(ndcg) / 4, 5)}
        of_ben, of_ada = (ndcg[0] + ndcg[3]) / 2, (ndcg[1] + ndcg[2]) / 2
        assert found["per_user"][NEXTCLICK] == {"hit@10": 0.75, "ndcg@10": round((of_ben + of_ada) / 2, 5)}
        assert found["new_items"]["scored"] == 3
        assert found["new_users"]["scored"] == 4
        assert [part["scored"] for part in found["by_history"]] == [1, 3, 0, 0, 0, 0, 0]
        assert found["by_history"][0]["methods"][NEXTCLICK] == {"hit@10": 1.0, "ndcg@10": 1.0}
        assert found["never_seen"] == 0.25
        assert found["among_candidates"] == {NEXTCLICK: 0.5}
        assert found["best_counting"] == "own"
        assert found["events_per_s"] == 2.5

    def test_too_few_clicks_are_said(self) -> None:
        with pytest.raises(BacktestError, match="needs 2 clicks"):
            facts_of(stream("ada tea"))


class TestBatches:
    def test_they_are_as_long_as_the_worker_lets_them_be(self) -> None:
        clicks = stream(*["ada tea", "ben tea"] * 20)
        found = list(micro_batches(clicks, settings(micro_batch_max=16, history_max=10)))
        assert [len(batch) for batch in found] == [10, 10, 10, 10]  # five clicks of each: half of what is remembered
        assert found[0] == range(0, 10)
        assert [len(b) for b in micro_batches(clicks, settings(micro_batch_max=16))] == [16, 16, 8]

    def test_they_end_where_a_list_in_them_would_be_refreshed(self) -> None:
        clicks = stream("ada tea", "ben tea", "cleo tea", "ada cup", "ben cup", "ben tea")
        assert [len(batch) for batch in micro_batches(clicks, settings(), (150.0, 600.0))] == [3, 3]


class TestRefreshes:
    def test_each_click_begins_the_marks_again_and_they_end(self) -> None:
        schedule = RefreshSchedule((60.0, 600.0))
        schedule.clicked("ada", 0.0)
        schedule.clicked("ben", 30.0)
        assert schedule.due(59.9) == []
        assert schedule.due(100.0) == [("ada", 60.0), ("ben", 90.0)]
        schedule.clicked("ada", 110.0)
        assert schedule.due(1e9) == [("ada", 170.0), ("ben", 630.0), ("ada", 710.0)]
        assert schedule.due(math.inf) == []

    def test_memory_follows_people_and_not_clicks(self) -> None:
        schedule = RefreshSchedule((60.0, 600.0))
        for at in range(10_000):
            schedule.clicked("ada", at / 1_000)
        assert len(schedule._heap) < 100
        assert schedule.due(1e9) == [("ada", 9.999 + 60.0), ("ada", 9.999 + 600.0)]

    def test_lists_are_refreshed_before_the_batch_that_finds_them_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = LearnerRun(settings(), (100.0, 1_000.0))
        ranked: list[tuple[int, list[str]]] = []
        learned = 0
        rank, learn = run.learner.rank, run.learner.learn

        def spy_rank(users: Sequence[str]) -> list[Ranking]:
            ranked.append((learned, list(users)))
            return rank(users)

        def spy_learn(clicks: Sequence[Click]) -> Learned:
            nonlocal learned
            learned += len(clicks)
            return learn(clicks)

        monkeypatch.setattr(run.learner, "rank", spy_rank)
        monkeypatch.setattr(run.learner, "learn", spy_learn)
        clicks = stream("ada tea", "ben tea", "ada cup", "cleo tea")
        run.step(clicks[:2], [1_000.0, 1_060.0])
        run.step(clicks[2:3], [1_090.0])  # ada again, before her mark
        run.step(clicks[3:], [5_000.0])  # everybody's marks have passed
        assert [(at, sorted(users)) for at, users in ranked if users] == [(3, ["ada", "ben"])]
        assert run.refreshes == 4

    def test_a_list_that_is_too_old_is_gone_and_the_popular_one_is_shown(self) -> None:
        run = LearnerRun(settings(list_ttl_s=3_600, exclude_seen=True))
        first = stream("ben tea", "cleo tea", "dora tea", "ben pot", "ada tea", "ada cup")
        run.step(first, [click.timestamp for click in first])
        soon, late = (Click(user_id="ada", item_id="tea", timestamp=first[-1].timestamp + s) for s in (60.0, 4_000.0))
        (fresh,) = run.step([soon], [soon.timestamp])[2]
        (gone,) = run.step([late], [late.timestamp])[2]
        assert fresh == math.inf  # her own list leaves out what she had
        assert gone == 0.0


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

    @pytest.mark.parametrize("people", [50, 3_000])  # people with histories, and mostly first clicks
    def test_what_cannot_be_foreseen_is_not(self, people: int) -> None:
        """Whoever sees a click before it is scored finds order where there is none."""
        rng = np.random.default_rng(0)
        users, items = rng.integers(0, people, 3_000), rng.integers(0, 100, 3_000)
        clicks = stream(*[f"u{user} i{item}" for user, item in zip(users, items, strict=True)])
        outcome = backtest(clicks, settings())
        for method in METHODS:
            hits = (outcome.scored(method) < 10).mean()
            assert hits == pytest.approx(0.1, abs=0.03), method

    def test_a_batch_sees_nothing_of_itself(self) -> None:
        clicks = stream(*["ada tea", "ben cup"] * 30, "cleo pot", "dora pot", "emil pot")
        outcome = backtest(clicks, settings(), methods=[NEXTCLICK])
        batches = list(micro_batches(clicks, settings()))
        assert len(batches[-1]) > 2
        assert (outcome.ranks[NEXTCLICK][-2:] > 1).all()  # behind what was popular before the batch


@pytest.fixture(scope="module")
def in_town() -> Outcome:
    return backtest(town(2_500), settings(micro_batch_max=32))


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

    def test_runs_beside_each_other_find_the_same(self) -> None:
        clicks = town(300)
        told: dict[str, int] = {}

        def listen(name: str, done: int, _: float) -> None:
            told[name] = done

        alone = backtest(clicks, settings())
        together = backtest(clicks, settings(), jobs=2, on_progress=listen)
        for method in METHODS:
            np.testing.assert_array_equal(alone.ranks[method], together.ranks[method], method)
        assert set(told.values()) == {300}

    def test_a_seed_repeats(self) -> None:
        clicks = town(300)
        one, same = (backtest(clicks, settings(seed=3), methods=OURS) for _ in range(2))
        for method in OURS:
            np.testing.assert_array_equal(one.ranks[method], same.ranks[method], method)


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
        read = read_clicks(EventFile(path), settings())
        assert [click.item_id for click in read.clicks] == ["tea", "tea"]
        assert read.duplicates == 1
        assert read.unreadable == {"invalid-timestamp": 1, "malformed-json": 1}
        assert len(read_clicks(EventFile(path), settings(), limit=1).clicks) == 1


class TestCommand:
    def run(self, tmp_path: Path, **given: Any) -> tuple[str, dict[str, Any]]:
        path = tmp_path / "town.csv"
        rows = [f"{click.user_id},{click.item_id},{click.timestamp}" for click in town(300)]
        path.write_text("\n".join(["user,item,timestamp", *rows]))
        shown = io.StringIO()
        run_backtest(Console(width=80, file=shown), path, settings(), json_out=tmp_path / "out.json", jobs=1, **given)
        return shown.getvalue(), json.loads((tmp_path / "out.json").read_text())

    def test_json_keeps_the_contract(self, tmp_path: Path) -> None:
        _, found = self.run(tmp_path)
        assert {key: found[key] for key in ("events", "scored", "users", "exclude_seen")} == {
            "events": 300, "scored": 240, "users": 20, "exclude_seen": False,
        }  # fmt: skip
        assert list(found["methods"]) == list(METHODS)
        assert all(set(figures) == {"hit@10", "ndcg@10"} for figures in found["methods"].values())

    def test_the_table_fits_80_columns(self, tmp_path: Path) -> None:
        shown, found = self.run(tmp_path)
        assert max(map(len, shown.splitlines())) <= 80
        assert "…" not in shown
        for method, figures in found["methods"].items():
            assert re.search(rf"^ {method} +{figures['hit@10']:.4f} +{figures['ndcg@10']:.4f}", shown, re.MULTILINE)

    def test_only_the_methods_asked_for(self, tmp_path: Path) -> None:
        _, found = self.run(tmp_path, methods="own, nextclick")
        assert list(found["methods"]) == ["nextclick", "own"]
        _, found = self.run(tmp_path, methods="popular")
        assert list(found["methods"]) == ["popular"]

    def test_a_file_without_a_click_says_why(self, tmp_path: Path) -> None:
        path = tmp_path / "clicks.csv"
        path.write_text("user,item,timestamp\nada,tea,soon\nben,,1\n")
        with pytest.raises(BacktestError, match=r"no click that can be read.* 1 invalid-timestamp, 1 invalid-item_id"):
            run_backtest(Console(quiet=True), path, settings())

    def test_what_cannot_be_done_is_said_before_the_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "backtest", None)
        (tmp_path / "file").touch()
        for given, words in [
            ({"methods": "nextclick,best"}, "there is no best; there are nextclick, "),
            ({"plots": tmp_path / "file"}, "is a file: name a folder"),
        ]:
            with pytest.raises(BacktestError, match=words):
                self.run(tmp_path, **given)
        with pytest.raises(BacktestError, match="there is no folder"):
            run_backtest(Console(quiet=True), tmp_path / "x.csv", settings(), json_out=tmp_path / "no" / "out.json")


def test_the_order_of_methods_is_ours_then_counting() -> None:
    ours = [method.startswith(NEXTCLICK) for method in METHODS]
    assert all(before >= after for before, after in pairwise(ours))
