"""A model frozen after the train part, against one that never saw the other test clicks; and learning on."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from online import cli
from online.commands.split import ALL_METHODS, run_split
from online.config.settings import Settings
from online.evaluation import baselines
from online.evaluation.backtest import NEXTCLICK, LearnerRun, complete
from online.evaluation.backtest_events import BacktestError, facts_of, micro_batches, read_clicks
from online.evaluation.split import FROZEN, LEARNING_ON, METHODS, Split, evaluate, read_split
from online.evaluation.town import Town
from online.metrics import Measure, parse_measures
from stream.event_files import EventFile, EventFileError
from stream.events import Click

SMALL: dict[str, Any] = {
    "layers": ("local", "lsh"), "width": 8, "history_max": 32, "online_history": 8, "device": "cpu",
    "micro_batch_max": 16,
}  # fmt: skip
SESSION = 6
EACH_RANK = (Measure("p", 1), Measure("p", 20), Measure("mrr", 20))


def settings(**changes: Any) -> Settings:
    return Settings(**{**SMALL, **changes})


def sessions(n: int) -> list[Click]:
    """Clicks of a town, in sessions that follow each other: each is a user of its own."""
    clicks = []
    for number in range(n):
        for at, click in enumerate(Town(users=20, items=64, seed=number % 7).clicks(SESSION * (1 + number % 5))):
            if at >= SESSION * (number % 5):
                clicks.append(click.model_copy(update={"user_id": f"s{number}", "timestamp": 1e9 + 60 * number + at}))
    return clicks


def split_of(clicks: Sequence[Click], train: int) -> Split:
    return Split(clicks, train, Counter())


def figures(split: Split, how: str, **given: Any) -> dict[str, dict[str, float]]:
    found = evaluate(split, settings(), EACH_RANK, **given)
    return {method: by_how[how] for method, by_how in found["methods"].items()}


class TestFrozen:
    def test_a_session_is_predicted_as_if_it_were_the_only_one(self) -> None:
        clicks = sessions(24)
        train = 20 * SESSION
        together = figures(split_of(clicks, train), FROZEN)
        alone = [
            figures(split_of([*clicks[:train], *clicks[at : at + SESSION]], train), FROZEN)
            for at in range(train, len(clicks), SESSION)
        ]
        for method in METHODS:
            for one in EACH_RANK:
                mean = np.mean([found[method][one.name] for found in alone])
                assert together[method][one.name] == pytest.approx(mean, abs=2e-5), method

    def test_repeating_the_test_part_teaches_nothing(self) -> None:
        clicks = sessions(21)
        train = 20 * SESSION
        again = [
            click.model_copy(update={"user_id": f"again{n}", "timestamp": 1e9 + 3_000 + 60 * n + click.timestamp % 60})
            for n in range(6)
            for click in clicks[train:]
        ]
        once = figures(split_of(clicks, train), FROZEN, methods=("own", "markov", "knn"))
        assert figures(split_of([*clicks, *again], train), FROZEN, methods=("own", "markov", "knn")) == once
        learning = figures(split_of([*clicks, *again], train), LEARNING_ON, methods=("markov",))
        assert learning["markov"]["p@20"] > once["markov"]["p@20"]

    def test_an_item_that_the_train_part_has_not_is_a_miss(self) -> None:
        new = [Click(user_id="new", item_id="unheard of", timestamp=1e9 + 9_000 + at) for at in range(4)]
        clicks = [*sessions(10), *new]
        found = evaluate(split_of(clicks, 10 * SESSION), settings(), EACH_RANK)
        assert found["scored"] == 3
        assert {by_how[FROZEN]["p@20"] for by_how in found["methods"].values()} == {0.0}
        assert found["methods"]["own"][LEARNING_ON]["p@20"] == 1.0


def test_learning_on_is_as_if_nothing_had_been_frozen_in_between() -> None:
    clicks, train = sessions(24), 20 * SESSION
    found = figures(split_of(clicks, train), LEARNING_ON, methods=(NEXTCLICK,))[NEXTCLICK]
    given, facts = settings(), facts_of(clicks)
    going = LearnerRun(given, clicks, lists=False)
    for _ in going.steps(list(micro_batches(clicks[:train], given))):
        pass
    ranks = []
    batches = [range(train + one.start, train + one.stop) for one in micro_batches(clicks[train:], given)]
    for batch, (among, candidates, _) in zip(batches, going.steps(batches), strict=True):
        ranks.append(complete(facts, slice(batch.start, batch.stop), among, candidates, exclude_seen=False))
    scored = np.concatenate(ranks)[facts.earlier_of_user[train:] > 0]
    assert found == {one.name: round(float(one.of(scored).mean()), 5) for one in EACH_RANK}


class TestMeasures:
    @given(st.lists(st.integers(0, 40), min_size=1))
    def test_they_are_those_of_the_definition(self, ranks: list[int]) -> None:
        places = np.array(ranks, float)
        assert Measure("p", 20).of(places).sum() == sum(rank < 20 for rank in ranks)
        assert Measure("mrr", 5).of(places).sum() == pytest.approx(sum(1 / (r + 1) for r in ranks if r < 5))
        assert Measure("ndcg", 5).of(places).sum() == pytest.approx(sum(1 / np.log2(r + 2) for r in ranks if r < 5))

    def test_a_miss_counts_nothing(self) -> None:
        for kind in ("p", "hit", "mrr", "ndcg"):
            assert Measure(kind, 1_000).of(np.array([np.inf])).tolist() == [0.0]

    def test_they_are_read_in_their_order_and_once_each(self) -> None:
        assert [one.name for one in parse_measures(" P@20, mrr@5,p@20 ,ndcg@10,hit@1")] == [
            "p@20", "mrr@5", "ndcg@10", "hit@1",
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["", "p", "p@", "p@0", "p@1001", "auc@20", "p@2.5", "p@20;mrr@20"])
    def test_others_are_refused_with_a_line(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"as in p@20") as error:
            parse_measures(text)
        assert "\n" not in str(error.value)


def csv(folder: Path, cells: Sequence[str]) -> Path:
    path = folder / "clicks.csv"
    clicks = sessions(len(cells))
    rows = [
        f"{click.user_id},{click.item_id},{click.timestamp},{cells[at // SESSION]}" for at, click in enumerate(clicks)
    ]
    path.write_text("\n".join(["user,item,timestamp,part", *rows]))
    return path


class TestCommand:
    def test_the_table_and_the_json_agree(self, tmp_path: Path) -> None:
        path, shown = csv(tmp_path, ["train"] * 10 + ["valid"] + [" Test"] * 2), io.StringIO()
        run_split(
            Console(width=80, file=shown), EventFile(path), settings(), column="part",
            measures=parse_measures("p@20,mrr@20"), jobs=1, json_out=tmp_path / "out.json",
        )  # fmt: skip
        found = json.loads((tmp_path / "out.json").read_text())
        assert (found["train"], found["test"], found["scored"], found["left_out"]) == (60, 12, 10, {"valid": 6})
        assert list(found["methods"]) == list(METHODS)
        text = shown.getvalue()
        assert max(map(len, text.splitlines())) <= 80
        for method, by_how in found["methods"].items():
            cells = [f"{100 * share:.2f}" for how in (FROZEN, LEARNING_ON) for share in by_how[how].values()]
            assert any(line.split() == [method, *cells] for line in text.splitlines()), method
        assert "6 of 'valid'" in text

    def test_clicks_come_from_the_part_that_their_row_names_also_when_sorted(self, tmp_path: Path) -> None:
        path = csv(tmp_path, ["test", "train", "train", "test"])
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([header, *reversed(rows)]))
        file = EventFile(path)
        split = read_split(file, read_clicks(file, settings(), sort=True), "part")
        assert [click.user_id for click in split.clicks[::SESSION]] == ["s1", "s2", "s0", "s3"]
        assert split.train == 2 * SESSION

    def test_a_column_or_a_part_that_is_missing_is_named(self, tmp_path: Path) -> None:
        file = EventFile(csv(tmp_path, ["train", "train"]))
        read = read_clicks(file, settings())
        with pytest.raises(EventFileError, match=r"has no column 'fold' \(--split-column\): there are"):
            read_split(file, read, "fold")
        with pytest.raises(
            BacktestError, match=r"--split-column part: no click of the 12 is of 'test' \(there is 'train'"
        ):
            read_split(file, read, "part")
        file = EventFile(csv(tmp_path, ["0", "1"]))
        with pytest.raises(BacktestError, match=r"no click of the 12 is of 'train' \(there is '0', '1'\)"):
            read_split(file, read_clicks(file, settings()), "part")

    def test_without_a_second_click_there_is_nothing_to_predict(self) -> None:
        clicks = [Click(user_id=f"u{at}", item_id="tea", timestamp=1e9 + at) for at in range(4)]
        with pytest.raises(BacktestError, match="nothing to predict it from"):
            evaluate(split_of(clicks, 2), settings(), EACH_RANK)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"metrics": "p@20"}, "--metrics goes with --split-column"),
            ({"split_column": "part", "metrics": "auc"}, "--metrics: there is no 'auc'"),
            ({"split_column": "part", "baskets": "first"}, "do not go with --split-column"),
            (
                {"split_column": "part", "users_file": Path("users.csv")},
                "--users, --finetune-every and --baskets do not go",
            ),
        ],
    )
    def test_options_that_do_not_go_together_are_refused(
        self, tmp_path: Path, given: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(typer.BadParameter, match=words):
            cli.backtest(csv(tmp_path, ["train", "test"]), **given)


def test_every_method_of_a_backtest_but_the_lists_as_served_can_be_named() -> None:
    assert set(baselines.METHODS) < set(ALL_METHODS)
    assert "nextclick-without-state" in ALL_METHODS
    assert "nextclick-as-served" not in ALL_METHODS
