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
from online.backtest_events import BacktestError, facts_of, micro_batches, next_clicks, read_clicks
from online.backtest_report import report
from online.event_files import EventFile
from online.learner import Learned, Learner, Ranking
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


class TestRefreshes:
    HOUR = 3_600.0

    @pytest.fixture
    def ranked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, float]]]:
        """Every call of `rank`: the clicks learned before it, and the moments that lists were asked for."""
        calls: list[tuple[int, dict[str, float]]] = []
        learned = 0
        learn = Learner.learn

        def spy_learn(learner: Learner, clicks: Sequence[Click]) -> Learned:
            nonlocal learned
            learned += len(clicks)
            return learn(learner, clicks)

        def spy_rank(_: Learner, users: Sequence[str], now: Sequence[float]) -> list[Ranking]:
            calls.append((learned, dict(zip(users, now, strict=True))))
            return [Ranking([], []) for _ in users]

        monkeypatch.setattr(Learner, "learn", spy_learn)
        monkeypatch.setattr(Learner, "rank", spy_rank)
        return calls

    def run(self, clicks: Sequence[Click], *batches: range, **changes: Any) -> LearnerRun:
        run = LearnerRun(settings(**{"refresh_ages_s": (600.0, 3_600.0), **changes}), clicks)
        for batch in batches:
            run.step(batch)
        return run

    def test_next_clicks_are_those_of_the_same_person(self) -> None:
        assert next_clicks(stream("ada tea", "ben tea", "ada cup", "ada tea", "cleo tea")) == [2, 5, 3, 5, 5]

    def test_before_a_batch_it_ranks_what_fell_due_since_for_the_moment_it_fell_due(self, ranked: Any) -> None:
        clicks = stream("ada tea", "ben tea", "cleo tea", "ada cup", "ben cup", step_s=900.0)
        self.run(clicks, *(range(at, at + 1) for at in range(5)))
        start = clicks[0].timestamp
        # ada's first mark passed while cleo's click was awaited, ben's while ada's was.
        assert ranked == [(1, {"ada": start + 600}), (2, {"ben": start + 1_500})]

    def test_only_the_last_mark_before_the_next_click_is_ranked_and_all_are_counted(self, ranked: Any) -> None:
        clicks = stream("ada tea", "ben tea", "ada cup", "ada tea", step_s=2_000.0)
        run = self.run(clicks, range(1), range(1, 2), range(2, 3), range(3, 4))
        start = clicks[0].timestamp
        assert ranked == [(2, {"ada": start + 3_600}), (3, {"ada": start + 4_600})]
        assert run.refreshes == 2 + 2 + 1  # ada's first list, ben's that nobody looks at again, ada's second

    def test_a_list_is_ranked_with_what_was_known_when_it_fell_due(self, ranked: Any) -> None:
        clicks = stream("ada tea", *[f"u{at} tea" for at in range(8)], "ada cup", step_s=1_000.0)
        self.run(clicks, range(2), range(2, 4), range(4, 6), range(6, 10))
        assert ranked == [(4, {"ada": clicks[0].timestamp + 3_600})]  # not when she clicks

    def test_between_two_clicks_of_a_person_in_a_batch_nothing_is_ranked_but_counted(self, ranked: Any) -> None:
        run = self.run(stream("ada tea", "ada cup", "ada pot", step_s=1_000.0), range(2), range(2, 3))
        assert [users.keys() for _, users in ranked] == [{"ada"}]
        assert run.refreshes == 2

    def test_a_click_at_the_very_moment_meets_the_list_that_is_not_refreshed(self, ranked: Any) -> None:
        run = self.run(stream("ada tea", "ada cup", step_s=600.0), range(1), range(1, 2))
        assert (run.refreshes, ranked) == (0, [])

    def test_they_come_in_bounded_portions(self, ranked: Any) -> None:
        people = [f"u{at}" for at in range(7)]
        clicks = stream(*[f"{user} tea" for user in people], *[f"{user} cup" for user in people], step_s=60.0)
        late = [click.model_copy(update={"timestamp": click.timestamp + 3_000}) for click in clicks[7:]]
        self.run(clicks[:7] + late, range(7), range(7, 14), refresh_lists_max=3)
        assert [len(users) for _, users in ranked] == [3, 3, 1]

    def test_whoever_made_room_in_the_histories_is_left_out(self, ranked: Any) -> None:
        clicks = stream(*[f"u{at} tea" for at in range(20)], "u0 cup", step_s=10.0)
        clicks[-1] = clicks[-1].model_copy(update={"timestamp": 10_000.0})
        self.run(clicks, range(16), range(16, 20), range(20, 21), users_held=16, micro_batch_max=16)
        assert ranked == []

    @pytest.mark.parametrize("off", [{"refresh_ages_s": ()}, {"lists": False}])
    def test_without_marks_and_without_lists_nothing_is_refreshed(self, ranked: Any, off: dict[str, Any]) -> None:
        clicks = stream("ada tea", "ben tea", "ada cup", step_s=2_000.0)
        lists = off.pop("lists", True)
        run = LearnerRun(settings(**off), clicks, lists=lists)
        served = [run.step(range(at, at + 1))[2] for at in range(3)]
        assert (run.refreshes, ranked) == (0, [])
        assert lists or np.isinf(np.concatenate(served)).all()

    def test_refreshing_moves_the_lists_as_served_and_nothing_on_request(self) -> None:
        clicks = town(400)
        none, often = (
            backtest(clicks, settings(refresh_ages_s=ages, micro_batch_max=4), methods=[NEXTCLICK, AS_SERVED])
            for ages in ((), (60.0, 600.0))
        )
        np.testing.assert_array_equal(none.ranks[NEXTCLICK], often.ranks[NEXTCLICK])
        assert (none.ranks[AS_SERVED] != often.ranks[AS_SERVED]).any()
        assert report(none)["refreshes_per_click"] == 0 < report(often)["refreshes_per_click"]

    def test_a_list_that_is_too_old_is_gone_and_the_popular_one_is_shown(self) -> None:
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


def test_fine_tuning_in_a_backtest_goes_through_the_gate_and_nothing_differs_before_it() -> None:
    clicks = town(640)
    given = settings(gate_block_clicks=5, shadow_clicks_max=100)
    runs = [LearnerRun(given, clicks, lists=False, finetune_every=every) for every in (0, 200)]
    ranks = [
        [run.step(range(at, min(at + 32, len(clicks))))[0].tolist() for at in range(0, len(clicks), 32)] for run in runs
    ]
    assert runs[0].tuning is None
    assert runs[1].tuning is not None
    told = runs[1].tuning.told
    began = [at for kind, at, *_ in told if kind == "finetuning"]
    assert began
    assert all(at % 200 < 32 for at in began)
    assert {kind for kind, *_ in told} <= {"finetuning", "candidate", "published", "rejected"}
    published = [at for kind, at, *_ in told if kind == "published"]
    assert published
    assert runs[1].learner.version == 1 + len(published)
    differs = next(number for number, (one, other) in enumerate(zip(*ranks, strict=True)) if one != other)
    assert 32 * differs >= published[0]
