"""`nextclick evaluate-policy`: logs in each format and of each shape, and one clear line for what is wrong."""

import csv
import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import off_policy as benchmark
from online.cli import app
from online.config.settings import load_settings
from online.evaluation.policy_log import PolicyLogError, load, parse_pairs
from online.worker.connections import open_producer, prepare_topics
from stream.event_files import EventFileError
from stream.event_files.table import table_rows
from stream.events import Click
from stream.events import encode as encode_click
from stream.impressions import Impression, ShownItem, encode

SHARED = Path(__file__).resolve().parents[3].parent / "shared/data/open-bandit-sample.csv.xz"
UNIFORM = ["--policy", "uniform"]
NAMES = ["site", "item_id", "position", "propensity", "click", "request_id"]


@pytest.fixture
def rows():
    """Of a policy that shows item `a` in 80 % of the cases; `b` is clicked three times as often."""
    random = np.random.default_rng(0)
    found = []
    for number in range(2_000):
        item = "a" if random.random() < 0.8 else "b"
        click = int(random.random() < (0.1 if item == "a" else 0.3))
        propensity = 0.8 if item == "a" else 0.2
        found.append(["x" if number % 2 else "y", item, number % 3 + 1, propensity, click, number // 3])
    return found


@pytest.fixture
def log(tmp_path, rows):
    return written(tmp_path / "log.csv", rows)


def written(path, rows, names=NAMES):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate-policy", *map(str, arguments)])


def evaluated(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def refused(*arguments):
    error = run(*arguments).exception
    assert isinstance(error, PolicyLogError | EventFileError), error
    assert "\n" not in str(error)
    return str(error)


def test_the_value_of_the_uniform_policy_is_found(log):
    found = evaluated(log, "--policy", "uniform", "--columns", "context=site")
    assert found["rows"] == 2_000
    assert len(found["estimates"]) == 12
    assert found["on_policy"]["value"] == pytest.approx(0.14, abs=0.03)
    for one in found["estimates"]:
        assert one["low"] < 0.2 < one["high"], one
    assert found["warnings"] == []


def test_the_table_shows_all_and_what_was_assumed(log):
    done = run(log, "--policy", "uniform")
    assert done.exit_code == 0, done.exception
    for word in ("on-policy", "snips-clipped", "frequencies", "recommended"):
        assert word in done.output
    assert "…" not in done.output  # fits 80 columns


def test_a_policy_from_a_file_and_one_in_a_column_give_the_same(tmp_path, rows):
    policy = written(
        tmp_path / "policy.csv",
        [[site, position, item, p] for site in "xy" for position in (1, 2, 3) for item, p in (("a", 0.3), ("b", 0.7))],
        ["site", "position", "action", "probability"],
    )
    by_file = evaluated(written(tmp_path / "log.csv", rows), "--policy", policy, "--columns", "context=site")
    with_column = [[*row, 0.3 if row[1] == "a" else 0.7] for row in rows]
    path = written(tmp_path / "with.csv", with_column, [*NAMES, "new"])
    by_column = evaluated(path, "--columns", "context=site,probability=new")
    assert by_file["estimates"] == by_column["estimates"]


def test_json_lines_parquet_and_packed_files_are_read_alike(tmp_path, rows, log):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    expected = evaluated(log, "--policy", "uniform")["estimates"]
    objects = [dict(zip(NAMES, row, strict=True)) for row in rows]
    lines = tmp_path / "log.jsonl"
    lines.write_text("".join(json.dumps(one) + "\n" for one in objects))
    parquet.write_table(pa.Table.from_pylist(objects), tmp_path / "log.parquet")
    import lzma  # noqa: PLC0415

    (tmp_path / "log.csv.xz").write_bytes(lzma.compress(log.read_bytes()))
    semicolons = tmp_path / "semicolons.csv"
    semicolons.write_text(log.read_text().replace(",", ";"))
    for path in (lines, tmp_path / "log.parquet", tmp_path / "log.csv.xz", semicolons):
        assert evaluated(path, "--policy", "uniform")["estimates"] == expected, path


def test_a_log_of_impressions_is_as_many_rows_as_were_shown(tmp_path):
    records = []
    for number in range(300):
        shown = tuple(
            ShownItem(
                item_id=f"i{(number + slot) % 7}", position=slot + 1, propensity=1 / (7 - slot),
                reward=None if number % 2 else float((number + slot) % 5 == 0),
            )
            for slot in range(3)
        )  # fmt: skip
        records.append(encode(Impression(
            request_id=f"r{number}", timestamp=1e9, policy="p", version=1, explored=True, items=shown,
        )))  # fmt: skip
    path = tmp_path / "impressions.jsonl"
    path.write_bytes(b"\n".join(records))
    found = evaluated(path, "--policy", "uniform")
    assert (found["rows"], found["actions"]) == (900, 7)
    assert "450 rows have no reward: taken as 0" in found["remarks"]
    loaded = load(path, "uniform")
    assert loaded.log.unit is not None
    assert loaded.log.unit.max() == 299


def test_where_keeps_some_rows(log):
    assert evaluated(log, "--policy", "uniform", "--where", "site=x")["rows"] == 1_000
    assert "no column 'town'" in refused(log, "--where", "town=x")
    assert "0 rows under --where" in refused(log, "--where", "site=z")


def test_missing_propensities_leave_frequencies_and_a_word(tmp_path, rows):
    rows[5][3] = ""
    rows[6][3] = 0
    found = evaluated(written(tmp_path / "log.csv", rows), "--policy", "uniform")
    assert {one["weights"] for one in found["estimates"]} == {"frequencies"}
    assert any(line.startswith("2 of 2,000 rows have no propensity") for line in found["remarks"])


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ((), ["--columns", "action=sku"], "no column 'sku'"),
        ((), ["--columns", "price=x"], "'price=x' is none of action=COLUMN"),
        ((), [], "no column 'probability' of the evaluated policy"),
        (["x", "", 1, 0.5, 1, 9], UNIFORM, "row 2,001: no value in column 'item_id'"),
        (["x", "a", 1, 0.5, "yes", 9], UNIFORM, "row 2,001: reward in column 'click' is no number"),
        (["x", "a"], UNIFORM, "line 2,002: 2 cells under 6 columns"),
        ((), ["--policy", "absent.csv"], "absent.csv: there is no such file"),
        ((), [*UNIFORM, "--where", "site"], "give COLUMN=VALUE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, rows, row, options, words):
    assert words in refused(written(tmp_path / "log.csv", [*rows, row] if row else rows), *options)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ([["a", 0.5], ["b", 0.6]], "add up to 1.1000, not 1"),
        ([["a", 0.5], ["b", 1.5]], "row 2: probability must lie between 0 and 1"),
        ([["a", 0.5], ["a", 0.5]], "action 'a' is there twice"),
        ([["c", 1.0]], "do the ids match?"),
        ([], "has no rows"),
    ],
)
def test_what_is_wrong_with_a_policy_is_said_in_one_line(tmp_path, log, policy, words):
    assert words in refused(log, "--policy", written(tmp_path / "policy.csv", policy, ["action", "probability"]))


def test_an_unknown_interval_is_wrong_usage(log):
    assert run(log, "--policy", "uniform", "--interval", "wald").exit_code == 2


def test_pairs_are_parsed_strictly():
    assert parse_pairs("action=sku, context=site+device") == {"action": "sku", "context": "site+device"}
    for wrong in ("action", "action=", "=x", "action=a,action=b"):
        with pytest.raises(ValueError, match=r"none of|twice"):
            parse_pairs(wrong)


def test_a_table_with_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(EventFileError, match="two columns of the name 'a'"):
        list(table_rows(path))


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_the_click_rate_of_a_policy_is_found_in_the_log_of_the_other():
    logs = benchmark.read(SHARED)
    for name, log in logs.items():
        (other,) = set(logs) - {name}
        known = float(logs[other].reward.mean())
        for one in benchmark.estimates(log, "frequencies", benchmark.Options()):
            assert one.low < known < one.high, (name, one)


def test_nothing_is_written(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    evaluated(log, "--policy", "uniform")
    assert sorted(os.listdir(tmp_path)) == before


def test_without_a_file_the_topic_of_impressions_is_read(tmp_path):
    settings = load_settings(data_dir=tmp_path)
    prepare_topics(settings)
    shown = ShownItem(item_id="i1", position=1, propensity=0.5, reward=1.0)
    other = ShownItem(item_id="i2", position=2, propensity=0.5, reward=0.0)
    with closing(open_producer(settings)) as producer:
        for number in range(50):
            record = Impression(
                request_id=f"r{number}", timestamp=1e9, policy="p", version=1, explored=True, items=(shown, other)
            )
            producer.send(settings.impressions_topic, key=b"u", value=encode(record))
        producer.send(settings.impressions_topic, key=b"u", value=b"no JSON")
    found = evaluated("--policy", "uniform", "--data-dir", tmp_path)
    assert (found["rows"], found["actions"], found["file"]) == (100, 2, "nextclick.impressions")


def test_clicks_are_joined_to_what_was_logged(tmp_path):
    settings = load_settings(data_dir=tmp_path)
    prepare_topics(settings)
    random = np.random.default_rng(0)
    with closing(open_producer(settings)) as producer:
        for number in range(400):
            item, at = ("a" if random.random() < 0.8 else "b"), 1e9 + 100 * number
            shown = ShownItem(item_id=item, position=1, propensity=0.8 if item == "a" else 0.2)
            record = Impression(
                request_id=f"r{number}", user_id=f"u{number}", timestamp=at, policy="p", version=1, explored=True,
                items=(shown,),
            )  # fmt: skip
            producer.send(settings.impressions_topic, key=b"u", value=encode(record))
            if random.random() < (0.2 if item == "a" else 0.6):
                click = Click(user_id=f"u{number}", item_id=item, timestamp=at + 90)
                producer.send(settings.clicks_topic, key=b"u", value=encode_click(click))
        without = record.model_copy(update={"request_id": "x", "items": (ShownItem(item_id="a", position=1),)})
        producer.send(settings.impressions_topic, key=b"u", value=encode(without))
        producer.send(settings.clicks_topic, key=b"u", value=b"no click")
    found = evaluated("--topic", "--policy", "uniform", "--data-dir", tmp_path)
    assert (found["rows"], found["remarks"][0]) == (400, "1 of 401 lists have no propensities: left out")
    assert found["recommended"]["low"] < 0.4 < found["recommended"]["high"]
    assert found["on_policy"]["value"] == pytest.approx(0.28, abs=0.06)
    soon = evaluated("--topic", "--attribution-minutes", 1, "--policy", "uniform", "--data-dir", tmp_path)
    assert soon["on_policy"]["value"] == 0


def test_a_topic_without_propensities_is_said(tmp_path):
    settings = load_settings(data_dir=tmp_path)
    prepare_topics(settings)
    record = Impression(
        request_id="r", timestamp=1e9, policy="p", version=1, explored=True,
        items=(ShownItem(item_id="a", position=1),),
    )  # fmt: skip
    with closing(open_producer(settings)) as producer:
        producer.send(settings.impressions_topic, key=b"u", value=encode(record))
    line = refused("--topic", "--policy", "uniform", "--data-dir", tmp_path)
    assert line.endswith("has no list that can be evaluated; 1 of 1 lists have no propensities: left out")


def test_a_file_and_the_topic_do_not_go_together(log):
    assert run(log, "--topic", "--policy", "uniform").exit_code == 2
    assert run(log, "--attribution-minutes", 5, "--policy", "uniform").exit_code == 2
