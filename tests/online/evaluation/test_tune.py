"""The search sees the first part only, its figures are those worked out by hand, and what is written can be gone by."""

import io
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from online.cli import main
from online.commands.tune import features_table, remarks, run_tune, settings_file, verdict
from online.config.settings import Settings, load_settings
from online.evaluation import backtest as backtest_module
from online.evaluation.backtest import NEXTCLICK, backtest
from online.evaluation.town import Town
from online.evaluation.tune import CLICKS_MIN, LATER, SEARCH, SPACE, GroupWorth, SearchProgress, Tuned, _gain, tune
from online.evaluation.tune_runs import STEPS, Notes, Runs, TuneError
from online.learner.batches import BatchResult, Impression
from online.metrics import hit_and_ndcg_at
from stream.event_files import EventFile, EventFileError
from stream.events import Click

IDEAL = 0.0084  # the learning rate that foresees best, in the world of `Foresight`: 4.2 times the default
DEFAULT: float = Settings.model_fields["learning_rate"].get_default()
SMALL: dict[str, Any] = {"layers": ("local",), "width": 8, "history_max": 32, "online_history": 8, "device": "cpu"}


def settings(**changes: Any) -> Settings:
    return Settings(**{**SMALL, **changes})


def stream(n: int = 60, users: int = 3, items: int = 7) -> list[Click]:
    drawn = np.random.default_rng(0).integers(0, (users, items), (n, 2)).tolist()
    return [
        Click(user_id=f"u{user}", item_id=f"i{item}", timestamp=1_000.0 + 60 * at, event_id=str(at))
        for at, (user, item) in enumerate(drawn)
    ]


def rank_of(click: Click, learning_rate: float, turns_at: float = math.inf) -> float:
    """How `Foresight` ranks a click: worse, the further its learning rate is from what is ideal (from `turns_at` on,
    the default is)."""
    ideal = IDEAL if click.timestamp < turns_at else DEFAULT
    return abs(math.log10(learning_rate / ideal)) * 4 + int(click.item_id[1:]) % 3


class Foresight:
    """A learner that learns nothing: how well it foresees a click is fixed."""

    turns_at = math.inf
    groups, frozen = None, False
    may_use_state, weights = False, SimpleNamespace(ranker=None)
    learned: list[list[str]]  # of each one that was made: the ids of the events it was shown

    def __init__(self, settings: Settings, *, lists: bool = True) -> None:
        self.settings, self.lists = settings, lists
        self.mine: list[str] = []
        self.known: set[str] = set()  # items that were clicked: without content no other is a candidate
        self.learned.append(self.mine)

    def rank(self, click: Click) -> float:
        is_candidate = click.item_id in self.known
        self.known.add(click.item_id)
        return rank_of(click, self.settings.learning_rate, self.turns_at) if is_candidate else math.inf

    def learn(
        self,
        clicks: Sequence[Click],
        impressions: Sequence[Impression] | None = None,
        train: bool = True,
        following: Any = None,  # noqa: ARG002
    ) -> BatchResult:
        assert train
        assert impressions is None  # only what is on request is measured
        self.mine += [str(click.event_id) for click in clicks]
        n = len(clicks)
        ranks = np.array([self.rank(click) for click in clicks])
        return BatchResult(
            rankings={},
            losses=[0.0] * n,
            ranks=ranks,
            candidates=np.full(n, 5, np.int64),
            served_ranks=np.full(n, np.inf),
            targets=np.zeros(n, np.int64),
            trainable=np.ones(n, bool),
            steps=[],
            network=None,
        )


@pytest.fixture
def foresight(monkeypatch: pytest.MonkeyPatch) -> type[Foresight]:
    monkeypatch.setattr(backtest_module, "Learner", Foresight)
    monkeypatch.setattr(Foresight, "learned", [], raising=False)
    monkeypatch.setattr(Foresight, "turns_at", math.inf)
    return Foresight


