"""What a backtest says of event types, values, and items that were given back."""

import json

import numpy as np
import pytest

from online.evaluation.backtest import ABLATIONS, AS_SERVED, NEXTCLICK, ONE_OBJECTIVE, backtest, usual_methods
from online.evaluation.backtest_report import report
from online.evaluation.breakdown import breakdown, breakdown_remarks, breakdown_table
from online.evaluation.worth import WEEK_S, PredictedWorth, ReturnedItems
from stream.events import Click
from tests.online.learner.worth.conftest import WEIGHTS, shop


class Answers:
    """A learner whose lists are given."""

    def __init__(self, lists):
        self.lists, self.asked = lists, []
        self.answerer = self

    def answer(self, questions):
        self.asked += [(question.user_id, question.at) for question in questions]
        return [self.Answer(self.lists[question.user_id]) for question in questions]

    class Answer:
        def __init__(self, items):
            self.items = items


def test_items_given_back_are_looked_for_a_week_later_in_the_users_own_list(small) -> None:
    settings = small(event_weights=WEIGHTS, list_size=12)
    clicks = [
        Click(user_id="a", item_id="x", timestamp=0.0, event_type="return"),  # before the first that is scored
        Click(user_id="a", item_id="y", timestamp=10.0, event_type="return"),
        Click(user_id="b", item_id="z", timestamp=20.0, event_type="return"),
        Click(user_id="b", item_id="z", timestamp=21.0, event_type="view"),
        Click(user_id="c", item_id="q", timestamp=WEEK_S + 15.0),
        Click(user_id="c", item_id="q", timestamp=WEEK_S + 25.0),
    ]
    many = [f"i{n}" for n in range(10)]
    learner, returned = Answers({"a": ["y"], "b": [*many, "z"]}), ReturnedItems(clicks, settings, 1)
    for start in range(0, 6, 2):
        returned.after(range(start, start + 2), learner)
    assert learner.asked == [("a", WEEK_S + 10.0), ("b", WEEK_S + 20.0)]
    assert returned.figures() == {"returns": 2, "in_first_10": 0.5, "in_list": 1.0}


def test_the_calibration_of_a_head_is_its_chance_against_what_came(small) -> None:
    predicted = PredictedWorth(4, small(event_weights="view=1,buy=2"))
    predicted.chances[:] = [[0.75, 0.25]] * 4
    predicted.chances[3] = np.nan  # not kept
    predicted.values[:3] = [2.0, 4.0, 6.0]
    found = predicted.figures(["view", "buy", "view", "view"], np.array([1.0, np.nan, 5.0, 9.0]), np.ones(4, bool))
    assert found["view"] == {
        "clicks": 3, "expected_calibration_error": pytest.approx(0.75 - 2 / 3, abs=1e-4), "mean_predicted": 0.75,
        "share": pytest.approx(2 / 3, abs=1e-4),
    }  # fmt: skip
    assert found["value"] == {"clicks": 2, "mean_predicted": 4.0, "mean": 3.0}


def test_one_run_shows_what_objectives_do_and_what_it_is_without(small) -> None:
    settings = small(event_weights=WEIGHTS, objective="p_click * worth", history_max=40)
    assert ONE_OBJECTIVE in usual_methods(settings)
    assert ONE_OBJECTIVE not in usual_methods(small())
    assert ABLATIONS[ONE_OBJECTIVE]["event_weights"] == ""
    clicks = shop(800, returns=0.5)
    outcome = backtest(clicks, settings, methods=(NEXTCLICK, AS_SERVED, ONE_OBJECTIVE))
    found = report(outcome) | breakdown(outcome)
    assert set(found["heads"]) == {NEXTCLICK}
    assert set(found["heads"][NEXTCLICK]) == {"view", "buy now", "return", "value"}
    assert (outcome.ranks[NEXTCLICK] != outcome.ranks[ONE_OBJECTIVE]).any()
    lines = breakdown_remarks(found)
    assert any(line.startswith("calibration error of the chance of buy now: 0.") for line in lines)
    assert breakdown_table(found) is not None
    json.dumps(found, allow_nan=False)
    plain = backtest(clicks, small(history_max=40), methods=(NEXTCLICK,))
    np.testing.assert_array_equal(plain.ranks[NEXTCLICK], outcome.ranks[ONE_OBJECTIVE])
