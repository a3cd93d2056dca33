"""A backtest's parts against hand-made numbers: types, value, new items, baskets, calibration, items of a file."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from online.cli import app
from online.commands.backtest import run_backtest
from online.config.settings import Settings
from online.evaluation import calibration_plot
from online.evaluation.backtest import AS_SERVED, NEXTCLICK, LearnerRun, Outcome, RunResult, backtest, complete
from online.evaluation.backtest_events import FIRST_LINE, BacktestError, facts_of
from online.evaluation.backtest_items import ItemSchedule, ReadItems, read_items
from online.evaluation.backtest_report import report
from online.evaluation.breakdown import (
    breakdown,
    breakdown_remarks,
    breakdown_table,
    clustered_error,
    curves_of,
)  # fmt: skip
from online.evaluation.calibration import FirstItems, figures, reliability
from online.evaluation.town import Town
from online.metrics import hit_and_ndcg_at
from stream.event_files import EventFile
from stream.events import Click
from stream.item_files import ItemFile
from stream.items import Item

SMALL: dict[str, Any] = {"layers": ("local",), "width": 8, "history_max": 32, "online_history": 8, "device": "cpu"}


def click(user: str, item: str, at: float, kind: str = "click", value: float | None = None) -> Click:
    return Click(user_id=user, item_id=item, timestamp=at, event_type=kind, value=value)


def outcome(clicks: list[Click], ranks: list[float], *, baskets: str = "each", first: Any = None) -> Outcome:
    given = {NEXTCLICK: np.array(ranks)}
    went = RunResult(given, np.isfinite(ranks), 1, 0, 1.0, first)
    return Outcome(facts_of(clicks, baskets), False, {NEXTCLICK: went}, 1.0, given, baskets)


#: The first of five only trains.
SHOP = [
    click("ada", "tea", 1_000.0, "view"),
    click("ada", "tea", 1_060.0, "purchase", 10.0),
    click("ben", "cup", 1_120.0, "purchase", 30.0),
    click("ben", "tea", 1_180.0, "view"),
    click("ben", "tea", 1_240.0, "purchase", -4.0),
]
RANKS = [0.0, 1.0, math.inf, 0.0, 2.0]


def test_figures_of_each_event_type() -> None:
    found = breakdown(outcome(SHOP, RANKS))["by_event_type"]
    assert {name: part["scored"] for name, part in found.items()} == {"view": 1, "purchase": 3}
    assert found["view"]["methods"][NEXTCLICK]["ndcg@10"] == 1.0
    ndcg = [1 / math.log2(3), 0.0, 1 / math.log2(4)]
    purchases = found["purchase"]["methods"][NEXTCLICK]
    assert (purchases["hit@10"], purchases["ndcg@10"]) == (round(2 / 3, 5), round(sum(ndcg) / 3, 5))


def test_value_counts_what_hits_were_worth() -> None:
    found = breakdown(outcome(SHOP, RANKS))["value"]
    assert {key: found[key] for key in ("scored", "without_value", "negative", "sum")} == {
        "scored": 3, "without_value": 1, "negative": 1, "sum": 36.0,
    }  # fmt: skip
    assert found["methods"][NEXTCLICK] == {
        "value@10": round((10 - 4) / 36, 5),
        "ndcg@10_by_value": round(10 / math.log2(3) / 40, 5),
    }


def test_values_that_are_no_gain_give_no_share() -> None:
    clicks = [click("ada", "tea", 60.0 * at, value=-1.0) for at in range(1, 5)]
    assert breakdown(outcome(clicks, [0.0] * 4))["value"]["methods"][NEXTCLICK] == {
        "value@10": None, "ndcg@10_by_value": None,
    }  # fmt: skip


def test_early_clicks_of_an_item_are_counted_from_its_first() -> None:
    clicks = [click(f"u{at}", "tea", 60.0 * at) for at in range(1, 16)]  # three train, the next seven are early
    clicks += [click("ada", "cup", 2_000.0)]
    found = breakdown(outcome(clicks, [0.0] * 15 + [math.inf]))
    assert found["first_10_of_item"]["scored"] == 10 - 4 + 1
    assert found["first_10_of_item"]["methods"][NEXTCLICK]["hit@10"] == round(6 / 7, 5)
    assert found["first_of_item"] == {
        "scored": 1, "methods": {NEXTCLICK: {"hit@10": 0.0, "ndcg@10": 0.0, "ndcg@10_se": 0.0}},
    }  # fmt: skip


def test_an_item_without_a_click_counts_where_it_was_a_candidate() -> None:
    facts = facts_of(SHOP)
    ranks = complete(facts, slice(2, 3), np.array([4.0]), np.array([9]), exclude_seen=False)
    assert ranks.tolist() == [4.0]
    ranks = complete(facts, slice(2, 3), np.array([math.inf]), np.array([9]), exclude_seen=False)
    assert ranks.tolist() == [math.inf]


def test_the_standard_error_knows_that_clicks_of_a_user_belong_together() -> None:
    values, users = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1])
    assert clustered_error(values, users) == pytest.approx(math.sqrt(2 * (1 + 1)) / 4)  # as of two values: 0.5
    alone = clustered_error(values, np.arange(4))
    assert alone == pytest.approx(values.std(ddof=1) / 2)
    assert clustered_error(values[:1], users[:1]) == 0.0


def test_a_ratio_of_methods_and_its_error_are_those_of_users_drawn_again() -> None:
    random = np.random.default_rng(0)
    clicks = [click(f"u{user}", f"i{user % 7}", at) for at, user in enumerate(random.integers(0, 60, 1_500).tolist())]
    ours = random.integers(0, 12, len(clicks)).astype(float)
    theirs = np.where(random.random(len(clicks)) < 0.8, ours, random.integers(0, 12, len(clicks)))
    without = "nextclick-without-state"
    given = {NEXTCLICK: ours, without: theirs}
    facts = facts_of(clicks)
    found = breakdown(Outcome(facts, False, {NEXTCLICK: RunResult(given, None, 1, 0, 1.0)}, 1.0, given))
    ratio = found["compared_with"][without]
    gains = [hit_and_ndcg_at(ranks[facts.counted])[1] for ranks in (ours, theirs)]
    assert ratio["ndcg@10"] == round(gains[0].mean() / gains[1].mean(), 5)
    of_users = [np.bincount(facts.users[facts.counted], one, 60) for one in gains]
    drawn = random.integers(0, 60, (2_000, 60))
    ratios = of_users[0][drawn].sum(1) / of_users[1][drawn].sum(1)
    assert ratio["ndcg@10_se"] == pytest.approx(ratios.std(), rel=0.1)
    assert f"nextclick / {without}: NDCG@10 {ratio['ndcg@10']:.4f}" in "\n".join(
        breakdown_remarks({"baskets": {"scoring": "first", "left_out": 0}, "compared_with": found["compared_with"]})
    )


BASKETS = [click(user, item, at) for user, item, at in [
    ("ada", "tea", 100.0), ("ada", "cup", 100.0), ("ben", "tea", 100.0), ("ada", "pot", 100.0), ("ada", "tea", 200.0),
    ("ada", "cup", 200.0), ("ben", "cup", 200.0), ("ada", "pot", 200.0), ("ben", "pot", 300.0), ("ben", "tea", 300.0),
]]  # fmt: skip


def test_of_each_basket_the_first_line_is_scored() -> None:
    each, first = facts_of(BASKETS), facts_of(BASKETS, FIRST_LINE)
    assert each.scored == 8
    assert np.flatnonzero(first.counted).tolist() == [2, 4, 6, 8]
    ranks = [0.0, 0.0, 1.0, math.inf, 2.0, math.inf, 3.0, math.inf, 4.0, math.inf]
    found = outcome(BASKETS, ranks, baskets=FIRST_LINE)
    assert report(found)["scored"] == 4
    assert report(found)["methods"][NEXTCLICK]["hit@10"] == 1.0
    assert breakdown(found)["baskets"] == {"scoring": "first", "further_lines": 4, "left_out": 4}
    assert "4 further lines are learned, not scored" in " ".join(breakdown_remarks(report(found) | breakdown(found)))
    of_each = outcome(BASKETS, ranks)
    assert breakdown(of_each)["baskets"] == {"scoring": "each", "further_lines": 4, "left_out": 0}
    assert "4 scored lines have the user and time" in " ".join(breakdown_remarks(report(of_each) | breakdown(of_each)))


def test_one_basket_leaves_nothing_to_score() -> None:
    with pytest.raises(BacktestError, match="no click is left to score"):
        facts_of([click("ada", f"i{at}", 5.0) for at in range(5)], FIRST_LINE)


def test_a_plain_stream_has_no_section_of_its_own() -> None:
    plain = [click("ada", "tea", 60.0 * at) for at in range(1, 6)]
    found = breakdown(outcome(plain, [0.0] * 5))
    assert not {"by_event_type", "value", "calibration"} & set(found)
    whole = report(outcome(plain, [0.0] * 5)) | found
    assert breakdown_table(whole) is None
    assert breakdown_remarks(whole) == []
    assert breakdown_table(whole, new_items=True) is not None


def test_the_error_of_calibration_that_was_worked_out_by_hand() -> None:
    curve = reliability(np.array([0.1, 0.15, 0.9, 1.0, np.nan]), np.array([False, True, True, True, True]), bins=2)
    assert curve.clicks.tolist() == [2, 2]
    assert curve.shares.tolist() == pytest.approx([0.125, 0.95])
    assert curve.clicked.tolist() == [0.5, 1.0]
    assert curve.error == pytest.approx((2 * 0.375 + 2 * 0.05) / 4)
    assert figures(reliability(np.array([0.5]), np.array([True]))) == {
        "scored": 1,
        "expected_calibration_error": 0.5,
        "bins": [{"from": 0.5, "to": 0.6, "clicks": 1, "mean_share": 0.5, "clicked": 1.0}],
    }


class Scored:
    """Candidates of two clicks: rows 7 and 8 of the first, none of the second."""

    kept = np.array([[0, 1], [-1, -1]])
    chances = None

    def shares(self) -> Any:
        import torch  # noqa: PLC0415

        return torch.tensor([[0.25, 0.75], [0.0, 0.0]])

    def rows(self) -> Any:
        return np.array([[7, 8], [0, 0]])


def test_the_first_item_of_each_list_is_noted() -> None:
    first = FirstItems(4)
    step = SimpleNamespace(part=slice(0, 2), scored=Scored())
    first.add(range(2, 4), SimpleNamespace(steps=[step], targets=np.array([8, 0])))  # type: ignore[arg-type]
    np.testing.assert_array_equal(first.shares, [np.nan, np.nan, 0.75, np.nan])
    assert first.clicked.tolist() == [False, False, True, False]


class TestItems:
    def test_they_come_when_they_were_published_if_the_stream_was_running(self) -> None:
        names = ["early", "in", "late", "unknown", "first"]
        read = ReadItems([Item(item_id=name) for name in names], [5.0, 150.0, 400.0, None, 120.0])
        schedule = ItemSchedule(read, 100.0, 300.0)
        assert [item.item_id for item in schedule.before] == ["early", "late", "unknown"]
        assert schedule.within == 2
        assert [item.item_id for item in schedule.take(110.0)] == []
        assert [item.item_id for item in schedule.take(120.0)] == ["first"]
        assert [item.item_id for item in schedule.take(1_000.0)] == ["in"]
        assert [item.item_id for item in schedule.take(1_000.0)] == []

    def test_the_learner_knows_an_item_from_the_batch_after_its_publication(self) -> None:
        clicks = [click("ada", f"i{at % 3}", 1_000.0 + 60 * at) for at in range(12)]
        read = ReadItems([Item(item_id="i0", title="Tea"), Item(item_id="i1", title="Cup")], [None, 1_200.0])
        run = LearnerRun(Settings(**SMALL), clicks, items=read)
        attributes = run.learner.listable.attributes
        assert (attributes.title("i0"), attributes.title("i1")) == ("Tea", None)
        run.step(range(0, 4))
        assert attributes.title("i1") is None
        run.step(range(4, 8))
        assert attributes.title("i1") == "Cup"

    def test_the_site_s_rule_holds_where_items_are_known(self) -> None:
        clicks = list(Town(users=10, items=40).clicks(300))
        names = sorted({one.item_id for one in clicks})
        out = set(names[::2])
        read = ReadItems(
            [Item(item_id=name, attributes={"ok": name not in out}) for name in names], [None] * len(names)
        )
        ruled = Settings(**SMALL, list_filter="ok = true")
        methods = (NEXTCLICK, AS_SERVED)
        with_items, without = (backtest(clicks, ruled, methods=methods, items=given) for given in (read, None))
        is_out = np.array([one.item_id in out for one in clicks])
        for method in methods:
            assert np.isinf(with_items.ranks[method][is_out]).all()
            assert np.isfinite(without.ranks[method][is_out]).any()
            assert np.isfinite(with_items.ranks[method][~is_out]).any()

    def test_bad_rows_are_left_out_and_counted(self, tmp_path: Path) -> None:
        (tmp_path / "items.csv").write_text("id,title,available\na,Tea,no\n,Cup,yes\n")
        read = read_items(ItemFile(tmp_path / "items.csv"), bad_rows_max=0.5)
        assert [item.item_id for item in read.items] == ["a"]
        assert (read.unavailable, read.tally.bad) == (1, {"invalid-id": 1})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A town's clicks with types and values, and its items with their shelves as tags."""
    folder, town = tmp_path_factory.mktemp("town"), Town(users=20, items=64, purchase_share=0.3)
    rows = [
        f"{one.user_id},{one.item_id},{one.timestamp},{one.event_type},{at % 7}"
        for at, one in enumerate(town.clicks(300))
    ]
    (folder / "clicks.csv").write_text("\n".join(["user,item,timestamp,event_type,value", *rows]))
    lines = [json.dumps({"id": item, "tags": [f"shelf {at % 8}"]}) for at, item in enumerate(town.item_ids)]
    (folder / "items.jsonl").write_text("\n".join(lines))
    return folder / "clicks.csv", folder / "items.jsonl"


