"""What lists are ranked by: formulas on arrays, their effect on lists, and explanations of it."""

import json
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.config.formula import Apply, Formula, Name
from online.learner import explaining
from online.learner.asking import Question
from online.learner.explaining import OBJECTIVE, explained
from online.learner.reasons import worth_reason
from online.learner.worth.objective import NOT_FINITE, as_shares, compiled
from stream.events import Click
from tests.online.learner.worth.conftest import RETURN, learn, shop

SIGNS = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "**": lambda a, b: a**b, "min": min, "max": max,
}  # fmt: skip
ONE = {"neg": lambda a: -a, "log": math.log, "exp": math.exp, "sqrt": math.sqrt}

trees = st.recursive(
    st.floats(-3, 3) | st.sampled_from([Name("p_click"), Name("value")]),
    lambda inner: (
        st.builds(Apply, st.sampled_from(sorted(SIGNS)), st.tuples(inner, inner))
        | st.builds(Apply, st.sampled_from(sorted(ONE)), st.tuples(inner))
    ),
    max_leaves=8,
)


def slow(node, figures):
    """One candidate at a time; ArithmeticError or ValueError where Python has no number."""
    if isinstance(node, float):
        return node
    if isinstance(node, Name):
        return figures[node.name]
    parts = [slow(part, figures) for part in node.parts]
    found = (ONE[node.sign] if len(parts) == 1 else SIGNS[node.sign])(*parts)
    if isinstance(found, complex):
        raise ValueError("no real number")
    return found


@given(trees)
def test_a_formula_on_arrays_is_what_it_is_on_each_candidate(root) -> None:
    figures = {"p_click": np.array([[0.5, 0.1], [0.0, 1.0]]), "value": np.array([[2.0, 0.0], [-1.0, 3.0]])}
    with np.errstate(all="ignore"):
        found = np.broadcast_to(compiled(root)(figures), (2, 2))
    for at in np.ndindex(2, 2):
        with suppress(ArithmeticError, ValueError):
            expected = slow(root, {name: float(array[at]) for name, array in figures.items()})
            assert found[at] == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_values_become_shares_for_what_draws_by_them() -> None:
    assert as_shares(np.array([3.0, 1.0], np.float32)).tolist() == [0.75, 0.25]
    assert as_shares(np.array([1.0, -1.0, NOT_FINITE], np.float32)).tolist() == [1.0, 0.0, 0.0]
    assert as_shares(np.array([-1.0, -1.0, NOT_FINITE], np.float32)).tolist() == [0.5, 0.5, 0.0]
    assert as_shares(np.array([NOT_FINITE], np.float32)).tolist() == [0.0]
    assert not len(as_shares(np.zeros(0, np.float32)))


def lists_of(learner, objective=None, user="2", **others):
    formula = None if objective is None else learner.weights.objective.formula(objective)
    return learner.answerer.answer([Question(user, k=12, objective=formula, **others)])[0]


def test_the_objective_changes_the_list_and_its_scores(worthy) -> None:
    clicks = shop(960)
    plain, bought = worthy(), worthy(objective="p_buy_now")
    for learner in (plain, bought):
        learn(learner, clicks)
    one, other = (learner.rank(["2"])[0] for learner in (plain, bought))
    assert one.items != other.items
    assert set(one.items) & set(other.items)
    assert other.scores == sorted(other.scores, reverse=True)
    assert 0.5 < sum(one.scores) <= 1.0


def test_a_request_has_its_own_objective_and_others_keep_theirs(worthy) -> None:
    learner = worthy()
    learn(learner, shop(960))
    usual, bought = lists_of(learner), lists_of(learner, "p_buy_now")
    assert bought.items == learner_items_by(learner, "p_buy_now")
    assert usual.items != bought.items
    together = learner.answerer.answer(
        [Question("2", k=12), Question("2", k=12, objective=learner.weights.objective.formula("p_buy_now"))]
    )
    assert [one.items for one in together] == [usual.items, bought.items]
    assert lists_of(learner, "p_click").items == usual.items


def learner_items_by(learner, name):
    """The kept candidates, sorted by a figure of them, slowly."""
    asked = learner.answerer.ask([Question("2", k=12)])
    figures = learner.weights.objective.figures(asked.scored)[name][0]
    rows = asked.scored.rows()[0]
    order = sorted(range(len(rows)), key=lambda at: -figures[at] if rows[at] else math.inf)
    return [learner.vocabulary.item_of(int(rows[at])) for at in order if rows[at]][:12]