def by_hand(
    clicks: Sequence[Click], first: int, learning_rate: float, *, exclude_seen: bool = False, turns_at: float = math.inf
) -> tuple[float, float]:
    """NDCG@10 and hit@10 of `Foresight` over the clicks from number `first` on."""
    known: set[str] = set()
    had: set[tuple[str, str]] = set()
    gains = []
    for click in clicks:
        rank = rank_of(click, learning_rate, turns_at)
        missed = click.item_id not in known or (exclude_seen and (click.user_id, click.item_id) in had)
        gains.append(0.0 if missed or rank >= 10 else 1 / math.log2(rank + 2))
        known.add(click.item_id)
        had.add((click.user_id, click.item_id))
    scored = gains[first:]
    return sum(scored) / len(scored), sum(gain > 0 for gain in scored) / len(scored)


@pytest.mark.usefixtures("foresight")
class TestSpace:
    def test_what_is_searched_are_settings_and_their_defaults_are_searched_too(self) -> None:
        assert len({parameter.name for parameter in SPACE}) == len(SPACE)
        for parameter in SPACE:
            default = Settings.model_fields[parameter.name].get_default()
            if parameter.kind == "categorical":
                assert default in parameter.values, parameter.name
            else:
                low, high = parameter.values
                assert low <= default <= high, parameter.name

    @pytest.mark.parametrize("parameter", SPACE, ids=lambda parameter: parameter.name)
    def test_every_end_of_a_range_can_be_set(self, parameter: Any) -> None:
        for value in parameter.values:
            assert getattr(Settings(**{parameter.name: value}), parameter.name) == value

    @pytest.mark.filterwarnings("error")
    def test_what_stands_outside_a_range_is_searched_too(self) -> None:
        stands = {"learning_rate": 0.5, "history_max": 600, "ranker_hidden": 5, "micro_batch_max": 10}
        found = tune(stream(), settings(**stands), trials=4).found
        assert {name: found.stood[name] for name in stands} == stands
        assert found.stood_ndcg == pytest.approx(by_hand(stream()[:30], 6, 0.5)[0])


