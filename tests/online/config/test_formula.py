"""Objectives as text: what is read, and what is said of what is not."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.config.event_weights import TYPES_MAX, known_names, names_of, weights_in
from online.config.formula import DEPTH_MAX, LENGTH_MAX, Apply, FormulaError, Name, parse
from online.config.settings import Settings, load_settings

KNOWN = ("p_click", "p_purchase", "value", "worth")


def test_precedence_is_that_of_arithmetic() -> None:
    found = parse(" p_click * (1 + 4 * p_purchase) ", KNOWN)
    assert found.root == Apply("*", (Name("p_click"), Apply("+", (1.0, Apply("*", (4.0, Name("p_purchase")))))))
    assert found.names == {"p_click", "p_purchase"}
    assert parse("-value ** 2", KNOWN).root == Apply("neg", (Apply("**", (Name("value"), 2.0)),))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "it is empty; expected a number, a name"),
        ("p_click *", "at character 10: expected a number, a name, '-', '(' or one of log"),
        ("p_click p_click", "at character 9: expected"),
        ("p_click * p_purchse", "at character 11: nothing is called 'p_purchse'; there are p_click, p_purchase, value"),
        ("p_click + x.y", "at character 11: expected a number, a name, '-', '(' or one of log, exp, sqrt, min, max"),
        ("p_click[0]", "at character 1: expected"),
        ("1 if p_click else 2", "at character 1: expected"),
        ("p_click > 1", "at character 1: expected"),
        ("True", "at character 1: expected"),
        ("'a'", "at character 1: expected"),
        ("2j", "at character 1: expected"),
        ("ü + open(1)", "at character 1: nothing is called 'ü'"),
        ("1 + open(1)", "at character 5: there is no function 'open'; there are log, exp, sqrt, min, max"),
        ("log(1, 2)", "at character 1: log takes one formula, not 2"),
        ("min(value)", "at character 1: min takes 2 formulas or more, not 1"),
        ("log(value=1)", "at character 1: "),
        ("1e999", "at character 1: the number is too large"),
        ("9" * 400, "at character 1: the number is too large"),
        ("p_click +" * 100, f"it has 900 characters; at most {LENGTH_MAX} are read"),
        ("-" * (DEPTH_MAX + 1) + "1", f"more than {DEPTH_MAX} operations within one another"),
        ("(" * 240 + ")" * 240, ""),
        ("p_click \0", ""),
    ],
)
def test_a_wrong_formula_has_one_line_that_says_where_and_what_was_expected(text: str, line: str) -> None:
    with pytest.raises(FormulaError) as error:
        parse(text, KNOWN)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(max_size=40) | st.text("()+-*/ .,epxlogmin_1[]=:{}'\\", max_size=40))
def test_whatever_the_text_is_it_is_a_formula_or_a_formula_error(text: str) -> None:
    with suppress(FormulaError):
        parse(text, KNOWN)


def test_weights_are_pairs_in_their_order_and_types_have_names_in_formulas() -> None:
    assert weights_in(" click=1, COMMENT CREATED = 2.5,return=-5,a=b=0") == {
        "click": 1.0, "COMMENT CREATED": 2.5, "return": -5.0, "a=b": 0.0,
    }  # fmt: skip
    assert weights_in(" ") == {}
    assert names_of(["COMMENT CREATED", "click"]) == {"COMMENT CREATED": "p_comment_created", "click": "p_type_click"}
    assert known_names({"like": 2.0}, built=True) == ("p_click", "p_like", "value", "worth")
    assert known_names({}, built=False) == ("p_click",)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("click", "'click' is no pair of an event type and its weight, as in purchase=5"),
        ("=1", "is no pair"),
        ("click=1,", "is no pair"),
        ("click=much", "click: 'much' is no number from -1000 to 1000"),
        ("click=nan", "is no number"),
        ("click=1e9", "is no number"),
        ("a=1,a=2", "a is given twice"),
        ("a b=1,A_B=2", "a b and A_B would both be called p_a_b in formulas"),
        (",".join(f"t{n}=1" for n in range(TYPES_MAX + 1)), f"at most {TYPES_MAX} event types, not {TYPES_MAX + 1}"),
    ],
)
def test_wrong_weights_have_one_line(text: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"(?s).*") as error:
        weights_in(text)
    assert line in str(error.value)
    monkeypatch.setenv("NEXTCLICK_EVENT_WEIGHTS", text)
    with pytest.raises(Exception, match="NEXTCLICK_EVENT_WEIGHTS: "):
        load_settings()


def test_an_objective_may_name_what_has_a_weight_and_nothing_else() -> None:
    assert not Settings().predicts_worth
    assert Settings().formula_names == ("p_click",)
    assert Settings(objective="p_click * value").predicts_worth
    with pytest.raises(ValueError, match="NEXTCLICK_OBJECTIVE: at character 11: nothing is called 'p_like'; there are"):
        Settings(objective="p_click * p_like")
    assert Settings(event_weights="LIKE=3", objective="p_click * p_like").predicts_worth