def test_the_command_prints_and_writes_all_parts(files: tuple[Path, Path], tmp_path: Path) -> None:
    shown = io.StringIO()
    run_backtest(
        Console(width=80, file=shown), EventFile(files[0]), Settings(**SMALL), jobs=1, methods="nextclick,own,knn",
        items=ItemFile(files[1]), json_out=tmp_path / "out.json", plots=tmp_path, diversity="0",
    )  # fmt: skip
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["by_event_type"]) == {"click", "purchase"}
    assert (
        sum(part["scored"] for part in found["by_event_type"].values()) == found["scored"] == found["value"]["scored"]
    )
    assert found["items_file"]["items"] == 64
    assert found["calibration"][NEXTCLICK]["scored"] <= found["scored"]
    text = shown.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("of type purchase", "first of an item", "value in hits@10", "calibration error of nextclick"):
        assert words in text
    assert (tmp_path / calibration_plot.NAME).stat().st_size > 10_000


def test_a_reliability_plot_has_a_line_for_each_learner() -> None:
    clicks = list(Town(users=10, items=40).clicks(200))
    went = backtest(clicks, Settings(**SMALL), methods=(NEXTCLICK, "nextclick-without-state", "own"))
    curves = curves_of(went)
    assert set(curves) == {NEXTCLICK, "nextclick-without-state"}
    (axes,) = calibration_plot.reliability_plot(curves, "a town").axes
    assert {text.get_text().split()[0] for text in axes.texts} >= set(curves)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--baskets", "last"], "--baskets"), (["--items-only", "price"], "--items-only")],
)
def test_options_that_cannot_be_meant_are_wrong_usage(
    files: tuple[Path, Path], arguments: list[str], words: str
) -> None:
    done = CliRunner().invoke(app, ["backtest", str(files[0]), *arguments])
    assert done.exit_code == 2
    assert words in done.output
