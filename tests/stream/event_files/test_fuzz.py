"""Random and mutated files are read, with every row accounted for, or refused in one line; nothing else is raised."""

from pathlib import Path

import pytest

from benchmarks.fuzz_files import run, slow_rows
from stream.event_files.csv_rows import CsvRows


@pytest.mark.parametrize("seed", range(4))
def test_random_and_mutated_files_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    report = run(150, seed, tmp_path)
    assert report["wrong"] == 0, report["first_wrong"]
    assert sum(report["outcomes"].values()) == 150
    assert {outcome.split()[1] for outcome in report["outcomes"]} == {"read", "refused"}


def test_the_fuzzer_notices_a_row_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CsvRows._records
    monkeypatch.setattr(
        CsvRows, "_records", lambda self, lines: (row for at, row in enumerate(whole(self, lines)) if at != 1)
    )
    assert run(150, 0, tmp_path)["wrong"] > 0


def test_the_slow_count_of_rows() -> None:
    assert slow_rows("csv", b'a,b\n"x\ny",1\r\n\n , \r"q""",2', ",") == 4
    assert slow_rows("jsonl", b"{}\n\n{}\r{}", "") == 3
