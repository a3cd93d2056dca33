"""A notice is told once, everywhere; after a crash the same ones have the same ids."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest

from online.lifecycle.versions import STATES, Versions
from online.worker.notices import KINDS, Notices
from online.worker.progress import Progress


class Topic:
    dropped = 2

    def __init__(self):
        self.notices = []

    def put(self, notice):
        self.notices.append(notice)


@pytest.fixture
def topic():
    return Topic()


@pytest.fixture
def progress():
    return Progress(learned=40)


@pytest.fixture
def board(topic, progress):
    return Notices(3, progress=progress, versions=Versions(3, 5), clock=lambda: 5.5, writer=topic)


def test_a_notice_is_a_record_a_line_in_the_log_and_one_of_the_latest(board, topic, caplog):
    caplog.set_level(logging.INFO, "online.worker.notices")
    notice = board.emit("rolled_back", "version 4 is version 2", {"live": 0.25})
    assert notice.as_dict() == {
        "id": "rolled_back-40-0", "kind": "rolled_back", "at": 5_500, "clicks": 40, "version": 1,
        "text": "version 4 is version 2", "figures": {"live": 0.25},
    }  # fmt: skip
    assert topic.notices == list(board.latest) == [notice]
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "rolled_back: version 4 is version 2")
    ]


def test_ids_tell_notices_of_one_kind_at_one_click_apart(board, progress):
    kinds = ["alarm", "alarm", "update_skipped", "alarm"]
    ids = [board.emit(kind, "").id for kind in kinds]
    assert ids == ["alarm-40-0", "alarm-40-1", "update_skipped-40-0", "alarm-40-2"]
    progress.learned = 41
    assert board.emit("alarm", "").id == "alarm-41-0"


def test_the_latest_are_kept_and_all_are_counted(board):
    for number in range(5):
        board.emit("alarm", str(number))
    board.emit("update_skipped", "5")
    assert [notice.text for notice in board.latest] == ["3", "4", "5"]
    assert board.counts == {"alarm": 5, "update_skipped": 1}
    assert board.dropped == 2


def test_a_restart_goes_on_with_the_same_ids(board):
    board.emit("alarm", "one")
    board.emit("alarm", "two")
    state = json.loads(json.dumps(board.to_state()))
    again = Notices(3, progress=Progress(learned=40), versions=Versions(3, 5), clock=lambda: 9.0)
    again.load_state(state)
    assert again.to_state() == board.to_state()
    assert again.emit("alarm", "three").id == board.emit("alarm", "three").id == "alarm-40-2"
    assert again.dropped == 0


def test_figures_that_json_cannot_hold_do_no_harm(board):
    figures = {"nan": float("nan"), "inf": [np.float32(np.inf), np.int64(3)], 7: {"x": object, "y": (1, True)}}
    found = board.emit("update_skipped", "", figures).figures
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "nan": None, "inf": [None, 3], "7": {"x": "<class 'object'>", "y": [1, True]},
    }  # fmt: skip


def test_each_kind_is_logged_as_grave_as_it_is(board, caplog):
    caplog.set_level(logging.INFO)
    for kind in KINDS:
        board.emit(kind, "")
    levels = {record.message.split(":")[0]: record.levelname.lower() for record in caplog.records}
    assert levels == {kind: severity for kind, (severity, _) in KINDS.items()}


def test_an_end_is_named_after_its_beginning_and_is_no_warning():
    ends = [kind for kind in KINDS if kind.endswith(("_over", "_recovered"))]
    assert {kind.removesuffix("_over").replace("_recovered", "_failed") for kind in ends} < KINDS.keys()
    assert {KINDS[kind].severity for kind in ends} == {"info"}


def test_the_operators_page_says_what_each_kind_and_each_state_means():
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    rows = " ".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))  # the first cells
    assert [kind for kind in KINDS if f"`{kind}`" not in rows] == []
    assert [state for state in STATES if f"| {state} |" not in page] == []