@pytest.mark.usefixtures("foresight")
class TestSearch:
    @pytest.mark.parametrize("exclude_seen", [False, True])
    def test_figures_are_those_worked_out_by_hand(self, exclude_seen: bool) -> None:
        clicks = stream(200, users=30, items=40)
        tuned = tune(clicks, settings(exclude_seen=exclude_seen), share=0.4, trials=12)
        stood, best = (values["learning_rate"] for values in (tuned.found.stood, tuned.found.best))
        assert (tuned.events, tuned.searched, stood) == (200, 80, DEFAULT)
        hand = {
            rate: by_hand(clicks[:80], 16, rate, exclude_seen=exclude_seen)[0] for rate in (stood, best)
        }  # the first fifth of the part only teaches
        assert (tuned.found.stood_ndcg, tuned.found.best_ndcg) == pytest.approx((hand[stood], hand[best]))
        for figures, rate in ((tuned.stood, stood), (tuned.best, best)):
            assert (figures.ndcg, figures.hit) == pytest.approx(by_hand(clicks, 80, rate, exclude_seen=exclude_seen))
        assert tuned.gain == pytest.approx(tuned.best.ndcg - tuned.stood.ndcg)
        assert tuned.better
        assert abs(math.log10(best / IDEAL)) < abs(math.log10(stood / IDEAL))
        assert tuned.kept == tuned.found.best

    def test_the_search_sees_no_later_click(self, foresight: type[Foresight]) -> None:
        clicks = stream(100)
        tuned = tune(clicks, settings(), trials=10)
        *searching, stood, best = foresight.learned
        assert set().union(*searching) <= {str(at) for at in range(50)}
        assert stood == best == [str(at) for at in range(100)]
        other = [click.model_copy(update={"item_id": "i1", "user_id": "u9"}) for click in clicks[50:]]
        again = tune(clicks[:50] + other, settings(), trials=10)
        assert (again.found.best, again.found.best_ndcg) == (tuned.found.best, tuned.found.best_ndcg)
        assert again.best.ndcg != tuned.best.ndcg

    def test_it_starts_from_what_stands_and_is_never_worse_there(self, foresight: type[Foresight]) -> None:
        only = tune(stream(), settings(learning_rate=0.02), trials=1)
        assert only.found.best == only.found.stood
        assert only.found.best["learning_rate"] == 0.02
        assert (only.gain, only.better) == (0.0, False)
        assert len(foresight.learned) == 2  # the one trial, and what stands on all clicks: once
        ideal = tune(stream(), settings(learning_rate=IDEAL), trials=6).found
        assert ideal.best == ideal.stood

    def test_what_is_not_better_on_later_clicks_is_not_kept(
        self, foresight: type[Foresight], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clicks = stream(100)
        turns_at = clicks[50].timestamp
        monkeypatch.setattr(foresight, "turns_at", turns_at)
        tuned = tune(clicks, settings(), trials=10)
        assert tuned.found.best_ndcg > tuned.found.stood_ndcg
        rate = tuned.found.best["learning_rate"]
        assert tuned.best.ndcg == pytest.approx(by_hand(clicks, 50, rate, turns_at=turns_at)[0])
        assert tuned.gain < 0
        assert tuned.kept == tuned.found.stood != tuned.found.best

    def test_a_seed_repeats_and_another_tries_something_else(self) -> None:
        one, same, other = (tune(stream(), settings(seed=seed), trials=13).found for seed in (1, 1, 2))
        assert (one.best, one.best_ndcg, one.pruned) == (same.best, same.best_ndcg, same.pruned)
        assert one.best != other.best

    def test_what_is_tried_has_few_digits(self) -> None:
        best = tune(stream(), settings(), trials=13).found.best
        assert best["learning_rate"] == float(f"{best['learning_rate']:.3g}") != DEFAULT

    def test_hopeless_trials_are_given_up_early(self, foresight: type[Foresight]) -> None:
        clicks = stream(400)
        found = tune(clicks, settings(micro_batch_max=8), trials=25).found
        searching = foresight.learned[:25]
        unfinished = [events for events in searching if len(events) < 200]
        assert 0 < len(unfinished) == found.pruned < 20
        assert all(len(events) >= 80 for events in unfinished)  # not before enough was scored
        assert len(searching[0]) == 200  # what stands is always measured

    def test_settings_that_do_not_fit_together_are_passed_over(self) -> None:
        found = tune(stream(), settings(users_held=20, micro_batch_max=16), trials=12).found
        assert found.best["micro_batch_max"] <= 20
        assert found.trials == 12
        assert found.pruned > 0

    def test_progress_rises_to_the_end(self) -> None:
        told: list[SearchProgress] = []
        tuned = tune(stream(200), settings(micro_batch_max=16), trials=3, on_progress=told.append)
        assert [now.stage for now in told] == sorted((now.stage for now in told), key=[SEARCH, LATER].index)
        for stage in (SEARCH, LATER):
            shares = [now.share for now in told if now.stage == stage]
            assert shares == sorted(shares)
            assert (0 < shares[0] < 0.5, shares[-1]) == (True, pytest.approx(1.0))
        assert told[-1].best == tuned.found.best_ndcg


@pytest.mark.usefixtures("foresight")
class TestEnd:
    def test_time_ends_the_search_but_not_its_first_trial(self) -> None:
        tuned = tune(stream(), settings(), timeout_s=0.0)
        assert tuned.found.trials == 1
        assert tuned.stood.ndcg == pytest.approx(by_hand(stream(), 30, DEFAULT)[0])

    def test_stopping_ends_the_search_and_what_it_has_is_judged(self, foresight: type[Foresight]) -> None:
        clicks = stream(600)  # several micro-batches, however large
        tuned = tune(clicks, settings(), stop=lambda: len(foresight.learned) > 5)
        assert tuned.found.trials == 5  # the sixth was cut off
        assert tuned.best.ndcg == pytest.approx(by_hand(clicks, 300, tuned.found.best["learning_rate"])[0])

    def test_stopping_before_there_is_anything_says_so(self, foresight: type[Foresight]) -> None:
        with pytest.raises(TuneError, match="stopped before the present settings were measured"):
            tune(stream(), settings(), stop=lambda: len(foresight.learned) > 0)

    def test_stopping_after_the_search_says_so(self, foresight: type[Foresight]) -> None:
        with pytest.raises(TuneError, match="stopped before the settings found were evaluated"):
            tune(stream(), settings(), trials=2, stop=lambda: len(foresight.learned) > 2)

    @pytest.mark.parametrize("n", [0, 1, CLICKS_MIN - 1])
    def test_too_few_clicks_are_refused(self, n: int) -> None:
        with pytest.raises(TuneError, match=f"needs at least {CLICKS_MIN} clicks, the file has {n}"):
            tune(stream(n), settings())

    @pytest.mark.parametrize("share", [0.1, 0.9])
    def test_the_fewest_clicks_are_enough(self, share: float) -> None:
        clicks = stream(CLICKS_MIN)
        tuned = tune(clicks, settings(), share=share, trials=2)
        assert tuned.stood.ndcg == pytest.approx(by_hand(clicks, round(share * CLICKS_MIN), DEFAULT)[0])


def test_the_standard_error_takes_a_user_s_clicks_together() -> None:
    differences = np.array([0.3, 0.1, -0.2, 0.2])
    users = np.array([0, 0, 1, 7])
    mean, error = _gain(differences, users)
    assert mean == pytest.approx(0.1)
    # Sums of what differs from the mean: 0.2, -0.3, 0.1 for the three users.
    assert error == pytest.approx(math.sqrt((0.04 + 0.09 + 0.01) * 3 / 2) / 4)
    assert _gain(differences, np.zeros(4, np.int64)) == (pytest.approx(0.1), math.inf)


class TestRuns:
    def test_notes_hold_what_was_foreseen_at_each_step(self) -> None:
        notes = Notes(np.zeros(Notes.NUMBERS))
        notes.clear()
        assert notes.curve == []
        for events, ndcg in ((9, 0.1), (35, 0.2), (39, 0.3), (50, 0.4)):
            notes.write(events, 100, ndcg)
        assert notes.curve == [0.2, 0.2, 0.2, 0.4, 0.4]
        notes.write(100, 100, 0.5)
        assert (notes.events, len(notes.curve), notes.stop) == (100, STEPS - 1, False)

    def test_processes_beside_each_other_find_the_same(self) -> None:
        clicks = list(Town(users=10, items=32).clicks(160))
        alone, together = (tune(clicks, settings(), trials=3, jobs=jobs) for jobs in (1, 2))
        assert (alone.found.best, alone.found.best_ndcg) == (together.found.best, together.found.best_ndcg)
        assert (alone.best.ndcg, alone.gain, alone.gain_error) == (
            together.best.ndcg,
            together.gain,
            together.gain_error,
        )
        part, whole = (backtest(which, settings(), methods=[NEXTCLICK]) for which in (clicks[:80], clicks))
        assert alone.found.stood_ndcg == pytest.approx(hit_and_ndcg_at(part.scored(NEXTCLICK))[1].mean())
        assert alone.stood.ndcg == pytest.approx(hit_and_ndcg_at(whole.ranks[NEXTCLICK][80:])[1].mean())

    def test_a_process_that_is_killed_is_one_clear_line(self) -> None:
        def kill(_: Sequence[Notes]) -> None:
            assert runs._pool is not None
            for pid in list(runs._pool._processes or ()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        with Runs.over(stream(), 2) as runs, pytest.raises(TuneError, match="try fewer --jobs"):
            runs.go([settings(), settings()], kill)


@pytest.mark.usefixtures("foresight")
class TestCommand:
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        rows = [f"{click.user_id},{click.item_id},{click.timestamp}" for click in stream(100)]
        (tmp_path / "clicks.csv").write_text("\n".join(["user,item,timestamp", *rows, "u1,,5"]))

    def run(self, **given: Any) -> str:
        shown = io.StringIO()
        given = {"to": Path("found.env"), "trials": 8, **given}
        run_tune(Console(width=80, file=shown), EventFile(Path("clicks.csv")), settings(), **given)
        return shown.getvalue()

    def test_what_was_found_is_printed_and_written_and_can_be_gone_by(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = self.run()
        best = tune(stream(100), settings(), trials=8)
        text = Path("found.env").read_text()
        for figure in (best.found.stood_ndcg, best.found.best_ndcg, best.stood.ndcg, best.best.ndcg):
            assert f" {figure:.4f}" in shown
            assert f" {figure:.5f}" in text
        assert f"better: NDCG@10 on later clicks {best.gain:+.4f}" in shown
        assert "# Stream: clicks.csv, 100 clicks;" in text
        assert "left out, not readable as clicks: 1 invalid-item_id" in shown
        monkeypatch.setenv("NEXTCLICK_ENV_FILE", "found.env")
        assert load_settings() == Settings(**best.found.best)
        sourced = subprocess.run(
            ["sh", "-c", "set -a; . ./found.env; env"], capture_output=True, text=True, check=True, env={}
        )
        found = dict(line.split("=") for line in sourced.stdout.splitlines() if line.startswith("NEXTCLICK_"))
        assert found == {f"NEXTCLICK_{name.upper()}": str(value) for name, value in best.found.best.items()}

    def test_the_table_fits_80_columns(self) -> None:
        lines = self.run().splitlines()
        table = lines[: next(at for at, line in enumerate(lines) if line.startswith("better"))]
        assert all(any(name in line for line in table) for name in [parameter.name for parameter in SPACE])
        assert max(map(len, table)) <= 80

    def test_settings_that_are_no_better_are_written_as_a_comment_and_reported(
        self, foresight: type[Foresight], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(foresight, "turns_at", stream(100)[50].timestamp)
        assert "worse: NDCG@10 on later clicks -" in self.run()
        text = Path("found.env").read_text()
        assert "# worse" in text
        assert "AS THEY STOOD" in text
        assert "\n# NEXTCLICK_LEARNING_RATE=" in text
        monkeypatch.setenv("NEXTCLICK_ENV_FILE", "found.env")
        stood = {parameter.name: getattr(settings(), parameter.name) for parameter in SPACE}
        assert load_settings() == Settings(**stood)

    def test_a_search_that_found_nothing_better_reports_that(self) -> None:
        assert "no trial was better on the searched clicks" in self.run(trials=1)
        assert f"\nNEXTCLICK_LEARNING_RATE={DEFAULT}\n" in Path("found.env").read_text()

    def test_a_file_is_only_overwritten_by_force(self) -> None:
        Path("found.env").write_text("mine")
        with pytest.raises(TuneError, match=r"^--out found.env exists already: name another file, .*--force$"):
            self.run()
        assert Path("found.env").read_text() == "mine"
        self.run(force=True)
        assert "NEXTCLICK_LEARNING_RATE=" in Path("found.env").read_text()

    def test_a_file_that_comes_into_being_meanwhile_is_left_and_nothing_is_lost(
        self, foresight: type[Foresight], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learn = foresight.learn

        def spoil(learner: Foresight, clicks: Sequence[Click], *given: Any, **named: Any) -> BatchResult:
            Path("found.env").write_text("mine")
            return learn(learner, clicks, *given, **named)

        monkeypatch.setattr(foresight, "learn", spoil)
        with pytest.raises(TuneError, match=r"(?s)left as it is.*NEXTCLICK_LEARNING_RATE="):
            self.run()
        assert Path("found.env").read_text() == "mine"

    def test_a_file_that_cannot_be_written_is_refused_before_the_work(self, foresight: type[Foresight]) -> None:
        for to, words in ((Path("no/found.env"), "there is no folder no"), (Path(), "is a folder: name a file in it")):
            with pytest.raises(TuneError, match=words):
                self.run(to=to)
        assert foresight.learned == []

    def test_an_operator_sees_what_is_wrong_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
        Path("nextclick.env").write_text("mine")
        monkeypatch.setattr(sys, "argv", ["nextclick", "tune", "clicks.csv"])
        with pytest.raises(SystemExit) as end:
            main()
        for number, handler in before:
            signal.signal(number, handler)
        assert end.value.code == 1
        assert re.fullmatch(r"nextclick: --out nextclick\.env exists already: .*--force\n", capsys.readouterr().err)

    def test_a_file_without_a_click_says_why(self) -> None:
        Path("clicks.csv").write_text("user,item,timestamp\nada,tea,soon\n")
        with pytest.raises(EventFileError, match=r"1 of 1 rows \(100%\) cannot be read as clicks: 1 invalid-timestamp"):
            self.run()
        with pytest.raises(TuneError, match=r"no click that can be read; .*1 invalid-timestamp$"):
            self.run(bad_rows_max=1)


def tuned(**fields: Any) -> Tuned:
    """A result with figures of one's own."""
    found = tune(stream(), settings(), trials=8)
    return Tuned(**{**found.__dict__, **fields})


@pytest.mark.usefixtures("foresight")
class TestVerdict:
    def test_a_gain_within_chance_is_called_that(self) -> None:
        for gain, error, people, begins in (
            (0.0031, 0.0038, 500, "no difference that can be told from chance: NDCG@10 on later clicks +0.0031 (95 %"),
            (-0.0031, 0.0038, 500, "no difference that can be told from chance"),
            (0.01, 0.006, 500, "no difference"),
            (0.01, 0.004, 500, "better: "),
            (0.01, 0.004, 3, "no difference"),  # of three users two standard errors say little
            (-0.01, 0.004, 500, "worse: "),
            (0.01, math.inf, 1, "no difference"),
        ):
            result = tuned(gain=gain, gain_error=error, users=people)
            assert verdict(result).startswith(begins), (gain, error, people)
            assert result.better == begins.startswith("better")
            assert result.kept == (result.found.best if result.better else result.found.stood)
        assert "one user only" in verdict(tuned(gain=0.01, gain_error=math.inf))

    def test_features_that_add_nothing_are_named_to_be_left_out(self) -> None:
        found = (
            GroupWorth("clicked", 0.2, 0.01),
            GroupWorth("age", 0.0015, 0.001),  # little, but no chance
            GroupWorth("taste", 0.0015, 0.002),
            GroupWorth("lift", 0.003, 0.005),
            GroupWorth("network", 0.0, 0.001),  # has a setting of its own
            GroupWorth("near", -0.004, 0.005),
            GroupWorth("followed", -0.004, 0.02),  # not known well enough
        )
        result = tuned(features=found, features_clicks=1_234)
        assert "features that add less than 0.2 %: taste,near; NEXTCLICK_FEATURES_LEFT_OUT leaves them out" in list(
            remarks(result)
        )
        text = settings_file(result, settings(), "a.csv")
        assert "# NEXTCLICK_FEATURES_LEFT_OUT=taste,near\n" in text
        assert not any(line.startswith("NEXTCLICK_FEATURES") for line in text.splitlines())  # it has not been tried
        out = io.StringIO()
        Console(file=out, width=80).print(features_table(result))
        assert "clicked 20.00 % ± 1.00 %" in " ".join(out.getvalue().split())
        assert not any("FEATURES" in line for line in remarks(tuned(features=found[:2])))
        assert not GroupWorth("age", 0.0, math.inf).idle

    def test_the_time_it_took_is_all_of_it(self) -> None:
        result = tuned(judging_s=31.0)
        result = tuned(judging_s=31.0, found=replace(result.found, seconds=14.0))
        assert "took 45 s: 14 s to search, 31 s to compare on all clicks" in list(remarks(result))

    def test_the_name_of_a_stream_adds_no_line(self) -> None:
        text = settings_file(tuned(), settings(), "a\nNEXTCLICK_WIDTH=1.csv")
        assert "\nNEXTCLICK_WIDTH" not in text
        assert all(line.startswith(("# ", "NEXTCLICK_")) for line in text.splitlines())