def test_what_a_formula_gives_no_finite_value_ranks_last_and_is_counted(worthy) -> None:
    learner = worthy()
    learn(learner, shop(960))
    found = lists_of(learner, "log(p_click - 0.05)")  # of most there is none
    finite = [score for score in found.scores if score > NOT_FINITE]
    assert 0 < len(finite) < len(found.scores)
    assert found.scores == sorted(found.scores, reverse=True)
    assert learner.weights.objective.not_finite >= len(found.scores) - len(finite)
    json.dumps(found.scores, allow_nan=False)


def test_lists_that_vary_or_explore_take_any_objective(worthy) -> None:
    learner = worthy()
    learn(learner, shop(960))
    for others in ({"diversity": 0.5}, {"explore": 1.0, "request_id": "r"}):
        for objective in ("log(p_click)", "-1", "p_click * value"):
            found = lists_of(learner, objective, **others)
            assert len(found.items) == 12
            assert len(set(found.items)) == 12


@pytest.mark.parametrize("objective", ["p_click", "p_click * (1 + 4 * p_buy_now)", "p_click * value", "p_click - 0.1"])
@pytest.mark.parametrize("kept", [32, 4])
def test_explanations_add_up_with_the_objective_in_them(worthy, objective, kept) -> None:
    learner = worthy(objective=objective, candidates_kept=kept, list_size=max(4, kept // 3))
    learn(learner, shop(960, returns=0.5))
    with torch.no_grad():
        learner.weights.ranker.out.normal_()
    answer = explained(learner.answerer, Question("2", k=10), None)
    assert answer.explanations
    for one in answer.explanations:
        assert sum(one["groups"].values()) == pytest.approx(one["difference"], abs=1e-3)
        assert sum(one["contributions"].values()) == pytest.approx(one["difference"], abs=1e-3)
        json.dumps(one, allow_nan=False)
    assert any(OBJECTIVE in one["groups"] for one in answer.explanations)
    scores = [one["score"] for one in answer.explanations if one["scored_by"] == "ranker"]
    if objective != "p_click - 0.1":  # of what is below 0 there is no logarithm
        assert scores == sorted(scores, reverse=True)


def test_the_objective_is_a_reason_in_words(worthy, monkeypatch) -> None:
    learner = worthy(objective="p_click * p_buy_now")
    learn(learner, shop(960))
    monkeypatch.setattr(explaining, "REASONS_MAX", 99)
    found = explained(learner.answerer, Question("2", k=10), None).explanations
    texts = [reason["text"] for one in found for reason in one["reasons"] if reason["group"] == OBJECTIVE]
    assert texts
    assert all("such clicks" in text or "worth more" in text or "suits what" in text for text in texts)
    assert worth_reason({"p_click": (0.5, 0.1), "p_buy_now": (0.12, 0.03)}) == (
        "likely to be worth more: buy now in 12.0% of such clicks, of others in 3.0%"
    )
    assert worth_reason({"value": (20.0, 5.0), "p_buy_now": (0.1, 0.1)}) == "worth more: value 20, of others 5"
    assert worth_reason({}) == "suits what lists are ranked by"


def returned(clicks, item, user="2"):
    now = clicks[-1].timestamp + 60
    return Click(user_id=user, item_id=item, timestamp=now, event_type=RETURN)


def test_what_a_user_gave_back_falls_recovers_and_hardly_falls_for_others(worthy) -> None:
    clicks = shop(960)
    weights = {"event_weights": "view=1,buy now=5,return=-3"}
    plain, learner = worthy(event_weights="view=1,buy now=5,return=0"), worthy(**weights)
    best = None
    for one in (plain, learner):
        learn(one, clicks)
        best = lists_of(one).items[0] if best is None else best
        one.learn([returned(clicks, best)])
    later = clicks[-1].timestamp + 60

    def share(learner, user, days=0.0):
        found = lists_of(learner, user=user, at=later + 86_400.0 * days)
        return dict(zip(found.items, found.scores, strict=True)).get(best, 0.0)

    def place(learner, user):
        items = lists_of(learner, user=user, at=later).items
        return items.index(best) if best in items else len(items)

    assert place(learner, "2") > place(plain, "2")
    assert share(learner, "2") < 0.2 * share(plain, "2")
    assert share(learner, "2", 900) > share(learner, "2", 90) > share(learner, "2")
    asked = learner.answerer.ask([Question("3", at=later), Question("2", at=later)])
    row = learner.vocabulary.row_of(best)
    for at, low, high in ((0, 0.5, 0.999), (1, 0.0, 0.1)):
        slot = np.flatnonzero(asked.scored.rows()[at] == row)
        if len(slot):
            assert low < math.exp(asked.scored.lost[at, slot[0]]) < high


def test_a_formula_is_read_once(worthy) -> None:
    objective = worthy().weights.objective
    assert objective.formula("p_buy_now") is objective.formula("p_buy_now")
    assert isinstance(objective.formula(), Formula)
